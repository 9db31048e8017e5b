//! The environment of a command: `sudo`'s own rules, as Debian has them.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

use super::link::{Request, Shell, Text};
use crate::{envd::User, spawner::DEFAULT_PATH};

/// What of a caller's environment says how things look and not what is done.
const HARMLESS: [&str; 15] = [
    "COLORS",
    "COLORTERM",
    "DISPLAY",
    "HOSTNAME",
    "LANG",
    "LANGUAGE",
    "LS_COLORS",
    "PS1",
    "PS2",
    "TERM",
    "TZ",
    "XAUTHORITY",
    "XAUTHORIZATION",
    "XDG_CURRENT_DESKTOP",
    "KRB5CCNAME",
];

/// What stays of a caller's environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Keep {
    /// What is harmless, and what is named.
    These(Vec<OsString>),
    /// All of it.
    All,
}

impl Keep {
    /// As `NAME=value`.
    pub(super) fn of(&self, env: impl Iterator<Item = (OsString, OsString)>) -> Vec<Text> {
        let stays = |name: &OsStr| match self {
            Self::All => true,
            Self::These(named) => {
                name.to_str().is_some_and(|name| HARMLESS.contains(&name) || name.starts_with("LC_"))
                    || named.iter().any(|wanted| wanted == name)
            }
        };
        let pair = |(name, value): (OsString, OsString)| [name.as_bytes(), b"=", value.as_bytes()].concat();
        env.filter(|(name, _)| stays(name)).map(pair).collect()
    }
}

/// Who asks.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) name: String,
}

/// The environment of what `user` is to run, `words`, for `caller`.
pub(super) fn of_command(request: &Request, words: &[Text], user: &User, caller: &Caller) -> BTreeMap<OsString, OsString> {
    let mut env: BTreeMap<OsString, OsString> = request.kept.iter().filter_map(|text| pair(text)).collect();
    let mut put = |name: &str, value: OsString| env.insert(name.into(), value);
    let home = || user.home.clone().into_os_string();
    if !request.preserves || request.shell == Shell::Login {
        put("HOME", home());
        put("SHELL", user.shell.clone().into());
        put("MAIL", format!("/var/mail/{}", user.name).into());
    }
    if request.sets_home {
        put("HOME", home());
    }
    put("PATH", DEFAULT_PATH.into());
    put("USER", user.name.clone().into());
    put("LOGNAME", user.name.clone().into());
    put("SUDO_USER", caller.name.clone().into());
    put("SUDO_UID", caller.uid.to_string().into());
    put("SUDO_GID", caller.gid.to_string().into());
    put("SUDO_COMMAND", OsString::from_vec(words.join(&b' ')));
    env.extend(request.set.iter().filter_map(|text| pair(text)));
    env
}

fn pair(text: &[u8]) -> Option<(OsString, OsString)> {
    let at = text.iter().position(|byte| *byte == b'=').filter(|at| *at > 0 && !text.contains(&0))?;
    Some((OsString::from_vec(text[..at].to_vec()), OsString::from_vec(text[at + 1..].to_vec())))
}

#[cfg(test)]
mod tests {
    use nix::unistd::{Gid, Uid};

    use super::*;

    fn made(request: &Request) -> BTreeMap<OsString, OsString> {
        let root = User {
            name: "root".into(),
            uid: Uid::from_raw(0),
            gid: Gid::from_raw(0),
            groups: Vec::new(),
            home: "/root".into(),
            shell: "/bin/bash".into(),
        };
        let caller = Caller { uid: 1000, gid: 1001, name: "user".into() };
        of_command(request, &[b"/bin/ls".to_vec(), b"-l".to_vec()], &root, &caller)
    }

    fn given() -> impl Iterator<Item = (OsString, OsString)> {
        [
            ("HOME", "/home/user"),
            ("TERM", "xterm"),
            ("LC_ALL", "C"),
            ("LD_PRELOAD", "/tmp/x.so"),
            ("SHELL", "/bin/zsh"),
            ("A", "b=c"),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .into_iter()
    }

    #[test]
    fn a_command_has_the_environment_of_whom_it_runs_as() {
        let env = made(&Request { kept: Keep::These(vec!["A".into()]).of(given()), ..Request::default() });
        for (name, value) in [
            ("HOME", "/root"),
            ("SHELL", "/bin/bash"),
            ("USER", "root"),
            ("TERM", "xterm"),
            ("LC_ALL", "C"),
            ("A", "b=c"),
            ("PATH", DEFAULT_PATH),
            ("SUDO_USER", "user"),
            ("SUDO_UID", "1000"),
            ("SUDO_GID", "1001"),
            ("SUDO_COMMAND", "/bin/ls -l"),
        ] {
            assert_eq!(env[OsStr::new(name)], value, "{name}");
        }
        assert!(!env.contains_key(OsStr::new("LD_PRELOAD")));
    }

    #[test]
    fn what_is_asked_for_stays_and_what_is_set_wins() {
        let kept = Keep::All.of(given());
        let asked = Request { kept, preserves: true, set: vec![b"A=set".to_vec(), b"=none".to_vec()], ..Request::default() };
        let env = made(&asked);
        for (name, value) in
            [("HOME", "/home/user"), ("SHELL", "/bin/zsh"), ("LD_PRELOAD", "/tmp/x.so"), ("A", "set"), ("USER", "root")]
        {
            assert_eq!(env[OsStr::new(name)], value, "{name}");
        }
        let with_home = made(&Request { sets_home: true, ..asked });
        assert_eq!(with_home[OsStr::new("HOME")], "/root");
    }
}
