ALTER TABLE audit_staged DROP COLUMN metadata_sealed;
