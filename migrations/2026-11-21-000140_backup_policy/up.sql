-- How long dumps are kept, as whoever makes them has it configured: a certificate says when the last one is gone, also where
-- another daemon writes it.
CREATE TABLE backup_policy (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    daily integer NOT NULL CHECK (daily >= 0),
    weekly integer NOT NULL CHECK (weekly >= 0),
    monthly integer NOT NULL CHECK (monthly >= 0),
    physical_seconds bigint CHECK (physical_seconds > 0),
    at timestamptz NOT NULL
);
COMMENT ON TABLE backup_policy IS 'How long dumps are kept, as of the last one that was made: one row, or none before the first.';
COMMENT ON COLUMN backup_policy.one IS 'clear: true';
COMMENT ON COLUMN backup_policy.daily IS 'clear: of how many days the last dump is kept';
COMMENT ON COLUMN backup_policy.weekly IS 'clear: of how many weeks';
COMMENT ON COLUMN backup_policy.monthly IS 'clear: of how many months';
COMMENT ON COLUMN backup_policy.physical_seconds IS 'clear: how long physical copies of the database are kept, where that is declared';
COMMENT ON COLUMN backup_policy.at IS 'clear: when the last dump was made';

GRANT SELECT, INSERT, UPDATE ON backup_policy TO sidekeep_app;
