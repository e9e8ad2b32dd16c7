//! Rows that stand where nothing may stand: beyond a size, below the first place, or of a stream that no daemon has leased.
//! Found along indexes, in the snapshot of the plan.

use diesel::prelude::{ExpressionMethods, QueryDsl, QueryableByName};
use diesel::sql_types::{Array, Int4, Int8, Nullable};
use diesel_async::RunQueryDsl;

use super::findings::at;
use super::plan::Plan;
use crate::audit::heads::MOST;
use crate::audit::tree::HEADS;
use crate::error::Result;
use crate::store::Connection;
use crate::store::schema::{audit_checkpoints, audit_heads, audit_logs};

/// So many rows of one kind that nobody may have written are listed.
const LISTED: i64 = 1000;

#[derive(QueryableByName)]
struct Stray {
    #[diesel(sql_type = Int4)]
    stream: i32,
    #[diesel(sql_type = Int4)]
    level: i32,
    #[diesel(sql_type = Int8)]
    index: i64,
}

impl Plan {
    /// Takes out what no daemon can have written, whatever else it says: streams below the first one; and tells heads and
    /// checkpoints at places that are none, and streams that were closed without a word.
    ///
    /// # Errors
    /// The database's.
    pub(super) async fn impossible(&mut self, connection: &mut Connection) -> Result<()> {
        let (there, impossible): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.streams).into_iter().partition(|stream| stream.stream >= 0);
        self.streams = there;
        for stream in &self.streams {
            // Whoever closes one enters that in the same transaction.
            if stream.closed_at.is_some() && !self.gaps.contains_key(&stream.stream) {
                let expected = "an open stream, or a gap that the log declares";
                self.findings.add((stream.stream, stream.size), "closed_at", expected, "a closed one");
            }
        }
        for stream in impossible {
            let (expected, found) = ("a stream from 0 on", stream.stream.to_string());
            self.findings.add((stream.stream, stream.size), "audit_streams", expected, found);
        }
        for (from, to) in [(i64::MIN, -1), (MOST, i64::MAX)] {
            let heads: Vec<i64> = audit_heads::table
                .filter(audit_heads::index.between(from, to))
                .order(audit_heads::index)
                .select(audit_heads::index)
                .limit(LISTED)
                .load(connection)
                .await?;
            for index in heads {
                let expected = format!("a head from 0 on, below {MOST}");
                self.findings.add((HEADS, index), "audit_heads", expected, index.to_string());
            }
        }
        let checkpoints: Vec<i64> = audit_checkpoints::table
            .filter(audit_checkpoints::size.le(0))
            .order(audit_checkpoints::size)
            .select(audit_checkpoints::size)
            .limit(LISTED)
            .load(connection)
            .await?;
        for size in checkpoints {
            let expected = "a checkpoint of one head or more";
            self.findings.add((HEADS, size), "audit_checkpoints", expected, size.to_string());
        }
        Ok(())
    }

    /// Looks for them.
    ///
    /// # Errors
    /// The database's.
    pub(super) async fn strays(&mut self, connection: &mut Connection) -> Result<()> {
        let mut trees: Vec<(i32, i64)> =
            self.streams.iter().map(|stream| at(stream.stream, stream.size())).collect();
        for (stream, size) in &trees {
            // One after the other: each is a part of the index.
            for (from, to) in [(i64::MIN, -1), (*size, i64::MAX)] {
                let beyond: Vec<i64> = audit_logs::table
                    .filter(audit_logs::stream.eq(*stream))
                    .filter(audit_logs::position.between(from, to))
                    .order(audit_logs::position)
                    .select(audit_logs::position)
                    .limit(LISTED)
                    .load(connection)
                    .await?;
                for position in beyond {
                    let (what, expected) =
                        ("size of the stream", format!("at most {size} entries, from 0 on"));
                    self.findings.add((*stream, position), what, expected, format!("entry {position}"));
                }
            }
        }
        let checkpointed = self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.size);
        let heads = i64::try_from(self.heads).unwrap_or(i64::MAX);
        if checkpointed != heads {
            let what = "heads up to a checkpoint";
            self.findings.add((HEADS, heads), what, checkpointed.to_string(), heads.to_string());
        }
        self.strangers(connection).await?;
        trees.push((HEADS, heads));
        for tree in &trees {
            self.stray_nodes(connection, *tree).await?;
        }
        self.strange_nodes(connection, trees.into_iter().map(|(stream, _)| stream).collect()).await
    }

    /// Entries and heads of streams that no daemon has ever leased. Goes from stream to stream along the index.
    async fn strangers(&mut self, connection: &mut Connection) -> Result<()> {
        const NEXT: &str = "SELECT min(l.stream) FROM sidekeep.audit_logs l WHERE l.stream > $1";
        #[derive(QueryableByName)]
        struct Next {
            #[diesel(sql_type = Nullable<Int4>)]
            min: Option<i32>,
        }
        let mut after = i64::from(i32::MIN).saturating_sub(1);
        loop {
            let next: Next = diesel::sql_query(NEXT).bind::<Int8, _>(after).get_result(connection).await?;
            let Some(stream) = next.min else { break };
            after = i64::from(stream);
            if self.streams.iter().any(|known| known.stream == stream) {
                continue;
            }
            let positions: Vec<i64> = audit_logs::table
                .filter(audit_logs::stream.eq(stream))
                .order(audit_logs::position)
                .select(audit_logs::position)
                .limit(LISTED)
                .load(connection)
                .await?;
            for position in positions {
                self.findings.add(
                    (stream, position),
                    "stream",
                    "a stream of audit_streams",
                    stream.to_string(),
                );
            }
        }
        let latest: Vec<(i32, i64)> = audit_heads::table
            .distinct_on(audit_heads::stream)
            .order((audit_heads::stream, audit_heads::size.desc()))
            .select((audit_heads::stream, audit_heads::size))
            .load(connection)
            .await?;
        for (stream, size) in latest {
            let there =
                self.streams.iter().find(|known| known.stream == stream).map_or(0, |known| known.size);
            if size <= there {
                continue;
            }
            let beyond: Vec<(i64, Vec<u8>)> = audit_heads::table
                .filter(audit_heads::stream.eq(stream))
                .filter(audit_heads::size.gt(there))
                .order(audit_heads::size)
                .select((audit_heads::size, audit_heads::root))
                .limit(LISTED)
                .load(connection)
                .await?;
            let gap = self.gaps.get(&stream);
            for (size, root) in beyond {
                // A declared gap is no break.
                if !gap.is_some_and(|gap| gap.explains(there, size, &root)) {
                    let what = "entries up to a head";
                    self.findings.add((stream, there), what, size.to_string(), there.to_string());
                }
            }
        }
        Ok(())
    }

    /// Subtrees of which a tree of this size has none.
    async fn stray_nodes(&mut self, connection: &mut Connection, (stream, size): (i32, i64)) -> Result<()> {
        const STRAYS: &str = "SELECT n.stream, n.level, n.index FROM generate_series(4, 60, 4) AS k (level), LATERAL ( \
            (SELECT * FROM sidekeep.audit_nodes n WHERE n.stream = $1 AND n.level = k.level AND n.index >= $2 >> k.level LIMIT $3) \
            UNION ALL \
            (SELECT * FROM sidekeep.audit_nodes n WHERE n.stream = $1 AND n.level = k.level AND n.index < 0 LIMIT $3)) AS n";
        let strays = diesel::sql_query(STRAYS)
            .bind::<Int4, _>(stream)
            .bind::<Int8, _>(size)
            .bind::<Int8, _>(LISTED)
            .load(connection);
        self.are_stray(strays.await?);
        Ok(())
    }

    /// Subtrees of no tree, and at levels that no tree has. Goes from level to level along the index.
    async fn strange_nodes(&mut self, connection: &mut Connection, trees: Vec<i32>) -> Result<()> {
        const STRANGE: &str = "WITH RECURSIVE k AS ( \
            (SELECT stream, level FROM sidekeep.audit_nodes ORDER BY stream, level LIMIT 1) UNION ALL \
            SELECT n.stream, n.level FROM k, LATERAL (SELECT stream, level FROM sidekeep.audit_nodes n \
                WHERE (n.stream, n.level) > (k.stream, k.level) ORDER BY n.stream, n.level LIMIT 1) AS n) \
            SELECT n.stream, n.level, n.index FROM k, LATERAL (SELECT * FROM sidekeep.audit_nodes n \
                WHERE n.stream = k.stream AND n.level = k.level LIMIT $2) AS n \
            WHERE k.stream <> ALL ($1) OR k.level NOT BETWEEN 4 AND 60 OR k.level % 4 <> 0 LIMIT $2";
        let strays = diesel::sql_query(STRANGE).bind::<Array<Int4>, _>(trees).bind::<Int8, _>(LISTED);
        self.are_stray(strays.load(connection).await?);
        Ok(())
    }

    fn are_stray(&mut self, strays: Vec<Stray>) {
        for Stray { stream, level, index } in strays {
            let found = format!("level {level} index {index}");
            self.findings.add((stream, index), "audit_nodes", "no such subtree", found);
        }
    }
}
