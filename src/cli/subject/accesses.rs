//! `sidekeep subject accesses`: who accessed a person's data, when, what and why.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::client::Answer;
use super::super::{Global, output, socket};
use super::user_id;

/// List who accessed a person's data, when, what and why, the newest first
///
/// Complete for calls that named the person; reads across people, which may have shown the person's data among others', say
/// so. Prints all of it, or with --json one page as `subject.accesses` answers it.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The person's user id; `-` reads it from standard input, where no other user of the host sees it
    #[arg(value_name = "USER")]
    user: String,
    /// Only accesses at this time or later (RFC 3339)
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Only accesses before this time
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// How many a page has at most
    #[arg(long, value_name = "N")]
    limit: Option<u16>,
    /// Where the last page ended
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
    #[command(flatten)]
    socket: socket::Socket,
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Access>,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct Access {
    when: String,
    who: Option<String>,
    uid: Option<u32>,
    what: String,
    purpose: Option<String>,
    outcome: Option<String>,
    across_people: bool,
}

pub(in crate::cli) fn run(args: &Args, global: &Global) -> anyhow::Result<()> {
    let mut params = Map::new();
    params.insert("user_id".into(), user_id(&args.user)?.into());
    let given = [("from", &args.from), ("to", &args.to), ("cursor", &args.cursor)];
    params
        .extend(given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?.into()))));
    params.extend(args.limit.map(|limit| ("limit".to_owned(), limit.into())));
    loop {
        let text = serde_json::value::to_raw_value(&Value::Object(params.clone()))?;
        let result = match args.socket.ask(global, "subject.accesses", &text)? {
            Answer::Error(refusal) => return Err(refusal.into()),
            Answer::Result(result) => result,
        };
        if global.json {
            return Ok(output::line(result.get())?);
        }
        let page: Page = serde_json::from_str(result.get())?;
        for access in &page.items {
            output::line(&access.line())?;
        }
        let Some(cursor) = page.next_cursor else { return Ok(()) };
        params.insert("cursor".into(), cursor.into());
    }
}

impl Access {
    fn line(&self) -> String {
        let uid = self.uid.map(|uid| format!("uid {uid}"));
        let who = match (&self.who, uid) {
            (Some(who), Some(uid)) => format!("{who} ({uid})"),
            (Some(who), None) => who.clone(),
            (None, Some(uid)) => uid,
            (None, None) => "unnamed".to_owned(),
        };
        let mut line = format!("{}  {}  {who}", self.when, self.what);
        let purpose = self.purpose.as_ref().map(|purpose| format!("  for {purpose}"));
        let outcome =
            self.outcome.as_ref().filter(|outcome| *outcome != "success").map(|o| format!("  ({o})"));
        let across = self.across_people.then(|| "  across people".to_owned());
        [purpose, outcome, across].into_iter().flatten().for_each(|part| line.push_str(&part));
        line
    }
}
