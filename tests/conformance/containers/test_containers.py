"""What mounts, tunnels and container engines need of a sandbox: tools, kernel modules, devices, control groups, and Debian's
Docker, which works through all of them, in every life of a sandbox.

The container's image is made inside, of one static program: no registry is asked, only the sandbox's Debian mirror.
"""

import e2b
import pytest
from support import WAIT_S, Brood

INSTALL_S = 600
"""An emulated guest takes near three minutes to install Docker."""

SERVED = "served by a container"

# Docker confines containers where the kernel has AppArmor, by a profile that `apparmor` loads. It recommends that package, as it
# does others that are not needed.
INSTALL = """
set -e
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends docker.io apparmor busybox-static
"""

RUN = f"""
set -e
until docker info >/dev/null 2>&1; do sleep 0.1; done
mkdir -p /tmp/image/bin /tmp/image/www
cp /bin/busybox /tmp/image/bin/
echo '{SERVED}' >/tmp/image/www/index.html
tar -C /tmp/image -c . | docker import - local
docker run --detach --name web --publish 8080:80 local /bin/busybox httpd -f -p 80 -h /www
until curl -sf http://127.0.0.1:8080/; do sleep 0.1; done
"""

# Out through the bridge and two translations of addresses, by name, to where the sandbox's own packages come from.
FETCH = """
mirror=$(grep -rhoE 'https?://[^ ]+' /etc/apt/sources.list* | head -n 1)
docker exec web /bin/busybox wget -qO- "$mirror/dists/bookworm/Release" | grep '^Codename:'
"""


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


@pytest.mark.lacking(gvisor="its kernel has no modules, no Landlock and no AppArmor")
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


@pytest.mark.lacking(gvisor="its kernel mounts no file system of a disk's, swaps to none and has no nf_tables")
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


@pytest.mark.lacking(gvisor="Docker's bridge needs nf_tables, and its overlay driver what gVisor's kernel has not")
@pytest.mark.timeout(900)  # a guest that may be emulated installs a container engine
def test_docker_runs_a_container_with_its_network_in_every_life(brood, api):
    sandbox = brood()
    as_root(sandbox, INSTALL, INSTALL_S)
    sandbox.commands.run("exec dockerd >/tmp/dockerd.log 2>&1", user="root", background=True, timeout=0)
    as_root(sandbox, RUN, INSTALL_S)
    assert_container_works(sandbox, api)

    sandbox.pause()
    sandbox.connect()
    assert_container_works(sandbox, api)
    (fork,) = sandbox.fork()
    assert_container_works(brood.adopt(fork), api)


def assert_container_works(sandbox, api) -> None:
    """The engine knows the container, which reaches what is outside and is reached from there by its published port."""
    assert as_root(sandbox, FETCH) == "Codename: bookworm\n"
    with api.through_proxy(sandbox.sandbox_id, 8080) as web:
        answer = web.get("/")
        assert (answer.status_code, answer.text.strip()) == (200, SERVED)
