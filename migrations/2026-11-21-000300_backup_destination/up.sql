-- A directory that was a mount point, and is not mounted, takes dumps as well: where the last one went is known from here, and a
-- file there says that it is that place.
ALTER TABLE backup_policy ADD COLUMN destination text COLLATE "C" CHECK (octet_length(destination) <= 4096);
COMMENT ON COLUMN backup_policy.destination IS 'clear: where the last dump was made to';
