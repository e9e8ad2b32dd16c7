//! PgBouncer before a cluster: the one on the PATH, else Debian's package, unpacked below `target/` and installed nowhere.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use super::{Cluster, wait_for};

/// The package, and those of its libraries that PostgreSQL does not bring along, by the names of Debian's releases.
const PACKAGES: &[&[&str]] =
    &[&["pgbouncer", "libc-ares2", "libevent-2.1-7"], &["pgbouncer", "libcares2", "libevent-2.1-7t64"]];

const PORT: u16 = 6432;

/// A running pooler; it ends with this value.
pub struct Pooler {
    child: Child,
    directory: tempfile::TempDir,
}

impl Pooler {
    /// A pooler in this mode; nothing where there is none to be had, which is said.
    pub fn start(cluster: &Cluster, mode: &str) -> Option<Self> {
        let root = installed()?;
        let directory = tempfile::Builder::new().prefix("sb").tempdir().unwrap();
        let path = directory.path();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
        let users = path.join("users");
        std::fs::write(&users, "\"sidekeep_app\" \"\"\n").unwrap();
        let settings = path.join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host={}\n[pgbouncer]\nunix_socket_dir = {}\nlisten_addr =\nlisten_port = {PORT}\n\
             auth_type = trust\nauth_file = {}\npool_mode = {mode}\ndefault_pool_size = 4\n",
            cluster.socket_directory().display(),
            path.display(),
            users.display()
        );
        std::fs::write(&settings, text).unwrap();
        let mut command = Command::new(program(root));
        command.arg(&settings).env("LD_LIBRARY_PATH", libraries(root)).stdin(Stdio::null());
        let log = std::fs::File::create(path.join("log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        if nix::unistd::geteuid().is_root() {
            // It runs as nobody's root, and the cluster's socket is for the cluster's user.
            let owner = std::fs::metadata(cluster.data()).unwrap().uid();
            let user = nix::unistd::User::from_uid(owner.into()).unwrap().unwrap();
            command.args(["-u", &user.name]);
        }
        let pooler = Self { child: command.spawn().unwrap(), directory };
        wait_for("the pooler", || UnixStream::connect(pooler.socket()).ok());
        Some(pooler)
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join(format!(".s.PGSQL.{PORT}"))
    }

    /// The same database, by way of the pooler.
    pub fn url(&self, url: &str, cluster: &Cluster) -> String {
        let to = self.directory.path().to_str().unwrap();
        format!("{}&port={PORT}", url.replace(cluster.socket_directory().to_str().unwrap(), to))
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program(root: &Path) -> PathBuf {
    let own = root.join("usr/sbin/pgbouncer");
    if own.exists() { own } else { "pgbouncer".into() }
}

fn libraries(root: &Path) -> PathBuf {
    let found = std::fs::read_dir(root.join("usr/lib")).into_iter().flatten().flatten();
    let mut found =
        found.map(|entry| entry.path()).filter(|path| path.to_string_lossy().ends_with("-linux-gnu"));
    found.next().unwrap_or_default()
}

/// Where it was unpacked.
fn installed() -> Option<&'static Path> {
    static ROOT: OnceLock<Option<PathBuf>> = OnceLock::new();
    ROOT.get_or_init(|| {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pooler");
        let runs = || {
            let version = Command::new(program(&root))
                .arg("--version")
                .env("LD_LIBRARY_PATH", libraries(&root))
                .output();
            version.is_ok_and(|done| done.status.success())
        };
        if !runs() && !PACKAGES.iter().any(|packages| unpack(&root, packages) && runs()) {
            eprintln!(
                "not looked at: there is no pgbouncer, and apt-get cannot download it (apt-get update?)"
            );
            return None;
        }
        Some(root)
    })
    .as_deref()
}

fn unpack(root: &Path, packages: &[&str]) -> bool {
    let _ = std::fs::remove_dir_all(root);
    std::fs::create_dir_all(root).unwrap();
    let downloaded = Command::new("apt-get").arg("download").args(packages).current_dir(root).output();
    if !downloaded.is_ok_and(|done| done.status.success()) {
        return false;
    }
    let files = std::fs::read_dir(root).unwrap().flatten().map(|entry| entry.path());
    let packages: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "deb")).collect();
    let unpacked = |file: &PathBuf| Command::new("dpkg-deb").arg("-x").arg(file).arg(root).status();
    packages.iter().all(|file| unpacked(file).is_ok_and(|status| status.success()))
}
