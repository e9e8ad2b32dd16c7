-- Who was erased may be refused for a while, so that a retry or the next login does not bring the person back; and the log
-- for whoever reads it with psql.

CREATE TABLE subject_refusals (
    digest bytea PRIMARY KEY,
    refused_until timestamptz NOT NULL
);
-- What is over.
CREATE INDEX subject_refusals_by_time ON subject_refusals (refused_until);
COMMENT ON TABLE subject_refusals IS 'User ids that are not taken again for a while after an erasure (keyring.refuse_again). Nothing leads from here to what was erased.';
COMMENT ON COLUMN subject_refusals.digest IS 'identity: a MAC over the user id, under a key that the owner of the tables has not';
COMMENT ON COLUMN subject_refusals.refused_until IS 'clear: until when';
GRANT SELECT, INSERT, DELETE, UPDATE (refused_until) ON subject_refusals TO sidekeep_app;

-- Creates persons, and answers the user ids that are refused. What an erasure leaves is seen also where the insert waited for
-- it: each statement of a function in PL/pgSQL has a snapshot of its own.
CREATE FUNCTION create_subjects(subject_ids bigint[], user_ids text[], wrapped_keys bytea[], digests bytea[], kek text)
RETURNS SETOF text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO sidekeep.subjects (subject_id, user_id, wrapped_key, kek_id)
        SELECT p.subject_id, p.user_id, p.wrapped_key, kek
        FROM unnest(subject_ids, user_ids, wrapped_keys, digests) AS p (subject_id, user_id, wrapped_key, digest)
        WHERE NOT EXISTS (SELECT FROM sidekeep.subject_refusals r WHERE r.digest = p.digest AND r.refused_until > clock_timestamp())
        ON CONFLICT DO NOTHING;
    -- Only those of this call are taken back: nobody has seen them yet.
    DELETE FROM sidekeep.subjects s
        USING unnest(subject_ids, user_ids, wrapped_keys, digests) AS p (subject_id, user_id, wrapped_key, digest)
            JOIN sidekeep.subject_refusals r USING (digest)
        WHERE s.subject_id = p.subject_id AND s.wrapped_key = p.wrapped_key AND r.refused_until > clock_timestamp();
    RETURN QUERY SELECT p.user_id FROM unnest(user_ids, digests) AS p (user_id, digest)
        JOIN sidekeep.subject_refusals r USING (digest) WHERE r.refused_until > clock_timestamp();
END
$$;
REVOKE ALL ON FUNCTION create_subjects(bigint[], text[], bytea[], bytea[], text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION create_subjects(bigint[], text[], bytea[], bytea[], text) TO sidekeep_app;

CREATE VIEW audit_log_entries AS
    SELECT l.stream, l.position, l.recorded_at, l.id,
        CASE WHEN l.actor_id IS NOT NULL THEN coalesce(a.user_id, 'anonymized') END AS user_id,
        CASE WHEN l.subject_id IS NOT NULL THEN coalesce(s.user_id, 'anonymized') END AS subject_user_id,
        l.action, l.resource_type, l.resource_id, l.outcome, l.occurred_at, l.labels
    FROM audit_logs l LEFT JOIN subjects a ON a.subject_id = l.actor_id LEFT JOIN subjects s ON s.subject_id = l.subject_id;
COMMENT ON VIEW audit_log_entries IS 'The log with its persons under their user ids, and those who are erased as anonymized. For the owner of the tables: daemons read audit_logs.';
COMMENT ON COLUMN audit_log_entries.stream IS 'clear: which stream';
COMMENT ON COLUMN audit_log_entries.position IS 'clear: the place in the stream';
COMMENT ON COLUMN audit_log_entries.recorded_at IS 'clear: when it was appended';
COMMENT ON COLUMN audit_log_entries.id IS 'clear: the entry''s id';
COMMENT ON COLUMN audit_log_entries.user_id IS 'identity: who acted';
COMMENT ON COLUMN audit_log_entries.subject_user_id IS 'identity: whose data it was';
COMMENT ON COLUMN audit_log_entries.action IS 'clear: what was done';
COMMENT ON COLUMN audit_log_entries.resource_type IS 'clear: what kind of thing it was done to';
COMMENT ON COLUMN audit_log_entries.resource_id IS 'clear: which one; @actor and @subject stand for the persons';
COMMENT ON COLUMN audit_log_entries.outcome IS 'clear: success, failure or denied';
COMMENT ON COLUMN audit_log_entries.occurred_at IS 'clear: when it was done, as the caller says';
COMMENT ON COLUMN audit_log_entries.labels IS 'clear: words to filter by';
