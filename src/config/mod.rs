//! What an operator may set: one typed value for every key, with its default. `config/sidekeep.toml` documents each.
//!
//! The only module that reads the environment; it reads no secret before it is used, and connects to nothing.

use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use destination::{Bucket, Destination};
pub use environment::{journal_stream, of_object_stores, scratch_directory};
pub use jobs::{CronExpression, Job, Jobs, TimeZone};
pub use keeping::{Archive, Backup, Gs, Keep, Retention, Rhythm, S3};
pub use load::{DEFAULT_FILE, Loaded, Setting, load, socket_path};
pub use problem::{ConfigError, Origin, Problem};
pub use public_key::PublicKey;
pub use recipient::Recipient;
pub use rules::is_safe;
pub use secret::{SecretError, secret};
pub use url::{
    DatabaseUrlError, database_url, direct_url, drill_url, given_url, migrate_url, replica_url, url_of,
    with_database,
};
pub use values::{DeploymentName, FileMode, Period, SecretFile, Size, UrlOrFile};

mod check;
mod destination;
mod environment;
mod jobs;
mod keeping;
mod keys;
mod load;
mod problem;
mod public_key;
mod recipient;
mod rules;
mod secret;
#[cfg(test)]
mod shipped;
mod source;
#[cfg(test)]
mod tests;
mod url;
mod values;

/// Everything that can be configured.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Who this installation is.
    pub deployment: Deployment,
    /// Where applications reach the daemon.
    pub socket: Socket,
    /// What may grow, and how far.
    pub limits: Limits,
    /// Who may call what.
    pub access: Access,
    /// PostgreSQL.
    pub database: Database,
    /// The keys that wrap people's keys.
    pub keyring: Keyring,
    /// The audit log.
    pub audit: Audit,
    /// The keys that sign checkpoints.
    pub signing: Signing,
    /// What an erasure leaves.
    pub erasure: Erasure,
    /// How long what is over is kept.
    pub retention: Retention,
    /// The archive of the audit log.
    pub archive: Archive,
    /// Dumps of the database.
    pub backup: Backup,
    /// How object stores of Amazon's kind are reached.
    pub s3: S3,
    /// How object stores of Google's are reached.
    pub gs: Gs,
    /// Work that is done by the clock.
    pub jobs: Jobs,
    /// Figures for a monitoring system.
    pub metrics: Metrics,
    /// The daemon's own log.
    pub log: Log,
}

/// `[deployment]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Deployment {
    /// Bound into every sealed value: it cannot be changed once there are records.
    pub name: DeploymentName,
    /// The notice for people that every export carries (GDPR Art. 13 to 15).
    pub notice_file: Option<PathBuf>,
}

/// `[socket]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Socket {
    /// The path of the Unix socket, at most 107 bytes.
    pub path: PathBuf,
    /// The group that owns the socket; empty leaves the daemon's own.
    pub group: String,
    /// Its permissions.
    pub mode: FileMode,
    /// How long calls in flight may go on after the first signal.
    pub drain: Period,
    /// The longest message, in either framing.
    pub max_message_bytes: Size,
}

impl Default for Socket {
    fn default() -> Self {
        Self {
            path: "/run/sidekeep/sidekeep.sock".into(),
            group: "sidekeep-users".into(),
            mode: FileMode(0o660),
            drain: Period::seconds(10),
            max_message_bytes: Size::mib(4),
        }
    }
}

/// `[limits]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// How long a call may take, by the daemon's own clock.
    pub call_timeout: Period,
    /// The largest metadata, preferences or message.
    pub max_record_bytes: Size,
    /// The largest answer.
    pub max_answer_bytes: Size,
    /// The most requests in one batch.
    pub max_batch: usize,
    /// The most open connections.
    pub connections: usize,
    /// The most calls in flight, over all connections.
    pub calls: usize,
    /// The most calls in flight on one connection; it is not read while it has as many.
    pub calls_per_connection: usize,
    /// The most bytes of requests and answers that are in memory at once, over all connections.
    pub buffered_bytes: Size,
    /// How long an unfinished message may stand still.
    pub read_timeout: Period,
    /// How long a client may leave its answers unread.
    pub write_timeout: Period,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            call_timeout: Period::seconds(30),
            max_record_bytes: Size::mib(1),
            max_answer_bytes: Size::mib(4),
            max_batch: 1000,
            connections: 10_000,
            calls: 4096,
            calls_per_connection: 64,
            buffered_bytes: Size::mib(256),
            read_timeout: Period::seconds(60),
            write_timeout: Period::seconds(30),
        }
    }
}

/// `[access]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Access {
    /// Refuse methods that read or change personal data without `context.purpose`.
    pub require_purpose: bool,
    /// Where this is not empty, the only purposes that a caller may name.
    pub purposes: Vec<String>,
    /// Who may call what; these replace the defaults.
    pub rules: Vec<AccessRule>,
}

/// One of `[[access.rules]]`: a user or a group, and a role or the methods it may call.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AccessRule {
    /// A user's name or number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<NameOrId>,
    /// A group's name or number, primary or supplementary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<NameOrId>,
    /// What it may do, by role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// What it may do, by method: `*` stands for any characters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
}

/// A user or group as the operator writes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "must be a name in quotes, or a number from 0 to 4294967295")]
pub enum NameOrId {
    /// By number.
    Id(u32),
    /// By name.
    Name(String),
}

/// A named set of methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// An application: records and audit entries.
    App,
    /// Whoever answers the requests of persons.
    Privacy,
    /// Whoever checks the log.
    Auditor,
    /// Whoever keeps the daemon running.
    Operator,
    /// Everything.
    Admin,
}

/// `[database]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    /// How the daemon connects; without a password.
    pub url: Option<String>,
    /// A file that holds the URL, which may then hold a password.
    pub url_file: Option<SecretFile>,
    /// A file with the URL of the owner of the tables, for `sidekeep migrate` alone.
    pub migrate_url_file: Option<SecretFile>,
    /// A file with the URL that dumps are taken by, of a role that may read everything, and past any pooler.
    pub direct_url_file: Option<SecretFile>,
    /// A replica to read from what never changes, in one go: a URL, or a file that holds one.
    pub replica_url: Option<UrlOrFile>,
    /// Whether the server's certificate is checked.
    pub tls: Tls,
    /// The certificates that the server's must descend from (PEM).
    pub ca_file: Option<PathBuf>,
    /// The most connections.
    pub pool: usize,
    /// How long connecting to one host may take.
    pub connect_timeout: Period,
    /// How long a call waits for a free connection.
    pub acquire_timeout: Period,
}

impl Default for Database {
    fn default() -> Self {
        Self {
            url: None,
            url_file: None,
            migrate_url_file: None,
            direct_url_file: None,
            replica_url: None,
            tls: Tls::VerifyFull,
            ca_file: None,
            pool: 8,
            connect_timeout: Period::seconds(5),
            acquire_timeout: Period::seconds(5),
        }
    }
}

/// `database.tls`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// TLS 1.3, the chain and the host name checked. A Unix socket needs none.
    #[default]
    VerifyFull,
    /// No TLS: only to a Unix socket or a loopback address.
    Off,
}

/// `[keyring]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Keyring {
    /// The key-encryption keys: the first wraps new keys, the others still open old ones.
    pub key_files: Vec<SecretFile>,
    /// Where the keyring's own backup is: a destination without versions or object lock.
    pub backup: Option<Destination>,
    /// For how long the user id of an erased person is not taken again; unset, it may be at once.
    pub refuse_again: Option<Period>,
    /// Who can open the copy that `sidekeep keyring generate` writes beside a new key: public keys of age.
    pub escrow_recipients: Vec<Recipient>,
}

impl Default for Keyring {
    fn default() -> Self {
        Self {
            key_files: vec![SecretFile::new("/etc/sidekeep/keys/kek")],
            backup: None,
            refuse_again: None,
            escrow_recipients: Vec::new(),
        }
    }
}

/// `[audit]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Audit {
    /// Which calls are entered in the log by themselves.
    pub access: AuditAccess,
    /// How many streams this daemon writes at once.
    pub streams: usize,
    /// How long an id stays taken, at least.
    pub idempotency: Period,
    /// How long an entry waits for room in the queue.
    pub max_wait: Period,
    /// Where checkpoints are published.
    pub publish: Option<Destination>,
    /// Instead: the command that publishes them, with its arguments.
    pub publish_command: Vec<String>,
    /// What to do when the log is behind its publication.
    pub on_gap: OnGap,
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            access: AuditAccess::All,
            streams: 2,
            idempotency: Period::seconds(24 * 3600),
            max_wait: Period::seconds(5),
            publish: None,
            publish_command: Vec::new(),
            on_gap: OnGap::Refuse,
        }
    }
}

/// `audit.on_gap`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnGap {
    /// Nothing is appended or signed until somebody declares the gap.
    #[default]
    Refuse,
    /// The gap is declared at once.
    Record,
}

/// `audit.access`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AuditAccess {
    /// Each call about personal data.
    #[default]
    All,
    /// Each that changes something.
    Writes,
    /// None.
    None,
}

/// `[signing]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Signing {
    /// The Ed25519 keys that sign checkpoints: the first signs, and the others have signed before.
    pub key_files: Vec<SecretFile>,
    /// The public halves of keys that have signed before, and are lost.
    pub lost_keys: Vec<PublicKey>,
}

/// `[erasure]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Erasure {
    /// What becomes of consents.
    pub consents: KeepConsents,
}

/// `erasure.consents`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KeepConsents {
    /// They are deleted with everything else.
    #[default]
    Delete,
    /// Their clear columns are kept as evidence, under a number that leads to nobody.
    Keep,
}

/// `[metrics]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Where `GET /metrics` and `GET /healthz` also answer, over TCP; unset for the socket alone.
    #[serde(deserialize_with = "values::address")]
    pub listen: Option<SocketAddr>,
}

/// `[log]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// The least that is logged.
    pub level: LogLevel,
    /// Where and how.
    pub format: LogFormat,
}

/// `log.level`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Only what failed.
    Error,
    /// And what an operator should look at.
    Warn,
    /// And what happens seldom.
    #[default]
    Info,
    /// And every call.
    Debug,
    /// And every step.
    Trace,
}

/// `log.format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// journald under systemd, text on a terminal, else JSON.
    #[default]
    Auto,
    /// systemd's journal, with fields.
    Journald,
    /// A JSON object a line, on standard error.
    Json,
    /// For people, on standard error.
    Text,
}
