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
    /// `settings` are PostgreSQL's that differ from its defaults.
    pub(crate) fn new(settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let postgres =
            Private::start(directory.path(), Options { sync: true, settings, ..Options::default() })?;
        postgres.provision(ROLE, DATABASE)?;
        let place = Self { postgres, directory };
        for (file, command) in [("kek", ["keyring", "generate"]), ("signing", ["signing", "generate"])] {
            durable::write(&place.path(file), &outcome(Command::new(PROGRAM).args(command))?, 0o600)?;
        }
        durable::write(&place.path("owner-url"), place.owner_url().as_bytes(), 0o600)?;
        let config = place.configure("migrate", "")?;
        outcome(Command::new(PROGRAM).arg("--config").arg(config).arg("migrate"))?;
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

    /// The URL of who owns the tables.
    pub(crate) fn owner_url(&self) -> String {
        self.postgres.url(SUPERUSER, DATABASE)
    }

    /// Starts a daemon of this name, with these lines in its `[audit]`, and waits until it is well.
    pub(crate) fn serve(&self, name: &str, audit: &str) -> anyhow::Result<Daemon> {
        let (config, socket) = (self.configure(name, audit)?, self.socket(name));
        let begun = Instant::now();
        let process = Command::new(PROGRAM)
            .arg("--config")
            .arg(config)
            .arg("serve")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
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

    fn socket(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.sock"))
    }

    /// Writes a configuration of this name; where it is. What runs once in an hour would meet one turn and not the next.
    pub(crate) fn configure(&self, name: &str, audit: &str) -> anyhow::Result<PathBuf> {
        let text = |path: PathBuf| Value::from(path.to_string_lossy());
        let configuration = format!(
            "[deployment]\nname = \"bench\"\n[socket]\npath = {}\ngroup = \"\"\n\
             [database]\nurl = {}\nmigrate_url_file = {}\n[keyring]\nkey_files = [{}]\n\
             [signing]\nkey_files = [{}]\n[jobs.verify]\nenabled = false\n[audit]\n{audit}\n",
            text(self.socket(name)),
            Value::from(self.url()),
            text(self.path("owner-url")),
            text(self.path("kek")),
            text(self.path("signing")),
        );
        let path = self.path(&format!("{name}.toml"));
        durable::write(&path, configuration.as_bytes(), 0o600)?;
        Ok(path)
    }
}

/// What the kernel says of a process's memory under this name, in bytes.
pub(crate) fn memory(process: u32, name: &str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such memory")?;
    let kibibytes: u32 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(f64::from(kibibytes) * 1024.0)
}

/// What a command prints, when it succeeds.
fn outcome(command: &mut Command) -> anyhow::Result<Vec<u8>> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
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
        memory(self.id(), "VmRSS:")
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
