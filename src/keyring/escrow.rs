//! A key-encryption key for those who keep a copy of it: encrypted with age, so that only they open it.

use std::io::Write as _;

use age::armor::{ArmoredWriter, Format};

use crate::config::Recipient;
use crate::error::{Error, Result};

/// The text of a key file, encrypted for these recipients in age's armor, which survives paper and e-mail. Any one of them
/// opens it with `age --decrypt`; this program cannot.
///
/// # Errors
/// There is no recipient, or the system's randomness failed.
pub fn for_recipients(text: &str, recipients: &[Recipient]) -> Result<String> {
    let recipients = recipients.iter().map(|recipient| {
        let recipient: &dyn age::Recipient = recipient.age();
        recipient
    });
    let encryptor = age::Encryptor::with_recipients(recipients).map_err(Error::internal)?;
    let mut sealed = Vec::new();
    let armor = ArmoredWriter::wrap_output(&mut sealed, Format::AsciiArmor).map_err(Error::internal)?;
    let mut writer = encryptor.wrap_output(armor).map_err(Error::internal)?;
    writer.write_all(text.as_bytes()).map_err(Error::internal)?;
    let armor = writer.finish().map_err(Error::internal)?;
    armor.finish().map_err(Error::internal)?;
    String::from_utf8(sealed).map_err(Error::internal)
}

#[cfg(test)]
mod tests {
    use super::for_recipients;

    #[test]
    fn each_recipient_opens_it_and_nobody_else() {
        let identities = [(); 3].map(|()| age::x25519::Identity::generate());
        let recipients: Vec<_> =
            identities.iter().take(2).map(|one| one.to_public().to_string().parse().unwrap()).collect();
        let sealed = for_recipients("the key", &recipients).unwrap();
        assert!(sealed.starts_with("-----BEGIN AGE ENCRYPTED FILE-----\n") && !sealed.contains("the key"));
        let opened: Vec<_> =
            identities.iter().map(|identity| age::decrypt(identity, sealed.as_bytes()).ok()).collect();
        assert_eq!(opened, [Some(b"the key".to_vec()), Some(b"the key".to_vec()), None]);
        assert!(for_recipients("the key", &[]).is_err());
    }
}
