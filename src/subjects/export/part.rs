//! The parts of an export, made from the one selector: what is read of which table, and how a row becomes an item.
//!
//! Lists no table: one that the selector exports is here, with every column it has.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use diesel::sql_types::Int8;

use super::Scope;
use super::cells::{Cell, Cells, quote};
use crate::audit::accesses::ACROSS;
use crate::audit::{ACTOR, ALSO, METHOD, PURPOSE, REQUEST_ID, SUBJECT, UID};
use crate::error::{Error, Result};
use crate::keyring::{Place, Subject};
use crate::subjects::selector::{Export, SCHEMA, Sealed, TABLES, Table, Under, Whose};

/// What is never given to anybody: with the key-encryption key it would open the person's data wherever a copy is.
const KEY_MATERIAL: &str = "wrapped_key";

/// The sealed columns that hold JSON; all others hold text.
const JSON: [&str; 4] = ["client_sealed", "message_sealed", "metadata_sealed", "preferences_sealed"];

/// Another person, of whom nothing else is said (GDPR Art. 15(4)).
const OTHER: &[u8] = b"\"other\"";

/// How the metadata begin of an entry that tells of a read across records.
const FILTER: &str = "{\"filter\":";

/// Entries that a stream has not taken in yet: whoever sees both tables in one snapshot sees each entry once.
const STAGED: &str = "audit_staged";

/// What an export calls the accesses, which are made from the log.
pub(super) const ACCESSES: &str = "accesses";

/// A part: items of one kind.
#[derive(Debug)]
pub(super) struct Part {
    /// Its name in the document, and its file's in an archive.
    pub(super) name: &'static str,
    /// Whether a person has one at most, so that it is no list.
    pub(super) one: bool,
    /// The part that its items stand in, and the members here and there that are equal.
    pub(super) within: Option<Within>,
    /// Which keys of `[retention]` say how long it is kept.
    pub(super) period: Option<&'static str>,
    statements: Vec<Statement>,
}

/// How an item leads to the one that it is a piece of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Within {
    pub(super) part: &'static str,
    pub(super) member: &'static str,
    pub(super) key: &'static str,
}

/// One read of a part.
#[derive(Debug)]
pub(super) struct Statement {
    /// The columns of one person's rows, with the subject id as `$1`.
    pub(super) sql: String,
    /// How many there are.
    pub(super) count: String,
    table: &'static Table,
    columns: Vec<Column>,
    access: bool,
}

#[derive(Debug)]
struct Column {
    column: &'static str,
    /// What the item calls it.
    member: &'static str,
    role: Role,
}

#[derive(Clone, Copy, Debug)]
enum Role {
    /// As it is.
    Clear,
    /// Only to find other things by.
    Unsaid,
    /// A person's number.
    Person,
    /// An id that may stand for a person.
    Resource,
    /// Words, of which one may be a person's number.
    Labels,
    /// Ciphertext.
    Sealed(Sealed),
}

/// Who is exported, and what is known of the services that called.
#[derive(Debug)]
pub(super) struct Owner<'a> {
    pub(super) subject: &'a Subject,
    services: Mutex<HashMap<String, String>>,
}

impl<'a> Owner<'a> {
    pub(super) fn new(subject: &'a Subject) -> Self {
        Self { subject, services: Mutex::default() }
    }

    /// The service that a user id stands for, as this host names it.
    fn service(&self, uid: &str) -> String {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        let name = services.entry(uid.to_owned()).or_insert_with(|| {
            let known = uid.parse().ok().map(nix::unistd::Uid::from_raw).map(nix::unistd::User::from_uid);
            match known {
                Some(Ok(Some(user))) => format!("{} (uid {uid})", user.name),
                _ => format!("uid {uid}"),
            }
        });
        name.clone()
    }
}

/// The parts of a scope, in the order of the selector; what a part is a piece of before it.
pub(super) fn parts(scope: Scope) -> Vec<Part> {
    let mut parts = Vec::new();
    for table in TABLES {
        let name = match (table.export, scope) {
            (Export::Provided(name), _) | (Export::Access(name), Scope::Access) => name,
            (Export::Access(_), Scope::Portability) | (Export::Never, _) => continue,
        };
        let mut statements = Statement::of(table);
        let staged = TABLES.iter().filter(|other| table.name == "audit_logs" && other.name == STAGED);
        statements.extend(staged.flat_map(Statement::of));
        parts.push(Part {
            name,
            one: table.key == ["subject_id"],
            within: within(table),
            period: table.period.key(),
            statements,
        });
    }
    if scope == Scope::Access {
        let logs = TABLES.iter().filter(|table| matches!(table.name, "audit_logs" | STAGED));
        let statements = logs.flat_map(Statement::accesses).collect();
        let period = crate::subjects::selector::Period::AuditLogs.key();
        parts.push(Part { name: ACCESSES, one: false, within: None, period, statements });
    }
    parts.sort_by_key(|part| (part.name == "audit_entries" || part.name == ACCESSES, part.within.is_some()));
    parts
}

fn within(table: &Table) -> Option<Within> {
    let Whose::Through { column, table: parent, key } = table.whose else { return None };
    let parent = TABLES.iter().find(|other| other.name == parent)?;
    match parent.export {
        Export::Provided(part) | Export::Access(part) => Some(Within { part, member: column, key }),
        Export::Never => None,
    }
}

impl Part {
    pub(super) fn statements(&self) -> &[Statement] {
        &self.statements
    }
}

impl Statement {
    /// What is read of a table. A person's entries are those about the person and then those by the person alone, so that
    /// each is found by its own index.
    fn of(table: &'static Table) -> Vec<Self> {
        let conditions = match table.whose {
            Whose::Named => vec![
                "subject_id = $1".to_owned(),
                "actor_id = $1 AND subject_id IS DISTINCT FROM $1".to_owned(),
            ],
            Whose::Subject | Whose::Through { .. } | Whose::Nobody => table.condition().into_iter().collect(),
        };
        conditions.iter().map(|condition| Self::new(table, condition, false)).collect()
    }

    /// What the log says of calls that named the person, and of those that may have shown the person among others.
    fn accesses(table: &'static Table) -> Vec<Self> {
        let since = format!("(SELECT created_at FROM {SCHEMA}.subjects WHERE subject_id = $1)");
        let mut conditions = vec![format!("subject_id = $1 AND labels ? '{METHOD}'")];
        // Reads are never staged.
        if table.name != STAGED {
            conditions.push(format!(
                "{ACROSS} AND recorded_at >= {since} AND labels ->> '{METHOD}' = action \
                 AND (subject_id IS NULL OR labels ->> '{ALSO}' = $1::text)"
            ));
        }
        conditions.iter().map(|condition| Self::new(table, condition, true)).collect()
    }

    fn new(table: &'static Table, condition: &str, access: bool) -> Self {
        let clear = table.clear.iter().chain(table.identity).map(|column| Column::clear(table, column));
        let sealed = table.sealed.iter().filter(|_| !access).map(|sealed| Column {
            column: sealed.column,
            member: sealed.column.strip_suffix("_sealed").unwrap_or(sealed.column),
            role: Role::Sealed(*sealed),
        });
        let columns: Vec<Column> =
            clear.chain(sealed).filter(|column| column.column != KEY_MATERIAL).collect();
        let names: Vec<String> = columns.iter().map(|column| format!("\"{}\"", column.column)).collect();
        // Streams and positions count from 0: what was planted below is no entry.
        let possible = if table.name == "audit_logs" { " AND stream >= 0 AND position >= 0" } else { "" };
        let from = format!("FROM {SCHEMA}.{} WHERE {condition}{possible}", table.name);
        Self {
            sql: format!("SELECT {} {from} ORDER BY {}", names.join(", "), order(table)),
            count: format!("SELECT count(*) AS items {from}"),
            table,
            columns,
            access,
        }
    }

    /// Writes a row as one JSON object.
    ///
    /// # Errors
    /// [`Error::Tampered`] where a sealed value of the person's does not open.
    pub(super) fn write(&self, row: &Cells, owner: &Owner<'_>, out: &mut Vec<u8>) -> Result<()> {
        if self.access {
            return self.write_access(row, owner, out);
        }
        let mut withheld = Vec::new();
        out.push(b'{');
        for (index, column) in self.columns.iter().enumerate() {
            if matches!(column.role, Role::Unsaid) {
                continue;
            }
            begin_member(column.member, out)?;
            let Some(cell) = row.get(index) else {
                out.extend_from_slice(b"null");
                continue;
            };
            match column.role {
                Role::Clear | Role::Unsaid => cell.write(out)?,
                Role::Person => person(cell, owner, out)?,
                Role::Resource => self.resource(row, cell, owner, out)?,
                Role::Labels => labels(cell, owner, out)?,
                Role::Sealed(sealed) if self.opens(row, sealed, owner)? => {
                    self.open(row, (cell, sealed), owner, out)?;
                }
                Role::Sealed(_) => {
                    withheld.push(column.member);
                    out.extend_from_slice(b"null");
                }
            }
        }
        if !withheld.is_empty() {
            // It is about somebody else, and under that person's key.
            begin_member("withheld", out)?;
            serde_json::to_writer(&mut *out, &withheld).map_err(Error::internal)?;
        }
        out.push(b'}');
        Ok(())
    }

    /// Whether the person's own key seals this value.
    fn opens(&self, row: &Cells, sealed: Sealed, owner: &Owner<'_>) -> Result<bool> {
        let (first, second) = match sealed.under {
            Under::Person => return Ok(true),
            Under::Deployment => return Ok(false),
            Under::Actor => ("actor_id", "subject_id"),
            Under::Subject => ("subject_id", "actor_id"),
        };
        let whose = self.cell(row, first).or_else(|| self.cell(row, second));
        Ok(whose.map(Cell::number).transpose()? == Some(owner.subject.id))
    }

    fn open(
        &self,
        cells: &Cells,
        (cell, sealed): (Cell<'_>, Sealed),
        owner: &Owner<'_>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let keys = self.table.key.iter().map(|column| match self.cell(cells, column) {
            Some(key) => key.key(),
            None => Err(Error::internal("a row without its key")),
        });
        let row: String = keys.collect::<Result<Vec<_>>>()?.join("\0");
        let place =
            Place { table: sealed.table.unwrap_or(self.table.name), column: sealed.column, row: &row };
        let plain = owner.subject.key.open(place, cell.bytes())?;
        let tampered = || Error::Tampered { at: format!("{}.{}", place.table, place.column) };
        let text = std::str::from_utf8(&plain).map_err(|_| tampered())?;
        if !JSON.contains(&sealed.column) {
            return quote(text, out);
        }
        // What opens was sealed as checked JSON, on one line.
        if self.is_own(cells)? && text.starts_with(FILTER) {
            return filter(text, owner, out);
        }
        out.extend_from_slice(text.as_bytes());
        Ok(())
    }

    /// Whether sidekeep has written this entry of itself.
    fn is_own(&self, row: &Cells) -> Result<bool> {
        let labels = self.cell(row, "labels").map(Cell::json).transpose()?;
        Ok(labels.is_some_and(|labels| labels.contains(&format!("\"{METHOD}\":"))))
    }

    fn resource(&self, row: &Cells, cell: Cell<'_>, owner: &Owner<'_>, out: &mut Vec<u8>) -> Result<()> {
        let whose = match cell.text()? {
            ACTOR => self.cell(row, "actor_id"),
            SUBJECT => self.cell(row, "subject_id"),
            id => return quote(id, out),
        };
        match whose {
            Some(whose) => person(whose, owner, out),
            None => {
                out.extend_from_slice(b"null");
                Ok(())
            }
        }
    }

    fn write_access(&self, row: &Cells, owner: &Owner<'_>, out: &mut Vec<u8>) -> Result<()> {
        let labels = self.cell(row, "labels").map(Cell::json).transpose()?.unwrap_or("{}");
        let labels: HashMap<String, String> = serde_json::from_str(labels).map_err(Error::internal)?;
        let label = |name: &str| labels.get(name).map(String::as_str);
        let when = self.cell(row, "occurred_at").or_else(|| self.cell(row, "recorded_at"));
        out.push(b'{');
        begin_member("id", out)?;
        write_or_null(self.cell(row, "id"), out)?;
        begin_member("when", out)?;
        write_or_null(when.or_else(|| self.cell(row, "staged_at")), out)?;
        begin_member("who", out)?;
        match self.cell(row, "actor_id") {
            Some(actor) => person(actor, owner, out)?,
            None => out.extend_from_slice(b"null"),
        }
        begin_member("service", out)?;
        text_or_null(label(UID).map(|uid| owner.service(uid)).as_deref(), out)?;
        begin_member("what", out)?;
        write_or_null(self.cell(row, "action"), out)?;
        begin_member("resource_type", out)?;
        write_or_null(self.cell(row, "resource_type"), out)?;
        begin_member("resource_id", out)?;
        match self.cell(row, "resource_id") {
            Some(id) => self.resource(row, id, owner, out)?,
            None => out.extend_from_slice(b"null"),
        }
        begin_member("purpose", out)?;
        text_or_null(label(PURPOSE), out)?;
        begin_member("request_id", out)?;
        text_or_null(label(REQUEST_ID), out)?;
        begin_member("outcome", out)?;
        write_or_null(self.cell(row, "outcome"), out)?;
        begin_member("across_people", out)?;
        let subject = self.cell(row, "subject_id").map(Cell::number).transpose()?;
        let across = subject != Some(owner.subject.id);
        out.extend_from_slice(if across { b"true}" } else { b"false}" });
        Ok(())
    }

    fn cell<'r>(&self, row: &'r Cells, column: &str) -> Option<Cell<'r>> {
        row.get(self.columns.iter().position(|known| known.column == column)?)
    }
}

impl Column {
    fn clear(table: &Table, column: &'static str) -> Self {
        let (member, role) = match (table.whose, column) {
            (Whose::Named, "actor_id") => ("user_id", Role::Person),
            (Whose::Named, "subject_id") => ("subject_user_id", Role::Person),
            (Whose::Named, "resource_id") => (column, Role::Resource),
            (Whose::Named, "labels") => (column, Role::Labels),
            // The person's number is said once, with the person.
            (Whose::Subject, "subject_id") if !table.identity.contains(&"user_id") => (column, Role::Unsaid),
            _ => (column, Role::Clear),
        };
        Self { column, member, role }
    }
}

/// The rows of one table in an order that its index has, or by time.
fn order(table: &Table) -> String {
    const TIMES: [&str; 5] = ["given_at", "placed_at", "received_at", "recorded_at", "created_at"];
    if table.clear.contains(&"stream") {
        return "recorded_at, stream, position".into();
    }
    let first = match table.whose {
        Whose::Through { column, .. } => Some(column),
        _ => TIMES.into_iter().find(|time| table.clear.contains(time)),
    };
    let columns: Vec<&str> = first.into_iter().chain(table.key.iter().copied()).collect();
    columns.join(", ")
}

fn begin_member(name: &str, out: &mut Vec<u8>) -> Result<()> {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    quote(name, out)?;
    out.push(b':');
    Ok(())
}

fn write_or_null(cell: Option<Cell<'_>>, out: &mut Vec<u8>) -> Result<()> {
    match cell {
        Some(cell) => cell.write(out),
        None => text_or_null(None, out),
    }
}

fn text_or_null(text: Option<&str>, out: &mut Vec<u8>) -> Result<()> {
    match text {
        Some(text) => quote(text, out),
        None => {
            out.extend_from_slice(b"null");
            Ok(())
        }
    }
}

/// The person under the own user id; everybody else as `other`.
fn person(cell: Cell<'_>, owner: &Owner<'_>, out: &mut Vec<u8>) -> Result<()> {
    if cell.number()? == owner.subject.id {
        return quote(&owner.subject.user_id, out);
    }
    out.extend_from_slice(OTHER);
    Ok(())
}

/// Labels, without the number of another person.
fn labels(cell: Cell<'_>, owner: &Owner<'_>, out: &mut Vec<u8>) -> Result<()> {
    let text = cell.json()?;
    if !text.contains(ALSO) {
        out.extend_from_slice(text.as_bytes());
        return Ok(());
    }
    let mut labels: std::collections::BTreeMap<String, String> =
        serde_json::from_str(text).map_err(Error::internal)?;
    labels.retain(|key, value| key != ALSO || *value == owner.subject.id.to_string());
    serde_json::to_writer(out, &labels).map_err(Error::internal)
}

/// What was looked for, in which persons stand as numbers.
fn filter(text: &str, owner: &Owner<'_>, out: &mut Vec<u8>) -> Result<()> {
    let mut told: serde_json::Value = serde_json::from_str(text).map_err(Error::internal)?;
    for member in ["user_id", "subject_user_id", "resource_id"] {
        if let Some(person) = told.pointer_mut(&format!("/filter/{member}"))
            && let Some(number) = person.as_i64()
        {
            *person =
                if number == owner.subject.id { owner.subject.user_id.as_str() } else { "other" }.into();
        }
    }
    serde_json::to_writer(out, &told).map_err(Error::internal)
}

/// How many items a statement counts.
#[derive(diesel::QueryableByName)]
pub(super) struct Items {
    #[diesel(sql_type = Int8)]
    pub(super) items: i64,
}
