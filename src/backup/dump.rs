//! One dump: `pg_dump` in the snapshot of a transaction, its output straight into an object. The object counts for nothing
//! before its manifest is written.
//!
//! A crash at any point leaves an object that is not finished, or one without a manifest: neither is listed, and the next run
//! of tomorrow removes them. `pg_dump` ends with its pipe, or with its deadline.

use std::process::Stdio;
use std::sync::atomic::AtomicU64;

use bytes::BytesMut;
use futures_util::TryStreamExt as _;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

use super::child::{complaint, told};
use super::sink::{Digest, Digesting, Sink, Written, away};
use super::snapshot::LEFT_OUT;
use crate::config::Recipient;
use crate::error::{Error, Result};
use crate::objects::Objects;
use crate::store::programs::Program;
use crate::store::{Deadline, Pinned};

/// How much is read at once.
const READ: usize = 256 << 10;
/// How a dump of the custom format begins.
const MAGIC: &[u8] = b"PGDMP";
/// How long it waits for the lock of a table that is being changed, in milliseconds.
const LOCK: &str = "60000";

/// What is to be dumped, and where to.
pub(super) struct Order<'a> {
    pub(super) pinned: &'a Pinned,
    pub(super) program: &'a Program,
    pub(super) objects: &'a Objects,
    /// The object's name.
    pub(super) object: &'a str,
    pub(super) recipients: &'a [Recipient],
    pub(super) progress: &'a AtomicU64,
}

impl Order<'_> {
    /// Dumps, and reads the object back. On return it is durable, and the child has ended; so it has on an error.
    ///
    /// # Errors
    /// [`Error::Unavailable`], with what `pg_dump` or the destination says; nothing is left of the object then.
    pub(super) async fn carry_out(&self, deadline: &Deadline) -> Result<Written> {
        let mut sink = Sink::begin(self.objects, self.object, self.recipients, self.progress).await?;
        let mut child = match self.start() {
            Ok(child) => child,
            Err(error) => {
                sink.abort().await;
                return Err(error);
            }
        };
        let streamed = match deadline.run(stream(&mut child, &mut sink)).await {
            Ok(streamed) => streamed,
            Err(_) => Err(Error::unavailable("the dump was not done in time, or this daemon ends")),
        };
        if let Err(error) = streamed {
            // Its end is waited for: nobody dumps beside the next run. One that has ended already needs no signal.
            let _ = child.kill().await;
            sink.abort().await;
            return Err(error);
        }
        let written = match deadline.run(sink.finish()).await {
            Ok(written) => written?,
            Err(_) => return Err(Error::unavailable("the dump was not done in time")),
        };
        self.read_back(&written.stored, deadline).await?;
        Ok(written)
    }

    fn start(&self) -> Result<Child> {
        let mut command = self.program.command();
        command.args(["--format=custom", "--schema=sidekeep", "--encoding=UTF8"]);
        command
            .arg(format!("--snapshot={}", self.pinned.snapshot))
            .arg(format!("--lock-wait-timeout={LOCK}"));
        for table in LEFT_OUT {
            command.arg(format!("--exclude-table-data=sidekeep.{table}"));
        }
        let failed =
            |error: std::io::Error| Error::unavailable(format!("pg_dump cannot be started: {error}"));
        self.pinned.libpq.tell(&mut command).map_err(failed)?;
        let mut command = Command::from(command);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().map_err(failed)
    }

    /// What the destination gives back is what was given to it.
    async fn read_back(&self, stored: &Digest, deadline: &Deadline) -> Result<()> {
        match deadline.run(digest(self.objects, self.object)).await {
            Err(_) => Err(Error::unavailable("the dump was not read back in time")),
            Ok(read) if read.as_ref().is_ok_and(|read| read == stored) => Ok(()),
            Ok(Err(error)) => Err(error),
            Ok(Ok(read)) => Err(Error::unavailable(format!(
                "{}: what was written is not what is read back: {} of {} bytes, or others",
                self.objects.url(),
                read.size,
                stored.size
            ))),
        }
    }
}

/// Reads an object, and digests it.
async fn digest(objects: &Objects, name: &str) -> Result<Digest> {
    let away = |trouble| away(objects.url(), &trouble);
    let (_, mut parts) = objects.read(name, None).await.map_err(away)?;
    let mut digest = Digesting::default();
    while let Some(part) = parts.try_next().await.map_err(away)? {
        digest.add(&part);
    }
    Ok(digest.end())
}

/// Takes all that the child says, and its end.
async fn stream(child: &mut Child, sink: &mut Sink<'_>) -> Result<()> {
    let (Some(mut output), Some(errors)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(Error::internal("pg_dump has no pipes"));
    };
    let pump = async {
        let mut begun = false;
        loop {
            let mut part = BytesMut::with_capacity(READ);
            let read = output.read_buf(&mut part).await.map_err(Error::internal)?;
            if read == 0 {
                return Ok(begun);
            }
            if !begun && !part.starts_with(MAGIC) {
                return Err(Error::unavailable("what pg_dump wrote is no dump"));
            }
            begun = true;
            sink.write(part.freeze()).await?;
        }
    };
    // Where the destination fails, nobody reads on, and the child would wait for ever.
    let (begun, complaint) = tokio::try_join!(pump, async { Ok(complaint(errors).await) })?;
    let status = child.wait().await.map_err(Error::internal)?;
    if !status.success() {
        return Err(Error::unavailable(told("pg_dump", status, &complaint)));
    }
    if begun {
        Ok(())
    } else {
        Err(Error::unavailable("pg_dump wrote nothing, and said that it had done it"))
    }
}
