//! Daemons as processes, on databases of their own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{Client, Cluster, sql, wait_for};

/// A folder with keys and configuration, and a database: what daemons of one deployment share.
pub struct World {
    directory: tempfile::TempDir,
    /// How the owner of the tables connects.
    pub owner_url: String,
    /// How daemons connect.
    pub app_url: String,
    started: std::cell::Cell<u32>,
}

impl World {
    /// On a fresh database of the shared cluster.
    pub fn new() -> Self {
        Self::on(Cluster::shared())
    }

    /// On a fresh database of this cluster.
    pub fn on(cluster: &Cluster) -> Self {
        let database = cluster.database();
        Self::with_urls(cluster.owner_url(&database), cluster.app_url(&database))
    }

    pub fn with_urls(owner_url: String, app_url: String) -> Self {
        let directory = tempfile::Builder::new().prefix("sk").tempdir().unwrap();
        let world = Self { directory, owner_url, app_url, started: std::cell::Cell::new(0) };
        world.add_key("kek");
        world.add_signing_key("signing");
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Lets other users reach the sockets; the key stays its owner's.
    pub fn open(&self) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(self.directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Makes a key that signs checkpoints.
    pub fn add_signing_key(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let made = sidekeep(&["signing", "generate", "--out", path.to_str().unwrap()]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        path
    }

    /// Makes a key-encryption key.
    pub fn add_key(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let made = sidekeep(&["keyring", "generate", "--out", path.to_str().unwrap()]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        path
    }

    /// Writes the configuration of another daemon, and answers its file and socket. `more` is TOML that goes with it: a
    /// table that is there already (`[database]`) is given by `database.key = …` lines before any table.
    pub fn configure(&self, more: &str) -> (PathBuf, PathBuf) {
        let number = self.started.get();
        self.started.set(number + 1);
        let (file, socket) = (self.path(&format!("{number}.toml")), self.path(&format!("{number}.sock")));
        let base = format!(
            "deployment.name = \"test\"\nsocket.path = {socket:?}\nsocket.group = \"\"\n\
             database.url = {:?}\nkeyring.key_files = [{:?}]\nsigning.key_files = [{:?}]\nlog.format = \"json\"\n",
            self.app_url,
            self.path("kek"),
            self.path("signing"),
        );
        let given = |line: &&str| {
            let key = line.split('=').next().unwrap().trim().to_owned();
            !more.lines().any(|other| other.split('=').next().unwrap().trim() == key)
        };
        let text = base.lines().filter(given).map(|line| format!("{line}\n")).collect::<String>() + more;
        std::fs::write(&file, text).unwrap();
        (file, socket)
    }

    /// Starts a daemon that serves.
    pub fn start(&self) -> Daemon {
        self.start_with("")
    }

    /// Starts a daemon that serves, with more configuration.
    pub fn start_with(&self, more: &str) -> Daemon {
        let daemon = self.spawn(more);
        daemon.wait_ready();
        daemon
    }

    /// Starts a daemon, and waits for nothing.
    pub fn spawn(&self, more: &str) -> Daemon {
        let (file, socket) = self.configure(more);
        Daemon::spawn(&file, &socket)
    }

    /// Starts a daemon on a host that has these groups beside its own, as lines of `/etc/group`. Needs root, and a mount
    /// namespace that only this daemon sees; answers nothing where that cannot be had.
    pub fn start_with_groups(&self, groups: &str, more: &str) -> Option<Daemon> {
        let file = self.path("group");
        let own = std::fs::read_to_string("/etc/group").unwrap();
        std::fs::write(&file, own + groups).unwrap();
        let mount = format!("mount --bind {} /etc/group", file.display());
        let may = Command::new("unshare").args(["-m", "sh", "-c", &mount]).output();
        if !may.is_ok_and(|done| done.status.success()) {
            return None;
        }
        let (config, socket) = self.configure(more);
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &format!("{mount} && exec \"$@\""), "sh"]);
        command.arg(env!("CARGO_BIN_EXE_sidekeep"));
        let daemon = Daemon::run(command, &config, &socket);
        daemon.wait_ready();
        Some(daemon)
    }

    /// Starts a daemon in a mount namespace of its own, after a shell has done this there. Needs root.
    pub fn start_after(&self, shell: &str, more: &str) -> Daemon {
        let (config, socket) = self.configure(more);
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &format!("{shell} && exec \"$@\""), "sh"]);
        command.arg(env!("CARGO_BIN_EXE_sidekeep"));
        let daemon = Daemon::run(command, &config, &socket);
        daemon.wait_ready();
        daemon
    }

    /// Starts a daemon whose clock is so far off, as in `+1h`.
    pub fn start_with_clock(&self, off: &str, more: &str) -> Daemon {
        let (config, socket) = self.configure(more);
        let mut command = Command::new(env!("CARGO_BIN_EXE_sidekeep"));
        command.env("LD_PRELOAD", super::libfaketime()).env("FAKETIME", off);
        command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let daemon = Daemon::run(command, &config, &socket);
        daemon.wait_ready();
        daemon
    }

    /// Starts a daemon on the host of a cluster with a clock of its own, and waits for nothing.
    pub fn spawn_beside(&self, cluster: &Cluster, more: &str) -> Daemon {
        let (config, socket) = self.configure(more);
        let mut command = Command::new(env!("CARGO_BIN_EXE_sidekeep"));
        command.envs(cluster.host_clock());
        Daemon::run(command, &config, &socket)
    }

    /// Starts a daemon whose clocks, also the one that never goes back, are as far off as a file says, as in `+7h`.
    pub fn start_by_clock(&self, file: &Path, more: &str) -> Daemon {
        let (config, socket) = self.configure(more);
        let mut command = Command::new(env!("CARGO_BIN_EXE_sidekeep"));
        command.env("LD_PRELOAD", super::libfaketime()).env("FAKETIME_TIMESTAMP_FILE", file);
        command.env("FAKETIME_NO_CACHE", "1");
        let daemon = Daemon::run(command, &config, &socket);
        daemon.wait_ready();
        daemon
    }

    /// A query as the owner of the tables.
    pub fn sql(&self, query: &str) -> String {
        sql(&self.owner_url, query)
    }

    /// Waits until a commit waits for a standby: it is the server's checkpointer that has to hear of the setting, whatever is
    /// shown of it.
    pub fn commits_wait(&self) {
        const COMMIT: &str = "SELECT pg_logical_emit_message(true, 'probe', '')";
        let waiting = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() \
            AND wait_event = 'SyncRep' AND query LIKE '%''probe''%'";
        wait_for("a commit that waits", || {
            let mut commit = Command::new("psql");
            commit.args([&self.owner_url, "-Xqc", COMMIT]).stdout(Stdio::null()).stderr(Stdio::null());
            let mut commit = commit.spawn().unwrap();
            let waits = wait_for("a commit", || {
                let waits = self.sql(waiting) != "0";
                (waits || commit.try_wait().unwrap().is_some()).then_some(waits)
            });
            commit.wait().unwrap();
            waits.then_some(())
        });
    }

    /// Waits until what was staged is in the log, so that no writer has a transaction open for it.
    pub fn drained(&self) {
        wait_for("what is staged", || (self.sql("SELECT count(*) FROM audit_staged") == "0").then_some(()));
    }
}

/// A running daemon; it is killed with this value.
pub struct Daemon {
    child: Child,
    pub config: PathBuf,
    pub socket: PathBuf,
    log: PathBuf,
}

impl Daemon {
    fn spawn(config: &Path, socket: &Path) -> Self {
        Self::run(Command::new(env!("CARGO_BIN_EXE_sidekeep")), config, socket)
    }

    fn run(mut command: Command, config: &Path, socket: &Path) -> Self {
        let log = config.with_extension("log");
        let output = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let child = command
            .args(["--config", config.to_str().unwrap(), "serve"])
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Self { child, config: config.to_owned(), socket: socket.to_owned(), log }
    }

    /// Waits until calls are answered.
    pub fn wait_ready(&self) {
        wait_for("the daemon", || {
            assert!(!self.ended(), "the daemon ended: {}", self.log());
            let health = Client::try_connect(&self.socket).ok()?.call("system.health", json!({})).ok()?;
            (health["status"] != "unavailable").then_some(())
        });
    }

    /// Waits until it listens.
    pub fn wait_listening(&self) {
        wait_for("the socket", || {
            assert!(!self.ended(), "the daemon ended: {}", self.log());
            Client::try_connect(&self.socket).ok()
        });
    }

    fn ended(&self) -> bool {
        // Safe to ask of a child that nobody has waited for: a zombie is still there.
        std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))
            .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.socket)
    }

    /// One call on a connection of its own.
    pub fn ok(&self, method: &str, params: Value) -> Value {
        self.client().ok(method, params)
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for its end, and answers its exit code.
    pub fn wait(&mut self) -> Option<i32> {
        wait_for("the daemon's end", || self.child.try_wait().unwrap()).code()
    }

    /// Ends it in order.
    pub fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        assert_eq!(self.wait(), Some(0), "{}", self.log());
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A run of a job to its end, however long it takes.
    pub fn run_job(&self, name: &str) -> Value {
        let begun = self.ok("job.run", json!({ "name": name, "wait": "25s" }));
        if begun["state"] == "running" { self.ended_run(name, &begun) } else { begun }
    }

    /// The end of a run that was begun.
    pub fn ended_run(&self, job: &str, begun: &Value) -> Value {
        wait_for("the end of the run", || {
            let page = self.ok("job.history", json!({ "name": job }));
            let found = page["items"].as_array().unwrap().iter().find(|item| item["run"] == begun["run"]);
            found.filter(|run| run["state"] != "running").cloned()
        })
    }

    /// Its answers are those of one that is well, whatever was done to it before. A look at PostgreSQL that took too long is
    /// made up for by the next.
    pub fn assert_well(&self) {
        wait_for("a daemon that is well", || {
            (self.ok("system.health", json!({}))["status"] == "ok").then_some(())
        });
        let log = self.log();
        assert!(!log.contains("panicked"), "{log}");
    }

    /// Waits until the only connection is the one that asks.
    pub fn wait_for_no_connections(&self) {
        let mut client = self.client();
        wait_for("the connections' end", || {
            (client.ok("system.status", json!({}))["connections"]["open"] == 1).then_some(())
        });
    }

    /// A figure of its memory in KiB, as in `VmRSS` and `VmHWM`.
    pub fn memory_kib(&self, figure: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{figure}:"))).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Starts it again with the same configuration, after its end.
    pub fn start_again(&self) -> Self {
        let daemon = Self::spawn(&self.config, &self.socket);
        daemon.wait_ready();
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // SIGCONT for one that a test has stopped.
        let _ = kill(self.pid(), Signal::SIGKILL);
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let last: Vec<&str> = log.lines().rev().take(50).collect();
            eprintln!("--- the end of {}", self.log.display());
            last.into_iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// Runs a command to its end.
pub fn sidekeep(arguments: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_sidekeep")).args(arguments).stdin(Stdio::null()).output().unwrap()
}
