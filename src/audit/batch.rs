//! The statement that a batch is. What is in it, and what becomes of it, is the stream's.

use chrono::{DateTime, Utc};
use tokio_postgres::Statement;

use super::columns::{Columns, Param};
use super::refused::away;
use super::stream::Referred;
use crate::error;
use crate::store::Dedicated;

/// One batch, in one statement and one round trip. The head moves only from where this daemon believes it to be, with the
/// time within a minute of PostgreSQL's, and with every person still there under the same key; everything else hangs on
/// the head.
const HEAD: &str = "WITH head AS ( \
    UPDATE sidekeep.audit_streams SET size = $4, root = $5, head_mac = $6, frontier = $7, edge = $8, last_recorded_at = $9, \
        leased_until = now() + interval '15 seconds' \
    WHERE stream = $1 AND epoch = $2 AND size = $3 AND leased_until > now() AND closed_at IS NULL \
        AND $9::timestamptz BETWEEN now() - interval '1 minute' AND now() + interval '1 minute'";
const INTO: &str = "INSERT INTO sidekeep.audit_logs (stream, position, recorded_at, format, id, actor_id, subject_id, action, \
    resource_type, resource_id, outcome, occurred_at, labels, client_sealed, metadata_sealed, leaf_hash) ";
/// Many entries, and whomever they refer to.
const MANY: [&str; 3] = [
    " AND NOT EXISTS (SELECT FROM unnest($10::bigint[], $11::bytea[]) AS p (id, key) WHERE NOT EXISTS ( \
        SELECT FROM sidekeep.subjects s WHERE s.subject_id = p.id AND s.wrapped_key = p.key)) \
    RETURNING stream), entries AS (",
    INTO,
    "SELECT head.stream, e.position, $9, 1, e.id, e.actor_id, e.subject_id, e.action, e.resource_type, e.resource_id, \
        e.outcome, e.occurred_at, e.labels, e.client_sealed, e.metadata_sealed, e.leaf_hash \
    FROM head, unnest($12::bigint[], $13::text[], $14::bigint[], $15::bigint[], $16::text[], $17::text[], $18::text[], \
        $19::text[], $20::timestamptz[], $21::jsonb[], $22::bytea[], $23::bytea[], $24::bytea[]) \
        AS e (position, id, actor_id, subject_id, action, resource_type, resource_id, outcome, occurred_at, labels, \
        client_sealed, metadata_sealed, leaf_hash))",
];
const NOTHING_ELSE: &str = " SELECT FROM head";
/// What only some batches have: tiles that they complete, and staged entries. One of these that was not there to be taken
/// makes the statement fail as a whole.
const TILES_AND_STAGED: &str = ", \
    nodes AS (INSERT INTO sidekeep.audit_nodes (stream, level, index, hash, children) \
        SELECT head.stream, n.level, n.index, n.hash, n.children FROM head, \
            unnest($25::int[], $26::bigint[], $27::bytea[], $28::bytea[]) AS n (level, index, hash, children)), \
    gone AS (DELETE FROM sidekeep.audit_staged WHERE number = ANY ($29::bigint[]) AND EXISTS (SELECT FROM head) RETURNING 1) \
    SELECT CASE WHEN (SELECT count(*) FROM gone) <> cardinality($29::bigint[]) \
        THEN 1 / (SELECT count(*) - 1 FROM head) END AS unmatched FROM head";
/// One entry of a caller alone: to set up functions that unfold lists costs PostgreSQL more than the entry does.
const ONE: [&str; 3] = [
    " AND ($10::bigint IS NULL OR EXISTS (SELECT FROM sidekeep.subjects WHERE subject_id = $10 AND wrapped_key = $11::bytea)) \
    AND ($12::bigint IS NULL OR EXISTS (SELECT FROM sidekeep.subjects WHERE subject_id = $12 AND wrapped_key = $13::bytea)) \
    RETURNING stream) ",
    INTO,
    "SELECT stream, $14::bigint, $9, 1, $15::text, $16::bigint, $17::bigint, $18::text, $19::text, $20::text, $21::text, \
        $22::timestamptz, $23::jsonb, $24::bytea, $25::bytea, $26::bytea FROM head",
];

/// How a batch moves the head of its stream.
#[derive(Debug)]
pub(super) struct Head<'a> {
    pub(super) stream: i32,
    pub(super) epoch: i64,
    /// The size before.
    pub(super) from: i64,
    /// The size after it; the rest goes with this.
    pub(super) size: i64,
    pub(super) root: &'a [u8],
    pub(super) mac: Vec<u8>,
    pub(super) frontier: Vec<u8>,
    pub(super) edge: Vec<u8>,
    pub(super) recorded_at: DateTime<Utc>,
}

/// The statement of a batch, prepared: it is the longest of them all. What a statement could do costs it time though it has
/// nothing of it to do, so there is one for each of the common batches.
#[derive(Clone, Debug)]
pub(super) struct Append {
    /// For one entry.
    one: Statement,
    /// For entries alone.
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
        let prepare = |parts: [&str; 3], rest| {
            let statement = [&[HEAD][..], &parts, &[rest]].concat().concat();
            async move { connection.client.prepare(&statement).await.map_err(away) }
        };
        Ok(Self {
            one: prepare(ONE, "").await?,
            plain: prepare(MANY, NOTHING_ELSE).await?,
            whole: prepare(MANY, TILES_AND_STAGED).await?,
        })
    }

    /// Sends a batch. False when the head was not there to be moved: nothing was written.
    ///
    /// # Errors
    /// PostgreSQL's own, for [`super::refused`] to judge.
    pub(super) async fn run(
        &self,
        connection: &Dedicated,
        head: &Head<'_>,
        people: &[Referred<'_>],
        c: &Columns<'_>,
    ) -> Result<bool, tokio_postgres::Error> {
        let mut params: Vec<Param<'_>> = vec![
            &head.stream,
            &head.epoch,
            &head.from,
            &head.size,
            &head.root,
            &head.mac,
            &head.frontier,
            &head.edge,
            &head.recorded_at,
        ];
        let seldom = !c.level.is_empty() || !c.staged.is_empty();
        if let (false, Some(entry), true) = (seldom, c.alone(), people.len() <= 2) {
            let mut referred = people.iter().map(|(id, key)| (Some(*id), Some(*key)));
            let [first, second] = [(); 2].map(|()| referred.next().unwrap_or_default());
            let referred: [Param<'_>; 4] = [&first.0, &first.1, &second.0, &second.1];
            params.extend(referred.into_iter().chain(entry));
            return Ok(connection.client.execute(&self.one, &params).await? == 1);
        }
        let (ids, keys): (Vec<i64>, Vec<&[u8]>) = people.iter().copied().unzip();
        let referred: [Param<'_>; 2] = [&ids, &keys];
        params.extend(referred.into_iter().chain(c.entries()));
        if seldom {
            let seldom: [Param<'_>; 5] = [&c.level, &c.index, &c.hash, &c.children, &c.staged];
            params.extend(seldom);
        }
        let statement = if seldom { &self.whole } else { &self.plain };
        Ok(connection.client.query_opt(statement, &params).await?.is_some())
    }
}
