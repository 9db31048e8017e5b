"""The Bash kernel: one shell that lives as long as the context, so that variables, functions and directories stay.

The shell is an interactive one without a terminal, because an interrupt then ends the command and not the shell. It reads its
commands from standard input, which cells never see: theirs is `/dev/null`. On a pipe of its own it says that a cell is over; it
finds it by the kernel's own end, since a cell may close whatever the shell holds open.
"""

import os
import re
import secrets
import shlex
import signal
import subprocess
import threading

from firkin_channel import Capture, Channel, Environment

ENDED = b"!"
"""What its kernel writes there when the shell is no more."""

INTERRUPTED = b"?"
"""What its kernel writes there when it was interrupted, with the shell and all that runs in it."""

START = ["bash", "--norc", "--noprofile", "--noediting", "-i"]

QUIET = "PS1= PS2=; set +o history; set +H +m; shopt -s expand_aliases"
"""No prompts, no history with its `!`, no word about jobs."""

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
"""What the shell takes as a variable."""


SEEDS = re.compile(
    r"(?<![\w$])RANDOM\+?="
    r"|(?:\(\(|\blet\b)[^\n]*(?<![\w$])RANDOM\s*(?:[-+*/%&|^]|<<|>>)?=(?!=)"
    r"|\b(?:unset|read|printf -v)\b[^\n;|&$]*(?<![\w$])RANDOM\b"
)
"""Words of a cell that seeds `RANDOM`, or makes it something else. The shell says nothing of that, and its state cannot be read.
So it counts what is written, be it in a comment; what is put together (`eval "RAND""OM=7"`) does not."""


class Bash:
    """The shell and the pipes through which it is driven."""

    def __init__(self, streams: list[Capture]):
        self._streams = streams
        self._is_seeded = False
        self._interrupts = self._asked = self._asked_after = 0
        self._part, self._told = b"", []
        commands, self._commands = os.pipe()
        self._status, self._ended = os.pipe()
        signal.signal(signal.SIGINT, self._interrupt)
        # What it says about its missing terminal is no cell's business: only afterwards its errors go where they belong.
        errors = streams[1].fileno()
        ends = {"stdin": commands, "stdout": streams[0], "stderr": subprocess.DEVNULL, "pass_fds": [errors]}
        self._process = subprocess.Popen(START, **ends)
        os.close(commands)
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._watcher.start()
        self._answer = f"/proc/{os.getpid()}/fd/{self._ended}"
        self._write(f"exec 2>&{errors} {errors}>&-; {QUIET}")
        self.wait(self._interrupts)

    def _watch(self) -> None:
        """Tells the shell's end: what it has left running may hold the pipe open for long."""
        self._process.wait()
        os.write(self._ended, ENDED + b"\n")

    def _interrupt(self, _signal, _frame) -> None:
        self._interrupts += 1
        os.write(self._ended, INTERRUPTED + b"\n")

    def _write(self, line: str) -> None:
        data = line.encode() + b"\n"
        while data:
            data = data[os.write(self._commands, data):]

    def put_variable(self, name: str, value: str | None) -> None:
        if NAME.match(name):
            self._write(f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}")

    def renew(self) -> None:
        """Another life has begun: `RANDOM` is to give other numbers than in its clones, unless a cell has seeded it."""
        if not self._is_seeded:
            self._write(f"RANDOM={secrets.randbits(31)}")

    def run(self, code: str) -> bool:
        """Runs a cell to its end; false if that was the shell's end too."""
        self._is_seeded |= bool(SEEDS.search(code))
        since = self._interrupts
        try:
            self._write(f"eval {shlex.quote(code)} </dev/null")
        except BrokenPipeError:
            return False
        return self.wait(since)

    def wait(self, since: int) -> bool:
        """Returns once the shell has done what it was told when there had been as many interrupts as `since`.

        An interrupt may end the question with the cell. And where it comes between the shell's fork and the program's start, the shell
        gives the cell up, answers, and then waits for the program, which has heard of nothing. So after an interrupt the shell is asked
        again, and the last answer counts: until then the cell goes on, and is interrupted again.
        """
        try:
            self._ask(since)
            while True:
                told = self._next()
                if told == ENDED:
                    return False
                if self._asked_after != self._interrupts:
                    self._ask(self._interrupts)
                elif told == str(self._asked).encode():
                    return True
        except BrokenPipeError:
            return False

    def _ask(self, since: int) -> None:
        self._asked += 1
        self._asked_after = since
        self._write(f"builtin echo {self._asked} >|{self._answer}")

    def _next(self) -> bytes:
        """What comes next over the pipe of answers."""
        while not self._told:
            *self._told, self._part = (self._part + os.read(self._status, 256)).split(b"\n")
        return self._told.pop(0)

    def bury(self) -> int:
        """The exit status of a shell that has ended."""
        self._watcher.join()
        # Until the next one.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for end in (self._commands, self._status, self._ended):
            os.close(end)
        return self._process.returncode


def main():
    channel = Channel()
    streams = [Capture(channel, "stdout"), Capture(channel, "stderr")]
    bash = Bash(streams)
    environment = Environment(lambda name, value: bash.put_variable(name, value))
    requests = channel.queue()
    channel.send({"type": "ready"})
    count = 0
    while True:
        request = requests.get()
        channel.begin(request)
        count += 1
        channel.send({"type": "count", "execution_count": count})
        environment.enter(request)
        if request.get("reseed"):
            bash.renew()
        if bash.run(request["code"]):
            environment.leave(request)
        else:
            status = bash.bury()
            bash = Bash(streams)
            environment.again()
            if status:
                channel.send({"type": "error", "name": "ExitStatus", "value": str(status),
                              "traceback": f"the shell exited with status {status}; the next cell gets a new one"})
        for stream in streams:
            stream.flush()
        channel.send({"type": "done"})
        channel.cell = None
