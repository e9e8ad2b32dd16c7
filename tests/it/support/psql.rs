//! A session of psql that stays open, to hold locks and transactions against the daemon.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const END: &str = "-- end of answer --";

/// A session; it ends with this value.
pub struct Psql {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Psql {
    pub fn open(url: &str) -> Self {
        let mut child = Command::new("psql")
            .args([url, "-XqAt"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("psql, of Debian's postgresql-client");
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut session = Self { child, input, output: BufReader::new(output) };
        session.run("SET search_path = sidekeep, public");
        session
    }

    /// Runs a statement to its end, and answers what it prints.
    pub fn run(&mut self, statement: &str) -> String {
        self.begin(statement);
        self.finish()
    }

    /// Sends a statement, and waits for nothing.
    pub fn begin(&mut self, statement: &str) {
        writeln!(self.input, "{statement};\n\\echo '{END}'").unwrap();
    }

    /// Waits for the end of the statement that was begun.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "psql ended: {text}");
            if line.trim() == END {
                return text.trim().to_owned();
            }
            text.push_str(&line);
        }
    }
}

impl Drop for Psql {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
