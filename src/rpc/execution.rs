//! Runs what a message asks, whichever framing brought it: calls, notifications and batches.
//!
//! Each future is looked at once where it was made, so that what needs no waiting needs no task either, and calls begin in the order sent.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as TaskContext, Poll, Waker};

use futures_util::future::Either;
use futures_util::{FutureExt, StreamExt, stream};

use super::context::{Bounds, Dispatch};
use super::message::{Entry, Message};
use super::peer::Peer;
use super::refusal;

/// How many entries of a batch run at once.
const BATCH_AT_ONCE: usize = 16;

/// One line without its newline; nothing for notifications.
pub(super) type Answer = Option<String>;

/// A message that has begun and not ended. It is run to its end, whatever becomes of the connection.
pub(super) type Running = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// What became of a message.
pub(super) enum Started {
    /// It has ended already.
    Answered(Answer),
    /// It goes on, and has to be run to its end.
    Running(Running),
}

/// Begins what the bytes of one message ask.
pub(super) fn start<D: Dispatch>(calls: &Arc<D>, peer: &Arc<Peer>, bytes: &[u8], bounds: &Bounds) -> Started {
    match Message::parse(bytes, bounds.batch) {
        Message::Single(Entry::Refused(line)) => Started::Answered(Some(line)),
        Message::Single(Entry::Call(request, reply)) => {
            let call = calls.dispatch(peer, *request);
            // Mapped and not awaited: an async block would hold the call twice, once before it is polled and once while it is.
            poll_once(call.map(move |outcome| reply.line(outcome)))
        }
        Message::Batch(entries) => poll_once(batch(calls.clone(), peer.clone(), entries, bounds.answer)),
    }
}

fn poll_once(future: impl Future<Output = Answer> + Send + 'static) -> Started {
    let mut future = Box::pin(future);
    // Whoever runs it on polls it anew, so nothing has to be woken before.
    match future.as_mut().poll(&mut TaskContext::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Started::Answered(answer),
        Poll::Pending => Started::Running(future),
    }
}

/// One array with the answers in the order of the entries. Once it is over `max`, further requests are refused and not run.
async fn batch<D: Dispatch>(calls: Arc<D>, peer: Arc<Peer>, entries: Vec<Entry>, max: usize) -> Answer {
    let full = Arc::new(AtomicBool::new(false));
    let mut answers = stream::iter(entries)
        .map(|entry| match entry {
            Entry::Refused(line) => Either::Left(std::future::ready(Some(line))),
            entry if full.load(Ordering::Relaxed) && entry.id().is_some() => {
                let error = refusal::too_large("the answer to the batch", max);
                let line = entry.id().map(|id| refusal::line(id, &error));
                Either::Left(std::future::ready(line))
            }
            Entry::Call(request, reply) => {
                let call = calls.dispatch(&peer, *request);
                Either::Right(async move { reply.line(call.await) })
            }
        })
        .buffered(BATCH_AT_ONCE);
    let mut array = String::new();
    while let Some(answer) = answers.next().await {
        let Some(line) = answer else { continue };
        array.push(if array.is_empty() { '[' } else { ',' });
        array.push_str(&line);
        if array.len() > max {
            full.store(true, Ordering::Relaxed);
        }
    }
    (!array.is_empty()).then(|| array + "]")
}
