#!/bin/sh
# Makes a sandbox's root file system of a tree of freshly installed packages, whose root is $1.
# Run by mmdebstrap, as root, with /proc, /sys and /dev of the tree mounted. No program of the tree is started as a service.
set -eu
root="$1"

# The default user, with a password that no input matches and sudo that asks for none.
chroot "$root" useradd --create-home --uid 1000 --user-group --shell /bin/bash --groups sudo user
echo 'user ALL=(ALL:ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/user"
chmod 0440 "$root/etc/sudoers.d/user"
install -d -m 0777 "$root/code"

# Regular files: the agent rewrites them, and must not follow a link out of the tree.
rm -f "$root/etc/hostname" "$root/etc/hosts" "$root/etc/resolv.conf" "$root/etc/machine-id" "$root/etc/fstab"
echo sandbox >"$root/etc/hostname"
printf '127.0.0.1\tlocalhost\n127.0.1.1\tsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n' >"$root/etc/hosts"
: >"$root/etc/resolv.conf"
: >"$root/etc/machine-id"
: >"$root/etc/fstab"
chmod 0644 "$root/etc/hostname" "$root/etc/hosts" "$root/etc/resolv.conf" "$root/etc/fstab"
chmod 0444 "$root/etc/machine-id"

printf 'LANG=C.UTF-8\n' >"$root/etc/default/locale"
ln -sf /usr/share/zoneinfo/Etc/UTC "$root/etc/localtime"
echo Etc/UTC >"$root/etc/timezone"

# Debian's profile starts a process to learn its own user, which bash knows: half of what a login shell costs, before each command.
sed -i 's/\$(id -u)/${EUID:-$(id -u)}/' "$root/etc/profile"

# A sandbox is thrown away: `pip install` may put packages beside those of the distribution.
printf '[global]\nbreak-system-packages = true\ndisable-pip-version-check = true\n' >"$root/etc/pip.conf"

# A font with the characters of Chinese, Japanese and Korean is asked where matplotlib's own lack one.
if [ -f "$root/etc/matplotlibrc" ]; then
  echo "font.family: sans-serif, WenQuanYi Micro Hei" >>"$root/etc/matplotlibrc"
fi

# What the build told apt and dpkg about this machine does not belong into the image; what keeps it small does.
rm -f "$root/etc/apt/apt.conf.d/99mmdebstrap"
echo 'Acquire::Languages "none";' >"$root/etc/apt/apt.conf.d/99sandbox"
mv "$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap" "$root/etc/dpkg/dpkg.cfg.d/99sandbox"

# Nothing that two sandboxes would share, nothing that only the build needed. The package lists, apt's cache, /tmp and /run
# are not touched here: mmdebstrap empties them after this, with an apt whose configuration for this tree still is in /tmp.
# Without that file it would take the host's lists for the tree's.
rm -f "$root"/etc/ssh/ssh_host_* "$root/var/lib/dbus/machine-id" "$root/var/lib/systemd/random-seed"
rm -rf "$root"/var/cache/debconf/*-old "$root"/var/log/*.log
