//! The sections of a dump, one after another, each whole or not at all.

use std::process::Stdio;

use tokio::io::AsyncReadExt as _;

use super::Tell;
use super::target::Ready;
use crate::error::{Error, Result};
use crate::store::Deadline;
use crate::store::migrations::{self, APP_ROLE};

/// How much of what `pg_restore` complains about is told.
const TOLD: usize = 400;

/// What a daemon of another database left running here never ends by itself.
const CLEAR: &str = "UPDATE sidekeep.audit_streams SET leased_until = now(); DELETE FROM sidekeep.daemons; \
    UPDATE sidekeep.job_runs SET state = 'failed', finished_at = clock_timestamp(), error = 'the database was restored', holder = NULL \
    WHERE state = 'running'";

impl Ready<'_> {
    /// Loads the tables and their rows, and counts them. Answers how many there are.
    pub(super) async fn load_data(&self, tell: Tell<'_>, deadline: &Deadline) -> Result<i64> {
        let role: bool = self
            .owned()
            .one("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", &[&APP_ROLE], deadline)
            .await?;
        if !role {
            let made = self.owned().execute(&format!("CREATE ROLE {APP_ROLE} LOGIN"), deadline).await;
            made.map_err(|error| {
                Error::conflict(format!(
                    "the role {APP_ROLE} is missing and could not be made ({error}); make it with `CREATE ROLE {APP_ROLE} LOGIN`"
                ))
            })?;
        }
        tell("making the tables");
        self.restore("pre-data", deadline).await?;
        // From here on, and until the end, no daemon finds anything here.
        let shut = format!("REVOKE ALL ON SCHEMA sidekeep FROM {APP_ROLE}");
        self.owned().execute(&shut, deadline).await?;
        tell("loading the rows");
        self.restore("data", deadline).await?;
        tell("counting");
        self.count(deadline).await
    }

    async fn count(&self, deadline: &Deadline) -> Result<i64> {
        let mut all = 0_i64;
        for (table, expected) in &self.source.manifest.tables {
            let query = format!("SELECT count(*) FROM sidekeep.\"{}\"", table.replace('"', "\"\""));
            let found: i64 = self.owned().one(&query, &[], deadline).await?;
            if found != *expected {
                return Err(Error::Tampered {
                    at: format!(
                        "dump {}: {table} has {found} rows, and its manifest tells of {expected}",
                        self.source.manifest.name
                    ),
                });
            }
            all = all.saturating_add(found);
        }
        Ok(all)
    }

    /// Indexes, foreign keys and triggers; then newer migrations, and the end of what daemons of before had begun.
    pub(super) async fn finish_tables(&self, tell: Tell<'_>, deadline: &Deadline) -> Result<()> {
        tell("making indexes and foreign keys");
        self.restore("post-data", deadline).await?;
        tell("bringing the schema up to date");
        let (config, url) = (self.target.config, self.target.url);
        let tracker = tokio_util::task::TaskTracker::new();
        let migrated = deadline.run(migrations::apply(&config.database, url, &tracker)).await;
        migrated
            .map_err(|_| Error::unavailable("the migrations took too long"))?
            .map_err(|error| Error::unavailable(error.to_string()))?;
        self.owned().execute(CLEAR, deadline).await?;
        self.owned().execute("ANALYZE", deadline).await
    }

    /// Lets daemons in.
    ///
    /// # Errors
    /// The database's.
    pub async fn open(&self, deadline: &Deadline) -> Result<()> {
        let open = format!("GRANT USAGE ON SCHEMA sidekeep TO {APP_ROLE}");
        self.owned().execute(&open, deadline).await
    }

    pub(super) fn owned(&self) -> &crate::store::Owned {
        &self.target.owned
    }

    async fn restore(&self, section: &str, deadline: &Deadline) -> Result<()> {
        let failed = |why: String| Error::unavailable(format!("pg_restore, {section}: {why}"));
        let mut command = self.command(section);
        command.args(["--exit-on-error", "--single-transaction"]).stdout(Stdio::null());
        self.owned().libpq.tell(&mut command).map_err(|error| failed(error.to_string()))?;
        command.arg(self.copy.path());
        let mut command = tokio::process::Command::from(command);
        let mut child = command.kill_on_drop(true).spawn().map_err(|error| failed(error.to_string()))?;
        let mut complaints = Vec::new();
        let ended = async {
            if let Some(errors) = child.stderr.take() {
                errors.take(1 << 20).read_to_end(&mut complaints).await?;
            }
            child.wait().await
        };
        let ended = deadline.run(ended).await.map_err(|_| failed("it took too long".into()))?;
        let ended = ended.map_err(|error| failed(error.to_string()))?;
        if ended.success() {
            return Ok(());
        }
        let said: String = String::from_utf8_lossy(&complaints).chars().take(TOLD).collect();
        Err(failed(said.lines().next().unwrap_or("it failed").to_owned()))
    }
}
