//! `audit.*`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{About, Methods, error};
use crate::audit::entry::Append;
use crate::audit::prove::Between;
use crate::audit::read::{Query, Tail, Which, in_order};
use crate::audit::verify::{Range, Report};
use crate::audit::{APPEND_MANY, Receipt};
use crate::clock::Timestamp;
use crate::config::Period;
use crate::error::{Error, Result};
use crate::jobs::{Answered, JobRun};
use crate::rpc::call::Call;
use crate::rpc::params::None;

/// Parameters of `audit.append_many`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Many {
    /// At most 1000, appended all or none.
    #[schemars(length(min = 1, max = APPEND_MANY))]
    entries: Vec<Append>,
}

/// Where an entry is in the log.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct Appended {
    /// Its id.
    id: String,
    /// Its stream.
    stream: i32,
    /// Its position in the stream, from 0.
    position: i64,
    /// When it was appended, by PostgreSQL's clock.
    recorded_at: Timestamp,
}

/// Where the entries are in the log.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct AppendedMany {
    /// In the order in which they were given.
    items: Vec<Appended>,
}

impl From<Receipt> for Appended {
    fn from(receipt: Receipt) -> Self {
        let Receipt { id, stream, position, recorded_at } = receipt;
        Self { id, stream, position, recorded_at }
    }
}

const APPENDED: &str = r#"{"id":"e-1","stream":0,"position":7,"recorded_at":"2026-11-20T19:55:00.000000Z"}"#;

macro_rules! entry {
    () => {
        r#"{"id":"e-1","stream":0,"position":7,"recorded_at":"2026-11-20T19:55:00.000000Z","action":"invoice.read","user_id":"user:bob","subject_user_id":"user:alice","resource_type":"invoice","resource_id":"inv-1","outcome":"success","occurred_at":null,"ip_address":"203.0.113.7","user_agent":null,"labels":{"region":"eu"},"metadata":{"fields":["total"]},"leaf_hash":"6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d","erased":[]}"#
    };
}

pub(super) fn add(methods: &mut Methods) {
    add_appends(methods);
    add_proofs(methods);
    methods.add(
        About {
            personal: true,
            ..About::entered(
                "audit.get",
                "One entry, by id or by stream and position.",
                (r#"{"id":"e-1"}"#, entry!()),
            )
        },
        |call, which: Which| async move { call.app.records.log().get(&call.by, &which).await },
    );
    methods.add(
        About {
            personal: true,
            ..About::entered(
                "audit.query",
                "A page of entries, the newest first.",
                (
                    r#"{"user_id":"user:bob","action":"invoice.*","labels":{"region":"eu"},"limit":10}"#,
                    concat!(r#"{"items":["#, entry!(), r#"],"next_cursor":null}"#),
                ),
            )
        },
        |call, query: Query| async move {
            let max = call.app.config.limits.max_answer_bytes.bytes();
            call.app.records.log().query(&call.by, &query, max).await
        },
    );
    methods.add(
        About {
            personal: true,
            waits: true,
            ..About::entered(
                "audit.tail",
                "What comes next in each stream; waits a while where there is nothing. Each position is given once.",
                (
                    r#"{"action":"invoice.*","limit":10,"wait":"1s"}"#,
                    concat!(r#"{"items":["#, entry!(), r#"],"after":{"0":7}}"#),
                ),
            )
        },
        |call, tail: Tail| async move {
            let (log, max) = (call.app.records.log(), call.app.config.limits.max_answer_bytes.bytes());
            log.begin_tail(&call.by, &tail).await?;
            call.calls.enter_begun(&call.by).await?;
            log.tail(&call.by, &tail, max).await
        },
    );
}

/// What `audit.checkpoint` answers.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct Checkpoint {
    /// The newest signed note (C2SP tlog-checkpoint).
    checkpoint: String,
}

fn add_appends(methods: &mut Methods) {
    methods.add(
        About::queued(
            "audit.append",
            "Appends an entry to the audit log; the answer comes after the commit.",
            (
                r#"{"id":"e-1","action":"invoice.read","user_id":"user:bob","subject_user_id":"user:alice","resource_type":"invoice","resource_id":"inv-1","outcome":"success","ip_address":"203.0.113.7","labels":{"region":"eu"},"metadata":{"fields":["total"]}}"#,
                APPENDED,
            ),
        ),
        append,
    );
    methods.add(
        About::queued(
            "audit.append_many",
            "Appends up to 1000 entries, all or none, one after another.",
            (
                r#"{"entries":[{"id":"e-1","action":"invoice.read"}]}"#,
                concat!(
                    r#"{"items":["#,
                    r#"{"id":"e-1","stream":0,"position":7,"recorded_at":"2026-11-20T19:55:00.000000Z"}"#,
                    "]}"
                ),
            ),
        ),
        |call, many: Many| async move { append_many(&call, many).await },
    );
}

fn add_proofs(methods: &mut Methods) {
    methods.add(
        About::extends("audit.checkpoint", "The newest signed note over the heads log; makes the first.", ("{}", r#"{"checkpoint":"sidekeep/test\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n— sidekeep/test AAAA\n"}"#)),
        |call, _: None| async move {
            Ok(Checkpoint { checkpoint: call.app.records.log().checkpoint(&call.by.deadline).await? })
        },
    );
    methods.add(
        About::extends(
            "audit.prove",
            "Proves that an entry is in the log under a signed checkpoint; makes one first for an entry younger than the last.",
            (
                r#"{"id":"e-1"}"#,
                r#"{"canonical":"{}","stream":0,"position":0,"size":1,"path":[],"head":"{}","head_index":0,"heads_size":1,"heads_path":[],"checkpoint":"sidekeep/test\n1\n"}"#,
            ),
        ),
        |call, which: Which| async move { call.app.records.log().prove(&call.by, &which).await },
    );
    methods.add(
        About::log(
            "audit.consistency",
            "Proves that the heads log or a stream was only ever appended to (RFC 6962 §2.1.2).",
            (r#"{"from_size":1}"#, r#"{"path":[]}"#),
        ),
        |call, between: Between| async move {
            call.app.records.log().consistency(&between, &call.by.deadline).await
        },
    );
    methods.add(
        About {
            errors: &[error::CONFLICT, error::FORBIDDEN, error::OVERLOADED, error::UNAVAILABLE],
            waits: true,
            ..About::entered(
                "audit.verify",
                "Verifies the log: leaves from their columns, roots at every head, seals and signatures, persons and consents. \
                 Tells all breaks. Answers when it is done, or after `wait` with the run to follow in job.history.",
                (
                    "{}",
                    r#"{"verdict":"intact","entries":12,"erased_subjects":0,"gaps":0,"dropped":0,"breaks":[],"more_breaks":0,"not_compared":null}"#,
                ),
            )
        },
        |call, asked: Verify| async move { verify(&call, asked).await },
    );
}

/// Without `wait`, an answer comes within this.
const WAIT: Duration = Duration::from_secs(20);

/// Parameters of `audit.verify`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Verify {
    /// Only what was appended at this time or later, and what leads from it to the present heads.
    from: Option<Timestamp>,
    /// Only what was appended before this time.
    to: Option<Timestamp>,
    /// How long to wait for the end, as in "20s", which is the default; what takes longer goes on.
    wait: Option<Period>,
}

/// What `audit.verify` answers.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
enum Verified {
    /// It is done.
    Done(#[schemars(with = "Report")] serde_json::Value),
    /// It goes on; `counts` of the run will be the report.
    Running(JobRun),
}

async fn verify(call: &Call, asked: Verify) -> Result<Verified> {
    let wait = asked.wait.map_or(WAIT, Period::duration);
    in_order(asked.from, asked.to)?;
    let range = Range { from: asked.from, to: asked.to };
    let range = serde_json::to_value(range).map_err(Error::internal)?;
    match call.calls.jobs().ask("audit.verify", &range, wait, &call.by.deadline).await? {
        Answered::Done(report) => Ok(Verified::Done(report)),
        Answered::Running(run) => Ok(Verified::Running(run)),
    }
}

/// Looks at what is given before anything is waited for, so that a call that waits has no room for it twice.
fn append(call: Call, given: Append) -> impl Future<Output = Result<Appended>> + Send {
    let given = check_size(&call, "metadata", &given).map(|()| given);
    async move { Ok(call.app.records.log().append(&call.by, given?).await?.into()) }
}

async fn append_many(call: &Call, many: Many) -> Result<AppendedMany> {
    match many.entries.len() {
        0 => return Err(Error::invalid("entries", "must not be empty")),
        count if count > APPEND_MANY => {
            return Err(Error::invalid("entries", format!("must be at most {APPEND_MANY}, and are {count}")));
        }
        _ => {}
    }
    for (index, given) in many.entries.iter().enumerate() {
        check_size(call, &format!("entries[{index}].metadata"), given)?;
    }
    let receipts = call.app.records.log().append_many(&call.by, many.entries).await?;
    Ok(AppendedMany { items: receipts.into_iter().map(Appended::from).collect() })
}

fn check_size(call: &Call, what: &str, given: &Append) -> Result<()> {
    let max = call.app.config.limits.max_record_bytes.bytes();
    match &given.metadata {
        Some(metadata) if u64::try_from(metadata.as_str().len()).unwrap_or(u64::MAX) > max => {
            Err(Error::too_large(what, max))
        }
        _ => Ok(()),
    }
}
