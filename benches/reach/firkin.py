"""A server of our own, and a user of it: HTTP for the control plane, Connect's JSON form for commands."""

import base64
import contextlib
import http.client
import json
import pathlib
import signal
import socket
import subprocess
import time

from .host import say, wait_for

ENVD_PORT = "49983"


class Refused(Exception):
    """The server's own words."""


class Sandbox:
    def __init__(self, server, answer):
        self.server = server
        self.id = answer["sandboxID"]
        self.token = answer.get("envdAccessToken")

    def start(self, script):
        """Starts a shell script and yields the pieces of its standard output as they arrive."""
        message = {"process": {"cmd": "/bin/bash", "args": ["-l", "-c", script]}, "stdin": False}
        headers = {"E2b-Sandbox-Id": self.id, "E2b-Sandbox-Port": ENVD_PORT, "X-Access-Token": self.token or ""}
        yield from start_command(self.server.address, headers, message)

    def run(self, script):
        """Runs a shell script to its end and returns its standard output."""
        return b"".join(self.start(script))

    def first_output(self, script="echo ready"):
        """Waits for the first output of a script, and lets it end."""
        output = self.start(script)
        next(output)
        arrived = time.perf_counter()
        for _ in output:
            pass
        return arrived

    def pause(self):
        self.server.call("POST", f"/sandboxes/{self.id}/pause", {})

    def resume(self):
        self.server.call("POST", f"/v2/sandboxes/{self.id}/connect", {"timeout": 600})

    def snapshot(self):
        return self.server.call("POST", f"/sandboxes/{self.id}/snapshots", {})["snapshotID"]

    def kill(self):
        self.server.call("DELETE", f"/sandboxes/{self.id}")


def start_command(address, headers, message):
    """The standard output of a command, through any door to an envd."""
    body = json.dumps(message).encode()
    basic = base64.b64encode(b"user:").decode()
    headers = {**headers, "Content-Type": "application/connect+json", "Connect-Protocol-Version": "1", "Authorization": f"Basic {basic}"}
    with contextlib.closing(http.client.HTTPConnection(*address, timeout=120)) as connection:
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.request("POST", "/process.Process/Start", b"\0" + len(body).to_bytes(4, "big") + body, headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise Refused(answer.read(2000).decode(errors="replace"))
        pending = b""
        while piece := answer.read1(65536):
            pending += piece
            while len(pending) >= 5 and len(pending) >= 5 + (length := int.from_bytes(pending[1:5], "big")):
                flags, event, pending = pending[0], json.loads(pending[5 : 5 + length] or b"{}"), pending[5 + length :]
                if flags & 2:
                    if "error" in event:
                        raise Refused(str(event["error"]))
                    return
                data = event.get("event", {}).get("data", {})
                if "stdout" in data:
                    yield base64.b64decode(data["stdout"])


def engine_of_machines(program):
    """What runs machines on this host: `kvm` where the program's own trial shows that it works."""
    found = subprocess.run([program, "doctor", "--json", "--engine", "emulated"], stdout=subprocess.PIPE, text=True, check=False).stdout
    return next("kvm" if check["status"] == "ok" else "emulated" for check in json.loads(found) if check["name"] == "kvm")


class Server:
    """`firkin up` with a state directory, until `stop`."""

    def __init__(self, program, state_dir, warm=None, options=()):
        self.program, self.state_dir = program, pathlib.Path(state_dir)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = free.getsockname()
        self.log = self.state_dir.parent / f"{self.state_dir.name}.log"
        command = [program, "up", "--yes", "--json", "--state-dir", state_dir, "--listen", f"127.0.0.1:{self.address[1]}", *options]
        if warm is not None and self.has_pool():
            command += ["--warm", str(warm)]
        say(f"starting a server in {state_dir} (its template is built first; log: {self.log})")
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(self.healthy, "the server's answer", seconds=900, pause=0.1)
        self.key = (self.state_dir / "api-key").read_text().strip()
        self.acceleration = json.loads((self.state_dir / "server.json").read_text())["acceleration"]

    def has_pool(self):
        help_text = subprocess.run([self.program, "up", "--help"], stdout=subprocess.PIPE, text=True, check=True).stdout
        return "--warm <" in help_text or "--warm [" in help_text

    def healthy(self):
        if self.process.poll() is not None:
            raise SystemExit(f"the server ended: {self.log.read_text()[-2000:]}")
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(*self.address, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False

    def call(self, method, path, body=None):
        with contextlib.closing(http.client.HTTPConnection(*self.address, timeout=120)) as connection:
            headers = {"X-API-Key": self.key}
            if body is not None:
                headers["Content-Type"] = "application/json"
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
        if answer.status >= 300:
            raise Refused(f"{method} {path}: {answer.status} {text.decode(errors='replace')}")
        return json.loads(text) if text else None

    def create(self, template="base"):
        return Sandbox(self, self.call("POST", "/v2/sandboxes", {"templateID": template, "timeout": 3600}))

    def metric(self, series):
        """One value of `GET /metrics`, by the beginning of its series' name and labels; `None` where there is none."""
        with contextlib.closing(http.client.HTTPConnection(*self.address, timeout=30)) as connection:
            connection.request("GET", "/metrics", headers={"X-API-Key": self.key})
            text = connection.getresponse().read().decode()
        name, _, label = series.partition("{")
        for line in text.splitlines():
            if line.startswith(name + "{") and label.rstrip("}") in line:
                return float(line.rsplit(" ", 1)[1])
        return None

    def resident_kib(self):
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        return 0

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
