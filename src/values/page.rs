//! Pages by keyset: a cursor says where the last one ended, a page ends before it is too large to answer.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::error::{Error, Result};

/// One page of a list.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Page<T> {
    /// The items, in the method's order.
    pub items: Vec<T>,
    /// What to send for the next page; null when there is none.
    pub next_cursor: Option<String>,
}

impl<T> Page<T> {
    /// A page without items.
    pub fn empty() -> Self {
        Self { items: Vec::new(), next_cursor: None }
    }
}

/// How many items a page has at most: 1 to 1000, 100 when it is not said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(u16);

impl Default for Limit {
    fn default() -> Self {
        Self(100)
    }
}

impl Limit {
    /// As a number of items.
    pub fn items(self) -> usize {
        usize::from(self.0)
    }

    /// One more, to know whether there is a next page.
    pub fn and_one(self) -> i64 {
        i64::from(self.0).saturating_add(1)
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Option::<u16>::deserialize(deserializer) {
            Ok(None) => Ok(Self::default()),
            Ok(Some(limit @ 1..=1000)) => Ok(Self(limit)),
            _ => Err(de::Error::custom("must be a whole number from 1 to 1000")),
        }
    }
}

impl JsonSchema for Limit {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Limit".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["integer", "null"], "minimum": 1, "maximum": 1000, "default": 100 })
    }
}

/// The key of a page's last item, as text that a caller does not look into. It is tied to what the list is `of`: the method,
/// and the parameters that stay the same from page to page.
///
/// # Errors
/// [`Error::Internal`] where these are no JSON.
pub fn encode<K: Serialize>(of: &impl Serialize, key: &K) -> Result<String> {
    let bytes = serde_json::to_vec(&(mark(of)?, key)).map_err(Error::internal)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// The key behind a cursor of this list.
///
/// # Errors
/// [`Error::Invalid`], naming `cursor`: it is none, or another list's.
pub fn decode<K: DeserializeOwned>(of: &impl Serialize, cursor: Option<&str>) -> Result<Option<K>> {
    let Some(cursor) = cursor else { return Ok(None) };
    let mark = mark(of)?;
    let read = |cursor: &str| {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (found, key): (u32, K) = serde_json::from_slice(&bytes).ok()?;
        (found == mark).then_some(key)
    };
    read(cursor).map(Some).ok_or_else(|| {
        let message = "must be the next_cursor of an answer of this method to the same parameters";
        Error::invalid("cursor", message)
    })
}

/// 32 bits of a digest: enough to notice a mistake, and too few to lead back to a person who is named in it.
fn mark(of: &impl Serialize) -> Result<u32> {
    let of = serde_json::to_vec(of).map_err(Error::internal)?;
    let first = digest(&SHA256, &of).as_ref().first_chunk().copied();
    Ok(u32::from_be_bytes(first.unwrap_or_default()))
}

/// The bytes of an answer with all of these items.
pub fn total(sizes: &[i64]) -> u64 {
    sizes.iter().fold(0, |total, size| total.saturating_add(item_bytes(*size)))
}

/// Beside what is sealed, an item has its clear columns and the names of its members.
fn item_bytes(sealed: i64) -> u64 {
    u64::try_from(sealed).unwrap_or(u64::MAX).saturating_add(4096)
}

/// How many of these items, in order, fit on a page: at least one, if there is any.
pub fn fit(sizes: &[i64], limit: Limit, max_bytes: u64) -> usize {
    let mut total = 0_u64;
    let fitting = sizes.iter().take(limit.items()).take_while(|size| {
        total = total.saturating_add(item_bytes(**size));
        total <= max_bytes
    });
    fitting.count().max(usize::from(!sizes.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::{Limit, decode, encode, fit};

    #[test]
    fn a_cursor_is_read_back_and_nothing_else_is() {
        let of = ("consent.history", "u", None::<&str>);
        let cursor = encode(&of, &(12_i64, "id")).unwrap();
        assert_eq!(decode::<(i64, String)>(&of, Some(&cursor)).unwrap(), Some((12, "id".to_owned())));
        assert_eq!(decode::<i64>(&of, None).unwrap(), None);
        for bad in ["", "x", "!!", "MTI"] {
            assert!(decode::<(i64, String)>(&of, Some(bad)).is_err(), "{bad}");
        }
        for other in [
            ("conversation.list", "u", None),
            ("consent.history", "v", None),
            ("consent.history", "u", Some("t")),
        ] {
            assert!(decode::<(i64, String)>(&other, Some(&cursor)).is_err(), "{other:?}");
        }
    }

    #[test]
    fn a_page_has_at_least_one_item_and_ends_in_time() {
        let limit = Limit(3);
        assert_eq!(fit(&[], limit, 10_000), 0);
        assert_eq!(fit(&[1_000_000], limit, 10_000), 1);
        assert_eq!(fit(&[10, 10, 10, 10], limit, 100_000), 3);
        assert_eq!(fit(&[4000, 4000, 4000], limit, 17_000), 2);
    }
}
