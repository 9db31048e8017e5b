//! Users and groups, read from `/etc/passwd` and `/etc/group`.
//!
//! The binary is static, and a static glibc cannot load the name-service modules; the two files are what a sandbox has.

use std::{io, path::PathBuf};

use connectrpc::ConnectError;
use firkin_causes::chain;
use nix::unistd::{Gid, Uid};

/// A row of `/etc/passwd` with the groups it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    /// Login name.
    pub(crate) name: String,
    /// User id.
    pub(crate) uid: Uid,
    /// Primary group.
    pub(crate) gid: Gid,
    /// Every group, the primary one first.
    pub(crate) groups: Vec<Gid>,
    /// Home directory.
    pub(crate) home: PathBuf,
    /// Login shell; `/bin/sh` when the file names none.
    pub(crate) shell: String,
}

/// The two files, as they were when the request came.
#[derive(Debug, Default)]
pub(crate) struct UserDb {
    passwd: String,
    group: String,
}

/// Why a user cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    /// The files cannot be read.
    #[error("cannot read the users of this machine")]
    Read(#[source] io::Error),
    /// No such user. The words are the contract's.
    #[error("invalid username: '{0}'")]
    Unknown(String),
}

impl From<UserError> for ConnectError {
    fn from(error: UserError) -> Self {
        match error {
            UserError::Read(_) => Self::internal(chain(&error)),
            UserError::Unknown(_) => Self::unauthenticated(error.to_string()),
        }
    }
}

impl UserDb {
    /// With this in the two files.
    #[cfg(test)]
    pub(crate) fn of(passwd: &str, group: &str) -> Self {
        Self { passwd: passwd.to_owned(), group: group.to_owned() }
    }

    /// Reads both files; a missing one is empty.
    pub(crate) fn load() -> Result<Self, UserError> {
        Ok(Self { passwd: read_or_empty("/etc/passwd")?, group: read_or_empty("/etc/group")? })
    }

    /// The user of this name.
    pub(crate) fn user(&self, name: &str) -> Result<User, UserError> {
        self.passwd
            .lines()
            .filter_map(|line| self.parse_user(line))
            .find(|user| user.name == name)
            .ok_or_else(|| UserError::Unknown(name.to_owned()))
    }

    /// Name of a user id, or the number itself.
    pub(crate) fn owner_name(&self, uid: u32) -> String {
        name_of(&self.passwd, uid)
    }

    /// Name of a group id, or the number itself.
    pub(crate) fn group_name(&self, gid: u32) -> String {
        name_of(&self.group, gid)
    }

    /// The id of a group.
    pub(crate) fn group_id(&self, name: &str) -> Option<Gid> {
        self.group.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok().map(Gid::from_raw))?
        })
    }

    fn parse_user(&self, line: &str) -> Option<User> {
        let fields: Vec<&str> = line.split(':').collect();
        let &[name, _, uid, gid, _, home, shell] = fields.as_slice() else { return None };
        let gid = Gid::from_raw(gid.parse().ok()?);
        let mut groups = vec![gid];
        groups.extend(self.groups_with_member(name).filter(|&other| other != gid));
        Some(User {
            name: name.to_owned(),
            uid: Uid::from_raw(uid.parse().ok()?),
            gid,
            groups,
            home: PathBuf::from(if home.is_empty() { "/" } else { home }),
            shell: if shell.is_empty() { "/bin/sh" } else { shell }.to_owned(),
        })
    }

    fn groups_with_member<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Gid> + 'a {
        self.group.lines().filter_map(move |line| {
            let mut fields = line.split(':').skip(2);
            let gid = fields.next()?.parse().ok()?;
            fields.next()?.split(',').any(|member| member == name).then(|| Gid::from_raw(gid))
        })
    }
}

fn read_or_empty(path: &str) -> Result<String, UserError> {
    match fs_err::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other.map_err(UserError::Read),
    }
}

/// The first field of the row whose third field is `id`: names stand first and ids third in both files.
fn name_of(table: &str, id: u32) -> String {
    let id = id.to_string();
    let row = table.lines().find(|line| line.split(':').nth(2) == Some(&id));
    row.and_then(|line| line.split(':').next()).map_or(id.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn db() -> UserDb {
        UserDb {
            passwd: "root:x:0:0:root:/root:/bin/bash\nbroken\nuser:x:1000:1001::/home/user:\n".to_owned(),
            group: "root:x:0:\nsudo:x:27:user,other\nuser:x:1001:\ntty:x:5:\n".to_owned(),
        }
    }

    #[test]
    fn a_user_has_home_shell_and_groups() {
        let user = db().user("user").unwrap();
        assert_eq!((user.uid.as_raw(), user.gid.as_raw()), (1000, 1001));
        assert_eq!(user.groups, [1001, 27].map(Gid::from_raw));
        assert_eq!(user.shell, "/bin/sh");
        assert!(matches!(db().user("nobody"), Err(UserError::Unknown(_))));
    }

    #[test]
    fn ids_without_a_name_stay_numbers() {
        assert_eq!(db().owner_name(1000), "user");
        assert_eq!(db().group_name(27), "sudo");
        assert_eq!(db().owner_name(4242), "4242");
        assert_eq!(db().group_id("tty"), Some(Gid::from_raw(5)));
        assert_eq!(db().group_id("none"), None);
    }
}
