//! `profile.*`.

use super::{About, Methods};
use crate::records::profile::{Create, Update, Whose};

const PROFILE: &str = r#"{"user_id":"user:alice","username":"alice","email":"alice@mail.example","full_name":"Alice Example","metadata":{"plan":"pro"},"version":1,"created_at":"2026-11-20T19:55:00.000000Z","updated_at":"2026-11-20T19:55:00.000000Z"}"#;
const UPDATED: &str = r#"{"user_id":"user:alice","username":"alice","email":"alice@mail.example","full_name":null,"metadata":{"plan":"free"},"version":2,"created_at":"2026-11-20T19:55:00.000000Z","updated_at":"2026-11-20T19:56:00.000000Z"}"#;

pub(super) fn add(methods: &mut Methods) {
    methods.add(
        About::write(
            "profile.create",
            "Creates a person's profile; conflict if there is one.",
            (
                r#"{"user_id":"user:alice","username":"alice","email":"alice@mail.example","full_name":"Alice Example","metadata":{"plan":"pro"}}"#,
                PROFILE,
            ),
        ),
        |call, create: Create| async move { call.app.records.create_profile(&call.by, create).await },
    );
    methods.add(
        About::read("profile.get", "Reads a person's profile.", (r#"{"user_id":"user:alice"}"#, PROFILE)),
        |call, whose: Whose| async move { call.app.records.profile(&call.by, &whose.user_id).await },
    );
    methods.add(
        About::write(
            "profile.update",
            "Applies a JSON Merge Patch (RFC 7396) to a person's profile.",
            (
                r#"{"user_id":"user:alice","changes":{"full_name":null,"metadata":{"plan":"free"}},"expected_version":1}"#,
                UPDATED,
            ),
        ),
        |call, update: Update| async move { call.app.records.update_profile(&call.by, update).await },
    );
    methods.add(
        About::deletes(
            "profile.delete",
            "Deletes a person's profile alone; the person and other records stay.",
            (r#"{"user_id":"user:alice"}"#, r#"{"deleted":true}"#),
        ),
        |call, whose: Whose| async move { call.app.records.delete_profile(&call.by, &whose.user_id).await },
    );
}
