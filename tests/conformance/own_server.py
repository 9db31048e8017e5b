"""A server that a test may kill: its own state directory, its own port, and a view of the machines that are its.

The program is named by `FIRKIN_BIN`. A server that is killed is never cleaned up after: that is what the next one is for.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile

import e2b
import httpx
import pytest
from support import SANDBOX_LIFETIME_S, WAIT_S, wait_for

START_S = 120
"""From start to an answer on `/health`, the build of the base template by an emulated guest included."""


class FreePort:
    """A port of the loopback that nobody else is given as long as this is there. A server can listen on it."""

    def __init__(self) -> None:
        self._holder = socket.socket()
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._holder.bind(("127.0.0.1", 0))
        self.number = self._holder.getsockname()[1]

    def give_back(self) -> None:
        self._holder.close()


class OwnServer:
    """`firkin up`, as often as a test needs it, on one state directory and one port."""

    def __init__(self, program: str, resolver: str | None = None, **env: str) -> None:
        self.program, self.env, self.resolver = program, env, resolver
        # Machines run as users of their own, who must be able to enter it: not below a home directory.
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="firkin-survival-", dir=os.environ.get("FIRKIN_TEST_DIR", "/var/tmp")))
        self.dir.chmod(0o711)
        self.state = self.dir / "state"
        self.port = FreePort()
        self.url = f"http://127.0.0.1:{self.port.number}"
        self.process: subprocess.Popen | None = None

    def start(self, *options: str) -> None:
        """Starts the server and returns once it answers."""
        self.begin(*options)
        wait_for(self._answers, f"the server to start\n{self.log()}", START_S)

    def begin(self, *options: str) -> None:
        """Starts the server, whether it will answer or not."""
        assert self.process is None, "one at a time"
        listen = self.url.removeprefix("http://")
        with open(self.dir / "log", "ab") as log:
            self.process = subprocess.Popen(
                # Nothing kept warm: these tests count the machines of sandboxes.
                [*self._around(), self.program, "up", "--yes", "--warm", "0", "--listen", listen, "--state-dir", self.state, *options],
                env=os.environ | self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _around(self) -> list[str]:
        """What has the server, and nobody else, believe that this host asks another resolver than it does."""
        if self.resolver is None:
            return []
        (self.dir / "resolv.conf").write_text(f"nameserver {self.resolver}\n")
        script = f"mount --bind {self.dir}/resolv.conf $(realpath /etc/resolv.conf) && exec \"$@\""
        return ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "sh"]

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"the server ended at start\n{self.log()}"
        try:
            return httpx.get(f"{self.url}/health", timeout=WAIT_S).is_success
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """Ends it as a crash does: at once, whatever it is doing."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(WAIT_S)
        self.process = None

    def leave(self) -> None:
        """Ends it as an upgrade does. It was started with `--on-exit leave`."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(WAIT_S) == 0, f"the server did not stop in order\n{self.log()}"
        self.process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def stop(self) -> None:
        """Ends it as a person does, and checks that nothing of it is left."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(WAIT_S) == 0, f"the server did not stop in order\n{self.log()}"
        self.process = None
        wait_for(lambda: not self.machines(), f"the machines to go: {self.machines()}")
        assert not list((self.state / "run").iterdir())
        assert not list(self.state.glob("firkin.db-*"))

    def remove(self) -> None:
        """Whatever happened: nothing stays, not even after a failed test."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                self.kill()
        for pid in self.machines():
            with contextlib.suppress(ProcessLookupError):  # processes of one sandbox end together
                os.kill(pid, signal.SIGKILL)
        print(self.log())  # shown by pytest if something failed
        self.port.give_back()
        shutil.rmtree(self.dir)

    @property
    def client(self) -> dict:
        """What the SDK needs to reach this server."""
        key = (self.state / "api-key").read_text().strip()
        return {"api_key": key, "api_url": self.url, "sandbox_url": self.url}

    def machines(self) -> list[int]:
        """Processes that were started for an instance directory of this server, whoever started them."""
        # QEMU has it in its environment, a sandbox of gVisor in its arguments.
        marks = {"environ": b"FIRKIN_INSTANCE=" + bytes(self.state / "run") + b"/", "cmdline": b"--root=" + bytes(self.state / "run") + b"/"}
        found = []
        for process in pathlib.Path("/proc").iterdir():
            if process.name.isdecimal():
                try:
                    texts = [(mark, (process / file).read_bytes().split(b"\0")) for file, mark in marks.items()]
                    if any(text.startswith(mark) for mark, all in texts for text in all):
                        found.append(int(process.name))
                except OSError:
                    pass  # it ended, or it is the kernel's
        return sorted(found)

    def log(self) -> str:
        lines = (self.dir / "log").read_text(errors="replace").splitlines() if (self.dir / "log").exists() else []
        return "\n".join(lines[-60:])


@contextlib.contextmanager
def own_server(*options: str, resolver: str | None = None, **env: str):
    """A server that has been started, and of which nothing is left. It asks the host's resolvers unless another is given."""
    program = os.environ.get("FIRKIN_BIN")
    if program is None:
        pytest.skip("FIRKIN_BIN does not name the program: these tests need a server of their own")
    server = OwnServer(program, resolver, **env)
    try:
        server.start(*options)
        yield server
        server.stop()
    finally:
        server.remove()


@contextlib.contextmanager
def sandboxes_of(server: OwnServer, Sandbox=e2b.Sandbox):
    """Creates sandboxes on a server that end with this."""
    created = []

    def create(**options) -> e2b.Sandbox:
        options.setdefault("timeout", SANDBOX_LIFETIME_S)
        created.append(Sandbox.create(**options, **server.client))
        return created[-1]

    yield create
    for sandbox in created:
        e2b.Sandbox.kill(sandbox.sandbox_id, **server.client)
