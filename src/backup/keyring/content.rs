//! What is in a shard: the rows of its persons, its tombstones, its open holds and who is refused, as lines of JSON that were compressed.
//!
//! Rows are as PostgreSQL makes JSON of them, so that a column more or less is no other format.

use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::RangeInclusive;

use diesel::QueryableByName;
use diesel::sql_types::{Nullable, Text};
use diesel_async::RunQueryDsl;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::store::Connection;

/// How many rows are read at once.
const ROWS: usize = 2000;
/// zstd's level: a shard is written often, and what is in it is mostly random.
const LEVEL: i32 = 1;
/// The longest line: a certificate is the longest thing in one.
const LONGEST: u64 = 1 << 20;

/// One row.
#[derive(Debug, Serialize, Deserialize)]
pub struct Line {
    /// Its table: `subjects`, `subject_erasures`, `legal_holds` or `subject_refusals`.
    pub table: String,
    /// The row.
    pub row: Box<RawValue>,
}

/// What was read of one shard in one snapshot.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// The lines, compressed.
    pub(super) bytes: Vec<u8>,
    /// The key-encryption keys that wrap the keys in it.
    pub(super) kek_ids: Vec<String>,
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = Text)]
    json: String,
    #[diesel(sql_type = Nullable<Text>)]
    kek_id: Option<String>,
}

/// The subject ids of a shard.
pub(super) fn ids(shard: i16) -> RangeInclusive<i64> {
    let first = i64::from(shard) << 45;
    first..=first.saturating_add((1 << 45) - 1)
}

impl Content {
    /// Reads a shard. Whoever calls has a snapshot.
    pub(super) async fn read(connection: &mut Connection, shard: i16) -> Result<Self> {
        let ids = ids(shard);
        let within = format!("subject_id BETWEEN {} AND {}", ids.start(), ids.end());
        let declare = format!(
            "DECLARE shard NO SCROLL CURSOR FOR \
             SELECT 'subjects' AS kind, to_jsonb(t)::text AS json, kek_id FROM sidekeep.subjects t WHERE {within} UNION ALL \
             SELECT 'subject_erasures', to_jsonb(t)::text, NULL FROM sidekeep.subject_erasures t WHERE {within} UNION ALL \
             SELECT 'legal_holds', to_jsonb(t)::text, NULL FROM sidekeep.legal_holds t WHERE released_at IS NULL AND {within} UNION ALL \
             SELECT 'subject_refusals', to_jsonb(t)::text, NULL FROM sidekeep.subject_refusals t WHERE get_byte(digest, 0) = {shard}"
        );
        diesel::sql_query(&declare).execute(connection).await?;
        let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL).map_err(Error::internal)?;
        let mut kek_ids: Vec<String> = Vec::new();
        let fetch = format!("FETCH {ROWS} FROM shard");
        loop {
            let rows: Vec<Row> = diesel::sql_query(&fetch).load(connection).await?;
            let last = rows.len() < ROWS;
            for row in rows {
                if let Some(kek_id) = row.kek_id.filter(|kek_id| !kek_ids.contains(kek_id)) {
                    kek_ids.push(kek_id);
                }
                let line =
                    Line { table: row.kind, row: RawValue::from_string(row.json).map_err(Error::internal)? };
                serde_json::to_writer(&mut encoder, &line).map_err(Error::internal)?;
                encoder.write_all(b"\n").map_err(Error::internal)?;
            }
            if last {
                break;
            }
        }
        diesel::sql_query("CLOSE shard").execute(connection).await?;
        kek_ids.sort_unstable();
        Ok(Self { bytes: encoder.finish().map_err(Error::internal)?, kek_ids })
    }
}

/// The rows of an opened shard, one after another.
pub struct Lines<'a>(BufReader<zstd::Decoder<'static, BufReader<&'a [u8]>>>);

impl std::fmt::Debug for Lines<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lines")
    }
}

impl<'a> Lines<'a> {
    /// Of what a shard held when it was opened.
    ///
    /// # Errors
    /// It is not compressed as a shard is.
    pub fn of(plain: &'a [u8]) -> Result<Self> {
        Ok(Self(BufReader::new(zstd::Decoder::new(plain).map_err(Error::internal)?)))
    }

    /// The next rows, at most so many; none at the end.
    ///
    /// # Errors
    /// They are not as they were written.
    pub fn next(&mut self, most: usize) -> Result<Vec<Line>> {
        use std::io::Read as _;
        let mut lines = Vec::new();
        while lines.len() < most {
            let mut line = Vec::new();
            let read = (&mut self.0).take(LONGEST).read_until(b'\n', &mut line).map_err(Error::internal)?;
            if read == 0 {
                break;
            }
            lines.push(serde_json::from_slice(&line).map_err(Error::internal)?);
        }
        Ok(lines)
    }
}
