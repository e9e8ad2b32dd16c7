//! What must hold of a whole configuration: bounds, and keys that depend on each other. Knows nothing of files and places.

mod keeping;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub use keeping::is_safe;

use super::problem::Origin;
use super::url::Parsed;
use super::{AccessRule, Config, NameOrId, Period, SecretFile, Size, UrlOrFile};

/// The longest path that `sockaddr_un` holds, without its NUL.
const SOCKET_PATH_BYTES: usize = 107;

/// What a message needs beside its largest record.
const ENVELOPE: Size = Size::kib(4);

const MILLISECOND: Period = Period::millis(1);
const HOUR: Period = Period::seconds(3600);
/// A century of Julian years.
const CENTURY: Period = Period::seconds(100 * 31_557_600);

/// What is wrong with a configuration that says nothing about a database.
pub(super) const NO_DATABASE: &str =
    "no database is configured; set url, or url_file if it holds a password; `sidekeep setup` does so";

/// A key that breaks a rule, and how.
pub(super) type Breach = (String, String);

/// One look at a configuration.
struct Rules<'a> {
    config: &'a Config,
    set: &'a BTreeMap<String, Origin>,
    broken: &'a BTreeSet<String>,
    breaches: Vec<Breach>,
}

/// Checks every rule whose keys are sound: what was refused already is in `broken`, and causes no second complaint. The keys
/// that the sources `set` are blamed before defaults. Where the sources are not `complete`, nothing is said to be missing.
pub(super) fn check(
    config: &Config,
    set: &BTreeMap<String, Origin>,
    broken: &BTreeSet<String>,
    complete: bool,
) -> Vec<Breach> {
    let mut rules = Rules { config, set, broken, breaches: Vec::new() };
    rules.socket();
    rules.sizes();
    rules.counts();
    rules.periods();
    rules.access();
    rules.database(complete);
    rules.keyring();
    rules.audit();
    rules.keeping();
    rules.breaches
}

impl Rules<'_> {
    fn sound(&self, keys: &[&str]) -> bool {
        keys.iter().all(|key| !self.broken.contains(*key))
    }

    /// Whether neither the key nor what it stands in is broken already.
    fn whole(&self, key: &str) -> bool {
        let mut above = key.match_indices(['.', '[']).filter_map(|(at, _)| key.get(..at));
        self.sound(&[key]) && above.all(|above| self.sound(&[above]))
    }

    /// Complains about `key`, unless it or its section is broken already.
    fn refuse(&mut self, key: &str, message: impl Into<String>) {
        if self.whole(key) {
            self.breaches.push((key.to_owned(), message.into()));
        }
    }

    /// Complains about `key`, which does not go with one of `others`: about that one, where `key` has its default and only
    /// the other was set.
    fn refuse_beside(&mut self, key: &str, others: &[&str], message: &str) {
        match others.iter().find(|other| self.set.contains_key(**other)) {
            Some(other) if !self.set.contains_key(key) && self.whole(key) => {
                self.refuse(other, format!("{key}, at its default, {message}"));
            }
            _ => self.refuse(key, message),
        }
    }

    fn socket(&mut self) {
        let socket = &self.config.socket;
        let bytes = socket.path.as_os_str().as_bytes();
        if let Some(message) = path_fault(&socket.path) {
            self.refuse("socket.path", message);
        } else if bytes.len() > SOCKET_PATH_BYTES {
            let message = format!(
                "is {} bytes long, and the path of a Unix socket has at most {SOCKET_PATH_BYTES}; choose a shorter one",
                bytes.len()
            );
            self.refuse("socket.path", message);
        } else if bytes.ends_with(b"/") {
            self.refuse("socket.path", "must be a file, not a directory");
        }
        if socket.group.chars().any(|c| c.is_control() || c.is_whitespace() || c == ':') {
            self.refuse("socket.group", "must be the name or number of a group, or empty");
        }
        if socket.mode.0 & 0o600 != 0o600 {
            self.refuse("socket.mode", "must let its owner read and write, as \"0660\" does");
        }
    }

    fn sizes(&mut self) {
        let (socket, limits) = (&self.config.socket, &self.config.limits);
        let gib = Size::mib(1024);
        let ranges = [
            ("socket.max_message_bytes", socket.max_message_bytes, Size::kib(1), gib),
            ("limits.max_record_bytes", limits.max_record_bytes, Size::kib(1), Size::mib(256)),
            ("limits.max_answer_bytes", limits.max_answer_bytes, Size::kib(1), gib),
            ("limits.buffered_bytes", limits.buffered_bytes, Size::kib(1), Size::mib(64 * 1024)),
        ];
        for (key, value, min, max) in ranges {
            if value < min || value > max {
                self.refuse(key, format!("must be from {min} to {max}, and is {value}"));
            }
        }
        let holds = [
            ("socket.max_message_bytes", socket.max_message_bytes),
            ("limits.max_answer_bytes", limits.max_answer_bytes),
        ];
        for (key, value) in holds {
            let least = limits.max_record_bytes.bytes().saturating_add(ENVELOPE.bytes());
            if self.sound(&["limits.max_record_bytes"]) && value.bytes() < least {
                let message = format!(
                    "is {value}, too little for a record of limits.max_record_bytes ({}) and {ENVELOPE} around it",
                    limits.max_record_bytes
                );
                self.refuse_beside(key, &["limits.max_record_bytes"], &message);
            }
        }
        let most = socket.max_message_bytes.max(limits.max_answer_bytes);
        if self.sound(&["socket.max_message_bytes", "limits.max_answer_bytes"])
            && limits.buffered_bytes < most
        {
            let message = format!(
                "is {}, less than the largest message or answer ({most}), which could then never pass",
                limits.buffered_bytes
            );
            let mut larger = ["socket.max_message_bytes", "limits.max_answer_bytes"];
            if limits.max_answer_bytes > socket.max_message_bytes {
                larger.reverse();
            }
            self.refuse_beside("limits.buffered_bytes", &larger, &message);
        }
    }

    fn counts(&mut self) {
        let limits = &self.config.limits;
        let ranges = [
            ("limits.max_batch", limits.max_batch, 100_000),
            ("limits.connections", limits.connections, 1_000_000),
            ("limits.calls", limits.calls, 1_000_000),
            ("limits.calls_per_connection", limits.calls_per_connection, 100_000),
            ("database.pool", self.config.database.pool, 1000),
            ("audit.streams", self.config.audit.streams, 64),
        ];
        for (key, value, max) in ranges {
            if value == 0 || value > max {
                self.refuse(key, format!("must be from 1 to {max}, and is {value}"));
            }
        }
        if self.sound(&["limits.calls"]) && limits.calls > 0 && limits.calls_per_connection > limits.calls {
            let message = format!(
                "is {}, more than limits.calls ({}) allows over all connections",
                limits.calls_per_connection, limits.calls
            );
            self.refuse_beside("limits.calls_per_connection", &["limits.calls"], &message);
        }
    }

    fn periods(&mut self) {
        let (limits, database) = (&self.config.limits, &self.config.database);
        let ranges = [
            ("socket.drain", self.config.socket.drain, Period::seconds(0)),
            ("limits.call_timeout", limits.call_timeout, MILLISECOND),
            ("limits.read_timeout", limits.read_timeout, MILLISECOND),
            ("limits.write_timeout", limits.write_timeout, MILLISECOND),
            ("database.connect_timeout", database.connect_timeout, MILLISECOND),
            ("database.acquire_timeout", database.acquire_timeout, MILLISECOND),
            ("audit.max_wait", self.config.audit.max_wait, MILLISECOND),
        ];
        for (key, value, min) in ranges {
            if value < min || value > HOUR {
                self.refuse(key, format!("must be from {min} to {HOUR}, and is {value}"));
            }
        }
    }

    fn access(&mut self) {
        for (index, purpose) in self.config.access.purposes.iter().enumerate() {
            if purpose.is_empty() || purpose.chars().any(char::is_control) {
                self.refuse(
                    &format!("access.purposes[{index}]"),
                    "must not be empty or hold control characters",
                );
            }
        }
        for (index, rule) in self.config.access.rules.iter().enumerate() {
            self.rule(&format!("access.rules[{index}]"), rule);
        }
    }

    fn rule(&mut self, at: &str, rule: &AccessRule) {
        let part = |key: &str| format!("{at}.{key}");
        let (user, group, role, allow) = (part("user"), part("group"), part("role"), part("allow"));
        if self.sound(&[&user, &group]) {
            match (&rule.user, &rule.group) {
                (None, None) => {
                    self.refuse(at, "names nobody; set user or group to a name or a number");
                }
                (Some(_), Some(_)) => {
                    self.refuse(at, "has both user and group; write a rule for each");
                }
                _ => {}
            }
        }
        for (key, who) in [(&user, &rule.user), (&group, &rule.group)] {
            if matches!(who, Some(NameOrId::Name(name)) if name.is_empty()) {
                self.refuse(key, "must not be empty");
            }
        }
        if self.sound(&[&role, &allow]) && rule.role.is_none() && rule.allow.is_empty() {
            self.refuse(at, "allows nothing; set role, or allow = [\"method.*\"]");
        }
        for (index, glob) in rule.allow.iter().enumerate() {
            let fits = |b: u8| b.is_ascii_lowercase() || matches!(b, b'.' | b'_' | b'*');
            if glob.is_empty() || !glob.bytes().all(fits) {
                self.refuse(
                    &format!("{allow}[{index}]"),
                    "must be a method, or a pattern as in \"profile.*\": a-z, full stop, underscore and *",
                );
            }
        }
    }

    fn database(&mut self, complete: bool) {
        let database = &self.config.database;
        if let Some(message) = self.config.deployment.notice_file.as_deref().and_then(path_fault) {
            self.refuse("deployment.notice_file", message);
        }
        if let Some(message) = database.ca_file.as_deref().and_then(path_fault) {
            self.refuse("database.ca_file", message);
        }
        self.secret_path("database.url_file", database.url_file.as_ref());
        self.secret_path("database.migrate_url_file", database.migrate_url_file.as_ref());
        match (&database.url, &database.url_file) {
            (Some(_), Some(_)) => self.refuse(
                "database.url_file",
                "database.url is set too, and there is one database; leave one of them out",
            ),
            (None, None) if complete && !self.misspelt() => {
                self.refuse("database.url", NO_DATABASE);
            }
            _ => {}
        }
        if let Some(url) = &database.url {
            self.url("database.url", url, "database.url_file");
        }
        self.server("database.replica_url", database.replica_url.as_ref());
    }

    /// Whether what is missing may be there under a wrong name.
    fn misspelt(&self) -> bool {
        self.broken.iter().any(|key| !key.contains('.') || key.starts_with("database."))
    }

    /// A URL, which the file of another key may hold with its password.
    fn url(&mut self, key: &str, url: &str, file: &str) {
        match Parsed::read(url) {
            Err(message) => self.refuse(key, message),
            Ok(parsed) if parsed.password => self.refuse(
                key,
                format!(
                    "holds a password; put the whole URL into a file of mode 0640 and name that in {file}"
                ),
            ),
            Ok(parsed) => {
                if let Err(message) = parsed.with(self.config.database.tls)
                    && self.sound(&["database.tls"])
                {
                    self.refuse(key, message);
                }
            }
        }
    }

    fn server(&mut self, key: &str, server: Option<&UrlOrFile>) {
        match server {
            Some(UrlOrFile::Url(url)) => self.url(key, url, key),
            Some(UrlOrFile::File(file)) => self.secret_path(key, Some(file)),
            None => {}
        }
    }

    fn keyring(&mut self) {
        let least = Period::seconds(1);
        if let Some(again) = self.config.keyring.refuse_again
            && !(least..=CENTURY).contains(&again)
        {
            let message = format!("must be from {least} to {CENTURY}, and is {again}; leave it out for none");
            self.refuse("keyring.refuse_again", message);
        }
        let files = &self.config.keyring.key_files;
        if files.is_empty() {
            self.refuse("keyring.key_files", "must name a key; make one with `sidekeep keyring generate`");
        }
        for (index, file) in files.iter().enumerate() {
            let key = format!("keyring.key_files[{index}]");
            self.secret_path(&key, Some(file));
            if files.iter().take(index).any(|earlier| earlier == file) {
                self.refuse(&key, "is in the list already");
            }
        }
    }

    fn audit(&mut self) {
        let audit = &self.config.audit;
        let (least, most) = (Period::seconds(1), Period::YEAR);
        if !(least..=most).contains(&audit.idempotency) {
            let message = format!("must be from {least} to {most}, and is {}", audit.idempotency);
            self.refuse("audit.idempotency", message);
        }
        let Some(program) = audit.publish_command.first() else { return };
        if let Some(message) = path_fault(Path::new(program)) {
            self.refuse("audit.publish_command[0]", message);
        }
        if audit.publish_command.iter().any(|part| part.contains('\0')) {
            self.refuse("audit.publish_command", "must hold no NUL");
        }
        if audit.publish.is_some() {
            self.refuse(
                "audit.publish_command",
                "audit.publish is set too, and there is one publication; leave one of them out",
            );
        }
    }

    fn secret_path(&mut self, key: &str, file: Option<&SecretFile>) {
        if let Some(file) = file
            && !file.is_credential()
            && let Some(message) = path_fault(Path::new(&file.to_string()))
        {
            self.refuse(key, message);
        }
    }
}

/// A daemon has no directory that a relative path could mean.
fn path_fault(path: &Path) -> Option<&'static str> {
    if path.as_os_str().as_bytes().contains(&0) {
        Some("must hold no NUL")
    } else if !path.is_absolute() {
        Some("must be an absolute path, from / on")
    } else {
        None
    }
}
