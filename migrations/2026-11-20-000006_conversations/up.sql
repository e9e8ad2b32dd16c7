CREATE TABLE conversations (
    id text COLLATE "C" PRIMARY KEY CHECK (octet_length(id) BETWEEN 1 AND 128),
    subject_id bigint NOT NULL REFERENCES subjects ON DELETE CASCADE,
    title_sealed bytea,
    metadata_sealed bytea,
    archived boolean NOT NULL DEFAULT false,
    message_count bigint NOT NULL DEFAULT 0 CHECK (message_count >= 0),
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_message_at timestamptz,
    active_at timestamptz NOT NULL GENERATED ALWAYS AS (coalesce(last_message_at, created_at)) STORED
);
-- A person's conversations, the latest message first.
CREATE INDEX conversations_by_activity ON conversations (subject_id, active_at DESC, id DESC);
COMMENT ON TABLE conversations IS 'Conversations of a person with the application.';
COMMENT ON COLUMN conversations.id IS 'clear: the conversation''s id';
COMMENT ON COLUMN conversations.subject_id IS 'clear: whose';
COMMENT ON COLUMN conversations.title_sealed IS 'sealed: title';
COMMENT ON COLUMN conversations.metadata_sealed IS 'sealed: free-form JSON from the application';
COMMENT ON COLUMN conversations.archived IS 'clear: put aside by the person';
COMMENT ON COLUMN conversations.message_count IS 'clear: how many messages it has, and the next one''s position';
COMMENT ON COLUMN conversations.version IS 'clear: counts the changes';
COMMENT ON COLUMN conversations.created_at IS 'clear: when it began';
COMMENT ON COLUMN conversations.updated_at IS 'clear: when it was last changed';
COMMENT ON COLUMN conversations.last_message_at IS 'clear: when the latest message was sent';
COMMENT ON COLUMN conversations.active_at IS 'clear: the latest message, or the beginning where there is none';
CREATE TRIGGER touch BEFORE UPDATE ON conversations FOR EACH ROW EXECUTE FUNCTION touch_updated_at();

CREATE TABLE conversation_messages (
    conversation_id text COLLATE "C" NOT NULL REFERENCES conversations ON DELETE CASCADE,
    position bigint NOT NULL CHECK (position >= 0),
    message_id text COLLATE "C" CHECK (octet_length(message_id) BETWEEN 1 AND 128),
    message_sealed bytea NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (conversation_id, position)
);
-- A message sent twice is found by its id.
CREATE UNIQUE INDEX conversation_messages_by_id ON conversation_messages (conversation_id, message_id)
    WHERE message_id IS NOT NULL;
COMMENT ON TABLE conversation_messages IS 'The messages of a conversation, a row each.';
COMMENT ON COLUMN conversation_messages.conversation_id IS 'clear: of which conversation';
COMMENT ON COLUMN conversation_messages.position IS 'clear: its place, from 0';
COMMENT ON COLUMN conversation_messages.message_id IS 'clear: the id the caller gave it, if any';
COMMENT ON COLUMN conversation_messages.message_sealed IS 'sealed: the message as it was sent';
COMMENT ON COLUMN conversation_messages.created_at IS 'clear: when it was sent';
GRANT SELECT, INSERT, UPDATE, DELETE ON conversations TO sidekeep_app;
GRANT SELECT, INSERT, DELETE ON conversation_messages TO sidekeep_app;
