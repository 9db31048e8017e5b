"""What systemd is to a unit, by hand: the socket that it hands over, the one that it is told things by, its watchdog, its `ExecStart=`.

Nothing here needs systemd, or process 1.
"""

import os
import pathlib
import re
import select
import socket
import subprocess
import time

from own_server import OwnServer
from support import WAIT_S, wait_for

UNITS = pathlib.Path(__file__).parents[2] / "packaging" / "systemd"


def setting(unit: pathlib.Path, name: str) -> list[str]:
    """The values of one setting of a unit, in their order."""
    return re.findall(rf"^{name}=(.*)$", unit.read_text(), re.MULTILINE)


def confined(unit: pathlib.Path) -> list[str]:
    """What gives a program the privileges of the unit: without what the bounding set leaves out, and none to be gained."""
    kept = {name.removeprefix("CAP_").lower() for line in setting(unit, "CapabilityBoundingSet") for name in line.split()}
    known = subprocess.run(["setpriv", "--list-caps"], capture_output=True, text=True, check=True).stdout.split()
    dropped = [f"-{name}" for name in known if name not in kept and not name.startswith("cap_")]
    assert setting(unit, "NoNewPrivileges") == ["yes"] and "-sys_module" in dropped and "-sys_time" in dropped
    return ["setpriv", "--no-new-privs", "--bounding-set", ",".join(dropped)]


class UnitServer(OwnServer):
    """A server that is started as its unit starts it. The listening socket is here, and stays when the server ends."""

    def __init__(self, command: list[str], **env: str) -> None:
        super().__init__(command[0], **env)
        self.command = command
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = self.listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self.told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.told.bind(str(self.dir / "notify"))
        self.words: list[str] = []

    def start(self, *options: str, watchdog_s: float | None = None) -> None:
        """Starts it and returns at once."""
        assert self.process is None, "one at a time"
        self.words = []
        fd = self.listener.fileno()
        # The socket is the first descriptor after the standard ones, and what is said is said to the process that the shell becomes.
        script = f'[ {fd} = 3 ] || exec 3<&{fd} {fd}<&-; export LISTEN_PID=$$ WATCHDOG_PID=$$; exec "$@"'
        # What is set to nothing is to be absent.
        given = {name: value for name, value in (os.environ | self.env).items() if value}
        env = given | {"NOTIFY_SOCKET": str(self.dir / "notify"), "LISTEN_FDS": "1"}
        if watchdog_s is not None:
            env["WATCHDOG_USEC"] = str(int(watchdog_s * 1e6))
        with open(self.dir / "log", "ab") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", script, "bash", *self.command, *options],
                env=env,
                pass_fds=(fd,),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_told(self, word: str, timeout_s: float = WAIT_S) -> None:
        """Returns once systemd was told this, and remembers everything else that it was told."""
        deadline = time.monotonic() + timeout_s
        while word not in self.words:
            assert self.process.poll() is None or select.select([self.told], [], [], 0)[0], f"it ended\n{self.log()}"
            if select.select([self.told], [], [], 0.2)[0]:
                self.words += self.told.recv(4096).decode().split("\n")
            assert time.monotonic() < deadline, f"systemd was not told {word}, but {self.words}\n{self.log()}"

    def knock(self) -> socket.socket:
        """A client that asks now, whether or not anybody is there to answer."""
        client = socket.create_connection(self.address, timeout=WAIT_S)
        client.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        return client

    def remove(self) -> None:
        super().remove()
        self.listener.close()
        self.told.close()


def answer(client: socket.socket) -> bytes:
    """The first bytes of what it is answered."""
    with client:
        return client.recv(12)


def ended(server: UnitServer) -> None:
    """Ends it as `systemctl stop` does under `KillMode=process`."""
    process = server.process
    process.terminate()
    server.wait_told("STOPPING=1")
    wait_for(lambda: process.poll() is not None, "the server to end")
    assert process.returncode == 0, server.log()
    server.process = None
