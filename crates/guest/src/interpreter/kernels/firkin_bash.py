"""The Bash kernel: one shell that lives as long as the context, so that variables, functions and directories stay.

The shell is an interactive one without a terminal, because an interrupt then ends the command and not the shell. It reads its
commands from standard input, which cells never see: theirs is `/dev/null`. On a pipe of its own it says that a cell is over; it
finds it by the kernel's own end, since a cell may close whatever the shell holds open.
"""

import os
import re
import secrets
import shlex
import subprocess
import threading

from firkin_channel import Capture, Channel, Environment

ENDED = b"!"
"""What its kernel writes there when the shell is no more."""

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
        commands, self._commands = os.pipe()
        self._status, status = os.pipe()
        # What it says about its missing terminal is no cell's business: only afterwards its errors go where they belong.
        errors = streams[1].fileno()
        ends = {"stdin": commands, "stdout": streams[0], "stderr": subprocess.DEVNULL, "pass_fds": [errors]}
        self._process = subprocess.Popen(START, **ends)
        os.close(commands)
        self._ended = status
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._watcher.start()
        self._done = f"builtin printf . >|/proc/{os.getpid()}/fd/{status}"
        self._write(f"exec 2>&{errors} {errors}>&-; {QUIET}")
        self.wait()

    def _watch(self) -> None:
        """Tells the shell's end: what it has left running may hold the pipe open for long."""
        self._process.wait()
        os.write(self._ended, ENDED)

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
        try:
            self._write(f"eval {shlex.quote(code)} </dev/null")
        except BrokenPipeError:
            return False
        return self.wait()

    def wait(self) -> bool:
        """Returns once the shell has done what it was told."""
        try:
            self._write(self._done)
        except BrokenPipeError:
            return False
        return os.read(self._status, 1) != ENDED

    def bury(self) -> int:
        """The exit status of a shell that has ended."""
        self._watcher.join()
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
