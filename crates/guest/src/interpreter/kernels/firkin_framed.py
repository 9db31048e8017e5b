"""The kernels of R and Java: drives an interpreter whose standard streams belong to user code.

R and Java read no JSON without more packages, so each message is one line `word words length`, and then as many bytes:

    to the interpreter    set NAME_BYTES LENGTH <name><value> | unset LENGTH <name> | renew 0 | run LENGTH <code>
    from it               ready 0 | result LENGTH <text> | display LENGTH <text> | png LENGTH <bytes> | error LENGTH <name NUL value NUL traceback> | done 0
"""

import base64
import os
import subprocess
import threading

from firkin_channel import Capture, Channel, Environment

HERE = os.path.dirname(os.path.abspath(__file__))

MAX_MESSAGE_BYTES = 24 << 20
"""The largest message that is read: no larger event is told anyway."""

JAVA_FLAGS = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-Xshare:auto"]
"""A cell is compiled, run once and forgotten: what matters is how soon it runs."""

KEPT = "/var/lib/firkin"
"""Where `keep.py` has put what was made when the template was built. Kernels work without."""

JAR, ARCHIVE, SOURCE = f"{KEPT}/cells.jar", f"{KEPT}/java.jsa", f"{KEPT}/Cells.java"
"""The compiled kernel, its classes as the virtual machine wants them in memory, and what it was compiled from."""


def r() -> list[str]:
    return ["R", "--no-echo", "--no-restore", "--no-save", f"--file={HERE}/cells.R", "--args"]


def java() -> list[str]:
    source = f"{HERE}/Cells.java"
    try:
        with open(source, "rb") as wanted, open(SOURCE, "rb") as kept:
            is_kept = wanted.read() == kept.read()
    except FileNotFoundError:
        is_kept = False
    # An archive that does not fit the virtual machine is passed over without a word.
    kernel = [f"-XX:SharedArchiveFile={ARCHIVE}", "-cp", JAR, "Cells"] if is_kept else [source]
    return ["java", *JAVA_FLAGS, *kernel]


class Interpreter:
    """The process and the pipes through which it is driven."""

    def __init__(self, command: list[str], streams: list[Capture]):
        commands, self._commands = os.pipe()
        events, told = os.pipe()
        ends = {"stdin": subprocess.DEVNULL, "stdout": streams[0], "stderr": streams[1], "pass_fds": [commands, told]}
        self._process = subprocess.Popen([*command, str(commands), str(told)], **ends)
        os.close(commands)
        self._events = open(events, "rb")
        threading.Thread(target=self._watch, args=[told], name="watch", daemon=True).start()

    def _watch(self, told: int) -> None:
        """Tells its end, after everything that it has said: what it has left running may hold the pipe open for long."""
        self._process.wait()
        os.write(told, b"ended 0\n")

    def _write(self, head: str, data: bytes) -> None:
        rest = memoryview(f"{head} {len(data)}\n".encode() + data)
        while rest:
            rest = rest[os.write(self._commands, rest):]

    def put_variable(self, name: str, value: str | None) -> None:
        key = name.encode()
        if value is None:
            self._write("unset", key)
        else:
            self._write(f"set {len(key)}", key + value.encode())

    def renew(self) -> None:
        """Another life has begun: random numbers are to be others than those of its clones."""
        self._write("renew", b"")

    def run(self, code: str) -> None:
        self._write("run", code.encode())

    def messages(self):
        """What it says, until it ends."""
        for head in self._events:
            word, _, length = head.partition(b" ")
            if word == b"ended":
                return
            size = int(length)
            data = self._events.read(min(size, MAX_MESSAGE_BYTES))
            self._events.read(size - len(data))
            yield word.decode(), data


def event(word: str, data: bytes) -> dict:
    if word == "png":
        return {"type": "result", "png": base64.b64encode(data).decode(), "is_main_result": False}
    text = data.decode(errors="replace")
    if word in ("result", "display"):
        return {"type": "result", "text": text, "is_main_result": word == "result"}
    name, value, traceback = (text.split("\0", 2) + ["", ""])[:3]
    return {"type": "error", "name": name, "value": value, "traceback": traceback}


def main(language: str):
    channel = Channel()
    is_java = language == "java"
    # Java's notebooks tell the end of a printed line by itself, and clients have come to expect it.
    streams = [Capture(channel, kind, newline_apart=is_java) for kind in ("stdout", "stderr")]
    interpreter = Interpreter(java() if is_java else r(), streams)
    environment = Environment(interpreter.put_variable)
    requests = channel.queue()
    messages = interpreter.messages()
    if next(messages, None) is None:
        os._exit(1)
    channel.send({"type": "ready"})
    count = 0
    while True:
        request = requests.get()
        channel.begin(request)
        count += 1
        channel.send({"type": "count", "execution_count": count})
        try:
            environment.enter(request)
            if request.get("reseed"):
                interpreter.renew()
            interpreter.run(request["code"])
        except BrokenPipeError:
            os._exit(1)
        # Its end is the end of its kernel: the agent starts another.
        for word, data in messages:
            if word == "done":
                break
            channel.send(event(word, data))
        else:
            for stream in streams:
                stream.flush()
            os._exit(1)
        environment.leave(request)
        for stream in streams:
            stream.flush()
        channel.send({"type": "done"})
        channel.cell = None
