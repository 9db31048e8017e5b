"""How a kernel talks to the agent: one JSON object a line, requests on standard input, events on standard output.

User code must be able to do what it likes with its standard streams, so the kernel first moves both to descriptors that no
child inherits. What then is written to descriptors 1 and 2, by whomever, is read back and told as events. The end of a cell
waits until everything that was written before it has been told; a mark in the pipe shows that.
"""

import codecs
import fcntl
import json
import os
import queue
import secrets
import select
import signal
import threading

PRIVATE_FD = 100
"""Private descriptors start here: far above those that programs name by number."""

CHUNK_BYTES = 64 << 10
"""Read at once: what a pipe holds."""

GATHER_S = 0.005
"""Output is told at once, and then not again for this long: a loop that prints makes few events of many lines."""

FLUSH_S = 2.0
"""How long the end of a cell waits for its output: for a pipe that user code has broken."""

MAX_EVENT_BYTES = 24 << 20
"""The largest event; the agent takes no longer line. A picture of 4000 by 4000 pixels fits."""


class Channel:
    """The agent's end of the kernel. Events may be sent by any thread; none is ever cut by an interrupt."""

    def __init__(self):
        self._events = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, PRIVATE_FD)
        self._requests = open(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, PRIVATE_FD), "rb")
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        self._lock = threading.RLock()
        self._protected = 0
        self._late = False
        self.interruptible = False
        self.muted = False
        self.is_copy = False
        self.cell = None
        signal.signal(signal.SIGINT, self._interrupt)
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self):
        """A process that a cell has forked off speaks for nobody, and ends where the cell ends."""
        self.muted = self.is_copy = True

    def _interrupt(self, _signal, _frame):
        """Ends the cell; between cells, and in the middle of an event, it does nothing, or nothing yet."""
        if self._protected:
            self._late = True
        elif self.interruptible:
            raise KeyboardInterrupt

    def send(self, event: dict) -> None:
        if self.muted:
            return
        line = self._line(event)
        while len(line) > MAX_EVENT_BYTES:
            event = self._without_largest(event)
            line = self._line(event)
        main = threading.current_thread() is threading.main_thread()
        self._protected += main
        try:
            with self._lock:
                rest = memoryview(line)
                while rest:
                    rest = rest[os.write(self._events, rest):]
        finally:
            self._protected -= main
        if main and self._late and not self._protected:
            self._late = False
            if self.interruptible:
                raise KeyboardInterrupt

    def _line(self, event: dict) -> bytes:
        try:
            text = as_json({"cell": self.cell, **event})
        except (TypeError, ValueError, RecursionError):
            # Nobody may wait in vain for the rest because one part cannot be told.
            text = as_json({"cell": self.cell, **self._tellable(event)})
        # Half a surrogate pair is no character, but Python's texts may hold one.
        return text.encode("utf-8", "replace") + b"\n"

    def _tellable(self, event: dict) -> dict:
        """What can be told of an event; the rest is named."""
        kept = {}
        for name, value in event.items():
            try:
                as_json(value)
                kept[name] = value
            except (TypeError, ValueError, RecursionError) as why:
                self.send({"type": "stderr", "text": f"{name} of a {event['type']} is not shown: {why}\n"})
        return kept

    def _without_largest(self, event: dict) -> dict:
        """What is too large is said to be; all else is told."""
        sizes = {name: len(json.dumps(value, default=str)) for name, value in event.items() if name != "type"}
        largest = max(sizes, key=sizes.get)
        limit = f"the limit of a {event['type']} is {MAX_EVENT_BYTES >> 20} MiB"
        self.send({"type": "stderr", "text": f"{largest} of {sizes[largest] >> 20} MiB is not shown: {limit}\n"})
        kept = {name: value for name, value in event.items() if name != largest}
        # Whoever waits for an error is told of one.
        return {**kept, largest: ""} if event["type"] == "error" else kept

    def begin(self, request: dict) -> None:
        """Events belong to this cell from now on, and the cell may be interrupted."""
        self.cell = request["cell"]
        self._late = False

    def serve(self, take) -> None:
        """Gives each request to `take`, on a thread of its own. When the agent is gone, so is the kernel."""

        def read():
            for line in self._requests:
                take(json.loads(line))
            os._exit(0)

        threading.Thread(target=read, name="requests", daemon=True).start()

    def queue(self) -> queue.Queue:
        """The requests, in order."""
        requests = queue.Queue()
        self.serve(requests.put)
        return requests


def as_json(value) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str, allow_nan=False)


class Capture:
    """What is written to one stream, told as events while it comes."""

    def __init__(self, channel: Channel, kind: str, newline_apart: bool = False):
        self._channel = channel
        self._kind = kind
        self._newline_apart = newline_apart
        read, write = os.pipe()
        self._read = fcntl.fcntl(read, fcntl.F_DUPFD_CLOEXEC, PRIVATE_FD)
        self._write = fcntl.fcntl(write, fcntl.F_DUPFD_CLOEXEC, PRIVATE_FD)
        os.close(read)
        os.close(write)
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._mark = b""
        self._hurry = threading.Event()
        self._seen = threading.Event()
        threading.Thread(target=self._tell, name=kind, daemon=True).start()

    def onto(self, fd: int) -> None:
        """Makes `fd` a way into this stream, for this process and its children."""
        os.dup2(self._write, fd, inheritable=True)

    def fileno(self) -> int:
        return self._write

    def flush(self) -> None:
        """Returns when everything that was written before has been told."""
        self._seen.clear()
        mark = b"\0" + secrets.token_bytes(15)
        self._mark = mark
        self._hurry.set()
        # A full pipe is emptied by the other thread; a write of 16 bytes is never torn.
        os.write(self._write, mark)
        self._seen.wait(FLUSH_S)

    def _tell(self):
        held = b""
        while True:
            held += os.read(self._read, CHUNK_BYTES)
            mark = self._mark
            at = held.find(mark) if mark else -1
            if at >= 0:
                self._send(held[:at], final=True)
                held = held[at + len(mark):]
                self._mark = b""
                self._hurry.clear()
                self._seen.set()
                continue
            keep = part_of_mark(held, mark)
            # Programs write the parts of a line one by one.
            if len(held) < CHUNK_BYTES and not held.endswith(b"\n") and select.select([self._read], [], [], GATHER_S)[0]:
                continue
            self._send(held[: len(held) - keep])
            held = held[len(held) - keep:]
            self._hurry.wait(GATHER_S)

    def _send(self, data: bytes, final: bool = False) -> None:
        text = self._decode(data, final)
        parts = [text[:-1], "\n"] if self._newline_apart and text.endswith("\n") else [text]
        for part in filter(None, parts):
            self._channel.send({"type": self._kind, "text": part})


def part_of_mark(data: bytes, mark: bytes) -> int:
    """How many bytes at the end of `data` may be the beginning of `mark`."""
    for count in range(min(len(mark) - 1, len(data)), 0, -1):
        if data.endswith(mark[:count]):
            return count
    return 0


class Environment:
    """Variables of the sandbox, and over them those of one cell.

    `put(name, value)` sets a variable where the cell sees it; `value` None removes it.
    """

    def __init__(self, put):
        self._put = put
        self._globals = {}

    def enter(self, request: dict) -> None:
        for name, value in (request.get("globals") or {}).items():
            self._globals[name] = value
            self._put(name, value)
        for name, value in (request.get("env") or {}).items():
            self._put(name, value)

    def again(self) -> None:
        """Gives the sandbox's variables to a process that has taken the place of another."""
        for name, value in self._globals.items():
            self._put(name, value)

    def leave(self, request: dict) -> None:
        for name in request.get("env") or {}:
            self._put(name, self._globals.get(name))
