//! Legal holds as a change sees them: while one is open, nothing of the person's is deleted. Places and releases none.

use diesel::prelude::{ExpressionMethods, QueryDsl};
use diesel_async::RunQueryDsl;

use crate::error::{Error, Result};
use crate::store::Connection;
use crate::store::schema::legal_holds;

/// How many holds are named to a caller whom they stand in the way of.
const NAMED: i64 = 100;

/// The ids of a person's open holds, the oldest first. True until the transaction ends where it has the person's row, since
/// placing a hold takes that row.
///
/// # Errors
/// The database's.
pub async fn open_holds(tx: &mut Connection, subject_id: i64) -> Result<Vec<String>> {
    let rows = legal_holds::table
        .filter(legal_holds::subject_id.eq(subject_id))
        .filter(legal_holds::released_at.is_null())
        .order((legal_holds::placed_at, legal_holds::id));
    Ok(rows.select(legal_holds::id).limit(NAMED).load(tx).await?)
}

/// Makes sure that no hold stands, for whoever is about to delete something of the person's and has the person's row.
///
/// # Errors
/// [`Error::Held`], with the holds.
pub async fn unheld(tx: &mut Connection, subject_id: i64) -> Result<()> {
    let holds = open_holds(tx, subject_id).await?;
    if holds.is_empty() { Ok(()) } else { Err(Error::Held { holds }) }
}
