//! `backup.*`.

use super::{About, Methods, error};
use crate::backup::place;
use crate::backup::shelf::{List, Shelf};
use crate::error::Error;
use crate::values::Page;

pub(super) fn add(methods: &mut Methods) {
    methods.add(
        About {
            errors: &[error::FORBIDDEN, error::OVERLOADED, error::UNAVAILABLE],
            // The destination alone says what there is, also where the database is gone.
            stored: false,
            ..About::log(
                "backup.list",
                "A page of the dumps at backup.destination, the newest first. Without a destination there are none.",
                (
                    r#"{"limit":1}"#,
                    r#"{"items":[{"name":"20261120T020000.004117Z-5f3a9c01","created_at":"2026-11-20T02:00:00.004117Z","size":73400320,"sha256":"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08","proved_at":null,"objects":["dumps/20261120T020000.004117Z-5f3a9c01/dump","dumps/20261120T020000.004117Z-5f3a9c01/manifest.json"]}],"next_cursor":null}"#,
                ),
            )
        },
        |call, asked: List| async move {
            // A directory that is not mounted looks as if there were none.
            place::may_stand(call.app.records.store(), &call.app.config, &call.by.deadline).await?;
            let Some(shelf) = Shelf::open(&call.app.config, call.app.records.log().public_keys())? else {
                return Ok(Page::empty());
            };
            let listed = call.by.deadline.run(shelf.list(&asked)).await;
            listed.map_err(|_| Error::unavailable("backup.destination did not answer in time"))?
        },
    );
}
