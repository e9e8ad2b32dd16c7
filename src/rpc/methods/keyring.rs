//! `keyring.*`.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{About, Methods, error};
use crate::clock::Timestamp;
use crate::config::Period;
use crate::error::Result;
use crate::jobs::JobRun;
use crate::keyring::{self, Daemon};
use crate::rpc::call::Call;
use crate::rpc::params::None;

/// Without `wait`, an answer comes within this.
const WAIT: Duration = Duration::from_secs(20);

/// What `keyring.status` answers.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct Status {
    /// The key-encryption key that keyring.rotate re-wraps under: the first of keyring.key_files.
    active: Option<String>,
    /// Each key-encryption key that is in use or that some daemon has.
    keks: Vec<KekReport>,
    /// The daemons that live.
    daemons: Vec<Daemon>,
    /// Those of them that keyring.rotate would wait for, as they do not have the active key.
    waiting_for: Vec<String>,
    /// The rotation that is going on, else the one that ended last.
    rotation: Option<JobRun>,
}

/// A key-encryption key.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
struct KekReport {
    /// Its id, as its file says in the first line.
    kek_id: String,
    /// The file of this daemon that holds it; null where it has none.
    file: Option<String>,
    /// How many data keys it wraps. While there are any it cannot be taken away.
    keys: i64,
    /// How many parts of the keyring's backup it opens. While there are any it cannot be taken away either.
    shards: i64,
    /// When the oldest of its data keys was made.
    oldest: Option<Timestamp>,
    /// The daemons that have it.
    listed_by: Vec<String>,
}

/// Parameters of `keyring.rotate`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Rotate {
    /// How long to wait for the end, as in "20s", which is the default; what takes longer goes on.
    wait: Option<Period>,
}

pub(super) fn add(methods: &mut Methods) {
    methods.add(
        About {
            errors: &[error::FORBIDDEN, error::OVERLOADED, error::UNAVAILABLE],
            waits: true,
            ..About::entered(
                "keyring.status",
                "How many data keys each key-encryption key wraps, and which daemons have it. No key is ever shown.",
                (
                    "{}",
                    r#"{"active":"6c1b9f0d2a7e4835","keks":[{"kek_id":"6c1b9f0d2a7e4835","file":"/etc/sidekeep/keys/kek","keys":2,"shards":3,"oldest":"2026-11-20T19:55:00.000000Z","listed_by":["app-1 812 019aa2e0-5a50-7c31-8f0e-0d5b1c1f7a11"]}],"daemons":[{"daemon":"app-1 812 019aa2e0-5a50-7c31-8f0e-0d5b1c1f7a11","host":"app-1","version":"0.1.0","kek_ids":["6c1b9f0d2a7e4835"],"wraps_under":"6c1b9f0d2a7e4835","started_at":"2026-11-20T19:55:00.000000Z","seen_at":"2026-11-20T19:55:03.000000Z"}],"waiting_for":[],"rotation":{"run":"019aa2e0-5a50-7c31-8f0e-0d5b1c1f7a11","name":"keyring.rotate","dry_run":false,"state":"ok","due_at":"2026-11-20T19:55:00.000000Z","started_at":"2026-11-20T19:55:00.000000Z","finished_at":"2026-11-20T19:55:00.514005Z","counts":{"left":0,"rewrapped":1042},"error":null}}"#,
                ),
            )
        },
        |call, _: None| async move { status(&call).await },
    );
    methods.add(
        About {
            errors: &[
                error::CONFLICT,
                error::FORBIDDEN,
                error::OVERLOADED,
                error::UNAVAILABLE,
                error::UNKNOWN_OUTCOME,
            ],
            writes: true,
            ..About::entered(
                "keyring.rotate",
                "Re-wraps every data key under the first of keyring.key_files, while calls go on. Answers when that is done, or after `wait` with the run to follow in job.history.",
                (
                    r#"{"wait":"5s"}"#,
                    r#"{"run":"019aa2e0-5a50-7c31-8f0e-0d5b1c1f7a11","name":"keyring.rotate","dry_run":false,"state":"ok","due_at":"2026-11-20T19:55:00.000000Z","started_at":"2026-11-20T19:55:00.000000Z","finished_at":"2026-11-20T19:55:00.514005Z","counts":{"left":0,"rewrapped":1042},"error":null}"#,
                ),
            )
        },
        |call, asked: Rotate| async move {
            let wait = asked.wait.map_or(WAIT, Period::duration);
            let run = call.calls.jobs().rotate(wait, &call.by.deadline).await?;
            call.by.about("job", run.name.as_str());
            Ok(run)
        },
    );
}

async fn status(call: &Call) -> Result<Status> {
    let (store, keyring, deadline) =
        (call.app.records.store(), call.app.records.keyring(), &call.by.deadline);
    let daemons = keyring.look(store, deadline).await?;
    let keks = keyring.keks();
    let active = keks.ids().into_iter().next();
    let mut reports: BTreeMap<String, KekReport> = BTreeMap::new();
    for kek in keks.iter() {
        reports.entry(kek.id().to_owned()).or_default().file = Some(kek.file().display().to_string());
    }
    for daemon in daemons.iter() {
        for id in &daemon.kek_ids {
            reports.entry(id.clone()).or_default().listed_by.push(daemon.daemon.clone());
        }
    }
    for usage in keyring::usage(store, deadline).await? {
        let report = reports.entry(usage.kek_id).or_default();
        (report.keys, report.oldest) = (usage.keys, Some(usage.oldest.into()));
    }
    if call.app.config.keyring.backup.is_some() {
        for needed in crate::backup::keyring::needed(store, deadline).await? {
            reports.entry(needed.kek_id).or_default().shards = needed.shards;
        }
    }
    let lacks = |daemon: &&Daemon| !daemon.kek_ids.iter().any(|id| Some(id) == active.as_ref());
    Ok(Status {
        waiting_for: daemons.iter().filter(lacks).map(|daemon| daemon.daemon.clone()).collect(),
        keks: reports.into_iter().map(|(kek_id, report)| KekReport { kek_id, ..report }).collect(),
        daemons: daemons.to_vec(),
        rotation: call.calls.jobs().rotation(deadline).await?,
        active,
    })
}
