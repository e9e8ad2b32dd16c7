//! Reading many rows with COPY: as PostgreSQL sends them, in binary, without a value made of each column.

use std::pin::Pin;

use bytes::{Buf, Bytes};
use futures_util::StreamExt;

use super::Dedicated;

/// Signature, flags and length of the extension: what comes before the first row.
const HEADER: usize = 19;

/// Rows on their way.
pub struct CopiedRows {
    stream: Pin<Box<tokio_postgres::CopyOutStream>>,
    began: bool,
    /// It must not be asked again then.
    ended: bool,
}

impl std::fmt::Debug for CopiedRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CopiedRows").field("began", &self.began).finish_non_exhaustive()
    }
}

impl Dedicated {
    /// Begins to read the rows of a query.
    ///
    /// # Errors
    /// PostgreSQL's.
    pub async fn copy(&self, query: &str) -> Result<CopiedRows, tokio_postgres::Error> {
        let stream = self.client.copy_out(&format!("COPY ({query}) TO STDOUT (FORMAT binary)")).await?;
        Ok(CopiedRows { stream: Box::pin(stream), began: false, ended: false })
    }
}

impl CopiedRows {
    /// The next rows, as many as `most` or as fill `bytes`; none at the end.
    ///
    /// # Errors
    /// PostgreSQL's.
    pub async fn next(&mut self, most: usize, bytes: usize) -> Result<Vec<Columns>, tokio_postgres::Error> {
        let (mut rows, mut size) = (Vec::new(), 0_usize);
        while !self.ended && rows.len() < most && size < bytes {
            let Some(message) = self.stream.next().await else {
                self.ended = true;
                break;
            };
            let mut row = message?;
            if !self.began {
                self.began = true;
                row.advance(HEADER.min(row.len()));
            }
            size = size.saturating_add(row.len());
            // The number of columns, which is -1 at the end.
            let columns = row.try_get_i16().unwrap_or(-1);
            if columns >= 0 {
                rows.push(Columns(row));
            }
        }
        Ok(rows)
    }
}

/// The columns of one row, from the left.
#[derive(Clone, Debug)]
pub struct Columns(Bytes);

impl Columns {
    /// The next column: nothing where the row ends, and nothing within where it is NULL.
    pub fn take(&mut self) -> Option<Option<Bytes>> {
        match usize::try_from(self.0.try_get_i32().ok()?) {
            Err(_) => Some(None),
            Ok(length) => (length <= self.0.len()).then(|| Some(self.0.split_to(length))),
        }
    }
}
