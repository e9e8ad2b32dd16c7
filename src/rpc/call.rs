//! What every call passes through, whatever framing brought it: access, span, deadline, parameters, figures.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use jsonrpsee::types::{ErrorObjectOwned, Request};
use jsonrpsee::{MethodResponse, ResponsePayload};
use serde_json::value::RawValue;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::access::{Policy, PolicyError};
use super::error;
use super::methods::{Entry, Methods};
use super::params::Context;
use super::peer::Peer;
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
    in_flight: Arc<Semaphore>,
    draining: AtomicBool,
    cut: CancellationToken,
    next_id: AtomicU64,
}

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
        Ok(Arc::new(Self {
            jobs: Jobs::new(app.clone()),
            app,
            methods,
            access: ArcSwap::from_pointee(granted),
            in_flight: Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))),
            draining: AtomicBool::new(false),
            cut: CancellationToken::new(),
            next_id: AtomicU64::new(random()),
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

    /// How many calls are in flight, of those that are counted.
    pub fn in_flight(&self) -> usize {
        self.app.config.limits.calls.saturating_sub(self.in_flight.available_permits())
    }

    /// Follows other rules from the next call on.
    ///
    /// # Errors
    /// A rule names somebody or something that does not exist; the old ones stay.
    pub fn grant(&self, access: &Access) -> Result<(), PolicyError> {
        self.access.store(Arc::new(Granted::new(access, &self.methods)?));
        Ok(())
    }

    /// From now on each new call is told that this daemon ends; those in flight go on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether this daemon is ending.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
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
    ) -> impl Future<Output = MethodResponse> + Send + 'static {
        let (calls, peer) = (self.clone(), peer.clone());
        async move {
            let result = calls.answer(&peer, &request.method, request.params.as_deref()).await;
            match result {
                Ok(result) => {
                    MethodResponse::response(request.id, ResponsePayload::success(result), usize::MAX)
                }
                Err(error) => MethodResponse::error(request.id, error),
            }
        }
    }

    async fn answer(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        name: &str,
        params: Option<&RawValue>,
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
        let outcome = result.as_ref().map_or_else(error::outcome, |_| "ok");
        metrics::counter!(telemetry::CALLS, "method" => entry.name, "outcome" => outcome).increment(1);
        metrics::histogram!(telemetry::CALL_DURATION, "method" => entry.name).record(started.elapsed());
        let _entered = span.enter();
        tracing::debug!(outcome, duration_us = started.elapsed().as_micros(), "answered");
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
        params: Option<&RawValue>,
    ) -> Result<Box<RawValue>> {
        let granted = self.access.load_full();
        if !granted.policy.allows(peer, entry.name) {
            return Err(Error::Forbidden { method: entry.name.to_owned(), uid: peer.uid });
        }
        let deadline = Deadline::after(self.app.config.limits.call_timeout.duration(), self.cut.clone());
        let _counted = if entry.uncounted { None } else { Some(self.admit(&deadline).await?) };
        if entry.stored {
            self.app.ready()?;
        }
        let begun = OnceLock::new();
        let call = |context: Context| {
            granted.check_purpose(entry, &context)?;
            let by = Arc::new(self.by(entry, peer, deadline.clone(), &context));
            let _ = begun.set(by.clone());
            Ok(Call { app: self.app.clone(), calls: self.clone(), by, peer: peer.clone(), context })
        };
        let result = match deadline.run_with_grace(GRACE, (entry.handler)(params, &call)).await {
            Ok(result) => result,
            Err(_) if entry.writes => Err(Error::UnknownOutcome),
            Err(_) => Err(Error::unavailable("no answer within the call's deadline")),
        };
        if let Some(by) = begun.get() {
            self.enter(entry, by, &result).await?;
        }
        let result = result?;
        let max = self.app.config.limits.max_answer_bytes.bytes();
        if u64::try_from(result.get().len()).unwrap_or(u64::MAX) > max && !entry.uncounted {
            return Err(Error::TooLarge { what: "the answer; ask for fewer items with limit".into(), max });
        }
        Ok(result)
    }

    fn by(&self, entry: &Entry, peer: &Arc<Peer>, deadline: Deadline, context: &Context) -> By {
        // Each connection has a peer of its own, for as long as it lasts.
        let mut by = By::new(deadline, Arc::as_ptr(peer).addr(), entry.name, peer.uid);
        by.actor = context.user_id.clone();
        by.purpose = context.purpose.clone();
        by.request_id = context.request_id.clone();
        by.ip_address = context.ip_address.clone();
        by.user_agent = context.user_agent.clone();
        by.stages = self.app.config.audit.access != AuditAccess::None;
        by
    }

    /// Enters a call in the log, unless its entry is committed with its change. Nothing personal is answered before.
    async fn enter(&self, entry: &Entry, by: &By, result: &Result<Box<RawValue>>) -> Result<()> {
        let wanted = match self.app.config.audit.access {
            AuditAccess::All => entry.entered,
            AuditAccess::Writes => entry.entered && entry.writes,
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
            ) => return Ok(()),
            Err(_) => Outcome::Failure,
        };
        if !wanted || by.is_staged() {
            return Ok(());
        }
        match self.app.records.log().note(by, outcome, &by.deadline).await {
            // It is only a read, or a refusal: it can be asked again.
            Err(Error::UnknownOutcome) => {
                Err(Error::unavailable("the access could not be entered in the log in time"))
            }
            noted => noted,
        }
    }

    /// A place among the calls in flight.
    async fn admit(&self, deadline: &Deadline) -> Result<tokio::sync::OwnedSemaphorePermit> {
        if self.is_draining() {
            return Err(Error::unavailable("this daemon is ending; connect again"));
        }
        if let Ok(permit) = self.in_flight.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let wait = deadline.within(self.app.config.database.acquire_timeout.duration());
        match wait.run(self.in_flight.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Error::Overloaded {
                what: "too many calls in flight",
                retry_after: Duration::from_secs(1),
            }),
        }
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
