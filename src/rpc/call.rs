//! What every call passes through, whatever framing brought it: access, span, deadline, parameters, figures.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::FutureExt;
use jsonrpsee::types::{ErrorObjectOwned, Request};
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::access::{Policy, PolicyError};
use super::budget::Budget;
use super::context::bytes;
use super::error;
use super::figures::OK;
use super::methods::{Entry, Found, Methods};
use super::params::Context;
use super::peer::Peer;
use super::refusals::Refusals;
use crate::app::App;
use crate::audit::By;
use crate::audit::entry::Outcome;
use crate::config::{Access, AuditAccess};
use crate::error::{Error, Result, chain};
use crate::jobs::Jobs;
use crate::store::Deadline;
use crate::telemetry;

/// A call that is still running so long after its deadline is answered for.
const GRACE: Duration = Duration::from_millis(50);

/// The methods and what surrounds them.
#[derive(Debug)]
pub struct Calls {
    app: Arc<App>,
    jobs: Arc<Jobs>,
    methods: Methods,
    access: ArcSwap<Granted>,
    health: ArcSwapOption<Found>,
    in_flight: Semaphore,
    draining: AtomicBool,
    cut: Arc<CancellationToken>,
    next_id: AtomicU64,
    refusals: Arc<Refusals>,
    connections: AtomicUsize,
    working: Semaphore,
    queued: Semaphore,
    budget: Budget,
}

/// How many calls may work for each connection of the pool: some on the way to it, some on the way from it. The others wait
/// before they hold anything but their request.
const WORKING: usize = 2;

/// `[access]` as it is in force.
#[derive(Debug)]
struct Granted {
    policy: Policy,
    require_purpose: bool,
    purposes: Vec<String>,
}

/// One call, as its method sees it.
#[derive(Clone, Debug)]
pub struct Call {
    /// The handles that calls share.
    pub app: Arc<App>,
    /// All calls.
    pub calls: Arc<Calls>,
    /// When it must have ended, and what its access entry is made of.
    pub by: Arc<By>,
    /// Who calls.
    pub peer: Arc<Peer>,
    /// For whom and why, as the caller says.
    pub context: Context,
}

impl Calls {
    /// The calls on this application's records.
    ///
    /// # Errors
    /// A rule of `[access]` names somebody or something that does not exist.
    pub fn new(app: Arc<App>) -> Result<Arc<Self>, PolicyError> {
        let methods = Methods::all();
        let granted = Granted::new(&app.config.access, &methods)?;
        let limit = app.config.limits.calls;
        let refusals = Arc::new(Refusals::default());
        app.tracker.spawn(refusals.clone().enter(app.clone()));
        Ok(Arc::new(Self {
            working: Semaphore::new(app.config.database.pool.saturating_mul(WORKING)),
            queued: Semaphore::new(limit.min(Semaphore::MAX_PERMITS)),
            budget: Budget::new(bytes(app.config.limits.buffered_bytes)),
            jobs: Jobs::new(app.clone()),
            app,
            methods,
            access: ArcSwap::from_pointee(granted),
            health: ArcSwapOption::empty(),
            in_flight: Semaphore::new(limit.min(Semaphore::MAX_PERMITS)),
            draining: AtomicBool::new(false),
            cut: Arc::new(CancellationToken::new()),
            refusals: refusals.clone(),
            next_id: AtomicU64::new(random()),
            connections: AtomicUsize::new(0),
        }))
    }

    /// The handles that calls share.
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// The jobs of this daemon.
    pub fn jobs(&self) -> &Arc<Jobs> {
        &self.jobs
    }

    /// The table of methods.
    pub fn methods(&self) -> &Methods {
        &self.methods
    }

    /// How the daemon was found to be when somebody last looked.
    pub(super) fn health(&self) -> &ArcSwapOption<Found> {
        &self.health
    }

    /// How many calls are in flight, of those that are counted.
    pub fn in_flight(&self) -> usize {
        self.app.config.limits.calls.saturating_sub(self.in_flight.available_permits())
    }

    /// The room for what connections hold.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// How many clients are connected.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// A client has connected.
    pub fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// The connection of one has ended.
    pub fn disconnected(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether [`Self::grant`] would take these rules.
    ///
    /// # Errors
    /// As [`Self::grant`].
    pub fn check_access(&self, access: &Access) -> Result<(), PolicyError> {
        Granted::new(access, &self.methods).map(drop)
    }

    /// Follows other rules from the next call on.
    ///
    /// # Errors
    /// A rule names somebody or something that does not exist; the old ones stay.
    pub fn grant(&self, access: &Access) -> Result<(), PolicyError> {
        self.access.store(Arc::new(Granted::new(access, &self.methods)?));
        Ok(())
    }

    /// From now on health and status say that this daemon ends. Calls go on until [`Self::cut`].
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether this daemon is ending.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Enters the refusals that were counted and not entered yet: the last thing before the end.
    pub async fn enter_refusals(&self) {
        self.refusals.enter_now(&self.app).await;
    }

    /// Ends what is in flight now, each call with what is true of it: `unavailable` or `unknown_outcome`.
    pub fn cut(&self) {
        self.drain();
        self.cut.cancel();
    }

    /// Runs one call to its end, by its deadline. The future never panics.
    pub fn call(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        request: Request<'static>,
    ) -> impl Future<Output = Result<Box<RawValue>, ErrorObjectOwned>> + Send + 'static {
        let (calls, peer) = (self.clone(), peer.clone());
        // Tokio's budget would make the calls of one connection wait for one another in any order, though nothing keeps them;
        // reading and writing the connection stays within it.
        tokio::task::unconstrained(async move {
            let Request { method, params, .. } = request;
            calls.answer(&peer, &method, params.map(std::borrow::Cow::into_owned)).await
        })
    }

    async fn answer(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        name: &str,
        params: Option<Box<RawValue>>,
    ) -> Result<Box<RawValue>, ErrorObjectOwned> {
        let Some(entry) = self.methods.find(name) else {
            metrics::counter!(telemetry::CALLS, "method" => "(unknown)", "outcome" => "not_found")
                .increment(1);
            return Err(error::method_not_found(name, self.methods.nearest(name)));
        };
        let started = Instant::now();
        let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let span = tracing::debug_span!("call", method = entry.name, uid = peer.uid, pid = peer.pid, request_id = %id);
        let work =
            AssertUnwindSafe(tracing::Instrument::instrument(self.run(entry, peer, params), span.clone()));
        let result = work.catch_unwind().await.unwrap_or_else(|_| Err(Error::internal("a call panicked")));
        let (outcome, took) = (result.as_ref().map_or_else(error::outcome, |_| OK), started.elapsed());
        entry.figures.count(entry.name, outcome, took);
        span.in_scope(|| tracing::debug!(outcome, duration_us = took.as_micros(), "answered"));
        result.map_err(|error| {
            if let Error::Internal(cause) = &error {
                tracing::error!(method = entry.name, request_id = %id, cause = %chain(&**cause), "internal error");
            }
            error::object(&error, &id.to_string())
        })
    }

    async fn run(
        self: &Arc<Self>,
        entry: &Entry,
        peer: &Arc<Peer>,
        params: Option<Box<RawValue>>,
    ) -> Result<Box<RawValue>> {
        if !self.access.load().policy.allows(peer, entry.name) {
            if self.app.config.audit.access != AuditAccess::None {
                self.refusals.count(peer.uid, entry.name);
            }
            return Err(Error::Forbidden { method: entry.name.to_owned(), uid: peer.uid });
        }
        let deadline = Deadline::after(self.app.config.limits.call_timeout.duration(), self.cut.clone());
        // Before anything is waited for: calls begin in the order sent.
        let turn = Mutex::new(entry.queued.then(|| peer.turns.take()));
        // What seldom has to be waited for is boxed: every call would have room for it otherwise.
        let _counted = if entry.uncounted {
            None
        } else if let Some(places) = self.try_admit(entry) {
            Some(places)
        } else {
            Some(Box::pin(self.admit(&deadline, entry)).await?)
        };
        if entry.stored && !self.app.serves() {
            Box::pin(self.app.ready(&deadline)).await?;
        }
        let begun = OnceLock::new();
        let call = |context: Context| {
            self.access.load().check_purpose(entry, &context)?;
            let by = Arc::new(self.by(entry, peer, deadline.clone(), &context));
            by.line_up(turn.lock().unwrap_or_else(PoisonError::into_inner).take());
            let _ = begun.set(by.clone());
            Ok(Call { app: self.app.clone(), calls: self.clone(), by, peer: peer.clone(), context })
        };
        let work = (entry.handler)(params.as_deref(), &call);
        drop(params);
        // The queue to the log keeps the deadline by itself, and a clock for each of its callers costs as much as the rest.
        let ended = if entry.queued { Ok(work.await) } else { deadline.run_with_grace(GRACE, work).await };
        let result = match ended {
            Ok(result) => result,
            Err(_) if entry.writes => Err(Error::UnknownOutcome),
            Err(_) => Err(Error::unavailable("no answer within the call's deadline")),
        };
        if let Some(by) = begun.get()
            && let Some(outcome) = self.wants_entry(entry, by, &result)
        {
            Box::pin(self.enter(by, outcome)).await?;
        }
        let result = result?;
        // It may have been read from another server than the one that was there when it began.
        if entry.stored && !entry.writes && !self.app.serves() {
            Box::pin(self.app.ready(&deadline)).await?;
        }
        let max = self.app.config.limits.max_answer_bytes.bytes();
        if u64::try_from(result.get().len()).unwrap_or(u64::MAX) > max && !entry.uncounted {
            return Err(Error::too_large_but("the answer", max, "ask for fewer items with limit"));
        }
        Ok(result)
    }

    fn by(&self, entry: &Entry, peer: &Peer, deadline: Deadline, context: &Context) -> By {
        let mut by = By::new(deadline, peer.pinned.clone(), entry.name, peer.uid);
        by.actor = context.user_id.clone();
        by.purpose = context.purpose.clone();
        by.request_id = context.request_id.clone();
        by.traceparent = context.traceparent.clone();
        by.ip_address = context.ip_address.clone();
        by.user_agent = context.user_agent.clone();
        by.stages = self.app.config.audit.access != AuditAccess::None;
        by
    }

    /// Enters a call that may take long when it begins.
    ///
    /// # Errors
    /// The log cannot be written; the call must not go on.
    pub async fn enter_begun(&self, by: &By) -> Result<()> {
        let Some(entry) = self.methods.find(by.method) else { return Ok(()) };
        if let Some(outcome) = self.wants_entry(entry, by, &Ok(Box::default())) {
            self.enter(by, outcome).await?;
        }
        by.note_staged();
        Ok(())
    }

    /// How a call ended, if it is to be entered in the log and its entry is not committed already.
    fn wants_entry(&self, entry: &Entry, by: &By, result: &Result<Box<RawValue>>) -> Option<Outcome> {
        // What the log does of itself leaves no entry when it succeeds.
        let entered = entry.entered || (entry.stored && result.is_err());
        let wanted = match self.app.config.audit.access {
            AuditAccess::All => entered,
            AuditAccess::Writes => entered && entry.writes,
            AuditAccess::None => false,
        };
        let outcome = match result {
            Ok(_) => Outcome::Success,
            // Nothing happened, or it is not known what: the answer says so.
            Err(
                Error::Unavailable { .. }
                | Error::Overloaded { .. }
                | Error::UnknownOutcome
                | Error::Internal(_),
            ) => return None,
            Err(Error::Held { .. } | Error::Restricted) => Outcome::Denied,
            Err(_) => Outcome::Failure,
        };
        (wanted && !by.is_staged()).then_some(outcome)
    }

    /// Enters a call in the log. Nothing personal is answered before.
    async fn enter(&self, by: &By, outcome: Outcome) -> Result<()> {
        match self.app.records.log().note(by, outcome, &by.deadline).await {
            // It is only a read, or a refusal: it can be asked again.
            Err(Error::UnknownOutcome) => {
                Err(Error::unavailable("the access could not be entered in the log in time"))
            }
            noted => noted,
        }
    }

    /// A call that only waits, for the writers of the log or for something to happen, needs no place to work.
    fn places(&self, entry: &Entry) -> &Semaphore {
        if entry.queued || entry.waits { &self.queued } else { &self.working }
    }

    /// Both places of [`Self::admit`], where nothing has to be waited for.
    fn try_admit(&self, entry: &Entry) -> Option<[SemaphorePermit<'_>; 2]> {
        let working = self.places(entry);
        if self.cut.is_cancelled() || !self.budget.has_any() {
            return None;
        }
        Some([self.in_flight.try_acquire().ok()?, working.try_acquire().ok()?])
    }

    /// A place among the calls in flight, and then one among those that work, while there is memory for what they answer.
    async fn admit(&self, deadline: &Deadline, entry: &Entry) -> Result<[SemaphorePermit<'_>; 2]> {
        let working = self.places(entry);
        if self.cut.is_cancelled() {
            return Err(Error::unavailable("this daemon is ending; connect again"));
        }
        let wait = deadline.within(self.app.config.database.acquire_timeout.duration());
        let overloaded = |what| Error::Overloaded { what, retry_after: Duration::from_secs(1) };
        let place = match wait.run(self.in_flight.acquire()).await {
            Ok(Ok(place)) => place,
            _ => return Err(overloaded("too many calls in flight")),
        };
        let Ok(Ok(work)) = wait.run(working.acquire()).await else {
            return Err(self.app.records.store().overloaded("too many calls wait for PostgreSQL"));
        };
        // Answers that nobody reads hold up new ones before memory ends; their connections are closed meanwhile.
        if wait.run(self.budget.any()).await.is_err() {
            return Err(overloaded("no memory for answers"));
        }
        Ok([place, work])
    }
}

impl Granted {
    fn new(access: &Access, methods: &Methods) -> Result<Self, PolicyError> {
        let names: Vec<&str> = methods.names().collect();
        Ok(Self {
            policy: Policy::new(access, &names)?,
            require_purpose: access.require_purpose,
            purposes: access.purposes.clone(),
        })
    }

    fn check_purpose(&self, entry: &Entry, context: &Context) -> Result<()> {
        match &context.purpose {
            None if self.require_purpose && entry.personal => {
                Err(Error::invalid("context.purpose", "is missing; this deployment asks for a purpose"))
            }
            Some(purpose)
                if !self.purposes.is_empty() && !self.purposes.iter().any(|p| p == purpose.as_str()) =>
            {
                Err(Error::invalid("context.purpose", "is not one of access.purposes"))
            }
            _ => Ok(()),
        }
    }
}

/// Ties an answer to the log.
struct RequestId(u64);

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

fn random() -> u64 {
    let mut bytes = [0_u8; 8];
    // Without randomness the ids begin at the same number, which only makes the log harder to search.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u64::from_be_bytes(bytes)
}
