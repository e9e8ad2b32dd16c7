//! The log beside its publication: whether it has all that was published, lacks some of it, or contradicts it.
//!
//! The publication is read first: what it has was committed before, so a snapshot that is taken later has it too, unless
//! it was lost. Changes nothing.

use std::collections::BTreeMap;

use diesel::QueryableByName;
use diesel::prelude::{ExpressionMethods, OptionalExtension, QueryDsl, SelectableHelper};
use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;

use super::super::entry::Head;
use super::super::gap::Gap;
use super::super::heads::{StreamRow, frontier};
use super::super::tree::Tree;
use super::object::Object;
use super::place::{Place, Trouble};
use super::{Publication, object};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::store::schema::{audit_heads, audit_publications, audit_streams};
use crate::store::watch::SERVER_RUN;
use crate::store::{Connection, Deadline};

/// The most heads that are taken over from a publication: at two a minute, four years.
const MISSING: u64 = 4_000_000;

/// What a comparison found.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Nothing was published yet.
    Fresh,
    /// The log has all that was published.
    Whole(Newest),
    /// It lacks some of it.
    Behind(Missing),
    /// It contradicts it.
    Forked(Newest, String),
    /// The publication cannot be read.
    Away(String),
}

/// The newest checkpoint that was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Newest {
    /// How many heads it covers.
    pub(super) size: u64,
    /// When the last of them was taken.
    pub(super) at: Option<Timestamp>,
}

/// What the log lacks.
#[derive(Debug)]
pub(super) struct Missing {
    /// The newest published checkpoint.
    pub(super) newest: Object,
    /// How many heads the log had when it was looked at.
    pub(super) count: u64,
    /// The index of the first of `heads`.
    pub(super) first: u64,
    /// Heads from there to the newest; the log has the first of them.
    pub(super) heads: Vec<Head>,
    /// The streams that have lost entries.
    pub(super) gaps: Vec<Gap>,
}

impl Missing {
    /// Those of the heads that a log with so many lacks.
    pub(super) fn after(&self, count: u64) -> &[Head] {
        let known = usize::try_from(count.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.heads.get(known..).unwrap_or_default()
    }

    pub(super) fn newest(&self) -> Newest {
        Newest { size: self.newest.checkpoint.size, at: self.heads.last().map(|head| head.at) }
    }
}

#[derive(QueryableByName)]
struct Run {
    #[diesel(sql_type = Text)]
    run: String,
}

/// Which run of the server a connection leads to.
async fn run(connection: &mut Connection) -> Result<String> {
    Ok(diesel::sql_query(SERVER_RUN).get_result::<Run>(connection).await?.run)
}

/// How many heads the log has.
pub(super) async fn count(connection: &mut Connection) -> Result<u64> {
    let count: i64 = audit_heads::table.count().get_result(connection).await?;
    u64::try_from(count).map_err(Error::internal)
}

impl Publication {
    /// Compares the log with its publication. Answers which run of the server was looked at.
    ///
    /// # Errors
    /// The store's: nothing is known then.
    pub(super) async fn look(&self, place: &Place, deadline: &Deadline) -> Result<(String, Verdict)> {
        let mut lacking = 0;
        // Twice, because another daemon may publish between the two looks of the first time.
        for _ in 0..2 {
            let newest = self.newest(place).await;
            let (run, recorded, count) = self
                .store
                .single(deadline, "audit.publication", async |connection| {
                    let recorded: Option<i64> = audit_publications::table
                        .find(place.name())
                        .select(audit_publications::size)
                        .first(connection)
                        .await
                        .optional()?;
                    Ok((run(connection).await?, recorded, count(connection).await?))
                })
                .await?;
            let newest = match newest {
                Ok(newest) => newest,
                Err(why) => return Ok((run, Verdict::Away(why))),
            };
            lacking = u64::try_from(recorded.unwrap_or(0)).map_err(Error::internal)?;
            match newest {
                None if lacking == 0 => return Ok((run, Verdict::Fresh)),
                Some(newest) if newest.checkpoint.size >= lacking => {
                    return match self.chain(place, newest, count).await {
                        Ok(missing) => self.judge(missing, deadline).await,
                        Err(why) => Ok((run, Verdict::Away(why))),
                    };
                }
                _ => {}
            }
        }
        let run = self.store.single(deadline, "audit.publication", async |c| run(c).await).await?;
        Ok((
            run,
            Verdict::Away(format!(
                "audit.publish lacks {}, which was published there: mount it, or put its objects back; if they are lost for \
                 good, name a new audit.publish, where all is published again",
                object::name(lacking)
            )),
        ))
    }

    async fn newest(&self, place: &Place) -> Result<Option<Object>, String> {
        match place.newest().await {
            Ok(None) => Ok(None),
            Ok(Some(size)) => self.fetch(place, size).await.map(Some),
            Err(trouble) => Err(trouble.into()),
        }
    }

    /// One object of the publication.
    pub(super) async fn fetch(&self, place: &Place, size: u64) -> Result<Object, String> {
        let bytes = place.get(size).await.map_err(String::from)?;
        let wrong = |why| format!("audit.publish: {}: {why}", object::name(size));
        Object::decode(&bytes, size, &self.trust).map_err(wrong)
    }

    /// The heads from the newest object back to those that the log has.
    async fn chain(&self, place: &Place, newest: Object, count: u64) -> Result<Missing, String> {
        let (mut first, mut objects) = (newest.from, vec![newest.heads.clone()]);
        if newest.checkpoint.size.saturating_sub(count) > MISSING {
            return Err(format!(
                "the log lacks more than {MISSING} of the published heads; that is no restore"
            ));
        }
        while first > count {
            let object = self.fetch(place, first).await?;
            first = object.from;
            objects.push(object.heads);
        }
        let heads = objects.into_iter().rev().flatten().collect();
        Ok(Missing { newest, count, first, heads, gaps: Vec::new() })
    }

    async fn judge(&self, missing: Missing, deadline: &Deadline) -> Result<(String, Verdict)> {
        let newest = missing.newest();
        let judged = self
            .store
            .snapshot(deadline, "audit.compare", async |connection| {
                Ok((run(connection).await?, weigh(connection, &missing).await))
            })
            .await?;
        let (run, weighed) = judged;
        match weighed {
            Ok(None) => Ok((run, Verdict::Whole(newest))),
            Ok(Some(gaps)) => Ok((run, Verdict::Behind(Missing { gaps, ..missing }))),
            Err(Error::Tampered { at }) => Ok((run, Verdict::Forked(newest, at))),
            Err(error) => Err(error),
        }
    }
}

/// What streams have lost; nothing where the log has all that was published.
///
/// # Errors
/// [`Error::Tampered`], naming the place, where the log contradicts its publication.
async fn weigh(connection: &mut Connection, missing: &Missing) -> Result<Option<Vec<Gap>>> {
    let (size, root) = (missing.newest.checkpoint.size, missing.newest.checkpoint.root);
    let count = count(connection).await?;
    let mut heads = frontier(connection, Tree::Heads, count.min(size)).await?;
    let lacking = if count < size { missing.after(count) } else { &[] };
    lacking.iter().for_each(|head| heads.push(head.leaf(), |_, _| ()));
    if heads.size() != size || heads.root() != root {
        return Err(Error::Tampered {
            at: format!("the heads log, at {} of {size} published heads", count.min(size)),
        });
    }
    if count >= size {
        return Ok(None);
    }
    let streams: Vec<i32> = by_stream(lacking).into_keys().collect();
    let rows: Vec<StreamRow> = audit_streams::table
        .filter(audit_streams::stream.eq_any(streams))
        .select(StreamRow::as_select())
        .load(connection)
        .await?;
    gaps(connection, lacking, &rows).await.map(Some)
}

/// The heads of each stream.
fn by_stream(heads: &[Head]) -> BTreeMap<i32, Vec<&Head>> {
    let mut streams: BTreeMap<i32, Vec<&Head>> = BTreeMap::new();
    for head in heads {
        streams.entry(head.stream).or_default().push(head);
    }
    streams
}

/// Which streams have fewer entries than these heads say. What is there must be what was published.
///
/// # Errors
/// [`Error::Tampered`] where it is not.
pub(super) async fn gaps(
    connection: &mut Connection,
    heads: &[Head],
    rows: &[StreamRow],
) -> Result<Vec<Gap>> {
    let mut gaps = Vec::new();
    for (stream, heads) in by_stream(heads) {
        let kept_size = rows.iter().find(|row| row.stream == stream).map_or(0, |row| row.size);
        let kept = heads.iter().filter(|head| head.size <= kept_size).max_by_key(|head| head.size);
        if let Some(head) = kept {
            let size = u64::try_from(head.size).map_err(Error::internal)?;
            if frontier(connection, Tree::Stream(stream), size).await?.root() != head.root {
                return Err(Error::Tampered { at: format!("stream {stream}, at size {size}") });
            }
        }
        if let Some(lost) = heads.iter().max_by_key(|head| head.size).filter(|lost| lost.size > kept_size) {
            gaps.push(Gap { stream, kept_size, lost_size: lost.size, lost_root: lost.root.hex() });
        }
    }
    Ok(gaps)
}

impl From<Trouble> for String {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Exists => "audit.publish: it is there already".into(),
            Trouble::Away(why) => format!("audit.publish: {why}"),
        }
    }
}
