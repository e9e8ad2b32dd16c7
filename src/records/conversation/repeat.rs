//! `conversation.create` sent again with the same id.

use diesel::prelude::{ExpressionMethods, OptionalExtension, QueryDsl, SelectableHelper};
use diesel_async::RunQueryDsl;

use super::{Conversation, Create, Stored, count, message};
use crate::error::{Error, Result};
use crate::keyring::Subject;
use crate::store::Connection;
use crate::store::schema::{conversation_messages, conversations};
use crate::values::RecordId;

/// What stands under the id, when each parameter that was given equals it; else a conflict.
pub(super) async fn repeated(
    tx: &mut Connection,
    subject: &Subject,
    create: &Create,
    id: &RecordId,
) -> Result<Conversation> {
    let conflict = || Error::conflict("another conversation has this id");
    let row = conversations::table.find(id.as_str()).select(Stored::as_select());
    let stored: Stored = row.first(tx).await.optional()?.ok_or_else(conflict)?;
    if stored.subject_id != subject.id {
        return Err(conflict());
    }
    let conversation = stored.open(subject)?;
    // What was appended since does not make the first messages others.
    let first: Vec<message::Stored> = conversation_messages::table
        .filter(conversation_messages::conversation_id.eq(id.as_str()))
        .filter(conversation_messages::position.lt(count(create.messages.len())?))
        .order(conversation_messages::position)
        .select(message::Stored::as_select())
        .load(tx)
        .await?;
    let mut same = first.len() == create.messages.len()
        && create.title.as_ref().is_none_or(|title| conversation.title.as_deref() == Some(title.as_str()))
        && create.created_at.is_none_or(|at| at == conversation.created_at)
        && create
            .metadata
            .as_ref()
            .is_none_or(|given| conversation.metadata.as_ref().is_some_and(|stored| given.same(stored)));
    for (stored, given) in first.iter().zip(&create.messages) {
        same = same && stored.sent(subject)?.same(given.sent());
    }
    if same { Ok(conversation) } else { Err(conflict()) }
}
