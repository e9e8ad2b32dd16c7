//! Checks of the keyring in the database: it opens with the keys that are given here, and lacks nothing that its backup tells.

use std::sync::Arc;

use super::check::Finding;
use super::patient::{Patient, unanswered};
use crate::app;
use crate::backup::keyring::{Ring, behind, late};
use crate::config::Destination;
use crate::error::Error;
use crate::keyring::{Keyring, StartError};

/// The keys that are given here.
fn given(patient: &Patient) -> Result<Keyring, Finding> {
    app::open_keys(patient.config())
        .map_err(|_| Finding::skipped("the keys cannot be read; see keyring.files"))
}

/// Whether the keys that are given here are the database's.
pub(super) async fn database(patient: Arc<Patient>) -> Finding {
    let keyring = match given(&patient) {
        Ok(keyring) => keyring,
        Err(finding) => return finding,
    };
    let compared = match patient.store() {
        Ok((store, deadline)) => keyring.compare(store, &deadline).await,
        Err(finding) => return finding,
    };
    match compared {
        Ok(true) => Finding::ok("the database is this deployment's, and its keys are here"),
        Ok(false) => Finding::ok("no daemon has used this database yet"),
        Err(StartError::Database(error)) => unanswered(&error),
        Err(error @ StartError::DoesNotOpen(_)) => Finding::fail(
            error.to_string(),
            "restore the row from a backup; without it no head of the log is believed",
        ),
        Err(error) => Finding::fail(error.to_string(), "no daemon serves until then"),
    }
}

/// Whether the keyring's backup has every erasure, and the database every one that the backup has.
pub(super) async fn backup(patient: Arc<Patient>) -> Finding {
    let config = patient.config();
    match &config.keyring.backup {
        None => return Finding::skipped("keyring.backup is not set"),
        // To open it would make it.
        Some(Destination::Directory(path)) if !path.exists() => {
            return Finding::skipped("nothing is there yet; see destination.keyring");
        }
        Some(_) => {}
    }
    let (store, deadline) = match patient.store() {
        Ok(found) => found,
        Err(finding) => return finding,
    };
    match late(store, &deadline).await {
        Err(error) => return unanswered(&error),
        Ok(late) if late.is_broken() => {
            return Finding::fail(late.alarm(), "see job.keyring_backup, destination.keyring and daemon");
        }
        Ok(_) => {}
    }
    let keyring = match given(&patient) {
        Ok(keyring) => keyring,
        Err(finding) => return finding,
    };
    let Ok(keys) = app::public_keys(config) else {
        return Finding::skipped("the signing keys cannot be read; see signing.files");
    };
    let ring = match deadline.run(Ring::find(config, &keyring, &keys)).await {
        Err(_) => return Finding::fail("it did not answer in time", "see destination.keyring"),
        Ok(Err(Error::Conflict { message, .. })) => {
            return Finding::fail(message, "put the right one back, or name another place in keyring.backup");
        }
        Ok(Err(error)) => return Finding::fail(error.to_string(), "see destination.keyring"),
        Ok(Ok(None)) => return Finding::ok("it is not made yet"),
        Ok(Ok(Some(ring))) => ring,
    };
    let compared = store.single(&deadline, "keyring.behind", async |connection| {
        behind(connection, &[], Some(ring.manifest())).await
    });
    match compared.await {
        Err(error) => unanswered(&error),
        Ok(lost) if lost.is_empty() => {
            Finding::ok("it has every erasure, and the database all that it tells")
        }
        Ok(_) => Finding::fail(
            "the database lacks what its keyring's backup tells: it was restored, or failed over to a server that was behind, and \
             daemons serve nothing from it",
            "sidekeep recover shows what is lost; sidekeep recover --accept-gap takes it up",
        ),
    }
}
