//! A client of the socket, as an application would write one: blocking, one JSON value a line.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// What a call ends with.
pub type Answer = Result<Value, RpcError>;

/// An error answer.
#[derive(Clone, Debug, PartialEq)]
pub struct RpcError {
    pub code: i64,
    pub message: String,
    pub data: Value,
}

impl RpcError {
    pub fn kind(&self) -> &str {
        self.data["kind"].as_str().unwrap_or_default()
    }

    pub fn field(&self) -> &str {
        self.data["field"].as_str().unwrap_or_default()
    }
}

/// A connection.
pub struct Client {
    stream: BufReader<UnixStream>,
    next: u64,
}

impl Client {
    pub fn connect(socket: &Path) -> Self {
        Self::try_connect(socket).unwrap_or_else(|error| panic!("{}: {error}", socket.display()))
    }

    pub fn try_connect(socket: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.set_write_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { stream: BufReader::new(stream), next: 0 })
    }

    pub fn call(&mut self, method: &str, params: Value) -> Answer {
        let id = self.send_call(method, params);
        let answer = self.line();
        assert_eq!(answer["id"], json!(id), "{answer}");
        read(&answer)
    }

    /// The result of a call that must succeed.
    pub fn ok(&mut self, method: &str, params: Value) -> Value {
        self.call(method, params.clone()).unwrap_or_else(|error| panic!("{method} {params}: {error:?}"))
    }

    /// The error of a call that must fail.
    pub fn err(&mut self, method: &str, params: Value) -> RpcError {
        match self.call(method, params.clone()) {
            Err(error) => error,
            Ok(result) => panic!("{method} {params}: {result}"),
        }
    }

    /// Sends a call without waiting for its answer.
    pub fn send_call(&mut self, method: &str, params: Value) -> u64 {
        self.next += 1;
        let request = json!({ "jsonrpc": "2.0", "id": self.next, "method": method, "params": params });
        self.send(format!("{request}\n").as_bytes());
        self.next
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).unwrap();
    }

    pub fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Says that nothing more will be sent.
    pub fn end(&mut self) {
        self.stream.get_mut().shutdown(Shutdown::Write).unwrap();
    }

    /// The next answer.
    pub fn line(&mut self) -> Value {
        self.try_line().expect("an answer, and not the end of the connection")
    }

    /// The next answer, or nothing at the end of the connection.
    pub fn try_line(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// The next answer as it was sent.
    pub fn raw_line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line
    }

    /// Sends bytes, ends the input, and reads everything that is answered.
    pub fn exchange(mut self, bytes: &[u8]) -> Vec<Value> {
        self.send(bytes);
        self.end();
        let mut text = String::new();
        self.stream.read_to_string(&mut text).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The stream itself, for what no client should do.
    pub fn raw(&mut self) -> &mut UnixStream {
        self.stream.get_mut()
    }
}

/// An answer as its result or its error.
pub fn read(answer: &Value) -> Answer {
    assert_eq!(answer["jsonrpc"], "2.0");
    match answer.get("error") {
        None => Ok(answer["result"].clone()),
        Some(error) => Err(RpcError {
            code: error["code"].as_i64().unwrap(),
            message: error["message"].as_str().unwrap().to_owned(),
            data: error["data"].clone(),
        }),
    }
}
