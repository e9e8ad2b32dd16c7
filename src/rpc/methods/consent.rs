//! `consent.*`.

use super::{About, Methods};
use crate::records::consent::{Check, History, Record};
use crate::records::profile::Whose;

macro_rules! consent {
    () => {
        r#"{"id":"consent-1","user_id":"user:alice","consent_type":"marketing","granted":true,"given_at":"2026-11-20T19:55:00.000000Z","expires_at":null,"policy_version":"2026-10","policy_sha256":null,"legal_basis":"consent","method":"web-form","language":"en","ip_address":"203.0.113.7","user_agent":null,"metadata":{"form":"signup"},"recorded_at":"2026-11-20T19:55:00.100000Z"}"#
    };
}

pub(super) fn add(methods: &mut Methods) {
    methods.add(
        About::write(
            "consent.record",
            "Records a consent or its withdrawal (granted: false); nothing is ever changed.",
            (
                r#"{"user_id":"user:alice","consent_type":"marketing","granted":true,"id":"consent-1","given_at":"2026-11-20T19:55:00Z","policy_version":"2026-10","legal_basis":"consent","method":"web-form","language":"en","ip_address":"203.0.113.7","metadata":{"form":"signup"}}"#,
                consent!(),
            ),
        ),
        |call, record: Record| async move { call.app.records.record_consent(&call.by, record).await },
    );
    methods.add(
        About::read(
            "consent.check",
            "Says whether there is a consent at a time: not when none was given, and not when it was withdrawn, has expired or was not yet given.",
            (
                r#"{"user_id":"user:alice","consent_type":"marketing"}"#,
                concat!(r#"{"granted":true,"consent":"#, consent!(), "}"),
            ),
        ),
        |call, check: Check| async move { call.app.records.check_consent(&call.by, &check).await },
    );
    methods.add(
        About::read(
            "consent.current",
            "The latest record of each type.",
            (r#"{"user_id":"user:alice"}"#, concat!(r#"{"items":["#, consent!(), "]}")),
        ),
        |call, whose: Whose| async move { call.app.records.current_consents(&call.by, &whose.user_id).await },
    );
    methods.add(
        About::read(
            "consent.history",
            "A page of a person's records, the latest given first.",
            (
                r#"{"user_id":"user:alice","consent_type":"marketing","limit":10}"#,
                concat!(r#"{"items":["#, consent!(), r#"],"next_cursor":null}"#),
            ),
        ),
        |call, history: History| async move { call.app.records.consent_history(&call.by, &history).await },
    );
}
