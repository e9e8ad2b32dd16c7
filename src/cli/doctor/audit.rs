//! Checks of the log: signed in time, published elsewhere, and with a floor under its retention.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::check::Finding;
use super::patient::Patient;
use crate::clock;
use crate::config::Period;

/// How long over its schedule the signing may be.
const GRACE: i64 = 600;
/// The floor without anybody's confirmation.
const FLOOR: Period = Period::YEAR.times(7);

/// Whether a daemon that lives would have done it.
const LIVING: &str =
    "(SELECT count(*) FROM sidekeep.daemons WHERE seen_at > now() - interval '1 minute') > 0 AS living";

fn period(seconds: f64) -> String {
    humantime::format_duration(Duration::from_secs(
        Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs(),
    ))
    .to_string()
}

#[derive(Deserialize)]
struct Unsigned {
    signed_at: Option<clock::Timestamp>,
    unsigned_seconds: Option<f64>,
    staged_seconds: Option<f64>,
    living: bool,
}

/// Whether what is in the log is under a signed checkpoint, and what was written with changes is in the log.
pub(super) async fn checkpoint(patient: Arc<Patient>) -> Finding {
    let asked = format!(
        "SELECT (SELECT max(at) FROM sidekeep.audit_checkpoints) AS signed_at, {LIVING}, \
            (SELECT extract(epoch FROM clock_timestamp() - min(staged_at)) FROM sidekeep.audit_staged) AS staged_seconds, \
            (SELECT extract(epoch FROM clock_timestamp() - min(l.recorded_at)) FROM sidekeep.audit_streams s, \
                LATERAL (SELECT coalesce(max(h.size), 0) AS size FROM sidekeep.audit_heads h WHERE h.stream = s.stream) h, \
                LATERAL (SELECT e.recorded_at FROM sidekeep.audit_logs e WHERE e.stream = s.stream AND e.position = h.size) l \
             WHERE s.size > h.size) AS unsigned_seconds"
    );
    let found: Unsigned = match patient.one(&asked).await {
        Ok(found) => found,
        Err(finding) => return finding,
    };
    let config = patient.config();
    if config.signing.key_files.is_empty() && config.jobs.enabled {
        return Finding::warn(
            "signing.key_files is empty: this daemon runs the jobs and signs no checkpoint",
            "sidekeep signing generate --out FILE, and name FILE there; or set jobs.enabled = false beside a daemon that signs",
        );
    }
    let late = |why: String| {
        let advice = "is a daemon running that has signing.key_files and runs jobs? See daemon and job.checkpoint, and audit.publication";
        if found.living {
            Finding::fail(why, advice)
        } else {
            Finding::warn(format!("{why}; no daemon lives"), advice)
        }
    };
    let gap = config.jobs.checkpoint.longest_gap(clock::now().utc()).num_seconds().saturating_add(GRACE);
    let is_late = |seconds: &f64| {
        Duration::try_from_secs_f64(*seconds).is_ok_and(|age| age.as_secs() > gap.unsigned_abs())
    };
    if let Some(seconds) = found.staged_seconds.filter(is_late) {
        return late(format!("entries have waited for {} to be taken into the log", period(seconds)));
    }
    if let Some(seconds) = found.unsigned_seconds.filter(is_late) {
        return late(format!("entries of {} ago are under no signed checkpoint", period(seconds)));
    }
    match found.signed_at {
        Some(at) => Finding::ok(format!("signed up to {at}; nothing waits for longer")),
        None => Finding::ok("nothing is signed yet, and nothing waits for long"),
    }
}

#[derive(Deserialize)]
struct Published {
    signed: Option<i64>,
    signed_seconds: Option<f64>,
    published: Option<i64>,
    at: Option<clock::Timestamp>,
}

/// Whether the newest checkpoint is also where whoever can change the database cannot change it.
pub(super) async fn publication(patient: Arc<Patient>) -> Finding {
    let audit = &patient.config().audit;
    let here = match &audit.publish {
        Some(destination) => format!("destination = '{}'", destination.to_string().replace('\'', "''")),
        // A command's name in the database is a digest, and there is but one.
        None if !audit.publish_command.is_empty() => "destination NOT LIKE '%://%'".to_owned(),
        None => {
            return Finding::warn(
                "audit.publish is not set: whoever can change the database can rewrite the log, and nobody sees it",
                "set it to a place that they cannot change, for every daemon that appends",
            );
        }
    };
    let asked = format!(
        "SELECT (SELECT max(size) FROM sidekeep.audit_checkpoints) AS signed, \
            (SELECT extract(epoch FROM clock_timestamp() - max(at)) FROM sidekeep.audit_checkpoints) AS signed_seconds, \
            (SELECT max(size) FROM sidekeep.audit_publications WHERE {here}) AS published, \
            (SELECT max(at) FROM sidekeep.audit_publications WHERE {here}) AS at"
    );
    let found: Published = match patient.one(&asked).await {
        Ok(found) => found,
        Err(finding) => return finding,
    };
    let advice = "see destination.publish, and what `sidekeep status` says of publication; nothing is signed while it cannot be used";
    let is_old = found.signed_seconds.is_some_and(|seconds| seconds > f64::from(600_u16));
    match (found.signed, found.published, found.at) {
        (None, ..) => Finding::ok("nothing is signed yet"),
        (Some(signed), published, _) if is_old && published.is_none_or(|published| published < signed) => {
            Finding::fail("the newest checkpoint is not published there", advice)
        }
        (_, Some(_), Some(at)) => Finding::ok(format!("published last {at}")),
        _ => Finding::ok("the first checkpoint is about to be published"),
    }
}

#[derive(Deserialize)]
struct Floor {
    keep_seconds: Option<i64>,
}

/// Whether the log will be dropped when the configuration says so.
pub(super) async fn floor(patient: Arc<Patient>) -> Finding {
    let found: Floor = match patient
        .one("SELECT (SELECT max(keep_seconds) FROM sidekeep.retention_floor) AS keep_seconds")
        .await
    {
        Ok(found) => found,
        Err(finding) => return finding,
    };
    let period = patient.config().retention.audit_logs;
    let floor =
        found.keep_seconds.and_then(|seconds| u64::try_from(seconds).ok()).map_or(FLOOR, Period::seconds);
    if period < floor {
        return Finding::warn(
            format!(
                "retention.audit_logs is {period}, and no month goes before {floor}: the owner of the tables has confirmed no less"
            ),
            "sidekeep migrate --confirm-retention, as the owner of the tables",
        );
    }
    Finding::ok(format!("months of the log go {period} after their end, which is past the floor of {floor}"))
}
