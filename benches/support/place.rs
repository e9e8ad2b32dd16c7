//! A private PostgreSQL with the schema, a configuration, and daemons on them, all in a temporary folder.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use sidekeep::durable;
use sidekeep::store::private::{Options, Private, SUPERUSER};
use sidekeep::store::programs::Program;

use super::client::Client;

const ROLE: &str = "sidekeep_app";
const DATABASE: &str = "sidekeep";
const PROGRAM: &str = env!("CARGO_BIN_EXE_sidekeep");
/// How long anything may take to be there.
const PATIENCE: Duration = Duration::from_secs(30);

/// The folder and its PostgreSQL, which end with this value.
#[derive(Debug)]
pub(crate) struct Place {
    // Nothing while it is started again.
    postgres: Option<Private>,
    /// How far off the clocks are, as in `-40d`.
    clock: Option<String>,
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
        Self::of(directory, postgres, None)
    }

    /// As [`Place::new`], with clocks that are so far off, as in `-40d`, until [`Place::come_back`].
    pub(crate) fn long_ago(off: &str) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let programs = other_clock(off)?;
        let options = Options { sync: true, binaries: Some(programs.path()), ..Options::default() };
        let postgres = Private::start(directory.path(), options)?;
        Self::of(directory, postgres, Some(off.to_owned()))
    }

    /// Starts PostgreSQL again as it is, by this host's clock; so are daemons from then on.
    pub(crate) fn come_back(&mut self) -> anyhow::Result<()> {
        self.clock = None;
        self.postgres.take().context("no PostgreSQL")?.stop()?;
        let options = Options { sync: true, ..Options::default() };
        self.postgres = Some(Private::start(self.directory.path(), options)?);
        Ok(())
    }

    fn of(directory: tempfile::TempDir, postgres: Private, clock: Option<String>) -> anyhow::Result<Self> {
        postgres.provision(ROLE, DATABASE)?;
        let place = Self { postgres: Some(postgres), clock, directory };
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
        self.postgres.as_ref().map_or(0, |postgres| postgres.pid().unsigned_abs())
    }

    /// The URL that the daemon has.
    pub(crate) fn url(&self) -> String {
        self.url_of(ROLE)
    }

    /// The URL of who owns the tables.
    pub(crate) fn owner_url(&self) -> String {
        self.url_of(SUPERUSER)
    }

    fn url_of(&self, role: &str) -> String {
        self.postgres.as_ref().map_or_else(String::new, |postgres| postgres.url(role, DATABASE))
    }

    /// Starts a daemon of this name, with these lines in its `[audit]`, and waits until it is well.
    pub(crate) fn serve(&self, name: &str, audit: &str) -> anyhow::Result<Daemon> {
        let (config, socket) = (self.configure(name, audit)?, self.socket(name));
        let begun = Instant::now();
        let mut command = Command::new(PROGRAM);
        if let Some(off) = &self.clock {
            command.env("LD_PRELOAD", libfaketime()?).env("FAKETIME", off);
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        let process = command
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

/// Debian's library that gives a process another clock.
fn libfaketime() -> anyhow::Result<PathBuf> {
    let libraries = std::fs::read_dir("/usr/lib")?.flatten();
    let mut found = libraries.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    found.find(|path| path.exists()).context("libfaketime is missing: apt-get install faketime")
}

/// PostgreSQL's programs, of which the server has another clock. Needed only until it has started.
fn other_clock(off: &str) -> anyhow::Result<tempfile::TempDir> {
    let postgres = Program::find("postgres", 0)?.path;
    let real = postgres.parent().context("no folder")?;
    // The server's account is another one, which has to read them.
    let binaries = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir()?;
    for entry in std::fs::read_dir(real)?.flatten().filter(|entry| entry.file_name() != "postgres") {
        std::os::unix::fs::symlink(entry.path(), binaries.path().join(entry.file_name()))?;
    }
    let script = format!(
        "#!/bin/sh\nexport LD_PRELOAD={} FAKETIME={off} FAKETIME_DONT_FAKE_MONOTONIC=1\nexec {} \"$@\"\n",
        libfaketime()?.display(),
        postgres.display()
    );
    durable::write(&binaries.path().join("postgres"), script.as_bytes(), 0o755)?;
    Ok(binaries)
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

    /// Runs a job to its end, which has to be a success; how long that took, and the run.
    pub(crate) fn run(&self, job: &str) -> anyhow::Result<(Duration, Value)> {
        let begun = Instant::now();
        let mut client = self.connect()?;
        let mut run = client.call("job.run", &json!({ "name": job, "wait": "25s" }))?;
        while run.get("state").is_some_and(|state| state == "running") {
            std::thread::sleep(Duration::from_millis(20));
            let runs = client.call("job.history", &json!({ "name": job, "limit": 1 }))?;
            run = runs.get("items").and_then(|items| items.get(0)).context("no run")?.clone();
        }
        if run.get("state").is_none_or(|state| state != "ok") {
            bail!("{job}: {run}");
        }
        Ok((begun.elapsed(), run))
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
