ALTER TABLE audit_staged DROP COLUMN occurred_at;
