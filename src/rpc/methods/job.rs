//! `job.*`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{About, Methods, error};
use crate::config::Period;
use crate::error::Result;
use crate::jobs::{History, JobName, JobRun, Listed};
use crate::rpc::call::Call;
use crate::rpc::params::None;

/// Without `wait`, an answer comes within this.
const WAIT: Duration = Duration::from_secs(20);

/// Parameters of `job.run`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Run {
    /// The job.
    #[schemars(with = "JobName")]
    name: String,
    /// Change nothing, and only count.
    #[serde(default, deserialize_with = "crate::values::or_default")]
    #[schemars(with = "Option<bool>")]
    dry_run: bool,
    /// How long to wait for the end, as in "20s", which is the default; what takes longer goes on.
    wait: Option<Period>,
}

/// What `job.list` answers.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct List {
    /// Every job.
    items: Vec<Listed>,
}

macro_rules! job_run {
    () => {
        r#"{"run":"019aa2e0-5a50-7c31-8f0e-0d5b1c1f7a11","name":"partitions","dry_run":false,"state":"ok","due_at":"2026-11-20T04:00:00.000000Z","started_at":"2026-11-20T04:00:00.003112Z","finished_at":"2026-11-20T04:00:00.014005Z","counts":{"months":1},"error":null}"#
    };
}

pub(super) fn add(methods: &mut Methods) {
    methods.add(
        About {
            errors: &[error::FORBIDDEN, error::OVERLOADED, error::UNAVAILABLE],
            ..About::log(
                "job.list",
                "Every job: when it is due, and what ran last.",
                (
                    "{}",
                    concat!(
                        r#"{"items":[{"name":"archive","schedule":"0 4 * * *","time_zone":"UTC","enabled":false,"missing_key":"archive.destination","next_due":null,"last_run":null},{"name":"backup","schedule":"0 2 * * *","time_zone":"UTC","enabled":true,"missing_key":null,"next_due":"2026-11-21T02:00:00.000000Z","last_run":null},{"name":"checkpoint","schedule":"* * * * *","time_zone":"UTC","enabled":true,"missing_key":null,"next_due":"2026-11-20T19:56:00.000000Z","last_run":null},{"name":"drill","schedule":"0 5 * * 0","time_zone":"UTC","enabled":true,"missing_key":null,"next_due":"2026-11-22T05:00:00.000000Z","last_run":null},{"name":"keyring_backup","schedule":"* * * * *","time_zone":"UTC","enabled":true,"missing_key":null,"next_due":"2026-11-20T19:56:00.000000Z","last_run":null},{"name":"partitions","schedule":"0 4 * * *","time_zone":"UTC","enabled":true,"missing_key":null,"next_due":"2026-11-21T04:00:00.000000Z","last_run":"#,
                        job_run!(),
                        r#"},{"name":"retention","schedule":"0 3 * * *","time_zone":"UTC","enabled":true,"missing_key":null,"next_due":"2026-11-21T03:00:00.000000Z","last_run":null},{"name":"verify","schedule":"0 * * * *","time_zone":"UTC","enabled":true,"missing_key":null,"next_due":"2026-11-20T20:00:00.000000Z","last_run":null}]}"#
                    ),
                ),
            )
        },
        |call, _: None| async move {
            Ok(List { items: call.calls.jobs().list(&call.by.deadline).await? })
        },
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
            waits: true,
            ..About::entered(
                "job.run",
                "Runs a job now. Answers when it has ended, or after `wait` with the run to follow in job.history.",
                (r#"{"name":"partitions","wait":"5s"}"#, job_run!()),
            )
        },
        |call, asked: Run| async move { run(&call, &asked).await },
    );
    methods.add(
        About {
            errors: &[error::FORBIDDEN, error::OVERLOADED, error::UNAVAILABLE],
            ..About::log(
                "job.history",
                "A page of runs, the newest first.",
                (
                    r#"{"name":"partitions","limit":1}"#,
                    concat!(r#"{"items":["#, job_run!(), r#"],"next_cursor":null}"#),
                ),
            )
        },
        |call, asked: History| async move {
            let max = call.app.config.limits.max_answer_bytes.bytes();
            call.calls.jobs().history(&asked, max, &call.by.deadline).await
        },
    );
}

async fn run(call: &Call, asked: &Run) -> Result<JobRun> {
    let wait = asked.wait.map_or(WAIT, Period::duration);
    let run = call.calls.jobs().run_now(&asked.name, asked.dry_run, wait, &call.by.deadline).await?;
    call.by.about("job", run.name.as_str());
    Ok(run)
}
