CREATE TABLE user_profiles (
    subject_id bigint PRIMARY KEY REFERENCES subjects ON DELETE CASCADE,
    username_sealed bytea NOT NULL,
    email_sealed bytea NOT NULL,
    full_name_sealed bytea,
    metadata_sealed bytea,
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE user_profiles IS 'One profile a person.';
COMMENT ON COLUMN user_profiles.subject_id IS 'clear: whose';
COMMENT ON COLUMN user_profiles.username_sealed IS 'sealed: the name the person goes by in the application';
COMMENT ON COLUMN user_profiles.email_sealed IS 'sealed: e-mail address';
COMMENT ON COLUMN user_profiles.full_name_sealed IS 'sealed: full name';
COMMENT ON COLUMN user_profiles.metadata_sealed IS 'sealed: free-form JSON from the application';
COMMENT ON COLUMN user_profiles.version IS 'clear: counts the changes';
COMMENT ON COLUMN user_profiles.created_at IS 'clear: when the profile was created';
COMMENT ON COLUMN user_profiles.updated_at IS 'clear: when it was last changed';
CREATE TRIGGER touch BEFORE UPDATE ON user_profiles FOR EACH ROW EXECUTE FUNCTION touch_updated_at();
GRANT SELECT, INSERT, UPDATE, DELETE ON user_profiles TO sidekeep_app;
