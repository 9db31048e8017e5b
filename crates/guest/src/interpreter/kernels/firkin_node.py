"""The kernel of JavaScript and TypeScript: drives node (`cells.js`), whose standard streams belong to user code.

Node cannot move its own descriptors away, so this process stands between: cells go to node on one pipe, results come back on
another, and what is written to node's standard streams is told as output.
"""

import json
import os
import signal
import subprocess
import threading

from firkin_channel import Capture, Channel, Environment

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cells.js")


class Commands:
    """The pipe to node: variables and cells, and each interrupt, which node must know of before the next cell."""

    def __init__(self, fd: int):
        self._fd = fd
        self._cell = 0
        self._telling = self._late = False
        signal.signal(signal.SIGINT, self._interrupt)

    def tell(self, message: dict) -> None:
        self._telling = True
        try:
            self._write(message)
        finally:
            self._telling = False
        if self._late:
            self._late = False
            self._interrupt()

    def run(self, cell: int, code: str) -> None:
        self._cell = cell
        self.tell({"cell": cell, "code": code})

    def _interrupt(self, *_) -> None:
        """Node has the signal too: all of the group have. No line is ever cut by another."""
        if self._telling:
            self._late = True
            return
        try:
            self._write({"interrupt": self._cell})
        except BrokenPipeError:
            pass

    def _write(self, message: dict) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._fd, data):]


def main(language: str):
    channel = Channel()
    streams = [Capture(channel, "stdout"), Capture(channel, "stderr")]
    taken, write = os.pipe()
    read, results = os.pipe()
    arguments = ["node", PROGRAM, str(taken), str(results), language]
    ends = {"stdin": subprocess.DEVNULL, "stdout": streams[0], "stderr": streams[1], "pass_fds": [taken, results]}
    node = subprocess.Popen(arguments, **ends)
    os.close(taken)
    events = open(read, "rb")

    def watch() -> None:
        """Tells node's end, after everything that it has said: what it has left running may hold the pipe open for long."""
        node.wait()
        os.write(results, b'{"type":"ended"}\n')

    threading.Thread(target=watch, name="watch", daemon=True).start()

    def told():
        for line in events:
            event = json.loads(line)
            if event["type"] == "ended":
                return
            yield event

    commands = Commands(write)
    environment = Environment(lambda name, value: commands.tell({"variable": name, "value": value}))
    requests = channel.queue()
    said = told()
    if next(said, None) is None:
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
                commands.tell({"renew": True})
            commands.run(count, request["code"])
        except BrokenPipeError:
            os._exit(1)
        # The end of node is the end of its kernel: the agent starts another.
        for event in said:
            if event["type"] == "done":
                break
            channel.send(event)
        else:
            for stream in streams:
                stream.flush()
            os._exit(1)
        environment.leave(request)
        for stream in streams:
            stream.flush()
        channel.send({"type": "done"})
        channel.cell = None
