//! An export as a ZIP file: JSON for programs, pages for people, a signed manifest over both.
//!
//! It has no name before it is whole, on the disk, and entered in the log. What it needs of memory does not grow with what is
//! exported: two threads compress, the data into the file and the pages into another that never gets a name.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek as _, Write as _};
use std::path::Path;

use aws_lc_rs::digest;
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::manifest::{Head, Listed, Manifest};
use super::part::{Part, parts};
use super::{Export, Progress, Sink, Surroundings, enter, find, page, stream};
use crate::audit::By;
use crate::audit::document::Signed;
use crate::durable::{self, Unnamed};
use crate::error::{Error, Result};
use crate::records::Records;

/// Only its owner reads it.
const MODE: u32 = 0o600;

/// How many chunks may wait for a thread.
const WAITING: usize = 4;

/// The fastest level: what is exported is mostly digests and ids, which no level makes much smaller.
const LEVEL: i64 = 1;

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// How many items of each part.
    pub counts: BTreeMap<&'static str, u64>,
    /// How many files the archive has.
    pub files: usize,
    /// How many bytes it has.
    pub bytes: u64,
}

/// Writes everything that is held about a person to a file that is not there yet.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Tampered`], as nothing is left out; [`Error::Conflict`] where there is a file by that name, or no
/// key to sign with; an internal error with what the file system said.
pub async fn archive(
    records: &Records,
    by: &By,
    asked: &Export,
    around: &Surroundings,
    (target, progress): (&Path, &Progress),
) -> Result<Summary> {
    records.log().signer()?;
    if target.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let parts = parts(asked.scope);
    let (subject, head, written) = records
        .store()
        .snapshot(&by.deadline, "subject.export", async |connection| {
            let subject = find(connection, records, by, &asked.user_id).await?;
            // Each attempt has a file of its own: what a lost connection cut off is thrown away.
            let mut threads = Threads::start(records, target)?;
            let streamed = stream(connection, &subject, &parts, progress, &mut threads).await;
            let counts = threads.counts.clone();
            // A thread that failed says why; who fed it has only seen that it is gone.
            let written = threads.finish().await?;
            streamed?;
            let head = Head::new(&subject, asked.scope, around, &parts, &counts);
            Ok((subject, head, written))
        })
        .await?;
    let counts = head.counts.clone();
    let manifest = |files| Signed::sign(records.log(), Manifest { head: head.clone(), files });
    let (unnamed, files) = tokio::task::block_in_place(|| written.close(&head, around, manifest))?;
    let bytes = unnamed.file().and_then(|file| file.metadata()).map_err(Error::internal)?.len();
    enter(records, by, asked, &subject).await?;
    match tokio::task::block_in_place(|| unnamed.publish(target)) {
        Ok(()) => Ok(Summary { counts, files, bytes }),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(exists()),
        Err(error) => Err(Error::internal(error)),
    }
}

fn exists() -> Error {
    Error::conflict("there is a file by that name; an export replaces none")
}

type Zip = ZipWriter<BufWriter<File>>;

/// What a thread is sent.
enum Message {
    Begin { part: &'static str, one: bool, items: u64 },
    Items(Bytes),
}

/// The two threads that compress.
struct Threads {
    data: mpsc::Sender<Message>,
    pages: mpsc::Sender<Message>,
    counts: BTreeMap<&'static str, u64>,
    unnamed: Unnamed,
    working: [JoinHandle<io::Result<Entries>>; 2],
}

impl Threads {
    fn start(records: &Records, target: &Path) -> Result<Self> {
        let unnamed = Unnamed::beside(target, MODE).map_err(Error::internal)?;
        let file = unnamed.file().map_err(Error::internal)?;
        let spool = durable::scratch(target).map_err(Error::internal)?;
        let (data, of_data) = mpsc::channel(WAITING);
        let (pages, of_pages) = mpsc::channel(WAITING);
        let tracker = records.store().tracker();
        let working = [
            tracker.spawn_blocking(move || write_data(Entries::new(file), of_data)),
            tracker.spawn_blocking(move || write_pages(Entries::new(spool), of_pages)),
        ];
        Ok(Self { data, pages, counts: BTreeMap::new(), unnamed, working })
    }

    async fn finish(self) -> Result<Written> {
        drop((self.data, self.pages));
        let [data, pages] = self.working;
        let (data, pages) = (data.await, pages.await);
        let data = data.map_err(Error::internal)?.map_err(Error::internal)?;
        let pages = pages.map_err(Error::internal)?.map_err(Error::internal)?;
        Ok(Written { unnamed: self.unnamed, data, pages })
    }

    async fn send(&self, message: impl Fn() -> Message) -> Result<()> {
        for thread in [&self.data, &self.pages] {
            thread.send(message()).await.map_err(|_| Error::internal("the archive cannot be written"))?;
        }
        Ok(())
    }
}

impl Sink for Threads {
    async fn begin(&mut self, part: &Part, items: u64) -> Result<()> {
        self.counts.insert(part.name, items);
        let (part, one) = (part.name, part.one);
        self.send(|| Message::Begin { part, one, items }).await
    }

    async fn items(&mut self, lines: Vec<u8>) -> Result<()> {
        let lines = Bytes::from(lines);
        self.send(|| Message::Items(lines.clone())).await
    }
}

/// A ZIP file that grows, with the digest of each entry.
struct Entries {
    zip: Zip,
    listed: Vec<Listed>,
    digest: digest::Context,
}

impl Entries {
    fn new(file: File) -> Self {
        let zip = ZipWriter::new(BufWriter::with_capacity(256 * 1024, file));
        Self { zip, listed: Vec::new(), digest: digest::Context::new(&digest::SHA256) }
    }

    fn begin(&mut self, name: String, large: bool) -> io::Result<()> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .compression_level(Some(LEVEL))
            .unix_permissions(MODE)
            .large_file(large);
        self.zip.start_file(name.as_str(), options)?;
        self.digest = digest::Context::new(&digest::SHA256);
        self.listed.push(Listed { name, bytes: 0, sha256: String::new() });
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        if let Some(listed) = self.listed.last_mut() {
            listed.bytes = listed.bytes.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        }
        self.zip.write_all(bytes)
    }

    fn end(&mut self) {
        let digest = self.digest.clone().finish();
        if let Some(listed) = self.listed.last_mut() {
            listed.sha256 = crate::audit::merkle::hex(digest.as_ref());
        }
    }

    fn whole(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.begin(name.to_owned(), false)?;
        self.write(bytes)?;
        self.end();
        Ok(())
    }
}

/// One file for each part: a list, or the one item.
fn write_data(mut entries: Entries, mut messages: mpsc::Receiver<Message>) -> io::Result<Entries> {
    let mut closing: Option<&[u8]> = None;
    while let Some(message) = messages.blocking_recv() {
        match message {
            Message::Begin { part, one, items } => {
                close_data(&mut entries, closing)?;
                entries.begin(format!("data/{part}.json"), true)?;
                let (opening, end): (&[u8], &[u8]) = match (one, items) {
                    (true, 0) => (b"null", b"\n"),
                    (true, _) => (b"", b"\n"),
                    (false, _) => (b"[\n", b"\n]\n"),
                };
                entries.write(opening)?;
                closing = Some(end);
            }
            Message::Items(lines) => entries.write(&lines)?,
        }
    }
    close_data(&mut entries, closing)?;
    Ok(entries)
}

fn close_data(entries: &mut Entries, closing: Option<&[u8]>) -> io::Result<()> {
    if let Some(closing) = closing {
        entries.write(closing)?;
        entries.end();
    }
    Ok(())
}

/// Pages of a part: a thousand items each.
fn write_pages(mut entries: Entries, mut messages: mpsc::Receiver<Message>) -> io::Result<Entries> {
    let (mut part, mut items, mut done) = ("", 0_u64, 0_u64);
    let mut html = String::new();
    while let Some(message) = messages.blocking_recv() {
        match message {
            Message::Begin { part: name, items: count, .. } => (part, items, done) = (name, count, 0),
            Message::Items(lines) => {
                let lines = std::str::from_utf8(&lines).map_err(io::Error::other)?;
                // What follows a chunk begins with the comma that ends its last item.
                for line in lines.lines().filter(|line| *line != ",") {
                    let line = line.strip_suffix(',').unwrap_or(line);
                    let number = done / page::ITEMS + 1;
                    if done.is_multiple_of(page::ITEMS) {
                        html.clear();
                        page::begin(part, number, items, &mut html);
                    }
                    page::item(line, &mut html).ok_or_else(|| io::Error::other("an item that is no JSON"))?;
                    done = done.saturating_add(1);
                    if done.is_multiple_of(page::ITEMS) || done == items {
                        page::end(part, number, items, &mut html);
                        entries.whole(&page::file(part, number), html.as_bytes())?;
                    }
                }
            }
        }
    }
    Ok(entries)
}

/// What the threads have left: the data in the file, the pages beside it.
struct Written {
    unnamed: Unnamed,
    data: Entries,
    pages: Entries,
}

impl Written {
    /// Puts all into one file, with index and manifest. Answers how many files are in it.
    fn close(
        self,
        head: &Head,
        around: &Surroundings,
        manifest: impl FnOnce(Vec<Listed>) -> Result<Signed<Manifest>>,
    ) -> Result<(Unnamed, usize)> {
        let Self { unnamed, mut data, pages } = self;
        let mut index = String::new();
        page::index(head, around.notice.as_deref(), &mut index);
        let merge = |data: &mut Entries| {
            let mut spool = pages.zip.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
            spool.rewind()?;
            // As they are: compressed already.
            data.zip.merge_archive(ZipArchive::new(io::BufReader::new(spool))?)?;
            data.whole("index.html", index.as_bytes())?;
            around.notice.as_ref().map(|notice| data.whole("notice.txt", notice.as_bytes())).transpose()
        };
        merge(&mut data).map_err(Error::internal)?;
        data.listed.extend(pages.listed);
        let files = data.listed.len().saturating_add(1);
        let manifest = manifest(std::mem::take(&mut data.listed))?;
        let manifest = serde_json::to_vec(&manifest).map_err(Error::internal)?;
        let finish = |mut data: Entries| {
            data.whole("manifest.json", &manifest)?;
            data.zip.finish()?.into_inner().map_err(io::IntoInnerError::into_error)
        };
        finish(data).map_err(Error::internal)?;
        Ok((unnamed, files))
    }
}
