"""What E2B's documentation does with its command line, against a running server."""

import hashlib
import json
import random
import uuid

import pexpect

STDIN_LIMIT = 64 << 10
"""The most that `exec` promises to pass on from a pipe."""


def test_a_sandbox_is_listed_and_described(cli, sandbox):
    (listed,) = [each for each in json.loads(cli.run("sandbox", "list", "--format", "json")) if each["sandboxId"] == sandbox]
    assert (listed["name"], listed["state"], listed["cpuCount"]) == ("base", "running", 1)
    assert sandbox in cli.run("sandbox", "list")
    info = json.loads(cli.run("sandbox", "info", sandbox, "--format", "json"))
    assert info["sandboxId"] == sandbox and info["state"] == "running", info


def test_exec_passes_words_variables_and_the_exit_status(cli, sandbox):
    script = 'id -un; pwd; echo "$A"; exit 7'
    said = cli.run("sandbox", "exec", "-u", "root", "-c", "/tmp", "-e", "A=two words", sandbox, "sh", "-c", script, status=7)
    assert said == "root\n/tmp\ntwo words\n"


def test_exec_pipes_binary_input_whole(cli, sandbox):
    noise = random.Random(1).randbytes(STDIN_LIMIT)
    said = cli.run("sandbox", "exec", sandbox, "sha256sum", stdin=noise)
    assert said.split()[0] == hashlib.sha256(noise).hexdigest()
    assert cli.run("sandbox", "exec", sandbox, "cat", stdin="grüße\n".encode()) == "grüße\n"


def test_exec_in_the_background_returns_at_once(cli, sandbox):
    cli.run("sandbox", "exec", "--background", sandbox, "sleep", "3600")
    cli.run("sandbox", "exec", sandbox, "pkill", "-f", "sleep 3600")


def test_connect_gives_a_terminal_that_follows_its_window(cli, sandbox):
    terminal = cli.terminal("sandbox", "connect", sandbox)
    terminal.expect(r"\$ ")
    terminal.sendline("stty size; echo in-$((40+2))")
    terminal.expect("30 100")
    terminal.expect("in-42")
    terminal.setwinsize(20, 70)
    # The new size is on its way beside the input: the guest is asked until it has arrived.
    terminal.sendline('until [ "$(stty size)" = "20 70" ]; do sleep 0.1; done; echo follow-$((40+2))')
    terminal.expect("follow-42")
    terminal.sendline("exit")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


def test_create_gives_a_terminal(cli, api):
    terminal = cli.terminal("sandbox", "create", "base")
    terminal.expect(r"user@(\w+)")
    sandbox_id = terminal.match.group(1)
    try:
        terminal.expect(r"\$ ")
        terminal.sendline("exit")
        terminal.expect(pexpect.EOF)
        terminal.close()
        assert terminal.exitstatus == 0
    finally:
        api.kill(sandbox_id)


def test_logs_and_metrics_are_understood(cli, sandbox):
    assert "sandbox created" in cli.run("sandbox", "logs", sandbox)
    cli.run("sandbox", "metrics", sandbox)


def test_pause_resume_and_snapshot(cli, api, sandbox):
    cli.run("sandbox", "exec", sandbox, "sh", "-c", "echo kept >/dev/shm/word")
    cli.run("sandbox", "pause", sandbox)
    assert '"paused"' in cli.run("sandbox", "list", "--state", "paused", "--format", "json")
    cli.run("sandbox", "resume", sandbox)
    assert cli.run("sandbox", "exec", sandbox, "cat", "/dev/shm/word") == "kept\n"
    snapshot = cli.run("sandbox", "snapshot", "create", sandbox).split()[2]
    try:
        assert snapshot in cli.run("sandbox", "snapshot", "list", sandbox)
    finally:
        cli.run("sandbox", "snapshot", "delete", snapshot)
    assert snapshot not in [each["snapshotID"] for each in api.http.get("/snapshots").json()]


def test_what_is_killed_is_gone(cli, api):
    sandbox_id = cli.run("sandbox", "create", "base", "--detach").split()[-1]
    assert sandbox_id in cli.run("sandbox", "kill", sandbox_id)
    assert "wasn't found" in cli.fails("sandbox", "info", sandbox_id)
    assert "not found" in cli.fails("sandbox", "exec", sandbox_id, "true")
    assert sandbox_id not in [each["sandboxID"] for each in api.listed()]


def test_templates_are_listed(cli):
    templates = json.loads(cli.run("template", "list", "--format", "json"))
    assert "base" in [name for each in templates for name in each["aliases"]], templates
    assert "not found" in cli.fails("template", "delete", "-y", "no-such-template")


BUILD_WAIT_S = 300
"""A build that is the first on its image boots it, and an emulated guest on a busy machine takes its time."""

DOCKERFILE = """\
FROM e2bdev/base
WORKDIR /srv
ENV WORD=kept
COPY note .
RUN echo $WORD > made
"""


def test_a_dockerfile_becomes_a_template(cli, api, tmp_path):
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    (tmp_path / "note").write_text("from the context\n")
    name = f"cli-{uuid.uuid4().hex}"
    try:
        cli.run("template", "create", name, "--path", str(tmp_path), "--cpu-count", "1", "--memory-mb", "512", wait_s=BUILD_WAIT_S)
        assert name in [alias for each in json.loads(cli.run("template", "list", "--format", "json")) for alias in each["aliases"]]
        sandbox_id = cli.run("sandbox", "create", name, "--detach").split()[-1]
        try:
            assert cli.run("sandbox", "exec", sandbox_id, "cat", "/srv/note", "/srv/made") == "from the context\nkept\n"
        finally:
            api.kill(sandbox_id)
    finally:
        cli.run("template", "delete", "-y", name)
    assert name not in cli.run("template", "list")
