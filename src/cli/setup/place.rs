//! The files that `sidekeep setup` makes: where, and for whom.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use nix::unistd::{Group, geteuid};

use crate::cli::exit::{Code, coded};
use crate::durable::{self, Access};

/// The daemon's group.
const GROUP: &str = "sidekeep";

/// Where everything goes.
#[derive(Debug)]
pub(super) struct Place {
    root: String,
    group: Option<u32>,
    pub(super) config: PathBuf,
    pub(super) settings: PathBuf,
    pub(super) kek: PathBuf,
    pub(super) signing: PathBuf,
    pub(super) app_url: PathBuf,
    pub(super) owner_url: PathBuf,
}

impl Place {
    /// Below the prefix, else on the host itself, which takes root and the daemon's group.
    pub(super) fn new(prefix: Option<&Path>) -> anyhow::Result<Self> {
        let group = Group::from_name(GROUP)?.map(|group| group.gid.as_raw());
        let root = match prefix {
            Some(prefix) => {
                let absolute = std::path::absolute(prefix)?;
                let text = absolute.to_str().map(|text| text.trim_end_matches('/').to_owned());
                text.ok_or_else(|| coded(Code::Usage, "--prefix must be UTF-8"))?
            }
            None if !geteuid().is_root() => bail!("run this as root: sudo sidekeep setup"),
            None if group.is_none() => bail!(
                "there is no group {GROUP}, which the package makes; without it: \
                 adduser --system --group --home /var/lib/sidekeep {GROUP} && addgroup --system sidekeep-users"
            ),
            None => String::new(),
        };
        let etc = PathBuf::from(format!("{root}/etc/sidekeep"));
        Ok(Self {
            // Only root may give a file away.
            group: group.filter(|_| geteuid().is_root()),
            config: etc.join("sidekeep.toml"),
            settings: etc.join("conf.d/10-setup.toml"),
            kek: etc.join("keys/kek"),
            signing: etc.join("keys/signing"),
            app_url: etc.join("keys/database-url"),
            owner_url: etc.join("keys/owner-url"),
            root,
        })
    }

    pub(super) fn make_directories(&self) -> anyhow::Result<()> {
        for file in [&self.settings, &self.kek] {
            let Some(directory) = file.parent() else { continue };
            durable::create_directory(directory, self.access(0o750))
                .with_context(|| format!("{}: cannot be made", directory.display()))?;
        }
        Ok(())
    }

    /// A new file that the daemon may read.
    pub(super) fn create_for_daemon(&self, path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
        durable::create_new(path, bytes, self.access(0o640)).with_context(|| unwritten(path))
    }

    /// A file that the daemon may read, in place of an older one.
    pub(super) fn for_daemon(&self, path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
        durable::write(path, bytes, self.access(0o640)).with_context(|| unwritten(path))
    }

    /// A file for whoever runs this, and nobody else.
    pub(super) fn for_root(&self, path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
        durable::write(path, bytes, 0o600).with_context(|| unwritten(path))
    }

    /// The settings that are particular to this host.
    pub(super) fn settings_text(&self, local: bool) -> String {
        let file = |path: &Path| serde_json::Value::from(path.to_string_lossy()).to_string();
        let mut text = format!(
            "# Made by `sidekeep setup`.\n\n[database]\nurl_file = {}\n# The owner of the tables, for `sidekeep migrate`.\n\
             migrate_url_file = {}\n",
            file(&self.app_url),
            file(&self.owner_url)
        );
        if local {
            text.push_str("# The connection does not leave this host.\ntls = \"off\"\n");
        }
        text.push_str(&format!(
            "\n[keyring]\n# Without this file nothing that is sealed opens again.\nkey_files = [{}]\n",
            file(&self.kek)
        ));
        text.push_str(&format!("\n[signing]\nkey_files = [{}]\n", file(&self.signing)));
        if !self.root.is_empty() {
            let socket = file(&PathBuf::from(format!("{}/run/sidekeep/sidekeep.sock", self.root)));
            text.push_str(&format!("\n[socket]\npath = {socket}\ngroup = \"\"\n"));
        }
        text
    }

    fn access(&self, mode: u32) -> Access {
        let access = Access::mode(mode);
        self.group.map_or(access, |group| access.group(group))
    }
}

fn unwritten(path: &Path) -> String {
    format!("{}: cannot be written", path.display())
}
