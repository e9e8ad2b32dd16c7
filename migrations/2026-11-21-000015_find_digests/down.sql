DROP TRIGGER touch ON user_profiles;
CREATE TRIGGER touch BEFORE UPDATE ON user_profiles FOR EACH ROW EXECUTE FUNCTION touch_updated_at();
ALTER TABLE user_profiles DROP COLUMN username_digest, DROP COLUMN email_digest;
