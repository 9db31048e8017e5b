"""Hosts of a cluster that are network namespaces on one bridge of this machine, with PostgreSQL in one of its own: for what is shown and measured with
a real engine. Whoever uses this is in namespaces of his own (`unshare --net --mount`), which end with him.

The addresses are those of documents (RFC 5737).
"""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import httpx

NODES = {"node-a": "198.51.100.11", "node-b": "198.51.100.12", "node-c": "198.51.100.13"}
DATABASE = "198.51.100.1"
HERE = "198.51.100.254"

NOBODY = 65534
"""Whom Debian calls `nobody`: PostgreSQL refuses root."""

WITHIN_S = 180
"""Bound of every wait. Emulated machines are slow; nothing that works takes this long."""

begun = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - begun:6.1f} s  {text}", flush=True)


def show(told: str) -> None:
    for line in told.splitlines():
        print(f"          {line}", flush=True)


def run(*words, **options) -> str:
    done = subprocess.run([*map(str, words)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WITHIN_S, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr or done.stdout}")
    return done.stdout


def wait_for(probe, what: str):
    deadline = time.monotonic() + WITHIN_S
    while not (answer := probe()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {WITHIN_S} s in vain for {what}")
        threading.Event().wait(0.1)
    return answer


class Host:
    """A network namespace with one address on the bridge."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        run("ip", "netns", "add", name)
        run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", name, "master", "bridge", "up")
        for words in ("link set lo up", f"address add {address}/24 dev eth0", "link set eth0 up", f"route add default via {HERE}"):
            run("ip", "-n", name, *words.split())

    def start(self, words: list, log: pathlib.Path, **options) -> subprocess.Popen:
        with open(log, "ab") as output:
            inside = ["nsenter", f"--net=/run/netns/{self.name}", *map(str, words)]
            return subprocess.Popen(inside, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **options)


class Database(Host):
    """PostgreSQL, with a certificate, because nodes reach it over a network."""

    def __init__(self, directory: pathlib.Path) -> None:
        super().__init__("database", DATABASE)
        self.directory = directory
        programs = max(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb")).parent
        directory.mkdir()
        self.certificate, key = directory / "certificate.pem", directory / "key.pem"
        run(
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=database",
            "-addext", f"subjectAltName=IP:{DATABASE}", "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", key, "-out", self.certificate,
        )
        key.chmod(0o600)
        for path in (directory, self.certificate, key):
            shutil.chown(path, NOBODY, NOBODY)
        nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/"}
        data = directory / "data"
        run(programs / "initdb", "--username=firkin", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C", "-D", data, **nobody)
        (data / "pg_hba.conf").write_text("local all all trust\nhostssl all all 198.51.100.0/24 trust\n")
        settings = [f"listen_addresses={DATABASE}", "ssl=on", f"ssl_cert_file={self.certificate}", f"ssl_key_file={key}", "fsync=off"]
        words = [word for setting in settings for word in ("-c", setting)]
        # As its user from the beginning: `nsenter` may be root's alone.
        as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        self.process = self.start([*as_nobody, programs / "postgres", "-D", data, "-k", directory, *words], directory / "log", cwd="/")
        ready = [programs / "pg_isready", "-q", "-h", DATABASE]
        wait_for(lambda: subprocess.run(ready).returncode == 0, "PostgreSQL")
        self.url = f"postgres://firkin@{DATABASE}/postgres"


class Node(Host):
    """A host with a server of the cluster."""

    def __init__(self, firkin: str, name: str, directory: pathlib.Path, options: list) -> None:
        super().__init__(name, NODES[name])
        self.state, self.log = directory / name, directory / f"{name}.log"
        self.url = f"http://{self.address}:3000"
        words = [firkin, "up", "--yes", "--warm", "0", "--state-dir", self.state, "--listen", f"{self.address}:3000", "--allow-plain-http"]
        words += [*options, "--node-name", name, "--peer-listen", f"{self.address}:3001"]
        self.words = words
        self.begin()

    def begin(self) -> None:
        self.process = self.start(self.words, self.log)
        wait_for(self.answers, f"{self.name} to answer")

    def come_back(self) -> None:
        """After it died: the host is there again, with the disk that it had, and starts its server."""
        run("ip", "link", "set", self.name, "up")
        run("ip", "-n", self.name, "route", "replace", "default", "via", HERE)
        self.begin()

    def answers(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended at its start:\n{self.log.read_text()}")
        try:
            return httpx.get(f"{self.url}/health", timeout=WITHIN_S).is_success
        except httpx.TransportError:
            return False

    def client(self, key: str) -> dict:
        """What the SDK needs to come in here."""
        return {"api_key": key, "api_url": self.url, "sandbox_url": self.url}

    def processes(self) -> list[int]:
        """All that was started in it: its server, its machines."""
        return [int(pid) for pid in run("ip", "netns", "pids", self.name).split()] + self.machines()

    def machines(self) -> list[int]:
        """Processes of its sandboxes: they are in namespaces of their own."""
        run_dir = bytes(self.state / "run") + b"/"
        found = []
        for process in pathlib.Path("/proc").iterdir():
            if process.name.isdecimal():
                try:
                    words = (process / "cmdline").read_bytes() + b"\0" + (process / "environ").read_bytes()
                    if run_dir in words:
                        found.append(int(process.name))
                except OSError:
                    pass  # it ended, or it is the kernel's
        return found

    def die(self) -> None:
        """As by a power failure: nothing of it runs any more, and nothing of it is reached."""
        run("ip", "link", "set", self.name, "down")
        while pids := [pid for pid in self.processes() if pathlib.Path(f"/proc/{pid}/exe").exists()]:
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self.process.poll()


class Cluster:
    """All hosts, in one directory."""

    def __init__(self, firkin: str, directory: pathlib.Path) -> None:
        self.firkin, self.directory = firkin, directory
        self.nodes: dict[str, Node] = {}
        self.database = Database(directory / "database")
        secret = directory / "cluster.secret"
        self.options = ["--cluster", self.database.url, "--cluster-secret-file", secret, "--catalog-authority", self.database.certificate]
        run(firkin, "cluster", "found", "--state-dir", directory / "nobody", *self.options)

    def start(self, name: str, *options: str) -> Node:
        self.nodes[name] = Node(self.firkin, name, self.directory, [*self.options, *options])
        return self.nodes[name]

    def key(self) -> str:
        """A key that is good on all nodes when this returns."""
        key = (next(iter(self.nodes.values())).state / "api-key").read_text().strip()
        wait_for(lambda: all(self.asked(node, key, "/v2/sandboxes").is_success for node in self.nodes.values()), "all nodes to know a key")
        return key

    @staticmethod
    def asked(node: Node, key: str, path: str) -> httpx.Response:
        return httpx.get(f"{node.url}{path}", headers={"X-API-Key": key}, timeout=WITHIN_S)

    def administer(self, *words, through: Node | None = None) -> str:
        """What an operator's command prints."""
        state = ["--state-dir", through.state] if through else []
        at_nodes = self.options if words[0] == "node" else []
        return run(self.firkin, *state, *words, *at_nodes)

    def remove(self) -> None:
        for node in self.nodes.values():
            if node.process.poll() is None:
                node.process.send_signal(signal.SIGTERM)
                node.process.wait(WITHIN_S)
        for node in self.nodes.values():
            node.die()
        self.database.process.send_signal(signal.SIGQUIT)
        self.database.process.wait(WITHIN_S)


@contextlib.contextmanager
def cluster(firkin: str, directory: pathlib.Path):
    """Hosts without nodes yet. Whatever happens, nothing of them goes on when this ends; where it ends badly, logs are shown."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Names of namespaces that are seen here alone, and gone with this.
    run("mount", "--make-rprivate", "/")
    pathlib.Path("/run/netns").mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "none", "/run/netns")
    for words in ("link set lo up", "link add bridge type bridge", "link set bridge up", f"address add {HERE}/24 dev bridge"):
        run("ip", *words.split())
    hosts = Cluster(firkin, directory)
    try:
        yield hosts
    except KeyboardInterrupt:
        say("stopping")
    except Exception:
        for node in hosts.nodes.values():
            print(f"── {node.name}\n" + "\n".join(node.log.read_text(errors="replace").splitlines()[-30:]), flush=True)
        raise
    finally:
        hosts.remove()
