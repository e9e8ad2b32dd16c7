//! `preferences.*`.

use super::{About, Methods};
use crate::records::preferences::{Set, Update};
use crate::records::profile::Whose;

const PREFERENCES: &str = r#"{"user_id":"user:alice","preferences":{"theme":"dark","language":"en"},"version":1,"updated_at":"2026-11-20T19:55:00.000000Z"}"#;
const UPDATED: &str = r#"{"user_id":"user:alice","preferences":{"theme":"light"},"version":2,"updated_at":"2026-11-20T19:56:00.000000Z"}"#;

pub(super) fn add(methods: &mut Methods) {
    methods.add(
        About::write(
            "preferences.set",
            "Sets all of a person's preferences.",
            (r#"{"user_id":"user:alice","preferences":{"theme":"dark","language":"en"}}"#, PREFERENCES),
        ),
        |call, set: Set| async move { call.app.records.set_preferences(&call.by, set).await },
    );
    methods.add(
        About::read(
            "preferences.get",
            "Reads a person's preferences.",
            (r#"{"user_id":"user:alice"}"#, PREFERENCES),
        ),
        |call, whose: Whose| async move { call.app.records.preferences(&call.by, &whose.user_id).await },
    );
    methods.add(
        About::write(
            "preferences.update",
            "Applies a JSON Merge Patch (RFC 7396) to a person's preferences.",
            (r#"{"user_id":"user:alice","changes":{"theme":"light","language":null},"expected_version":1}"#, UPDATED),
        ),
        |call, update: Update| async move { call.app.records.update_preferences(&call.by, update).await },
    );
    methods.add(
        About::deletes(
            "preferences.delete",
            "Deletes a person's preferences.",
            (r#"{"user_id":"user:alice"}"#, r#"{"deleted":true}"#),
        ),
        |call, whose: Whose| async move {
            call.app.records.delete_preferences(&call.by, &whose.user_id).await
        },
    );
}
