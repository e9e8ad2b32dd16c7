-- A command that works without a daemon stages its entry, and it may be long before a daemon starts and takes it in.
ALTER TABLE audit_staged ADD COLUMN occurred_at timestamptz;
COMMENT ON COLUMN audit_staged.occurred_at IS 'clear: when it was done, where it may be long before it is appended';
