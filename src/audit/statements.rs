//! What a stream says to PostgreSQL. Only `stream` sends these, and nothing else changes the tables of entries.

/// Takes an expired stream, the lowest first, that nobody else is taking. A lease that ends later than one can is of a
/// clock that was ahead and was set right; until it is that late again, such a clock's entries have none after them.
pub(super) const TAKE: &str = "UPDATE sidekeep.audit_streams SET epoch = epoch + 1, leased_until = now() + $1::text::interval \
    WHERE stream = (SELECT stream FROM sidekeep.audit_streams WHERE closed_at IS NULL AND stream <> ALL ($2::int[]) \
    AND leased_until NOT BETWEEN now() AND now() + interval '1 minute' \
    AND coalesce(last_recorded_at <= now() + interval '1 minute', true) \
    ORDER BY stream LIMIT 1 FOR UPDATE SKIP LOCKED) \
    RETURNING stream, epoch - 1 AS sealed_epoch, epoch, size, root, head_mac, frontier, edge, last_recorded_at, clock_timestamp() AS now";
/// Makes a stream where there is none to take. Two daemons at once: one of them takes the next number.
pub(super) const MAKE: &str = "INSERT INTO sidekeep.audit_streams (stream, epoch, size, root, head_mac, frontier, leased_until) \
    SELECT $1, 1, 0, $2, $3, '', now() + $4::text::interval ON CONFLICT DO NOTHING RETURNING clock_timestamp() AS now";
pub(super) const NEXT: &str = "SELECT coalesce(max(stream) + 1, 0) AS stream FROM sidekeep.audit_streams";
pub(super) const SEAL: &str =
    "UPDATE sidekeep.audit_streams SET head_mac = $3 WHERE stream = $1 AND epoch = $2";
pub(super) const RENEW: &str = "UPDATE sidekeep.audit_streams SET leased_until = now() + $3::text::interval \
    WHERE stream = $1 AND epoch = $2 AND closed_at IS NULL RETURNING clock_timestamp() AS now";
pub(super) const RELEASE: &str = "UPDATE sidekeep.audit_streams SET leased_until = now() - interval '1 second' WHERE stream = $1 AND epoch = $2";
/// Changes nothing, and is behind everything in the WAL that was seen before: where its commit is replicated, that is.
pub(super) const BARRIER: &str = "UPDATE sidekeep.audit_streams SET epoch = epoch WHERE stream = $1";
/// Ends a fence that is waited for no longer: by itself, a server that waits for a lock does not notice.
pub(super) const PATIENCE: &str = "SET LOCAL statement_timeout = '9s'";
/// Waits for whatever the old connection may still be doing, and lets nothing of it commit afterwards.
pub(super) const FENCE: &str = "UPDATE sidekeep.audit_streams SET epoch = epoch + 1, leased_until = now() + $3::text::interval \
    WHERE stream = $1 AND epoch = $2 RETURNING epoch, size, root, last_recorded_at, clock_timestamp() AS now";

/// One batch, in one statement and one round trip. The head moves only from where this daemon believes it to be, with the
/// time within a minute of PostgreSQL's, and with every person still there under the same key; everything else hangs on
/// the head. Staged entries that were not there to be taken make it fail as a whole.
pub(super) const APPEND: &str = "WITH head AS ( \
    UPDATE sidekeep.audit_streams SET size = $4, root = $5, head_mac = $6, frontier = $7, edge = $29, last_recorded_at = $8, \
        leased_until = now() + interval '15 seconds' \
    WHERE stream = $1 AND epoch = $2 AND size = $3 AND leased_until > now() AND closed_at IS NULL \
        AND $8::timestamptz BETWEEN now() - interval '1 minute' AND now() + interval '1 minute' \
        AND NOT EXISTS (SELECT FROM unnest($9::bigint[], $10::bytea[]) AS p (id, key) WHERE NOT EXISTS ( \
            SELECT FROM sidekeep.subjects s WHERE s.subject_id = p.id AND s.wrapped_key = p.key)) \
    RETURNING stream), \
    entries AS (INSERT INTO sidekeep.audit_logs (stream, position, recorded_at, format, id, actor_id, subject_id, action, \
        resource_type, resource_id, outcome, occurred_at, labels, client_sealed, metadata_sealed, leaf_hash) \
        SELECT head.stream, e.position, $8, 1, e.id, e.actor_id, e.subject_id, e.action, e.resource_type, e.resource_id, \
            e.outcome, e.occurred_at, e.labels, e.client_sealed, e.metadata_sealed, e.leaf_hash \
        FROM head, unnest($11::bigint[], $12::text[], $13::bigint[], $14::bigint[], $15::text[], $16::text[], $17::text[], \
            $18::text[], $19::timestamptz[], $20::jsonb[], $21::bytea[], $22::bytea[], $23::bytea[]) \
            AS e (position, id, actor_id, subject_id, action, resource_type, resource_id, outcome, occurred_at, labels, \
            client_sealed, metadata_sealed, leaf_hash)), \
    nodes AS (INSERT INTO sidekeep.audit_nodes (stream, level, index, hash, children) \
        SELECT head.stream, n.level, n.index, n.hash, n.children FROM head, \
            unnest($24::int[], $25::bigint[], $26::bytea[], $28::bytea[]) AS n (level, index, hash, children)), \
    gone AS (DELETE FROM sidekeep.audit_staged WHERE number = ANY ($27::bigint[]) AND EXISTS (SELECT FROM head) RETURNING 1) \
    SELECT (SELECT count(*) FROM head) AS heads, \
        CASE WHEN (SELECT count(*) FROM head) = 1 AND (SELECT count(*) FROM gone) <> cardinality($27::bigint[]) \
        THEN 1 / (SELECT count(*) - 1 FROM head) END AS unmatched";
