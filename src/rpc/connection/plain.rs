//! A connection of JSON values: messages in, lines out, calls in flight, and a bound on each.
//!
//! Owns the stream and the order of things on it. It does all that can be done whenever it is woken, and then waits for whatever may let it go on.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use jsonrpsee::types::ErrorObjectOwned;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::UnixStream;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::running::Calls;
use super::scratch::Scratch;
use super::stall::{Stall, Timer};
use super::{LINGER, UNCOUNTED, end_input};
use crate::rpc::budget::Room;
use crate::rpc::context::{Context, Dispatch};
use crate::rpc::execution::{Started, start};
use crate::rpc::frames::{Frame, Frames, Rest};
use crate::rpc::outbox::Outbox;
use crate::rpc::peer::Peer;
use crate::rpc::refusal::{self, NO_ID};

/// With so many answers unwritten nothing more is read.
const UNWRITTEN: usize = 1024 * 1024;
/// After so many bytes the other connections have their turn.
const TURN: usize = 64 * 1024;

/// How a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// All that can be said has been.
    Done,
    /// The same, and the client may still be sending what is not read any more.
    OverUnread,
}

/// What still happens on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It is read.
    Open,
    /// The input has ended; what came before is run.
    InputEnded,
    /// The same, but it was the daemon that ended it, as it drains: a message that is not complete is let be.
    Draining,
    /// What is in flight is answered, and nothing else.
    Closing,
}

/// The connection. An idle one holds no buffer.
pub(super) struct Connection<D> {
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
    /// Calls that have begun and not ended.
    running: Calls,
    room: Room,
    /// Waits for room, while there is none.
    starved: Option<Pin<Box<dyn Future<Output = Room> + Send>>>,
    timer: Timer,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    draining: bool,
    aborted: bool,
    /// The client may still be sending, and is to see the last answer before it sees a broken pipe.
    linger: bool,
}

impl<D: Dispatch> Connection<D> {
    /// At its beginning: nothing was read.
    pub(super) fn new(stream: UnixStream, context: Arc<Context<D>>, peer: Arc<Peer>) -> Self {
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
            running: Calls::default(),
            room: context.budget.room(),
            starved: None,
            timer: Timer::default(),
            stop: Box::pin(context.drain.clone().cancelled_owned()),
            draining: false,
            aborted: false,
            linger: false,
            context,
        }
    }

    /// Does all that can be done now; ready when the connection is to be closed.
    pub(super) fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<Ended> {
        let mut read = 0;
        loop {
            self.poll_stop(cx);
            // What begins is looked at before what ends, so that nothing can end unseen.
            self.advance();
            self.poll_finished(cx);
            if self.aborted || self.poll_output(cx).is_err() {
                return Poll::Ready(Ended::Done);
            }
            self.settle(cx);
            if self.held_up && self.may_begin() {
                continue;
            }
            if self.phase == Phase::Closing && self.in_flight == 0 && self.output.is_empty() {
                return Poll::Ready(if self.linger { Ended::OverUnread } else { Ended::Done });
            }
            if read >= TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Poll::Ready(count) = self.poll_input(cx) {
                read += count;
                continue;
            }
            match ready!(self.poll_timer(cx)) {
                Stall::Write => return Poll::Ready(Ended::Done),
                Stall::Look => {}
                stall => self.give_up(stall),
            }
        }
    }

    /// The stream alone. Calls that are still running go on by themselves.
    pub(super) fn into_stream(self) -> UnixStream {
        for call in self.running.into_rest() {
            self.context.tracker.spawn(call);
        }
        self.stream
    }

    /// The daemon drains, then aborts.
    fn poll_stop(&mut self, cx: &mut TaskContext<'_>) {
        while !self.aborted && self.stop.as_mut().poll(cx).is_ready() {
            if self.context.abort.is_cancelled() {
                self.aborted = true;
                return;
            }
            self.stop = Box::pin(self.context.abort.clone().cancelled_owned());
            self.draining = true;
            if self.phase == Phase::Open && end_input(&self.stream).is_err() {
                self.phase = Phase::Draining;
            }
        }
    }

    /// Takes the answers of calls that have ended.
    fn poll_finished(&mut self, cx: &mut TaskContext<'_>) {
        if self.in_flight == self.answered {
            return;
        }
        let (output, answered, in_flight) = (&mut self.output, &mut self.answered, &mut self.in_flight);
        self.running.poll(cx, |answer| match answer {
            Some(line) => {
                output.push(line);
                *answered += 1;
            }
            None => *in_flight -= 1,
        });
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
            _ if self.draining => self.phase = Phase::Draining,
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
                self.in_flight += 1;
                self.running.push(call);
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

    /// Ready with what has stood still for too long.
    fn poll_timer(&mut self, cx: &mut TaskContext<'_>) -> Poll<Stall> {
        let bounds = self.context.bounds;
        // Memory that others wait for is not left to who does not read.
        let wanted = self.starved.is_some() || !self.context.budget.has_any();
        let unread = if wanted { LINGER.min(bounds.write_timeout) } else { bounds.write_timeout };
        let unfinished = self.wants_input() && self.frames.is_unfinished();
        let starving = self.starved.is_some() && self.phase == Phase::Open;
        self.timer.watch(Stall::Write, (!self.output.is_empty()).then_some(unread));
        self.timer.watch(Stall::Read, unfinished.then_some(bounds.read_timeout));
        let holds = self.output.len() > UNCOUNTED;
        self.timer.watch(Stall::Look, holds.then_some(LINGER));
        self.timer.watch(Stall::Room, starving.then_some(bounds.room_wait()));
        self.timer.poll(cx)
    }

    /// A message that has begun will not be read to its end.
    fn give_up(&mut self, stall: Stall) {
        let error = if stall == Stall::Room {
            refusal::overloaded("no memory for messages", Duration::from_secs(1))
        } else {
            let limit = humantime::format_duration(self.context.bounds.read_timeout);
            refusal::parse_error(format_args!("message not finished within {limit}"))
        };
        self.refuse(&error);
        self.hang_up();
    }
}
