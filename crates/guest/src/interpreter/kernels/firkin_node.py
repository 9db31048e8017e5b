"""The kernel of JavaScript and TypeScript: drives node (`cells.js`), whose standard streams belong to user code.

Node cannot move its own descriptors away, so this process stands between: cells go to node on one pipe, results come back on
another, and what is written to node's standard streams is told as output.
"""

import json
import os
import subprocess
import threading

from firkin_channel import Capture, Channel, Environment

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cells.js")


def main(language: str):
    channel = Channel()
    streams = [Capture(channel, "stdout"), Capture(channel, "stderr")]
    commands, write = os.pipe()
    read, results = os.pipe()
    arguments = ["node", PROGRAM, str(commands), str(results), language]
    ends = {"stdin": subprocess.DEVNULL, "stdout": streams[0], "stderr": streams[1], "pass_fds": [commands, results]}
    node = subprocess.Popen(arguments, **ends)
    os.close(commands)
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

    def tell(message: dict) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(write, data):]

    environment = Environment(lambda name, value: tell({"variable": name, "value": value}))
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
                tell({"renew": True})
            tell({"code": request["code"]})
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
