-- The living daemons and the key-encryption keys that each was given: rotation waits until all have the new one.

CREATE TABLE daemons (
    daemon text COLLATE "C" PRIMARY KEY,
    host text COLLATE "C" NOT NULL,
    version text COLLATE "C" NOT NULL,
    kek_ids text[] COLLATE "C" NOT NULL,
    wraps_under text COLLATE "C" NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL
);
COMMENT ON TABLE daemons IS 'The daemons that live: each says so every few seconds; the row of one that does not is deleted by the others.';
COMMENT ON COLUMN daemons.daemon IS 'clear: host, process id and a random id, as in job_runs.holder';
COMMENT ON COLUMN daemons.host IS 'clear: the name of its host or pod';
COMMENT ON COLUMN daemons.version IS 'clear: its version';
COMMENT ON COLUMN daemons.kek_ids IS 'clear: the ids of the key-encryption keys that it was given, in their order';
COMMENT ON COLUMN daemons.wraps_under IS 'clear: which of them wraps the keys of new people';
COMMENT ON COLUMN daemons.started_at IS 'clear: when it was first seen';
COMMENT ON COLUMN daemons.seen_at IS 'clear: when it last said that it lives, by PostgreSQL''s clock';

GRANT SELECT, INSERT, UPDATE, DELETE ON daemons TO sidekeep_app;
