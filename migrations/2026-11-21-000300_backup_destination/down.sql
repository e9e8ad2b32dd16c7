ALTER TABLE backup_policy DROP COLUMN destination;
