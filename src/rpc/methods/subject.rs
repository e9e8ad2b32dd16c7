//! `subject.*`: the rights of a person.

use super::{About, Methods, error};
use crate::records::profile::Whose;
use crate::subjects::erase::{self, Erase};
use crate::subjects::status::{self, Which};

macro_rules! signed {
    () => {
        r#""body":{"format":"sidekeep-erasure-1","deployment":"sidekeep","id":"019aa2e0-5a50-7c31-8f0e-0d5b1c1f7a11","erased_at":"2026-11-20T19:55:00.000000Z","reason":"request","commitment":"198a607eb44bfbc69903a0f1cf2bbdc5ba0aa3f3d9ae3c1c7a3b1696a0b68cf7","counts":{"profile":1,"preferences":1,"consents":3,"conversations":2,"messages":14},"kept":{"consents":0},"entry_id":"019aa2e0-5a51-7d02-a3c4-6f1d2b7e9c55","backups_gone_after":"2027-11-09","physical_copies_gone_after":"unknown","kek_ids":["0f3c9a5e7b12d468"]},"key":"AJlr7H0Qm1J9nZ8yZ0c3m3p6q1p7m0b1Zk9W3mT0xkQ=","signature":"5oNqJmTnJr3r9s2m0bq5m0m7o8Yl1zv4b6x7k8p9w0A1B2C3D4E5F6G7H8I9J0K1L2M3N4O5P6Q7R8S9T0U1Vg==""#
    };
}

pub(super) fn add(methods: &mut Methods) {
    methods.add(
        About {
            errors: ERASE,
            ..About::write(
                "subject.erase",
                "Erases a person (GDPR Art. 17), and answers a signed certificate. With id and salt a retry answers the same one.",
                (
                    r#"{"user_id":"user:alice","reason":"request","id":"019aa2e0-5a50-7c31-8f0e-0d5b1c1f7a11","salt":"CwsLCwsLCwsLCwsLCwsLCwsLCwsLCwsLCwsLCwsLCws="}"#,
                    concat!("{", signed!(), r#","salt":"CwsLCwsLCwsLCwsLCwsLCwsLCwsLCwsLCwsLCwsLCws="}"#),
                ),
            )
        },
        |call, asked: Erase| async move {
            erase::erase(&call.app.records, &call.app.config, &call.by, &asked).await
        },
    );
    methods.add(
        About::read(
            "subject.certificate",
            "The certificate of an erasure, without its salt, which only the caller has.",
            (r#"{"id":"019aa2e0-5a50-7c31-8f0e-0d5b1c1f7a11"}"#, concat!("{", signed!(), "}")),
        ),
        |call, which: Which| async move { status::certificate(&call.app.records, &call.by, &which).await },
    );
    methods.add(
        About::read(
            "subject.status",
            "What is held about a person, in numbers.",
            (
                r#"{"user_id":"user:alice"}"#,
                r#"{"restricted":false,"holds":[],"counts":{"profile":1,"preferences":1,"consents":3,"conversations":2,"messages":14,"audit_entries":41}}"#,
            ),
        ),
        |call, whose: Whose| async move { status::status(&call.app.records, &call.by, &whose.user_id).await },
    );
}

const ERASE: &[error::Kind] = &[
    error::NOT_FOUND,
    error::CONFLICT,
    error::FORBIDDEN,
    error::HELD,
    error::OVERLOADED,
    error::UNAVAILABLE,
    error::TAMPERED,
    error::UNKNOWN_OUTCOME,
];
