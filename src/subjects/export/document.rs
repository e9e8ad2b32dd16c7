//! An export as one signed document, as far as it fits into an answer.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::manifest::Head;
use super::part::{Part, Within, parts};
use super::{Export, Progress, Scope, Sink, Surroundings, enter, find, stream};
use crate::audit::By;
use crate::audit::document::Signed;
use crate::error::{Error, Result};
use crate::keyring::Subject;
use crate::records::Records;
use crate::values::Json;

/// What a document has beside the person's data, at most.
const FRAME: u64 = 4096;

/// An export with its signature.
pub type Document = Signed<Body>;

/// What is signed: `format, deployment, schema, scope, user_id, exported_at, counts, retention, notice`, and a member for each part.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Body(Json);

/// The parts as they came.
struct Gathered {
    parts: Vec<(&'static str, Vec<u8>)>,
    counts: BTreeMap<&'static str, u64>,
    bytes: u64,
    max: u64,
}

impl Sink for Gathered {
    async fn begin(&mut self, part: &Part, items: u64) -> Result<()> {
        self.parts.push((part.name, Vec::new()));
        self.counts.insert(part.name, items);
        Ok(())
    }

    async fn items(&mut self, lines: Vec<u8>) -> Result<()> {
        self.bytes = self.bytes.saturating_add(u64::try_from(lines.len()).unwrap_or(u64::MAX));
        if self.bytes > self.max {
            return Err(too_large(self.max));
        }
        if let Some((_, text)) = self.parts.last_mut() {
            text.extend_from_slice(&lines);
        }
        Ok(())
    }
}

/// Everything that is held about a person, or what the person provided, in one document of at most so many bytes.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::TooLarge`]; [`Error::Tampered`], as nothing is left out; [`Error::Conflict`] in a daemon that
/// has no key to sign with.
pub async fn document(
    records: &Records,
    by: &By,
    asked: &Export,
    around: &Surroundings,
    max: u64,
) -> Result<Document> {
    // Before anything is read: an export that cannot be signed is none.
    records.log().signer()?;
    records.log().drained(&by.deadline).await?;
    let parts = parts(asked.scope);
    let (subject, gathered) = records
        .store()
        .snapshot(&by.deadline, "subject.export", async |connection| {
            let subject = find(connection, records, by, &asked.user_id).await?;
            let mut gathered = Gathered { parts: Vec::new(), counts: BTreeMap::new(), bytes: FRAME, max };
            stream(connection, &subject, &parts, &Progress::default(), &mut gathered).await?;
            Ok((subject, gathered))
        })
        .await?;
    let body = body(&subject, asked.scope, around, &parts, gathered)?;
    if u64::try_from(body.as_str().len()).unwrap_or(u64::MAX).saturating_add(FRAME) > max {
        return Err(too_large(max));
    }
    let document = Signed::sign(records.log(), Body(body))?;
    enter(records, by, asked, &subject).await?;
    Ok(document)
}

fn too_large(max: u64) -> Error {
    Error::too_large_but("what is held about this person", max, "`sidekeep export` writes it to a file")
}

fn body(
    subject: &Subject,
    scope: Scope,
    around: &Surroundings,
    parts: &[Part],
    gathered: Gathered,
) -> Result<Json> {
    let head = Head::new(subject, scope, around, parts, &gathered.counts);
    let mut text = serde_json::to_string(&head).map_err(Error::internal)?;
    text.pop();
    let mut found = HashMap::new();
    for (name, items) in gathered.parts {
        found.insert(name, String::from_utf8(items).map_err(Error::internal)?);
    }
    // An answer is one line.
    let one_line = |items: &str| items.replace('\n', "");
    let notice = serde_json::to_string(&around.notice).map_err(Error::internal)?;
    text.push_str(&format!(",\"notice\":{notice}"));
    for part in parts.iter().filter(|part| part.within.is_none()) {
        let items = found.get(part.name).map(String::as_str).unwrap_or_default();
        let pieces = parts.iter().filter_map(|piece| Some((piece, piece.within?)));
        let mut items = Cow::Borrowed(items);
        for (piece, within) in pieces.filter(|(_, within)| within.part == part.name) {
            let pieces = found.get(piece.name).map(String::as_str).unwrap_or_default();
            items = Cow::Owned(nest(&items, pieces, piece.name, within)?);
        }
        let items = match (part.one, items.is_empty()) {
            (true, true) => "null".to_owned(),
            (true, false) => one_line(&items),
            (false, _) => format!("[{}]", one_line(&items)),
        };
        text.push_str(&format!(",\"{}\":{items}", part.name));
    }
    text.push('}');
    Json::trusted(text).ok_or_else(|| Error::internal("an export that is no JSON"))
}

/// Puts pieces into the items that they are pieces of, as a member with their part's name.
fn nest(items: &str, pieces: &str, name: &str, within: Within) -> Result<String> {
    let mut by_key: HashMap<String, Vec<&str>> = HashMap::new();
    for piece in lines(pieces) {
        by_key.entry(member(piece, within.member)?).or_default().push(piece);
    }
    let nested = lines(items).map(|item| {
        let pieces =
            by_key.get(&member(item, within.key)?).map(|pieces| pieces.join(",")).unwrap_or_default();
        let open = item.strip_suffix('}').ok_or_else(|| Error::internal("an item that is no object"))?;
        Ok(format!("{open},\"{name}\":[{pieces}]}}"))
    });
    Ok(nested.collect::<Result<Vec<_>>>()?.join(",\n"))
}

fn lines(items: &str) -> impl Iterator<Item = &str> {
    items.lines().map(|line| line.strip_suffix(',').unwrap_or(line))
}

fn member(item: &str, name: &str) -> Result<String> {
    #[derive(Deserialize)]
    struct Members<'a>(#[serde(borrow)] HashMap<Cow<'a, str>, &'a RawValue>);
    let members: Members<'_> = serde_json::from_str(item).map_err(Error::internal)?;
    let value = members.0.get(name).ok_or_else(|| Error::internal("an item without its key"))?;
    Ok(value.get().to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Within, nest};

    #[test]
    fn pieces_stand_in_the_item_that_they_are_of() {
        let within = Within { part: "talks", member: "talk", key: "id" };
        let items = "{\"id\":\"a\"},\n{\"id\":\"b\"}";
        let pieces = "{\"talk\":\"b\",\"n\":1},\n{\"talk\":\"b\",\"n\":2}";
        let nested = nest(items, pieces, "said", within).unwrap();
        let value: serde_json::Value = serde_json::from_str(&format!("[{nested}]")).unwrap();
        assert_eq!(value[0]["said"], serde_json::json!([]));
        assert_eq!((&value[1]["said"][0]["n"], &value[1]["said"][1]["n"]), (&1.into(), &2.into()));
        assert_eq!(nest("", "", "said", within).unwrap(), "");
        assert!(nest("{\"no\":1}", pieces, "said", within).is_err());
    }
}
