-- A certificate's date holds where dumps are made, proved and removed as the policy says. Whether they are is known only from
-- what was found at their destination; and what a run that was killed has left is found by its name.
ALTER TABLE backup_policy
    ADD COLUMN every_seconds bigint NOT NULL DEFAULT 86400 CHECK (every_seconds > 0),
    ADD COLUMN drill_seconds bigint NOT NULL DEFAULT 604800 CHECK (drill_seconds > 0),
    ADD COLUMN making text COLLATE "C" CHECK (octet_length(making) <= 64),
    ADD COLUMN oldest_at timestamptz,
    ADD COLUMN proved_at timestamptz;
COMMENT ON TABLE backup_policy IS 'How long dumps are kept, and how far that is so, as of the last one that was made: one row, or none before the first.';
COMMENT ON COLUMN backup_policy.every_seconds IS 'clear: how long it is at most from one dump to the next, by their schedule';
COMMENT ON COLUMN backup_policy.drill_seconds IS 'clear: how long it is at most from one drill to the next, by their schedule';
COMMENT ON COLUMN backup_policy.making IS 'clear: the dump that is being made, or that a run which was killed was making';
COMMENT ON COLUMN backup_policy.oldest_at IS 'clear: the snapshot of the oldest dump there is';
COMMENT ON COLUMN backup_policy.proved_at IS 'clear: the snapshot of the newest dump that was proved';
