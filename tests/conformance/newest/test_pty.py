"""Pseudo-terminals: a shell that believes a person sits in front of it."""

import queue
import time

import pytest
from support import WAIT_S
from e2b import CommandExitException, PtySize


class Terminal:
    """What the two SDK flavours do differently: one is iterated, the other calls back."""

    def __init__(self, driver, sandbox, **options) -> None:
        self.sandbox = sandbox
        self.screen = b""
        if isinstance(driver, type):
            self.handle = sandbox.pty.create(PtySize(rows=24, cols=80), **options)
            chunks = iter(self.handle)
            self._next = lambda: next(chunks)[2] or b""
        else:
            arrived = queue.Queue()
            self.handle = sandbox.pty.create(PtySize(rows=24, cols=80), on_data=arrived.put, **options)
            self._next = lambda: arrived.get(timeout=WAIT_S)

    def type(self, text: str) -> None:
        self.sandbox.pty.send_stdin(self.handle.pid, text.encode())

    def read_until(self, marker: bytes) -> None:
        deadline = time.monotonic() + WAIT_S
        while marker not in self.screen:
            assert time.monotonic() < deadline, f"{marker!r} is not in {self.screen!r}"
            self.screen += self._next()
        self.screen = self.screen.partition(marker)[2]


@pytest.fixture
def terminal(driver, sandbox):
    terminal = Terminal(driver, sandbox, envs={"MARK": "from-create"}, cwd="/tmp")
    yield terminal
    terminal.handle.kill()


def test_a_terminal_has_a_size_that_can_change(terminal):
    terminal.type("stty size\n")
    terminal.read_until(b"24 80")
    terminal.sandbox.pty.resize(terminal.handle.pid, PtySize(rows=50, cols=132))
    terminal.type("stty size\n")
    terminal.read_until(b"50 132")


def test_a_terminal_is_a_terminal(terminal):
    terminal.type("test -t 0 && test -t 1 && echo is''tty; echo $TERM; pwd; echo =$MARK=; whoami\n")
    for expected in (b"istty", b"xterm-256color", b"/tmp", b"=from-create=", b"user"):
        terminal.read_until(expected)


def test_an_interrupt_reaches_the_foreground_job(terminal):
    # The job itself says that it runs: an interrupt before it is in the foreground would be the shell's.
    terminal.type("sh -c \"echo rea''dy; exec sleep 1000\"\n")
    terminal.read_until(b"ready")
    terminal.type("\x03")
    terminal.type("echo still''here\n")
    terminal.read_until(b"stillhere")


def test_a_shell_that_exits_tells_its_status(terminal):
    terminal.type("exit 7\n")
    with pytest.raises(CommandExitException) as ended:
        terminal.handle.wait()
    assert ended.value.exit_code == 7


def test_a_terminal_can_be_killed_once(terminal):
    assert terminal.sandbox.pty.kill(terminal.handle.pid) is True
    with pytest.raises(CommandExitException):
        terminal.handle.wait()


def test_a_terminal_can_be_joined_again(driver, terminal):
    terminal.handle.disconnect()
    pid = terminal.handle.pid
    if isinstance(driver, type):
        handle = terminal.sandbox.pty.connect(pid)
        chunks = iter(handle)
        read = lambda: next(chunks)[2] or b""
    else:
        arrived = queue.Queue()
        handle = terminal.sandbox.pty.connect(pid, on_data=arrived.put)
        read = lambda: arrived.get(timeout=WAIT_S)
    assert handle.pid == pid
    terminal._next = read
    terminal.type("echo joi''ned\n")
    terminal.read_until(b"joined")
