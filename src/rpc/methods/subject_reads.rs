//! `subject.*` that read: who accessed a person's data, and all of it.

use super::{About, Methods};
use crate::audit::accesses::Accesses;

macro_rules! access {
    () => {
        r#"{"id":"0199e2f4-0000-7000-8000-000000000001","when":"2026-11-20T19:55:00.000000Z","who":"user:bob","uid":1000,"what":"profile.get","resource_type":"profile","resource_id":"user:alice","purpose":"support","request_id":"r-1","outcome":"success","across_people":false}"#
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
}
