ALTER TABLE backup_policy
    DROP COLUMN proved_at,
    DROP COLUMN oldest_at,
    DROP COLUMN making,
    DROP COLUMN drill_seconds,
    DROP COLUMN every_seconds;
COMMENT ON TABLE backup_policy IS 'How long dumps are kept, as of the last one that was made: one row, or none before the first.';
