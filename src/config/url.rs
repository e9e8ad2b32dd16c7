//! Database URLs: what PostgreSQL's own tools would take and sidekeep does not is refused by name. Opens no connection.
//!
//! A URL that leaves this module always says `sslmode=disable` or `sslmode=require`: without it, PostgreSQL clients fall
//! back to sending everything in clear.

use std::net::IpAddr;
use std::str::FromStr;

use tokio_postgres::config::Host;
use zeroize::Zeroizing;

use super::{Config, SecretError, SecretFile, Tls, UrlOrFile, secret};

/// libpq's parameters that sidekeep takes from elsewhere or not at all, and what to do instead.
const REFUSED: &[(&str, &str)] = &[
    ("sslrootcert", "name the file in database.ca_file"),
    ("sslcert", "sidekeep does not sign in with a client certificate; use a password in database.url_file"),
    ("sslkey", "sidekeep does not sign in with a client certificate; use a password in database.url_file"),
    (
        "sslpassword",
        "sidekeep does not sign in with a client certificate; use a password in database.url_file",
    ),
    ("sslcertmode", "sidekeep does not sign in with a client certificate; leave it out"),
    ("sslcrl", "sidekeep reads no revocation lists; leave it out"),
    ("sslcrldir", "sidekeep reads no revocation lists; leave it out"),
    ("sslsni", "the host name is always sent; leave it out"),
    ("sslcompression", "TLS never compresses; leave it out"),
    ("ssl_min_protocol_version", "sidekeep speaks TLS 1.3 only; leave it out"),
    ("ssl_max_protocol_version", "sidekeep speaks TLS 1.3 only; leave it out"),
    ("requiressl", "set database.tls"),
    ("service", "write host, port and database into the URL; service files are not read"),
    ("servicefile", "write host, port and database into the URL; service files are not read"),
    ("passfile", "put the URL with its password into a file and name it in database.url_file"),
    ("gssencmode", "sidekeep does not speak GSSAPI; leave it out"),
    ("krbsrvname", "sidekeep does not speak GSSAPI; leave it out"),
    ("gsslib", "sidekeep does not speak GSSAPI; leave it out"),
    ("gssdelegation", "sidekeep does not speak GSSAPI; leave it out"),
    ("requirepeer", "restrict who may write in the socket's directory; leave it out"),
    ("require_auth", "use channel_binding=require; leave it out"),
    ("client_encoding", "it is always UTF-8; leave it out"),
    ("fallback_application_name", "use application_name"),
    ("replication", "sidekeep makes ordinary connections; leave it out"),
    ("keepalives_count", "use keepalives_retries"),
];

/// What a URL says, as far as it matters here.
#[derive(Debug)]
pub(super) struct Parsed {
    /// What its `sslmode` asks for.
    pub(super) tls: Option<Tls>,
    /// Whether it holds a password.
    pub(super) password: bool,
    /// Whether all its hosts are Unix sockets.
    sockets: bool,
    /// Whether nothing leaves this machine.
    local: bool,
    /// The URL without `sslmode`.
    url: Zeroizing<String>,
}

impl Parsed {
    /// Reads a URL; the error never quotes it.
    pub(super) fn read(url: &str) -> Result<Self, String> {
        const FORM: &str = "as in \"postgresql://sidekeep_app@db.example.org/sidekeep\"";
        if !url.starts_with("postgresql://") && !url.starts_with("postgres://") {
            return Err(format!("must be a URL, {FORM}"));
        }
        if url.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err("must hold no white space; write a space as %20".into());
        }
        let (base, query) = split_query(url);
        let mut tls = None;
        let mut kept = Vec::new();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            if name == "sslmode" {
                tls = Some(sslmode(value)?);
            } else if let Some((name, instead)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
                return Err(format!("{name} is not taken from a URL: {instead}"));
            } else {
                kept.push(parameter);
            }
        }
        let separator = if kept.is_empty() { "" } else { "?" };
        let url = Zeroizing::new(format!("{base}{separator}{}", kept.join("&")));
        let config = tokio_postgres::Config::from_str(&url)
            .map_err(|error| format!("is not a URL of PostgreSQL, {FORM}{}", reason(&error, base, query)))?;
        let hosts = config.get_hosts();
        if hosts.is_empty() && config.get_hostaddrs().is_empty() {
            return Err(format!("names no host; write one, or the directory of a socket: {FORM}"));
        }
        let sockets = hosts.iter().all(|host| matches!(host, Host::Unix(_))) && !hosts.is_empty();
        let loopback = config.get_hostaddrs().iter().all(IpAddr::is_loopback)
            && (!config.get_hostaddrs().is_empty() || hosts.iter().all(stays_here));
        Ok(Self { tls, password: config.get_password().is_some(), sockets, local: sockets || loopback, url })
    }

    /// The URL with an explicit `sslmode`, as `database.tls` wants it.
    pub(super) fn with(&self, tls: Tls) -> Result<Zeroizing<String>, String> {
        match (self.tls, tls) {
            (Some(Tls::Off), Tls::VerifyFull) if !self.sockets => {
                return Err(
                    "sslmode=disable contradicts database.tls = \"verify-full\"; leave it out, or set \
                            database.tls = \"off\""
                        .into(),
                );
            }
            (Some(Tls::VerifyFull), Tls::Off) => {
                return Err("its sslmode contradicts database.tls = \"off\"; leave one of them out".into());
            }
            _ => {}
        }
        if tls == Tls::Off && !self.local {
            return Err(
                "database.tls = \"off\" would send everything in clear; it is only for a Unix socket or a \
                        loopback address"
                    .into(),
            );
        }
        let mode = if tls == Tls::Off || self.sockets { "disable" } else { "require" };
        let separator = if split_query(&self.url).1.is_empty() { '?' } else { '&' };
        Ok(Zeroizing::new(format!("{}{separator}sslmode={mode}", *self.url)))
    }
}

/// The parameters begin at the first `?` after the credentials, which end at the first `@`.
fn split_query(url: &str) -> (&str, &str) {
    let credentials = url.find('@').map_or(0, |at| at + 1);
    let query = url.get(credentials..).and_then(|rest| rest.find('?')).map(|at| credentials + at);
    query.and_then(|at| Some((url.get(..at)?, url.get(at + 1..)?))).unwrap_or((url, ""))
}

/// rustls always checks chain and name, so that `require` gets more than it asks for.
fn sslmode(value: &str) -> Result<Tls, String> {
    match value {
        "disable" => Ok(Tls::Off),
        "require" | "verify-full" => Ok(Tls::VerifyFull),
        "allow" | "prefer" => {
            Err(format!("sslmode={value} may end up in clear; use sslmode=verify-full, which is the default"))
        }
        "verify-ca" => {
            Err("sslmode=verify-ca does not check the name; use sslmode=verify-full, which is the default"
                .into())
        }
        _ => Err("sslmode must be verify-full, require or disable".into()),
    }
}

fn stays_here(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
        }
    }
}

/// The driver names the option at fault, and of a value nothing. An unknown option may be a piece of a password that has a
/// question mark: it is named where the password cannot reach so far.
fn reason(error: &tokio_postgres::Error, base: &str, query: &str) -> String {
    let Some(cause) = std::error::Error::source(error).map(ToString::to_string) else { return String::new() };
    if cause.starts_with("invalid value for option") {
        return format!(": {cause}");
    }
    let login = base.split_once("://").map_or(base, |(_, login)| login);
    // Behind the one @ that there is; or there is neither that nor a colon, and so no password.
    let apart = !query.contains('@') && login.matches('@').count() == usize::from(login.contains([':', '@']));
    match cause.strip_prefix("unknown option `").and_then(|name| name.strip_suffix('`')) {
        Some(name) if apart && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') => {
            format!(": it has no option {name}")
        }
        _ => String::new(),
    }
}

/// Why there is no URL to connect to.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseUrlError {
    /// Neither is set.
    #[error("no database is configured; set database.url, or database.url_file")]
    Unset,
    /// The file cannot be used.
    #[error("{key}: {source}")]
    Secret {
        /// The key that names the file.
        key: &'static str,
        /// Why.
        source: SecretError,
    },
    /// The URL cannot be used.
    #[error("{key}: {at}{message}")]
    Wrong {
        /// The key that holds the URL or names its file.
        key: &'static str,
        /// The file, with a colon.
        at: String,
        /// What is wrong; never the URL.
        message: String,
    },
}

/// The URL that the daemon serves with: `database.url`, or what `database.url_file` holds at this moment. It says `sslmode`
/// explicitly: `disable` for a Unix socket or with `tls = "off"`, else `require`.
///
/// # Errors
/// Says which key is at fault, and never what the URL is.
pub fn database_url(config: &Config) -> Result<Zeroizing<String>, DatabaseUrlError> {
    let database = &config.database;
    match (&database.url_file, &database.url) {
        (Some(file), _) => from_file("database.url_file", file, database.tls),
        (None, Some(url)) => Parsed::read(url)
            .and_then(|parsed| parsed.with(database.tls))
            .map_err(|message| DatabaseUrlError::Wrong { key: "database.url", at: String::new(), message }),
        (None, None) => Err(DatabaseUrlError::Unset),
    }
}

/// The URL of the owner of the tables: what `database.migrate_url_file` holds, else the daemon's own.
///
/// # Errors
/// Says which key is at fault, and never what the URL is.
pub fn migrate_url(config: &Config) -> Result<Zeroizing<String>, DatabaseUrlError> {
    match &config.database.migrate_url_file {
        Some(file) => from_file("database.migrate_url_file", file, config.database.tls),
        None => database_url(config),
    }
}

/// The URL that dumps are taken by: what `database.direct_url_file` holds, else that of the owner of the tables.
///
/// # Errors
/// Says which key is at fault, and never what the URL is.
pub fn direct_url(config: &Config) -> Result<Zeroizing<String>, DatabaseUrlError> {
    match &config.database.direct_url_file {
        Some(file) => from_file("database.direct_url_file", file, config.database.tls),
        None => migrate_url(config),
    }
}

/// The URL of the server on which a drill makes a database, where one is named.
///
/// # Errors
/// Says which key is at fault, and never what the URL is.
pub fn drill_url(config: &Config) -> Result<Option<Zeroizing<String>>, DatabaseUrlError> {
    server("backup.drill_url", config.backup.drill_url.as_ref(), config.database.tls)
}

/// The URL of the replica, where one is named.
///
/// # Errors
/// Says which key is at fault, and never what the URL is.
pub fn replica_url(config: &Config) -> Result<Option<Zeroizing<String>>, DatabaseUrlError> {
    server("database.replica_url", config.database.replica_url.as_ref(), config.database.tls)
}

fn server(
    key: &'static str,
    server: Option<&UrlOrFile>,
    tls: Tls,
) -> Result<Option<Zeroizing<String>>, DatabaseUrlError> {
    let wrong = |message| DatabaseUrlError::Wrong { key, at: String::new(), message };
    match server {
        None => Ok(None),
        Some(UrlOrFile::Url(url)) => {
            Parsed::read(url).and_then(|parsed| parsed.with(tls)).map(Some).map_err(wrong)
        }
        Some(UrlOrFile::File(file)) => from_file(key, file, tls).map(Some),
    }
}

/// A URL that was given on the command line.
///
/// # Errors
/// Says what is wrong with it, and never what it is. One with a password is refused: everybody on the host may read arguments.
pub fn given_url(text: &str, tls: Tls) -> Result<Zeroizing<String>, String> {
    let parsed = Parsed::read(text)?;
    if parsed.password {
        return Err("holds a password; put the whole URL into a file and give that with --into-file".into());
    }
    parsed.with(tls)
}

/// A URL from a file that was named on the command line.
///
/// # Errors
/// As [`database_url`].
pub fn url_of(file: &SecretFile, tls: Tls) -> Result<Zeroizing<String>, DatabaseUrlError> {
    from_file("--into-file", file, tls)
}

/// The same URL with another database, whose name needs no encoding.
pub fn with_database(url: &str, name: &str) -> Zeroizing<String> {
    let (base, query) = split_query(url);
    let authority = base.find("://").map_or(0, |at| at + 3);
    let rest = base.get(authority..).unwrap_or_default();
    let end = rest.find('/').map_or(base.len(), |at| authority + at);
    let separator = if query.is_empty() { "" } else { "?" };
    Zeroizing::new(format!("{}/{name}{separator}{query}", base.get(..end).unwrap_or_default()))
}

fn from_file(key: &'static str, file: &SecretFile, tls: Tls) -> Result<Zeroizing<String>, DatabaseUrlError> {
    let url = secret(file).map_err(|source| DatabaseUrlError::Secret { key, source })?;
    Parsed::read(&url).and_then(|parsed| parsed.with(tls)).map_err(|message| DatabaseUrlError::Wrong {
        key,
        at: format!("{file}: "),
        message,
    })
}

#[cfg(test)]
mod tests {
    use super::{Parsed, REFUSED, Tls};

    fn with(url: &str, tls: Tls) -> Result<String, String> {
        Parsed::read(url)?.with(tls).map(|url| url.to_string())
    }

    #[test]
    fn a_url_always_leaves_with_an_explicit_sslmode() {
        let cases = [
            ("postgresql://a@db/x", Tls::VerifyFull, "postgresql://a@db/x?sslmode=require"),
            ("postgres://a@db/x?sslmode=verify-full", Tls::VerifyFull, "postgres://a@db/x?sslmode=require"),
            (
                "postgresql://a@db,db2:6432/x?sslmode=require&target_session_attrs=read-write",
                Tls::VerifyFull,
                "postgresql://a@db,db2:6432/x?target_session_attrs=read-write&sslmode=require",
            ),
            ("postgresql://a@localhost/x", Tls::Off, "postgresql://a@localhost/x?sslmode=disable"),
            ("postgresql://a@[::1]/x?sslmode=disable", Tls::Off, "postgresql://a@[::1]/x?sslmode=disable"),
            (
                "postgresql://a@/x?host=/run/postgresql",
                Tls::VerifyFull,
                "postgresql://a@/x?host=/run/postgresql&sslmode=disable",
            ),
            (
                "postgresql://a:p?q@%2Frun%2Fpostgresql/x",
                Tls::VerifyFull,
                "postgresql://a:p?q@%2Frun%2Fpostgresql/x?sslmode=disable",
            ),
        ];
        for (url, tls, expected) in cases {
            assert_eq!(with(url, tls).as_deref(), Ok(expected), "{url}");
        }
    }

    #[test]
    fn nothing_leaves_the_machine_in_clear() {
        for url in [
            "postgresql://a@db/x",
            "postgresql://a@127.0.0.1,10.0.0.1/x",
            "postgresql://a@localhost/x?hostaddr=10.0.0.1",
        ] {
            assert!(with(url, Tls::Off).unwrap_err().contains("in clear"), "{url}");
        }
        let error = with("postgresql://a@db/x?sslmode=disable", Tls::VerifyFull).unwrap_err();
        assert!(error.contains("database.tls"), "{error}");
        assert!(with("postgresql://a@localhost/x?sslmode=require", Tls::Off).is_err());
    }

    #[test]
    fn what_libpq_alone_understands_is_refused_by_name() {
        for (name, instead) in REFUSED {
            let error = Parsed::read(&format!("postgresql://a@db/x?{name}=y")).unwrap_err();
            assert!(error.contains(name) && error.contains(instead), "{error}");
        }
        for mode in ["allow", "prefer", "verify-ca", ""] {
            let error = Parsed::read(&format!("postgresql://a@db/x?sslmode={mode}")).unwrap_err();
            assert!(error.contains("sslmode"), "{error}");
        }
    }

    #[test]
    fn an_unknown_option_is_named() {
        for url in
            ["postgresql://a@db/x?bogus=1", "postgresql://a:b@db:5432/x?bogus=1", "postgresql://db/x?bogus=1"]
        {
            let error = Parsed::read(url).unwrap_err();
            assert!(error.ends_with(": it has no option bogus"), "{url}: {error}");
        }
    }

    #[test]
    fn an_error_never_quotes_the_url() {
        for url in [
            "hunter2",
            "host=db password=hunter2",
            "postgresql://a:hunter2@db:x/",
            "postgresql://a:hunter2@/x",
            "postgresql://a:b?hunter2=1",
            "postgresql://a:b@c?hunter2=1@db/x",
            "postgresql://a:b@c@d?hunter2=1",
            "postgresql://a@db/x?port=hunter2",
            "postgresql://a:hunter2 @db",
        ] {
            let error = Parsed::read(url).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
