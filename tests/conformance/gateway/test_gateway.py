"""`Sandbox.create(mcp=...)` of the unmodified SDK, and the gateway that it starts as an MCP client sees it."""

import asyncio
import json
import os
import shlex
import subprocess

import e2b
import httpx2
import mcp
import pytest
from mcp.client.streamable_http import streamable_http_client
from support import GUEST_PROGRAMS, SANDBOX_LIFETIME_S, WAIT_S, Brood

GATEWAY_PORT = 50005

TOOL_SERVER = f"exec python3 -u -c {shlex.quote((GUEST_PROGRAMS / 'tool_server.py').read_text())}"


BUILD_S = 600
"""A boot and a snapshot of an emulated guest, on a busy host."""


def build_template(*options):
    """The gateway's template, by the server that these tests talk to, which goes on serving."""
    program = os.environ.get("FIRKIN_BIN")
    if program is None:
        pytest.skip("FIRKIN_BIN does not name the program, nor FIRKIN_STATE_DIR where its server's state is")
    build = [program, "template", "build", "mcp-gateway", "--json", *options]
    done = subprocess.run(build, check=False, capture_output=True, text=True, timeout=BUILD_S)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def built():
    return build_template()


@pytest.fixture(scope="module")
def sandbox(api, built):
    brood = Brood(e2b.Sandbox, api)
    servers = {
        "github/acme/tools": {"run_cmd": TOOL_SERVER, "install_cmd": "touch installed", "envs": {"GREETING": "sum "}},
        "plain": {"command": "/bin/bash", "args": ["-c", TOOL_SERVER]},
    }
    yield brood(mcp=servers)
    brood.end()


def through_gateway(api, sandbox, work, token=None):
    """Runs `work(client)` with a client of the sandbox's gateway, reached through the server's proxy."""
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(GATEWAY_PORT)}
    headers["Authorization"] = f"Bearer {token or sandbox.get_mcp_token()}"

    async def session():
        async with httpx2.AsyncClient(headers=headers, timeout=WAIT_S) as http:
            transport = streamable_http_client(f"{api.sandbox_url}/mcp", http_client=http)
            async with mcp.Client(transport) as client:
                return await work(client)

    return asyncio.run(session())


def text_of(result):
    return result.content[0].text


@pytest.fixture
def spawn(api):
    """Creates sandboxes that end with the test."""
    brood = Brood(e2b.Sandbox, api)
    yield brood
    brood.end()


def test_the_server_that_runs_builds_its_template_and_knows_it_again(built, spawn):
    running = spawn("mcp-gateway")
    again = build_template()
    assert not again["built"] and again["template_id"] == built["template_id"]
    assert running.commands.run("test -x /usr/local/bin/mcp-gateway && echo there").stdout == "there\n"
    anew = build_template("--force")
    assert anew["built"] and anew["template_id"] == built["template_id"] and anew["build_id"] != again["build_id"]
    assert running.is_running()
    assert spawn("mcp-gateway").commands.run("echo new").stdout == "new\n"


def test_tools_of_all_servers_are_listed_and_called(api, sandbox):
    async def work(client):
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert {"tools_add", "plain_add", "sandbox_run_command"} <= names, names
        assert text_of(await client.call_tool("tools_add", {"a": 40, "b": 2})) == "sum 42"
        assert text_of(await client.call_tool("plain_add", {"a": 1, "b": 2})) == "3"

    through_gateway(api, sandbox, work)


def test_the_sandboxs_own_tools_work_as_its_user(api, sandbox):
    async def work(client):
        ran = json.loads(text_of(await client.call_tool("sandbox_run_command", {"command": "id -un; pwd; echo no >&2"})))
        assert (ran["exit_code"], ran["stdout"], ran["stderr"]) == (0, "user\n/home/user\n", "no\n")
        failed = await client.call_tool("sandbox_run_command", {"command": "exit 3"})
        assert failed.is_error and json.loads(text_of(failed))["exit_code"] == 3
        late = await client.call_tool("sandbox_run_command", {"command": "sleep 600", "timeout_seconds": 1})
        assert late.is_error and "was killed" in text_of(late)
        code = "import os\nprint(6 * 7, os.getcwd())\nraise SystemExit(4)"
        ran = await client.call_tool("sandbox_run_code", {"code": code})
        assert ran.is_error
        assert json.loads(text_of(ran)) == {"exit_code": 4, "stdout": "42 /home/user\n", "stderr": ""}
        await client.call_tool("sandbox_write_file", {"path": "notes/today", "content": "grüße"})
        assert text_of(await client.call_tool("sandbox_read_file", {"path": "/home/user/notes/today"})) == "grüße"
        assert "today" in text_of(await client.call_tool("sandbox_list_files", {"path": "notes"}))
        secret = await client.call_tool("sandbox_read_file", {"path": "/etc/mcp-gateway/.token"})
        assert secret.is_error and "denied" in text_of(secret)

    through_gateway(api, sandbox, work)
    assert sandbox.files.read("notes/today") == "grüße"


def test_only_the_token_opens_the_gateway(api, sandbox):
    with api.through_proxy(sandbox.sandbox_id, GATEWAY_PORT) as http:
        assert http.post("/mcp", json={}).status_code == 401
        assert http.post("/mcp", json={}, headers={"Authorization": "Bearer wrong"}).status_code == 401
    kept = sandbox.files.read("/etc/mcp-gateway/.token", user="root")
    assert kept == sandbox.get_mcp_token()
    assert sandbox.commands.run("stat -c '%a %U' /etc/mcp-gateway/.token", user="root").stdout == "600 root\n"


def test_a_server_that_has_ended_says_so_and_the_others_work_on(api, sandbox):
    async def work(client):
        with pytest.raises(mcp.MCPError):
            await client.call_tool("plain_end", {})
        with pytest.raises(mcp.MCPError, match="has ended"):
            await client.call_tool("plain_add", {"a": 1, "b": 2})
        assert text_of(await client.call_tool("tools_add", {"a": 1, "b": 2})) == "sum 3"

    through_gateway(api, sandbox, work)


def test_the_gateway_goes_on_after_a_pause(api, sandbox):
    sandbox.pause()
    sandbox.connect(timeout=SANDBOX_LIFETIME_S)

    async def work(client):
        assert text_of(await client.call_tool("tools_add", {"a": 2, "b": 2})) == "sum 4"

    through_gateway(api, sandbox, work)


def test_what_cannot_be_started_is_refused(sandbox):
    def refused(words):
        with pytest.raises(e2b.CommandExitException) as refusal:
            sandbox.commands.run(words, user="root", envs={"GATEWAY_ACCESS_TOKEN": "t"})
        assert refusal.value.exit_code != 0
        return refusal.value.stderr

    assert "`airtable`" in refused("""mcp-gateway --config '{"airtable": {"nodeenv": "production"}}'""")
    assert "`exa`" in refused("mcp-gateway pull exa")
    assert "already" in refused("mcp-gateway --config '{}'")
    assert sandbox.commands.run("mcp-gateway --version").stdout.startswith("mcp-gateway ")


def test_a_server_that_ends_at_once_fails_the_create(api):
    before = {each["sandboxID"] for each in api.listed()}
    with pytest.raises(e2b.SandboxException, match="broken"):
        e2b.Sandbox.create(mcp={"broken": {"run_cmd": "exit 5"}}, timeout=SANDBOX_LIFETIME_S)
    assert {each["sandboxID"] for each in api.listed()} == before
