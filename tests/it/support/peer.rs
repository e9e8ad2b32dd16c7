//! Clients that are somebody else: only root can become one.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{Answer, read};

/// Somebody, by numbers.
#[derive(Clone, Debug)]
pub struct Somebody {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

impl Somebody {
    pub fn new(uid: u32, gid: u32, groups: &[u32]) -> Self {
        Self { uid, gid, groups: groups.to_vec() }
    }

    /// A command that runs as this user.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={}", self.uid)).arg(format!("--regid={}", self.gid));
        if self.groups.is_empty() {
            command.arg("--clear-groups");
        } else {
            let groups: Vec<String> = self.groups.iter().map(ToString::to_string).collect();
            command.arg(format!("--groups={}", groups.join(",")));
        }
        command.arg(program).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// What socat prints when this user sends these bytes.
    pub fn sends(&self, socket: &Path, bytes: &[u8]) -> String {
        let mut child = self
            .command("socat")
            .args(["-t60", "-", &format!("UNIX-CONNECT:{}", socket.display())])
            .spawn()
            .expect("setpriv of util-linux");
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        let done = child.wait_with_output().unwrap();
        assert!(done.status.success(), "{self:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    }

    /// One call.
    pub fn calls(&self, socket: &Path, method: &str, params: &Value) -> Answer {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let printed = self.sends(socket, format!("{request}\n").as_bytes());
        read(&serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed:?}")))
    }
}

/// Whether this process may become others. Where it may not, the tests that need others say so and end.
pub fn can_be_others() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("not run: peers of another uid need root");
    }
    root
}
