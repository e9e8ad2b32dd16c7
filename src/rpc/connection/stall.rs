//! How long things on a connection may stand still. Costs nothing while nothing does.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// What can stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stall {
    /// A message that has begun.
    Read,
    /// Answers that are not read.
    Write,
    /// The wait for memory.
    Room,
    /// Nothing: it is time to see whether others wait for the memory that is held here.
    Look,
}

/// Since when each stands still, and how long it may.
#[derive(Debug, Default)]
pub(super) struct Timer {
    read: Option<Watch>,
    write: Option<Watch>,
    room: Option<Watch>,
    look: Option<Watch>,
    sleep: Option<Pin<Box<Sleep>>>,
}

#[derive(Clone, Copy, Debug)]
struct Watch {
    since: Instant,
    limit: Duration,
}

impl Timer {
    /// Whether it is watched, and how long it may stand still. What is watched already goes on from when it last moved.
    pub(super) fn watch(&mut self, stall: Stall, limit: Option<Duration>) {
        let slot = self.slot(stall);
        *slot =
            limit.map(|limit| Watch { since: slot.map_or_else(Instant::now, |watch| watch.since), limit });
    }

    /// It has moved.
    pub(super) fn progressed(&mut self, stall: Stall) {
        *self.slot(stall) = None;
    }

    /// Ready with what has stood still for too long.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Stall> {
        let watches = [
            (self.read, Stall::Read),
            (self.write, Stall::Write),
            (self.room, Stall::Room),
            (self.look, Stall::Look),
        ];
        let due = watches.into_iter().filter_map(|(watch, stall)| Some((watch?.due(), stall)));
        let Some((due, stall)) = due.min_by_key(|(due, _)| *due) else {
            self.sleep = None;
            return Poll::Pending;
        };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if sleep.deadline() != due {
            sleep.as_mut().reset(due);
        }
        ready!(sleep.as_mut().poll(cx));
        *self.slot(stall) = None;
        Poll::Ready(stall)
    }

    fn slot(&mut self, stall: Stall) -> &mut Option<Watch> {
        match stall {
            Stall::Read => &mut self.read,
            Stall::Write => &mut self.write,
            Stall::Room => &mut self.room,
            Stall::Look => &mut self.look,
        }
    }
}

impl Watch {
    fn due(self) -> Instant {
        // A limit beyond what the clock can say is none.
        self.since.checked_add(self.limit).unwrap_or_else(|| self.since + Duration::from_secs(86_400 * 365))
    }
}
