//! Checks of this host's files: the configuration, the keys and the other secrets. Says of none what is in it.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::check::Finding;
use super::patient::Patient;
use crate::app;
use crate::config::{self, SecretError, SecretFile, UrlOrFile};

/// What nobody but the owner of a folder may do in it: put another file in the place of a secret.
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

const AS_WHOM: &str = "run doctor as root or as the daemon's user, who may read it";

/// The configuration itself, which was read.
pub(super) fn config(patient: &Patient) -> Finding {
    let sources = &patient.loaded.sources;
    let mode = |path: &Path| std::fs::metadata(path).map(|meta| meta.mode()).unwrap_or_default();
    if let Some(open) = sources.iter().find(|path| mode(path) & 0o002 != 0) {
        return Finding::fail(
            format!("{}: everybody on this host may change it", open.display()),
            format!("chmod o-w {}", open.display()),
        );
    }
    let files: Vec<_> = sources.iter().map(|path| path.display().to_string()).collect();
    let files = if files.is_empty() { "no file, only variables".to_owned() } else { files.join(", ") };
    Finding::ok(format!("{files}; deployment {}", patient.config().deployment.name))
}

/// The key-encryption keys.
pub(super) fn keys(patient: &Patient) -> Finding {
    let files = &patient.config().keyring.key_files;
    if let Some(finding) = files.iter().find_map(|file| unusable("keyring.key_files", file)) {
        return finding;
    }
    match app::open_keys(patient.config()) {
        Ok(keyring) => Finding::ok(format!(
            "{} of {}; keep a copy where no backup is: without it nothing opens again",
            keyring.keks().ids().join(", "),
            names(files)
        )),
        Err(error) => Finding::fail(
            error.to_string(),
            "put the right file back; `sidekeep keyring status` tells which are in use",
        ),
    }
}

/// The keys that sign.
pub(super) fn signing_keys(patient: &Patient) -> Finding {
    let files = &patient.config().signing.key_files;
    if files.is_empty() {
        return Finding::skipped("signing.key_files is empty: this daemon signs and erases nothing");
    }
    if let Some(finding) = files.iter().find_map(|file| unusable("signing.key_files", file)) {
        return finding;
    }
    match app::public_keys(patient.config()) {
        Ok(keys) => Finding::ok(format!("{} of {}", keys.len(), names(files))),
        Err(error) => Finding::fail(
            error.to_string(),
            "put the right file back; `sidekeep signing generate` makes another one",
        ),
    }
}

/// All other files with a secret in them.
pub(super) fn secrets(patient: &Patient) -> Finding {
    let config = patient.config();
    // Where the URL stands itself, there is no file.
    let file = |server: &Option<UrlOrFile>| server.as_ref().and_then(UrlOrFile::file).cloned();
    let all = [
        ("database.url_file", &config.database.url_file),
        ("database.migrate_url_file", &config.database.migrate_url_file),
        ("database.direct_url_file", &config.database.direct_url_file),
        ("database.replica_url", &file(&config.database.replica_url)),
        ("backup.drill_url", &file(&config.backup.drill_url)),
        ("backup.drill_identity_file", &config.backup.drill_identity_file),
        ("s3.credentials_file", &config.s3.credentials_file),
        ("gs.credentials_file", &config.gs.credentials_file),
    ];
    let given = || all.iter().filter_map(|(key, file)| Some((*key, file.as_ref()?)));
    let mut found: Vec<_> = given().filter_map(|(key, file)| unusable(key, file)).collect();
    // What has failed before what could not be seen.
    found.sort_by_key(|finding| finding.advice.is_none());
    if let Some(worst) = found.into_iter().next() {
        return worst;
    }
    let keys: Vec<_> = given().map(|(key, _)| key).collect();
    if keys.is_empty() { Finding::skipped("none is named") } else { Finding::ok(keys.join(", ")) }
}

fn names(files: &[SecretFile]) -> String {
    files.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What is wrong with a secret's file, if anything is.
fn unusable(key: &str, file: &SecretFile) -> Option<Finding> {
    if let Err(error) = config::secret(file) {
        let why = format!("{key}: {error}");
        return Some(match error {
            SecretError::NoCredentials(_) => {
                Finding::skipped(format!("{why} (doctor sees it within that unit alone)"))
            }
            SecretError::Unreadable(_, cause) if cause.kind() == std::io::ErrorKind::PermissionDenied => {
                Finding::skipped(format!("{why}; {AS_WHOM}"))
            }
            SecretError::Exposed { path, mode } => Finding::fail(
                format!("{key}: {}: its mode {mode:04o} lets others read or change it", path.display()),
                format!(
                    "chmod 0640 {}; if others were on this host meanwhile, replace what is in it",
                    path.display()
                ),
            ),
            _ => Finding::fail(why, format!("put the file back, or name another one in {key}")),
        });
    }
    let path = file.path().ok()?;
    let folder = path.parent()?;
    let mode = std::fs::metadata(folder).ok()?.mode();
    (mode & OTHERS_WRITE != 0 && mode & STICKY == 0).then(|| {
        Finding::warn(
            format!(
                "{key}: others may put another file in the place of {} (mode {:04o})",
                path.display(),
                mode & 0o7777
            ),
            format!("chmod go-w {}", folder.display()),
        )
    })
}
