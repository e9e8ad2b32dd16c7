//! A program of PostgreSQL's as a child: ended with whoever waits for it, and asked for one line of what it complains of.

use std::process::Stdio;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

use crate::error::{Error, Result};
use crate::store::Deadline;

/// How much of its complaints is kept.
const COMPLAINTS: u64 = 64 << 10;
/// The longest complaint that is told.
const TOLD: usize = 300;

/// Runs a program to its end; one that the deadline comes before has ended too on return.
///
/// # Errors
/// Says how it ended otherwise, and its first complaint. The outer error is that it could not be run, or not in time.
pub(super) async fn run(
    program: &'static str,
    command: std::process::Command,
    deadline: &Deadline,
) -> Result<Result<(), String>> {
    let mut command = Command::from(command);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let started = |error: std::io::Error| Error::unavailable(format!("{program} cannot be started: {error}"));
    let mut child = command.spawn().map_err(started)?;
    let Some(errors) = child.stderr.take() else { return Err(Error::internal("a child without its pipe")) };
    let ended = deadline.run(async { (complaint(errors).await, child.wait().await) }).await;
    let Ok((said, status)) = ended else {
        let _ = child.kill().await;
        return Err(Error::unavailable(format!("{program} was not done in time, or this daemon ends")));
    };
    let status = status.map_err(Error::internal)?;
    Ok(if status.success() { Ok(()) } else { Err(told(program, status, &said)) })
}

/// How a program has failed.
pub(super) fn told(program: &str, status: std::process::ExitStatus, complaint: &str) -> String {
    let colon = if complaint.is_empty() { "" } else { ": " };
    format!("{program} did not do it ({status}){colon}{complaint}")
}

/// The first thing that it complains of. What follows may quote rows, and is told nowhere.
pub(super) async fn complaint(mut errors: impl AsyncRead + Unpin) -> String {
    let mut said = Vec::new();
    // Also what is not kept is read, so that it is not kept waiting.
    let _ = (&mut errors).take(COMPLAINTS).read_to_end(&mut said).await;
    let _ = tokio::io::copy(&mut errors, &mut tokio::io::sink()).await;
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().find_map(|line| line.split_once("error: ").map(|(_, complaint)| complaint));
    line.unwrap_or_default().chars().filter(|c| !c.is_control()).take(TOLD).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;
    use std::time::Duration;

    use tokio_util::sync::CancellationToken;

    use crate::store::Deadline;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn one_that_is_over_its_deadline_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let script = format!("echo $$ > {}; exec sleep 600", file.display());
        let cut = CancellationToken::new();
        let deadline = Deadline::after(Duration::from_secs(60), cut.clone());
        let begun = async {
            while !std::fs::read_to_string(&file).is_ok_and(|pid| pid.ends_with('\n')) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            cut.cancel();
        };
        let (late, ()) = tokio::join!(super::run("sleep", shell(&script), &deadline), begun);
        let late = late.unwrap_err();
        assert!(late.to_string().contains("was not done in time"), "{late}");
        let pid = std::fs::read_to_string(file).unwrap();
        assert!(!Path::new(&format!("/proc/{}", pid.trim())).exists());
    }

    #[tokio::test]
    async fn its_first_complaint_is_told_alone() {
        let deadline = Deadline::after(Duration::from_secs(60), CancellationToken::new());
        let script =
            "echo 'x: error: no room' >&2; echo 'x: detail: Failing row contains (a secret)' >&2; exit 3";
        let ended = super::run("x", shell(script), &deadline).await.unwrap();
        assert_eq!(ended, Err("x did not do it (exit status: 3): no room".to_owned()));
        assert_eq!(super::run("x", shell("exit 0"), &deadline).await.unwrap(), Ok(()));
    }
}
