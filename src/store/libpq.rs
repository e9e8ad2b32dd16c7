//! How a program that uses libpq (`pg_dump`, `pg_restore`) is told where to connect: to the very server of a connection, by
//! its environment, and with the password in a file that is nowhere but in memory.
//!
//! Runs no program. Nothing secret is ever in an argument or in the environment.

use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio_postgres::config::{ChannelBinding, Host, SslMode};
use zeroize::Zeroizing;

/// How a program names the file that is its standard input.
const PASSFILE: &str = "/proc/self/fd/0";

/// Where and how to connect.
pub struct Libpq {
    variables: Vec<(&'static str, Vec<u8>)>,
    keepalives: String,
    password: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Libpq {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Libpq")
    }
}

impl Libpq {
    /// As this configuration of one host says, with the certificates of this file where there is TLS.
    pub(super) fn new(config: &tokio_postgres::Config, ca_file: &Path, timeout: Duration) -> Self {
        let mut variables: Vec<(&'static str, Vec<u8>)> = vec![
            ("PGAPPNAME", b"sidekeep".to_vec()),
            ("PGGSSENCMODE", b"disable".to_vec()),
            ("PGPASSFILE", PASSFILE.into()),
            ("PGCONNECT_TIMEOUT", timeout.as_secs().max(2).to_string().into()),
        ];
        let mut set = |name, value: &[u8]| variables.push((name, value.to_vec()));
        match <[Host]>::first(config.get_hosts()) {
            Some(Host::Unix(path)) => set("PGHOST", path.as_os_str().as_bytes()),
            Some(Host::Tcp(name)) => set("PGHOST", name.as_bytes()),
            None => {}
        }
        if let Some(address) = <[std::net::IpAddr]>::first(config.get_hostaddrs()) {
            set("PGHOSTADDR", address.to_string().as_bytes());
        }
        if let Some(port) = <[u16]>::first(config.get_ports()) {
            set("PGPORT", port.to_string().as_bytes());
        }
        if let Some(user) = config.get_user() {
            set("PGUSER", user.as_bytes());
        }
        if let Some(database) = config.get_dbname() {
            set("PGDATABASE", database.as_bytes());
        }
        if let Some(options) = config.get_options() {
            set("PGOPTIONS", options.as_bytes());
        }
        if config.get_ssl_mode() == SslMode::Disable {
            set("PGSSLMODE", b"disable");
        } else {
            // What rustls does for the daemon's own connections.
            set("PGSSLMODE", b"verify-full");
            set("PGSSLROOTCERT", ca_file.as_os_str().as_bytes());
            set("PGSSLMINPROTOCOLVERSION", b"TLSv1.3");
        }
        match config.get_channel_binding() {
            ChannelBinding::Require => set("PGCHANNELBINDING", b"require"),
            ChannelBinding::Disable => set("PGCHANNELBINDING", b"disable"),
            _ => {}
        }
        let (seconds, millis) = (timeout.as_secs().max(1), timeout.as_millis());
        let keepalives = format!(
            "keepalives_idle={seconds} keepalives_interval={seconds} keepalives_count=3 tcp_user_timeout={millis}"
        );
        let password = Zeroizing::new(config.get_password().unwrap_or_default().to_vec());
        Self { variables, keepalives, password }
    }

    /// Tells a command where to connect, also by `--dbname`. Its standard input is taken: it is the password file.
    ///
    /// # Errors
    /// The system refuses a file in memory.
    pub fn tell(&self, command: &mut Command) -> std::io::Result<()> {
        use std::ffi::OsStr;
        for (name, value) in &self.variables {
            command.env(name, OsStr::from_bytes(value));
        }
        command.arg("--no-password").arg(format!("--dbname={}", self.keepalives));
        command.stdin(Stdio::from(self.passfile()?));
        Ok(())
    }

    /// A file of libpq's form (PostgreSQL's documentation, "The Password File") that ends with whoever has it open.
    fn passfile(&self) -> std::io::Result<File> {
        let mut file = File::from(memfd_create("passfile", MFdFlags::MFD_CLOEXEC)?);
        file.set_permissions(Permissions::from_mode(0o600))?;
        if !self.password.is_empty() {
            let mut line = Zeroizing::new(Vec::with_capacity(self.password.len().saturating_mul(2) + 16));
            line.extend_from_slice(b"*:*:*:*:");
            for byte in self.password.iter() {
                if b"\\:".contains(byte) {
                    line.push(b'\\');
                }
                line.push(*byte);
            }
            line.push(b'\n');
            file.write_all(&line)?;
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};
    use std::path::Path;
    use std::time::Duration;

    use super::Libpq;

    #[test]
    fn a_password_is_in_the_file_alone() {
        let url = "postgresql://owner:a%3Ab%5Cc@db.example.org:5433/records?hostaddr=192.0.2.1";
        let libpq = Libpq::new(&url.parse().unwrap(), Path::new("/etc/ca.pem"), Duration::from_secs(5));
        let mut text = String::new();
        let mut file = libpq.passfile().unwrap();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "*:*:*:*:a\\:b\\\\c\n");
        let mut command = std::process::Command::new("pg_dump");
        libpq.tell(&mut command).unwrap();
        let told = format!("{command:?}");
        for there in [
            "PGHOST=\"db.example.org\"",
            "PGHOSTADDR=\"192.0.2.1\"",
            "PGPORT=\"5433\"",
            "PGDATABASE=\"records\"",
            "verify-full",
            "/etc/ca.pem",
        ] {
            assert!(told.contains(there), "{there}: {told}");
        }
        assert!(!told.contains("a:b"), "{told}");
    }
}
