//! A private PostgreSQL with the schema, a configuration, and daemons on them, all in a temporary folder.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::Value;
use sidekeep::durable;
use sidekeep::store::private::{Options, Private, SUPERUSER};

use super::client::Client;

const ROLE: &str = "sidekeep_app";
const DATABASE: &str = "sidekeep";
const PROGRAM: &str = env!("CARGO_BIN_EXE_sidekeep");
/// How long anything may take to be there.
const PATIENCE: Duration = Duration::from_secs(30);

/// The folder and its PostgreSQL, which end with this value.
#[derive(Debug)]
pub(crate) struct Place {
    postgres: Private,
    // Removed when the server is gone.
    directory: tempfile::TempDir,
}

/// A running `sidekeep serve`. It ends with this value.
#[derive(Debug)]
pub(crate) struct Daemon {
    process: Child,
    socket: PathBuf,
    /// From its start to the first health that is ok.
    pub(crate) ready_after: Duration,
}

impl Place {
    /// Makes all of it; commits reach the disk, as in production.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let postgres = Private::start(directory.path(), Options { sync: true, ..Options::default() })?;
        postgres.provision(ROLE, DATABASE)?;
        let place = Self { postgres, directory };
        let output = place.program(&["keyring", "generate"]).output()?;
        if !output.status.success() {
            bail!("keyring generate: {}", String::from_utf8_lossy(&output.stderr));
        }
        durable::write(&place.path("kek"), &output.stdout, 0o600)?;
        durable::write(&place.path("owner-url"), place.postgres.url(SUPERUSER, DATABASE).as_bytes(), 0o600)?;
        durable::write(&place.path("sidekeep.toml"), place.configuration().as_bytes(), 0o600)?;
        let output = place.program(&["migrate"]).output()?;
        if !output.status.success() {
            bail!("migrate: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(place)
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The process id of PostgreSQL.
    pub(crate) fn postgres(&self) -> u32 {
        self.postgres.pid().unsigned_abs()
    }

    /// The URL that the daemon has.
    pub(crate) fn url(&self) -> String {
        self.postgres.url(ROLE, DATABASE)
    }

    /// Starts a daemon, and waits until it is well.
    pub(crate) fn serve(&self) -> anyhow::Result<Daemon> {
        let socket = self.path("sidekeep.sock");
        let begun = Instant::now();
        let process = self.program(&["serve"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut daemon = Daemon { process, socket, ready_after: Duration::ZERO };
        while !daemon.is_well() {
            if begun.elapsed() > PATIENCE || daemon.process.try_wait()?.is_some() {
                bail!("`sidekeep serve` does not serve");
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        daemon.ready_after = begun.elapsed();
        Ok(daemon)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn program(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        if arguments != ["keyring", "generate"] {
            command.arg("--config").arg(self.path("sidekeep.toml"));
        }
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Records are measured without their access entries, which cost a group commit each.
    fn configuration(&self) -> String {
        let text = |path: &str| Value::from(self.path(path).to_string_lossy());
        format!(
            "[deployment]\nname = \"bench\"\n[socket]\npath = {}\ngroup = \"\"\n\
             [database]\nurl = {}\nmigrate_url_file = {}\n[keyring]\nkey_files = [{}]\n\
             [audit]\naccess = \"none\"\n",
            text("sidekeep.sock"),
            Value::from(self.url()),
            text("owner-url"),
            text("kek"),
        )
    }
}

impl Daemon {
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn connect(&self) -> anyhow::Result<Client> {
        Client::connect(&self.socket)
    }

    /// What the kernel counts as resident, shared pages too, in bytes.
    pub(crate) fn resident(&self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kibibytes: u32 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(f64::from(kibibytes) * 1024.0)
    }

    fn is_well(&self) -> bool {
        let health = self.connect().and_then(|mut client| client.call("system.health", &Value::Null));
        health.is_ok_and(|health| health.get("status").is_some_and(|status| status == "ok"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It is gone already when this fails. Killed, it leaves its socket for the next one to take over.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
