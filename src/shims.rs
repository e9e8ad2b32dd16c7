//! Stand-ins with the signatures of modules that are being built; removed when those land.
#![allow(missing_docs, clippy::disallowed_methods)]

pub mod config {
    use std::path::{Path, PathBuf};

    #[derive(Debug)]
    pub struct Loaded {
        pub config: crate::config::Config,
        pub sources: Vec<PathBuf>,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    pub struct ConfigError(String);

    pub fn load(path: Option<&Path>) -> Result<Loaded, ConfigError> {
        let path = path
            .map(Path::to_owned)
            .or_else(|| std::env::var_os("SIDEKEEP_CONFIG").map(PathBuf::from))
            .unwrap_or_else(|| "/etc/sidekeep/sidekeep.toml".into());
        let text = std::fs::read_to_string(&path)
            .map_err(|error| ConfigError(format!("{}: cannot be read: {error}", path.display())))?;
        let mut text = text;
        let drop_in = path.parent().map(|parent| parent.join("conf.d/10-setup.toml"));
        if let Some(more) = drop_in.and_then(|path| std::fs::read_to_string(path).ok()) {
            text.push_str(&more);
        }
        let config = toml::from_str(&text)
            .map_err(|error| ConfigError(format!("{}: {}", path.display(), error.message())))?;
        Ok(Loaded { config, sources: vec![path] })
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    pub struct DatabaseUrlError(String);

    pub fn secret(file: &crate::config::SecretFile) -> Result<zeroize::Zeroizing<String>, DatabaseUrlError> {
        let path = file.path().map_err(DatabaseUrlError)?;
        let text = std::fs::read_to_string(&path)
            .map_err(|error| DatabaseUrlError(format!("{}: {error}", path.display())))?;
        Ok(text.trim_end().to_owned().into())
    }

    pub fn migrate_url(
        config: &crate::config::Config,
    ) -> Result<zeroize::Zeroizing<String>, DatabaseUrlError> {
        let file = config.database.migrate_url_file.as_ref();
        secret(file.ok_or_else(|| DatabaseUrlError("unset".into()))?)
    }
}

pub mod telemetry {
    #[derive(Debug)]
    pub struct Telemetry;
    pub fn init(_: &crate::config::Log) -> Telemetry {
        Telemetry
    }
    impl Telemetry {
        pub fn upkeep(&self, _: &tokio_util::task::TaskTracker, _: tokio_util::sync::CancellationToken) {}
    }
}

pub mod keyring {
    pub mod kek {
        pub fn generate() -> zeroize::Zeroizing<String> {
            let mut bytes = [0; 32];
            let _ = aws_lc_rs::rand::fill(&mut bytes);
            use base64::Engine as _;
            (base64::engine::general_purpose::STANDARD.encode(bytes) + "\n").into()
        }
    }
}

pub mod migrations {
    use crate::error::Result;
    pub async fn apply(_: &str) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
    pub async fn pending(_: &str) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

pub mod app {
    use crate::config::Config;
    pub fn reload(_: &crate::app::App, _: Config) -> Vec<String> {
        vec!["socket.path".into()]
    }
}

pub mod rpc {
    pub mod discover {
        pub fn document() -> serde_json::Value {
            serde_json::json!({"openrpc": "1.3.2", "methods": []})
        }
    }
    pub mod listener {
        use tokio::net::UnixListener;

        #[derive(Debug)]
        pub struct Listener(pub(super) UnixListener, pub(super) Option<std::path::PathBuf>);

        #[derive(Debug, thiserror::Error)]
        pub enum BindError {
            #[error("a living daemon owns the socket")]
            InUse,
            #[error("{0}")]
            Io(#[from] std::io::Error),
        }

        pub fn bind(socket: &crate::config::Socket) -> Result<Listener, BindError> {
            if std::os::unix::net::UnixStream::connect(&socket.path).is_ok() {
                return Err(BindError::InUse);
            }
            let _ = std::fs::remove_file(&socket.path);
            Ok(Listener(UnixListener::bind(&socket.path)?, Some(socket.path.clone())))
        }

        impl Listener {
            #[expect(unsafe_code)]
            pub fn from_systemd(fd: std::os::fd::RawFd) -> Result<Self, BindError> {
                use std::os::fd::FromRawFd as _;
                let listener = unsafe { std::os::unix::net::UnixListener::from_raw_fd(fd) };
                listener.set_nonblocking(true)?;
                Ok(Self(UnixListener::from_std(listener)?, None))
            }
        }
    }
    pub mod server {
        use std::sync::Arc;
        use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
        use tokio_util::sync::CancellationToken;

        #[derive(Clone, Debug)]
        pub struct Shutdown {
            pub drain: CancellationToken,
            pub abort: CancellationToken,
        }

        pub async fn run(
            listener: super::listener::Listener,
            calls: Arc<crate::rpc::call::Calls>,
            shutdown: Shutdown,
        ) -> crate::error::Result<()> {
            let _ = calls;
            let tracker = tokio_util::task::TaskTracker::new();
            loop {
                let accepted = tokio::select! {
                    () = shutdown.drain.cancelled() => break,
                    accepted = listener.0.accept() => accepted,
                };
                let Ok((stream, _)) = accepted else { continue };
                tracker.spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let mut line = String::new();
                    while stream.read_line(&mut line).await.unwrap_or(0) > 0 {
                        let answer = if line.contains("slow") {
                            tokio::time::sleep(std::time::Duration::from_secs(3)).await;
                            r#"{"jsonrpc":"2.0","id":1,"result":{"slow":true}}"#
                        } else if line.contains("fail") {
                            r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32020,"message":"there is no such profile","data":{"kind":"not_found","retryable":false}}}"#
                        } else {
                            r#"{"jsonrpc":"2.0","id":1,"result":{"status":"ok","checks":{"database":{"status":"ok","latency_ms":1.00}}}}"#
                        };
                        let _ = stream.write_all(format!("{answer}\n").as_bytes()).await;
                        line.clear();
                    }
                });
            }
            tracker.close();
            tokio::select! {
                () = tracker.wait() => {}
                () = shutdown.abort.cancelled() => {}
                () = tokio::time::sleep(std::time::Duration::from_secs(10)) => {}
            }
            if let Some(path) = listener.1 {
                let _ = std::fs::remove_file(path);
            }
            Ok(())
        }
    }
}
