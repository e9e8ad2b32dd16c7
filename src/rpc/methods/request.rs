//! `request.*`: the register of what people have asked for.

use super::subject_holds::{LOOK, RIGHT};
use super::{About, Methods};
use crate::subjects::request::{self, Close, Extend, List, Open};

macro_rules! request {
    ($more:literal) => {
        concat!(
            r#"{"id":"request-1","user_id":"user:alice","kind":"access","channel":"email","#,
            r#""received_at":"2026-01-31T09:30:00.000000Z","overdue":false,"results":[],"#,
            $more,
            "}"
        )
    };
}

const OPENED: &str = request!(
    r#""state":"open","due_at":"2026-02-28T09:30:00.000000Z","extended_at":null,"extension_reason":null,"closed_at":null,"outcome":null,"reason":null"#
);
const EXTENDED: &str = request!(
    r#""state":"open","due_at":"2026-04-30T09:30:00.000000Z","extended_at":"2026-02-20T10:00:00.000000Z","extension_reason":"many records","closed_at":null,"outcome":null,"reason":null"#
);
const CLOSED: &str = request!(
    r#""state":"closed","due_at":"2026-04-30T09:30:00.000000Z","extended_at":"2026-02-20T10:00:00.000000Z","extension_reason":"many records","closed_at":"2026-03-20T10:00:00.000000Z","outcome":"done","reason":"answered by letter""#
);

pub(super) fn add(methods: &mut Methods) {
    methods.add(
        About { errors: RIGHT, ..About::write(
            "request.open",
            "Enters what a person asks for. It is due one calendar month after it was received (UTC); where that month has no such day, on its last.",
            (
                r#"{"user_id":"user:alice","kind":"access","channel":"email","id":"request-1"}"#,
                OPENED,
            ),) },
        |call, given: Open| async move {
            let opened = request::open(&call.app.records, &call.by, &given).await;
            call.app.pressing.changed();
            opened
        },
    );
    methods.add(
        About { errors: LOOK, ..About::read(
            "request.list",
            "A page of the register, the request received last first. After an erasure a request says what was done, and not for whom.",
            (
                r#"{"state":"open"}"#,
                concat!(
                    r#"{"items":["#,
                    request!(
                        r#""state":"open","due_at":"2026-02-28T09:30:00.000000Z","extended_at":null,"extension_reason":null,"closed_at":null,"outcome":null,"reason":null"#
                    ),
                    r#"],"next_cursor":null}"#
                ),
            ),) },
        |call, list: List| async move {
            let max = call.app.config.limits.max_answer_bytes.bytes();
            request::list(&call.app.records, &call.by, &list, max).await
        },
    );
    methods.add(
        About { errors: RIGHT, ..About::write(
            "request.extend",
            "Extends the time by two further months, to three after receipt; only within the first month, and once.",
            (r#"{"id":"request-1","reason":"many records"}"#, EXTENDED),) },
        |call, given: Extend| async move {
            let extended = request::extend(&call.app.records, &call.by, &given).await;
            call.app.pressing.changed();
            extended
        },
    );
    methods.add(
        About {
            errors: RIGHT,
            ..About::write(
                "request.close",
                "Closes a request with its outcome, a code of your own.",
                (r#"{"id":"request-1","outcome":"done","reason":"answered by letter"}"#, CLOSED),
            )
        },
        |call, given: Close| async move {
            let closed = request::close(&call.app.records, &call.by, &given).await;
            call.app.pressing.changed();
            closed
        },
    );
}
