//! The one definition of what is held about a person: export, erasure, counts, holds, retention and the record of processing
//! are made from it, so that no path can forget a table.
//!
//! Never runs a statement. A test compares it with the database's own catalogue, and fails on a table or column that is not
//! placed here, or that has another class there. A new table is one more entry of [`TABLES`].

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

const fn sealed(column: &'static str) -> Sealed {
    Sealed { column, table: None, under: Under::Person }
}

/// Of a table that belongs to nobody.
const fn nobodys(
    name: &'static str,
    period: Period,
    key: &'static [&'static str],
    clear: &'static [&'static str],
) -> Table {
    Table {
        name,
        whose: Whose::Nobody,
        erasure: Erasure::Nothing,
        period,
        export: Export::Never,
        counted: None,
        key,
        sealed: &[],
        identity: &[],
        clear,
    }
}

/// Every table, in the order in which an erasure goes through them: what refers to a row before the row, the person last.
pub const TABLES: &[Table] = &[
    Table {
        name: "user_profiles",
        whose: Whose::Subject,
        erasure: Erasure::Deleted,
        period: Period::Person,
        export: Export::Provided("profile"),
        counted: Some("profile"),
        key: &["subject_id"],
        sealed: &[
            sealed("username_sealed"),
            sealed("email_sealed"),
            sealed("full_name_sealed"),
            sealed("metadata_sealed"),
        ],
        identity: &["username_digest", "email_digest"],
        clear: &["subject_id", "version", "created_at", "updated_at"],
    },
    Table {
        name: "user_preferences",
        whose: Whose::Subject,
        erasure: Erasure::Deleted,
        period: Period::Person,
        export: Export::Provided("preferences"),
        counted: Some("preferences"),
        key: &["subject_id"],
        sealed: &[sealed("preferences_sealed")],
        identity: &[],
        clear: &["subject_id", "version", "created_at", "updated_at"],
    },
    Table {
        name: "consent_records",
        whose: Whose::Subject,
        erasure: Erasure::MovedTo("consent_evidence"),
        period: Period::Consents,
        export: Export::Provided("consents"),
        counted: Some("consents"),
        key: &["id"],
        sealed: &[sealed("ip_address_sealed"), sealed("user_agent_sealed"), sealed("metadata_sealed")],
        identity: &[],
        clear: CONSENT,
    },
    Table {
        name: "conversation_messages",
        whose: Whose::Through { column: "conversation_id", table: "conversations", key: "id" },
        erasure: Erasure::Deleted,
        period: Period::Conversations,
        export: Export::Provided("messages"),
        counted: Some("messages"),
        key: &["position", "conversation_id"],
        sealed: &[sealed("message_sealed")],
        identity: &[],
        clear: &["conversation_id", "position", "message_id", "created_at"],
    },
    Table {
        name: "conversations",
        whose: Whose::Subject,
        erasure: Erasure::Deleted,
        period: Period::Conversations,
        export: Export::Provided("conversations"),
        counted: Some("conversations"),
        key: &["id"],
        sealed: &[sealed("title_sealed"), sealed("metadata_sealed")],
        identity: &[],
        clear: &[
            "id",
            "subject_id",
            "archived",
            "message_count",
            "version",
            "created_at",
            "updated_at",
            "last_message_at",
            "active_at",
        ],
    },
    // An open one keeps its person, so an erasure meets released ones alone.
    Table {
        name: "legal_holds",
        whose: Whose::Subject,
        erasure: Erasure::Cascades,
        period: Period::Person,
        export: Export::Access("holds"),
        counted: None,
        key: &["id"],
        sealed: &[sealed("reason_sealed"), sealed("release_reason_sealed")],
        identity: &[],
        clear: &["id", "subject_id", "placed_at", "released_at"],
    },
    Table {
        name: "audit_logs",
        whose: Whose::Named,
        erasure: Erasure::Outlives,
        period: Period::AuditLogs,
        export: Export::Access("audit_entries"),
        counted: Some("audit_entries"),
        key: &["id"],
        sealed: &[
            Sealed { column: "client_sealed", table: None, under: Under::Actor },
            Sealed { column: "metadata_sealed", table: None, under: Under::Subject },
        ],
        identity: &[],
        clear: &[
            "stream",
            "position",
            "recorded_at",
            "format",
            "id",
            "actor_id",
            "subject_id",
            "action",
            "resource_type",
            "resource_id",
            "outcome",
            "occurred_at",
            "labels",
            "leaf_hash",
        ],
    },
    // Entries on their way into audit_logs: whoever reads that table waits for these.
    Table {
        name: "audit_staged",
        whose: Whose::Named,
        erasure: Erasure::Outlives,
        period: Period::AuditLogs,
        export: Export::Never,
        counted: None,
        key: &["id"],
        sealed: &[
            Sealed { column: "client_sealed", table: Some("audit_logs"), under: Under::Actor },
            Sealed { column: "metadata_sealed", table: Some("audit_logs"), under: Under::Subject },
        ],
        identity: &[],
        clear: &[
            "number",
            "staged_at",
            "id",
            "actor_id",
            "subject_id",
            "action",
            "resource_type",
            "resource_id",
            "outcome",
            "labels",
            "mac",
        ],
    },
    Table {
        name: "consent_evidence",
        whose: Whose::Subject,
        erasure: Erasure::Outlives,
        period: Period::Consents,
        export: Export::Never,
        counted: None,
        key: &["subject_id", "id"],
        sealed: &[],
        identity: &[],
        clear: CONSENT,
    },
    Table {
        name: "subject_erasures",
        whose: Whose::Subject,
        erasure: Erasure::Outlives,
        period: Period::Deployment,
        export: Export::Never,
        counted: None,
        key: &["subject_id"],
        sealed: &[Sealed { column: "note_sealed", table: None, under: Under::Deployment }],
        identity: &[],
        clear: &["subject_id", "erased_at", "reason", "entry_id", "certificate_id", "certificate"],
    },
    // A reason that is given after the erasure, as when an erasure's own request is closed, is under the deployment's key.
    Table {
        name: "requests",
        whose: Whose::Subject,
        erasure: Erasure::Outlives,
        period: Period::Requests,
        export: Export::Access("requests"),
        counted: None,
        key: &["id"],
        sealed: &[sealed("extension_reason_sealed"), sealed("outcome_reason_sealed")],
        identity: &[],
        clear: &[
            "id",
            "subject_id",
            "kind",
            "channel",
            "opened_at",
            "received_at",
            "due_at",
            "extended_at",
            "closed_at",
            "outcome",
            "results",
        ],
    },
    Table {
        name: "subjects",
        whose: Whose::Subject,
        erasure: Erasure::Deleted,
        period: Period::Person,
        export: Export::Access("person"),
        counted: None,
        key: &["subject_id"],
        sealed: &[],
        identity: &["user_id", "wrapped_key"],
        clear: &["subject_id", "kek_id", "created_at", "restricted_at"],
    },
    // Written by an erasure about nobody who is left: no subject id leads here.
    Table {
        identity: &["digest"],
        ..nobodys("subject_refusals", Period::Refusals, &["digest"], &["refused_until"])
    },
    nobodys("deployment", Period::Deployment, &["name"], &["name", "created_at"]),
    nobodys("schema_compatibility", Period::Deployment, &["min_daemon"], &["min_daemon"]),
    nobodys(
        "audit_streams",
        Period::Deployment,
        &["stream"],
        &[
            "stream",
            "epoch",
            "size",
            "root",
            "head_mac",
            "frontier",
            "last_recorded_at",
            "leased_until",
            "closed_at",
            "edge",
        ],
    ),
    nobodys(
        "audit_nodes",
        Period::Deployment,
        &["stream", "level", "index"],
        &["stream", "level", "index", "hash", "children"],
    ),
    nobodys(
        "audit_heads",
        Period::Deployment,
        &["index"],
        &["index", "stream", "size", "root", "at", "leaf_hash"],
    ),
    nobodys("audit_checkpoints", Period::Deployment, &["size"], &["size", "root", "note", "at", "edge"]),
    nobodys("audit_publications", Period::Deployment, &["destination"], &["destination", "size", "at"]),
    nobodys(
        "audit_verified",
        Period::Deployment,
        &["stream"],
        &["stream", "at", "blocks", "edge", "again", "mac"],
    ),
    nobodys(
        "audit_archives",
        Period::Deployment,
        &["stream", "month"],
        &[
            "stream",
            "month",
            "first_position",
            "last_position",
            "entries",
            "object",
            "manifest",
            "size",
            "sha256",
            "verified_at",
            "removed_at",
        ],
    ),
    nobodys(
        "backup_policy",
        Period::Deployment,
        &["one"],
        &["one", "daily", "weekly", "monthly", "physical_seconds", "at"],
    ),
    nobodys(
        "audit_dropped",
        Period::Deployment,
        &["stream", "month"],
        &["stream", "month", "size", "edge", "at", "mac"],
    ),
    nobodys("retention_policies", Period::Deployment, &["name"], &["name", "keep_seconds", "updated_at"]),
    nobodys(
        "retention_floor",
        Period::Deployment,
        &["confirmed_at"],
        &["keep_seconds", "confirmed_at", "clock_seen"],
    ),
    nobodys(
        "daemons",
        Period::Deployment,
        &["daemon"],
        &["daemon", "host", "version", "kek_ids", "wraps_under", "started_at", "seen_at"],
    ),
    nobodys(
        "keyring_shards",
        Period::Deployment,
        &["shard"],
        &["shard", "generation", "raised_at", "stored", "stored_at", "sealed_under", "kek_ids"],
    ),
    nobodys("keyring_marks", Period::Deployment, &["shard"], &["shard"]),
    nobodys(
        "keyring_backups",
        Period::Deployment,
        &["generation"],
        &["generation", "stored", "stored_at", "destination"],
    ),
    nobodys("keyring_writes", Period::Deployment, &["id"], &["id", "object", "begun_at"]),
    nobodys(
        "job_runs",
        Period::JobRuns,
        &["run"],
        &[
            "run",
            "name",
            "due_at",
            "started_at",
            "finished_at",
            "state",
            "dry_run",
            "epoch",
            "heartbeat_at",
            "holder",
            "counts",
            "error",
            "asked",
        ],
    ),
];

/// What of a consent is clear, and so may be kept as evidence.
const CONSENT: &[&str] = &[
    "id",
    "subject_id",
    "number",
    "consent_type",
    "granted",
    "given_at",
    "expires_at",
    "policy_version",
    "policy_sha256",
    "legal_basis",
    "method",
    "language",
    "recorded_at",
];
