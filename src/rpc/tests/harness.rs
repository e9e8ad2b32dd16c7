//! A server in a temporary directory, its methods, and a client.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jsonrpsee::types::{ErrorObjectOwned, Request};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, FileMode};
use crate::rpc::listener::bind;
use crate::rpc::peer::Peer;
use crate::rpc::server::{Dispatch, Shutdown, run};

/// `system.health`, `system.metrics`, `echo`, `big {bytes}` and `hold`, which ends when it is released or cut.
pub(super) struct Methods {
    config: Config,
    pub(super) begun: watch::Sender<usize>,
    pub(super) ended: watch::Sender<usize>,
    pub(super) release: CancellationToken,
    cut: CancellationToken,
    pub(super) order: std::sync::Mutex<Vec<String>>,
}

impl Methods {
    pub(super) fn new(config: Config) -> Arc<Self> {
        Arc::new(Self {
            config,
            begun: watch::Sender::new(0),
            ended: watch::Sender::new(0),
            release: CancellationToken::new(),
            cut: CancellationToken::new(),
            order: std::sync::Mutex::default(),
        })
    }

    async fn hold(&self) -> Result<Value, ErrorObjectOwned> {
        self.begun.send_modify(|count| *count += 1);
        let outcome = tokio::select! {
            () = self.release.cancelled() => Ok(json!("released")),
            () = self.cut.cancelled() => Err(ErrorObjectOwned::owned::<()>(-32027, "cut", None)),
        };
        self.ended.send_modify(|count| *count += 1);
        outcome
    }
}

impl Dispatch for Methods {
    fn config(&self) -> &Config {
        &self.config
    }

    fn dispatch(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        request: Request<'static>,
    ) -> impl Future<Output = Result<Box<RawValue>, ErrorObjectOwned>> + Send + 'static {
        let (methods, uid) = (self.clone(), peer.uid);
        async move {
            let params: Value = request
                .params
                .as_ref()
                .map_or(Value::Null, |params| serde_json::from_str(params.get()).unwrap());
            let result = match &*request.method {
                "hold" => methods.hold().await,
                "system.health" => Ok(json!({"status": "ok", "uid": uid})),
                "system.metrics" => Ok(json!({"text": "sidekeep_up 1\n"})),
                "big" => Ok(json!("x".repeat(params["bytes"].as_u64().unwrap().try_into().unwrap()))),
                "echo" => {
                    methods.order.lock().unwrap().push(params.to_string());
                    Ok(params)
                }
                _ => Err(jsonrpsee::types::ErrorCode::MethodNotFound.into()),
            };
            result.map(|value| to_raw_value(&value).unwrap())
        }
    }

    fn cut(&self) {
        self.cut.cancel();
    }
}

pub(super) struct Server {
    _dir: tempfile::TempDir,
    pub(super) path: PathBuf,
    pub(super) methods: Arc<Methods>,
    pub(super) shutdown: Shutdown,
    pub(super) tasks: TaskTracker,
}

impl Server {
    pub(super) fn start() -> Self {
        Self::with(|_| {})
    }

    pub(super) fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut config = Config::default();
        config.socket.path.clone_from(&path);
        config.socket.group.clear();
        config.socket.mode = FileMode(0o600);
        change(&mut config);
        let listener = bind(&config.socket).unwrap();
        let (methods, shutdown, tasks) = (Methods::new(config), Shutdown::default(), TaskTracker::new());
        tasks.spawn(run(listener, methods.clone(), shutdown.clone()));
        tasks.close();
        Self { _dir: dir, path, methods, shutdown, tasks }
    }

    pub(super) async fn client(&self) -> Client {
        let (read, write) = UnixStream::connect(&self.path).await.unwrap().into_split();
        Client { read: BufReader::new(read), write: Some(write) }
    }

    /// What a client is answered that sends this and ends its side.
    pub(super) async fn answers(&self, bytes: impl AsRef<[u8]>) -> Vec<Value> {
        let mut client = self.client().await;
        client.send(bytes).await;
        client.rest().await
    }

    /// The daemon still serves others.
    pub(super) async fn serves(&self) {
        let answers = self.answers(request(1, "system.health")).await;
        assert_eq!(answers[0]["result"]["status"], "ok", "{answers:?}");
    }

    /// Waits until so many held calls have begun.
    pub(super) async fn begun(&self, count: usize) {
        let mut begun = self.methods.begun.subscribe();
        soon(begun.wait_for(|begun| *begun >= count)).await.unwrap();
    }
}

pub(super) struct Client {
    pub(super) read: BufReader<OwnedReadHalf>,
    pub(super) write: Option<OwnedWriteHalf>,
}

impl Client {
    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.write.as_mut().unwrap().write_all(bytes.as_ref())).await.unwrap();
    }

    /// One answer; null when the connection has ended.
    pub(super) async fn answer(&mut self) -> Value {
        let mut line = String::new();
        soon(self.read.read_line(&mut line)).await.unwrap();
        if line.is_empty() { Value::Null } else { serde_json::from_str(&line).unwrap() }
    }

    /// Ends the input, and reads to the end.
    pub(super) async fn rest(mut self) -> Vec<Value> {
        self.write = None;
        self.remaining().await
    }

    /// Reads to the end, which the daemon makes.
    pub(super) async fn remaining(mut self) -> Vec<Value> {
        let mut text = String::new();
        soon(self.read.read_to_string(&mut text)).await.unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

pub(super) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("it hangs")
}

pub(super) fn request(id: u64, method: &str) -> String {
    format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"{method}\"}}\n")
}

pub(super) fn with_params(id: u64, method: &str, params: &Value) -> String {
    format!("{}\n", json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
}

pub(super) fn codes(answers: &[Value]) -> Vec<i64> {
    answers.iter().map(|answer| answer["error"]["code"].as_i64().unwrap_or(0)).collect()
}
