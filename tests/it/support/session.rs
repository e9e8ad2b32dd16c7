//! A session with PostgreSQL that holds a lock, so that a call stands still for as long as a test wants.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// An open transaction; it ends with this value.
pub struct Session {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Session {
    pub fn begin(url: &str) -> Self {
        let mut child = Command::new("psql")
            .args([url, "-XqAt", "-v", "ON_ERROR_STOP=1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("psql, of Debian's postgresql-client");
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut session = Self { child, stdin, stdout };
        session.run("SET search_path = sidekeep, public; BEGIN");
        session
    }

    /// Holds everybody up who wants to write about this person.
    pub fn hold(url: &str, user_id: &str) -> Self {
        let mut session = Self::begin(url);
        session.run(&format!("SELECT 1 FROM subjects WHERE user_id = '{user_id}' FOR UPDATE"));
        session
    }

    /// Runs statements to their end.
    pub fn run(&mut self, statements: &str) {
        writeln!(self.stdin, "{statements};\n\\echo done").unwrap();
        let mut line = String::new();
        while line.trim_end() != "done" {
            line.clear();
            assert!(self.stdout.read_line(&mut line).unwrap() > 0, "psql ended: {statements}");
        }
    }

    /// Lets go.
    pub fn release(mut self) {
        self.run("COMMIT");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
