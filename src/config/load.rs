//! Finds the sources of the configuration, puts them together, and reports everything that is wrong at once. Reads no secret
//! and connects to nothing.
//!
//! Order, later wins key by key: the file, `conf.d/*.toml` beside it in name order, `$SIDEKEEP__SECTION__KEY`. Sections are
//! merged; a list, and so `[[access.rules]]` too, is replaced as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use config::{Map, Value};

use super::check::{self, Checked};
use super::environment::{self, Environment};
use super::keys::{self, Kind, Node};
use super::problem::{ConfigError, Origin, Problem};
use super::source::{self, Unread};
use super::url::Parsed;
use super::{Config, rules};

/// Where the configuration is, when nothing says otherwise.
pub const DEFAULT_FILE: &str = "/etc/sidekeep/sidekeep.toml";

/// A configuration that was checked, and where it is from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration itself.
    pub config: Config,
    /// The files that were read, in order.
    pub sources: Vec<PathBuf>,
    /// Where each key that is set was set last, by its path; what is not in it is a default.
    pub origin: BTreeMap<String, Origin>,
}

/// A key with its value in force, as `config show` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The path of the key.
    pub key: String,
    /// The value in TOML; none where the key is unset.
    pub value: Option<String>,
    /// Where it was set.
    pub origin: Origin,
}

impl Loaded {
    /// This message with the place in front where the key was set that it begins with, if it begins with one.
    pub fn located(&self, message: &str) -> String {
        let key = message.split(':').next().unwrap_or_default();
        let above = key.rmatch_indices(['.', '[']).filter_map(|(at, _)| key.get(..at));
        match std::iter::once(key).chain(above).find_map(|key| self.origin.get(key)) {
            Some(origin) => format!("{origin}: {message}"),
            None => message.to_owned(),
        }
    }

    /// Every key with its value in force and where that is from, in the order of their paths.
    pub fn settings(&self) -> Vec<Setting> {
        let values = toml::Value::try_from(&self.config).ok();
        let setting = |key: String| {
            let value = key.split('.').try_fold(values.as_ref()?, |value, part| value.get(part));
            let origin = self.origin.get(&key).cloned().unwrap_or(Origin::Default);
            Some(Setting { value: value.map(ToString::to_string), origin, key })
        };
        let mut keys: Vec<_> = keys::ROOT
            .leaves()
            .into_iter()
            .map(|leaf| leaf.split("[]").next().unwrap_or_default().to_owned())
            .collect();
        keys.dedup();
        keys.into_iter().filter_map(setting).collect()
    }
}

/// Reads the configuration: `path` (the command line's `--config`), else `$SIDEKEEP_CONFIG`, else [`DEFAULT_FILE`].
///
/// # Errors
/// Names everything that is wrong, each with file, line, column and key, or with its environment variable.
pub fn load(path: Option<&Path>) -> Result<Loaded, ConfigError> {
    load_with(path, &Environment::of_process())
}

/// Where a client finds the daemon: `socket.path`, from the same sources as [`load`]. What else is wrong with them does not
/// matter to it, and where it may not read this host's configuration, or there is none, the default stands.
///
/// # Errors
/// Names what leaves open where the socket is.
pub fn socket_path(path: Option<&Path>) -> Result<PathBuf, ConfigError> {
    socket_path_with(path, &Environment::of_process())
}

pub(super) fn socket_path_with(
    path: Option<&Path>,
    environment: &Environment,
) -> Result<PathBuf, ConfigError> {
    let (main, sources) = Sources::of(path, environment);
    sources.socket_path(&main, path.is_some() || environment.file.is_some())
}

/// What the sources say so far.
#[derive(Default)]
struct Sources {
    files: Vec<PathBuf>,
    layers: Vec<Layer>,
    origins: BTreeMap<String, Origin>,
    broken: BTreeSet<String>,
    problems: Vec<Problem>,
    /// A source could not be read to its end.
    partial: bool,
    /// The problems of sources that say nothing to a client.
    hidden: Vec<Problem>,
}

pub(super) fn load_with(path: Option<&Path>, environment: &Environment) -> Result<Loaded, ConfigError> {
    let (main, sources) = Sources::of(path, environment);
    sources.finish(&main)
}

impl Sources {
    /// All of them, and the file that comes first.
    fn of(path: Option<&Path>, environment: &Environment) -> (PathBuf, Self) {
        let main = path
            .map(Path::to_path_buf)
            .or_else(|| environment.file.as_ref().map(PathBuf::from))
            .unwrap_or_else(|| DEFAULT_FILE.into());
        let mut sources = Self::default();
        sources.file(&main, path.is_none() && environment.file.is_none());
        match source::fragments(&main) {
            Ok(fragments) => fragments.iter().for_each(|path| sources.file(path, false)),
            Err(unread) => sources.unreadable(unread),
        }
        for (name, value) in &environment.overrides {
            sources.variable(name, value);
        }
        (main, sources)
    }

    fn file(&mut self, path: &Path, is_default: bool) {
        match source::read(path, is_default) {
            Ok(text) => {
                self.files.push(path.to_owned());
                let file = source::parse(path, &text);
                self.partial |= file.partial;
                self.add(file.checked);
            }
            Err(unread) => self.unreadable(unread),
        }
    }

    fn unreadable(&mut self, Unread { problem, hidden }: Unread) {
        self.partial = true;
        if hidden {
            self.hidden.push(problem.clone());
        }
        self.problems.push(problem);
    }

    fn add(&mut self, mut checked: Checked) {
        checked.problems.sort();
        self.problems.append(&mut checked.problems);
        self.broken.append(&mut checked.broken);
        for list in checked.origins.keys() {
            self.origins.retain(|key, _| !key.strip_prefix(list).is_some_and(|rest| rest.starts_with('[')));
        }
        self.origins.append(&mut checked.origins);
        self.layers.push(Layer(checked.values));
    }

    /// A variable is read as what its key takes: text as it stands, a list as a TOML array or with commas between its items.
    fn variable(&mut self, name: &str, value: &OsStr) {
        let path = environment::key(name);
        let origin = Origin::Variable(name.to_owned());
        let node = path.iter().try_fold(&*keys::ROOT, |node, part| node.child(part));
        let refusal = match value.to_str() {
            None => Some("must be UTF-8"),
            Some(value) => match literal(node, value) {
                None => Some("must be a list, as in [\"a\", \"b\"], or items with commas between them"),
                Some(literal) => {
                    let quoted: Vec<_> = path.iter().map(|part| quoted(part)).collect();
                    let text = format!("{} = {literal}", quoted.join("."));
                    if let Ok(table) = toml::de::DeTable::parse(&text) {
                        let place = |_| origin.clone();
                        return self.add(check::table(table.get_ref(), &place));
                    }
                    Some("cannot be read")
                }
            },
        };
        let key = path.join(".");
        self.broken.insert(key.clone());
        self.problems.extend(refusal.map(|message| Problem { at: origin, key, message: message.into() }));
    }

    /// What all of them say together; nothing where they contradict their types, which is a problem then.
    fn merge(&mut self, main: &Path) -> Option<Config> {
        let builder =
            self.layers.drain(..).fold(config::Config::builder(), |builder, layer| builder.add_source(layer));
        match builder.build().and_then(config::Config::try_deserialize::<Config>) {
            Ok(config) => Some(config),
            Err(error) => {
                let at = Origin::Source(main.to_owned());
                self.problems.push(Problem { at, key: String::new(), message: error.to_string() });
                None
            }
        }
    }

    fn socket_path(mut self, main: &Path, is_named: bool) -> Result<PathBuf, ConfigError> {
        let merged = self.merge(main);
        let named = Origin::Source(main.to_owned());
        // A problem without a key may hide where it is; a wrong key of [socket] may have been meant to say it.
        self.problems.retain(|problem| {
            let open = problem.key.is_empty() || problem.key.split('.').next() == Some("socket");
            open && (!self.hidden.contains(problem) || (is_named && problem.at == named))
        });
        match merged {
            Some(config) if self.problems.is_empty() => Ok(config.socket.path),
            _ => Err(ConfigError::new(self.problems)),
        }
    }

    fn finish(mut self, main: &Path) -> Result<Loaded, ConfigError> {
        let Some(mut config) = self.merge(main) else { return Err(ConfigError::new(self.problems)) };
        self.imply_tls(&mut config);
        for (key, message) in rules::check(&config, &self.origins, &self.broken, !self.partial) {
            let at = self.place(&key, main);
            self.problems.push(Problem { at, key, message });
        }
        if self.problems.is_empty() {
            Ok(Loaded { config, sources: self.files, origin: self.origins })
        } else {
            Err(ConfigError::new(self.problems))
        }
    }

    /// A URL's `sslmode=disable` sets `database.tls`, where nothing else does.
    fn imply_tls(&mut self, config: &mut Config) {
        const TLS: &str = "database.tls";
        let asked = config.database.url.as_deref().and_then(|url| Parsed::read(url).ok()?.tls);
        let set = self.origins.contains_key(TLS) || self.broken.contains(TLS);
        if let (Some(tls), Some(origin), false) = (asked, self.origins.get("database.url").cloned(), set) {
            config.database.tls = tls;
            self.origins.insert(TLS.into(), origin);
        }
    }

    /// Where a key was set; for one that was not, where its section begins, or the file.
    fn place(&self, key: &str, main: &Path) -> Origin {
        let above = key.rmatch_indices(['.', '[']).filter_map(|(at, _)| key.get(..at));
        std::iter::once(key)
            .chain(above)
            .find_map(|key| self.origins.get(key).cloned())
            .unwrap_or_else(|| Origin::File { path: main.to_owned(), line: 1, column: 1 })
    }
}

/// A variable's value as TOML; none where it should be a list and is not.
fn literal(node: Option<&Node>, value: &str) -> Option<String> {
    let parses = |text: &str| toml::de::DeValue::parse(text).is_ok();
    match node {
        Some(Node::List(_)) if value.trim_start().starts_with('[') => parses(value).then(|| value.to_owned()),
        Some(Node::List(_)) => {
            let items = value.split(',').map(str::trim).filter(|item| !item.is_empty());
            Some(format!("[{}]", items.map(quoted).collect::<Vec<_>>().join(", ")))
        }
        Some(Node::Leaf(Kind::Whole | Kind::Boolean)) if parses(value.trim()) => {
            Some(value.trim().to_owned())
        }
        _ => Some(quoted(value)),
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A checked source, as the `config` crate merges them.
#[derive(Clone, Debug)]
struct Layer(Map<String, Value>);

impl config::Source for Layer {
    fn clone_into_box(&self) -> Box<dyn config::Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}
