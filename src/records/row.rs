//! One row under one person's key: seals and opens its columns in their places.

use crate::error::{Error, Result};
use crate::keyring::{Place, Subject};
use crate::values::Json;

/// A row of a table of records.
pub(super) struct Row<'a> {
    subject: &'a Subject,
    table: &'static str,
    key: String,
}

impl<'a> Row<'a> {
    pub(super) fn new(subject: &'a Subject, table: &'static str, key: impl ToString) -> Self {
        Self { subject, table, key: key.to_string() }
    }

    fn place(&self, column: &'static str) -> Place<'_> {
        Place { table: self.table, column, row: &self.key }
    }

    pub(super) fn seal(&self, column: &'static str, plain: &str) -> Result<Vec<u8>> {
        self.subject.key.seal(self.place(column), plain.as_bytes())
    }

    pub(super) fn seal_some(&self, column: &'static str, plain: Option<&str>) -> Result<Option<Vec<u8>>> {
        plain.map(|plain| self.seal(column, plain)).transpose()
    }

    pub(super) fn open(&self, column: &'static str, sealed: &[u8]) -> Result<String> {
        self.subject.key.open_text(self.place(column), sealed)
    }

    pub(super) fn open_some(&self, column: &'static str, sealed: Option<&[u8]>) -> Result<Option<String>> {
        sealed.map(|sealed| self.open(column, sealed)).transpose()
    }

    pub(super) fn open_json(&self, column: &'static str, sealed: &[u8]) -> Result<Json> {
        // What opens was sealed as checked JSON.
        Json::trusted(self.open(column, sealed)?)
            .ok_or_else(|| Error::Tampered { at: format!("{}.{column}", self.table) })
    }

    pub(super) fn open_some_json(&self, column: &'static str, sealed: Option<&[u8]>) -> Result<Option<Json>> {
        sealed.map(|sealed| self.open_json(column, sealed)).transpose()
    }
}
