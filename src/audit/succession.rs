//! Another signing key: the entry that says so, signed by the key that signed last and by the one that signs from now on.
//!
//! Whoever trusts the old key finds the new one by it. Pure: what is staged is staged with the first checkpoint of the new key.

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

/// The entry for a change from one key to another, with the checkpoint of this size.
pub(super) fn entry(deployment: &str, size: u64, (old, new): (&SigningKey, &SigningKey)) -> Entry {
    let keys = [old, new].map(|key| VerifierKey::new(deployment, key.public()));
    let [old_key, new_key] = keys.each_ref().map(VerifierKey::encode);
    let size = size.to_string();
    let text = text(&super::note::origin(deployment), &size, &old_key, &new_key);
    let [old, new] = [old, new].map(|key| STANDARD.encode(key.sign(text.as_bytes())));
    let ([old_label, new_label], [by_old, by_new]) = (KEYS, SIGNATURES);
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
        labels: Some(Labels::own([
            (SIZE, size),
            (old_label, old_key),
            (new_label, new_key),
            (by_old, old),
            (by_new, new),
        ])),
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
}

/// The change that these labels tell, where both keys that they name have signed it.
pub fn read(origin: &str, labels: &Labels) -> Option<Succession> {
    let label = |name| labels.iter().find(|(key, _)| *key == name).map(|(_, value)| value);
    let ([Some(old), Some(new)], size) = (KEYS.map(label), label(SIZE)?) else { return None };
    let text = text(origin, size, old, new);
    let signed = |key, signature| {
        let key = VerifierKey::decode(key).filter(|key| key.name() == origin)?;
        let signature = STANDARD.decode(label(signature)?).ok()?;
        key.verifies(text.as_bytes(), &signature).then_some(key)
    };
    let [by_old, by_new] = SIGNATURES;
    Some(Succession { old: signed(old, by_old)?, new: signed(new, by_new)?, size: size.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::{Labels, Succession, entry, read};
    use crate::audit::note::VerifierKey;
    use crate::keyring::SigningKey;

    #[test]
    fn a_change_of_keys_is_signed_by_both() {
        let key = || SigningKey::parse("key".into(), &SigningKey::generate().unwrap()).unwrap();
        let (old, new, other) = (key(), key(), key());
        let labels = entry("test", 7, (&old, &new)).labels.unwrap();
        let named = |key: &SigningKey| VerifierKey::new("test", key.public());
        let change = Succession { old: named(&old), new: named(&new), size: 7 };
        assert_eq!(read("sidekeep/test", &labels), Some(change));
        assert_eq!(read("sidekeep/other", &labels), None);
        let forged = entry("test", 7, (&other, &new)).labels.unwrap();
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
}
