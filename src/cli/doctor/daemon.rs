//! Checks of the socket and of the daemon behind it, if there is one.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::Deserialize;

use super::check::Finding;
use super::patient::Patient;
use crate::cli::client::{self, Answer, Unanswered};
use crate::cli::socket::no_params;

/// How long it may take: it answers at once, however busy it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// The socket's file.
pub(super) fn socket(patient: &Patient) -> Finding {
    let settings = &patient.config().socket;
    let path = &settings.path;
    let shown = path.display();
    let folder = path.parent().map(|folder| (folder, std::fs::metadata(folder)));
    if let Some((folder, Ok(meta))) = &folder
        && meta.mode() & 0o002 != 0
        && meta.mode() & 0o1000 == 0
    {
        return Finding::warn(
            format!("{}: everybody may put another socket in the place of the daemon's", folder.display()),
            format!("chmod o-w {}", folder.display()),
        );
    }
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Finding::skipped(format!("{shown} is not there; the daemon, or systemd, makes it"));
        }
        Err(error) => return Finding::skipped(format!("{shown} cannot be looked at: {error}")),
    };
    if !meta.file_type().is_socket() {
        return Finding::fail(
            format!("{shown} is there and is no socket"),
            "move it away, or set socket.path to another path",
        );
    }
    let mode = meta.mode() & 0o777;
    if mode & 0o007 & !settings.mode.0 != 0 {
        return Finding::warn(
            format!("{shown} has the mode {mode:04o}, and socket.mode says {:04o}", settings.mode.0),
            "set SocketMode= of the socket unit, or start the daemon again",
        );
    }
    Finding::ok(format!("{shown}, mode {mode:04o}, group {}", meta.gid()))
}

#[derive(Deserialize)]
struct Health {
    status: String,
    checks: BTreeMap<String, Part>,
}

#[derive(Deserialize)]
struct Part {
    status: String,
    message: Option<String>,
}

/// Whether a daemon answers, and what it says of itself.
pub(super) fn health(patient: &Patient) -> Finding {
    const START: &str =
        "start it: systemctl start sidekeep (its log: journalctl -u sidekeep), or `sidekeep serve`";
    let path = &patient.config().socket.path;
    let stale = || {
        let refused = UnixStream::connect(path)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
        refused && path.exists()
    };
    let answer = match client::call(path, "system.health", &no_params(), PATIENCE) {
        Ok(Answer::Result(result)) => serde_json::from_str::<Health>(result.get()),
        Ok(Answer::Error(refusal)) => {
            return Finding::ok(format!("it answers, and lets this user not ask how it is: {refusal}"));
        }
        Err(Unanswered::Unreached { .. }) if stale() => {
            return Finding::fail(
                format!("nobody listens at {}: a daemon died there, and did not come back", path.display()),
                START,
            );
        }
        Err(Unanswered::Unreached { .. }) if !path.exists() => {
            return Finding::warn(format!("no daemon runs: there is no {}", path.display()), START);
        }
        Err(error @ Unanswered::Unreached { .. }) => return Finding::skipped(error.to_string()),
        Err(Unanswered::Unknown(why)) => {
            return Finding::fail(
                format!("a daemon listens, and does not answer: {why}"),
                "is it frozen (systemctl status sidekeep)? Its watchdog starts it again; else: systemctl restart sidekeep",
            );
        }
    };
    let Ok(health) = answer else {
        return Finding::fail(
            "what answers is not sidekeep",
            "who listens there? Set socket.path to another path",
        );
    };
    let ill = health.checks.iter().filter(|(_, part)| part.status != "ok");
    let told: Vec<_> = ill
        .map(|(name, part)| format!("{name}: {}", part.message.as_deref().unwrap_or(&part.status)))
        .collect();
    let why = told.join("\n");
    match health.status.as_str() {
        "ok" => Finding::ok("it answers, and is well"),
        "degraded" => Finding::warn(
            format!("it is degraded\n{why}"),
            "what each of them says; `sidekeep status` has more",
        ),
        _ => Finding::fail(
            format!("it is unavailable\n{why}"),
            "what each of them says; `sidekeep status` has more",
        ),
    }
}
