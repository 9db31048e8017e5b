"""A little internet beside the host, for tests of what sandboxes reach: a namespace with servers, which the host routes to.

Its addresses are of networks that are nobody's (RFC 5737), so sandboxes may reach it, and nothing else does. Each run of tests on a host has
some of its own: with the same, one run's requests would come to the other's servers, which have another authority's certificates.
"""

import ipaddress
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading

import pytest
from support import wait_for

HERE = pathlib.Path(__file__).parent
BLOCKS = [block for net in ("198.51.100.0/24", "203.0.113.0/24") for block in ipaddress.ip_network(net).subnets(new_prefix=28)]


def claimed() -> tuple[socket.socket, int]:
    """A block that no other run has: its claim is a name in this network namespace, which goes with the process."""
    for number in range(len(BLOCKS)):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0firkin-tests-outside-{number}")
            return claim, number
        except OSError:
            claim.close()
    raise RuntimeError(f"{len(BLOCKS)} runs of tests on this host have taken all addresses outside")


CLAIM, BLOCK = claimed()
NEAR, ALLOWED, OTHER, RESOLVER, PROXY = map(str, list(BLOCKS[BLOCK].hosts())[:5])
FAR = [ALLOWED, OTHER, RESOLVER, PROXY]
RECORDS = {
    "allowed.test": [ALLOWED],
    "other.test": [OTHER],
    "wild.test": [OTHER],
    "deep.wild.test": [OTHER],
    "ours.test": ["169.254.169.254", "10.0.0.1", "127.0.0.1"],
    "proxy.test": [PROXY],
}
USER, PASSWORD = "someone", "correct-horse-battery"


class Outside:
    """The servers, and what they saw."""

    def __init__(self, scratch: pathlib.Path) -> None:
        certificate = scratch / "certificate.pem"
        self.authority = scratch / "authority.pem"
        """Whom a client must believe to believe the servers."""
        names = ",".join([*(f"DNS:{name}" for name in RECORDS), *(f"IP:{address}" for address in (ALLOWED, OTHER))])
        request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        own = ["-subj", "/CN=authority outside", "-keyout", scratch / "key", "-out", self.authority]
        by = ["-CA", self.authority, "-CAkey", scratch / "key", "-addext", f"subjectAltName={names}"]
        end = ["-addext", "basicConstraints=critical,CA:FALSE", "-subj", "/CN=outside"]
        for command in ([*request, *own], [*request, *by, *end, "-keyout", certificate, "-out", scratch / "cert"]):
            subprocess.run(command, check=True, capture_output=True)
        certificate.write_text(certificate.read_text() + (scratch / "cert").read_text())
        words = [json.dumps(RECORDS), f"{ALLOWED},{OTHER}", RESOLVER, PROXY, f"{USER}:{PASSWORD}", certificate]
        program = ["unshare", "--net", sys.executable, HERE / "outside_world.py", *words]
        self._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._link = f"outside{BLOCK}"
        self._told: list[dict] = []
        try:
            self._join()
        except BaseException:
            self.end()
            raise

    def _join(self) -> None:
        pid = self._process.pid
        own = os.readlink("/proc/self/ns/net")
        wait_for(lambda: os.readlink(f"/proc/{pid}/ns/net") != own, "a namespace for the servers")
        inside = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip"]
        for command in [
            ["ip", "link", "add", self._link, "type", "veth", "peer", "name", "in0", "netns", str(pid)],
            ["ip", "address", "add", f"{NEAR}/{BLOCKS[BLOCK].prefixlen}", "dev", self._link],
            ["ip", "link", "set", self._link, "up"],
            [*inside, "link", "set", "lo", "up"],
            [*inside, "link", "set", "in0", "up"],
            *([*inside, "address", "add", f"{address}/{BLOCKS[BLOCK].prefixlen}", "dev", "in0"] for address in FAR),
        ]:
            subprocess.run(command, check=True)
        # Answers to sandboxes come in by it.
        pathlib.Path(f"/proc/sys/net/ipv4/conf/{self._link}/forwarding").write_text("1")
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        threading.Thread(target=self._listen, daemon=True).start()
        wait_for(lambda: {"ready": True} in self._told, "the servers outside")

    def _listen(self) -> None:
        for line in self._process.stdout:
            self._told.append(json.loads(line))

    def asked(self) -> set[str]:
        """Every name that the resolver was asked for."""
        return {told["asked"] for told in self._told if "asked" in told}

    def proxied(self) -> list[str]:
        """Every connection that the proxy made."""
        return [told["proxied"] for told in self._told if "proxied" in told]

    def forget(self) -> None:
        self._told.clear()

    def end(self) -> None:
        # It would go with the namespace, but some time after that, and the next one has the same name and addresses.
        subprocess.run(["ip", "link", "delete", self._link], capture_output=True)
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    missing = [tool for tool in ("ip", "unshare", "nsenter", "openssl") if not shutil.which(tool)]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"a network beside the host needs root and its tools (missing: {missing})")
    world = Outside(tmp_path_factory.mktemp("outside"))
    yield world
    world.end()
