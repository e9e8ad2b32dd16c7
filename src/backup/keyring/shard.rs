//! Writing one shard: read, replace, and look at both sides again until they agree.

use super::Writer;
use super::kept::{away, forgets, shard_name};
use crate::error::{Error, Result};
use crate::keyring::shard::{self, Header};
use crate::objects::Trouble;
use crate::values::RecordId;

/// How often a shard is written anew because something came in between.
const ROUNDS: usize = 50;

impl Writer<'_> {
    /// Writes a shard, until what is stored and what the database has are of one generation.
    pub(super) async fn bring(&self, number: i16) -> Result<()> {
        for _ in 0..ROUNDS {
            if self.deadline.has_passed() {
                break;
            }
            if self.try_once(number).await? {
                return Ok(());
            }
        }
        Err(Error::unavailable(format!(
            "keyring.backup: {} changes faster than it is written",
            shard_name(number)
        )))
    }

    /// Answers whether object and database agreed afterwards.
    async fn try_once(&self, number: i16) -> Result<bool> {
        let keyring = self.records.keyring();
        let there = self.shard(number).await?;
        let write = RecordId::generate();
        // From here on a crash leaves a write that was begun, and a generation that is not stored.
        self.begin(number, &write).await?;
        // After the object was read: whatever raises the generation from here on is found below.
        let (generation, content) = self.content(number).await?;
        let keks = keyring.keks();
        let mut header =
            Header::new((keyring.deployment(), number, generation), write.as_str(), keks.sealing()?);
        header.kek_ids.clone_from(&content.kek_ids);
        let sealed = shard::seal(&keks, &header, &content.bytes)?;
        drop(content);
        let tag = there.map(|(_, tag)| tag);
        match self.objects.replace(&shard_name(number), sealed.into(), tag).await {
            Ok(tag) => forgets(&self.objects, &tag)?,
            // Somebody else wrote it, who may have read the database later, or earlier.
            Err(Trouble::Changed) => return Ok(false),
            Err(trouble) => return Err(away(&trouble)),
        }
        let stored = self.shard(number).await?;
        if stored.is_none_or(|(stored, _)| stored != header) {
            return Ok(false);
        }
        let kept = (header.sealed_under.as_str(), header.kek_ids.as_slice());
        Ok(self.settle((number, generation), &write, kept).await? == generation)
    }
}
