//! `subject.*` that read: who accessed a person's data, and all of it.

use super::{About, Methods};
use crate::audit::accesses::Accesses;
use crate::subjects::export::{Export, Surroundings, document};

macro_rules! access {
    () => {
        r#"{"id":"0199e2f4-0000-7000-8000-000000000001","when":"2026-11-20T19:55:00.000000Z","who":null,"uid":1000,"what":"profile.get","resource_type":"profile","resource_id":"user:alice","purpose":null,"request_id":null,"outcome":"success","across_people":false}"#
    };
}

macro_rules! body {
    () => {
        concat!(
            r#"{"format":"sidekeep-export/1","deployment":"test","schema":"20261121000016","scope":"portability","user_id":"user:alice","exported_at":"2026-11-20T19:55:00.000000Z","#,
            r#""counts":{"consents":0,"conversations":0,"messages":0,"preferences":0,"profile":1},"#,
            r#""retention":{"consents":"7y","conversations":"90d","messages":"90d","preferences":"until it is deleted, or the person is erased","profile":"until it is deleted, or the person is erased"},"#,
            r#""notice":null,"profile":{"version":1,"created_at":"2026-11-20T19:55:00.000000Z","updated_at":"2026-11-20T19:55:00.000000Z","username_digest":"9f86d081884c7d65","email_digest":"60303ae22b998861","username":"alice","email":"alice@mail.example","full_name":"Alice Example","metadata":{"plan":"pro"}},"#,
            r#""preferences":null,"consents":[],"conversations":[]}"#
        )
    };
}

pub(super) fn add(methods: &mut Methods) {
    methods.add(
        About::read(
            "subject.accesses",
            "A page of accesses to a person's data, the newest first: who, when, what and why. Complete for calls that name the person; reads across people are listed as such.",
            (
                r#"{"user_id":"user:alice","limit":10}"#,
                concat!(r#"{"items":["#, access!(), r#"],"next_cursor":null}"#),
            ),
        ),
        |call, asked: Accesses| async move { call.app.records.log().accesses(&call.by, &asked).await },
    );
    methods.add(
        // It stages its entry, and notes itself with the request that it answers: whether that was committed may not be known.
        About::write(
            "subject.export",
            "Everything that is held about a person (access), or what the person provided (portability), from one snapshot as one signed document. Other people are only `other`.",
            (
                r#"{"user_id":"user:alice","scope":"portability"}"#,
                concat!(r#"{"body":"#, body!(), r#","key":"11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=","signature":"kR7Yc7dVbQnLQ8hAnM5yq0UVzpQYHkAUpIxJvD0Y0mC6U4lKQyS1K7Qh6w1tqQ3W9nF0t0qPq1sYfP0S1bX8Ag=="}"#),
            ),
        ),
        |call, asked: Export| async move {
            let around = Surroundings::of(&call.app.config)?;
            let max = call.app.config.limits.max_answer_bytes.bytes();
            document(&call.app.records, &call.by, &asked, &around, max).await
        },
    );
}
