"""What mounts, tunnels and container engines need of a sandbox: tools, kernel modules, devices, control groups."""

import e2b
import pytest
from support import WAIT_S, Brood


def as_root(sandbox, command: str, timeout: float = WAIT_S) -> str:
    return sandbox.commands.run(command, user="root", timeout=timeout).stdout


@pytest.fixture(scope="module")
def brood(api):
    """These are about the guest, not about the SDK, and long: with one of its two faces they say everything."""
    brood = Brood(e2b.Sandbox, api)
    yield brood
    brood.end()


@pytest.fixture(scope="module")
def machine(brood):
    return brood()


def test_tools_modules_and_devices_are_there(machine):
    for tool in ["mount", "modprobe", "swapon", "mkfs.ext4", "nft", "iptables", "ping", "jq", "unzip", "zip", "socat", "less", "rg"]:
        assert as_root(machine, f"command -v {tool}"), tool
    assert as_root(machine, "stat -c %a /dev/fuse /dev/net/tun") == "666\n666\n"
    assert as_root(machine, "findmnt -no PROPAGATION /") == "shared\n"
    security = as_root(machine, "cat /sys/kernel/security/lsm")
    assert "landlock" in security and "apparmor" in security
    assert {"cpu", "memory", "pids"} <= set(as_root(machine, "cat /sys/fs/cgroup/cgroup.controllers").split())
    as_root(machine, "modprobe -a overlay veth bridge br_netfilter nf_tables nf_nat xt_MASQUERADE dm_mod wireguard nfs cifs")
    ping = machine.commands.run("ping -c 1 -W 5 127.0.0.1")
    assert ping.exit_code == 0


def test_file_systems_are_made_and_mounted(machine):
    # Nothing is loaded first: the kernel asks for what it needs.
    as_root(
        machine,
        "set -e; cd /tmp; truncate -s 64M disk; mkfs.ext4 -q disk; mkdir -p m l u w o; mount -o loop disk m; echo a >l/a;"
        "mount -t overlay overlay -o lowerdir=l,upperdir=u,workdir=w o; echo b >o/b; test -e u/b; umount o m;"
        "dd if=/dev/zero of=swap bs=1M count=16 status=none; chmod 600 swap; mkswap -q swap; swapon swap; swapoff swap;"
        "nft add table inet t; nft delete table inet t; iptables -t nat -S >/dev/null",
    )


def test_node_and_its_package_managers_are_recent(machine):
    assert int(machine.commands.run("node -p 'process.versions.node.split(`.`)[0]'").stdout) >= 20
    for manager in ["npm", "npx", "yarn", "pnpm", "corepack"]:
        assert machine.commands.run(f"{manager} --version").stdout[0].isdigit(), manager
