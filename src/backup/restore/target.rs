//! The database that a dump is restored into: what has to be so before it is touched.

use std::process::{Command, Stdio};

use super::super::run::program;
use super::super::verify::major;
use super::source::{Copy, Source};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::store::migrations::{self, APP_ROLE};
use crate::store::programs::Program;
use crate::store::{Deadline, Owned};

const ABOUT: &str = "SELECT current_setting('server_version_num')::int / 10000, to_regnamespace('sidekeep') IS NULL, \
    pg_has_role(current_user, 'pg_database_owner', 'MEMBER') OR has_database_privilege(current_database(), 'CREATE'), \
    current_database()::text";
const ROLES: &str = "SELECT rolname::text FROM pg_roles";

/// A database.
#[derive(Debug)]
pub struct Target<'a> {
    /// The configuration, of which the URL of the database is not used.
    pub config: &'a Config,
    /// How its owner connects.
    pub url: &'a str,
    /// A connection as that.
    pub owned: Owned,
}

/// A dump and a database that fit together, with everything at hand.
#[derive(Debug)]
pub struct Ready<'a> {
    /// The database.
    pub target: Target<'a>,
    /// The dump.
    pub source: &'a Source,
    pub(super) copy: Copy,
    pub(super) program: Program,
}

impl<'a> Target<'a> {
    /// Checks all that can be checked, and changes nothing.
    ///
    /// # Errors
    /// [`Error::Conflict`], with what to do.
    pub async fn check(self, source: &'a Source, copy: Copy, deadline: &Deadline) -> Result<Ready<'a>> {
        let manifest = &source.manifest;
        let newest = migrations::known().into_iter().next_back().unwrap_or_default();
        if manifest.schema_version > newest {
            return Err(Error::conflict(format!(
                "the dump was made by sidekeep {}, whose schema ({}) this one ({}) does not know; install that version or a \
                 later one",
                manifest.sidekeep_version,
                manifest.schema_version,
                env!("CARGO_PKG_VERSION")
            )));
        }
        let rows = self.owned.rows(ABOUT, &[], deadline).await?;
        let row = rows.first().ok_or_else(|| Error::internal("PostgreSQL answered without a row"))?;
        let get = |error: tokio_postgres::Error| Error::internal(error);
        let server: i32 = row.try_get(0).map_err(get)?;
        let (empty, may): (bool, bool) = (row.try_get(1).map_err(get)?, row.try_get(2).map_err(get)?);
        let database: String = row.try_get(3).map_err(get)?;
        if u32::try_from(server).unwrap_or_default() < major(&manifest.server_version) {
            return Err(Error::conflict(format!(
                "the dump is of PostgreSQL {}, and the target is of {server}; restore into {} or later",
                manifest.server_version,
                major(&manifest.server_version)
            )));
        }
        if !empty {
            return Err(Error::conflict(format!(
                "the database {database} has a schema sidekeep already, and a dump is restored into an empty one only. Make another \
                 (CREATE DATABASE), or, if what is there is nothing but a restore that was broken off, DROP SCHEMA sidekeep CASCADE"
            )));
        }
        if !may {
            return Err(Error::conflict(format!(
                "the role may not make a schema in the database {database}"
            )));
        }
        let program = program("pg_restore", major(&manifest.pg_dump_version)).await?;
        let ready = Ready { target: self, source, copy, program };
        ready.check_roles(deadline).await?;
        Ok(ready)
    }
}

impl Ready<'_> {
    /// A run of `pg_restore` over a section, with the copy as its input.
    pub(super) fn command(&self, section: &str) -> Command {
        let mut command = self.program.command();
        command.arg(format!("--section={section}")).arg("--no-owner");
        command.stderr(Stdio::piped());
        command
    }

    /// Roles are not in a dump: those that are granted something have to be there. The daemon's own is made.
    async fn check_roles(&self, deadline: &Deadline) -> Result<()> {
        let mut script = String::new();
        for section in ["pre-data", "post-data"] {
            let mut command = self.command(section);
            command.args(["--file=-", &self.copy.path()]).stdin(Stdio::null()).stdout(Stdio::piped());
            let listed = tokio::process::Command::from(command).kill_on_drop(true).output();
            let listed =
                deadline.run(listed).await.map_err(|_| Error::unavailable("pg_restore took too long"))?;
            let listed = listed.map_err(|error| Error::unavailable(format!("pg_restore: {error}")))?;
            if !listed.status.success() {
                return Err(Error::Tampered {
                    at: format!("dump {}: pg_restore cannot read it", self.source.manifest.name),
                });
            }
            script.push_str(&String::from_utf8_lossy(&listed.stdout));
        }
        let there: Vec<String> = self.target.owned.column(ROLES, &[], deadline).await?;
        let granted = script.lines().filter(|line| line.starts_with("GRANT ")).filter_map(|line| {
            let (_, role) = line.rsplit_once(" TO ")?;
            Some(role.trim_end_matches(';').trim_end_matches(" WITH GRANT OPTION").trim_matches('"'))
        });
        let missing = granted
            .filter(|role| *role != "PUBLIC" && *role != APP_ROLE && !there.iter().any(|name| name == role));
        let mut missing: Vec<&str> = missing.collect();
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::conflict(format!(
            "the dump grants something to roles that this server has not: {}; make them first (CREATE ROLE)",
            missing.join(", ")
        )))
    }
}
