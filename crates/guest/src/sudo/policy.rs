//! Who may do everything: root, the sandbox's default user, the members of `sudo`, and whom a template's build allowed it.

use std::path::Path;

use crate::envd::UserDb;

/// Its members may, by the custom of Debian.
const GROUP: &str = "sudo";
/// Where a build of a template notes the users whom it allows everything; the rest of the name is the user's.
const NOTED: &str = "etc/sudoers.d/firkin-";

/// Whether the user with this id may, on the file system below `root`.
pub(super) fn may(users: &UserDb, uid: u32, default_user: &str, root: &Path) -> bool {
    let name = users.owner_name(uid);
    let Ok(user) = users.user(&name) else { return uid == 0 };
    let in_group = users.group_id(GROUP).is_some_and(|group| user.groups.contains(&group));
    uid == 0 || name == default_user || in_group || root.join(format!("{NOTED}{name}")).is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_named_may() {
        let root = tempfile::tempdir().unwrap();
        fs_err::create_dir_all(root.path().join("etc/sudoers.d")).unwrap();
        fs_err::write(root.path().join("etc/sudoers.d/firkin-built"), "").unwrap();
        let users = UserDb::of(
            "root:x:0:0::/root:\nuser:x:1000:1000::/:\nmember:x:1001:1001::/:\nbuilt:x:1002:1002::/:\nother:x:1003:1003::/:\n",
            "sudo:x:27:member\nusers:x:100:other\n",
        );
        let may = |uid| may(&users, uid, "user", root.path());
        assert_eq!([0, 1000, 1001, 1002].map(may), [true; 4]);
        assert_eq!([1003, 4242, u32::MAX].map(may), [false; 3], "nobody else, and nobody without a name");
        assert!(super::may(&UserDb::of("", ""), 0, "user", root.path()), "root is root without a name too");
    }
}
