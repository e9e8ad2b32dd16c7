//! Who may open what is encrypted with age (age-encryption.org/v1): public keys, as `age-keygen` prints them.

use std::str::FromStr;

use super::values::as_text;

/// A public key, as in `age1…`.
#[derive(Clone)]
pub struct Recipient(age::x25519::Recipient);

impl Recipient {
    /// As age knows it.
    pub fn age(&self) -> &age::x25519::Recipient {
        &self.0
    }
}

impl FromStr for Recipient {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint = if text.starts_with("AGE-SECRET-KEY") {
            "is a private key, which must not be here; name its public key, as `age-keygen -y` prints it"
        } else {
            "must be a public key of age, as in \"age1…\" with 62 characters"
        };
        text.parse().map(Self).map_err(|_| hint.to_owned())
    }
}

impl std::fmt::Display for Recipient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::fmt::Debug for Recipient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recipient({self})")
    }
}

impl PartialEq for Recipient {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

as_text!(Recipient, "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p");

#[cfg(test)]
mod tests {
    use super::Recipient;

    #[test]
    fn a_public_key_is_taken_and_nothing_else() {
        let identity = age::x25519::Identity::generate();
        let public = identity.to_public().to_string();
        assert_eq!(public.parse::<Recipient>().unwrap().to_string(), public);
        for wrong in ["", "age1", "ssh-ed25519 AAAA", &public.replace("age1", "age2")] {
            assert!(wrong.parse::<Recipient>().unwrap_err().contains("public key of age"), "{wrong}");
        }
        use age::secrecy::ExposeSecret as _;
        let private = identity.to_string();
        let error = private.expose_secret().parse::<Recipient>().unwrap_err();
        assert!(error.contains("private key") && !error.contains(private.expose_secret()), "{error}");
    }
}
