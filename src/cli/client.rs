//! A small blocking client: one call on the daemon's socket, by a deadline. Needs no runtime, so that a probe starts fast.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// What the daemon answered.
#[derive(Debug)]
pub(super) enum Answer {
    /// The result, as it was sent.
    Result(Box<RawValue>),
    /// An error.
    Error(Refusal),
}

/// An error answer.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Refusal {
    /// JSON-RPC's code.
    pub(super) code: i64,
    /// In words.
    pub(super) message: String,
    /// What the interface says about it.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(super) data: Map<String, Value>,
}

impl Refusal {
    fn said(&self, member: &str) -> Option<&str> {
        self.data.get(member).and_then(Value::as_str)
    }
}

impl std::error::Error for Refusal {}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.said("kind") {
            // Some messages begin with it, as they are told in a job's error, too.
            Some(kind) if self.message.starts_with(&format!("{kind}: ")) => {
                return f.write_str(&self.message);
            }
            Some(kind) => f.write_str(kind)?,
            None => write!(f, "{}", self.code)?,
        }
        if let Some(field) = self.said("field").filter(|field| !self.message.contains(field)) {
            write!(f, ": {field}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    /// Nobody took the connection, so nothing was done.
    #[error("the daemon is not reached at {path}: {why}")]
    Unreached {
        /// The socket.
        path: String,
        /// The system's error, and what to do about it.
        why: String,
    },
    /// The connection stood, so the call may have been done.
    #[error("no answer: {0}; whether the call was done is not known")]
    Unknown(String),
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    result: Option<Box<RawValue>>,
    #[serde(default)]
    error: Option<Refusal>,
}

/// Calls the method with a JSON object of parameters, and waits for the answer for at most that long.
pub(super) fn call(
    path: &Path,
    method: &str,
    params: &RawValue,
    timeout: Duration,
) -> Result<Answer, Unanswered> {
    let deadline = Instant::now() + timeout;
    let mut stream = open(path, timeout)?;
    let method = serde_json::Value::from(method);
    let request = format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":{method},\"params\":{params}}}\n");
    let unknown = |error: std::io::Error| Unanswered::Unknown(describe(&error, timeout));
    stream.set_write_timeout(Some(timeout)).map_err(unknown)?;
    // A daemon that refuses a request before all of it was sent has answered all the same.
    let written = stream.write_all(request.as_bytes());
    let line = read_line(&mut stream, deadline).map_err(unknown)?;
    if line.is_empty() {
        written.map_err(unknown)?;
        return Err(Unanswered::Unknown("the daemon closed the connection".into()));
    }
    let odd = |_| Unanswered::Unknown("what came is not JSON-RPC 2.0; is this sidekeep's socket?".into());
    let envelope: Envelope = serde_json::from_slice(&line).map_err(odd)?;
    match envelope {
        Envelope { error: Some(refusal), .. } => Ok(Answer::Error(refusal)),
        Envelope { result: Some(result), .. } => Ok(Answer::Result(result)),
        // `null` reads as no result; no method answers it, but it is an answer.
        Envelope { result: None, error: None } => Ok(Answer::Result(RawValue::NULL.to_owned())),
    }
}

/// Connecting waits too, when a frozen daemon's backlog is full: `SO_SNDTIMEO` bounds it (unix(7)), if set before.
fn open(path: &Path, timeout: Duration) -> Result<UnixStream, Unanswered> {
    let unreached =
        |errno: Errno| Unanswered::Unreached { path: path.display().to_string(), why: hint(errno) };
    let address = UnixAddr::new(path).map_err(unreached)?;
    let descriptor =
        socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(unreached)?;
    let limit = TimeVal::milliseconds(i64::try_from(timeout.as_millis().max(1)).unwrap_or(i64::MAX));
    setsockopt(&descriptor, sockopt::SendTimeout, &limit).map_err(unreached)?;
    connect(std::os::fd::AsRawFd::as_raw_fd(&descriptor), &address).map_err(unreached)?;
    Ok(UnixStream::from(descriptor))
}

fn hint(errno: Errno) -> String {
    const DEV: &str = ".sidekeep-dev/sidekeep.toml";
    let what = match errno {
        Errno::ENOENT | Errno::ECONNREFUSED if Path::new(DEV).exists() => {
            return format!(
                "{}; is it running? (systemctl status sidekeep; the `sidekeep dev` of this folder is called with --config {DEV})",
                errno.desc()
            );
        }
        Errno::ENOENT | Errno::ECONNREFUSED => "is it running? (systemctl status sidekeep, or sidekeep dev)",
        Errno::EACCES => "your user may not open the socket; its group may (usermod -aG sidekeep-users USER)",
        Errno::EAGAIN => "it takes no connections; is it overloaded or frozen?",
        Errno::ENAMETOOLONG => "the path of a Unix socket holds 107 bytes",
        _ => return errno.desc().to_owned(),
    };
    format!("{}; {what}", errno.desc())
}

fn read_line(stream: &mut UnixStream, deadline: Instant) -> std::io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(line),
            Ok(read) => line.extend(buffer.iter().take(read)),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if line.ends_with(b"\n") {
            return Ok(line);
        }
    }
}

fn describe(error: &std::io::Error, timeout: Duration) -> String {
    match error.kind() {
        // A timed out read says EAGAIN.
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            format!("nothing came within {}", humantime::format_duration(timeout))
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// What the client makes of a daemon that reads one line and then sends this.
    fn answered(sent: &'static str) -> (Result<Answer, Unanswered>, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let params = RawValue::from_string(r#"{"n": 1.50}"#.into()).unwrap();
        std::thread::scope(|scope| {
            let daemon = scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                stream.write_all(sent.as_bytes()).unwrap();
                line
            });
            let answer = call(&path, "a\"b", &params, Duration::from_secs(20));
            (answer, daemon.join().unwrap())
        })
    }

    #[test]
    fn a_result_comes_as_it_was_sent() {
        let (answer, request) = answered("{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"n\":1.50}}\n");
        assert!(matches!(answer, Ok(Answer::Result(raw)) if raw.get() == r#"{"n":1.50}"#));
        assert_eq!(
            request,
            "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"a\\\"b\",\"params\":{\"n\": 1.50}}\n"
        );
    }

    #[test]
    fn an_error_has_its_kind_and_field() {
        let (answer, _) = answered(
            "{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":-32602,\"message\":\"m\",\"data\":{\"field\":\"user_id\",\"more\":1}}}\n",
        );
        let Ok(Answer::Error(refusal @ Refusal { code: -32602, .. })) = answer else { panic!("{answer:?}") };
        assert_eq!((refusal.said("field"), refusal.said("kind")), (Some("user_id"), None));
        assert_eq!(refusal.to_string(), "-32602: user_id: m");
        for (message, shown) in
            [("draining", "unavailable: draining"), ("unavailable: draining", "unavailable: draining")]
        {
            let data = Map::from_iter([("kind".to_owned(), "unavailable".into())]);
            let message = message.to_owned();
            assert_eq!(Refusal { code: -32027, message, data }.to_string(), shown);
        }
    }

    #[test]
    fn silence_and_nonsense_are_no_answers() {
        assert!(matches!(answered("").0, Err(Unanswered::Unknown(_))));
        assert!(matches!(answered("HTTP/1.1 200 OK\n").0, Err(Unanswered::Unknown(_))));
    }

    #[test]
    fn a_daemon_that_does_not_answer_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _frozen = UnixListener::bind(&path).unwrap();
        let answer = call(&path, "system.health", RawValue::NULL, Duration::from_millis(50));
        assert!(matches!(&answer, Err(Unanswered::Unknown(why)) if why.contains("50ms")), "{answer:?}");
    }

    #[test]
    fn who_is_not_there_is_not_reached() {
        let directory = tempfile::tempdir().unwrap();
        let answer = call(&directory.path().join("none"), "m", RawValue::NULL, Duration::from_secs(1));
        assert!(
            matches!(&answer, Err(Unanswered::Unreached { why, .. }) if why.contains("running")),
            "{answer:?}"
        );
    }
}
