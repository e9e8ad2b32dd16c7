//! The keys that the configuration names, read from their files. Whether they are a database's is not known here.

use std::path::PathBuf;

use super::OpenError;
use crate::audit::note::VerifierKey;
use crate::config::{self, Config};
use crate::keyring::{Kek, Keks, Signers, SigningKey};

/// The public keys of those that this deployment signs with, or has signed with before.
///
/// # Errors
/// A file of `signing.key_files` holds no key.
pub fn public_keys(config: &Config) -> Result<Vec<Vec<u8>>, OpenError> {
    Ok(read_signers(config)?.public().map(<[u8]>::to_vec).collect())
}

pub(super) fn read_signers(config: &Config) -> Result<Signers, OpenError> {
    let unread = |source| OpenError::KeyFile {
        key: "signing.key_files",
        source,
        make: "`sidekeep signing generate --out FILE` makes one",
    };
    let read = |file: &config::SecretFile| {
        let text = config::secret(file).map_err(unread)?;
        Ok(SigningKey::parse(PathBuf::from(file.to_string()), &text)?)
    };
    let public =
        |key: &config::PublicKey| VerifierKey::public_of(key.as_str(), config.deployment.name.as_str());
    let lost = |key: &config::PublicKey| public(key).ok_or_else(|| OpenError::LostKey(key.clone()));
    let keys = config.signing.key_files.iter().map(read).collect::<Result<_, OpenError>>()?;
    Ok(Signers::new(keys, config.signing.lost_keys.iter().map(lost).collect::<Result<_, _>>()?))
}

pub(super) fn read_keks(config: &Config) -> Result<Keks, OpenError> {
    let unread = |source| OpenError::KeyFile {
        key: "keyring.key_files",
        source,
        make: "of a new deployment, `sidekeep keyring generate --out FILE` makes one",
    };
    let mut keks = Vec::with_capacity(config.keyring.key_files.len());
    for file in &config.keyring.key_files {
        let path = PathBuf::from(file.to_string());
        keks.push((path.clone(), Kek::parse(path, &config::secret(file).map_err(unread)?)?));
    }
    Ok(Keks::new(keks)?)
}
