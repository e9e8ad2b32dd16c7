//! A query whose text is made once for its type, and not for each call, where making it costs more than all else that diesel does.
//!
//! Owns the texts; knows no table. Their number is that of the types of queries in this program.

use std::any::TypeId;
use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use diesel::pg::{Pg, PgQueryBuilder};
use diesel::query_builder::{AstPass, Query, QueryBuilder, QueryFragment, QueryId};
use diesel::result::QueryResult;

static TEXTS: RwLock<Option<HashMap<TypeId, Box<str>>>> = RwLock::new(None);

/// The query, unchanged. Worth its name for one that is made often and is long.
#[derive(Clone, Copy, Debug)]
pub struct Fixed<Q>(pub Q);

impl<Q: Query> Query for Fixed<Q> {
    type SqlType = Q::SqlType;
}

impl<Q: QueryId> QueryId for Fixed<Q> {
    type QueryId = Q::QueryId;
    const HAS_STATIC_QUERY_ID: bool = Q::HAS_STATIC_QUERY_ID;
}

impl<Q: QueryFragment<Pg> + QueryId> QueryFragment<Pg> for Fixed<Q> {
    fn walk_ast<'b>(&'b self, pass: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        self.0.walk_ast(pass)
    }

    fn to_sql(&self, out: &mut PgQueryBuilder, backend: &Pg) -> QueryResult<()> {
        // Queries of one id have one text: diesel keeps prepared statements by it too, where the query says that it may.
        let Some(id) = Q::query_id() else { return self.0.to_sql(out, backend) };
        if let Some(text) =
            TEXTS.read().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(|texts| texts.get(&id))
        {
            out.push_sql(text);
            return Ok(());
        }
        let mut made = PgQueryBuilder::default();
        self.0.to_sql(&mut made, backend)?;
        let text = made.finish();
        out.push_sql(&text);
        if self.0.is_safe_to_cache_prepared(backend)? {
            let mut texts = TEXTS.write().unwrap_or_else(PoisonError::into_inner);
            texts.get_or_insert_default().insert(id, text.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use diesel::pg::Pg;
    use diesel::prelude::{ExpressionMethods, QueryDsl};
    use diesel::query_builder::{QueryBuilder, QueryFragment};

    use super::Fixed;
    use crate::store::schema::subjects;

    fn text<Q: QueryFragment<Pg>>(query: &Q) -> String {
        let mut builder = diesel::pg::PgQueryBuilder::default();
        query.to_sql(&mut builder, &Pg).unwrap();
        builder.finish()
    }

    #[test]
    fn the_text_is_the_same_each_time() {
        for id in 0..3_i64 {
            let one = || subjects::table.filter(subjects::subject_id.eq(id)).select(subjects::kek_id);
            assert_eq!(text(&Fixed(one())), text(&one()));
            let some =
                || subjects::table.filter(subjects::subject_id.eq_any(vec![id])).select(subjects::user_id);
            assert_eq!(text(&Fixed(some())), text(&some()));
        }
    }
}
