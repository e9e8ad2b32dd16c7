//! Whose signatures count: those of the configuration's keys, and those of the keys that they followed, as entries of the log
//! say that both have signed; that of a key that is lost up to where its loss was declared. Signs nothing.

use diesel::prelude::{ExpressionMethods, QueryDsl};
use diesel_async::RunQueryDsl;

use crate::audit::entry::Labels;
use crate::audit::log::Log;
use crate::audit::note::{self, VerifierKey};
use crate::audit::succession::{self, ACTION};
use crate::error::Result;
use crate::store::Deadline;
use crate::store::schema::audit_logs;

/// So many keys are followed at the most.
const KEYS: usize = 1000;

/// Keys, and up to which size of the heads log each is trusted.
#[derive(Debug)]
pub(super) struct Trust(Vec<(VerifierKey, u64)>);

impl Trust {
    /// The keys of this log: a key that was replaced is trusted for what came before its successor's first checkpoint.
    pub(super) async fn of(log: &Log, deadline: &Deadline) -> Result<Self> {
        let deployment = log.keyring.deployment();
        let origin = note::origin(deployment);
        let mut keys: Vec<_> =
            log.signers.public().map(|key| (VerifierKey::new(deployment, key), u64::MAX)).collect();
        let lost = log.signers.lost().iter().map(|key| VerifierKey::new(deployment, key));
        let lost: Vec<_> = lost.collect();
        let mut known = 0;
        while let Some(new) = keys.get(known..).filter(|new| !new.is_empty() && known < KEYS) {
            let ids: Vec<String> = new.iter().map(|(key, _)| key.id_hex()).collect();
            known = keys.len();
            for labels in entered(log, &ids, deadline).await? {
                let Some(change) = succession::read(&origin, &labels) else { continue };
                let Some((_, until)) = keys.iter().find(|(key, _)| *key == change.new) else { continue };
                let until = change.size.min(*until);
                match keys.iter_mut().find(|(key, _)| *key == change.old) {
                    // Whoever finds a key that was lost signs nothing with it.
                    Some((key, trusted)) if lost.contains(key) => *trusted = until.min(*trusted),
                    None if !change.declared => keys.push((change.old, until)),
                    _ => {}
                }
            }
        }
        Ok(Self(keys))
    }

    /// Whether there is no key at all.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them has signed this size and root.
    pub(super) fn covers(&self, text: &str, size: i64, root: &[u8]) -> bool {
        self.0.iter().any(|(key, until)| {
            note::open(text, std::slice::from_ref(key)).is_some_and(|opened| {
                opened.size <= *until
                    && i64::try_from(opened.size) == Ok(size)
                    && opened.root.bytes().as_slice() == root
            })
        })
    }
}

/// What the log says of whom these keys followed.
async fn entered(log: &Log, ids: &[String], deadline: &Deadline) -> Result<Vec<Labels>> {
    let labels: Vec<Option<serde_json::Value>> = log
        .store
        .single(deadline, "audit.verify.trust", async |connection| {
            let entries = audit_logs::table.filter(audit_logs::resource_id.eq_any(ids));
            let changes = entries.filter(audit_logs::action.eq(ACTION)).order(audit_logs::recorded_at);
            Ok(changes.select(audit_logs::labels).load(connection).await?)
        })
        .await?;
    Ok(labels.iter().flatten().filter_map(Labels::stored).collect())
}
