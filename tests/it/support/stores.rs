//! Destinations for the tests: a directory, an S3 server and Google Cloud Storage, all on this host, and a gate before a store
//! that does to its clients what networks and full disks do.
//!
//! The servers are installed when they are first needed: s3s-fs (unless it is on the PATH) by cargo, moto and
//! gcp-storage-emulator by pip into an environment of their own, all below `target/`.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::wait_for;

const S3S_FS: &str = "0.14.1";
const PYTHON: [&str; 2] = ["moto[server]==5.2.5", "gcp-storage-emulator==2026.7.19"];

const ACCESS_KEY: &str = "sidekeep-tests";
const SECRET_KEY: &str = "sidekeep-tests-secret";

/// A destination that nobody else uses.
pub struct Store {
    /// Its URL, as destinations are written.
    pub url: String,
    /// What the configuration needs to reach it, as lines before any table.
    pub config: String,
    /// Where its objects are files on this host, the folder.
    pub files: Option<PathBuf>,
    /// The port of its server.
    port: Option<u16>,
    directory: tempfile::TempDir,
}

impl Store {
    /// One of each kind.
    pub fn all() -> [Self; 3] {
        [Self::directory(), Self::s3(), Self::gs()]
    }

    /// A directory, which is not there yet.
    pub fn directory() -> Self {
        let directory = tempfile::Builder::new().prefix("sd").tempdir().unwrap();
        let path = directory.path().join("destination");
        let url = format!("file://{}", path.display());
        Self { url, config: String::new(), files: Some(path), port: None, directory }
    }

    /// A bucket of an S3 server (s3s-fs) that checks signatures and digests.
    pub fn s3() -> Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        Self::of_s3s(SERVER.get_or_init(|| s3_server(&[])))
    }

    /// The same on a host that has its own clock: it refuses what was signed at another time.
    pub fn s3_on(host: &[(&str, PathBuf)]) -> Self {
        Self::of_s3s(Box::leak(Box::new(s3_server(host))))
    }

    fn of_s3s(server: &Server) -> Self {
        let bucket = name();
        let files = server.root.join(&bucket);
        std::fs::create_dir(&files).unwrap();
        Self { files: Some(files.join("prefix")), ..Self::of_s3(&bucket, server.port) }
    }

    /// A bucket of an S3 server (moto) that keeps the older versions of each object.
    pub fn versioned() -> Self {
        Self::of_moto(&[(
            "?versioning",
            "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>",
        )])
    }

    /// A bucket of an S3 server (moto) with object lock, and so with versions. Without a period of its own: moto wants a header
    /// for one that Amazon's S3 does not (the digest itself is enough there).
    pub fn locked() -> Self {
        let rule = "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>";
        Self::of_moto(&[("?object-lock", rule)])
    }

    fn of_moto(settings: &[(&str, &str)]) -> Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        let server = SERVER.get_or_init(|| {
            let program = python().join("moto_server");
            Server::start(|port, _| {
                let mut command = Command::new(&program);
                command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
                command
            })
        });
        let bucket = name();
        let locked = settings.iter().any(|(what, _)| *what == "?object-lock");
        let header = if locked { "x-amz-bucket-object-lock-enabled: true\r\n" } else { "" };
        put(server.port, &format!("/{bucket}"), header, "");
        for (what, body) in settings {
            put(server.port, &format!("/{bucket}{what}"), "", body);
        }
        Self::of_s3(&bucket, server.port)
    }

    fn of_s3(bucket: &str, port: u16) -> Self {
        let directory = tempfile::Builder::new().prefix("sd").tempdir().unwrap();
        let file = directory.path().join("s3-credentials");
        let text = format!("access_key_id = {ACCESS_KEY:?}\nsecret_access_key = {SECRET_KEY:?}\n");
        secret(&file, &text);
        let config = format!(
            "s3.endpoint = \"http://127.0.0.1:{port}\"\ns3.region = \"us-east-1\"\ns3.credentials_file = {file:?}\n"
        );
        Self { url: format!("s3://{bucket}/prefix"), config, files: None, port: Some(port), directory }
    }

    /// A bucket of Google Cloud Storage.
    pub fn gs() -> Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        let server = SERVER.get_or_init(|| {
            let program = python().join("python");
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/servers/gcs.py");
            Server::start(|port, _| {
                let mut command = Command::new(&program);
                command.arg(&script).arg(port.to_string());
                command
            })
        });
        let bucket = name();
        put(server.port, &format!("/{bucket}"), "", "");
        let directory = tempfile::Builder::new().prefix("sd").tempdir().unwrap();
        let file = directory.path().join("gs-credentials");
        let key = r#"{"private_key": "", "private_key_id": "", "client_email": "", "disable_oauth": true}"#;
        secret(&file, key);
        let config =
            format!("gs.endpoint = \"http://127.0.0.1:{}\"\ngs.credentials_file = {file:?}\n", server.port);
        let url = format!("gs://{bucket}/prefix");
        Self { url, config, files: None, port: Some(server.port), directory }
    }

    /// A folder that goes with the store.
    pub fn folder(&self) -> &Path {
        self.directory.path()
    }

    /// The same store behind a gate. For those with a server.
    pub fn gated(mut self) -> (Self, Gate) {
        let port = self.port.unwrap();
        let gate = Gate::before(port);
        self.config = self.config.replace(&format!(":{port}\""), &format!(":{}\"", gate.port));
        self.port = Some(gate.port);
        (self, gate)
    }
}

fn s3_server(environment: &[(&str, PathBuf)]) -> Server {
    let program = s3s_fs();
    Server::start(|port, root| {
        let mut command = Command::new(&program);
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]).arg(root);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command
    })
}

/// The name of a bucket that is not there yet.
fn name() -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    format!("bucket-{}", MADE.fetch_add(1, Ordering::Relaxed))
}

fn secret(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn put(port: u16, path: &str, header: &str, body: &str) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    // Nobody checks this signature; its form says which service is meant.
    let signed = "Authorization: AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=x\r\n";
    let length = body.len();
    write!(stream, "PUT {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n{signed}{header}Content-Length: {length}\r\n\r\n{body}")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.split(' ').nth(1).is_some_and(|status| status.starts_with('2')), "PUT {path}: {answer}");
}

/// A server that ends with this process.
struct Server {
    port: u16,
    root: PathBuf,
    _child: Child,
}

impl Server {
    fn start(command: impl Fn(u16, &Path) -> Command) -> Self {
        let root = tempfile::Builder::new().prefix("sidekeep-store-").tempdir().unwrap().keep();
        // Whoever takes the port in between makes the server end, and another is tried.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let server = command(port, &root);
            let log = std::fs::File::create(root.with_extension("log")).unwrap();
            // A static is never dropped: the shell notices the end of its input, which is that of this process.
            let mut child = Command::new("sh")
                .args(["-c", "log=$1; root=$2; shift 2; \"$@\" & server=$!; cat; kill $server; rm -rf \"$root\" \"$log\"", "sh"])
                .arg(root.with_extension("log"))
                .arg(&root)
                .arg(server.get_program())
                .args(server.get_args())
                .envs(server.get_envs().filter_map(|(name, value)| Some((name, value?))))
                .stdin(Stdio::piped())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap();
            let listens = wait_for("a store", || {
                let ended = child.try_wait().unwrap().is_some();
                let listens = TcpStream::connect(("127.0.0.1", port)).is_ok();
                // Whoever listens there then is somebody else.
                (ended || listens).then_some(!ended)
            });
            if listens {
                return Self { port, root, _child: child };
            }
        }
        panic!("no server for the tests: {}", std::fs::read_to_string(root.with_extension("log")).unwrap());
    }
}

/// Where the servers are installed.
fn home() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("stores")
}

/// Runs a command that installs something, one at a time on this host.
fn install(what: &str, command: &mut Command) {
    let done = command.stdin(Stdio::null()).output();
    let why = match &done {
        Ok(done) if done.status.success() => return,
        Ok(done) => String::from_utf8_lossy(&done.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    panic!("{what} is missing, and could not be installed; {command:?} would do it: {why}");
}

fn alone<T>(work: impl FnOnce() -> T) -> T {
    std::fs::create_dir_all(home()).unwrap();
    let lock = std::fs::File::create(home().join("lock")).unwrap();
    lock.lock().unwrap();
    work()
}

fn s3s_fs() -> PathBuf {
    let is_it = |program: &Path| {
        let said = Command::new(program).arg("--version").output();
        said.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).contains(S3S_FS))
    };
    let installed = home().join("bin/s3s-fs");
    alone(|| {
        let known = [PathBuf::from("s3s-fs"), installed.clone()];
        known.into_iter().find(|program| is_it(program)).unwrap_or_else(|| {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let mut command = Command::new(cargo);
            command.args([
                "install",
                "s3s-fs",
                "--version",
                S3S_FS,
                "--features",
                "binary",
                "--locked",
                "--root",
            ]);
            install("s3s-fs", command.arg(home()));
            installed
        })
    })
}

/// The programs of an environment with Python's servers.
fn python() -> PathBuf {
    let environment = home().join("python");
    let finished = environment.join(PYTHON.join(" "));
    alone(|| {
        if !finished.exists() {
            let _ = std::fs::remove_dir_all(&environment);
            install(
                "python3, with Debian's python3-venv,",
                Command::new("python3").args(["-m", "venv"]).arg(&environment),
            );
            let pip = environment.join("bin/pip");
            install(
                "moto or gcp-storage-emulator",
                Command::new(pip).args(["install", "-q", "--disable-pip-version-check"]).args(PYTHON),
            );
            std::fs::write(&finished, "").unwrap();
        }
    });
    environment.join("bin")
}

use gate::Gate;
pub use gate::Passage;

#[path = "gate.rs"]
mod gate;
