//! Whole-person work: what is held about somebody, and what the law lets them ask of it.
//!
//! Never lists tables of its own: what belongs to a person is said once, in [`selector`].

pub mod certificate;
mod copies;
pub mod data_map;
pub mod erase;
pub mod export;
pub mod hold;
pub mod request;
pub mod restrict;
pub mod retention;
pub mod selector;
pub mod status;

use crate::error::{Error, Result};
use crate::values::UserId;

/// Refuses a clear text that is the person's user id: it may outlive the person.
///
/// # Errors
/// [`Error::Invalid`], naming the field.
fn impersonal(user_id: &UserId, field: &'static str, text: Option<&str>) -> Result<()> {
    if text == Some(user_id.as_str()) {
        return Err(Error::invalid(field, "is the person's user id, which must not stand here in the clear"));
    }
    Ok(())
}
