//! A stream: lease it, append to it, lose it. The only writer of the audit tables of entries.
//!
//! While the lease lasts nobody else appends, so the frontier stays in memory and a batch is one statement. Each statement
//! names the epoch and the size that this daemon believes in: a daemon that lost its lease writes nothing.

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::batch::{Append, Head};
use super::columns::Columns;
use super::doing::Leased;
use super::entry::{Entry, FORMAT};
use super::growth::Growth;
use super::head_mac::{HEAD, head_parts};
use super::merkle::Hash;
use super::publication::Publication;
use super::refused::{Refused, away, late, refusal};
use crate::error::{Error, Result};
use crate::keyring::Deployment;
use crate::store::{Deadline, Dedicated, Store};

/// How long a stream stays leased without a sign of life, as PostgreSQL spells it.
const LEASE: &str = "15 seconds";
/// The same.
const LASTS: TimeDelta = TimeDelta::seconds(15);

/// How far an entry's time may be from PostgreSQL's; the statements say the same.
const AHEAD: TimeDelta = TimeDelta::minutes(1);

/// Takes an expired stream, the lowest first, that nobody else is taking. A lease that ends later than one can is of a
/// clock that was ahead and was set right; until it is that late again, such a clock's entries have none after them.
const TAKE: &str = "UPDATE sidekeep.audit_streams SET epoch = epoch + 1, leased_until = now() + $1::text::interval \
    WHERE stream = (SELECT stream FROM sidekeep.audit_streams WHERE closed_at IS NULL AND stream <> ALL ($2::int[]) \
    AND leased_until NOT BETWEEN now() AND now() + interval '1 minute' \
    AND coalesce(last_recorded_at BETWEEN 'epoch' AND now() + interval '1 minute', true) \
    ORDER BY stream LIMIT 1 FOR UPDATE SKIP LOCKED) \
    RETURNING stream, epoch - 1 AS sealed_epoch, epoch, size, root, head_mac, frontier, edge, last_recorded_at, clock_timestamp() AS now";
/// Makes a stream where there is none to take. Two daemons at once: one of them takes the next number.
const MAKE: &str = "INSERT INTO sidekeep.audit_streams (stream, epoch, size, root, head_mac, frontier, leased_until) \
    SELECT $1, 1, 0, $2, $3, '', now() + $4::text::interval ON CONFLICT DO NOTHING RETURNING clock_timestamp() AS now";
const NEXT: &str = "SELECT coalesce(max(stream) + 1, 0) AS stream FROM sidekeep.audit_streams";
const SEAL: &str = "UPDATE sidekeep.audit_streams SET head_mac = $3 WHERE stream = $1 AND epoch = $2";
const RENEW: &str = "UPDATE sidekeep.audit_streams SET leased_until = now() + $3::text::interval \
    WHERE stream = $1 AND epoch = $2 AND closed_at IS NULL RETURNING clock_timestamp() AS now";
const RELEASE: &str = "UPDATE sidekeep.audit_streams SET leased_until = now() - interval '1 second' WHERE stream = $1 AND epoch = $2";
/// Changes nothing, and is behind everything in the WAL that was seen before: where its commit is replicated, that is.
const BARRIER: &str = "UPDATE sidekeep.audit_streams SET epoch = epoch WHERE stream = $1";
/// Ends a fence that is waited for no longer: by itself, a server that waits for a lock does not notice.
const PATIENCE: &str = "SET LOCAL statement_timeout = '9s'";
/// Waits for whatever the old connection may still be doing, and lets nothing of it commit afterwards.
const FENCE: &str = "UPDATE sidekeep.audit_streams SET epoch = epoch + 1, leased_until = now() + $3::text::interval \
    WHERE stream = $1 AND epoch = $2 RETURNING epoch, size, root, last_recorded_at, clock_timestamp() AS now";

/// An entry that is sealed, and waits for a position.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// Everything but stream, position and time.
    pub entry: Entry,
    /// Its number in `audit_staged`, where it is there.
    pub staged: Option<i64>,
}

/// Somebody whom a batch refers to: it is written only while the row is the same.
pub(super) type Referred<'a> = (i64, &'a [u8]);

/// An entry of a batch, and its number in `audit_staged` where it is there.
pub(super) type Placed<'a> = (&'a mut Entry, Option<i64>);

/// A leased stream and the connection that appends to it.
#[derive(Debug)]
pub(super) struct Stream {
    connection: Dedicated,
    append: Append,
    /// Its number.
    pub number: i32,
    epoch: i64,
    tree: Growth,
    last_recorded_at: Option<DateTime<Utc>>,
    /// What time it was when the lease was last renewed.
    clock: (DateTime<Utc>, Instant),
    /// When it was appended to last.
    appended: Option<DateTime<Utc>>,
}

/// Where a batch begins, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Appended {
    /// In which stream.
    pub stream: i32,
    /// The position of its first entry.
    pub first: i64,
    /// The time of all of them.
    pub recorded_at: DateTime<Utc>,
}

/// What a batch whose answer did not arrive has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// It is in the log.
    Committed,
    /// It is not, and never will be.
    NotCommitted,
    /// PostgreSQL warned while it was asked: a standby may lack what is here, and nothing may be called done.
    Unproven,
}

/// A batch as it was sent.
#[derive(Debug)]
pub(super) struct Sent {
    /// Where it begins.
    pub at: Appended,
    /// The leaf of its first entry.
    first: Option<Hash>,
    tree: Growth,
}

/// A fenced stream: its new epoch, the connection that goes on with it, and what time it is.
type Fenced = (i64, Dedicated, Append, (DateTime<Utc>, Instant));

impl Stream {
    /// Leases a stream on a connection of its own, once the log that it leads to was compared with its publication. One whose
    /// head no daemon has sealed is left alone, and told.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub(super) async fn lease(
        publication: &Publication,
        own: &Deployment,
        deadline: &Deadline,
    ) -> Result<Self> {
        let connection = publication.store.dedicated(deadline).await?;
        publication.admit(&connection.run, deadline).await?;
        let leasing = async {
            let append = Append::prepare(&connection).await?;
            let mut refused: Vec<i32> = Vec::new();
            loop {
                // The new epoch and its seal are one transaction: a head without its seal would be refused ever after.
                connection.begin().await.map_err(away)?;
                let Some(row) = connection.client.query_opt(TAKE, &[&LEASE, &refused]).await.map_err(away)?
                else {
                    connection.commit().await.map_err(away)?;
                    return Self::made(connection, append, own).await;
                };
                let number: i32 = row.get("stream");
                if let Some(tree) = sealed_tree(own, &row) {
                    let (epoch, size): (i64, _) = (row.get("epoch"), tree.size());
                    let parts = head_parts(own.name(), number, epoch, size, tree.root());
                    let mac = own.mac(HEAD, &parts.parts());
                    connection.client.execute(SEAL, &[&number, &epoch, &mac]).await.map_err(away)?;
                    connection.commit().await.map_err(away)?;
                    let (last_recorded_at, clock) =
                        (row.get("last_recorded_at"), (row.get("now"), Instant::now()));
                    return Ok(Self {
                        connection,
                        append,
                        number,
                        epoch,
                        tree,
                        last_recorded_at,
                        clock,
                        appended: None,
                    });
                }
                connection.roll_back().await.map_err(away)?;
                tracing::error!(
                    stream = number,
                    "its head was not sealed by a daemon; it is not appended to"
                );
                refused.push(number);
            }
        };
        deadline.run(leasing).await.unwrap_or_else(|_| Err(late()))
    }

    async fn made(connection: Dedicated, append: Append, own: &Deployment) -> Result<Self> {
        loop {
            let next = connection.client.query_one(NEXT, &[]).await.map_err(away)?;
            let number: i32 = next.get("stream");
            let tree = Growth::default();
            let mac = own.mac(HEAD, &head_parts(own.name(), number, 1, 0, tree.root()).parts());
            let root = tree.root().bytes().to_vec();
            let made =
                connection.client.query_opt(MAKE, &[&number, &root, &mac, &LEASE]).await.map_err(away)?;
            if let Some(row) = made {
                let clock = (row.get("now"), Instant::now());
                return Ok(Self {
                    connection,
                    append,
                    number,
                    epoch: 1,
                    tree,
                    last_recorded_at: None,
                    clock,
                    appended: None,
                });
            }
        }
    }

    /// Keeps the lease alive; false when it is lost. On success everything that was seen before is as durable as a commit.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; [`Error::UnknownOutcome`] when PostgreSQL warned: a standby may lack what is here.
    pub(super) async fn renew(&mut self, deadline: &Deadline) -> Result<bool> {
        let params: &[&(dyn ToSql + Sync)] = &[&self.number, &self.epoch, &LEASE];
        let warnings = self.connection.seen.warnings();
        let row = deadline
            .run(self.connection.client.query_opt(RENEW, params))
            .await
            .map_err(|_| late())?
            .map_err(away)?;
        if let Some(row) = &row {
            self.clock = (row.get("now"), Instant::now());
        }
        if self.connection.seen.warnings() > warnings {
            return Err(Error::UnknownOutcome);
        }
        Ok(row.is_some())
    }

    /// Whether PostgreSQL's clock was set back so far behind the last entry that none can follow it.
    pub(super) fn is_ahead(&self) -> bool {
        let (at, since) = self.clock;
        let latest = TimeDelta::from_std(since.elapsed())
            .ok()
            .and_then(|elapsed| at.checked_add_signed(elapsed)?.checked_add_signed(AHEAD));
        self.last_recorded_at.zip(latest).is_some_and(|(last, latest)| last > latest)
    }

    /// Gives the lease back, so that the next daemon need not wait for its end.
    pub(super) async fn release(self, deadline: &Deadline) {
        // Without an answer the lease ends by itself.
        let _ = deadline.run(self.connection.client.execute(RELEASE, &[&self.number, &self.epoch])).await;
    }

    /// It, as it is shown.
    pub(super) fn shown(&self) -> Leased {
        // Each batch renews the lease too.
        let renewed = self.appended.map_or(self.clock.0, |at| at.max(self.clock.0));
        Leased {
            stream: self.number,
            size: self.tree.size(),
            epoch: self.epoch,
            leased_until: renewed.checked_add_signed(LASTS).unwrap_or(renewed).into(),
        }
    }

    /// Whether the connection has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.connection.seen.closed()
    }

    /// The time as PostgreSQL has it, never before the last entry's.
    pub(super) fn now(&self) -> DateTime<Utc> {
        let (at, since) = self.clock;
        let elapsed = TimeDelta::from_std(since.elapsed()).unwrap_or_default();
        let now = at.checked_add_signed(elapsed).unwrap_or(at);
        let now = chrono::SubsecRound::trunc_subsecs(now, 6);
        self.last_recorded_at.map_or(now, |last| last.max(now))
    }

    /// Gives these entries the next positions, and sends them as one statement. On success the caller may be told so.
    ///
    /// # Errors
    /// [`Refused`], and for `Unknown` what [`Stream::settle`] needs.
    pub(super) async fn append(
        &mut self,
        own: &Deployment,
        batch: &mut [Placed<'_>],
        people: &[Referred<'_>],
        deadline: &Deadline,
    ) -> Result<Appended, (Refused, Sent)> {
        let recorded_at = self.now();
        let mut tree = self.tree.clone();
        let (mut leaves, mut tiles) = (Vec::with_capacity(batch.len()), Vec::new());
        let first = i64::try_from(tree.size()).unwrap_or(i64::MAX);
        for (entry, _) in batch.iter_mut() {
            entry.stream = self.number;
            entry.position = i64::try_from(tree.size()).unwrap_or(i64::MAX);
            entry.recorded_at = recorded_at;
            entry.format = FORMAT;
            let leaf = entry.leaf();
            leaves.push(leaf);
            tree.push(leaf, |tile| tiles.push(tile));
        }
        let columns = Columns::of(batch, &leaves, &tiles);
        let at = Appended { stream: self.number, first, recorded_at };
        let sent = Sent { at, first: leaves.first().copied(), tree };
        match deadline.run(self.send(own, &sent, &columns, people)).await {
            Ok(Ok(())) => {
                self.tree = sent.tree;
                self.last_recorded_at = Some(recorded_at);
                self.appended = self.last_recorded_at;
                Ok(at)
            }
            Ok(Err(refused)) => Err((refused, sent)),
            Err(_) => Err((Refused::Unknown, sent)),
        }
    }

    async fn send(
        &self,
        own: &Deployment,
        sent: &Sent,
        columns: &Columns<'_>,
        people: &[Referred<'_>],
    ) -> Result<(), Refused> {
        let (size, root) = (sent.tree.size(), sent.tree.root());
        let head = Head {
            stream: self.number,
            epoch: self.epoch,
            from: sent.at.first,
            size: i64::try_from(size).unwrap_or(i64::MAX),
            root: root.bytes(),
            mac: own.mac(HEAD, &head_parts(own.name(), self.number, self.epoch, size, root).parts()),
            frontier: sent.tree.frontier().to_bytes(),
            edge: sent.tree.edge(),
            recorded_at: sent.at.recorded_at,
        };
        let warnings = self.connection.seen.warnings();
        match self.append.run(&self.connection, &head, people, columns).await {
            // "Committed locally, but might not have been replicated": not what was asked for.
            Ok(_) if self.connection.seen.warnings() > warnings => Err(Refused::Unknown),
            Ok(true) => Ok(()),
            Ok(false) => Err(self.why_not(sent, people).await),
            Err(error) => Err(refusal(&error)),
        }
    }

    /// The head did not move. Nothing was written, so there is time to ask why.
    async fn why_not(&self, sent: &Sent, people: &[Referred<'_>]) -> Refused {
        const WHY: &str = "SELECT s.leased_until > now() AND s.closed_at IS NULL AND s.epoch = $2 AND s.size = $3 AS mine, \
            $4::timestamptz BETWEEN now() - interval '1 minute' AND now() + interval '1 minute' AS timely \
            FROM sidekeep.audit_streams s WHERE s.stream = $1";
        let params: &[&(dyn ToSql + Sync)] =
            &[&self.number, &self.epoch, &sent.at.first, &sent.at.recorded_at];
        match self.connection.client.query_opt(WHY, params).await {
            Ok(Some(row)) if !row.get::<_, bool>("mine") => Refused::Lost,
            Ok(Some(row)) if !row.get::<_, bool>("timely") => Refused::Clock,
            Ok(Some(_)) if !people.is_empty() => Refused::StalePeople,
            _ => Refused::Lost,
        }
    }

    /// Finds out, on a new connection, what a batch whose answer did not arrive has come to. Afterwards the stream is this
    /// daemon's under a new epoch, or lost.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: ask again.
    pub(super) async fn settle(
        self,
        store: &Store,
        own: &Deployment,
        sent: Sent,
        deadline: &Deadline,
    ) -> Result<(Settled, Option<Self>), (Error, Box<(Self, Sent)>)> {
        match self.fence(store, own, &sent, deadline).await {
            Ok((settled, epoch_and_connection)) => {
                let next = epoch_and_connection.map(|(epoch, connection, append, clock)| {
                    let committed = settled == Settled::Committed;
                    Self {
                        tree: if committed { sent.tree } else { self.tree },
                        last_recorded_at: if committed {
                            Some(sent.at.recorded_at)
                        } else {
                            self.last_recorded_at
                        },
                        connection,
                        append,
                        number: self.number,
                        epoch,
                        clock,
                        appended: None,
                    }
                });
                Ok((settled, next))
            }
            Err(error) => Err((error, Box::new((self, sent)))),
        }
    }

    async fn fence(
        &self,
        store: &Store,
        own: &Deployment,
        sent: &Sent,
        deadline: &Deadline,
    ) -> Result<(Settled, Option<Fenced>)> {
        let connection = store.dedicated(deadline).await?;
        let fencing = async {
            let append = Append::prepare(&connection).await?;
            connection.begin().await.map_err(away)?;
            connection.client.batch_execute(PATIENCE).await.map_err(away)?;
            let fenced = connection
                .client
                .query_opt(FENCE, &[&self.number, &self.epoch, &LEASE])
                .await
                .map_err(away)?;
            let (committed, next) = match fenced {
                // Somebody else has the stream, so nothing of ours can commit any more: the log itself tells.
                None => (self.look(&connection, sent).await?, None),
                Some(row) => {
                    let (epoch, root): (i64, &[u8]) = (row.get("epoch"), row.get("root"));
                    let committed = root == sent.tree.root().bytes();
                    if !committed && root != self.tree.root().bytes() {
                        // Another server, which lacks what this daemon had appended before. Without a commit the fence is
                        // undone.
                        return Ok((Settled::NotCommitted, None));
                    }
                    let tree = if committed { &sent.tree } else { &self.tree };
                    let parts = head_parts(own.name(), self.number, epoch, tree.size(), tree.root());
                    let mac = own.mac(HEAD, &parts.parts());
                    connection.client.execute(SEAL, &[&self.number, &epoch, &mac]).await.map_err(away)?;
                    (committed, Some((epoch, append, (row.get("now"), Instant::now()))))
                }
            };
            connection.commit().await.map_err(away)?;
            // The fence is behind the batch in the WAL, so that where it is replicated the batch is.
            if connection.seen.warnings() > 0 {
                return Ok((Settled::Unproven, None));
            }
            Ok((if committed { Settled::Committed } else { Settled::NotCommitted }, next))
        };
        let (settled, next) = deadline.run(fencing).await.unwrap_or_else(|_| Err(late()))?;
        Ok((settled, next.map(|(epoch, append, clock)| (epoch, connection, append, clock))))
    }

    /// Whether the batch is in the log, by its first leaf.
    async fn look(&self, connection: &Dedicated, sent: &Sent) -> Result<bool> {
        const THERE: &str = "SELECT FROM sidekeep.audit_logs WHERE stream = $1 AND position = $2 AND recorded_at = $3 \
            AND leaf_hash = $4";
        connection.client.execute(BARRIER, &[&self.number]).await.map_err(away)?;
        let leaf = sent.first.map(|leaf| leaf.bytes().to_vec());
        let params: &[&(dyn ToSql + Sync)] = &[&self.number, &sent.at.first, &sent.at.recorded_at, &leaf];
        Ok(connection.client.query_opt(THERE, params).await.map_err(away)?.is_some())
    }
}

/// The tree of a stream that was taken, where a daemon has sealed its head and the edge leads to it.
fn sealed_tree(own: &Deployment, row: &Row) -> Option<Growth> {
    let number: i32 = row.get("stream");
    let size = u64::try_from(row.get::<_, i64>("size")).ok()?;
    let root = Hash::read(row.get("root"))?;
    let tree = Growth::read(size, row.get("edge"))?;
    let sealed = head_parts(own.name(), number, row.get("sealed_epoch"), size, root);
    let leads = tree.root() == root && tree.frontier().to_bytes() == row.get::<_, &[u8]>("frontier");
    (leads && own.verifies(HEAD, &sealed.parts(), row.get("head_mac"))).then_some(tree)
}
