//! `conversation.*`.

use super::{About, Methods};
use crate::records::conversation::{Append, Create, List, Messages, Search, Update, Which};

macro_rules! members {
    ($title:literal, $count:literal, $version:literal) => {
        concat!(
            r#""id":"chat-1","user_id":"user:alice","title":""#,
            $title,
            r#"","metadata":null,"archived":false,"message_count":"#,
            $count,
            r#","version":"#,
            $version,
            r#","created_at":"2026-11-20T19:55:00.000000Z","last_message_at":"2026-11-20T19:55:00.000000Z""#
        )
    };
}

macro_rules! messages {
    () => {
        r#"[{"role":"user","content":"Hello","position":0,"created_at":"2026-11-20T19:55:00.000000Z"},{"id":"m-2","role":"assistant","content":"Good evening","position":1,"created_at":"2026-11-20T19:55:01.000000Z"}]"#
    };
}

const WHICH: &str = r#"{"id":"chat-1"}"#;

pub(super) fn add(methods: &mut Methods) {
    add_writes(methods);
    methods.add(
        About::read(
            "conversation.get",
            "A conversation with all of its messages; too_large past the limit, then use conversation.messages.",
            (WHICH, concat!("{", members!("Evening", 2, 2), r#","messages":"#, messages!(), "}")),
        ),
        |call, which: Which| async move { call.app.records.conversation(&call.by, &which.id).await },
    );
    methods.add(
        About::read(
            "conversation.messages",
            "A page of a conversation's messages, the oldest first.",
            (
                r#"{"id":"chat-1","limit":20}"#,
                concat!(r#"{"items":"#, messages!(), r#","next_cursor":null}"#),
            ),
        ),
        |call, page: Messages| async move { call.app.records.messages(&call.by, &page).await },
    );
    methods.add(
        About::read(
            "conversation.list",
            "A page of a person's conversations, the latest message first.",
            (
                r#"{"user_id":"user:alice","archived":false}"#,
                concat!(r#"{"items":[{"#, members!("Evening", 2, 2), r#"}],"next_cursor":null}"#),
            ),
        ),
        |call, list: List| async move { call.app.records.conversations(&call.by, &list).await },
    );
    methods.add(
        About::read(
            "conversation.search",
            "The person's messages that hold all words, upper or lower case.",
            (
                r#"{"user_id":"user:alice","query":"good EVENING"}"#,
                r#"{"items":[{"conversation_id":"chat-1","position":1,"message":{"id":"m-2","role":"assistant","content":"Good evening","position":1,"created_at":"2026-11-20T19:55:01.000000Z"}}]}"#,
            ),
        ),
        |call, search: Search| async move { call.app.records.search(&call.by, &search).await },
    );
}

fn add_writes(methods: &mut Methods) {
    methods.add(
        About::write(
            "conversation.create",
            "Creates a conversation, perhaps with its first messages.",
            (
                r#"{"user_id":"user:alice","id":"chat-1","title":"Evening","messages":[{"role":"user","content":"Hello"}]}"#,
                concat!("{", members!("Evening", 1, 1), "}"),
            ),
        ),
        |call, create: Create| async move { call.app.records.create_conversation(&call.by, create).await },
    );
    methods.add(
        About::write(
            "conversation.append",
            "Appends messages; one whose id is there already with the same content is skipped.",
            (
                r#"{"id":"chat-1","messages":[{"id":"m-2","role":"assistant","content":"Good evening"}]}"#,
                r#"{"id":"chat-1","message_count":2,"last_message_at":"2026-11-20T19:55:01.000000Z"}"#,
            ),
        ),
        |call, append: Append| async move { call.app.records.append_messages(&call.by, append).await },
    );
    methods.add(
        About::deletes(
            "conversation.update",
            "Applies a JSON Merge Patch (RFC 7396) to a conversation; messages are replaced as a whole.",
            (
                r#"{"id":"chat-1","changes":{"title":"Night"},"expected_version":2}"#,
                concat!("{", members!("Night", 2, 3), "}"),
            ),
        ),
        |call, update: Update| async move { call.app.records.update_conversation(&call.by, update).await },
    );
    methods.add(
        About::deletes(
            "conversation.delete",
            "Deletes a conversation with its messages.",
            (WHICH, r#"{"deleted":true}"#),
        ),
        |call, which: Which| async move { call.app.records.delete_conversation(&call.by, &which.id).await },
    );
}
