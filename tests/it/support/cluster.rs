//! PostgreSQL for the tests: one cluster for all, and others for tests that hurt theirs.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sidekeep::config::Database;
use sidekeep::store::migrations;
use sidekeep::store::private::{Options, Private, SUPERUSER};

const TEMPLATE: &str = "sidekeep_template";
const PREFIX: &str = "sidekeep-it-";

/// A private cluster with a migrated database to copy.
pub struct Cluster {
    /// Nothing while it is down.
    private: Mutex<Option<Private>>,
    /// Where it is reached, with `USER` and `DATABASE` to be replaced.
    url: String,
    settings: Vec<(String, String)>,
    /// How far off its clock is, and the programs that go by it.
    clock: Option<tempfile::TempDir>,
    path: PathBuf,
    made: AtomicU32,
    _directory: Option<tempfile::TempDir>,
}

impl Cluster {
    /// The one that tests share as long as they leave it whole.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| {
            sweep();
            // A static is never dropped: PostgreSQL ends with the process, and the next run sweeps the folder.
            let directory = tempfile::Builder::new().prefix(PREFIX).tempdir().unwrap().keep();
            Self::start_in(&directory, &[("max_connections", "400")], None, None)
        })
    }

    /// One that a test has to itself.
    pub fn own(settings: &[(&str, &str)]) -> Self {
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir().unwrap();
        let path = directory.path().to_path_buf();
        Self::start_in(&path, settings, None, Some(directory))
    }

    /// One whose clock can be set.
    pub fn with_clock() -> Self {
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir().unwrap();
        let path = directory.path().to_path_buf();
        Self::start_in(&path, &[], Some(fake_clock()), Some(directory))
    }

    /// Sets the clock of one that has its own so many seconds ahead of this host's.
    pub fn set_clock(&self, ahead: i64) {
        let off = self.clock.as_ref().unwrap().path().join("off");
        // At once: whoever reads it sees the old or the new.
        std::fs::write(off.with_extension("new"), format!("{ahead:+}")).unwrap();
        std::fs::rename(off.with_extension("new"), off).unwrap();
    }

    /// What gives a program the clock of this one, as if its host were the same, and slept while the clock was set ahead.
    pub fn host_clock(&self) -> [(&'static str, PathBuf); 2] {
        let folder = self.clock.as_ref().unwrap().path();
        let library = folder.join("host_clock.so");
        if !library.exists() {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/host_clock.c");
            let made =
                Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).status();
            assert!(made.expect("cc, of Debian's package gcc").success());
        }
        [("LD_PRELOAD", library), ("HOST_CLOCK", folder.join("off"))]
    }

    fn start_in(
        path: &Path,
        settings: &[(&str, &str)],
        clock: Option<tempfile::TempDir>,
        directory: Option<tempfile::TempDir>,
    ) -> Self {
        let binaries = clock.as_ref().map(|clock| clock.path().join("bin"));
        let options = Options { sync: false, settings, binaries: binaries.as_deref() };
        let private = Private::start(path, options).unwrap();
        private.provision(migrations::APP_ROLE, TEMPLATE).unwrap();
        migrate(&private.url(SUPERUSER, TEMPLATE));
        Self {
            url: private.url("USER", "DATABASE"),
            settings: settings.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            clock,
            path: path.to_owned(),
            private: Mutex::new(Some(private)),
            made: AtomicU32::new(0),
            _directory: directory,
        }
    }

    /// A standby that streams from this one, and is down yet. It is up when it was promoted.
    pub fn standby(&self) -> Self {
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir().unwrap();
        let path = directory.path().to_path_buf();
        let home = path.join("postgres");
        std::fs::create_dir(&home).unwrap();
        let source = self.socket_directory();
        let version = std::fs::read_to_string(self.data().join("PG_VERSION")).unwrap();
        let program = format!("/usr/lib/postgresql/{}/bin/pg_basebackup", version.trim());
        let done = Command::new(program)
            .args(["-D", home.join("data").to_str().unwrap(), "-h", source.to_str().unwrap()])
            .args(["-U", SUPERUSER, "-R", "-X", "stream", "-c", "fast", "--no-sync"])
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        // As the server's own directory is, down to its data.
        for (to, like) in [(&home, &source), (&home.join("data"), &self.data())] {
            let like = std::fs::metadata(like).unwrap();
            std::fs::set_permissions(to, like.permissions()).unwrap();
            let owner = format!("{}:{}", like.uid(), like.gid());
            assert!(Command::new("chown").arg("-R").arg(owner).arg(to).status().unwrap().success());
        }
        Self {
            url: self.url.replace(source.to_str().unwrap(), home.to_str().unwrap()),
            private: Mutex::new(None),
            settings: self.settings.clone(),
            clock: None,
            path,
            made: AtomicU32::new(0),
            _directory: Some(directory),
        }
    }

    /// Where the server keeps its data.
    pub fn data(&self) -> PathBuf {
        self.path.join("postgres/data")
    }

    /// Where its socket is.
    pub fn socket_directory(&self) -> PathBuf {
        self.path.join("postgres")
    }

    /// Statements as the superuser, in the database `postgres`.
    pub fn execute(&self, statements: &str) {
        sql(&self.owner_url("postgres"), statements);
    }

    /// Ends the server in order.
    pub fn down(&self) {
        self.private.lock().unwrap().take().unwrap().stop().unwrap();
    }

    /// Kills every process of the server at once.
    pub fn crash(&self) {
        self.signal(Signal::SIGKILL);
        drop(self.private.lock().unwrap().take());
    }

    /// Starts the server again, and returns when it is ready.
    pub fn up(&self) {
        let settings: Vec<_> = self.settings.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let binaries = self.clock.as_ref().map(|clock| clock.path().join("bin"));
        let options = Options { sync: false, settings: &settings, binaries: binaries.as_deref() };
        *self.private.lock().unwrap() = Some(Private::start(&self.path, options).unwrap());
    }

    /// Signals the postmaster and then every process it has started.
    pub fn signal(&self, signal: Signal) {
        let postmaster = self.pid();
        kill(postmaster, signal).unwrap();
        for process in children(postmaster) {
            // It may have ended by itself.
            let _ = kill(process, signal);
        }
    }

    /// The name of a fresh, migrated database.
    pub fn database(&self) -> String {
        let name = format!("t{}_{}", std::process::id(), self.made.fetch_add(1, Ordering::Relaxed));
        self.execute(&format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE}"));
        name
    }

    /// The name of a fresh database without a schema.
    pub fn empty_database(&self) -> String {
        let name = format!("t{}_{}", std::process::id(), self.made.fetch_add(1, Ordering::Relaxed));
        self.execute(&format!("CREATE DATABASE {name}"));
        name
    }

    pub fn url(&self, user: &str, database: &str) -> String {
        self.url.replacen("USER", user, 1).replacen("DATABASE", database, 1)
    }

    pub fn owner_url(&self, database: &str) -> String {
        self.url(SUPERUSER, database)
    }

    pub fn app_url(&self, database: &str) -> String {
        self.url(migrations::APP_ROLE, database)
    }

    /// The postmaster.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.private.lock().unwrap().as_ref().unwrap().pid())
    }
}

/// The processes whose parent is this one.
fn children(parent: Pid) -> Vec<Pid> {
    let of = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<i32>().ok()
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| of(*pid) == Some(parent.as_raw())).map(Pid::from_raw).collect()
}

/// Debian's library that gives a process another clock.
pub fn libfaketime() -> PathBuf {
    let found = std::fs::read_dir("/usr/lib")
        .unwrap()
        .flatten()
        .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.exists());
    found.expect("libfaketime, of Debian's package faketime")
}

/// PostgreSQL's programs, of which the server goes by a clock that a file beside them says.
fn fake_clock() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let real = std::fs::read_dir("/usr/lib/postgresql").unwrap().flatten();
    let mut real: Vec<PathBuf> =
        real.map(|entry| entry.path().join("bin")).filter(|bin| bin.join("initdb").exists()).collect();
    real.sort();
    let real = real.pop().expect("PostgreSQL, of Debian's package");
    let clock = tempfile::Builder::new().prefix("sc").tempdir().unwrap();
    std::fs::set_permissions(clock.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (binaries, off) = (clock.path().join("bin"), clock.path().join("off"));
    std::fs::write(&off, "+0").unwrap();
    std::fs::create_dir(&binaries).unwrap();
    for entry in std::fs::read_dir(&real).unwrap().flatten() {
        std::os::unix::fs::symlink(entry.path(), binaries.join(entry.file_name())).unwrap();
    }
    let postgres = binaries.join("postgres");
    std::fs::remove_file(&postgres).unwrap();
    let script = format!(
        "#!/bin/sh\nexport LD_PRELOAD={} FAKETIME_TIMESTAMP_FILE={} FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1\n\
         exec {} \"$@\"\n",
        libfaketime().display(),
        off.display(),
        real.join("postgres").display()
    );
    std::fs::write(&postgres, script).unwrap();
    std::fs::set_permissions(&postgres, std::fs::Permissions::from_mode(0o755)).unwrap();
    clock
}

/// Applies the migrations as `sidekeep migrate` does.
pub fn migrate(url: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let tracker = tokio_util::task::TaskTracker::new();
    runtime.block_on(migrations::apply(&Database::default(), url, &tracker)).unwrap();
}

/// What psql prints, unaligned, without headings.
pub fn sql(url: &str, query: &str) -> String {
    let done = Command::new("psql")
        .args([
            url,
            "-XqAt",
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
            "SET search_path = sidekeep, public",
            "-c",
            query,
        ])
        .output()
        .expect("psql, of Debian's postgresql-client");
    assert!(done.status.success(), "{query}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

/// Folders of runs that were killed: whoever runs holds a lock on its own, but for a while that its server is down.
fn sweep() {
    let entries = std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    let stale = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Ok(directory) = std::fs::File::open(path) else { return false };
        let old = path.metadata().and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
        name.starts_with(PREFIX)
            && old.is_some_and(|age| age.as_secs() > 3600)
            && nix::fcntl::Flock::lock(directory, nix::fcntl::FlockArg::LockExclusiveNonblock).is_ok()
    };
    for path in entries.map(|entry| entry.path()).filter(stale) {
        let _ = std::fs::remove_dir_all(path);
    }
}
