//! The one definition of what is held about a person: export, erasure, counts, holds, retention and the record of processing
//! are made from it, so that no path can forget a table.
//!
//! Never runs a statement. A test compares it with the database's own catalogue, and fails on a table or column that is not
//! placed here, or that has another class there. A new table is one more entry of [`TABLES`].

pub use tables::TABLES;

mod tables;

/// The schema that the tables are in.
pub const SCHEMA: &str = "sidekeep";

/// A table and what it has to do with persons.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Its name in [`SCHEMA`].
    pub name: &'static str,
    /// How a row leads to its person.
    pub whose: Whose,
    /// What an erasure does to a person's rows.
    pub erasure: Erasure,
    /// How long a row is kept.
    pub period: Period,
    /// Who sees its rows in an export, and under which name.
    pub export: Export,
    /// What its rows are called in counts: a row of `subject.status` and of certificates.
    pub counted: Option<&'static str>,
    /// The columns that tell one row from another. Sealed values are bound to them: as text, in this order, NUL between them.
    pub key: &'static [&'static str],
    /// The columns with ciphertext, and what opens each.
    pub sealed: &'static [Sealed],
    /// The columns that identify a person.
    pub identity: &'static [&'static str],
    /// All others, which never hold personal data.
    pub clear: &'static [&'static str],
}

/// How a row leads to its person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// It has the person's subject id in `subject_id`.
    Subject,
    /// Its `column` is the `key` of a row of `table`, which has the subject id.
    Through {
        /// The column of this table.
        column: &'static str,
        /// The table that it refers to.
        table: &'static str,
        /// The column there.
        key: &'static str,
    },
    /// It names the person as `actor_id` or as `subject_id`.
    Named,
    /// It belongs to nobody.
    Nobody,
}

/// What an erasure does to a person's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Erasure {
    /// They are deleted.
    Deleted,
    /// They are deleted; with `erasure.consents = "keep"` their clear columns are moved to this table first.
    MovedTo(&'static str),
    /// The database deletes them with the person's row.
    Cascades,
    /// They stay as they are: sealed bytes that nothing opens any more, under a number that leads nowhere.
    Outlives,
    /// There are none.
    Nothing,
}

/// How long a row is kept: the key of `[retention]` that says so, where one does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// Until the application deletes it, or the person is erased.
    Person,
    /// `retention.conversations`, from its latest activity.
    Conversations,
    /// `retention.consents`, from its end.
    Consents,
    /// `retention.audit_logs`, by whole months.
    AuditLogs,
    /// `retention.requests`, from its close.
    Requests,
    /// `retention.job_runs`.
    JobRuns,
    /// `keyring.refuse_again`, from the erasure.
    Refusals,
    /// As long as the deployment itself.
    Deployment,
}

/// Who sees the rows in an export, and the part of it that they are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Export {
    /// What the person provided: for access (GDPR Art. 15) and for portability (Art. 20).
    Provided(&'static str),
    /// For access alone.
    Access(&'static str),
    /// Nobody: it holds nothing of a person that is not exported elsewhere.
    Never,
}

/// A column with ciphertext. Its place is the table, the column and the row's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The column.
    pub column: &'static str,
    /// The table that the place names, where it is not this one.
    pub table: Option<&'static str>,
    /// Whose key opens it.
    pub under: Under,
}

/// Whose key opens a sealed column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Under {
    /// The key of the person whose row it is.
    Person,
    /// The actor's, else the subject's, else the deployment's.
    Actor,
    /// The subject's, else the actor's, else the deployment's.
    Subject,
    /// The deployment's: it belongs to nobody.
    Deployment,
}

impl Table {
    /// The SQL condition for a person's rows, with the subject id as `$1`; nothing where it belongs to nobody.
    pub fn condition(&self) -> Option<String> {
        match self.whose {
            Whose::Subject => Some("subject_id = $1".into()),
            Whose::Through { column, table, key } => {
                Some(format!("{column} IN (SELECT {key} FROM {SCHEMA}.{table} WHERE subject_id = $1)"))
            }
            Whose::Named => Some("(actor_id = $1 OR subject_id = $1)".into()),
            Whose::Nobody => None,
        }
    }

    /// Its columns with their classes, as the comments in the catalogue name them.
    pub fn columns(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let sealed = self.sealed.iter().map(|sealed| (sealed.column, "sealed"));
        let identity = self.identity.iter().map(|column| (*column, "identity"));
        self.clear.iter().map(|column| (*column, "clear")).chain(identity).chain(sealed)
    }
}

impl Period {
    /// The key of the configuration that sets it.
    pub fn key(self) -> Option<&'static str> {
        match self {
            Self::Person | Self::Deployment => None,
            Self::Conversations => Some("retention.conversations"),
            Self::Consents => Some("retention.consents"),
            Self::AuditLogs => Some("retention.audit_logs"),
            Self::Requests => Some("retention.requests"),
            Self::JobRuns => Some("retention.job_runs"),
            Self::Refusals => Some("keyring.refuse_again"),
        }
    }
}

impl Period {
    /// What it counts from; where no key sets a period, until when a row is kept.
    pub fn from(self) -> Option<&'static str> {
        match self {
            Self::Person => Some("until the application deletes it, or the person is erased or forgotten"),
            Self::Conversations => {
                Some("the conversation's last message, or from its creation where there is none")
            }
            Self::Consents => Some("its end: another of its type, its expiry, or the person's erasure"),
            Self::AuditLogs => Some("the end of its month, and not before the confirmed floor"),
            Self::Requests => Some("its close"),
            Self::JobRuns => Some("its end; the last of each job stays"),
            Self::Refusals => Some("the erasure"),
            Self::Deployment => Some("as long as the deployment itself"),
        }
    }
}
