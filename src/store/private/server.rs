//! PostgreSQL's processes: started as the right user, watched, and ended with the process that started them.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::account::Account;
use super::{Error, SUPERUSER};

/// How PostgreSQL names its own directory: by a descriptor that it inherits. So the directories above need not be open to
/// its user (`/root` is not, nor is what `mktemp -d` makes), and the socket's name is short.
pub(super) const HOME: &str = "/proc/self/fd/9";
/// How often to look whether the server is ready.
const STEP: Duration = Duration::from_millis(5);

/// How to start a program of PostgreSQL's.
#[derive(Debug)]
pub(super) struct Launcher<'a> {
    pub(super) account: Account,
    pub(super) home: &'a Path,
}

impl Launcher<'_> {
    /// Makes a new cluster in `data`, and leaves it to the caller to bring it to the disk.
    pub(super) fn initdb(&self, binaries: &Path, data: &str) -> Result<(), Error> {
        let mut command = self.command(&binaries.join("initdb"));
        command
            .args(["-D", &format!("{HOME}/{data}"), "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8"])
            .args(["--locale=C", "--data-checksums", "--no-instructions", "--no-sync"]);
        let done = command.output().map_err(|source| Error::io("cannot be started", binaries, source))?;
        if done.status.success() {
            return Ok(());
        }
        let said = [done.stdout, done.stderr].concat();
        Err(Error::Failed { program: "initdb", said: last_lines(&String::from_utf8_lossy(&said)) })
    }

    /// Starts the server; what it says goes to `log`.
    pub(super) fn start(&self, binaries: &Path, log: &Path, arguments: &[String]) -> Result<Server, Error> {
        let failed = |source| Error::io("cannot be opened", log, source);
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(log)
            .map_err(failed)?;
        let log_from = file.metadata().map_err(failed)?.len();
        let mut command = self.command(&binaries.join("postgres"));
        command
            .args(["-D", &format!("{HOME}/data")])
            .args(arguments)
            .stdout(file.try_clone().map_err(failed)?)
            .stderr(file);
        let (child, watch) =
            keep(command).map_err(|source| Error::io("cannot be started", binaries, source))?;
        Ok(Server { child, watch, log: log.into(), log_from })
    }

    /// `setpriv` takes root's place and has the kernel end the program with us; the shell hands it the directory.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", r#"home=$1; shift; exec "$@" 9<"$home""#, "sh"])
            .arg(self.home)
            .args(["setpriv", "--pdeathsig=INT"]);
        if let Some((uid, gid)) = self.account {
            command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()]);
        }
        command
            .arg("--")
            .arg(program)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null())
            // Ctrl-C is for us; we end the server when nobody needs it any more.
            .process_group(0);
        command
    }
}

/// A running server. Ended when dropped.
#[derive(Debug)]
pub(super) struct Server {
    child: Pid,
    watch: Arc<Watch>,
    log: PathBuf,
    log_from: u64,
}

impl Server {
    pub(super) fn pid(&self) -> i32 {
        self.child.as_raw()
    }

    /// Returns when the server accepts connections, by the word of its own lock file.
    pub(super) fn ready(&self, data: &Path, patience: Duration) -> Result<(), Error> {
        let began = Instant::now();
        loop {
            if self.is_ready(data) {
                return Ok(());
            }
            if self.watch.ended_within(STEP).is_some() {
                return Err(Error::Failed { program: "PostgreSQL", said: self.said() });
            }
            if began.elapsed() > patience {
                return Err(self.late("get ready", patience));
            }
        }
    }

    fn is_ready(&self, data: &Path) -> bool {
        let Ok(text) = std::fs::read_to_string(data.join("postmaster.pid")) else { return false };
        let mut lines = text.lines();
        let own = lines.next().and_then(|pid| pid.trim().parse().ok()) == Some(self.child.as_raw());
        // Line 8 (miscadmin.h, LOCK_FILE_LINE_PM_STATUS); what `pg_ctl --wait` reads too.
        own && lines.nth(6).is_some_and(|status| status.trim() == "ready")
    }

    /// Tells the server to end and waits; at last makes it stop without a checkpoint.
    pub(super) fn stop(&self, signal: Signal, patience: Duration) -> Result<(), Error> {
        self.watch.signal(self.child, signal);
        if self.watch.ended_within(patience).is_some() {
            return Ok(());
        }
        self.watch.signal(self.child, Signal::SIGQUIT);
        self.watch.ended_within(patience);
        Err(self.late("end", patience))
    }

    fn late(&self, what: &'static str, patience: Duration) -> Error {
        Error::Late { what, seconds: patience.as_secs(), log: self.log.clone() }
    }

    /// The end of what the server said since it was started.
    fn said(&self) -> String {
        let mut text = Vec::new();
        let read = File::open(&self.log).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.log_from))?;
            file.read_to_end(&mut text)
        });
        match read {
            Ok(_) => last_lines(&String::from_utf8_lossy(&text)),
            Err(error) => format!("and its log {} cannot be read: {error}", self.log.display()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Who needs to know how it ended calls `stop`.
        drop(self.stop(Signal::SIGINT, Duration::from_secs(10)));
    }
}

/// Starts the program from a thread that lives as long as it: the kernel's word about a parent's death is about the thread.
fn keep(mut command: Command) -> std::io::Result<(Pid, Arc<Watch>)> {
    let watch = Arc::new(Watch::default());
    let (started, start) = mpsc::channel();
    let shared = watch.clone();
    std::thread::Builder::new().name("postgres".into()).spawn(move || match command.spawn() {
        Err(error) => drop(started.send(Err(error))),
        Ok(child) => {
            let pid = i32::try_from(child.id()).map(Pid::from_raw).map_err(std::io::Error::other);
            let id = pid.as_ref().ok().copied();
            drop(started.send(pid));
            if let Some(id) = id {
                shared.wait(id, child);
            }
        }
    })?;
    let pid = start.recv().map_err(std::io::Error::other)??;
    Ok((pid, watch))
}

/// How a child ended, as soon as it did.
#[derive(Debug, Default)]
struct Watch {
    ended: Mutex<Option<std::io::Result<ExitStatus>>>,
    changed: Condvar,
}

impl Watch {
    /// Waits for the child without reaping it, then reaps it under the lock: no signal can reach a process id that was freed.
    fn wait(&self, id: Pid, mut child: Child) {
        while waitid(Id::Pid(id), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
            == Err(nix::errno::Errno::EINTR)
        {}
        let mut ended = self.lock();
        *ended = Some(child.wait());
        self.changed.notify_all();
    }

    fn signal(&self, id: Pid, signal: Signal) {
        let ended = self.lock();
        if ended.is_none() {
            // It is our child and not reaped: the worst is that it runs on, which the caller's wait will show.
            let _ = kill(id, signal);
        }
    }

    fn ended_within(&self, time: Duration) -> Option<()> {
        let (ended, _) = self
            .changed
            .wait_timeout_while(self.lock(), time, |ended| ended.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        ended.as_ref().map(|_| ())
    }

    fn lock(&self) -> MutexGuard<'_, Option<std::io::Result<ExitStatus>>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last lines of a log, in one.
fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines.len().saturating_sub(4);
    lines.get(last..).unwrap_or_default().join(" | ")
}
