//! The bounded way from calls to the writers: a call that cannot wait any longer takes its entries back, or is told that
//! they are under way.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::draft::Draft;
use super::stream::Sealed;
use super::turn::Turn;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::store::Deadline;

/// How many requests wait for one stream at most.
const REQUESTS: usize = 8192;
/// How many bytes wait for all streams at most.
const BYTES: usize = 24 << 20;
/// From how many unanswered requests on a stream has enough for batches that are worth their commits.
const BUSY: usize = 128;

const WAITING: u8 = 0;
const SENT: u8 = 1;
const WITHDRAWN: u8 = 2;

/// Where an entry is in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Its id.
    pub id: String,
    /// Its stream.
    pub stream: i32,
    /// Its position.
    pub position: i64,
    /// When it was appended.
    pub recorded_at: Timestamp,
}

/// Entries that are appended all or none, one after another.
#[derive(Debug)]
pub struct Group {
    /// The entries that are not in the log yet.
    pub drafts: Vec<Draft>,
    /// What was found there already, and its place among the entries of then: what was found last comes last.
    known: Vec<Vec<(usize, Receipt)>>,
    state: Arc<AtomicU8>,
    tries: usize,
    reply: oneshot::Sender<Result<Vec<Receipt>>>,
    _room: OwnedSemaphorePermit,
    _unanswered: Unanswered,
}

/// Counts a request until it is answered.
#[derive(Debug)]
struct Unanswered(Arc<AtomicUsize>);

impl Unanswered {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A group on its way into the queue.
struct Entering {
    drafts: Vec<Draft>,
    weight: u32,
    state: Arc<AtomicU8>,
    reply: oneshot::Sender<Result<Vec<Receipt>>>,
    unanswered: Unanswered,
}

impl Entering {
    fn with(self, room: OwnedSemaphorePermit) -> Request {
        let Self { drafts, state, reply, unanswered, .. } = self;
        let (known, _room, _unanswered) = (Vec::new(), room, unanswered);
        Request::Append(Group { drafts, known, state, tries: 0, reply, _room, _unanswered })
    }
}

/// A group that has to wait for its turn, or for room.
struct Late {
    entering: Entering,
    turn: Option<Turn>,
}

/// What a writer is asked for.
#[derive(Debug)]
pub enum Request {
    /// To append.
    Append(Group),
    /// To take in what was staged with a change that is committed.
    Staged(Box<Sealed>),
}

impl Group {
    /// Sends it: from now on its caller cannot take it back. False when the caller has.
    pub fn send(&self) -> bool {
        self.state.compare_exchange(WAITING, SENT, Ordering::AcqRel, Ordering::Acquire) != Err(WITHDRAWN)
    }

    /// Nothing of it is in the log: its caller may take it back again.
    pub fn not_sent(&self) {
        let _ = self.state.compare_exchange(SENT, WAITING, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Whether the caller has taken it back.
    pub fn is_withdrawn(&self) -> bool {
        self.state.load(Ordering::Acquire) == WITHDRAWN
    }

    /// Whether the caller has gone: it was told that the outcome is not known.
    pub fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// Counts another attempt, and answers how many there were.
    pub fn tried(&mut self) -> usize {
        self.tries = self.tries.saturating_add(1);
        self.tries
    }

    /// Takes those out of the entries that are in the log already, as a call before this one has appended them.
    pub fn is_there(&mut self, known: Vec<(usize, Receipt)>) {
        let places: HashSet<usize> = known.iter().map(|(place, _)| *place).collect();
        let mut place = 0_usize..;
        self.drafts.retain(|_| place.next().is_none_or(|place| !places.contains(&place)));
        self.known.push(known);
    }

    /// Answers the caller where all of the entries are, given where the new ones are.
    pub fn appended(mut self, new: Vec<Receipt>) {
        let mut receipts = new;
        while let Some(known) = self.known.pop() {
            for (place, receipt) in known {
                receipts.insert(place.min(receipts.len()), receipt);
            }
        }
        self.answer(Ok(receipts));
    }

    /// Answers the caller, if it still waits.
    pub fn answer(self, result: Result<Vec<Receipt>>) {
        let _ = self.reply.send(result);
    }
}

/// The stream that a connection's entries go to: chosen with its first one, and kept, as its entries keep their order.
#[derive(Clone, Debug, Default)]
pub struct Pinned(Arc<OnceLock<usize>>);

/// The way to one writer.
#[derive(Debug)]
struct Stream {
    requests: mpsc::Sender<Request>,
    unanswered: Arc<AtomicUsize>,
}

impl Stream {
    fn unanswered(&self) -> usize {
        self.unanswered.load(Ordering::Relaxed)
    }
}

/// The queues to all writers.
#[derive(Debug)]
pub struct Queue {
    streams: Vec<Stream>,
    /// Which of idle streams is next.
    next: AtomicUsize,
    room: Arc<Semaphore>,
    max_wait: Duration,
}

impl Queue {
    /// A queue for each of so many writers.
    pub fn new(writers: usize, max_wait: Duration) -> (Self, Vec<mpsc::Receiver<Request>>) {
        let stream = |_| {
            let (requests, receiver) = mpsc::channel(REQUESTS);
            (Stream { requests, unanswered: Arc::default() }, receiver)
        };
        let (streams, receivers) = (0..writers.max(1)).map(stream).unzip();
        (
            Self { streams, next: AtomicUsize::new(0), room: Arc::new(Semaphore::new(BYTES)), max_wait },
            receivers,
        )
    }

    fn stream(&self, pinned: &Pinned) -> Result<&Stream> {
        let place = *pinned.0.get_or_init(|| self.place());
        self.streams.get(place).ok_or_else(|| Error::internal("no writer"))
    }

    /// A stream that is at work and not busy, as two commits cost more than one of the same entries; else the next idle one; where
    /// all are busy, that with the least to do.
    fn place(&self) -> usize {
        let loads = || self.streams.iter().map(Stream::unanswered).enumerate();
        let working = loads().find(|(_, load)| (1..BUSY).contains(load));
        let idle = || {
            let next = self.next.fetch_add(1, Ordering::Relaxed).checked_rem(self.streams.len())?;
            loads().cycle().skip(next).take(self.streams.len()).find(|(_, load)| *load == 0)
        };
        let least = || loads().min_by_key(|(_, load)| *load);
        working.or_else(idle).or_else(least).map_or(0, |(place, _)| place)
    }

    /// Appends these entries, all or none, and waits for the commit. Those that take turns keep
    /// their order.
    ///
    /// # Errors
    /// [`Error::Overloaded`] and [`Error::Unavailable`]: nothing was appended. [`Error::UnknownOutcome`]: the deadline
    /// passed while the batch was under way.
    pub async fn append(
        &self,
        pinned: &Pinned,
        drafts: Vec<Draft>,
        turn: Option<Turn>,
        deadline: &Deadline,
    ) -> Result<Vec<Receipt>> {
        let stream = self.stream(pinned)?;
        let weight = drafts.iter().map(Draft::weight).fold(0_usize, usize::saturating_add).min(BYTES);
        let weight = u32::try_from(weight).map_err(Error::internal)?;
        let (reply, answer) = oneshot::channel();
        let state = Arc::new(AtomicU8::new(WAITING));
        let unanswered = Unanswered::new(&stream.unanswered);
        let entering = Entering { drafts, weight, state: state.clone(), reply, unanswered };
        let stream = &stream.requests;
        if let Err(late) = self.try_enter(stream, entering, turn) {
            // Boxed, as every call would have room for it otherwise, and few need it.
            Box::pin(self.enter(stream, late, deadline)).await?;
        }
        if let Ok(Ok(result)) = deadline.run(answer).await {
            return result;
        }
        // The deadline came first, or the writer has ended.
        match state.compare_exchange(WAITING, WITHDRAWN, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                Err(Error::unavailable("the audit log cannot be written at present; nothing was appended"))
            }
            Err(_) => Err(Error::UnknownOutcome),
        }
    }

    /// Enters at once, where it is this one's turn and there is room.
    fn try_enter(
        &self,
        stream: &mpsc::Sender<Request>,
        entering: Entering,
        turn: Option<Turn>,
    ) -> Result<(), Late> {
        if turn.as_ref().is_some_and(|turn| !turn.has_come()) {
            return Err(Late { entering, turn });
        }
        let Ok(room) = self.room.clone().try_acquire_many_owned(entering.weight) else {
            return Err(Late { entering, turn });
        };
        let Ok(place) = stream.try_reserve() else { return Err(Late { entering, turn }) };
        place.send(entering.with(room));
        // Only now whoever is behind may come.
        drop(turn);
        Ok(())
    }

    /// Waits for its turn and for room.
    async fn enter(&self, stream: &mpsc::Sender<Request>, late: Late, deadline: &Deadline) -> Result<()> {
        let full = || Error::Overloaded { what: "the audit queue is full", retry_after: self.max_wait };
        let Late { entering, turn } = late;
        let waiting = async {
            let _come = match turn {
                Some(turn) => Some(turn.come().await),
                None => None,
            };
            let room = self.room.clone().acquire_many_owned(entering.weight).await.map_err(|_| full())?;
            let place = stream.reserve().await.map_err(|_| Error::unavailable("this daemon is ending"))?;
            place.send(entering.with(room));
            Ok(())
        };
        deadline.within(self.max_wait).run(waiting).await.unwrap_or_else(|_| Err(full()))
    }

    /// Hands over what was staged. Where there is no room it is found in the table later.
    pub fn staged(&self, pinned: &Pinned, sealed: Box<Sealed>) {
        if let Ok(stream) = self.stream(pinned) {
            let _ = stream.requests.try_send(Request::Staged(sealed));
        }
    }

    /// How many requests wait.
    pub fn len(&self) -> usize {
        self.streams.iter().map(|stream| waiting(&stream.requests)).sum()
    }

    /// How many requests may wait.
    pub fn max(&self) -> usize {
        self.streams.iter().map(|stream| stream.requests.max_capacity()).sum()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn waiting(stream: &mpsc::Sender<Request>) -> usize {
    stream.max_capacity().saturating_sub(stream.capacity())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(queue: &Queue, place: usize, count: usize) -> Vec<Unanswered> {
        (0..count).map(|_| Unanswered::new(&queue.streams[place].unanswered)).collect()
    }

    #[test]
    fn connections_at_work_gather_on_a_stream_until_it_is_busy() {
        let (queue, _receivers) = Queue::new(2, Duration::ZERO);
        assert_eq!([queue.place(), queue.place(), queue.place()], [0, 1, 0], "idle ones in turn");
        let mut second = busy(&queue, 1, 1);
        assert_eq!([queue.place(), queue.place(), queue.place()], [1, 1, 1], "to the one at work");
        second.extend(busy(&queue, 1, BUSY - 1));
        assert_eq!(queue.place(), 0, "to the idle one");
        let first = busy(&queue, 0, BUSY + 1);
        assert_eq!(queue.place(), 1, "to the one with the least to do");
        drop((first, second));
        assert_ne!(queue.place(), queue.place(), "what is answered counts no more");
    }

    #[test]
    fn a_connection_stays_with_its_stream() {
        let (queue, _receivers) = Queue::new(2, Duration::ZERO);
        let pinned = Pinned::default();
        let place =
            |pinned: &Pinned| queue.stream(pinned).map(|stream| Arc::as_ptr(&stream.unanswered)).unwrap();
        let first = place(&pinned);
        let _busy = busy(&queue, 0, BUSY);
        assert_eq!(place(&pinned), first);
        assert_ne!(place(&Pinned::default()), first);
    }
}
