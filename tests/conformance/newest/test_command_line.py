"""Firkin's own command line at sandboxes that run: files, ports, watching, events, webhooks."""

import base64
import contextlib
import hashlib
import http.server
import json
import os
import queue
import re
import signal
import subprocess
import threading

import e2b
import httpx
import pytest
from support import WAIT_S, Brood, wait_for, wait_for_port

PORT = 8123
# The server under test was told that webhooks may point there: `firkin up --webhook-allow 127.83.12.2/32`.
RECEIVER = "127.83.12.2"
SECRET = "a secret of thirty-two characters"


@pytest.fixture
def sandbox(spawn):
    return spawn()


@pytest.fixture
def spawn(api):
    """Creates sandboxes that end with the test."""
    brood = Brood(e2b.Sandbox, api)
    yield brood
    brood.end()


def words(*words):
    program = os.environ.get("FIRKIN_BIN")
    if not program or not os.environ.get("FIRKIN_STATE_DIR"):
        pytest.skip("FIRKIN_BIN does not name the program, nor FIRKIN_STATE_DIR where its server's state is")
    return [program, *words]


def run(*line):
    ended = subprocess.run(words(*line), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WAIT_S)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@contextlib.contextmanager
def running(*line):
    """A command that goes on, and its lines as they come."""
    process = subprocess.Popen(
        words(*line), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    lines = queue.Queue()
    readers = [
        threading.Thread(target=lambda stream: [lines.put(one) for one in stream], args=(stream,))
        for stream in (process.stdout, process.stderr)
    ]
    for reader in readers:
        reader.start()
    try:
        yield process, lines
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(WAIT_S)
        for reader in readers:
            reader.join()
        process.stdout.close()
        process.stderr.close()


def until(lines, told, what):
    """The first line for which `told` gives something, and what that is."""
    seen = []

    def look():
        with contextlib.suppress(queue.Empty):
            while True:
                seen.append(lines.get_nowait())
                if found := told(seen[-1]):
                    return found

    return wait_for(look, f"{what} among {seen}")


def test_files_are_copied_both_ways_whole(sandbox, tmp_path):
    content = os.urandom(5 << 20) + b"end"
    here, back = tmp_path / "here", tmp_path / "back"
    here.write_bytes(content)
    run("sandbox", "cp", str(here), f"{sandbox.sandbox_id}:/home/user/there it is")
    summed = sandbox.commands.run("sha256sum 'there it is'").stdout.split()[0]
    assert summed == hashlib.sha256(content).hexdigest()
    run("sandbox", "cp", f"{sandbox.sandbox_id}:/home/user/there it is", str(back))
    assert back.read_bytes() == content
    missing = subprocess.run(words("sandbox", "cp", f"{sandbox.sandbox_id}:/nothing", str(back)), capture_output=True, text=True)
    assert missing.returncode != 0 and "/nothing" in missing.stderr
    assert back.read_bytes() == content, "what was there stays if nothing comes"


def test_a_port_of_the_loopback_is_one_of_this_host(sandbox):
    sandbox.files.write("/home/user/page", "from within")
    sandbox.commands.run(f"python3 -m http.server --bind 127.0.0.1 {PORT}", background=True)
    wait_for_port(sandbox, PORT)
    with running("sandbox", "port-forward", sandbox.sandbox_id, f"0:{PORT}") as (_, lines):
        here = until(lines, lambda line: (found := re.search(r"127\.0\.0\.1:(\d+)", line)) and int(found[1]), "its port")
        for _ in range(3):
            assert httpx.get(f"http://127.0.0.1:{here}/page", timeout=WAIT_S).text == "from within"


def test_changes_of_a_directory_are_told(sandbox):
    sandbox.commands.run("mkdir -p watched/below")
    with running("sandbox", "watch", "--recursive", "--json", sandbox.sandbox_id, "/home/user/watched") as (_, lines):

        def named(line):
            return "below/new" in line

        def change():
            # From the first that is seen on: the watch begins at some time after the command.
            sandbox.commands.run("rm -f watched/below/new; echo text >watched/below/new")
            with contextlib.suppress(queue.Empty):
                while True:
                    if named(line := lines.get_nowait()):
                        return json.loads(line)

        assert wait_for(change, "a change that is told")


def test_a_sandbox_s_log_is_followed_to_its_end(sandbox):
    with running("sandbox", "logs", "--follow", "--json", sandbox.sandbox_id) as (process, lines):
        until(lines, lambda line: "created" in line, "its beginning")
        sandbox.pause()
        until(lines, lambda line: "paused" in line, "its pause")
        sandbox.kill()
        until(lines, lambda line: "killed" in line, "its end")
        assert process.wait(WAIT_S) == 0, "it ends by itself"


def test_events_are_told_as_they_happen(spawn):
    with running("events", "--follow", "--json", "--topics", "sandbox") as (_, lines):
        until(lines, str.strip, "the stream to begin")
        sandbox = spawn()
        sandbox.kill()
        of = [
            until(lines, lambda line, event=event: sandbox.sandbox_id in line and event in line and json.loads(line), event)
            for event in ("created", "killed")
        ]
        assert all(of)


@contextlib.contextmanager
def receiver():
    """Somebody's own server, which a webhook points at, and what it gets."""
    got = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.put((dict(self.headers), body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer((RECEIVER, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{RECEIVER}:{server.server_port}/hook", got
    server.shutdown()
    server.server_close()


def test_a_webhook_is_told_what_becomes_of_a_real_sandbox(spawn, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    with receiver() as (url, got):
        webhook = json.loads(run("webhook", "add", url, "--secret-file", str(secret), "--json"))
        try:
            sandbox = spawn()
            sandbox.pause()
            sandbox.connect()
            sandbox.kill()
            told = []
            while "killed" not in told:
                headers, body = got.get(timeout=WAIT_S)
                signature = base64.b64encode(hashlib.sha256(SECRET.encode() + body).digest()).decode().rstrip("=")
                assert headers["e2b-signature"] == signature
                event = json.loads(body)
                if event["sandbox_id"] == sandbox.sandbox_id:
                    told.append(event["type"].rsplit(".", 1)[1])
            assert told == ["created", "paused", "resumed", "killed"]
        finally:
            run("webhook", "rm", webhook["id"])
