//! Objects that a program of the operator's keeps: `put NAME` with the object on its standard input, `get NAME`, `newest`.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process;

use super::super::merkle::Hash;
use super::object;
use super::place::{LARGEST, Trouble};

/// How long a program may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A program with its first arguments.
#[derive(Debug)]
pub(super) struct Command {
    program: String,
    arguments: Vec<String>,
    name: String,
}

impl Command {
    pub(super) fn new(program: &str, arguments: &[String]) -> Self {
        let all: Vec<u8> = std::iter::once(program)
            .chain(arguments.iter().map(String::as_str))
            .flat_map(|part| part.bytes().chain([0]))
            .collect();
        let name = format!("command:{}", Hash::of(&[&all]).hex());
        Self { program: program.to_owned(), arguments: arguments.to_vec(), name }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) async fn newest(&self) -> Result<Option<u64>, Trouble> {
        let said = self.run(&["newest"], &[]).await.map_err(Trouble::Away)?;
        let said = std::str::from_utf8(&said).unwrap_or("?").trim();
        if said.is_empty() {
            return Ok(None);
        }
        let size = object::size(said);
        size.map(Some).ok_or_else(|| Trouble::Away("`newest` printed no name of a checkpoint".into()))
    }

    pub(super) async fn get(&self, size: u64) -> Result<Vec<u8>, Trouble> {
        self.run(&["get", &object::name(size)], &[]).await.map_err(Trouble::Away)
    }

    /// What failed may have been refused because it is there already.
    pub(super) async fn put(&self, size: u64, bytes: Vec<u8>) -> Result<(), Trouble> {
        match self.run(&["put", &object::name(size)], &bytes).await {
            Ok(_) => Ok(()),
            Err(_) if self.get(size).await.is_ok_and(|there| !there.is_empty()) => Err(Trouble::Exists),
            Err(why) => Err(Trouble::Away(why)),
        }
    }

    async fn run(&self, more: &[&str], input: &[u8]) -> Result<Vec<u8>, String> {
        let what = more.first().copied().unwrap_or_default();
        match tokio::time::timeout(PATIENCE, self.exchange(more, input)).await {
            Ok(Ok((status, output))) if status.success() => Ok(output),
            Ok(Ok((status, _))) => Err(format!("`{what}` ended with {status}")),
            Ok(Err(error)) => Err(format!("`{what}`: {error}")),
            Err(_) => Err(format!("`{what}` did not end within {}", humantime::format_duration(PATIENCE))),
        }
    }

    async fn exchange(
        &self,
        more: &[&str],
        input: &[u8],
    ) -> std::io::Result<(std::process::ExitStatus, Vec<u8>)> {
        let mut child = process::Command::new(&self.program)
            .args(&self.arguments)
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let mut output = Vec::new();
        let writing = async {
            if let Some(mut stdin) = stdin {
                // One that does not read its input says with its status what came of it.
                let _ = stdin.write_all(input).await;
                let _ = stdin.shutdown().await;
            }
        };
        let reading = async {
            match stdout {
                Some(stdout) => stdout.take(LARGEST).read_to_end(&mut output).await,
                None => Ok(0),
            }
        };
        let ((), read) = tokio::join!(writing, reading);
        read?;
        Ok((child.wait().await?, output))
    }
}
