-- What was archived of the log: a month of a stream is dropped only once its archive was read back and verified.

CREATE TABLE audit_archives (
    stream int NOT NULL CHECK (stream >= 0),
    month date NOT NULL CHECK (month = date_trunc('month', month)::date),
    first_position bigint NOT NULL CHECK (first_position >= 0),
    last_position bigint NOT NULL CHECK (last_position >= first_position),
    entries bigint NOT NULL CHECK (entries = last_position - first_position + 1),
    object text COLLATE "C" NOT NULL,
    manifest text COLLATE "C" NOT NULL,
    size bigint NOT NULL CHECK (size > 0),
    sha256 bytea NOT NULL CHECK (octet_length(sha256) = 32),
    verified_at timestamptz NOT NULL,
    removed_at timestamptz,
    PRIMARY KEY (stream, month)
);
COMMENT ON TABLE audit_archives IS 'The months of the log that are archived, by stream: a row is written once the object has been read back and verified.';
COMMENT ON COLUMN audit_archives.stream IS 'clear: of which stream';
COMMENT ON COLUMN audit_archives.month IS 'clear: the first day of the month of recorded_at, in UTC';
COMMENT ON COLUMN audit_archives.first_position IS 'clear: the position of its first entry';
COMMENT ON COLUMN audit_archives.last_position IS 'clear: the position of its last entry';
COMMENT ON COLUMN audit_archives.entries IS 'clear: how many entries it has';
COMMENT ON COLUMN audit_archives.object IS 'clear: the URL of the object with the entries';
COMMENT ON COLUMN audit_archives.manifest IS 'clear: the URL of its manifest';
COMMENT ON COLUMN audit_archives.size IS 'clear: the object''s size in bytes';
COMMENT ON COLUMN audit_archives.sha256 IS 'clear: the SHA-256 of the object';
COMMENT ON COLUMN audit_archives.verified_at IS 'clear: when it had been read back and verified';
COMMENT ON COLUMN audit_archives.removed_at IS 'clear: when the object was deleted, past retention; the manifest stays';

-- Nothing of it changes but that the object is gone.
GRANT SELECT, INSERT, UPDATE (removed_at) ON audit_archives TO sidekeep_app;
