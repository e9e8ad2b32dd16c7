//! PostgreSQL as its administrator, through `psql`: it knows every way to log in, and none of them is ours.
//!
//! A password goes to it in the environment, which only its own user can read, and never as an argument.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nix::unistd::geteuid;
use zeroize::Zeroizing;

use crate::cli::exit::{Code, coded};
use crate::config;
use crate::config::SecretFile;

/// The oldest PostgreSQL that sidekeep runs on.
const OLDEST: u32 = 140_000;

/// How to reach the server.
#[derive(Debug)]
pub(super) struct Admin {
    /// The first words of the command line.
    command: Vec<String>,
    password: Option<Zeroizing<String>>,
    /// Where the daemon will reach the same server: hosts and ports, and the query of a URL.
    hosts: String,
    query: String,
}

impl Admin {
    /// The PostgreSQL of this host, as the operating system's user `postgres`, whom it lets in by name.
    pub(super) fn local(port: u16) -> anyhow::Result<Self> {
        let mut command = Vec::new();
        if geteuid().is_root() {
            for word in ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--"] {
                command.push(word.to_owned());
            }
        }
        command.extend(
            ["psql", "-h", "/var/run/postgresql", "-U", "postgres", "-d", "postgres"].map(String::from),
        );
        command.extend(["-p".to_owned(), port.to_string()]);
        Ok(Self { command, password: None, hosts: format!("127.0.0.1:{port}"), query: String::new() })
    }

    /// The server that the URL in the file names.
    pub(super) fn by_url_file(file: &Path) -> anyhow::Result<Self> {
        let url = config::secret(&SecretFile::new(file.to_string_lossy()))?;
        let parts = Parts::of(&url)
            .map_err(|problem| coded(Code::Usage, format!("{}: {problem}", file.display())))?;
        let command = ["psql".to_owned(), "-d".to_owned(), parts.without_password()];
        Ok(Self {
            command: command.into(),
            password: parts.password,
            hosts: parts.hosts.to_owned(),
            query: parts.query.to_owned(),
        })
    }

    /// Whether the connection never leaves this host.
    pub(super) fn is_local(&self) -> bool {
        let loopback = |host: &str| {
            host.is_empty()
                || host.starts_with("localhost")
                || host.starts_with("127.")
                || host.starts_with("[::1]")
        };
        let remote_query = self.query.contains("host=") && !self.query.contains("host=/");
        self.hosts.split(',').all(loopback) && !remote_query
    }

    /// That the server is there and new enough.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let version = self.query("SHOW server_version_num").context(
            "PostgreSQL is not reached; on Debian: apt-get install postgresql, or name another one with --admin-url-file",
        )?;
        match version.parse::<u32>() {
            Ok(version) if version >= OLDEST => Ok(()),
            _ => bail!("this PostgreSQL is of version {version}; sidekeep needs 14 or later"),
        }
    }

    /// Runs statements, each committed by itself, and answers what the last one selects.
    pub(super) fn query(&self, statements: &str) -> anyhow::Result<String> {
        psql(&self.command, self.password.as_ref(), statements)
    }

    /// Whether the URL in the file opens a session.
    pub(super) fn logs_in(&self, file: &Path) -> anyhow::Result<bool> {
        let url = config::secret(&SecretFile::new(file.to_string_lossy()))?;
        let Ok(parts) = Parts::of(&url) else { return Ok(false) };
        let command = ["psql".to_owned(), "-d".to_owned(), parts.without_password()];
        Ok(psql(&command, parts.password.as_ref(), "SELECT 1").is_ok())
    }

    /// Where a role reaches a database of this server.
    pub(super) fn url_for(&self, role: &str, password: &str, database: &str) -> Zeroizing<String> {
        let Self { hosts, query, .. } = self;
        Zeroizing::new(format!("postgresql://{role}:{password}@{hosts}/{database}{query}"))
    }
}

/// A password of 192 random bits, of characters that a URL takes as they are.
pub(super) fn generate_password() -> anyhow::Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0_u8; 24]);
    aws_lc_rs::rand::fill(bytes.as_mut_slice()).map_err(|_| anyhow::anyhow!("there is no randomness"))?;
    Ok(Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_slice())))
}

fn psql(
    command: &[String],
    password: Option<&Zeroizing<String>>,
    statements: &str,
) -> anyhow::Result<String> {
    let Some((program, arguments)) = command.split_first() else { bail!("no command") };
    let mut child = Command::new(program);
    child
        .args(arguments)
        .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--no-password"])
        .args(["--set=ON_ERROR_STOP=1", "--file=-"])
        .env("PGCONNECT_TIMEOUT", "5")
        .env("PGAPPNAME", "sidekeep setup")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(password) = password {
        child.env("PGPASSWORD", password.as_str());
    }
    let mut child = child.spawn().with_context(|| format!("{program} cannot be started"))?;
    if let Some(mut input) = child.stdin.take() {
        // Where psql could not connect it has ended already, and what it said is worth more than the broken pipe.
        drop(writeln!(input, "{statements}\n;"));
    }
    let done = child.wait_with_output().with_context(|| format!("{program} failed"))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    let said = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" | ");
    bail!("{said}")
}

/// `postgresql://USER:PASSWORD@HOSTS/DATABASE?QUERY`, taken apart.
struct Parts<'a> {
    user: &'a str,
    password: Option<Zeroizing<String>>,
    hosts: &'a str,
    database: &'a str,
    /// With its question mark.
    query: &'a str,
}

impl<'a> Parts<'a> {
    fn of(url: &'a str) -> Result<Self, &'static str> {
        const FORM: &str = "must be a URL, as in postgresql://USER:PASSWORD@HOST:PORT/postgres";
        let rest =
            url.strip_prefix("postgresql://").or_else(|| url.strip_prefix("postgres://")).ok_or(FORM)?;
        let (rest, query) = rest.split_at(rest.find('?').unwrap_or(rest.len()));
        if query.contains("password=") {
            return Err("the password must stand before the host, not in the query");
        }
        let (authority, database) = rest.split_once('/').unwrap_or((rest, "postgres"));
        let (login, hosts) = authority.rsplit_once('@').ok_or(FORM)?;
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(percent_decode(password).ok_or(FORM)?)),
            None => (login, None),
        };
        Ok(Self { user, password, hosts, database, query })
    }

    fn without_password(&self) -> String {
        let Self { user, hosts, database, query, .. } = self;
        format!("postgresql://{user}@{hosts}/{database}{query}")
    }
}

fn percent_decode(text: &str) -> Option<Zeroizing<String>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            let value = digit(rest.next()?)? * 16 + digit(rest.next()?)?;
            bytes.push(u8::try_from(value).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes.to_vec()).ok().map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_and_shown_without_its_password() {
        let parts = Parts::of("postgres://ad%20min:p%40:s/s@a:1,b:2/db?sslmode=require");
        assert!(parts.is_err(), "a slash must be encoded");
        let parts = Parts::of("postgres://ad%20min:p%40:s@a:1,b:2/db?sslmode=require").unwrap();
        assert_eq!(parts.password.as_ref().unwrap().as_str(), "p@:s");
        assert_eq!(parts.without_password(), "postgresql://ad%20min@a:1,b:2/db?sslmode=require");
        let parts = Parts::of("postgresql://postgres@/postgres?host=/run/x").unwrap();
        assert_eq!((parts.hosts, parts.query), ("", "?host=/run/x"));
        assert!(parts.password.is_none());
        for wrong in [
            "",
            "http://a@b/",
            "postgresql://host/db",
            "postgresql://u:%4@h/d",
            "postgresql://u@h/d?password=x",
        ] {
            assert!(Parts::of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_loopback_and_sockets_are_local() {
        let admin = |hosts: &str, query: &str| Admin {
            command: Vec::new(),
            password: None,
            hosts: hosts.into(),
            query: query.into(),
        };
        for (hosts, query) in [("127.0.0.1:5432", ""), ("", "?host=/run"), ("localhost,[::1]:1", "")] {
            assert!(admin(hosts, query).is_local(), "{hosts}{query}");
        }
        for (hosts, query) in
            [("db.example.org", ""), ("127.0.0.1,db", ""), ("", "?host=db"), ("10.0.0.1:1", "")]
        {
            assert!(!admin(hosts, query).is_local(), "{hosts}{query}");
        }
    }

    #[test]
    fn passwords_are_long_and_differ() {
        let (one, other) = (generate_password().unwrap(), generate_password().unwrap());
        assert_eq!(one.len(), 32);
        assert_ne!(one, other);
        assert!(one.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
    }
}
