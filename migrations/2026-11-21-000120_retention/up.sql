-- Retention: how long what is over is kept, what is due, and the way by which whole months of the log go.

CREATE TABLE retention_policies (
    name text COLLATE "C" PRIMARY KEY CHECK (name IN ('conversations', 'consents', 'audit_logs', 'requests', 'job_runs')),
    keep_seconds bigint NOT NULL CHECK (keep_seconds > 0),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE retention_policies IS 'How long what is over is kept: [retention] of the configuration, as the daemon that runs the jobs has it.';
COMMENT ON COLUMN retention_policies.name IS 'clear: the key in [retention]';
COMMENT ON COLUMN retention_policies.keep_seconds IS 'clear: how long, in seconds';
COMMENT ON COLUMN retention_policies.updated_at IS 'clear: since when';
CREATE TRIGGER touch BEFORE UPDATE ON retention_policies FOR EACH ROW EXECUTE FUNCTION touch_updated_at();
GRANT SELECT, INSERT, UPDATE ON retention_policies TO sidekeep_app;

-- Only the owner of the tables writes it: whoever has the daemon's role cannot have the log forget sooner.
CREATE TABLE retention_floor (
    keep_seconds bigint NOT NULL CHECK (keep_seconds > 0),
    confirmed_at timestamptz NOT NULL,
    clock_seen timestamptz NOT NULL
);
CREATE UNIQUE INDEX retention_floor_is_one_row ON retention_floor ((true));
COMMENT ON TABLE retention_floor IS 'What the owner of the tables has confirmed (sidekeep migrate --confirm-retention). Without a row no month of the log goes before seven years.';
COMMENT ON COLUMN retention_floor.keep_seconds IS 'clear: how long a month of the log is kept at the least, in seconds';
COMMENT ON COLUMN retention_floor.confirmed_at IS 'clear: when it was confirmed, by PostgreSQL''s clock, which was confirmed to be right';
COMMENT ON COLUMN retention_floor.clock_seen IS 'clear: the latest time that was found then in what daemons had written';
GRANT SELECT ON retention_floor TO sidekeep_app;

CREATE TABLE audit_dropped (
    stream int NOT NULL CHECK (stream >= 0),
    month date NOT NULL CHECK (month = date_trunc('month', month)::date),
    size bigint NOT NULL CHECK (size > 0),
    edge bytea NOT NULL,
    at timestamptz NOT NULL,
    mac bytea NOT NULL,
    PRIMARY KEY (stream, month)
);
COMMENT ON TABLE audit_dropped IS 'The months of the log that retention has dropped, by stream: what a proof needs of them, sealed by a daemon.';
COMMENT ON COLUMN audit_dropped.stream IS 'clear: of which stream';
COMMENT ON COLUMN audit_dropped.month IS 'clear: the first day of the month of recorded_at, in UTC';
COMMENT ON COLUMN audit_dropped.size IS 'clear: how many entries the stream had at the end of that month: all of them are gone';
COMMENT ON COLUMN audit_dropped.edge IS 'clear: of the tree over those, the hashes at every fourth level that are in no complete subtree of audit_nodes, the lowest first';
COMMENT ON COLUMN audit_dropped.at IS 'clear: when it was dropped';
COMMENT ON COLUMN audit_dropped.mac IS 'clear: a MAC over the row, under a key that the owner of the tables has not';
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_dropped
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
GRANT SELECT, INSERT ON audit_dropped TO sidekeep_app;

-- What is due. Held persons keep what they have (GDPR Art. 17(3)(e)), and so do restricted ones (Art. 18: storage goes on).
CREATE VIEW expired_conversations AS
    SELECT c.id, c.subject_id, c.message_count, c.active_at + make_interval(secs => p.keep_seconds) AS expired_at
    FROM conversations c JOIN retention_policies p ON p.name = 'conversations'
    WHERE c.active_at <= now() - make_interval(secs => p.keep_seconds)
        AND EXISTS (SELECT FROM subjects s WHERE s.subject_id = c.subject_id AND s.restricted_at IS NULL)
        AND NOT EXISTS (SELECT FROM legal_holds h WHERE h.subject_id = c.subject_id AND h.released_at IS NULL);
COMMENT ON VIEW expired_conversations IS 'The conversations that retention will remove: so long after the last message, or after the creation where there is none.';
COMMENT ON COLUMN expired_conversations.id IS 'clear: the conversation''s id';
COMMENT ON COLUMN expired_conversations.subject_id IS 'clear: whose';
COMMENT ON COLUMN expired_conversations.message_count IS 'clear: how many messages it has';
COMMENT ON COLUMN expired_conversations.expired_at IS 'clear: since when it is due';

-- A consent has ended when the next record of its type was given, or when it expired. What ends a record never goes before it:
-- the record that stands, or stood last, is not to come back to life.
CREATE VIEW expired_consents AS
    SELECT c.id, c.subject_id, c.consent_type, c.given_at, c.number, e.ended_at,
        e.ended_at + make_interval(secs => p.keep_seconds) AS expired_at
    FROM consent_records c JOIN retention_policies p ON p.name = 'consents'
    CROSS JOIN LATERAL (SELECT least(
        (SELECT n.given_at FROM consent_records n
            WHERE n.subject_id = c.subject_id AND n.consent_type = c.consent_type AND (n.given_at, n.number) > (c.given_at, c.number)
            ORDER BY n.given_at, n.number LIMIT 1),
        CASE WHEN c.expires_at IS NOT NULL THEN greatest(c.expires_at, c.given_at) END) AS ended_at) e
    WHERE c.given_at <= now() - make_interval(secs => p.keep_seconds)
        AND e.ended_at <= now() - make_interval(secs => p.keep_seconds)
        AND EXISTS (SELECT FROM subjects s WHERE s.subject_id = c.subject_id AND s.restricted_at IS NULL)
        AND NOT EXISTS (SELECT FROM legal_holds h WHERE h.subject_id = c.subject_id AND h.released_at IS NULL);
COMMENT ON VIEW expired_consents IS 'The consents that retention will remove: so long after another record of the type replaced them, or after they expired.';
COMMENT ON COLUMN expired_consents.id IS 'clear: the record''s id';
COMMENT ON COLUMN expired_consents.subject_id IS 'clear: whose';
COMMENT ON COLUMN expired_consents.consent_type IS 'clear: what was consented to';
COMMENT ON COLUMN expired_consents.given_at IS 'clear: when the person decided';
COMMENT ON COLUMN expired_consents.number IS 'clear: the order of recording, which decides between equal given_at';
COMMENT ON COLUMN expired_consents.ended_at IS 'clear: when it was replaced, or expired';
COMMENT ON COLUMN expired_consents.expired_at IS 'clear: since when it is due';
GRANT SELECT ON expired_conversations, expired_consents TO sidekeep_app;
GRANT DELETE ON requests, consent_evidence TO sidekeep_app;

-- How long a month of the log is kept at the least, whatever the configuration says.
CREATE FUNCTION retention_floor_seconds() RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce((SELECT f.keep_seconds FROM sidekeep.retention_floor f), 7 * 31557600)
$$;

-- The months that there are.
CREATE FUNCTION audit_months() RETURNS TABLE (month date)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT to_date(substr(c.relname, 12), 'YYYY_MM') FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'sidekeep.audit_logs'::regclass AND c.relname ~ '^audit_logs_[0-9]{4}_[0-9]{2}$' ORDER BY 1
$$;

-- Which streams have entries in a month, and which. Goes from stream to stream along the index.
CREATE FUNCTION audit_month_streams(first date) RETURNS TABLE (stream int, first_position bigint, last_position bigint)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    since timestamptz := first::timestamp AT TIME ZONE 'UTC';
    upto timestamptz := (first + interval '1 month')::timestamp AT TIME ZONE 'UTC';
    known int := -1;
BEGIN
    LOOP
        SELECT l.stream, l.position INTO stream, first_position FROM sidekeep.audit_logs l
            WHERE l.recorded_at >= since AND l.recorded_at < upto AND l.stream > known ORDER BY l.stream, l.position LIMIT 1;
        EXIT WHEN NOT FOUND;
        known := stream;
        SELECT l.position INTO last_position FROM sidekeep.audit_logs l
            WHERE l.recorded_at >= since AND l.recorded_at < upto AND l.stream = known ORDER BY l.position DESC LIMIT 1;
        RETURN NEXT;
    END LOOP;
END
$$;

-- Whether every stream with entries in a month has them in the archive, read back and verified.
CREATE FUNCTION audit_month_archived(first date) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN NOT EXISTS (
        SELECT FROM sidekeep.audit_month_streams(first) s WHERE NOT EXISTS (
            SELECT FROM sidekeep.audit_archives a WHERE a.stream = s.stream AND a.month = first
                AND a.verified_at IS NOT NULL AND a.removed_at IS NULL
                AND a.first_position = s.first_position AND a.last_position = s.last_position));
END
$$;

-- The months past their period and past the floor, the oldest first, as far as they are archived: they go in order, so that
-- what a stream has lost is always its beginning.
CREATE FUNCTION audit_months_due() RETURNS TABLE (month date, expired_at timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    keep bigint := (SELECT greatest(p.keep_seconds, sidekeep.retention_floor_seconds())
        FROM sidekeep.retention_policies p WHERE p.name = 'audit_logs');
BEGIN
    FOR month IN SELECT m.month FROM sidekeep.audit_months() m ORDER BY m.month LOOP
        expired_at := (month + interval '1 month')::timestamp AT TIME ZONE 'UTC' + make_interval(secs => keep);
        EXIT WHEN keep IS NULL OR expired_at > now() OR NOT sidekeep.audit_month_archived(month);
        RETURN NEXT;
    END LOOP;
END
$$;
CREATE VIEW expired_audit_months AS SELECT d.month, d.expired_at FROM audit_months_due() d;
COMMENT ON VIEW expired_audit_months IS 'The months of the log that retention will drop: past their period and the confirmed floor, and in the archive. A hold keeps a person''s archive, not everybody''s month.';
COMMENT ON COLUMN expired_audit_months.month IS 'clear: the first day of the month, in UTC';
COMMENT ON COLUMN expired_audit_months.expired_at IS 'clear: since when it is due';
GRANT SELECT ON expired_audit_months TO sidekeep_app;

-- Drops a month: the oldest one, past the floor, archived, and recorded in audit_dropped by the same transaction. It waits for
-- no lock for long, since everybody who appends would wait behind it; whoever calls it tries again.
CREATE FUNCTION drop_audit_month(first date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
DECLARE
    name text := 'audit_logs_' || to_char(first, 'YYYY_MM');
BEGIN
    IF first IS NULL OR first <> date_trunc('month', first)::date THEN
        RAISE EXCEPTION 'not the first day of a month' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NOT EXISTS (SELECT FROM sidekeep.audit_months() m WHERE m.month = first) THEN
        RETURN false;
    END IF;
    IF EXISTS (SELECT FROM sidekeep.audit_months() m WHERE m.month < first) THEN
        RAISE EXCEPTION 'an older month is there: months are dropped in order' USING ERRCODE = 'restrict_violation';
    END IF;
    IF (first + interval '1 month')::timestamp AT TIME ZONE 'UTC' + make_interval(secs => sidekeep.retention_floor_seconds()) > now() THEN
        RAISE EXCEPTION 'the month is not past the floor of retention, which sidekeep migrate --confirm-retention sets'
            USING ERRCODE = 'restrict_violation';
    END IF;
    IF NOT sidekeep.audit_month_archived(first) THEN
        RAISE EXCEPTION 'the month is not in the archive' USING ERRCODE = 'restrict_violation';
    END IF;
    IF EXISTS (SELECT FROM sidekeep.audit_month_streams(first) s WHERE NOT EXISTS (
        SELECT FROM sidekeep.audit_dropped d WHERE d.stream = s.stream AND d.month = first AND d.size = s.last_position + 1))
    THEN
        RAISE EXCEPTION 'the month is not recorded in audit_dropped' USING ERRCODE = 'restrict_violation';
    END IF;
    EXECUTE format('ALTER TABLE sidekeep.audit_logs DETACH PARTITION sidekeep.%I', name);
    EXECUTE format('DROP TABLE sidekeep.%I', name);
    RETURN true;
END
$$;
REVOKE ALL ON FUNCTION drop_audit_month(date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION drop_audit_month(date) TO sidekeep_app;
