//! Files that survive power loss: written under a temporary name, synced, renamed, and the directory synced.
//!
//! A reader sees the old content or the new, never a part of it. Permissions are never wider than asked for, at no time.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, RenameFlags, renameat2};
use nix::unistd::linkat;

/// Who may do what with a file: its permission bits, and its group where that is not the process's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    mode: u32,
    group: Option<u32>,
}

impl Access {
    /// These permission bits, for the process's own user and group. The umask takes nothing away.
    pub const fn mode(mode: u32) -> Self {
        Self { mode, group: None }
    }

    /// The same, for the group with this id.
    pub const fn group(self, gid: u32) -> Self {
        Self { group: Some(gid), ..self }
    }
}

impl From<u32> for Access {
    fn from(mode: u32) -> Self {
        Self::mode(mode)
    }
}

/// Writes the file, in place of an older one. On return it is on the disk; on an error the older one stands.
pub fn write(path: &Path, bytes: &[u8], access: impl Into<Access>) -> io::Result<()> {
    let temporary = Temporary::write(path, bytes, access.into())?;
    std::fs::rename(&temporary.path, path)?;
    temporary.renamed();
    sync_directory(path)
}

/// Writes the file if there is none by that name, else fails with [`io::ErrorKind::AlreadyExists`] and leaves what is there.
pub fn create_new(path: &Path, bytes: &[u8], access: impl Into<Access>) -> io::Result<()> {
    let temporary = Temporary::write(path, bytes, access.into())?;
    match renameat2(AT_FDCWD, &temporary.path, AT_FDCWD, path, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => temporary.renamed(),
        // A file system that does not know the flag (NFS). A link is as atomic; the temporary name goes with the drop.
        Err(Errno::EINVAL | Errno::ENOSYS) => std::fs::hard_link(&temporary.path, path)?,
        Err(error) => return Err(error.into()),
    }
    sync_directory(path)
}

/// A file that nobody sees before it is whole: it has no name until [`Unnamed::publish`]. Whoever kills its process leaves nothing,
/// where the file system can do that (`O_TMPFILE`); elsewhere a hidden name.
#[derive(Debug)]
pub struct Unnamed {
    file: File,
    hidden: Option<Temporary>,
}

impl Unnamed {
    /// A new file in the directory of `target`.
    pub fn beside(target: &Path, access: impl Into<Access>) -> io::Result<Self> {
        let access = access.into();
        let open = || OpenOptions::new().read(true).write(true).mode(access.mode & 0o700).to_owned();
        let unnamed = open().custom_flags(libc::O_TMPFILE).open(directory(target));
        let (file, hidden) = match unnamed {
            Ok(file) => (file, None),
            Err(error) if unnamed_is_unknown(&error) => {
                let path = temporary_name(target)?;
                let file = open().create_new(true).open(&path)?;
                (file, Some(Temporary { path, kept: false }))
            }
            Err(error) => return Err(error),
        };
        apply(&file, access)?;
        Ok(Self { file, hidden })
    }

    /// The file, to be written.
    pub fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Gives the file its name, once all of it is on the disk. Fails with [`io::ErrorKind::AlreadyExists`] where there is one by
    /// that name, and leaves that.
    pub fn publish(self, target: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        match self.hidden {
            None => {
                let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                linkat(AT_FDCWD, own.as_str(), AT_FDCWD, target, AtFlags::AT_SYMLINK_FOLLOW)?;
            }
            // The hidden name goes with the drop.
            Some(hidden) => std::fs::hard_link(&hidden.path, target)?,
        }
        sync_directory(target)
    }
}

/// A file in the directory of `target` that never gets a name, for what does not fit into memory.
pub fn scratch(target: &Path) -> io::Result<File> {
    // The hidden name, where there had to be one, goes with the drop; the file stays as long as it is open.
    Unnamed::beside(target, 0o600).map(|unnamed| unnamed.file)
}

/// The file system, or the kernel, has no files without a name (open(2), `O_TMPFILE`).
fn unnamed_is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::ENOENT | libc::EINVAL))
}

/// Makes the directory with exactly this access, and those above it that are missing. One that is there stays as it is.
pub fn create_directory(path: &Path, access: impl Into<Access>) -> io::Result<()> {
    let access = access.into();
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        create_directory(parent, Access { mode: 0o755, group: None })?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => return Ok(()),
        Err(error) => return Err(error),
    }
    apply(&File::open(path)?, access)?;
    sync_directory(path)
}

/// Puts on the disk what others wrote without syncing: every file and directory from here down.
///
/// Several at a time, since what a file system waits for is then shared: a thousand small files take a third of the time.
pub fn sync_tree(root: &Path) -> io::Result<()> {
    let mut found = vec![root.to_owned()];
    let mut next = 0;
    while let Some(path) = found.get(next).cloned() {
        next += 1;
        if path.symlink_metadata()?.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                let entry = entry?;
                if !entry.file_type()?.is_symlink() {
                    found.push(entry.path());
                }
            }
        }
    }
    std::thread::scope(|scope| {
        let share = found.len().div_ceil(8).max(1);
        let threads: Vec<_> = found
            .chunks(share)
            .map(|paths| scope.spawn(|| paths.iter().try_for_each(|path| File::open(path)?.sync_all())))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread failed"))))
    })
}

/// A file that is complete but has not its name yet. Removed when dropped before.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    kept: bool,
}

impl Temporary {
    fn write(target: &Path, bytes: &[u8], access: Access) -> io::Result<Self> {
        let path = temporary_name(target)?;
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(access.mode & 0o700).open(&path)?;
        let temporary = Self { path, kept: false };
        apply(&file, access)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(temporary)
    }

    fn renamed(mut self) {
        self.kept = true;
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            // Nothing better can be done with an error here; the one that led here is on its way to the caller.
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// The group first: while the file has its new group it must not yet have bits that the old one was not meant to have.
fn apply(file: &File, access: Access) -> io::Result<()> {
    if let Some(gid) = access.group {
        fchown(file, None, Some(gid))?;
    }
    file.set_permissions(Permissions::from_mode(access.mode))
}

fn temporary_name(target: &Path) -> io::Result<PathBuf> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = target
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path does not name a file"))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    Ok(target.with_file_name(temporary))
}

/// A name is on the disk only when the directory that holds it is.
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(directory(path))?.sync_all()
}

/// The directory that a file is in.
fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o7777
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole_with_its_mode_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        write(&path, b"a longer first content", 0o666).unwrap();
        assert_eq!(mode(&path), 0o666, "whatever the umask");
        write(&path, b"second", 0o600).unwrap();
        assert_eq!((std::fs::read(&path).unwrap().as_slice(), mode(&path)), (b"second".as_slice(), 0o600));
        assert_eq!(names(directory.path()), ["file"]);
    }

    #[test]
    fn create_new_never_replaces() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kek");
        create_new(&path, b"first", 0o640).unwrap();
        let refused = create_new(&path, b"second", 0o640).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert_eq!(names(directory.path()), ["kek"]);
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_no_temporary_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("is-a-directory");
        std::fs::create_dir(&path).unwrap();
        write(&path, b"x", 0o600).unwrap_err();
        assert_eq!(names(directory.path()), ["is-a-directory"]);
        write(&directory.path().join("missing/file"), b"x", 0o600).unwrap_err();
        write(Path::new("/"), b"x", 0o600).unwrap_err();
    }

    #[test]
    fn a_file_without_a_name_is_seen_when_it_is_whole_and_replaces_nothing() {
        use std::io::Write as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let unnamed = Unnamed::beside(&path, 0o600).unwrap();
        unnamed.file().unwrap().write_all(b"whole").unwrap();
        assert!(!path.exists());
        unnamed.publish(&path).unwrap();
        assert_eq!((std::fs::read(&path).unwrap().as_slice(), mode(&path)), (b"whole".as_slice(), 0o600));
        let second = Unnamed::beside(&path, 0o600).unwrap();
        assert_eq!(second.publish(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        let hidden = Temporary::write(&path, b"other", 0o600.into()).unwrap();
        let file = File::open(&hidden.path).unwrap();
        let named = Unnamed { file, hidden: Some(hidden) };
        assert_eq!(named.publish(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        drop(scratch(&path).unwrap());
        assert_eq!(
            (names(directory.path()), std::fs::read(&path).unwrap()),
            (vec!["file".into()], b"whole".to_vec())
        );
        Unnamed::beside(&directory.path().join("missing/file"), 0o600).unwrap_err();
    }

    #[test]
    fn a_link_is_replaced_and_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (target, link) = (directory.path().join("target"), directory.path().join("link"));
        write(&target, b"target", 0o600).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write(&link, b"new", 0o600).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"target");
        assert!(link.symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn directories_are_made_with_their_mode_and_kept_as_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        create_directory(&path, 0o750).unwrap();
        assert_eq!((mode(&directory.path().join("a")), mode(&path)), (0o755, 0o750));
        create_directory(&path, 0o700).unwrap();
        assert_eq!(mode(&path), 0o750);
        let file = directory.path().join("file");
        write(&file, b"", 0o600).unwrap();
        create_directory(&file, 0o700).unwrap_err();
    }

    #[test]
    fn a_tree_is_synced_to_its_leaves() {
        let directory = tempfile::tempdir().unwrap();
        create_directory(&directory.path().join("a/b"), 0o700).unwrap();
        write(&directory.path().join("a/b/file"), b"x", 0o600).unwrap();
        std::os::unix::fs::symlink("nowhere", directory.path().join("a/link")).unwrap();
        sync_tree(directory.path()).unwrap();
        sync_tree(&directory.path().join("missing")).unwrap_err();
    }

    #[test]
    fn the_group_is_given_with_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let own = directory.path().metadata().unwrap().gid();
        write(&path, b"", Access::mode(0o640).group(own)).unwrap();
        assert_eq!((path.metadata().unwrap().gid(), mode(&path)), (own, 0o640));
    }
}
