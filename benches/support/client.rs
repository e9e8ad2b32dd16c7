//! A client that blocks: what one application thread sees.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

/// One connection, one call at a time.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(path: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(path).with_context(|| path.display().to_string())?;
        Ok(Self { stream, buffer: vec![0; 64 * 1024] })
    }

    /// Writes a line and reads one.
    pub(crate) fn round_trip(&mut self, line: &[u8]) -> anyhow::Result<&[u8]> {
        self.stream.write_all(line)?;
        let mut filled = 0;
        loop {
            if filled == self.buffer.len() {
                self.buffer.resize(filled * 2, 0);
            }
            let count = self.stream.read(self.buffer.get_mut(filled..).unwrap_or_default())?;
            if count == 0 {
                bail!("the other side closed the connection");
            }
            filled += count;
            let answer = self.buffer.get(..filled).unwrap_or_default();
            if answer.last() == Some(&b'\n') {
                break;
            }
        }
        Ok(self.buffer.get(..filled).unwrap_or_default())
    }

    /// How long each of so many round trips takes, in microseconds.
    pub(crate) fn times(&mut self, line: &[u8], count: u32) -> anyhow::Result<Vec<f64>> {
        self.sequences(&[line], count)
    }

    /// How long each of so many sequences of round trips takes, in microseconds.
    pub(crate) fn sequences(&mut self, lines: &[&[u8]], count: u32) -> anyhow::Result<Vec<f64>> {
        (0..count)
            .map(|_| {
                let begun = Instant::now();
                for line in lines {
                    self.round_trip(line)?;
                }
                Ok(super::report::microseconds(begun.elapsed()))
            })
            .collect()
    }

    /// A call that must succeed; its result.
    pub(crate) fn call(&mut self, method: &str, params: &Value) -> anyhow::Result<Value> {
        self.timed(method, params).map(|(_, result)| result)
    }

    /// The same, and how long it took.
    pub(crate) fn timed(&mut self, method: &str, params: &Value) -> anyhow::Result<(Duration, Value)> {
        let line = request(method, params);
        let begun = Instant::now();
        let answer = self.round_trip(&line)?;
        let took = begun.elapsed();
        let mut answer: Value = serde_json::from_slice(answer)?;
        match answer.get_mut("result").map(Value::take) {
            Some(result) => Ok((took, result)),
            None => bail!("{method}: {answer}"),
        }
    }
}

/// A request as one line.
pub(crate) fn request(method: &str, params: &Value) -> Vec<u8> {
    let request = match params {
        Value::Null => json!({ "jsonrpc": "2.0", "id": 1, "method": method }),
        params => json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }),
    };
    format!("{request}\n").into_bytes()
}
