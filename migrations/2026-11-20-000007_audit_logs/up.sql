-- The audit log: entries by month, append-only for everybody.

CREATE TABLE audit_logs (
    stream int NOT NULL CHECK (stream >= 0),
    position bigint NOT NULL CHECK (position BETWEEN 0 AND 9007199254740991),
    recorded_at timestamptz NOT NULL,
    format smallint NOT NULL,
    id text COLLATE "C" NOT NULL CHECK (octet_length(id) BETWEEN 1 AND 128),
    actor_id bigint,
    subject_id bigint,
    action text COLLATE "C" NOT NULL,
    resource_type text COLLATE "C",
    resource_id text COLLATE "C",
    outcome text COLLATE "C",
    occurred_at timestamptz,
    labels jsonb,
    client_sealed bytea,
    metadata_sealed bytea,
    leaf_hash bytea NOT NULL,
    PRIMARY KEY (stream, position, recorded_at)
) PARTITION BY RANGE (recorded_at);
-- The log in the order of time.
CREATE INDEX audit_logs_by_time ON audit_logs (recorded_at, stream, position);
-- What one person did, and what was done with one person's data.
CREATE INDEX audit_logs_by_actor ON audit_logs (actor_id, recorded_at, stream, position) WHERE actor_id IS NOT NULL;
CREATE INDEX audit_logs_by_subject ON audit_logs (subject_id, recorded_at, stream, position) WHERE subject_id IS NOT NULL;
-- What was done to one thing.
CREATE INDEX audit_logs_by_resource ON audit_logs (resource_id, recorded_at, stream, position) WHERE resource_id IS NOT NULL;
COMMENT ON TABLE audit_logs IS 'The audit log, append-only; it outlives the persons in it, whose numbers then lead nowhere.';
COMMENT ON COLUMN audit_logs.stream IS 'clear: which stream; one daemon at a time appends to it';
COMMENT ON COLUMN audit_logs.position IS 'clear: the place in the stream, from 0, without gaps';
COMMENT ON COLUMN audit_logs.recorded_at IS 'clear: when it was appended, by PostgreSQL''s clock; never decreases within a stream';
COMMENT ON COLUMN audit_logs.format IS 'clear: the form of the canonical bytes';
COMMENT ON COLUMN audit_logs.id IS 'clear: the entry''s id';
COMMENT ON COLUMN audit_logs.actor_id IS 'clear: who acted, as a subject id';
COMMENT ON COLUMN audit_logs.subject_id IS 'clear: whose data it was, as a subject id';
COMMENT ON COLUMN audit_logs.action IS 'clear: what was done';
COMMENT ON COLUMN audit_logs.resource_type IS 'clear: what kind of thing it was done to';
COMMENT ON COLUMN audit_logs.resource_id IS 'clear: which one; @actor and @subject stand for the persons';
COMMENT ON COLUMN audit_logs.outcome IS 'clear: success, failure or denied';
COMMENT ON COLUMN audit_logs.occurred_at IS 'clear: when it was done, as the caller says';
COMMENT ON COLUMN audit_logs.labels IS 'clear: words to filter by';
COMMENT ON COLUMN audit_logs.client_sealed IS 'sealed: IP address and user agent';
COMMENT ON COLUMN audit_logs.metadata_sealed IS 'sealed: free-form JSON from the application';
COMMENT ON COLUMN audit_logs.leaf_hash IS 'clear: SHA-256 over the canonical bytes (RFC 6962)';

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_logs
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Makes the month that a day is in, with what guards it. A TRUNCATE or DELETE straight on a month passes its parent's triggers.
CREATE FUNCTION create_audit_month(day date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    first date := date_trunc('month', day)::date;
    name text := 'audit_logs_' || to_char(first, 'YYYY_MM');
BEGIN
    IF to_regclass(format('sidekeep.%I', name)) IS NOT NULL THEN
        RETURN false;
    END IF;
    -- Two daemons at once: the second waits, and finds it made. It reads the catalogue itself: after an advisory lock
    -- to_regclass still answers from what this session remembers.
    PERFORM pg_advisory_xact_lock(hashtext('sidekeep.create_audit_month'));
    IF EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = 'sidekeep'::regnamespace AND c.relname = name) THEN
        RETURN false;
    END IF;
    EXECUTE format(
        'CREATE TABLE sidekeep.%I PARTITION OF sidekeep.audit_logs FOR VALUES FROM (%L) TO (%L)',
        name, first::timestamp AT TIME ZONE 'UTC', (first + interval '1 month')::timestamp AT TIME ZONE 'UTC');
    EXECUTE format('CREATE UNIQUE INDEX %I ON sidekeep.%I (id)', name || '_id', name);
    EXECUTE format(
        'CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON sidekeep.%I FOR EACH STATEMENT EXECUTE FUNCTION sidekeep.refuse_change()',
        name);
    RETURN true;
END
$$;
REVOKE ALL ON FUNCTION create_audit_month(date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION create_audit_month(date) TO sidekeep_app;
SELECT create_audit_month((now() AT TIME ZONE 'UTC' + make_interval(months => n))::date) FROM generate_series(-1, 2) AS n;

CREATE TABLE audit_streams (
    stream int PRIMARY KEY CHECK (stream >= 0),
    epoch bigint NOT NULL,
    size bigint NOT NULL CHECK (size >= 0),
    root bytea NOT NULL,
    head_mac bytea NOT NULL,
    frontier bytea NOT NULL,
    last_recorded_at timestamptz,
    leased_until timestamptz NOT NULL,
    closed_at timestamptz
);
COMMENT ON TABLE audit_streams IS 'The streams of the log: who holds the lease of one is the only one to append to it.';
COMMENT ON COLUMN audit_streams.stream IS 'clear: its number';
COMMENT ON COLUMN audit_streams.epoch IS 'clear: the fencing token: it is raised with each lease';
COMMENT ON COLUMN audit_streams.size IS 'clear: how many entries it has';
COMMENT ON COLUMN audit_streams.root IS 'clear: the root of its Merkle tree';
COMMENT ON COLUMN audit_streams.head_mac IS 'clear: a MAC over deployment, stream, epoch, size and root, under a key that the owner of the tables has not';
COMMENT ON COLUMN audit_streams.frontier IS 'clear: the peaks of its Merkle tree, the largest first';
COMMENT ON COLUMN audit_streams.last_recorded_at IS 'clear: the time of its last entry';
COMMENT ON COLUMN audit_streams.leased_until IS 'clear: until when it has a writer';
COMMENT ON COLUMN audit_streams.closed_at IS 'clear: since when nothing is appended to it any more';

CREATE TABLE audit_nodes (
    stream int NOT NULL,
    level int NOT NULL CHECK (level > 0 AND level % 8 = 0),
    index bigint NOT NULL CHECK (index >= 0),
    hash bytea NOT NULL,
    PRIMARY KEY (stream, level, index)
);
COMMENT ON TABLE audit_nodes IS 'Hashes of complete subtrees of 256, 65,536, … entries, so that a proof reads few rows. Stream -1 is the heads log.';
COMMENT ON COLUMN audit_nodes.stream IS 'clear: of which stream';
COMMENT ON COLUMN audit_nodes.level IS 'clear: 8 for 256 leaves, 16 for 65,536, and so on';
COMMENT ON COLUMN audit_nodes.index IS 'clear: which of its level, from 0';
COMMENT ON COLUMN audit_nodes.hash IS 'clear: the root of the subtree (RFC 6962)';

CREATE TABLE audit_staged (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    staged_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    id text COLLATE "C" NOT NULL,
    actor_id bigint,
    subject_id bigint,
    action text COLLATE "C" NOT NULL,
    resource_type text COLLATE "C",
    resource_id text COLLATE "C",
    outcome text COLLATE "C",
    labels jsonb,
    client_sealed bytea,
    mac bytea NOT NULL
);
COMMENT ON TABLE audit_staged IS 'Entries that were written in one transaction with the change they tell of, until a stream takes them in.';
COMMENT ON COLUMN audit_staged.number IS 'clear: the order of staging';
COMMENT ON COLUMN audit_staged.staged_at IS 'clear: when it was staged';
COMMENT ON COLUMN audit_staged.id IS 'clear: the entry''s id';
COMMENT ON COLUMN audit_staged.actor_id IS 'clear: who acted, as a subject id';
COMMENT ON COLUMN audit_staged.subject_id IS 'clear: whose data it was, as a subject id';
COMMENT ON COLUMN audit_staged.action IS 'clear: the method';
COMMENT ON COLUMN audit_staged.resource_type IS 'clear: what kind of record';
COMMENT ON COLUMN audit_staged.resource_id IS 'clear: which record';
COMMENT ON COLUMN audit_staged.outcome IS 'clear: success';
COMMENT ON COLUMN audit_staged.labels IS 'clear: what sidekeep says of the call';
COMMENT ON COLUMN audit_staged.client_sealed IS 'sealed: IP address and user agent';
COMMENT ON COLUMN audit_staged.mac IS 'clear: a MAC over the row, under a key that the owner of the tables has not';

-- A staged entry leaves only into the log, in the same statement.
CREATE FUNCTION refuse_lost_staged() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (
        SELECT FROM gone WHERE NOT EXISTS (
            SELECT FROM sidekeep.audit_logs l
            WHERE l.id = gone.id AND l.recorded_at > now() - interval '1 day')
    ) THEN
        RAISE EXCEPTION 'a staged entry leaves only into audit_logs' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER into_the_log AFTER DELETE ON audit_staged REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_lost_staged();
CREATE TRIGGER append_only BEFORE UPDATE OR TRUNCATE ON audit_staged
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE audit_heads (
    index bigint PRIMARY KEY CHECK (index >= 0),
    stream int NOT NULL,
    size bigint NOT NULL,
    root bytea NOT NULL,
    at timestamptz NOT NULL,
    leaf_hash bytea NOT NULL
);
-- The latest head of a stream, and the first that has an entry.
CREATE UNIQUE INDEX audit_heads_by_stream ON audit_heads (stream, size);
COMMENT ON TABLE audit_heads IS 'The heads log: heads of streams, the leaves of a Merkle tree whose root is signed.';
COMMENT ON COLUMN audit_heads.index IS 'clear: the place in the heads log, from 0';
COMMENT ON COLUMN audit_heads.stream IS 'clear: of which stream';
COMMENT ON COLUMN audit_heads.size IS 'clear: how many entries the stream had';
COMMENT ON COLUMN audit_heads.root IS 'clear: the root over them';
COMMENT ON COLUMN audit_heads.at IS 'clear: when the head was taken';
COMMENT ON COLUMN audit_heads.leaf_hash IS 'clear: SHA-256 over the head''s canonical bytes (RFC 6962)';

CREATE TABLE audit_checkpoints (
    size bigint PRIMARY KEY CHECK (size > 0),
    root bytea NOT NULL,
    note text NOT NULL,
    at timestamptz NOT NULL
);
COMMENT ON TABLE audit_checkpoints IS 'Signed notes over the heads log (C2SP tlog-checkpoint).';
COMMENT ON COLUMN audit_checkpoints.size IS 'clear: how many heads it covers';
COMMENT ON COLUMN audit_checkpoints.root IS 'clear: the root over them';
COMMENT ON COLUMN audit_checkpoints.note IS 'clear: the signed note';
COMMENT ON COLUMN audit_checkpoints.at IS 'clear: when it was signed';
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['audit_nodes', 'audit_heads', 'audit_checkpoints'] LOOP
        EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', name);
    END LOOP;
END
$$;

GRANT SELECT, INSERT ON audit_logs, audit_nodes, audit_heads, audit_checkpoints TO sidekeep_app;
GRANT SELECT, INSERT, UPDATE ON audit_streams TO sidekeep_app;
GRANT SELECT, INSERT, DELETE ON audit_staged TO sidekeep_app;
