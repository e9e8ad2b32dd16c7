//! `sidekeep setup`: what the daemon needs on a fresh host, made once; a second run changes nothing that works.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Serialize;
use zeroize::Zeroizing;

use self::admin::Admin;
use self::place::Place;
use super::exit::{Code, coded};
use super::migrate::migrate;
use super::{Global, output};
use crate::config;
use crate::keyring::{SigningKey, kek};

mod admin;
mod place;

/// The role that the daemon serves as, with the least that it needs.
const APP: &str = "sidekeep_app";
/// The role that owns the tables and migrates them.
const OWNER: &str = "sidekeep_owner";
/// The database.
const DATABASE: &str = "sidekeep";

/// Make database, roles, schema, key and configuration on a fresh host
///
/// Run it as root. It reaches the PostgreSQL of this host as the operating system's user `postgres`, or any other with
/// --admin-url-file. The daemon's own connections use passwords, which are made here and kept in files for its group
/// alone. A second run changes nothing that works, and says so; what it cannot do it says before it changes anything.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A file with the URL of a role that may make roles and databases; without it the local PostgreSQL, as `postgres`
    #[arg(long, value_name = "FILE")]
    admin_url_file: Option<PathBuf>,
    /// The port of the local PostgreSQL
    #[arg(long, value_name = "PORT", default_value_t = 5432, conflicts_with = "admin_url_file")]
    port: u16,
    /// Make the files below this folder instead of /, to look at them first; the daemon's group is not needed then
    #[arg(long, value_name = "DIR")]
    prefix: Option<PathBuf>,
}

pub(super) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let place = Place::new(args.prefix.as_deref())?;
    let admin = match &args.admin_url_file {
        Some(file) => Admin::by_url_file(file)?,
        None => Admin::local(args.port)?,
    };
    admin.check()?;
    check_configured(&place)?;
    place.make_directories()?;
    let setup = Setup { admin, place, done: Done::new(global.json) };
    setup.make_database()?;
    setup.make_key()?;
    setup.make_signing_key()?;
    setup.make_login(APP, &setup.place.app_url, Place::for_daemon)?;
    setup.make_login(OWNER, &setup.place.owner_url, Place::for_root)?;
    setup.make_configuration()?;
    setup.migrate()?;
    setup.end()
}

/// What was done, in order: told line by line as it is done, and with `--json` as one object at the end.
#[derive(Debug)]
struct Done {
    json: bool,
    steps: RefCell<Vec<Step>>,
}

/// One thing that the daemon needs.
#[derive(Debug, Serialize)]
struct Step {
    /// What it is.
    what: String,
    /// False when it was there and was kept.
    made: bool,
}

impl Done {
    fn new(json: bool) -> Self {
        Self { json, steps: RefCell::default() }
    }

    fn step(&self, what: &str, made: bool) -> anyhow::Result<()> {
        let text = format!("{}  {what}", if made { "made" } else { "kept" });
        if self.json {
            output::note(&text);
        } else {
            output::line(&text)?;
        }
        self.steps.borrow_mut().push(Step { what: what.to_owned(), made });
        Ok(())
    }

    /// Says what is left to do.
    fn end(&self, next: &[String]) -> anyhow::Result<()> {
        let steps = self.steps.borrow();
        let changed = steps.iter().any(|step| step.made);
        if self.json {
            let done = serde_json::json!({ "changed": changed, "steps": *steps, "next": next });
            return Ok(output::line(&done.to_string())?);
        }
        if !changed {
            output::line("Everything was in place; nothing was changed.")?;
        }
        Ok(output::line(&next.join("\n"))?)
    }
}

/// A host that was configured by hand for a database of its own is left alone.
fn check_configured(place: &Place) -> anyhow::Result<()> {
    if !place.config.exists() {
        return Ok(());
    }
    let loaded = match config::load(Some(&place.config)) {
        // As the package ships it, or an operator who wrote the other settings first.
        Err(problem) if problem.lacks_only_a_database() => return Ok(()),
        loaded => loaded.map_err(|problem| coded(Code::Config, problem))?,
    };
    let database = &loaded.config.database;
    let ours = database.url_file.as_ref().is_none_or(|file| Path::new(&file.to_string()) == place.app_url);
    if database.url.is_some() || !ours {
        bail!(
            "the configuration names a database already, which `setup` leaves alone; run `sidekeep migrate`, \
             or remove database.url and database.url_file from {} and conf.d",
            place.config.display()
        );
    }
    Ok(())
}

/// What is made with, and whether anything was.
#[derive(Debug)]
struct Setup {
    admin: Admin,
    place: Place,
    done: Done,
}

/// How a file is written, which decides who may read it.
type Write = fn(&Place, &Path, &[u8]) -> anyhow::Result<()>;

impl Setup {
    fn made(&self, what: &str) -> anyhow::Result<()> {
        self.done.step(what, true)
    }

    fn kept(&self, what: &str) -> anyhow::Result<()> {
        self.done.step(what, false)
    }

    fn make_database(&self) -> anyhow::Result<()> {
        for role in [OWNER, APP] {
            if self.admin.query(&format!("SELECT 1 FROM pg_roles WHERE rolname = '{role}'"))?.is_empty() {
                self.admin.query(&format!("CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE"))?;
                self.made(&format!("role {role}"))?;
            } else {
                self.kept(&format!("role {role}"))?;
            }
        }
        if !self.admin.query(&format!("SELECT 1 FROM pg_database WHERE datname = '{DATABASE}'"))?.is_empty() {
            return self.kept(&format!("database {DATABASE}"));
        }
        // Who is no superuser may give a database only to a role that it is a member of.
        self.admin.query(&format!(
            "SELECT NOT rolsuper AS lesser FROM pg_roles WHERE rolname = current_user \\gset\n\
             \\if :lesser\nGRANT {OWNER} TO CURRENT_USER;\n\\endif\n\
             CREATE DATABASE {DATABASE} OWNER {OWNER} TEMPLATE template0 \
             ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C';\n\
             REVOKE ALL ON DATABASE {DATABASE} FROM PUBLIC;\n\
             GRANT CONNECT ON DATABASE {DATABASE} TO {APP}"
        ))?;
        self.made(&format!("database {DATABASE}"))
    }

    fn make_key(&self) -> anyhow::Result<()> {
        let shown = format!("key-encryption key {}", self.place.kek.display());
        if self.place.kek.exists() {
            return self.kept(&shown);
        }
        // A new key would open nothing of what is there.
        let used = self.admin.query(&format!(
            "\\connect {DATABASE}\nSELECT to_regclass('sidekeep.subjects') IS NOT NULL AS there \\gset\n\
             \\if :there\nSELECT 1 FROM sidekeep.subjects LIMIT 1;\n\\endif"
        ))?;
        if !used.is_empty() {
            bail!(
                "the database {DATABASE} holds records, but {} is missing; put the copy of the key that sealed them \
                 there, or drop the database to begin anew",
                self.place.kek.display()
            );
        }
        self.place.create_for_daemon(&self.place.kek, kek::generate()?.as_bytes())?;
        self.made(&shown)
    }

    fn make_signing_key(&self) -> anyhow::Result<()> {
        let shown = format!("signing key {}", self.place.signing.display());
        if self.place.signing.exists() {
            return self.kept(&shown);
        }
        self.place.create_for_daemon(&self.place.signing, SigningKey::generate()?.as_bytes())?;
        self.made(&shown)
    }

    /// Sees to it that the role can log in with the password in the file.
    fn make_login(&self, role: &str, file: &Path, write: Write) -> anyhow::Result<()> {
        let shown = format!("password of {role} in {}", file.display());
        if file.exists() && self.admin.logs_in(file)? {
            return self.kept(&shown);
        }
        let password = admin::generate_password()?;
        // The server is told only what proves the password, so that its log never holds it.
        let verifier = Zeroizing::new(postgres_protocol::password::scram_sha_256(password.as_bytes()));
        self.admin.query(&format!("ALTER ROLE {role} PASSWORD '{}'", verifier.as_str()))?;
        let url = self.admin.url_for(role, &password, DATABASE);
        write(&self.place, file, format!("{}\n", url.as_str()).as_bytes())?;
        if !self.admin.logs_in(file)? {
            bail!(
                "{role} cannot log in with its new password; pg_hba.conf must allow it: \
                 host {DATABASE} {role} 127.0.0.1/32 scram-sha-256"
            );
        }
        self.made(&shown)
    }

    fn make_configuration(&self) -> anyhow::Result<()> {
        if self.place.config.exists() {
            self.kept(&format!("configuration {}", self.place.config.display()))?;
        } else {
            let text = "# `sidekeep setup` wrote what is particular to this host to conf.d/, which is read after \
                        this file.\n# Write your own settings here or there; `sidekeep config show` prints every key.\n";
            self.place.create_for_daemon(&self.place.config, text.as_bytes())?;
            self.made(&format!("configuration {}", self.place.config.display()))?;
        }
        let shown = format!("configuration {}", self.place.settings.display());
        if self.place.settings.exists() {
            return self.kept(&shown);
        }
        self.place.create_for_daemon(
            &self.place.settings,
            self.place.settings_text(self.admin.is_local()).as_bytes(),
        )?;
        self.made(&shown)
    }

    fn migrate(&self) -> anyhow::Result<()> {
        let loaded =
            config::load(Some(&self.place.config)).map_err(|problem| coded(Code::Config, problem))?;
        let url = config::migrate_url(&loaded.config).map_err(|problem| coded(Code::Config, problem))?;
        let applied = migrate(&loaded.config.database, &url).context("the schema")?;
        match applied.len() {
            0 => self.kept("schema sidekeep"),
            count => self.made(&format!("schema sidekeep, {count} migrations")),
        }
    }

    fn end(&self) -> anyhow::Result<()> {
        let mut next = Vec::new();
        if !self.admin.is_local() {
            next.push(
                "The packaged unit lets the daemon reach this host alone; for a database elsewhere allow its addresses: \
                 /usr/share/doc/sidekeep/examples/remote-database.conf"
                    .to_owned(),
            );
        }
        next.push(format!(
            "Keep a copy of {} where the database's backups are not: without it nothing opens again.",
            self.place.kek.display()
        ));
        next.push("Next: systemctl enable --now sidekeep.socket sidekeep.service".to_owned());
        self.done.end(&next)
    }
}
