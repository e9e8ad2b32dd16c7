-- The keyring: the only table that ties a user id to a subject id.

CREATE TABLE subjects (
    subject_id bigint PRIMARY KEY CHECK (subject_id BETWEEN 0 AND 9007199254740991),
    user_id text COLLATE "C" UNIQUE CHECK (octet_length(user_id) BETWEEN 1 AND 255),
    wrapped_key bytea NOT NULL,
    kek_id text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    restricted_at timestamptz,
    CHECK ((user_id IS NULL) = (subject_id = 0))
);
-- Which keys are in use, and what rotation has still to re-wrap.
CREATE INDEX subjects_by_kek ON subjects (kek_id);
COMMENT ON TABLE subjects IS 'The keyring: a person''s user id, subject id and data key. Deleting the row erases the person. Subject 0 is the deployment itself.';
COMMENT ON COLUMN subjects.subject_id IS 'clear: a random number that means nothing without this row';
COMMENT ON COLUMN subjects.user_id IS 'identity: the person''s id in the application';
COMMENT ON COLUMN subjects.wrapped_key IS 'identity: the person''s data key, wrapped by a key-encryption key that is never in the database';
COMMENT ON COLUMN subjects.kek_id IS 'clear: which key-encryption key wraps the data key';
COMMENT ON COLUMN subjects.created_at IS 'clear: when the person was first named';
COMMENT ON COLUMN subjects.restricted_at IS 'clear: since when processing is restricted (GDPR Art. 18)';

-- FOR SHARE needs UPDATE on some column; the daemon changes only these.
GRANT SELECT, INSERT, UPDATE (wrapped_key, kek_id, restricted_at) ON subjects TO sidekeep_app;
