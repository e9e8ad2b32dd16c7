//! One connection of JSON values: messages in, lines out, calls in flight, and a bound on each.
//!
//! Owns the stream and the order of things on it; never what a call does. One task serves one connection; an idle one holds no buffer.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use jsonrpsee::types::ErrorObjectOwned;
use tokio::io::{AsyncRead, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::budget::Room;
use super::context::{Context, Dispatch};
use super::execution::{Answer, Started, start};
use super::frames::{Frame, Frames, Rest};
use super::http;
use super::outbox::Outbox;
use super::peer::Peer;
use super::refusal::{self, NO_ID};
use scratch::Scratch;
use stall::{Stall, Timer};

mod scratch;
mod stall;

/// How much a connection may hold before it counts against `limits.buffered_bytes`.
pub(super) const UNCOUNTED: usize = 64 * 1024;
/// With so many answers unwritten nothing more is read.
const UNWRITTEN: usize = 1024 * 1024;
/// After so many bytes the other connections have their turn.
const TURN: usize = 64 * 1024;
/// How long a client may take to see the last answer and end its side, before the connection is closed under what it still sends.
const LINGER: Duration = Duration::from_secs(1);

/// Serves a connection to its end, in whichever framing it begins.
pub(super) async fn serve<D: Dispatch>(stream: UnixStream, context: Arc<Context<D>>) {
    // A peer that the kernel does not name is nobody: it gets no answer.
    let Ok(peer) = Peer::of(&stream) else { return };
    let peer = Arc::new(peer);
    match first_byte(&stream, &context).await {
        Ok(Some(b'A'..=b'Z')) => Box::pin(http::serve(stream, context, peer, http::Scope::Everything)).await,
        Ok(Some(_)) => {
            let mut connection = Connection::new(stream, context, peer);
            std::future::poll_fn(|cx| connection.poll(cx)).await;
            connection.close().await;
        }
        Ok(None) | Err(_) => {}
    }
}

/// Looks at the first byte and leaves it where it is; none if none comes.
async fn first_byte<D>(stream: &UnixStream, context: &Context<D>) -> io::Result<Option<u8>> {
    use nix::sys::socket::{MsgFlags, recv};
    use std::os::fd::AsRawFd;
    loop {
        tokio::select! {
            ready = stream.readable() => ready?,
            () = context.drain.cancelled() => return Ok(None),
        }
        let mut byte = [0];
        let peeked = stream.try_io(Interest::READABLE, || {
            recv(stream.as_raw_fd(), &mut byte, MsgFlags::MSG_PEEK).map_err(io::Error::from)
        });
        match peeked {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
            Ok(count) => return Ok(byte.first().copied().filter(|_| count > 0)),
        }
    }
}

/// What still happens on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It is read.
    Open,
    /// The input has ended; what came before is run.
    InputEnded,
    /// The daemon drains: complete messages that are here are run.
    Draining,
    /// What is in flight is answered, and nothing else.
    Closing,
}

struct Connection<D> {
    stream: UnixStream,
    context: Arc<Context<D>>,
    peer: Arc<Peer>,
    phase: Phase,
    frames: Frames,
    /// What was read and is not begun: a part of a message, and whatever came while nothing could begin.
    input: BytesMut,
    /// Messages are waiting in `input` for calls to end or answers to be written.
    held_up: bool,
    output: Outbox,
    /// Calls that have begun and whose answers are not written.
    in_flight: usize,
    /// Those of them whose answers are in `output`.
    answered: usize,
    /// Where calls that were spawned put their answers; made for the first of them.
    finished: Option<(mpsc::UnboundedSender<Answer>, mpsc::UnboundedReceiver<Answer>)>,
    room: Room,
    /// Waits for room, while there is none.
    starved: Option<Pin<Box<dyn Future<Output = Room> + Send>>>,
    timer: Timer,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    aborted: bool,
    /// The client may still be sending, and is to see the last answer before it sees a broken pipe.
    linger: bool,
}

impl<D: Dispatch> Connection<D> {
    fn new(stream: UnixStream, context: Arc<Context<D>>, peer: Arc<Peer>) -> Self {
        Self {
            stream,
            peer,
            phase: Phase::Open,
            frames: Frames::new(context.bounds.message),
            input: BytesMut::new(),
            held_up: false,
            output: Outbox::default(),
            in_flight: 0,
            answered: 0,
            finished: None,
            room: context.budget.room(),
            starved: None,
            timer: Timer::default(),
            stop: Box::pin(context.drain.clone().cancelled_owned()),
            aborted: false,
            linger: false,
            context,
        }
    }

    /// Does all that can be done now; ready when the connection is to be closed.
    fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<()> {
        let mut read = 0;
        loop {
            self.poll_stop(cx);
            // What begins is looked at before what ends, so that nothing can end unseen.
            self.advance();
            self.poll_finished(cx);
            if self.aborted || self.poll_output(cx).is_err() {
                return Poll::Ready(());
            }
            self.settle(cx);
            if self.held_up && self.may_begin() {
                continue;
            }
            if self.phase == Phase::Closing && self.in_flight == 0 && self.output.is_empty() {
                return Poll::Ready(());
            }
            if read >= TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match self.poll_input(cx) {
                Poll::Ready(count) => read += count,
                Poll::Pending => break,
            }
        }
        if self.poll_timer(cx).is_ready() {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// The daemon drains, then aborts.
    fn poll_stop(&mut self, cx: &mut TaskContext<'_>) {
        while !self.aborted && self.stop.as_mut().poll(cx).is_ready() {
            if self.context.abort.is_cancelled() {
                self.aborted = true;
                return;
            }
            self.stop = Box::pin(self.context.abort.clone().cancelled_owned());
            if self.phase == Phase::Open {
                self.phase = Phase::Draining;
            }
        }
    }

    /// Takes the answers of calls that have ended.
    fn poll_finished(&mut self, cx: &mut TaskContext<'_>) {
        if self.in_flight == self.answered {
            return;
        }
        let Some((_, receiver)) = &mut self.finished else { return };
        while let Poll::Ready(Some(answer)) = receiver.poll_recv(cx) {
            match answer {
                Some(line) => {
                    self.output.push(line);
                    self.answered += 1;
                }
                None => self.in_flight -= 1,
            }
        }
    }

    fn poll_output(&mut self, cx: &mut TaskContext<'_>) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.output.poll_write(cx, &mut self.stream) {
                Poll::Ready(written) => {
                    written?;
                    self.timer.progressed(Stall::Write);
                }
                Poll::Pending => return Ok(()),
            }
        }
        self.in_flight -= self.answered;
        self.answered = 0;
        Ok(())
    }

    /// Keeps the share of the budget at what is held. Without room nothing is read until there is some.
    fn settle(&mut self, cx: &mut TaskContext<'_>) {
        loop {
            let needed = (self.input.len() + self.output.len()).saturating_sub(UNCOUNTED);
            if self.room.resize(needed) {
                self.starved = None;
                return;
            }
            let waiting = self.starved.get_or_insert_with(|| Box::pin(self.room.grown(needed)));
            let Poll::Ready(room) = waiting.as_mut().poll(cx) else { return };
            self.room.merge(room);
            self.starved = None;
        }
    }

    fn may_begin(&self) -> bool {
        self.phase != Phase::Closing
            && self.in_flight < self.context.bounds.in_flight
            && self.output.len() <= UNWRITTEN
    }

    fn wants_input(&self) -> bool {
        self.phase == Phase::Open && self.may_begin() && !self.held_up && self.starved.is_none()
    }

    /// Reads once; ready with how many bytes.
    fn poll_input(&mut self, cx: &mut TaskContext<'_>) -> Poll<usize> {
        if !self.wants_input() {
            return Poll::Pending;
        }
        let mut scratch = Scratch::take();
        let mut buffer = ReadBuf::new(scratch.bytes());
        let outcome = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
        let bytes = buffer.filled();
        match outcome {
            Ok(()) if !bytes.is_empty() => {
                self.timer.progressed(Stall::Read);
                // What is complete is begun from where it was read, and only the rest is kept.
                let used = if self.input.is_empty() { self.begin_messages(bytes) } else { 0 };
                if self.phase != Phase::Closing {
                    self.input.extend_from_slice(bytes.get(used..).unwrap_or_default());
                }
            }
            _ => self.phase = Phase::InputEnded,
        }
        Poll::Ready(buffer.filled().len())
    }

    /// Begins the messages that are kept, as far as the bounds allow, and sees to the end of the input.
    fn advance(&mut self) {
        if !self.input.is_empty() {
            let mut input = std::mem::take(&mut self.input);
            let used = self.begin_messages(&input);
            if used < input.len() && self.phase != Phase::Closing {
                input.advance(used);
                self.input = input;
            }
        }
        if self.held_up || !matches!(self.phase, Phase::InputEnded | Phase::Draining) {
            return;
        }
        let rest = std::mem::take(&mut self.input);
        match self.frames.end() {
            Rest::Message if self.may_begin() => self.begin(&rest),
            Rest::Message => {
                (self.input, self.held_up) = (rest, true);
                return;
            }
            Rest::Unfinished if self.phase == Phase::InputEnded => {
                self.refuse(&refusal::parse_error("the input ends inside a message"));
            }
            Rest::Unfinished | Rest::Nothing => {}
        }
        self.phase = Phase::Closing;
    }

    /// Begins what is complete in these bytes; says how many are done with.
    fn begin_messages(&mut self, bytes: &[u8]) -> usize {
        let mut used = 0;
        self.held_up = false;
        while let Some(rest) = bytes.get(used..).filter(|rest| !rest.is_empty()) {
            if !self.may_begin() {
                self.held_up = self.phase != Phase::Closing;
                break;
            }
            match self.frames.next(rest) {
                Frame::Message(range) => {
                    used += range.end;
                    self.begin(rest.get(range).unwrap_or_default());
                }
                Frame::More { used: more } => return used + more,
                Frame::Broken { used: more, offset, fault, resumable } => {
                    used += more;
                    self.refuse(&refusal::parse_error(format_args!("{fault} at byte {offset}")));
                    if !resumable {
                        self.hang_up();
                    }
                }
                Frame::TooLong => {
                    self.refuse(&refusal::too_large("the message", self.context.bounds.message));
                    self.hang_up();
                }
            }
        }
        used
    }

    fn begin(&mut self, message: &[u8]) {
        match start(&self.context.calls, &self.peer, message, &self.context.bounds) {
            Started::Answered(None) => {}
            Started::Answered(Some(line)) => self.answer(line),
            Started::Running(call) => {
                let (sender, _) = self.finished.get_or_insert_with(mpsc::unbounded_channel);
                let sender = sender.clone();
                self.in_flight += 1;
                self.context.tracker.spawn(async move {
                    // Nobody listens any more when the client has gone away, and the call has gone on.
                    let _ = sender.send(call.await);
                });
            }
        }
    }

    fn answer(&mut self, line: String) {
        self.output.push(line);
        self.in_flight += 1;
        self.answered += 1;
    }

    fn refuse(&mut self, error: &ErrorObjectOwned) {
        self.answer(refusal::line(NO_ID, error));
    }

    /// Nothing can be read any more, though the client may be sending.
    fn hang_up(&mut self) {
        self.phase = Phase::Closing;
        self.linger = true;
        self.held_up = false;
        self.input = BytesMut::new();
    }

    /// Ends what stands still; ready when the connection is to be closed at once.
    fn poll_timer(&mut self, cx: &mut TaskContext<'_>) -> Poll<()> {
        loop {
            let bounds = self.context.bounds;
            // Memory that others wait for is not left to who does not read.
            let unread =
                if self.starved.is_some() { LINGER.min(bounds.write_timeout) } else { bounds.write_timeout };
            let unfinished = self.wants_input() && self.frames.is_unfinished();
            let starving = self.starved.is_some() && self.phase == Phase::Open;
            self.timer.watch(Stall::Write, (!self.output.is_empty()).then_some(unread));
            self.timer.watch(Stall::Read, unfinished.then_some(bounds.read_timeout));
            self.timer.watch(Stall::Room, starving.then_some(bounds.room_wait()));
            match ready!(self.timer.poll(cx)) {
                Stall::Write => return Poll::Ready(()),
                Stall::Read => {
                    let limit = humantime::format_duration(bounds.read_timeout);
                    self.refuse(&refusal::parse_error(format_args!("message not finished within {limit}")));
                }
                Stall::Room => {
                    self.refuse(&refusal::overloaded("no memory for messages", Duration::from_secs(1)));
                }
            }
            self.hang_up();
            if self.poll_output(cx).is_err() || (self.in_flight == 0 && self.output.is_empty()) {
                return Poll::Ready(());
            }
        }
    }

    /// A client that is still sending gets time to see what was answered: closing over unread bytes would break its pipe before.
    async fn close(mut self) {
        drop((self.input, self.output, self.room));
        if !self.linger || self.aborted || self.stream.shutdown().await.is_err() {
            return;
        }
        let mut discard = pin!(std::future::poll_fn(|cx| discard(&mut self.stream, cx)));
        let deadline = Instant::now() + LINGER;
        tokio::select! {
            () = &mut discard => {}
            () = self.context.abort.cancelled() => {}
            () = tokio::time::sleep_until(deadline) => {}
        }
    }
}

fn discard(stream: &mut UnixStream, cx: &mut TaskContext<'_>) -> Poll<()> {
    let mut scratch = Scratch::take();
    loop {
        let mut buffer = ReadBuf::new(scratch.bytes());
        if ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer)).is_err() || buffer.filled().is_empty() {
            return Poll::Ready(());
        }
    }
}
