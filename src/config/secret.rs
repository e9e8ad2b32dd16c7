//! Secrets, read from their files at the moment of use and wiped when dropped. Never says what is in one.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::SecretFile;

/// The largest secret that is read.
const MAX_BYTES: u64 = 64 * 1024;

/// What others must not be allowed: reading by anybody else, and changing by group or anybody else.
const FORBIDDEN: u32 = 0o027;

/// Why a secret was not read.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It is a systemd credential, and systemd gave none.
    #[error("{0}")]
    NoCredentials(String),
    /// There is no such file.
    #[error("{}: there is no such file", .0.display())]
    Missing(PathBuf),
    /// It cannot be read.
    #[error("{}: cannot be read: {}", .0.display(), .1)]
    Unreadable(PathBuf, std::io::Error),
    /// It is a directory, a pipe or a device.
    #[error("{}: must be a regular file", .0.display())]
    NotRegular(PathBuf),
    /// Others may read or change it.
    #[error("{}: its mode {mode:04o} lets others read or change it; run: chmod 0640 {}", .path.display(), .path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is too large to be a secret.
    #[error("{}: is over 64 KiB, which no secret is", .0.display())]
    TooLarge(PathBuf),
    /// It is not text.
    #[error("{}: is not UTF-8 text", .0.display())]
    NotText(PathBuf),
    /// There is nothing in it.
    #[error("{}: is empty", .0.display())]
    Empty(PathBuf),
}

/// Reads a secret, without the newline at its end.
///
/// # Errors
/// Says which file cannot be used and why; never what is in it.
pub fn secret(file: &SecretFile) -> Result<Zeroizing<String>, SecretError> {
    read(&file.path().map_err(SecretError::NoCredentials)?)
}

fn read(path: &Path) -> Result<Zeroizing<String>, SecretError> {
    let opened = open(path)?;
    // Room for all of it from the start: a buffer that grows leaves copies behind that nothing wipes.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(MAX_BYTES + 2).unwrap_or_default()));
    opened
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| SecretError::Unreadable(path.into(), error))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_BYTES) {
        return Err(SecretError::TooLarge(path.into()));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| SecretError::NotText(path.into()))?;
    let text = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    if text.is_empty() {
        return Err(SecretError::Empty(path.into()));
    }
    Ok(Zeroizing::new(text.to_owned()))
}

/// Opens the file and then looks at what was opened, so that nothing can be exchanged in between.
fn open(path: &Path) -> Result<File, SecretError> {
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => SecretError::Missing(path.into()),
        _ => SecretError::Unreadable(path.into(), error),
    };
    // A pipe without a writer would hold an ordinary open for ever.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(SecretError::NotRegular(path.into()));
    }
    let mode = meta.permissions().mode() & 0o7777;
    if mode & FORBIDDEN != 0 {
        return Err(SecretError::Exposed { path: path.into(), mode });
    }
    Ok(file)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the tests need no power-safe files")]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};

    use super::{SecretError, read, secret};
    use crate::config::SecretFile;

    fn put(dir: &Path, content: &[u8], mode: u32) -> PathBuf {
        let path = dir.join(format!("secret-{mode:o}-{}", content.len()));
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn one_newline_at_the_end_is_not_part_of_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        for (content, kept) in
            [("hush", "hush"), ("hush\n", "hush"), ("hush\r\n", "hush"), (" hush\n\n", " hush\n")]
        {
            let path = put(dir.path(), content.as_bytes(), 0o600);
            assert_eq!(*read(&path).unwrap(), kept, "{content:?}");
        }
    }

    #[test]
    fn only_owner_and_group_may_read_and_only_the_owner_may_write() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o400, 0o440, 0o600, 0o640, 0o700] {
            assert!(read(&put(dir.path(), b"hush", mode)).is_ok(), "{mode:o}");
        }
        for mode in [0o644, 0o604, 0o660, 0o602, 0o620, 0o666, 0o444, 0o601] {
            let path = put(dir.path(), b"hush", mode);
            let error = read(&path).unwrap_err().to_string();
            let path = path.display().to_string();
            for part in [path.as_str(), &format!("{mode:04o}"), &format!("chmod 0640 {path}")] {
                assert!(error.contains(part), "{error} does not name {part}");
            }
        }
    }

    #[test]
    fn what_is_no_secret_is_refused_without_showing_it() {
        let dir = tempfile::tempdir().unwrap();
        let large = put(dir.path(), "hush".repeat(16_385).as_bytes(), 0o600);
        let largest = put(dir.path(), "hush".repeat(16_384).as_bytes(), 0o600);
        let binary = put(dir.path(), b"hush\xff", 0o600);
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        assert!(read(&largest).is_ok());
        assert!(matches!(read(&large), Err(SecretError::TooLarge(_))));
        assert!(matches!(read(&binary), Err(SecretError::NotText(_))));
        assert!(matches!(read(&pipe), Err(SecretError::NotRegular(_))));
        assert!(matches!(read(dir.path()), Err(SecretError::NotRegular(_))));
        assert!(matches!(read(&put(dir.path(), b"\n", 0o600)), Err(SecretError::Empty(_))));
        assert!(matches!(read(&dir.path().join("none")), Err(SecretError::Missing(_))));
        for path in [large, binary] {
            assert!(!read(&path).unwrap_err().to_string().contains("hush"));
        }
    }

    #[test]
    fn a_credential_without_systemd_says_what_to_add_to_the_unit() {
        let error = secret(&SecretFile::new("credential:kek")).unwrap_err().to_string();
        assert!(error.contains("LoadCredential=kek:"), "{error}");
    }
}
