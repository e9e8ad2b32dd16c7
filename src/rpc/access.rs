//! Who may call what: the rules of `[access]` against what the kernel says of the peer.

use nix::unistd::{Gid, Group, Uid, User};

use super::peer::Peer;
use crate::config::{Access, NameOrId, Role};

/// Without rules: members of this group are applications.
const USERS: &str = "sidekeep-users";
/// Without rules: members of this group may do everything.
const ADMINS: &str = "sidekeep-admin";

/// The rules with names resolved to numbers.
#[derive(Debug)]
pub struct Policy {
    own: u32,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    who: Who,
    methods: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    User(u32),
    Group(u32),
}

/// A rule cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// This host does not know the name.
    #[error("access.rules[{index}]: there is no {kind} {name:?} on this host")]
    Unknown {
        /// Which rule.
        index: usize,
        /// `user` or `group`.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A glob stands for no method.
    #[error("access.rules[{index}].allow: {glob:?} stands for no method; `sidekeep openrpc` lists them")]
    NoMethod {
        /// Which rule.
        index: usize,
        /// The glob.
        glob: String,
    },
}

/// The methods of a role, as globs.
pub fn methods(role: Role) -> &'static [&'static str] {
    match role {
        Role::App => &[
            "profile.*",
            "preferences.*",
            "consent.*",
            "conversation.*",
            "audit.append*",
            "rpc.discover",
            "system.health",
        ],
        Role::Privacy => &["subject.*", "request.*", "rpc.discover", "system.health"],
        Role::Auditor => &[
            "audit.get",
            "audit.query",
            "audit.tail",
            "audit.checkpoint",
            "audit.prove",
            "audit.consistency",
            "audit.verify",
            "job.list",
            "job.history",
            "backup.list",
            "rpc.discover",
            "system.health",
            "system.status",
        ],
        Role::Operator => &[
            "system.*",
            "job.*",
            "backup.*",
            "keyring.*",
            "audit.checkpoint",
            "audit.verify",
            "rpc.discover",
        ],
        Role::Admin => &["*"],
    }
}

impl Policy {
    /// Resolves the names in the rules; `known` are the names of all methods.
    ///
    /// # Errors
    /// [`PolicyError`]: a rule that would silently do nothing.
    pub fn new(access: &Access, known: &[&str]) -> Result<Self, PolicyError> {
        let own = Uid::effective().as_raw();
        if access.rules.is_empty() {
            return Ok(Self { own, rules: defaults() });
        }
        let mut rules = Vec::with_capacity(access.rules.len());
        for (index, rule) in access.rules.iter().enumerate() {
            let who = match (&rule.user, &rule.group) {
                (Some(user), _) => Who::User(user_id(user).ok_or_else(|| unknown(index, "user", user))?),
                (None, Some(group)) => {
                    Who::Group(group_id(group).ok_or_else(|| unknown(index, "group", group))?)
                }
                (None, None) => continue,
            };
            if let Some(glob) = rule.allow.iter().find(|glob| !known.iter().any(|name| matches(glob, name))) {
                return Err(PolicyError::NoMethod { index, glob: glob.clone() });
            }
            let of_role = rule.role.into_iter().flat_map(methods).map(|glob| (*glob).to_owned());
            rules.push(Rule { who, methods: of_role.chain(rule.allow.iter().cloned()).collect() });
        }
        Ok(Self { own, rules })
    }

    /// Whether this peer may call this method. Root and the daemon's own user always may.
    pub fn allows(&self, peer: &Peer, method: &str) -> bool {
        peer.uid == 0
            || peer.uid == self.own
            || self
                .rules
                .iter()
                .any(|rule| rule.who.is(peer) && rule.methods.iter().any(|glob| matches(glob, method)))
    }
}

impl Who {
    fn is(self, peer: &Peer) -> bool {
        match self {
            Self::User(uid) => peer.uid == uid,
            Self::Group(gid) => peer.gid == gid || peer.groups.contains(&gid),
        }
    }
}

/// Groups that this host does not have give nothing to nobody.
fn defaults() -> Vec<Rule> {
    let group = |name: &str, role| {
        let gid = group_id(&NameOrId::Name(name.to_owned()))?;
        Some(Rule {
            who: Who::Group(gid),
            methods: methods(role).iter().map(|glob| (*glob).to_owned()).collect(),
        })
    };
    [group(USERS, Role::App), group(ADMINS, Role::Admin)].into_iter().flatten().collect()
}

fn unknown(index: usize, kind: &'static str, name: &NameOrId) -> PolicyError {
    let name = match name {
        NameOrId::Id(id) => id.to_string(),
        NameOrId::Name(name) => name.clone(),
    };
    PolicyError::Unknown { index, kind, name }
}

fn user_id(user: &NameOrId) -> Option<u32> {
    match user {
        NameOrId::Id(id) => Some(*id),
        NameOrId::Name(name) => User::from_name(name).ok().flatten().map(|user| user.uid.as_raw()),
    }
}

fn group_id(group: &NameOrId) -> Option<u32> {
    match group {
        NameOrId::Id(id) => Some(*id),
        NameOrId::Name(name) => Group::from_name(name).ok().flatten().map(|group| Gid::as_raw(group.gid)),
    }
}

/// Whether a name is what a glob stands for: `*` is any number of any characters.
fn matches(glob: &str, name: &str) -> bool {
    match glob.split_once('*') {
        None => glob == name,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len())
                .filter(|at| rest.is_char_boundary(*at))
                .any(|at| matches(after, rest.get(at..).unwrap_or_default()))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::{Policy, matches};
    use crate::config::{Access, AccessRule, NameOrId, Role};
    use crate::rpc::peer::Peer;

    fn peer(uid: u32, gid: u32, groups: &[u32]) -> Peer {
        Peer {
            uid,
            gid,
            groups: groups.to_vec(),
            pid: None,
            turns: crate::audit::Turns::default(),
            pinned: crate::audit::Pinned::default(),
        }
    }

    fn policy(rules: Vec<AccessRule>) -> Policy {
        Policy::new(
            &Access { rules, ..Access::default() },
            &["profile.get", "profile.create", "system.health"],
        )
        .unwrap()
    }

    #[test]
    fn globs_stand_for_any_characters() {
        assert!(
            matches("audit.append*", "audit.append_many") && matches("*", "x.y") && matches("a*c*", "abcd")
        );
        assert!(!matches("audit.append*", "audit.query") && !matches("a", "ab") && !matches("", "a"));
    }

    #[test]
    fn rules_go_by_user_primary_group_and_supplementary_group() {
        let rules = vec![
            AccessRule { user: Some(NameOrId::Id(4001)), role: Some(Role::App), ..AccessRule::default() },
            AccessRule {
                group: Some(NameOrId::Id(5001)),
                allow: vec!["profile.get".into()],
                ..AccessRule::default()
            },
        ];
        let policy = policy(rules);
        assert!(policy.allows(&peer(4001, 1, &[]), "profile.create"));
        assert!(!policy.allows(&peer(4001, 1, &[]), "system.status"));
        assert!(policy.allows(&peer(4002, 5001, &[]), "profile.get"));
        assert!(policy.allows(&peer(4002, 1, &[7, 5001]), "profile.get"));
        assert!(!policy.allows(&peer(4002, 1, &[7, 5001]), "profile.create"));
        assert!(!policy.allows(&peer(4002, 1, &[7]), "system.health"));
        assert!(policy.allows(&peer(0, 0, &[]), "anything"));
    }

    #[test]
    fn a_rule_that_would_do_nothing_is_refused() {
        let access = |rule| Access { rules: vec![rule], ..Access::default() };
        let nobody = AccessRule {
            user: Some(NameOrId::Name("no-such-user".into())),
            role: Some(Role::App),
            ..AccessRule::default()
        };
        assert!(Policy::new(&access(nobody), &["a.b"]).unwrap_err().to_string().contains("no-such-user"));
        let nothing = AccessRule {
            user: Some(NameOrId::Id(1)),
            allow: vec!["profil.*".into()],
            ..AccessRule::default()
        };
        assert!(
            Policy::new(&access(nothing), &["profile.get"]).unwrap_err().to_string().contains("profil.*")
        );
    }
}
