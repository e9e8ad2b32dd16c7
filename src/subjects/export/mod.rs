//! Everything that is held about one person (GDPR Art. 15 and 20), from one snapshot: as one document, or as an archive.
//!
//! What is read is made from the selector alone. A part that fails fails the export; another person is only `other`.

mod archive;
mod cells;
mod document;
mod manifest;
mod page;
mod part;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use diesel::sql_types::Int8;
use futures_util::TryStreamExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use archive::{Summary, archive};
pub use document::{Document, document};

use self::cells::Cells;
use self::part::{Items, Owner, Part};
use super::request::{Done, attach};
use crate::audit::{By, SUBJECT};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::keyring::{Person, Subject};
use crate::records::{Records, Take};
use crate::store::{Connection, migrations};
use crate::values::{RecordId, UserId};

/// The form of documents and archives.
const FORMAT: &str = "sidekeep-export/1";

/// How many bytes of items go on together.
const CHUNK: usize = 128 * 1024;

/// The longest notice.
const NOTICE: u64 = 1024 * 1024;

/// Nobody has this user id, or no longer.
const GONE: Error = Error::NotFound { what: "subject" };

/// Parameters of `subject.export`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// The person.
    pub user_id: UserId,
    /// All that is held (GDPR Art. 15), or what the person provided (Art. 20).
    #[serde(default, deserialize_with = "crate::values::or_default")]
    #[schemars(with = "Option<Scope>")]
    pub scope: Scope,
    /// The request of the person's that this answers; that it was exported is noted there.
    pub request_id: Option<RecordId>,
}

/// How much of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// All that is held: GDPR Art. 15.
    #[default]
    Access,
    /// What the person provided: GDPR Art. 20.
    Portability,
}

impl Scope {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Portability => "portability",
        }
    }
}

/// What an export says beside the person's data.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The deployment's name.
    pub deployment: String,
    /// The notice for people, where there is one.
    pub notice: Option<String>,
    /// What is set under each key of `[retention]`.
    pub periods: BTreeMap<&'static str, String>,
    /// The last migration.
    pub schema: String,
}

impl Surroundings {
    /// What the configuration says, and the notice that it names, as it is now.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the notice cannot be read: an export without it would not be whole.
    pub fn of(config: &Config) -> Result<Self> {
        let notice = config.deployment.notice_file.as_ref().map(read_notice).transpose()?;
        let settings = serde_json::to_value(config).map_err(Error::internal)?;
        let set = |key: &'static str| {
            let value = settings.pointer(&format!("/{}", key.replace('.', "/")))?;
            Some((key, value.as_str()?.to_owned()))
        };
        let keys = part::parts(Scope::Access).into_iter().filter_map(|part| part.period);
        Ok(Self {
            deployment: config.deployment.name.as_str().to_owned(),
            notice,
            periods: keys.filter_map(set).collect(),
            schema: migrations::known().pop().unwrap_or_default(),
        })
    }

    /// How long a part is kept, where that is set.
    fn period(&self, part: &Part) -> Option<&str> {
        part.period.and_then(|key| self.periods.get(key)).map(String::as_str)
    }
}

fn read_notice(path: &PathBuf) -> Result<String> {
    use std::io::Read as _;
    let read = || {
        let mut text = String::new();
        std::fs::File::open(path)?.take(NOTICE).read_to_string(&mut text)?;
        std::io::Result::Ok(text)
    };
    read().map_err(|error| {
        tracing::error!(path = %path.display(), %error, "deployment.notice_file cannot be read");
        Error::unavailable("deployment.notice_file cannot be read, and an export without it is not whole")
    })
}

/// How far an export is.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    all: AtomicU64,
}

impl Progress {
    /// How many items are written, and how many there are.
    pub fn items(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.all.load(Ordering::Relaxed))
    }
}

/// What takes the items of an export.
trait Sink: Send {
    /// A part with so many items begins; they come before the next part begins.
    fn begin(&mut self, part: &Part, items: u64) -> impl Future<Output = Result<()>> + Send;
    /// Items, each on a line of its own, with `,` and a new line between two.
    fn items(&mut self, lines: Vec<u8>) -> impl Future<Output = Result<()>> + Send;
}

/// The person, as the snapshot has them.
///
/// # Errors
/// [`Error::NotFound`].
async fn find(connection: &mut Connection, records: &Records, by: &By, user_id: &UserId) -> Result<Subject> {
    let found = Person::find(connection, &[user_id.as_str()]).await?.into_iter().next();
    let subject = records.keyring().open(found.ok_or(GONE)?)?;
    by.concerns(&subject.user_id);
    Ok(subject)
}

/// Streams all parts of a person into the sink, in constant memory.
async fn stream<S: Sink>(
    connection: &mut Connection,
    subject: &Subject,
    parts: &[Part],
    progress: &Progress,
    sink: &mut S,
) -> Result<()> {
    // Here alone: the trait has a `load` for every type, atomics too.
    use diesel_async::RunQueryDsl;
    let owner = Owner::new(subject);
    let mut counted = Vec::with_capacity(parts.len());
    for part in parts {
        counted.push(count(connection, subject, part).await?);
    }
    progress.done.store(0, Ordering::Relaxed);
    progress.all.store(counted.iter().sum(), Ordering::Relaxed);
    for (part, counted) in parts.iter().zip(counted) {
        sink.begin(part, counted).await?;
        let (mut lines, mut items) = (Vec::with_capacity(CHUNK * 2), 0_u64);
        for statement in part.statements() {
            let query = diesel::sql_query(statement.sql.as_str()).bind::<Int8, _>(subject.id);
            let mut rows = std::pin::pin!(query.load_stream::<Cells>(connection).await?);
            while let Some(row) = rows.try_next().await? {
                if items > 0 {
                    lines.extend_from_slice(b",\n");
                }
                statement.write(&row, &owner, &mut lines)?;
                items = items.saturating_add(1);
                if lines.len() >= CHUNK {
                    sink.items(std::mem::replace(&mut lines, Vec::with_capacity(CHUNK * 2))).await?;
                }
                progress.done.fetch_add(1, Ordering::Relaxed);
            }
        }
        if items != counted {
            return Err(Error::internal(format!(
                "{}: {counted} items were counted, {items} read",
                part.name
            )));
        }
        if !lines.is_empty() {
            sink.items(lines).await?;
        }
    }
    Ok(())
}

async fn count(connection: &mut Connection, subject: &Subject, part: &Part) -> Result<u64> {
    use diesel_async::RunQueryDsl;
    let mut items = 0_u64;
    for statement in part.statements() {
        let query = diesel::sql_query(statement.count.as_str()).bind::<Int8, _>(subject.id);
        let counted: Items = query.get_result(connection).await?;
        items = items.saturating_add(u64::try_from(counted.items).unwrap_or_default());
    }
    Ok(items)
}

/// Enters the export in the log, and with the request that it answers, before anybody gets it. Somebody who was erased meanwhile
/// is not found: what was read is thrown away.
async fn enter(records: &Records, by: &By, asked: &Export, exported: &Subject) -> Result<()> {
    let person = (&asked.user_id, Take::Share);
    let entered = records
        .write_known_taking(by, person, &async |tx: &mut Connection, subject: &Subject| {
            by.about("subject", SUBJECT);
            if subject.id != exported.id {
                return Err(GONE);
            }
            if let Some(request_id) = &asked.request_id {
                attach(tx, request_id, subject.id, Done { method: by.method, id: None }).await?;
            }
            Ok(())
        })
        .await?;
    entered.ok_or(GONE)
}
