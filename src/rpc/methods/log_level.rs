//! `system.log_level`: the least that is logged. It is set whatever PostgreSQL does, and entered in the audit log where that can
//! be written, since whoever lowers it may be hiding what comes next.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{About, Methods};
use crate::audit::entry::Outcome;
use crate::config::{AuditAccess, LogLevel, Period};
use crate::error::{Error, Result};
use crate::rpc::call::Call;
use crate::store::Deadline;

/// How long the answer waits for the entry, which may come later.
const PATIENCE: Duration = Duration::from_secs(1);

/// Parameters of `system.log_level`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetLevel {
    /// The least that is to be logged.
    level: LogLevel,
    /// How long, as in "15m"; without it, until the next change.
    #[serde(rename = "for")]
    period: Option<Period>,
}

/// What `system.log_level` answers.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct Level {
    /// The least that is logged now.
    level: LogLevel,
    /// What it was before.
    previous: LogLevel,
}

pub(super) fn add(methods: &mut Methods) {
    methods.add(
        About::own(
            "system.log_level",
            "Sets the least that is logged, perhaps only for a while.",
            (r#"{"level":"debug","for":"15m"}"#, r#"{"level":"debug","previous":"info"}"#),
        ),
        |call, set: SetLevel| async move {
            let level = set_level(&call, &set)?;
            enter(&call, set.level).await;
            Ok(level)
        },
    );
}

fn set_level(call: &Call, set: &SetLevel) -> Result<Level> {
    let previous = call.app.telemetry.level();
    match set.period {
        Option::None => call.app.telemetry.set_level(set.level),
        Some(period) if period.duration().is_zero() => {
            return Err(Error::invalid("for", "must be longer than nothing"));
        }
        Some(period) => {
            let end = call.app.end.clone();
            call.app.telemetry.set_level_for(set.level, period.duration(), &call.app.tracker, end);
        }
    }
    tracing::info!(uid = call.peer.uid, level = ?set.level, ?previous, "the log level was set");
    Ok(Level { level: set.level, previous })
}

/// Enters it in the log, now or when PostgreSQL is back in time.
async fn enter(call: &Call, level: LogLevel) {
    if call.app.config.audit.access == AuditAccess::None || !call.app.serves() {
        return;
    }
    let level = serde_json::to_value(level).ok();
    let level = level.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default();
    call.by.about("log_level", level);
    let (app, by) = (call.app.clone(), call.by.clone());
    let deadline = Deadline::after(call.app.config.limits.call_timeout.duration(), call.app.end.clone());
    let entering = call.app.tracker.spawn(async move {
        if let Err(error) = app.records.log().note(&by, Outcome::Success, &deadline).await {
            tracing::warn!(%error, "that the log level was set is not in the audit log");
        }
    });
    drop(tokio::time::timeout(PATIENCE, entering).await);
}
