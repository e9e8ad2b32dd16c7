//! `sidekeep dev`: everything that the daemon needs in one folder, and then the daemon itself.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::exit::{Code, coded};
use super::migrate::migrate;
use super::output::note;
use super::serve::serve;
use crate::config;
use crate::config::{Destination, Loaded};
use crate::daemon::Settings;
use crate::durable;
use crate::keyring::{SigningKey, kek};
use crate::store::private::{self, Options, Private};

/// The role that the daemon serves as.
const ROLE: &str = "sidekeep_app";
/// The database.
const DATABASE: &str = "sidekeep";

/// Serve with a private PostgreSQL, everything in one folder, to try sidekeep and to develop
///
/// The first time it makes a PostgreSQL cluster, a key, the schema and DIR/sidekeep.toml; the next time it goes on with
/// them, an edited sidekeep.toml included. Nothing outside DIR is touched, and no network is used. PostgreSQL ends with
/// this command, however that ends. Run by root, PostgreSQL runs as the user `postgres` (or `nobody`).
///
/// To start afresh, delete DIR.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The folder; it may hold other files
    #[arg(long, value_name = "DIR", default_value = ".sidekeep-dev")]
    dir: PathBuf,
    /// The folder of PostgreSQL's programs; without it the newest that is installed
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let folder = Folder::new(&args.dir)?;
    // A mistake in an edited file is found before anything is started.
    if folder.config.exists() {
        folder.load()?;
    }
    let postgres = start(&folder, args.pg_bin.as_deref())?;
    let served = prepare(&folder, &postgres).and_then(|loaded| {
        let socket = loaded.config.socket.path.clone();
        serve(Settings { loaded, path: Some(folder.config.clone()) }, || greet(&folder, &socket))
    });
    // Whatever became of the daemon, the cluster ends in order.
    let stopped = postgres.stop().context("PostgreSQL");
    served.and(stopped)
}

/// The names in the folder, absolute.
#[derive(Debug)]
struct Folder {
    root: String,
    config: PathBuf,
    socket: String,
    kek: String,
    signing: String,
    owner_url: String,
}

impl Folder {
    fn new(path: &Path) -> anyhow::Result<Self> {
        let absolute = std::path::absolute(path).with_context(|| path.display().to_string())?;
        // As it is spelled by who starts it: through a link, commands find it by the link.
        let Some(root) = absolute.to_str().map(|root| root.trim_end_matches('/').to_owned()) else {
            return Err(coded(Code::Usage, format!("{}: must be UTF-8", path.display())));
        };
        Ok(Self {
            config: Path::new(&root).join("sidekeep.toml"),
            socket: format!("{root}/sidekeep.sock"),
            kek: format!("{root}/keys/kek"),
            signing: format!("{root}/keys/signing"),
            owner_url: format!("{root}/keys/owner-url"),
            root,
        })
    }

    /// The URL of a folder in this one, in quotes.
    fn destination(&self, name: &str) -> String {
        quoted(&Destination::Directory(format!("{}/{name}", self.root).into()).to_string())
    }

    fn load(&self) -> anyhow::Result<Loaded> {
        config::load(Some(&self.config)).map_err(|problem| coded(Code::Config, problem))
    }
}

fn start(folder: &Folder, binaries: Option<&Path>) -> anyhow::Result<Private> {
    let fresh = !Path::new(&folder.root).join("postgres/data").exists();
    if fresh {
        note(&format!("making a private PostgreSQL in {}/postgres ...", folder.root));
    }
    let options = Options { sync: true, settings: &[("cluster_name", "sidekeep-dev")], binaries };
    Private::start(Path::new(&folder.root), options).map_err(|error| match error {
        private::Error::InUse { .. } => {
            coded(Code::Busy, format!("{}: another `sidekeep dev` is running here", folder.root))
        }
        private::Error::NotThere { .. } => coded(Code::Usage, error),
        other => other.into(),
    })
}

/// Makes what is missing, in the order in which a start that is cut off can go on: the configuration comes last.
fn prepare(folder: &Folder, postgres: &Private) -> anyhow::Result<Loaded> {
    postgres.provision(ROLE, DATABASE)?;
    durable::create_directory(Path::new(&folder.root).join("keys").as_path(), 0o700)
        .with_context(|| format!("{}/keys: cannot be made", folder.root))?;
    let owner_url = postgres.url(private::SUPERUSER, DATABASE);
    write(&folder.owner_url, &format!("{owner_url}\n"))?;
    let url = postgres.url(ROLE, DATABASE);
    if !folder.config.exists() {
        make_key(&folder.kek, &kek::generate()?)?;
        make_key(&folder.signing, &SigningKey::generate()?)?;
        durable::create_new(&folder.config, configuration(folder, &url).as_bytes(), 0o644)
            .with_context(|| format!("{}: cannot be written", folder.config.display()))?;
        note(&format!("made: database {DATABASE}, role {ROLE}, a key, {}", folder.config.display()));
    }
    let loaded = folder.load()?;
    let config = &loaded.config;
    if config.database.url.as_deref() != Some(&url) {
        note(&format!(
            "note: database.url in {} is not that of the private PostgreSQL, {url}. Has the folder moved? \
             Then delete that file, and it is made anew.",
            folder.config.display()
        ));
    }
    let owner = config::migrate_url(config).map_err(|problem| coded(Code::Config, problem))?;
    let applied = migrate(&config.database, &owner).context("the schema")?;
    if !applied.is_empty() {
        note(&format!("made the schema: {} migrations", applied.len()));
    }
    Ok(loaded)
}

fn write(path: &str, text: &str) -> anyhow::Result<()> {
    durable::write(Path::new(path), text.as_bytes(), 0o600)
        .with_context(|| format!("{path}: cannot be written"))
}

/// Makes the key, or takes the one that a start that was cut off has made.
fn make_key(path: &str, text: &str) -> anyhow::Result<()> {
    match durable::create_new(Path::new(path), text.as_bytes(), 0o600) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("{path}: cannot be written"))
        }
        _ => Ok(()),
    }
}

fn configuration(folder: &Folder, url: &str) -> String {
    let (socket, kek, owner_url) = (quoted(&folder.socket), quoted(&folder.kek), quoted(&folder.owner_url));
    let signing = quoted(&folder.signing);
    let [publish, keyring, archive, dumps] =
        ["checkpoints", "keyring", "archive", "dumps"].map(|name| folder.destination(name));
    let url = quoted(url);
    format!(
        "# Made by `sidekeep dev`, which keeps what you change here. `sidekeep config show` prints every key.\n\n\
         [deployment]\nname = \"dev\"\n\n\
         [socket]\npath = {socket}\n# Yours alone; a group may be given here.\ngroup = \"\"\n\n\
         [database]\nurl = {url}\n# The cluster's superuser, who owns the tables.\nmigrate_url_file = {owner_url}\n\n\
         [keyring]\n# Without this file nothing that is sealed opens again.\nkey_files = [{kek}]\n\
         # Its backup: without it a dump opens nothing.\nbackup = {keyring}\n\n\
         [audit]\n# Checkpoints go here; best where whoever can change the database cannot.\npublish = {publish}\n\n\
         [signing]\nkey_files = [{signing}]\n\n\
         [archive]\ndestination = {archive}\n\n\
         [backup]\ndestination = {dumps}\n\n\
         [log]\nformat = \"text\"\n"
    )
}

/// A JSON string, which is a basic string of TOML as well.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

fn greet(folder: &Folder, socket: &Path) {
    let socket = shell_quoted(&socket.to_string_lossy());
    let config = shell_quoted(&folder.config.to_string_lossy());
    // The name by which this program was started works from the same place again.
    let program = std::env::args_os().next().unwrap_or_else(|| "sidekeep".into());
    let program = shell_quoted(&program.to_string_lossy());
    note(&format!(
        "ready. In another terminal:\n\n  \
         echo '{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"system.health\"}}' | socat -t60 - UNIX-CONNECT:{socket}\n\n  \
         curl --unix-socket {socket} http://sidekeep/ -d \
         '{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"rpc.discover\"}}'\n\n  \
         {program} --config {config} call profile.create \
         '{{\"user_id\":\"u1\",\"username\":\"ada\",\"email\":\"ada@example.org\"}}'\n\n\
         Ctrl-C ends it. Everything stays in {}.",
        folder.root
    ));
}

/// As a shell takes it for one word.
fn shell_quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@%".contains(&byte);
    if text.bytes().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
