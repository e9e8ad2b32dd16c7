//! `subject.hold`, `.release`, `.holds`, `.restrict`, `.unrestrict`, `.find`.

use super::{About, Methods, error};
use crate::records::find::Find;
use crate::subjects::hold::{self, List, Place, Release};
use crate::subjects::restrict::{self, Restrict};

macro_rules! hold {
    ($released:literal) => {
        concat!(
            r#"{"id":"hold-1","user_id":"user:alice","reason":"litigation 7","placed_at":"2026-11-20T19:55:00.000000Z","#,
            $released,
            "}"
        )
    };
}

const STANDS: &str = hold!(r#""released_at":null,"release_reason":null"#);
const RELEASED: &str =
    hold!(r#""released_at":"2026-11-21T08:00:00.000000Z","release_reason":"litigation ended""#);

pub(super) fn add(methods: &mut Methods) {
    add_holds(methods);
    methods.add(
        About {
            errors: RIGHT,
            ..About::write(
                "subject.restrict",
                "Restricts the processing of a person's data (GDPR Art. 18): they are stored, and records of the person are not read or written.",
                (r#"{"user_id":"user:alice","reason":"accuracy is contested"}"#, r#"{"restricted":true}"#),
            )
        },
        |call, given: Restrict| async move {
            restrict::restrict(&call.app.records, &call.by, &given).await
        },
    );
    methods.add(
        About {
            errors: RIGHT,
            ..About::write(
                "subject.unrestrict",
                "Ends the restriction of a person's data.",
                (r#"{"user_id":"user:alice","reason":"accuracy was verified"}"#, r#"{"restricted":false}"#),
            )
        },
        |call, given: Restrict| async move {
            restrict::unrestrict(&call.app.records, &call.by, &given).await
        },
    );
    methods.add(
        About {
            errors: LOOK,
            ..About::read(
                "subject.find",
                "Whose profile has this e-mail address, in upper or lower case, or exactly this name.",
                (r#"{"email":"Alice@mail.example"}"#, r#"{"items":["user:alice"]}"#),
            )
        },
        |call, find: Find| async move { call.app.records.find_people(&call.by, &find).await },
    );
}

fn add_holds(methods: &mut Methods) {
    methods.add(
        About {
            errors: RIGHT,
            ..About::write(
                "subject.hold",
                "Places a legal hold: while it stands the person is not erased, nothing of theirs is deleted, and no messages are replaced.",
                (r#"{"user_id":"user:alice","reason":"litigation 7","id":"hold-1"}"#, STANDS),
            )
        },
        |call, given: Place| async move { hold::hold(&call.app.records, &call.by, &given).await },
    );
    methods.add(
        About {
            errors: RIGHT,
            ..About::write(
                "subject.release",
                "Releases a legal hold. It is kept until the person is erased.",
                (r#"{"id":"hold-1","reason":"litigation ended"}"#, RELEASED),
            )
        },
        |call, given: Release| async move { hold::release(&call.app.records, &call.by, &given).await },
    );
    methods.add(
        About {
            errors: LOOK,
            ..About::read(
                "subject.holds",
                "A page of holds, standing and released, of one person or of all, the one placed last first.",
                (
                    r#"{"user_id":"user:alice"}"#,
                    concat!(
                        r#"{"items":["#,
                        hold!(r#""released_at":null,"release_reason":null"#),
                        r#"],"next_cursor":null}"#
                    ),
                ),
            )
        },
        |call, list: List| async move { hold::holds(&call.app.records, &call.by, &list).await },
    );
}

/// A restricted person's rights can be exercised.
pub(super) const RIGHT: &[error::Kind] = &[
    error::NOT_FOUND,
    error::CONFLICT,
    error::FORBIDDEN,
    error::TOO_LARGE,
    error::OVERLOADED,
    error::UNAVAILABLE,
    error::TAMPERED,
    error::UNKNOWN_OUTCOME,
];
/// What reading across people answers.
pub(super) const LOOK: &[error::Kind] =
    &[error::FORBIDDEN, error::TOO_LARGE, error::OVERLOADED, error::UNAVAILABLE, error::TAMPERED];
