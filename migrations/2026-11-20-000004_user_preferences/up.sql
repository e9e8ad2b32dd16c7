CREATE TABLE user_preferences (
    subject_id bigint PRIMARY KEY REFERENCES subjects ON DELETE CASCADE,
    preferences_sealed bytea NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE user_preferences IS 'One set of preferences a person.';
COMMENT ON COLUMN user_preferences.subject_id IS 'clear: whose';
COMMENT ON COLUMN user_preferences.preferences_sealed IS 'sealed: free-form JSON from the application';
COMMENT ON COLUMN user_preferences.version IS 'clear: counts the changes';
COMMENT ON COLUMN user_preferences.created_at IS 'clear: when they were first set';
COMMENT ON COLUMN user_preferences.updated_at IS 'clear: when they were last changed';
CREATE TRIGGER touch BEFORE UPDATE ON user_preferences FOR EACH ROW EXECUTE FUNCTION touch_updated_at();
GRANT SELECT, INSERT, UPDATE, DELETE ON user_preferences TO sidekeep_app;
