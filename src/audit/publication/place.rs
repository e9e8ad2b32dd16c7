//! Where objects are kept: each kind can put one that is not there yet, get one, and say which is the newest.
//!
//! Another kind is one more variant with these three. Knows nothing of what is in an object.

use std::time::Duration;

use super::bucket::Bucket;
use super::command::Command;
use super::directory::Directory;
use crate::config::{Config, Destination};

/// How long one access may take: whoever appends waits for the first.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// The largest object that is read.
pub(super) const LARGEST: u64 = 64 << 20;

/// A destination.
#[derive(Debug)]
pub(super) enum Place {
    /// Files in a directory.
    Directory(Directory),
    /// Objects in S3 or in Google Cloud Storage.
    Bucket(Bucket),
    /// Whatever a program does.
    Command(Command),
}

/// Why it did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// There is an object of that name already.
    Exists,
    /// It cannot be reached, or not read or written; in words for an operator.
    Away(String),
}

impl Place {
    /// The destination of the configuration, if there is one.
    pub(super) fn of(config: &Config) -> Option<Self> {
        let audit = &config.audit;
        match (&audit.publish, audit.publish_command.split_first()) {
            (Some(destination @ Destination::Directory(path)), _) => {
                Some(Self::Directory(Directory::new(path.clone(), destination.to_string())))
            }
            (Some(destination @ (Destination::S3(_) | Destination::Gs(_))), _) => {
                Some(Self::Bucket(Bucket::new(destination, config)))
            }
            (None, Some((program, arguments))) => Some(Self::Command(Command::new(program, arguments))),
            (None, None) => None,
        }
    }

    /// What the database knows it by.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Directory(directory) => directory.name(),
            Self::Bucket(bucket) => bucket.name(),
            Self::Command(command) => command.name(),
        }
    }

    /// The size of the newest object.
    pub(super) async fn newest(&self) -> Result<Option<u64>, Trouble> {
        match self {
            Self::Directory(directory) => directory.newest().await,
            Self::Bucket(bucket) => bucket.newest().await,
            Self::Command(command) => command.newest().await,
        }
    }

    /// The bytes of an object.
    pub(super) async fn get(&self, size: u64) -> Result<Vec<u8>, Trouble> {
        match self {
            Self::Directory(directory) => directory.get(size).await,
            Self::Bucket(bucket) => bucket.get(size).await,
            Self::Command(command) => command.get(size).await,
        }
    }

    /// Writes an object, durably, where there is none of its name. `first` says that nothing was ever published here.
    pub(super) async fn put(&self, size: u64, bytes: Vec<u8>, first: bool) -> Result<(), Trouble> {
        match self {
            Self::Directory(directory) => directory.put(size, bytes, first).await,
            Self::Bucket(bucket) => bucket.put(size, bytes).await,
            Self::Command(command) => command.put(size, bytes).await,
        }
    }
}
