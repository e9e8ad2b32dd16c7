//! A row of any table, read without knowing its type beforehand: so that a new column cannot be forgotten.
//!
//! Knows the types of PostgreSQL that the schema uses, in their binary form; refuses others.

use std::io::Write as _;
use std::num::NonZeroU32;
use std::ops::Range;

use chrono::{DateTime, Utc};
use diesel::deserialize::{self, QueryableByName};
use diesel::pg::Pg;
use diesel::row::{Field as _, NamedRow};

use crate::clock::Timestamp;
use crate::error::{Error, Result};

/// PostgreSQL's numbers of types (`pg_type.dat`).
mod oid {
    pub(super) const BOOL: u32 = 16;
    pub(super) const BYTEA: u32 = 17;
    pub(super) const INT8: u32 = 20;
    pub(super) const INT2: u32 = 21;
    pub(super) const INT4: u32 = 23;
    pub(super) const TEXT: u32 = 25;
    pub(super) const JSON: u32 = 114;
    pub(super) const TIMESTAMPTZ: u32 = 1184;
    pub(super) const JSONB: u32 = 3802;
}

/// 2000-01-01, where PostgreSQL begins to count, in microseconds since 1970.
const EPOCH: i64 = 946_684_800_000_000;

/// The values of a row, one after another.
#[derive(Debug)]
pub(super) struct Cells {
    bytes: Vec<u8>,
    cells: Vec<Option<(NonZeroU32, Range<usize>)>>,
}

impl QueryableByName<Pg> for Cells {
    fn build<'a>(row: &impl NamedRow<'a, Pg>) -> deserialize::Result<Self> {
        let count = row.field_count();
        let (mut bytes, mut cells) = (Vec::with_capacity(512), Vec::with_capacity(count));
        for index in 0..count {
            let field = diesel::row::Row::get(row, index).ok_or("a row without one of its fields")?;
            cells.push(field.value().map(|value| {
                let begin = bytes.len();
                bytes.extend_from_slice(value.as_bytes());
                (value.get_oid(), begin..bytes.len())
            }));
        }
        Ok(Self { bytes, cells })
    }
}

/// A value that is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cell<'a> {
    oid: u32,
    bytes: &'a [u8],
}

impl Cells {
    /// A value, or nothing where it is null.
    pub(super) fn get(&self, index: usize) -> Option<Cell<'_>> {
        let (oid, range) = self.cells.get(index)?.as_ref()?;
        Some(Cell { oid: oid.get(), bytes: self.bytes.get(range.clone())? })
    }
}

impl<'a> Cell<'a> {
    /// The bytes as they came.
    pub(super) fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// A text.
    pub(super) fn text(self) -> Result<&'a str> {
        std::str::from_utf8(self.bytes).map_err(Error::internal)
    }

    /// A whole number.
    pub(super) fn number(self) -> Result<i64> {
        match self.oid {
            oid::INT2 => Ok(i64::from(i16::from_be_bytes(self.exactly()?))),
            oid::INT4 => Ok(i64::from(i32::from_be_bytes(self.exactly()?))),
            _ => Ok(i64::from_be_bytes(self.exactly()?)),
        }
    }

    /// JSON as PostgreSQL keeps it; `jsonb` has the number of its version in front.
    pub(super) fn json(self) -> Result<&'a str> {
        let bytes = if self.oid == oid::JSONB { self.bytes.get(1..).unwrap_or_default() } else { self.bytes };
        std::str::from_utf8(bytes).map_err(Error::internal)
    }

    /// The value as the text that sealed values are bound to.
    pub(super) fn key(self) -> Result<String> {
        match self.oid {
            oid::INT2 | oid::INT4 | oid::INT8 => Ok(self.number()?.to_string()),
            _ => self.text().map(str::to_owned),
        }
    }

    /// Writes the value as JSON.
    ///
    /// # Errors
    /// A type that is not known here: a migration has brought it, and nothing may be left out.
    pub(super) fn write(self, out: &mut Vec<u8>) -> Result<()> {
        match self.oid {
            oid::BOOL => out.extend_from_slice(if self.bytes == [0] { b"false" } else { b"true" }),
            oid::INT2 | oid::INT4 | oid::INT8 => {
                write!(out, "{}", self.number()?).map_err(Error::internal)?
            }
            oid::TEXT => quote(self.text()?, out)?,
            oid::JSON | oid::JSONB => out.extend_from_slice(self.json()?.as_bytes()),
            oid::TIMESTAMPTZ => {
                let since_1970 = i64::from_be_bytes(self.exactly()?).saturating_add(EPOCH);
                let at = DateTime::<Utc>::from_timestamp_micros(since_1970)
                    .ok_or_else(|| Error::internal("a time that is out of range"))?;
                write!(out, "\"{}\"", Timestamp::from(at)).map_err(Error::internal)?;
            }
            oid::BYTEA => {
                out.push(b'"');
                out.extend(self.bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
                out.push(b'"');
            }
            other => {
                return Err(Error::internal(format!(
                    "the export does not know the type with number {other}"
                )));
            }
        }
        Ok(())
    }

    fn exactly<const N: usize>(self) -> Result<[u8; N]> {
        self.bytes.try_into().map_err(Error::internal)
    }
}

/// Writes a text as JSON.
pub(super) fn quote(text: &str, out: &mut Vec<u8>) -> Result<()> {
    serde_json::to_writer(out, text).map_err(Error::internal)
}

fn digit(four_bits: u8) -> u8 {
    if four_bits < 10 { b'0'.saturating_add(four_bits) } else { b'a'.saturating_add(four_bits - 10) }
}
