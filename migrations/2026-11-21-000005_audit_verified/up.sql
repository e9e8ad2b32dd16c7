-- How far the log has been verified, as daemons have sealed it: the job goes on from there.

CREATE TABLE audit_verified (
    stream int PRIMARY KEY,
    blocks bigint NOT NULL CHECK (blocks >= 0),
    edge bytea NOT NULL,
    again bigint NOT NULL CHECK (again >= 0),
    at timestamptz NOT NULL,
    mac bytea NOT NULL
);
COMMENT ON TABLE audit_verified IS 'How far each stream has been verified. Stream -1 is the heads log.';
COMMENT ON COLUMN audit_verified.stream IS 'clear: of which stream';
COMMENT ON COLUMN audit_verified.blocks IS 'clear: how many blocks of 4,096 entries';
COMMENT ON COLUMN audit_verified.edge IS 'clear: of the tree over those blocks, the hashes at every fourth level that are in no complete subtree yet';
COMMENT ON COLUMN audit_verified.again IS 'clear: up to which block the verified ones have been verified again';
COMMENT ON COLUMN audit_verified.at IS 'clear: when that was, by the daemon''s clock';
COMMENT ON COLUMN audit_verified.mac IS 'clear: a MAC over the row, under a key that the owner of the tables has not';

GRANT SELECT, INSERT, UPDATE ON audit_verified TO sidekeep_app;
