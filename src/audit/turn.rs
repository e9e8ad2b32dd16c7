//! The order of a connection's entries: one is asked for only after those sent before it are, or have ended without.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::sync::{Mutex, OwnedMutexGuard};

/// The line of one connection.
#[derive(Clone, Debug, Default)]
pub struct Turns(Arc<Mutex<()>>);

/// A place in the line. Whoever is behind it waits until it is dropped, or what [`Turn::come`] answers.
pub struct Turn(Place);

enum Place {
    Come(OwnedMutexGuard<()>),
    Waiting(Pin<Box<dyn Future<Output = OwnedMutexGuard<()>> + Send>>),
}

impl Turns {
    /// Takes the next place.
    pub fn take(&self) -> Turn {
        if let Ok(come) = self.0.clone().try_lock_owned() {
            return Turn(Place::Come(come));
        }
        let mut waiting = Box::pin(self.0.clone().lock_owned());
        // Looked at once, it is in line; whoever waits for it looks again.
        match waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(come) => Turn(Place::Come(come)),
            Poll::Pending => Turn(Place::Waiting(waiting)),
        }
    }
}

impl Turn {
    /// Whether nobody is known to be before it.
    pub fn has_come(&self) -> bool {
        matches!(self.0, Place::Come(_))
    }

    /// Waits until nobody is before it.
    pub async fn come(self) -> OwnedMutexGuard<()> {
        match self.0 {
            Place::Come(come) => come,
            Place::Waiting(waiting) => waiting.await,
        }
    }
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turn").field("come", &self.has_come()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::Turns;

    #[tokio::test]
    async fn turns_come_in_the_order_in_which_they_were_taken() {
        let turns = Turns::default();
        let (first, second, third, fourth) = (turns.take(), turns.take(), turns.take(), turns.take());
        let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let tell = |turn: super::Turn, name: &'static str| {
            let said = said.clone();
            async move {
                let _come = turn.come().await;
                let _ = said.send(name);
            }
        };
        // Whoever ends without asking does not let the next one pass those before.
        drop(second);
        tokio::join!(tell(fourth, "fourth"), tell(third, "third"), tell(first, "first"));
        for name in ["first", "third", "fourth"] {
            assert_eq!(heard.recv().await, Some(name));
        }
    }
}
