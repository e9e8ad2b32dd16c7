//! Rows of the keyring's backup on their way back into tables: as JSON that PostgreSQL makes rows of.
//!
//! Writes nothing by itself.

use serde_json::value::RawValue;

use super::keyring::{Line, Lines, Ring};
use crate::audit::restored::Remembered;
use crate::error::{Error, Result};
use crate::keyring::shard::Header;

/// How many rows go into one statement.
pub(super) const ROWS: usize = 2000;

/// The rows of one table among these lines, as one text of JSON.
pub(super) fn rows_of(lines: &[Line], table: &str) -> Option<String> {
    let rows: Vec<&RawValue> =
        lines.iter().filter(|line| line.table == table).map(|line| &*line.row).collect();
    if rows.is_empty() { None } else { serde_json::to_string(&rows).ok() }
}

/// The rows that are in the JSON `$1`, as a table that is called `p`.
pub(super) fn records(table: &str) -> String {
    format!("jsonb_populate_recordset(NULL::sidekeep.{table}, $1::text::jsonb) AS p")
}

/// Inserts the rows that are in the JSON `$1`.
pub(super) fn populate(table: &str, rest: &str) -> String {
    format!("INSERT INTO sidekeep.{table} SELECT p.* FROM {}{rest}", records(table))
}

/// What a shard remembers of erasures, in some lines of it.
pub(super) fn remembered(lines: &[Line]) -> Result<Vec<Remembered>> {
    let tombstones = lines.iter().filter(|line| line.table == "subject_erasures");
    tombstones.map(|line| serde_json::from_str(line.row.get()).map_err(Error::internal)).collect()
}

/// All that a shard holds, by table, each text some rows of it.
pub(super) struct Part {
    pub(super) header: Header,
    pub(super) erased: Vec<Remembered>,
    pub(super) erasures: Vec<String>,
    pub(super) subjects: Vec<String>,
    pub(super) refusals: Vec<String>,
    pub(super) holds: Vec<String>,
}

impl Part {
    /// Reads a shard; nothing where there is none.
    ///
    /// # Errors
    /// As [`Ring::shard`].
    pub(super) async fn read(ring: &Ring, number: i16) -> Result<Option<Self>> {
        let Some((header, plain)) = ring.shard(number).await? else { return Ok(None) };
        let (erased, empty) = (Vec::new(), Vec::new);
        let mut part =
            Self { header, erased, erasures: empty(), subjects: empty(), refusals: empty(), holds: empty() };
        let mut lines = Lines::of(&plain)?;
        loop {
            let some = lines.next(ROWS)?;
            if some.is_empty() {
                return Ok(Some(part));
            }
            part.erased.extend(remembered(&some)?);
            part.erasures.extend(rows_of(&some, "subject_erasures"));
            part.subjects.extend(rows_of(&some, "subjects"));
            part.refusals.extend(rows_of(&some, "subject_refusals"));
            part.holds.extend(rows_of(&some, "legal_holds"));
        }
    }
}
