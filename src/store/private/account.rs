//! The user that PostgreSQL runs as: our own, or, since it refuses root, one without privileges.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::unistd::{Gid, Uid, User, chown, geteuid};

use super::Error;
use crate::durable;

/// The ids to run PostgreSQL with, where they are not our own.
pub(super) type Account = Option<(Uid, Gid)>;

/// Makes the server's own directory, which only its user may enter, and says whom to run it as: the owner of one that is there.
pub(super) fn prepare(home: &Path) -> Result<Account, Error> {
    let failed = |source| Error::io("cannot make the directory", home, source);
    durable::create_directory(home, 0o700).map_err(failed)?;
    let found = home.metadata().map_err(failed)?;
    let owner = Uid::from_raw(found.uid());
    if !geteuid().is_root() {
        let own = owner == geteuid();
        return if own { Ok(None) } else { Err(foreign(home, owner)) };
    }
    if !owner.is_root() {
        return Ok(Some((owner, Gid::from_raw(found.gid()))));
    }
    let user = ["postgres", "nobody"]
        .iter()
        .find_map(|name| User::from_name(name).ok().flatten())
        .filter(|user| !user.uid.is_root())
        .ok_or(Error::NoAccount)?;
    chown(home, Some(user.uid), Some(user.gid)).map_err(|errno| failed(errno.into()))?;
    Ok(Some((user.uid, user.gid)))
}

fn foreign(home: &Path, owner: Uid) -> Error {
    Error::Foreign { directory: home.into(), owner: owner.as_raw() }
}
