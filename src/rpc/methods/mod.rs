//! The table of methods: one entry has all that is true of a method, for the call path and for `rpc.discover`.

mod audit;
mod backup;
mod consent;
mod conversation;
mod gauges;
mod job;
mod keyring;
mod log_level;
mod preferences;
mod profile;
mod request;
mod rpc;
mod subject;
mod subject_holds;
mod subject_reads;
mod system;

pub(super) use system::Found;

use std::collections::HashMap;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::call::Call;
use super::error::{self, Kind};
use super::figures::Figures;
use super::params::{self, Context};
use crate::error::{Error, Result};

/// Makes the call from its context, after the context was checked.
type Begin<'a> = &'a (dyn Fn(Context) -> Result<Call> + Send + Sync);

type Handler = Box<
    dyn for<'a> Fn(Option<&'a RawValue>, Begin<'a>) -> BoxFuture<'static, Result<Box<RawValue>>>
        + Send
        + Sync,
>;

/// What a method does and needs.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// `noun.verb`.
    pub name: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// What it answers beside the errors that every method has.
    pub errors: &'static [Kind],
    /// Parameters and result, as JSON.
    pub example: (&'static str, &'static str),
    /// Whether it reads or changes personal data.
    pub personal: bool,
    /// Whether it needs PostgreSQL.
    pub stored: bool,
    /// Whether it is entered in the audit log by itself.
    pub entered: bool,
    /// Whether it waits for the writers of the log and for nothing else.
    pub queued: bool,
    /// Whether it spends its time waiting for something to happen, and so takes nobody's place at the database.
    pub waits: bool,
    /// Whether it changes something.
    pub writes: bool,
    /// Whether it is answered however busy the daemon is.
    pub uncounted: bool,
}

impl About {
    /// Of a method that reads personal data.
    const fn read(name: &'static str, summary: &'static str, example: (&'static str, &'static str)) -> Self {
        Self {
            name,
            summary,
            errors: READ,
            example,
            personal: true,
            stored: true,
            entered: true,
            queued: false,
            waits: false,
            writes: false,
            uncounted: false,
        }
    }

    /// Of a method that changes personal data.
    const fn write(name: &'static str, summary: &'static str, example: (&'static str, &'static str)) -> Self {
        Self {
            name,
            summary,
            errors: WRITE,
            example,
            personal: true,
            stored: true,
            entered: true,
            queued: false,
            waits: false,
            writes: true,
            uncounted: false,
        }
    }

    /// Of a method that deletes personal data, which a legal hold forbids.
    const fn deletes(
        name: &'static str,
        summary: &'static str,
        example: (&'static str, &'static str),
    ) -> Self {
        Self { errors: DELETES, ..Self::write(name, summary, example) }
    }

    /// Of a method of the log.
    const fn log(name: &'static str, summary: &'static str, example: (&'static str, &'static str)) -> Self {
        Self {
            name,
            summary,
            errors: READ,
            example,
            personal: false,
            stored: true,
            entered: false,
            queued: false,
            waits: false,
            writes: false,
            uncounted: false,
        }
    }

    /// Of a method that may extend the heads log.
    const fn extends(
        name: &'static str,
        summary: &'static str,
        example: (&'static str, &'static str),
    ) -> Self {
        Self { errors: WRITE, writes: true, ..Self::log(name, summary, example) }
    }

    /// Of a method that waits for the writers of the log.
    const fn queued(
        name: &'static str,
        summary: &'static str,
        example: (&'static str, &'static str),
    ) -> Self {
        Self { queued: true, ..Self::extends(name, summary, example) }
    }

    /// Of a method of the log that is entered in the log itself.
    const fn entered(
        name: &'static str,
        summary: &'static str,
        example: (&'static str, &'static str),
    ) -> Self {
        let about = Self::log(name, summary, example);
        Self { errors: READ, entered: true, ..about }
    }

    /// Of a method about the daemon itself.
    const fn own(name: &'static str, summary: &'static str, example: (&'static str, &'static str)) -> Self {
        Self {
            name,
            summary,
            errors: &[error::FORBIDDEN],
            example,
            personal: false,
            stored: false,
            entered: false,
            queued: false,
            waits: false,
            writes: false,
            uncounted: true,
        }
    }
}

const READ: &[Kind] = &[
    error::NOT_FOUND,
    error::FORBIDDEN,
    error::RESTRICTED,
    error::TOO_LARGE,
    error::OVERLOADED,
    error::UNAVAILABLE,
    error::TAMPERED,
];
const WRITE: &[Kind] = &[
    error::NOT_FOUND,
    error::CONFLICT,
    error::FORBIDDEN,
    error::RESTRICTED,
    error::TOO_LARGE,
    error::OVERLOADED,
    error::UNAVAILABLE,
    error::TAMPERED,
    error::UNKNOWN_OUTCOME,
];
const DELETES: &[Kind] = &[
    error::NOT_FOUND,
    error::CONFLICT,
    error::FORBIDDEN,
    error::HELD,
    error::RESTRICTED,
    error::TOO_LARGE,
    error::OVERLOADED,
    error::UNAVAILABLE,
    error::TAMPERED,
    error::UNKNOWN_OUTCOME,
];

/// A method.
pub struct Entry {
    /// `noun.verb`.
    pub name: &'static str,
    /// See [`About::personal`].
    pub personal: bool,
    /// See [`About::stored`].
    pub stored: bool,
    /// See [`About::entered`].
    pub entered: bool,
    /// See [`About::queued`].
    pub queued: bool,
    /// See [`About::waits`].
    pub waits: bool,
    /// See [`About::writes`].
    pub writes: bool,
    /// See [`About::uncounted`].
    pub uncounted: bool,
    /// Reads the parameters and does the work.
    pub handler: Handler,
    /// What is counted of its calls.
    pub(super) figures: Figures,
    /// What `rpc.discover` says of it.
    pub about: About,
    /// The schema of its parameters, and of its result.
    pub schemas: fn(&mut SchemaGenerator) -> (Schema, Schema),
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.about.fmt(f)
    }
}

/// All methods.
#[derive(Debug, Default)]
pub struct Methods {
    entries: Vec<Entry>,
    places: HashMap<&'static str, usize>,
}

impl Methods {
    /// Every method of this daemon.
    pub fn all() -> Self {
        let mut methods = Self::default();
        profile::add(&mut methods);
        preferences::add(&mut methods);
        consent::add(&mut methods);
        conversation::add(&mut methods);
        audit::add(&mut methods);
        subject::add(&mut methods);
        subject_holds::add(&mut methods);
        subject_reads::add(&mut methods);
        request::add(&mut methods);
        job::add(&mut methods);
        backup::add(&mut methods);
        keyring::add(&mut methods);
        rpc::add(&mut methods);
        system::add(&mut methods);
        log_level::add(&mut methods);
        methods
    }

    fn add<P, R, F>(&mut self, about: About, handler: fn(Call, P) -> F)
    where
        P: DeserializeOwned + JsonSchema + Send + 'static,
        R: Serialize + JsonSchema,
        F: Future<Output = Result<R>> + Send + 'static,
    {
        let handler: Handler = Box::new(move |params, begin| {
            let begun = params::read::<P>(params).and_then(|(context, params)| Ok((begin(context)?, params)));
            match begun {
                Err(error) => Box::pin(std::future::ready(Err(error))),
                // Mapped and not awaited: an async block would hold the work twice, once before it is polled and once while it is.
                Ok((call, params)) => Box::pin(
                    handler(call, params)
                        .map(|result| serde_json::value::to_raw_value(&result?).map_err(Error::internal)),
                ),
            }
        });
        self.places.insert(about.name, self.entries.len());
        self.entries.push(Entry {
            name: about.name,
            personal: about.personal,
            stored: about.stored,
            entered: about.entered,
            queued: about.queued,
            waits: about.waits,
            writes: about.writes,
            uncounted: about.uncounted,
            handler,
            figures: Figures::default(),
            about,
            schemas: |generator| (P::json_schema(generator), generator.subschema_for::<R>()),
        });
    }

    /// A method by its name.
    pub fn find(&self, name: &str) -> Option<&Entry> {
        self.places.get(name).and_then(|place| self.entries.get(*place))
    }

    /// The name most like this one, if any is.
    pub fn nearest(&self, name: &str) -> Option<&'static str> {
        let likeness = |known: &str| strsim::jaro_winkler(known, name);
        self.names()
            .filter(|_| name.len() <= 64)
            .map(|known| (likeness(known), known))
            .filter(|(likeness, _)| *likeness > 0.8)
            .max_by(|(a, _), (b, _)| a.total_cmp(b))
            .map(|(_, known)| known)
    }

    /// The names, in the table's order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.entries.iter().map(|entry| entry.name)
    }

    /// All entries.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }
}
