//! The calls of a connection that have begun and not ended. They run on the connection's own task: a task for each would cost a short
//! call more than the call itself, and wake another thread for it.
//!
//! Polls only what was woken, and wakes the connection only when there is something to poll, unlike `FuturesUnordered`, which has
//! itself polled again whenever it has polled all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use crate::rpc::execution::{Answer, Running};

/// With more places than this, they are given up when they are all free.
const KEPT: usize = 4;
/// Calls that wake each other are polled so often before other connections have their turn. Bounded, as a call that has used up
/// tokio's budget for this turn wakes itself.
const ROUNDS: usize = 4;

/// The calls, each in a place of its own.
#[derive(Default)]
pub(super) struct Calls {
    places: Vec<Place>,
    free: Vec<usize>,
    /// Those that are polled just now.
    due: Vec<usize>,
    woken: Arc<Woken>,
}

struct Place {
    call: Option<Running>,
    flag: Arc<Flag>,
    waker: Waker,
}

/// The places to look at, and whom to tell of them.
#[derive(Default)]
struct Woken(Mutex<(Vec<usize>, Option<Waker>)>);

/// Wakes one place.
struct Flag {
    place: usize,
    up: AtomicBool,
    woken: Arc<Woken>,
}

impl Calls {
    /// Adds a call; it is polled next time.
    pub(super) fn push(&mut self, call: Running) {
        let index = self.free.pop().unwrap_or(self.places.len());
        if index == self.places.len() {
            let flag = Arc::new(Flag { place: index, up: AtomicBool::new(false), woken: self.woken.clone() });
            self.places.push(Place { call: None, waker: flag.clone().into(), flag });
        }
        if let Some(place) = self.places.get_mut(index) {
            place.call = Some(call);
            place.flag.raise();
        }
    }

    /// Polls the calls that were woken, and hands on the answers of those that end.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, mut ended: impl FnMut(Answer)) {
        for _ in 0..ROUNDS {
            {
                let (woken, waker) = &mut *self.woken.lock();
                if woken.is_empty() {
                    waker.get_or_insert_with(|| cx.waker().clone()).clone_from(cx.waker());
                    return;
                }
                std::mem::swap(woken, &mut self.due);
            }
            for index in self.due.drain(..) {
                let Some(place) = self.places.get_mut(index) else { continue };
                place.flag.up.store(false, Ordering::Release);
                let Some(call) = &mut place.call else { continue };
                if let Poll::Ready(answer) = call.as_mut().poll(&mut Context::from_waker(&place.waker)) {
                    place.call = None;
                    self.free.push(index);
                    ended(answer);
                }
            }
            if self.free.len() == self.places.len() && self.places.len() > KEPT {
                *self = Self::default();
            }
        }
        cx.waker().wake_by_ref();
    }

    /// The calls that have not ended.
    pub(super) fn into_rest(self) -> impl Iterator<Item = Running> {
        self.places.into_iter().filter_map(|place| place.call)
    }
}

impl Woken {
    fn lock(&self) -> MutexGuard<'_, (Vec<usize>, Option<Waker>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flag {
    /// Puts the place among those to look at, once; says whom to tell.
    fn raise(&self) -> Option<Waker> {
        if self.up.swap(true, Ordering::AcqRel) {
            return None;
        }
        let (woken, waker) = &mut *self.woken.lock();
        woken.push(self.place);
        waker.take()
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(waker) = self.raise() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use tokio::sync::oneshot;

    use super::Calls;
    use crate::rpc::execution::{Answer, Running};

    /// A call that ends when it is told.
    fn call() -> (oneshot::Sender<String>, Running) {
        let (sender, receiver) = oneshot::channel();
        (sender, Box::pin(async move { receiver.await.ok() }))
    }

    async fn next(calls: &mut Calls) -> Answer {
        let mut answers = Vec::new();
        poll_fn(|cx| {
            calls.poll(cx, |answer| answers.push(answer));
            if answers.is_empty() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
        assert_eq!(answers.len(), 1);
        answers.remove(0)
    }

    #[tokio::test]
    async fn each_call_ends_when_it_is_woken_whatever_the_order() {
        let mut calls = Calls::default();
        let (senders, running): (Vec<_>, Vec<_>) = (0..20).map(|_| call()).unzip();
        running.into_iter().for_each(|call| calls.push(call));
        poll_fn(|cx| {
            calls.poll(cx, |answer| panic!("{answer:?}"));
            Poll::Ready(())
        })
        .await;
        for (number, sender) in senders.into_iter().enumerate().rev() {
            let task = tokio_util::task::TaskTracker::new()
                .spawn(async move { sender.send(number.to_string()).unwrap() });
            assert_eq!(next(&mut calls).await, Some(number.to_string()));
            task.await.unwrap();
        }
        assert!(calls.places.is_empty(), "nothing is kept");
    }

    /// As one does that has used up its budget.
    #[tokio::test]
    async fn a_call_that_wakes_itself_holds_nobody_up() {
        let mut calls = Calls::default();
        calls.push(Box::pin(poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::Pending
        })));
        let (sender, running) = call();
        calls.push(running);
        sender.send("a".into()).unwrap();
        assert_eq!(next(&mut calls).await.as_deref(), Some("a"));
    }

    #[tokio::test]
    async fn places_are_used_again_and_the_rest_is_handed_on() {
        let mut calls = Calls::default();
        for _ in 0..3 {
            let (sender, running) = call();
            calls.push(running);
            sender.send("a".into()).unwrap();
            assert_eq!(next(&mut calls).await.as_deref(), Some("a"));
        }
        assert_eq!(calls.places.len(), 1);
        let (_sender, running) = call();
        calls.push(running);
        assert_eq!(calls.into_rest().count(), 1);
    }
}
