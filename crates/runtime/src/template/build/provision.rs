//! Scripts that prepare a guest: users, directories, and what an image lacks to be a sandbox.
//!
//! An image may hold next to nothing, so they need bash and a few programs that every image with a shell has; the files of users
//! are read and written by bash itself. What comes from a build's steps is handed over in the environment, never as text of a script.

/// Functions that the others are made of. They end with a line on standard error, which is told as the reason.
const LIBRARY: &str = r#"
set -e
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
refuse() { printf '%s\n' "$*" >&2; exit 1; }
# row FILE COLUMN VALUE: puts the first row with that value there into `fields`.
row() {
  fields=()
  [ -r "$1" ] || return 1
  while IFS=: read -r -a fields || [ "${#fields[@]}" -gt 0 ]; do
    if [ "${fields[$2]-}" = "$3" ]; then return 0; fi
  done < "$1"
  return 1
}
# append FILE LINE
append() {
  local lines=()
  if [ -s "$1" ]; then
    mapfile lines < "$1"
    case "${lines[-1]}" in *$'\n') ;; *) printf '\n' >> "$1" ;; esac
  fi
  printf '%s\n' "$2" >> "$1"
}
# make_dirs PATH UID GID: makes what is missing and gives it away.
make_dirs() {
  if [ -d "$1" ]; then return 0; fi
  if [ -e "$1" ] || [ -L "$1" ]; then refuse "$1 is there and is no directory"; fi
  local first=$1 above=$1
  while [ -n "$above" ] && [ ! -e "$above" ] && [ ! -L "$above" ]; do first=$above; above=${above%/*}; done
  mkdir -p -- "$1"
  chown -R "$2:$3" -- "$first"
}
# make_user NAME UID: nothing if it exists. Without a uid it gets the first that is free.
make_user() {
  if row /etc/passwd 0 "$1"; then return 0; fi
  local uid=$2 gid
  if [ -z "$uid" ]; then
    uid=1000
    while row /etc/passwd 2 "$uid" || row /etc/group 2 "$uid"; do uid=$((uid + 1)); done
  fi
  gid=$uid
  if row /etc/group 0 "$1"; then gid=${fields[2]}; elif ! row /etc/group 2 "$gid"; then append /etc/group "$1:x:$gid:"; fi
  append /etc/passwd "$1:x:$uid:$gid::/home/$1:/bin/bash"
  if [ -e /etc/shadow ]; then append /etc/shadow "$1:*:19000:0:99999:7:::"; fi
  if [ ! -d "/home/$1" ]; then
    mkdir -p "/home/$1"
    if [ -d /etc/skel ]; then cp -R /etc/skel/. "/home/$1/"; fi
  fi
  chown -R "$uid:$gid" "/home/$1"
}
# may_sudo NAME
may_sudo() {
  mkdir -p /etc/sudoers.d
  printf '%s ALL=(ALL:ALL) NOPASSWD: ALL\n' "$1" > "/etc/sudoers.d/firkin-$1"
  chmod 0440 "/etc/sudoers.d/firkin-$1"
}
# group GROUP: puts its id, or the number itself, into `gid`.
group() {
  if row /etc/group 0 "$1"; then gid=${fields[2]}; return 0; fi
  case "$1" in *[!0-9]*|'') refuse "there is no group '$1'" ;; *) gid=$1 ;; esac
}
# owner USER[:GROUP]: puts both ids into `uid` and `gid`.
owner() {
  local name=${1%%:*}
  if row /etc/passwd 0 "$name"; then uid=${fields[2]} gid=${fields[3]}
  elif row /etc/passwd 2 "$name"; then uid=$name gid=${fields[3]}
  else
    case "$name" in *[!0-9]*|'') refuse "there is no user '$name'" ;; *) uid=$name gid=$name ;; esac
  fi
  case "$1" in *:*) group "${1#*:}" ;; esac
}
"#;

/// Makes a sandbox's guest of an image. Says what it lacks that can be done without.
const PROVISION: &str = r#"
for tool in mkdir chown chmod cp; do
  command -v $tool > /dev/null || refuse "it has no \`$tool\`: an image needs bash and the usual small programs"
done
mkdir -p /tmp /etc /root
chmod 1777 /tmp
make_user user ''
may_sudo user
owner user
make_dirs /home/user "$uid" "$gid"
mkdir -p /code /usr/local
chmod 777 /code /usr/local
command -v sudo > /dev/null || printf 'the image has no sudo: install it in a step if commands need it\n'
"#;

/// `FK_USER`, `FK_SUDO`: makes the user unless it exists, and says its name. A number is that user, by whatever name.
const USER: &str = r#"
case "$FK_USER" in
  *[!0-9]*) name=$FK_USER; make_user "$name" '' ;;
  *) if row /etc/passwd 2 "$FK_USER"; then name=${fields[0]}; else name=u$FK_USER; make_user "$name" "$FK_USER"; fi ;;
esac
if [ -n "$FK_SUDO" ]; then may_sudo "$name"; fi
printf '%s' "$name"
"#;

/// `FK_OWNER`, `FK_PATH`: makes the directory.
const WORKDIR: &str = r#"owner "$FK_OWNER"; make_dirs "$FK_PATH" "$uid" "$gid""#;

/// `FK_OWNER`, `FK_PATH`, `FK_DIRECTORY`: makes the place for a copy. Says uid, gid, and whether the path is a directory.
const DESTINATION: &str = r#"
command -v tar > /dev/null || refuse "there is no \`tar\` in the image"
owner "$FK_OWNER"
into=
if [ -n "$FK_DIRECTORY" ] || [ -d "$FK_PATH" ]; then
  make_dirs "$FK_PATH" "$uid" "$gid"
  into=yes
else
  parent=${FK_PATH%/*}
  make_dirs "${parent:-/}" "$uid" "$gid"
fi
printf '%s %s %s' "$uid" "$gid" "$into"
"#;

/// `FK_ARCHIVE`: unpacks it over the root directory. GNU's tar keeps the links and directories that are there.
const UNPACK: &str = r#"
trap 'rm -f -- "$FK_ARCHIVE"' EXIT
options=
case "$(tar --version 2> /dev/null)" in *GNU*) options="--numeric-owner --keep-directory-symlink --no-overwrite-dir" ;; esac
tar -x -p $options -f "$FK_ARCHIVE" -C /
"#;

/// `FK_NAMES`: values of these variables, each with a NUL behind it.
const VARIABLES: &str = r#"for name in $FK_NAMES; do printf '%s\0' "${!name-}"; done"#;

/// A script for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Script {
    Provision,
    User,
    Workdir,
    Destination,
    Unpack,
    Variables,
}

impl Script {
    /// Its text.
    pub(super) fn text(self) -> String {
        let body = match self {
            Self::Provision => PROVISION,
            Self::User => USER,
            Self::Workdir => WORKDIR,
            Self::Destination => DESTINATION,
            Self::Unpack => UNPACK,
            // As the user has it, without our own paths.
            Self::Variables => return VARIABLES.to_owned(),
        };
        format!("{LIBRARY}\n{body}")
    }
}
