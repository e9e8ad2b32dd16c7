//! Who calls, what for, and what has become known of it: what the access entry of a call is made of.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::draft::Draft;
use super::entry::{Append, DIGEST, Labels, OWN_LABELS, Outcome};
use super::queue::Pinned;
use super::turn::Turn;
use crate::error::Result;
use crate::keyring::Whole;
use crate::store::Deadline;
use crate::values::{Json, RecordId, ResourceId, ShortText, Term, UserId};

/// The label that says who the peer is.
pub const UID: &str = "sidekeep.uid";
/// The label that says what was called.
pub const METHOD: &str = "sidekeep.method";
/// The label with the number of a second person whom a read names.
pub const ALSO: &str = "sidekeep.also";
/// The label of an entry whose subject's key was found damaged, so that nothing in it is sealed with that key.
const KEY: &str = "sidekeep.key";
/// The label with the caller's purpose.
pub const PURPOSE: &str = "purpose";
/// The label with the application's own id of the request.
pub const REQUEST_ID: &str = "request_id";

/// The label with the application's W3C trace context.
pub(super) const TRACEPARENT: &str = "traceparent";

/// One call, as the records and the log see it.
#[derive(Debug)]
pub struct By {
    /// When it must have ended.
    pub deadline: Deadline,
    /// Where the entries of its connection go.
    pub pinned: Pinned,
    /// The method.
    pub method: &'static str,
    /// The peer's user id, as the kernel says.
    pub uid: u32,
    /// For whom the application acts, as it says.
    pub actor: Option<UserId>,
    /// Why, as a code.
    pub purpose: Option<Term>,
    /// The application's own id of the request.
    pub request_id: Option<Term>,
    /// Where it belongs in the application's trace (W3C Trace Context).
    pub traceparent: Option<Term>,
    /// The address that the person's request came from.
    pub ip_address: Option<ShortText>,
    /// The program that the person uses.
    pub user_agent: Option<ShortText>,
    /// How often the peer was refused, where it was.
    pub refused: Option<u64>,
    /// The entry's id, where it may be entered more than once and must be there once.
    pub id: Option<RecordId>,
    /// Whether a change stages its entry.
    pub stages: bool,
    turn: Mutex<Option<Turn>>,
    noted: Mutex<Noted>,
}

/// What became known while the call ran.
#[derive(Clone, Debug, Default)]
struct Noted {
    subject: Option<UserId>,
    resource: Option<(&'static str, String)>,
    sought: Option<String>,
    digest: Option<String>,
    also: Option<i64>,
    labels: Vec<(String, String)>,
    keyless: bool,
    metadata: Option<Json>,
    staged: bool,
}

impl By {
    /// A call of which nothing is known yet.
    pub fn new(deadline: Deadline, pinned: Pinned, method: &'static str, uid: u32) -> Self {
        Self {
            deadline,
            pinned,
            method,
            uid,
            actor: None,
            purpose: None,
            request_id: None,
            traceparent: None,
            ip_address: None,
            user_agent: None,
            refused: None,
            id: None,
            stages: true,
            turn: Mutex::default(),
            noted: Mutex::default(),
        }
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lines up behind what its connection has sent before.
    pub fn line_up(&self, turn: Option<Turn>) {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = turn;
    }

    /// Its place in the line of its connection, once.
    pub fn turn(&self) -> Option<Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Notes whose data it is about: a person who exists.
    pub fn concerns(&self, subject: &str) {
        self.noted().subject = UserId::parse(subject).ok();
    }

    /// As [`By::concerns`], a person whose key may be damaged: the entry then says so, and does without it.
    pub fn concerns_whole(&self, person: &Whole) {
        self.concerns(person.user_id());
        self.noted().keyless = person.is_damaged();
    }

    /// Notes which record it is about.
    pub fn about(&self, kind: &'static str, id: impl Into<String>) {
        self.noted().resource = Some((kind, id.into()));
    }

    /// Notes the id that was looked for, where it is not known of what it is one.
    pub fn seeks(&self, id: &str) {
        self.noted().sought = Some(id.to_owned());
    }

    /// Notes the SHA-256 of the row that was stored.
    pub fn stored(&self, sha256: String) {
        self.noted().digest = Some(sha256);
    }

    /// Notes a second person whom it names, by number: a user id must not stand under another person's key.
    pub fn names_also(&self, subject_id: i64) {
        self.noted().also = Some(subject_id);
    }

    /// Notes what the entry is to say under the subject's key.
    pub fn tell(&self, metadata: Json) {
        self.noted().metadata = Some(metadata);
    }

    /// Notes something else that can be counted or compared: a label that only sidekeep writes.
    pub fn tells(&self, name: &str, value: impl std::fmt::Display) {
        self.noted().labels.push((format!("{OWN_LABELS}{name}"), value.to_string()));
    }

    /// Notes what was looked for. Persons stand in it as numbers: it is sealed with the key of one person alone.
    pub fn looks_for(&self, filter: Json) {
        self.noted().metadata = Some(filter);
    }

    /// Notes that its entry is committed, with its change or before it went on.
    pub fn note_staged(&self) {
        self.noted().staged = true;
    }

    /// Whether its entry is committed already.
    pub fn is_staged(&self) -> bool {
        self.noted().staged
    }

    /// The access entry.
    ///
    /// # Errors
    /// Something that the caller says of itself identifies a person where it must not.
    pub fn draft(&self, outcome: Outcome) -> Result<Draft> {
        let noted = self.noted().clone();
        let mut own = vec![(UID, self.uid.to_string()), (METHOD, self.method.to_owned())];
        own.extend(self.purpose.as_ref().map(|purpose| (PURPOSE, purpose.as_str().to_owned())));
        own.extend(self.request_id.as_ref().map(|id| (REQUEST_ID, id.as_str().to_owned())));
        own.extend(self.traceparent.as_ref().map(|trace| (TRACEPARENT, trace.as_str().to_owned())));
        own.extend(noted.also.map(|subject_id| (ALSO, subject_id.to_string())));
        own.extend(self.refused.map(|count| ("sidekeep.count", count.to_string())));
        own.extend(noted.digest.map(|digest| (DIGEST, digest)));
        own.extend(noted.keyless.then(|| (KEY, "damaged".to_owned())));
        let own = own.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(noted.labels);
        let (kind, id) = noted.resource.unzip();
        // Where no person is known of, the id may be one's: whoever mixes the two up must not leave it in the clear for ever.
        let sought = id.as_deref().or(noted.sought.as_deref()).filter(|_| noted.subject.is_none());
        let mistaken = sought.and_then(|id| UserId::parse(id).ok());
        let given = Append {
            action: Term::parse(self.method).map_err(crate::error::Error::internal)?,
            user_id: self.actor.clone(),
            subject_user_id: noted.subject,
            resource_type: kind.and_then(|kind| Term::parse(kind).ok()),
            resource_id: id.and_then(|id| ResourceId::parse(id).ok()),
            outcome: Some(outcome),
            occurred_at: None,
            ip_address: self.ip_address.clone(),
            user_agent: self.user_agent.clone(),
            labels: None,
            metadata: noted.metadata,
            id: self.id.clone(),
        };
        let mut draft = Draft::new(given, Some(Labels::of(own)))?;
        // Only a call that succeeded makes a person of its actor.
        draft.creates = outcome == Outcome::Success;
        draft.mistaken = mistaken;
        draft.keyless = noted.keyless;
        Ok(draft)
    }
}
