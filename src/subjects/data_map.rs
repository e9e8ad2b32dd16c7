//! The record of processing (GDPR Art. 30): which data are held, under whose key, for how long, and what becomes of them.
//!
//! Made from the selector and the comments of the database's own catalogue; holds no data of anybody.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use diesel::sql_types::{Nullable, Text};
use diesel_async::RunQueryDsl;
use serde::Serialize;

use super::selector::{Erasure, Export, Period, TABLES, Table, Under, Whose};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::store::{Deadline, Store};

const COMMENTS: &str = "SELECT c.relname::text AS name, a.attname::text AS part, \
    CASE WHEN a.attname IS NULL THEN obj_description(c.oid) ELSE col_description(c.oid, a.attnum) END AS comment \
    FROM pg_class c CROSS JOIN LATERAL (SELECT NULL::name AS attname, 0::smallint AS attnum UNION ALL \
        SELECT attname, attnum FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) a \
    WHERE c.relnamespace = 'sidekeep'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition";

#[derive(diesel::QueryableByName)]
struct Comment {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Nullable<Text>)]
    part: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    comment: Option<String>,
}

/// Everything that is held, by table.
#[derive(Clone, Debug, Serialize)]
pub struct DataMap {
    /// The deployment.
    pub deployment: String,
    /// Each table.
    pub tables: Vec<Mapped>,
}

/// What is held in a table.
#[derive(Clone, Debug, Serialize)]
pub struct Mapped {
    /// Its name.
    pub table: &'static str,
    /// What it is for.
    pub purpose: String,
    /// Whose data it holds.
    pub whose: &'static str,
    /// How long a row is kept.
    pub period: String,
    /// What an erasure does to a person's rows.
    pub erasure: String,
    /// In which exports its rows are.
    pub export: String,
    /// Its columns.
    pub columns: Vec<Column>,
}

/// What is held in a column.
#[derive(Clone, Debug, Serialize)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// `clear`, `sealed` or `identity`.
    pub class: &'static str,
    /// What stands in it.
    pub holds: String,
    /// Whose key opens it, where it is sealed.
    pub opened_by: Option<&'static str>,
}

/// Reads the comments, and puts them beside what the selector says.
///
/// # Errors
/// The store's; an internal error where a table of the selector is not there.
pub async fn data_map(store: &Store, config: &Config, deadline: &Deadline) -> Result<DataMap> {
    let settings = serde_json::to_value(config).map_err(Error::internal)?;
    let comments: Vec<Comment> = store
        .single(deadline, "data_map", async |connection| {
            Ok(diesel::sql_query(COMMENTS).load(connection).await?)
        })
        .await?;
    let comments: BTreeMap<(String, Option<String>), String> =
        comments.into_iter().filter_map(|found| Some(((found.name, found.part), found.comment?))).collect();
    let tables = TABLES.iter().map(|table| mapped(table, &comments, &settings)).collect::<Result<_>>()?;
    Ok(DataMap { deployment: config.deployment.name.as_str().to_owned(), tables })
}

fn mapped(
    table: &Table,
    comments: &BTreeMap<(String, Option<String>), String>,
    settings: &serde_json::Value,
) -> Result<Mapped> {
    let comment = |column: Option<&str>| {
        let key = (table.name.to_owned(), column.map(str::to_owned));
        let missing = || Error::internal(format!("{} has no comment, or is not there", table.name));
        comments.get(&key).cloned().ok_or_else(missing)
    };
    let column = |(name, class)| {
        let said = comment(Some(name))?;
        let holds = said.split_once(": ").map_or(said.as_str(), |(_, holds)| holds).to_owned();
        let sealed = table.sealed.iter().find(|sealed| sealed.column == name);
        Ok(Column { name, class, holds, opened_by: sealed.map(|sealed| opened_by(sealed.under)) })
    };
    Ok(Mapped {
        table: table.name,
        purpose: comment(None)?,
        whose: match table.whose {
            Whose::Subject | Whose::Through { .. } => "one person",
            Whose::Named => "the person who acted, and the person whose data it was",
            Whose::Nobody => "nobody",
        },
        period: kept(table.period, settings),
        erasure: match table.erasure {
            Erasure::Deleted | Erasure::Cascades => "deleted".into(),
            Erasure::MovedTo(evidence) => {
                format!("deleted; with erasure.consents = \"keep\" the clear columns move to {evidence}")
            }
            Erasure::Outlives => {
                "stays, under a number that leads to nobody; what is sealed opens no more".into()
            }
            Erasure::Nothing => "nothing of the person is in it".into(),
        },
        export: match table.export {
            Export::Provided(part) => format!("access and portability, as {part}"),
            Export::Access(part) => format!("access, as {part}"),
            Export::Never => "none".into(),
        },
        columns: table.columns().map(column).collect::<Result<_>>()?,
    })
}

/// How long, from when, and what says so.
fn kept(period: Period, settings: &serde_json::Value) -> String {
    let set = period.key().map(|key| {
        let value = settings.pointer(&format!("/{}", key.replace('.', "/"))).and_then(|value| value.as_str());
        value.map_or_else(|| format!("not at all ({key} is not set)"), |value| format!("{value} ({key})"))
    });
    match (set, period.from()) {
        (Some(set), Some(from)) => format!("{set} from {from}"),
        (Some(set), None) => set,
        (None, from) => from.unwrap_or("no period of its own").to_owned(),
    }
}

fn opened_by(under: Under) -> &'static str {
    match under {
        Under::Person => "the person's key",
        Under::Actor => "the actor's key, else the subject's, else the deployment's",
        Under::Subject => "the subject's key, else the actor's, else the deployment's",
        Under::Deployment => "the deployment's key",
    }
}

impl DataMap {
    /// As Markdown, personal tables first.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "# What {} holds\n\nA record of processing (GDPR Art. 30), from the database's own comments. Columns are *sealed* \
             (encrypted, with the key that is named), *identity* (they tell who somebody is) or *clear*.\n",
            self.deployment
        );
        for table in &self.tables {
            // Writing to a string does not fail.
            let _ = write!(
                text,
                "\n## {}\n\n{}\n\n- Whose: {}\n- Kept: {}\n- Erasure: {}\n- Export: {}\n\n| column | class | holds | opened by |\n|---|---|---|---|\n",
                table.table, table.purpose, table.whose, table.period, table.erasure, table.export
            );
            for column in &table.columns {
                let cell = |text: &str| text.replace('|', "\\|");
                let (holds, by) = (cell(&column.holds), column.opened_by.unwrap_or_default());
                let _ = writeln!(text, "| {} | {} | {holds} | {by} |", column.name, column.class);
            }
        }
        text
    }
}
