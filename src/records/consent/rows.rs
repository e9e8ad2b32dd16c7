//! The rows of consents as verification compares them with the log: by their ids, and one after the other. Opens none.

use std::collections::HashMap;

use diesel::prelude::{ExpressionMethods, QueryDsl, SelectableHelper};
use diesel_async::RunQueryDsl;
use futures_util::future::BoxFuture;

use super::{Stored, size};
use crate::audit::verify::{ConsentRow, Consents};
use crate::error::Result;
use crate::store::Connection;
use crate::store::schema::consent_records;

/// How verification reads them.
pub const ROWS: Consents = Consents { digests, after };

/// So many rows are read in one go, and so many bytes of what is not bounded otherwise, but one row at least.
const AT_ONCE: i64 = 1000;
const BYTES: i64 = 8 << 20;

fn digests<'a>(
    connection: &'a mut Connection,
    ids: &'a [String],
) -> BoxFuture<'a, Result<HashMap<String, String>>> {
    Box::pin(async move {
        let rows = consent_records::table.filter(consent_records::id.eq_any(ids)).select(Stored::as_select());
        let rows: Vec<Stored> = rows.load(connection).await?;
        Ok(rows.into_iter().map(|row| (row.id.clone(), row.digest())).collect())
    })
}

fn after<'a>(connection: &'a mut Connection, id: &'a str) -> BoxFuture<'a, Result<Vec<ConsentRow>>> {
    Box::pin(async move {
        let next = consent_records::table
            .filter(consent_records::id.gt(id))
            .order(consent_records::id)
            .limit(AT_ONCE)
            .select((consent_records::id, size()));
        let next: Vec<(String, i64)> = next.load(connection).await?;
        let mut bytes = 0_i64;
        let fitting = next.into_iter().enumerate().map_while(|(index, (id, size))| {
            bytes = bytes.saturating_add(size);
            (index == 0 || bytes <= BYTES).then_some(id)
        });
        let ids: Vec<String> = fitting.collect();
        let rows = consent_records::table
            .filter(consent_records::id.eq_any(&ids))
            .order(consent_records::id)
            .select(Stored::as_select());
        let rows: Vec<Stored> = rows.load(connection).await?;
        let row = |row: Stored| ConsentRow {
            digest: row.digest(),
            subject: row.subject_id,
            recorded_at: row.recorded_at,
            id: row.id,
        };
        Ok(rows.into_iter().map(row).collect())
    })
}
