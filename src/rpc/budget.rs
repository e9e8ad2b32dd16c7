//! The bytes of requests and answers that may be in memory at once, over all connections (`limits.buffered_bytes`).
//!
//! Counts bytes; holds none.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// What all connections share.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Semaphore>);

impl Budget {
    /// Of so many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))))
    }

    /// Whether there is any room that nobody waits for.
    pub(super) fn has_any(&self) -> bool {
        self.0.available_permits() > 0
    }

    /// Waits until there is any room, behind those who wait for some already.
    pub(super) async fn any(&self) {
        // It is never closed, and the permit is given back at once.
        let _ = self.0.acquire().await;
    }

    /// A share of nothing yet.
    pub(super) fn room(&self) -> Room {
        Room { budget: self.clone(), held: 0 }
    }
}

/// A share of the budget, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Room {
    budget: Budget,
    held: usize,
}

impl Room {
    /// Makes the share so large, or says that there is no room now; then it stays as it is.
    pub(super) fn resize(&mut self, bytes: usize) -> bool {
        if bytes <= self.held {
            self.budget.0.add_permits(self.held - bytes);
        } else {
            let Ok(more) = u32::try_from(bytes - self.held) else { return false };
            match self.budget.0.try_acquire_many(more) {
                Ok(permit) => permit.forget(),
                Err(_) => return false,
            }
        }
        self.held = bytes;
        true
    }

    /// Waits until the share can be so large, in turn with the others who wait.
    pub(super) fn grown(&self, bytes: usize) -> impl Future<Output = Room> + Send + 'static {
        let (budget, held) = (self.budget.clone(), self.held);
        async move {
            let mut room = budget.room();
            let more = u32::try_from(bytes.saturating_sub(held)).unwrap_or(u32::MAX);
            if let Ok(permit) = budget.0.acquire_many(more).await {
                permit.forget();
                room.held = bytes.saturating_sub(held);
            }
            room
        }
    }

    /// Takes over another share of the same budget.
    pub(super) fn merge(&mut self, mut other: Room) {
        self.held += std::mem::take(&mut other.held);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.budget.0.add_permits(self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::Budget;

    #[test]
    fn shares_never_exceed_the_budget_and_come_back() {
        let budget = Budget::new(10);
        let (mut one, mut other) = (budget.room(), budget.room());
        assert!(one.resize(7));
        assert!(!other.resize(4));
        assert!(other.resize(3));
        assert!(one.resize(2));
        assert!(other.resize(8));
        drop(one);
        assert!(other.resize(10));
    }

    #[tokio::test]
    async fn whoever_asks_for_any_room_waits_behind_those_who_starve() {
        let budget = Budget::new(10);
        let mut one = budget.room();
        assert!(one.resize(10));
        let mut starving = Box::pin(one.grown(15));
        assert!(futures_util::poll!(&mut starving).is_pending());
        let mut any = Box::pin(budget.any());
        assert!(futures_util::poll!(&mut any).is_pending());
        assert!(one.resize(6));
        assert!(futures_util::poll!(&mut any).is_pending(), "four bytes are free, and five are waited for");
        drop(starving);
        any.await;
        assert!(budget.room().resize(4), "nothing is kept");
    }

    #[tokio::test]
    async fn whoever_waits_gets_what_is_given_back() {
        let budget = Budget::new(10);
        let (mut one, mut other) = (budget.room(), budget.room());
        assert!(one.resize(10));
        let waiting = other.grown(6);
        drop(one);
        other.merge(waiting.await);
        assert!(!budget.room().resize(5));
        assert!(budget.room().resize(4));
    }
}
