//! Durations, file modes, names and secret files as they are written in the configuration.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// A length of time, as in `"30s"` or `"90d"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period(Duration);

impl Period {
    /// A Julian year, as humantime has it.
    pub const YEAR: Self = Self::seconds(31_557_600);

    /// That many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// That many milliseconds.
    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// So many times as long.
    pub const fn times(self, count: u32) -> Self {
        Self(self.0.saturating_mul(count))
    }

    /// As the standard library's type.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|_| "must be a length of time, as in \"500ms\", \"30s\", \"15m\" or \"90d\"".into())
    }
}

impl std::fmt::Display for Period {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // humantime would write 90 days as two of its months and some hours.
        const SECOND: u128 = 1_000_000_000;
        const UNITS: [(u128, &str); 8] = [
            (31_557_600 * SECOND, "y"),
            (86_400 * SECOND, "d"),
            (3600 * SECOND, "h"),
            (60 * SECOND, "m"),
            (SECOND, "s"),
            (1_000_000, "ms"),
            (1000, "us"),
            (1, "ns"),
        ];
        let nanos = self.0.as_nanos();
        let fits = |(unit, _): &(u128, &str)| nanos >= *unit && nanos.is_multiple_of(*unit);
        let (unit, name) = UNITS.into_iter().find(fits).unwrap_or((SECOND, "s"));
        write!(f, "{}{name}", nanos / unit)
    }
}

/// A number of bytes, as in `"16MiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(bytesize::ByteSize);

impl Size {
    /// That many kibibytes.
    pub const fn kib(kib: u64) -> Self {
        Self(bytesize::ByteSize::kib(kib))
    }

    /// That many mebibytes.
    pub const fn mib(mib: u64) -> Self {
        Self(bytesize::ByteSize::mib(mib))
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0.as_u64()
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| "must be a size, as in \"64KiB\" or \"4MiB\"".into())
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = self.bytes();
        let (unit, name) = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
            .into_iter()
            .find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit))
            .unwrap_or((1, "B"));
        write!(f, "{}{name}", bytes / unit)
    }
}

/// The name of this installation: `[a-z0-9.-]{1,64}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeploymentName(String);

impl DeploymentName {
    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for DeploymentName {
    fn default() -> Self {
        Self("sidekeep".into())
    }
}

impl FromStr for DeploymentName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-');
        fits.then(|| Self(text.into()))
            .ok_or_else(|| "must be 1 to 64 of a-z, 0-9, full stop and hyphen".into())
    }
}

impl std::fmt::Display for DeploymentName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Permission bits, as in `"0660"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMode(pub u32);

impl FromStr for FileMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        u32::from_str_radix(text, 8)
            .ok()
            .filter(|mode| *mode <= 0o777 && text.bytes().all(|b| b.is_ascii_digit()))
            .map(Self)
            .ok_or_else(|| "must be octal permission bits, as in \"0660\"".into())
    }
}

impl std::fmt::Display for FileMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// Where a secret lies: a file, or `credential:NAME` for one that systemd hands over. Read when it is used, never kept here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFile(String);

impl SecretFile {
    /// The secret at this path.
    pub fn new(path: impl Into<String>) -> Self {
        Self(path.into())
    }

    /// Whether systemd hands it over.
    pub fn is_credential(&self) -> bool {
        self.0.starts_with("credential:")
    }

    /// The path in the file system, where a credential is one of `$CREDENTIALS_DIRECTORY`.
    ///
    /// # Errors
    /// Says that there is no credentials directory.
    pub fn path(&self) -> Result<PathBuf, String> {
        match self.0.strip_prefix("credential:") {
            None => Ok(PathBuf::from(&self.0)),
            Some(name) => super::environment::credentials_directory()
                .map(|dir| Path::new(&dir).join(name))
                .ok_or_else(|| {
                    format!(
                        "{}: systemd gave no credentials; add LoadCredential={name}:PATH to the unit",
                        self.0
                    )
                }),
        }
    }
}

impl FromStr for SecretFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("credential:") {
            Some(name) if name.is_empty() || name.contains('/') => {
                Err("must be credential:NAME, where NAME is that of LoadCredential=".into())
            }
            None if text.is_empty() => Err("must be a path, or credential:NAME".into()),
            _ => Ok(Self(text.into())),
        }
    }
}

/// Where a server is: a URL without a password, or the file that holds one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UrlOrFile {
    /// The URL itself.
    Url(String),
    /// The file, or systemd's credential.
    File(SecretFile),
}

impl UrlOrFile {
    /// The file, where it is one.
    pub fn file(&self) -> Option<&SecretFile> {
        match self {
            Self::Url(_) => None,
            Self::File(file) => Some(file),
        }
    }
}

impl FromStr for UrlOrFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains("://") { Ok(Self::Url(text.into())) } else { text.parse().map(Self::File) }
    }
}

impl std::fmt::Display for UrlOrFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Url(url) => f.write_str(url),
            Self::File(file) => file.fmt(f),
        }
    }
}

impl std::fmt::Display for SecretFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads an address with a port.
pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| {
        text.parse()
            .map_err(|_| de::Error::custom("must be an IP address and a port, as in \"127.0.0.1:9464\""))
    })
    .transpose()
}

/// Text in the file, a checked value in memory.
macro_rules! as_text {
    ($name:ident, $example:literal) => {
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "examples": [$example] })
            }
        }
    };
}

pub(super) use as_text;

as_text!(Period, "30s");
as_text!(Size, "4MiB");
as_text!(DeploymentName, "sidekeep");
as_text!(FileMode, "0660");
as_text!(SecretFile, "/etc/sidekeep/keys/kek");
as_text!(UrlOrFile, "/etc/sidekeep/drill-url");
