//! Destinations: where objects are kept outside of the database, as URLs. Reaches none of them.

use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::str::FromStr;

use super::values::as_text;

/// What a destination has to look like.
const FORM: &str =
    "must be a URL, as in \"file:///srv/sidekeep/dumps\", \"s3://bucket/prefix\" or \"gs://bucket/prefix\"";

/// Where objects are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A directory, from `file:///…`.
    Directory(PathBuf),
    /// A bucket of Amazon's S3, or of a store that speaks its protocol, from `s3://bucket/prefix`.
    S3(Bucket),
    /// A bucket of Google Cloud Storage, from `gs://bucket/prefix`.
    Gs(Bucket),
}

/// A bucket, and what the names of the objects in it begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// The bucket.
    pub name: String,
    /// What every name begins with, without slashes around it; empty for nothing.
    pub prefix: String,
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains(['?', '#']) {
            return Err(format!("{FORM}; write ? as %3F and # as %23"));
        }
        match text.split_once("://") {
            Some(("file", path)) if path.starts_with('/') => {
                let bytes = percent_decoded(path).filter(|bytes| !bytes.contains(&0)).ok_or(FORM)?;
                Ok(Self::Directory(std::ffi::OsString::from_vec(bytes).into()))
            }
            Some(("s3", rest)) => Bucket::parse(rest).map(Self::S3),
            Some(("gs", rest)) => Bucket::parse(rest).map(Self::Gs),
            _ => Err(FORM.into()),
        }
    }
}

impl Bucket {
    /// Names of buckets are what Amazon and Google both allow; the parts of a prefix are neither empty nor dots.
    fn parse(text: &str) -> Result<Self, String> {
        let (name, prefix) = text.split_once('/').unwrap_or((text, ""));
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        if !(3..=222).contains(&name.len()) || !name.bytes().all(fits) {
            return Err(format!(
                "{FORM}; a bucket's name is 3 to 222 of a-z, 0-9, dot, hyphen and underscore"
            ));
        }
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let sound = |part: &str| {
            !matches!(part, "" | "." | "..")
                && part.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'%')
        };
        if !prefix.is_empty() && !prefix.split('/').all(sound) {
            return Err(format!(
                "{FORM}; a prefix has parts of visible ASCII characters between single slashes"
            ));
        }
        Ok(Self { name: name.to_owned(), prefix: prefix.to_owned() })
    }
}

impl std::fmt::Display for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        write!(f, "{}{slash}{}", self.name, self.prefix)
    }
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = match self {
            Self::S3(bucket) => return write!(f, "s3://{bucket}"),
            Self::Gs(bucket) => return write!(f, "gs://{bucket}"),
            Self::Directory(path) => path,
        };
        f.write_str("file://")?;
        for byte in path.as_os_str().as_bytes() {
            if byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(byte) {
                write!(f, "{}", char::from(*byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

/// The bytes that a URL's path stands for (RFC 3986 §2.1).
fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let pair = [rest.next()?, rest.next()?];
            let digits =
                std::str::from_utf8(&pair).ok().filter(|_| pair.iter().all(u8::is_ascii_hexdigit))?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    Some(bytes)
}

as_text!(Destination, "file:///srv/sidekeep/dumps");

#[cfg(test)]
mod tests {
    use super::Destination;

    #[test]
    fn a_destination_is_a_url() {
        for url in
            ["file:///srv/a", "file:///srv/a%20b%25%C3%A9", "file:///", "s3://b.c-d", "gs://bucket/a/b"]
        {
            let read: Destination = url.parse().unwrap();
            assert_eq!(read.to_string(), url);
        }
        let Destination::Directory(path) = "file:///srv/a%20b".parse().unwrap() else { panic!() };
        assert_eq!(path.to_str(), Some("/srv/a b"));
        let Destination::S3(bucket) = "s3://bucket/a/b/".parse().unwrap() else { panic!() };
        assert_eq!((bucket.name.as_str(), bucket.prefix.as_str()), ("bucket", "a/b"));
    }

    #[test]
    fn what_is_no_destination_is_refused() {
        for wrong in [
            "",
            "/srv/a",
            "file://host/a",
            "file://a",
            "file:///a%2",
            "file:///a%zz",
            "file:///a%00",
            "file:///a?b",
            "http://a/b",
            "s3://",
            "s3://ab",
            "s3://Bucket",
            "s3://bucket//a",
            "gs://bucket/a/../b",
            "gs://bucket/a b",
            "s3://bucket/a?b",
        ] {
            assert!(wrong.parse::<Destination>().is_err(), "{wrong}");
        }
    }
}
