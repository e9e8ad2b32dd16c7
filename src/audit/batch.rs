//! The statement that a batch is. What the parameters are, and what becomes of them, is the stream's.

use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

use super::refused::away;
use crate::error;
use crate::store::Dedicated;

/// One batch, in one statement and one round trip. The head moves only from where this daemon believes it to be, with the
/// time within a minute of PostgreSQL's, and with every person still there under the same key; everything else hangs on
/// the head.
const HEAD_AND_ENTRIES: &str = "WITH head AS ( \
    UPDATE sidekeep.audit_streams SET size = $4, root = $5, head_mac = $6, frontier = $7, edge = $24, last_recorded_at = $8, \
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
            client_sealed, metadata_sealed, leaf_hash))";
/// What only some batches have: tiles that they complete, and staged entries. One of these that was not there to be taken
/// makes the statement fail as a whole.
const TILES_AND_STAGED: &str = ", \
    nodes AS (INSERT INTO sidekeep.audit_nodes (stream, level, index, hash, children) \
        SELECT head.stream, n.level, n.index, n.hash, n.children FROM head, \
            unnest($25::int[], $26::bigint[], $27::bytea[], $28::bytea[]) AS n (level, index, hash, children)), \
    gone AS (DELETE FROM sidekeep.audit_staged WHERE number = ANY ($29::bigint[]) AND EXISTS (SELECT FROM head) RETURNING 1) \
    SELECT (SELECT count(*) FROM head) AS heads, \
        CASE WHEN (SELECT count(*) FROM head) = 1 AND (SELECT count(*) FROM gone) <> cardinality($29::bigint[]) \
        THEN 1 / (SELECT count(*) - 1 FROM head) END AS unmatched";
const NOTHING_ELSE: &str = " SELECT count(*) AS heads FROM head";

/// The statement of a batch, prepared: it is the longest of them all.
#[derive(Clone, Debug)]
pub(super) struct Append {
    /// For entries alone: what a statement could have done costs it time, though it has nothing of it to do.
    plain: Statement,
    /// With tiles and staged entries.
    whole: Statement,
}

impl Append {
    /// For a connection.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::error::Error::Unavailable).
    pub(super) async fn prepare(connection: &Dedicated) -> error::Result<Self> {
        let prepare = |rest| {
            let statement = [HEAD_AND_ENTRIES, rest].concat();
            async move { connection.client.prepare(&statement).await.map_err(away) }
        };
        Ok(Self { plain: prepare(NOTHING_ELSE).await?, whole: prepare(TILES_AND_STAGED).await? })
    }

    /// Sends a batch: what every batch has, and what only some have.
    ///
    /// # Errors
    /// PostgreSQL's own, for [`super::refused`] to judge.
    pub(super) async fn run(
        &self,
        connection: &Dedicated,
        params: &[&(dyn ToSql + Sync)],
        seldom: Option<[&(dyn ToSql + Sync); 5]>,
    ) -> Result<Row, tokio_postgres::Error> {
        match seldom {
            None => connection.client.query_one(&self.plain, params).await,
            Some(seldom) => connection.client.query_one(&self.whole, &[params, &seldom].concat()).await,
        }
    }
}
