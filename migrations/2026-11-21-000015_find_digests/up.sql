-- A person is found by e-mail address or name without either standing anywhere in the clear.

ALTER TABLE user_profiles ADD COLUMN username_digest bytea, ADD COLUMN email_digest bytea;
-- Who is found by a digest.
CREATE INDEX user_profiles_by_username ON user_profiles (username_digest);
CREATE INDEX user_profiles_by_email ON user_profiles (email_digest);
-- Profiles from before there were digests, until a daemon has made theirs.
CREATE INDEX user_profiles_without_digest ON user_profiles (subject_id) WHERE email_digest IS NULL;
COMMENT ON COLUMN user_profiles.username_digest IS 'identity: keyed digest of the name, under a key of the deployment''s; empty where the name does not open';
COMMENT ON COLUMN user_profiles.email_digest IS 'identity: keyed digest of the address in lower case, under a key of the deployment''s; empty where the address does not open';

-- To make a digest is no change of the profile.
DROP TRIGGER touch ON user_profiles;
CREATE TRIGGER touch BEFORE UPDATE OF username_sealed, email_sealed, full_name_sealed, metadata_sealed, version ON user_profiles
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at();
