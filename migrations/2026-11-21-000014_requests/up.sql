-- The register of what people have asked for, with the time that there is to answer (GDPR Art. 12(3)).

-- A request outlives its person, so its number is no foreign key: after an erasure it leads nowhere.
CREATE TABLE requests (
    id text COLLATE "C" PRIMARY KEY CHECK (octet_length(id) BETWEEN 1 AND 128),
    subject_id bigint NOT NULL,
    kind text COLLATE "C" NOT NULL
        CHECK (kind IN ('access', 'portability', 'erasure', 'rectification', 'restriction', 'objection')),
    channel text COLLATE "C",
    opened_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    received_at timestamptz NOT NULL,
    due_at timestamptz NOT NULL,
    extended_at timestamptz,
    extension_reason_sealed bytea,
    closed_at timestamptz,
    outcome text COLLATE "C",
    outcome_reason_sealed bytea,
    results jsonb NOT NULL DEFAULT '[]',
    CHECK ((extended_at IS NULL) = (extension_reason_sealed IS NULL)),
    CHECK ((closed_at IS NULL) = (outcome IS NULL))
);
-- The register, the newest first.
CREATE INDEX requests_by_time ON requests (received_at DESC, id DESC);
-- One person's.
CREATE INDEX requests_by_subject ON requests (subject_id);
-- What is to be done, the most urgent first.
CREATE INDEX requests_due ON requests (due_at) WHERE closed_at IS NULL;
-- What is kept long enough.
CREATE INDEX requests_closed ON requests (closed_at) WHERE closed_at IS NOT NULL;
COMMENT ON TABLE requests IS 'What people have asked for, until when it is due, and what was done. After an erasure it says so without saying for whom.';
COMMENT ON COLUMN requests.id IS 'clear: the request''s id';
COMMENT ON COLUMN requests.subject_id IS 'clear: whose; outlives the person';
COMMENT ON COLUMN requests.kind IS 'clear: which right';
COMMENT ON COLUMN requests.channel IS 'clear: how it came, as a code';
COMMENT ON COLUMN requests.opened_at IS 'clear: when it was entered here';
COMMENT ON COLUMN requests.received_at IS 'clear: when it was received';
COMMENT ON COLUMN requests.due_at IS 'clear: until when it must be answered';
COMMENT ON COLUMN requests.extended_at IS 'clear: when the time was extended';
COMMENT ON COLUMN requests.extension_reason_sealed IS 'sealed: why it was extended';
COMMENT ON COLUMN requests.closed_at IS 'clear: when it was closed';
COMMENT ON COLUMN requests.outcome IS 'clear: how it ended, as a code';
COMMENT ON COLUMN requests.outcome_reason_sealed IS 'sealed: why it ended so';
COMMENT ON COLUMN requests.results IS 'clear: what was done for it: method, time and the id of what came of it';

GRANT SELECT, INSERT, UPDATE (due_at, extended_at, extension_reason_sealed, closed_at, outcome, outcome_reason_sealed, results)
    ON requests TO sidekeep_app;
