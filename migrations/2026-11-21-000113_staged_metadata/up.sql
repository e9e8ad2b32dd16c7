-- What the daemon says of a change beside its clear columns, as the reason of a restriction, goes into the log with its entry.

ALTER TABLE audit_staged ADD COLUMN metadata_sealed bytea;
COMMENT ON COLUMN audit_staged.metadata_sealed IS 'sealed: why a right was exercised, in the caller''s words';
