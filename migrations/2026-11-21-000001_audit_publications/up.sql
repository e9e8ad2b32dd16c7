-- What was published of the heads log, and where: a destination that lacks it has lost it, or is not mounted.

CREATE TABLE audit_publications (
    destination text COLLATE "C" PRIMARY KEY,
    size bigint NOT NULL CHECK (size > 0),
    at timestamptz NOT NULL
);
COMMENT ON TABLE audit_publications IS 'The newest checkpoint that was published, for each destination. The publication itself is elsewhere, and is what counts.';
COMMENT ON COLUMN audit_publications.destination IS 'clear: where: the directory''s URL, or the SHA-256 of a command';
COMMENT ON COLUMN audit_publications.size IS 'clear: how many heads that checkpoint covers';
COMMENT ON COLUMN audit_publications.at IS 'clear: when it was published';

GRANT SELECT, INSERT, UPDATE ON audit_publications TO sidekeep_app;
