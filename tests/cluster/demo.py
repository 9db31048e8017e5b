"""Three hosts that are one address, on one machine: created through one, gone on with on another once the first is dead, the third drained.

Hosts are network namespaces on a bridge, with PostgreSQL in one of its own. What is real: the servers, the database, the engine, the SDK, and that
the first host is killed with all that runs on it. `cargo xtask cluster demo` runs this with all that it needs:

    unshare --net --mount python3 tests/cluster/demo.py FIRKIN DIRECTORY [--keep]

The addresses are those of documents (RFC 5737), in namespaces that nobody else has, and gone with them.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import e2b
import httpx

NODES = {"node-a": "198.51.100.11", "node-b": "198.51.100.12", "node-c": "198.51.100.13"}
DATABASE = "198.51.100.1"
HERE = "198.51.100.254"

NOBODY = 65534
"""Whom Debian calls `nobody`: PostgreSQL refuses root."""

WITHIN_S = 180
"""Bound of every wait. Emulated machines are slow; nothing that works takes this long."""

LIFE_S = 3600

COUNT = "i=0; while sleep 0.1; do i=$((i+1)); echo $i > /tmp/count; done"
"""Runs in the sandbox: what it has counted is in the memory of this shell."""

begun = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - begun:6.1f} s  {text}", flush=True)


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

    def __init__(self, firkin: str, name: str, directory: pathlib.Path, cluster: list) -> None:
        super().__init__(name, NODES[name])
        self.state, self.log = directory / name, directory / f"{name}.log"
        self.url = f"http://{self.address}:3000"
        words = [firkin, "up", "--yes", "--warm", "0", "--state-dir", self.state, "--listen", f"{self.address}:3000", "--allow-plain-http"]
        words += [*cluster, "--node-name", name, "--peer-listen", f"{self.address}:3001"]
        self.process = self.start(words, self.log)
        wait_for(self.answers, f"{name} to answer")

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


def counted(sandbox: e2b.Sandbox) -> int:
    return int(wait_for(lambda: sandbox.commands.run("cat /tmp/count 2>/dev/null || true").stdout.strip(), "the guest to count"))


def show(told: str) -> None:
    for line in told.splitlines():
        print(f"          {line}", flush=True)


def demonstrate(firkin: str, directory: pathlib.Path, database: Database, nodes: dict[str, Node], keep: bool) -> None:
    cluster = ["--cluster", database.url, "--cluster-secret-file", directory / "cluster.secret", "--catalog-authority", database.certificate]
    say(f"PostgreSQL answers on {DATABASE}, a host of its own")
    run(firkin, "cluster", "found", "--state-dir", directory / "nobody", *cluster)
    for name in NODES:
        nodes[name] = Node(firkin, name, directory, cluster)
        say(f"{name} answers on {nodes[name].url}")
    a, b, c = nodes.values()
    key = (a.state / "api-key").read_text().strip()
    known = lambda node: httpx.get(f"{node.url}/v2/sandboxes", headers={"X-API-Key": key}, timeout=WITHIN_S).is_success
    wait_for(lambda: all(map(known, nodes.values())), "all nodes to know a key that one has made")
    show(run(firkin, "node", "ls", *cluster))

    def home(sandbox: e2b.Sandbox) -> str:
        return httpx.get(f"{b.url}/sandboxes/{sandbox.sandbox_id}", headers={"X-API-Key": key}, timeout=WITHIN_S).headers["x-firkin-node"]

    def created(through: Node, on: Node) -> e2b.Sandbox:
        """A sandbox that begins where there is most room, and is moved if that is not where this story wants it."""
        sandbox = e2b.Sandbox.create(timeout=LIFE_S, **through.client(key))
        where = home(sandbox)
        say(f"created {sandbox.sandbox_id} through {through.name}: it is on {where}")
        if where != on.name:
            moved = json.loads(run(firkin, "--state-dir", through.state, "--json", "sandbox", "move", sandbox.sandbox_id, on.name))
            say(f"moved it to {on.name} while it ran: it was away for {moved['blackoutMs']} ms")
        return sandbox

    sandbox = created(a, a)
    sandbox.files.write("/home/user/file", "written through node-a")
    sandbox.commands.run(COUNT, background=True)
    through_c = e2b.Sandbox.connect(sandbox.sandbox_id, timeout=LIFE_S, **c.client(key))
    counted(sandbox)
    say(f"through node-c: `uname -n` says {through_c.commands.run('uname -n').stdout.strip()}, and a loop in it has counted to {counted(through_c)}")
    begins = time.monotonic()
    sandbox.pause()
    say(f"paused, and its files are on a second node ({time.monotonic() - begins:.1f} s)")

    say("killing node-a: its server, its machines, its network")
    a.die()
    refused = httpx.get(f"{b.url}/sandboxes/{sandbox.sandbox_id}", headers={"X-API-Key": key}, timeout=WITHIN_S)
    say(f"asked of node-b now: {refused.status_code} {refused.json().get('message', '')}")
    run(firkin, "node", "forget", "node-a", "--it-is-off", *cluster)
    say("an operator says that node-a is off; nobody has to wait for the end of its lease")

    def had() -> e2b.Sandbox | None:
        try:
            return e2b.Sandbox.connect(sandbox.sandbox_id, timeout=LIFE_S, **b.client(key))
        except (e2b.SandboxException, e2b.ServiceBusyException) as error:
            say(f"not yet: {error}")
            return None

    begins = time.monotonic()
    again = wait_for(had, "it to be had without node-a")
    say(f"resumed through node-b ({time.monotonic() - begins:.1f} s): it is on {home(again)}")
    assert again.files.read("/home/user/file") == "written through node-a"
    before = counted(again)
    wait_for(lambda: counted(again) > before, "the loop in it to go on")
    say(f"its file is there, and the same loop goes on at {counted(again)}")

    others = [created(b, c), created(c, c)]
    if home(again) != "node-c":
        others.append(again)
    marks = {other.sandbox_id: f"kept by {other.sandbox_id}" for other in others}
    for other in others:
        other.files.write("/home/user/mark", marks[other.sandbox_id])
    others[1].pause()
    begins = time.monotonic()
    show(run(firkin, "--state-dir", b.state, "node", "drain", "node-c", *cluster))
    say(f"node-c is drained ({time.monotonic() - begins:.1f} s)")
    for other in others:
        on = e2b.Sandbox.connect(other.sandbox_id, timeout=LIFE_S, **b.client(key))
        assert on.files.read("/home/user/mark") == marks[other.sandbox_id] and home(on) == "node-b"
    say("all that was there is on node-b, with what it had")
    show(run(firkin, "node", "ls", *cluster))
    if keep:
        say("these go on until Ctrl-C:")
        for node in (b, c):
            show(f"export E2B_API_KEY={key} E2B_API_URL={node.url} E2B_SANDBOX_URL={node.url}   # {node.name}")
        show(f"nsenter --target {os.getpid()} --net --mount   # where they are reached")
        threading.Event().wait()
    for other in {again.sandbox_id, *marks}:
        e2b.Sandbox.kill(other, **b.client(key))


def main() -> None:
    firkin, directory, keep = sys.argv[1], pathlib.Path(sys.argv[2]), "--keep" in sys.argv
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Names of namespaces that are seen here alone, and gone with this.
    run("mount", "--make-rprivate", "/")
    pathlib.Path("/run/netns").mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "none", "/run/netns")
    for words in ("link set lo up", "link add bridge type bridge", "link set bridge up", f"address add {HERE}/24 dev bridge"):
        run("ip", *words.split())
    nodes: dict[str, Node] = {}
    database = None
    try:
        database = Database(directory / "database")
        demonstrate(firkin, directory, database, nodes, keep)
        say("everything held")
    except KeyboardInterrupt:
        say("stopping")
    except Exception:
        for name in NODES:
            log = directory / f"{name}.log"
            if log.exists():
                print(f"── {name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-30:]), flush=True)
        raise
    finally:
        for node in nodes.values():
            if node.process.poll() is None:
                node.process.send_signal(signal.SIGTERM)
                node.process.wait(WITHIN_S)
        for node in nodes.values():
            node.die()
        if database is not None:
            database.process.send_signal(signal.SIGQUIT)
            database.process.wait(WITHIN_S)


if __name__ == "__main__":
    main()
