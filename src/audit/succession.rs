//! Another signing key: the entry that says so, signed by the key that signed last and by the one that signs from now on.
//!
//! Whoever trusts the old key finds the new one by it. Where the old one is lost the new one alone declares the change: whoever
//! trusts the old one has to be told otherwise. Pure: what is staged is staged with the first checkpoint of the new key.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::entry::{Entry, FORMAT, Labels};
use super::note::VerifierKey;
use crate::keyring::SigningKey;
use crate::values::RecordId;

/// The action of such an entry.
pub const ACTION: &str = "log.signing_key";
/// What kind of thing it is about.
const KIND: &str = "signing_key";
const SIZE: &str = "sidekeep.heads_size";
const KEYS: [&str; 2] = ["sidekeep.old_key", "sidekeep.new_key"];
const SIGNATURES: [&str; 2] = ["sidekeep.old_signature", "sidekeep.new_signature"];

/// What both keys sign.
fn text(origin: &str, size: &str, old: &str, new: &str) -> String {
    format!("sidekeep signing key\n{origin}\n{size}\n{old}\n{new}\n")
}

/// The key that signed last.
#[derive(Clone, Copy, Debug)]
pub(super) enum Old<'a> {
    /// It signs that another follows.
    Signs(&'a SigningKey),
    /// Its public half is left.
    Lost(&'a [u8]),
}

/// The entry for a change from one key to another, with the checkpoint of this size.
pub(super) fn entry(deployment: &str, size: u64, (old, new): (Old<'_>, &SigningKey)) -> Entry {
    let public = match old {
        Old::Signs(key) => key.public(),
        Old::Lost(public) => public,
    };
    let keys = [public, new.public()].map(|key| VerifierKey::new(deployment, key));
    let [old_key, new_key] = keys.each_ref().map(VerifierKey::encode);
    let size = size.to_string();
    let text = text(&super::note::origin(deployment), &size, &old_key, &new_key);
    let sign = |key: &SigningKey| STANDARD.encode(key.sign(text.as_bytes()));
    let ([old_label, new_label], [by_old, by_new]) = (KEYS, SIGNATURES);
    let by_old = match old {
        Old::Signs(key) => Some((by_old, sign(key))),
        Old::Lost(_) => None,
    };
    let labels = [(SIZE, size), (old_label, old_key), (new_label, new_key), (by_new, sign(new))];
    let [_, signs] = &keys;
    Entry {
        stream: 0,
        position: 0,
        recorded_at: chrono::DateTime::UNIX_EPOCH,
        format: FORMAT,
        id: RecordId::generate().into_string(),
        actor_id: None,
        subject_id: None,
        action: ACTION.to_owned(),
        resource_type: Some(KIND.to_owned()),
        resource_id: Some(signs.id_hex()),
        outcome: Some("success".to_owned()),
        occurred_at: None,
        labels: Some(Labels::own(labels.into_iter().chain(by_old))),
        client_sealed: None,
        metadata_sealed: None,
    }
}

/// A change of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Succession {
    /// The key that signed last.
    pub old: VerifierKey,
    /// The key that signs from now on.
    pub new: VerifierKey,
    /// The size of the heads log at the new key's first checkpoint.
    pub size: u64,
    /// Whether the new key alone says so: nobody trusts a key for that.
    pub declared: bool,
}

/// The change that these labels tell, where the keys that they name have signed it: both, or the new one alone where no signature of
/// the old one is there.
pub fn read(origin: &str, labels: &Labels) -> Option<Succession> {
    let label = |name| labels.iter().find(|(key, _)| *key == name).map(|(_, value)| value);
    let ([Some(old), Some(new)], size) = (KEYS.map(label), label(SIZE)?) else { return None };
    let text = text(origin, size, old, new);
    let key = |key| VerifierKey::decode(key).filter(|key| key.name() == origin);
    let signed = |key: &VerifierKey, signature: &str| {
        STANDARD.decode(signature).is_ok_and(|signature| key.verifies(text.as_bytes(), &signature))
    };
    let (old, new, [by_old, by_new]) = (key(old)?, key(new)?, SIGNATURES);
    let by_old = label(by_old);
    let both = by_old.is_none_or(|signature| signed(&old, signature)) && signed(&new, label(by_new)?);
    both.then_some(Succession { old, new, size: size.parse().ok()?, declared: by_old.is_none() })
}

#[cfg(test)]
mod tests {
    use super::{Labels, Old, Succession, entry, read};
    use crate::audit::note::VerifierKey;
    use crate::keyring::SigningKey;

    #[test]
    fn a_change_of_keys_is_signed_by_both() {
        let key = || SigningKey::parse("key".into(), &SigningKey::generate().unwrap()).unwrap();
        let (old, new, other) = (key(), key(), key());
        let labels = entry("test", 7, (Old::Signs(&old), &new)).labels.unwrap();
        let named = |key: &SigningKey| VerifierKey::new("test", key.public());
        let change = Succession { old: named(&old), new: named(&new), size: 7, declared: false };
        assert_eq!(read("sidekeep/test", &labels), Some(change));
        assert_eq!(read("sidekeep/other", &labels), None);
        let forged = entry("test", 7, (Old::Signs(&other), &new)).labels.unwrap();
        for name in
            ["sidekeep.old_signature", "sidekeep.new_signature", "sidekeep.old_key", "sidekeep.heads_size"]
        {
            let value = |key: &str| forged.iter().find(|(k, _)| *k == key).map(|(_, v)| v.to_owned());
            let mixed = labels.iter().map(|(k, v)| {
                let v = if k != name {
                    v.to_owned()
                } else if k == "sidekeep.heads_size" {
                    "8".into()
                } else {
                    value(k).unwrap()
                };
                (k.to_owned(), v)
            });
            assert_eq!(read("sidekeep/test", &Labels::of(mixed)), None, "{name}");
        }
    }

    #[test]
    fn a_change_from_a_key_that_is_lost_is_declared_by_the_new_one_alone() {
        let key = || SigningKey::parse("key".into(), &SigningKey::generate().unwrap()).unwrap();
        let (old, new) = (key(), key());
        let labels = entry("test", 7, (Old::Lost(old.public()), &new)).labels.unwrap();
        let change = read("sidekeep/test", &labels).unwrap();
        assert!(change.declared && change.size == 7, "{change:?}");
        let unsigned = labels.iter().filter(|(name, _)| !name.ends_with("signature"));
        let unsigned = Labels::of(unsigned.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(read("sidekeep/test", &unsigned), None);
    }
}
