//! What the connections of one server share, and what they hand their requests to.

use std::sync::Arc;
use std::time::Duration;

use jsonrpsee::types::{ErrorObjectOwned, Request};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::budget::Budget;
use super::call::Calls;
use super::peer::Peer;
use crate::config::{Config, Size};

/// What runs the requests that a transport brings in. Daemons have [`Calls`]; the tests of the transport have methods that they can hold back.
pub trait Dispatch: Send + Sync + 'static {
    /// The limits and the drain time.
    fn config(&self) -> &Config;

    /// Runs one call to its end. The future never panics, and it is run to its end whatever becomes of the connection.
    fn dispatch(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        request: Request<'static>,
    ) -> impl Future<Output = Result<Box<RawValue>, ErrorObjectOwned>> + Send + 'static;

    /// Ends what is in flight now, each call with what is true of it.
    fn cut(&self);

    /// The room for what its connections hold.
    fn budget(&self) -> Budget {
        Budget::new(bytes(self.config().limits.buffered_bytes))
    }

    /// A client has connected.
    fn connected(&self) {}

    /// The connection of one has ended.
    fn disconnected(&self) {}
}

impl Dispatch for Calls {
    fn config(&self) -> &Config {
        &self.app().config
    }

    fn dispatch(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        request: Request<'static>,
    ) -> impl Future<Output = Result<Box<RawValue>, ErrorObjectOwned>> + Send + 'static {
        self.call(peer, request)
    }

    fn cut(&self) {
        Self::cut(self);
    }

    fn budget(&self) -> Budget {
        Self::budget(self).clone()
    }

    fn connected(&self) {
        Self::connected(self);
    }

    fn disconnected(&self) {
        Self::disconnected(self);
    }
}

/// What a connection needs besides its stream.
#[derive(Debug)]
pub(super) struct Context<D> {
    /// What runs its requests.
    pub(super) calls: Arc<D>,
    /// What they may grow to.
    pub(super) bounds: Bounds,
    /// The room for what they hold.
    pub(super) budget: Budget,
    /// Where calls are spawned, so that they outlive their connection and shutdown waits for them.
    pub(super) tracker: TaskTracker,
    /// Nothing more is read.
    pub(super) drain: CancellationToken,
    /// Connections end at once.
    pub(super) abort: CancellationToken,
}

/// The limits, as the transport counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Bytes of a message.
    pub(super) message: usize,
    /// Bytes of an answer.
    pub(super) answer: usize,
    /// Requests in a batch.
    pub(super) batch: usize,
    /// Calls in flight on a connection.
    pub(super) in_flight: usize,
    /// How long an unfinished message may stand still.
    pub(super) read_timeout: Duration,
    /// How long answers may stay unread.
    pub(super) write_timeout: Duration,
}

impl Bounds {
    /// How long an unfinished message waits for room: those who wait keep what they have, so waiting long would help nobody.
    pub(super) fn room_wait(&self) -> Duration {
        self.read_timeout / 12
    }
}

impl<D: Dispatch> Context<D> {
    /// For connections that end with these tokens.
    pub(super) fn new(calls: Arc<D>, drain: CancellationToken, abort: CancellationToken) -> Self {
        let config = calls.config();
        let bounds = Bounds {
            message: bytes(config.socket.max_message_bytes),
            answer: bytes(config.limits.max_answer_bytes),
            batch: config.limits.max_batch,
            in_flight: config.limits.calls_per_connection.max(1),
            read_timeout: config.limits.read_timeout.duration(),
            write_timeout: config.limits.write_timeout.duration(),
        };
        let budget = calls.budget();
        Self { calls, bounds, budget, tracker: TaskTracker::new(), drain, abort }
    }
}

/// A size of the configuration, as memory is counted.
pub(super) fn bytes(size: Size) -> usize {
    usize::try_from(size.bytes()).unwrap_or(usize::MAX)
}
