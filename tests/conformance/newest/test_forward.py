"""`firkin sandbox port-forward` and the sandbox: what carries a connection ends with it, however the command comes to its end."""

import json
import os
import signal
import socket
import subprocess
import urllib.request

import pytest
from support import WAIT_S, wait_for, wait_for_port


@pytest.fixture
def serving(sandbox):
    """A port inside, behind which somebody answers."""
    sandbox.files.write("/tmp/served/page", "from inside")
    server = sandbox.commands.run("cd /tmp/served && exec python3 -m http.server 8123", background=True)
    wait_for_port(sandbox, 8123)
    yield 8123
    server.kill()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_forwarded_port_answers_and_leaves_nothing_inside(sandbox, serving, end):
    program = os.environ.get("FIRKIN_BIN")
    if program is None:
        pytest.skip("FIRKIN_BIN does not name the program")

    def carriers():
        return [process for process in sandbox.commands.list() if any("/dev/tcp/" in arg for arg in process.args)]

    command = [program, "--json", "sandbox", "port-forward", sandbox.sandbox_id, f"0:{serving}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forward:
        try:
            host, port = json.loads(forward.stdout.readline())["address"].rsplit(":", 1)
            with urllib.request.urlopen(f"http://{host}:{port}/page", timeout=WAIT_S) as page:
                assert page.read() == b"from inside"
            with socket.create_connection((host, int(port)), timeout=WAIT_S):
                wait_for(carriers, "the connection to be carried")
                forward.send_signal(end)
                forward.wait(WAIT_S)
                wait_for(lambda: not carriers(), "its end inside")
        finally:
            forward.kill()
