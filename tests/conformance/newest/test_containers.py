"""What container engines, mounts and tunnels need of a sandbox: tools, kernel modules, devices, control groups, and an engine
that works through them, across everything that can become of a sandbox.

The container's image is made inside, of one static program: nothing is pulled, and the sandbox only needs its Debian mirror.
"""

import e2b
import pytest
from support import SANDBOX_LIFETIME_S, WAIT_S, Brood, wait_for

INSTALL_S = 600
"""Installing an engine from Debian takes an emulated guest two minutes on an idle host."""

ENGINE_S = 180
"""A daemon or a container that starts on an emulated CPU that has not seen its code before."""

SERVED = "served by a container"

INSTALL = "apt-get update -q && apt-get install -yq --no-install-recommends docker.io busybox-static"

IMAGE = f"""
mkdir -p /tmp/image/bin /tmp/image/www
cp /bin/busybox /tmp/image/bin/
for name in sh httpd wget ip; do ln -s busybox /tmp/image/bin/$name; done
echo '{SERVED}' >/tmp/image/www/index.html
tar -C /tmp/image -c . | docker import - local
"""

WEB = "docker run --detach --name web --publish 8080:80 local /bin/httpd -f -p 80 -h /www"


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


@pytest.mark.timeout(1200)  # an engine is installed by an emulated guest
def test_a_container_runs_with_its_network_through_pause_and_fork(brood, api):
    sandbox = brood()
    as_root(sandbox, INSTALL, INSTALL_S)
    sandbox.commands.run("exec dockerd >/tmp/dockerd.log 2>&1", user="root", background=True, timeout=0)
    as_root(sandbox, "until docker info >/dev/null 2>&1; do sleep 0.2; done", ENGINE_S)
    as_root(sandbox, IMAGE, ENGINE_S)
    as_root(sandbox, WEB, ENGINE_S)
    assert_serves(sandbox, api)
    # Out through the bridge and two NATs, by name, to where the sandbox's own packages come from.
    mirror = as_root(sandbox, "grep -rhoE 'https?://[^ ]+' /etc/apt/sources.list* | head -n 1").strip()
    as_root(sandbox, f"docker run --rm local /bin/wget -qO- {mirror}/dists/bookworm/Release | grep -q '^Codename: bookworm'", ENGINE_S)

    sandbox.pause()
    sandbox.connect()
    assert_serves(sandbox, api)
    [fork] = sandbox.fork(count=1, timeout=SANDBOX_LIFETIME_S)
    brood.adopt(fork)
    assert_serves(fork, api)


def assert_serves(sandbox, api) -> None:
    """The container answers through its published port, from inside and from the host, and its engine knows it."""
    assert as_root(sandbox, "docker exec web /bin/wget -qO- http://127.0.0.1/", ENGINE_S).strip() == SERVED
    assert as_root(sandbox, "curl -sf http://127.0.0.1:8080/", ENGINE_S).strip() == SERVED
    with api.through_proxy(sandbox.sandbox_id, 8080) as web:
        answer = wait_for(lambda: web.get("/"), "the published port")
        assert (answer.status_code, answer.text.strip()) == (200, SERVED)
