"""Secrets and identity tokens that are put into requests and never enter a sandbox.

The server is the tests' own: it believes the authority of the little internet beside the host.
"""

import base64
import json
import subprocess

import e2b
import httpx
import pytest
from e2b import Secret
from outside import ALLOWED, OTHER, RESOLVER, outside  # noqa: F401 (a fixture)
from own_server import own_server, sandboxes_of
from support import SANDBOX_LIFETIME_S

VALUE = "sk-only-outside-4711"
NEWER = "sk-only-outside-4712"
BEARER = "Bearer ${e2b.secrets.openai}"
NAMED = {"deny_out": ["0.0.0.0/0"], "allow_out": ["allowed.test", "other.test"], "dns_servers": [RESOLVER]}
FILLED = {**NAMED, "rules": {"allowed.test": [{"transform": {"headers": {"Authorization": BEARER}}}]}}

ASK = """
import json, ssl, sys, urllib.request
headers = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
print(urllib.request.urlopen(urllib.request.Request(sys.argv[1], headers=headers), timeout=60).read().decode())
"""
"""A program that knows nothing of authorities, and believes what the system does."""


@pytest.fixture(scope="module")
def server(outside):  # noqa: F811
    with own_server("--identity-issuer", "https://firkin.test", SSL_CERT_FILE=str(outside.authority), FIRKIN_LOG="debug") as server:
        Secret.create("openai", VALUE, **server.client)
        yield server


@pytest.fixture
def create(server):
    """Creates sandboxes that have the program and end with the test."""
    with sandboxes_of(server) as create:

        def with_program(**options):
            sandbox = create(**options)
            sandbox.files.write("/home/user/ask.py", ASK)
            return sandbox

        yield with_program


def ask(sandbox, url: str, **headers) -> dict:
    """What the host says of a request of the sandbox's."""
    command = f"python3 /home/user/ask.py {url} '{json.dumps(headers)}'"
    return json.loads(sandbox.commands.run(command, timeout=120).stdout)


def test_a_value_goes_to_its_host_and_nowhere_else(server, create):
    sandbox = create(network=FILLED)
    said = ask(sandbox, "https://allowed.test/", Authorization="mine")
    assert (said["at"], said["headers"]["authorization"]) == (ALLOWED, f"Bearer {VALUE}")
    # The system's store, and what brings one of its own.
    curl = sandbox.commands.run("curl --silent --fail https://allowed.test/", timeout=120).stdout
    assert json.loads(curl)["headers"]["authorization"] == f"Bearer {VALUE}"
    assert sandbox.commands.run("echo $REQUESTS_CA_BUNDLE $NODE_EXTRA_CA_CERTS").stdout.split() == [
        "/etc/ssl/certs/ca-certificates.crt"
    ] * 2
    # Not in the clear, and not to another host of the same server.
    plain = ask(sandbox, "http://allowed.test/")
    assert plain["at"] == ALLOWED and "authorization" not in plain["headers"]
    fronted = sandbox.commands.run(
        "curl --silent --output /dev/null --write-out '%{http_code}' --header 'Host: other.test' https://allowed.test/", timeout=120
    )
    assert fronted.stdout == "421"
    other = sandbox.commands.run("curl --silent --insecure https://other.test/", timeout=120).stdout
    assert json.loads(other)["at"] == OTHER and "authorization" not in json.loads(other)["headers"]

    Secret.update("openai", NEWER, **server.client)
    try:
        assert ask(sandbox, "https://allowed.test/")["headers"]["authorization"] == f"Bearer {NEWER}"
    finally:
        Secret.update("openai", VALUE, **server.client)


def test_rules_come_with_an_update_outlive_a_pause_and_are_in_forks(server, create):
    sandbox = create(network=NAMED)
    sandbox.update_network(FILLED)
    assert ask(sandbox, "https://allowed.test/")["headers"]["authorization"] == f"Bearer {VALUE}"
    sandbox.pause()
    sandbox = e2b.Sandbox.connect(sandbox.sandbox_id, timeout=SANDBOX_LIFETIME_S, **server.client)
    assert ask(sandbox, "https://allowed.test/")["headers"]["authorization"] == f"Bearer {VALUE}"
    (fork,) = sandbox.fork()
    try:
        assert ask(fork, "https://allowed.test/")["headers"]["authorization"] == f"Bearer {VALUE}"
    finally:
        fork.kill()
    sandbox.update_network(NAMED)
    refused = sandbox.commands.run("curl --silent https://allowed.test/ || echo $?", timeout=120).stdout
    assert refused.strip() in {"60", "35"}, "without the rule the host's own certificate is shown"


def test_a_program_that_reads_a_variable_holds_a_placeholder(server, create):
    rule = {"transform": {"headers": {}, "placeholders": ["openai"]}}
    body = {
        "templateID": "base",
        "timeout": SANDBOX_LIFETIME_S,
        "envVars": {"OPENAI_API_KEY": "${e2b.secrets.openai}"},
        "network": {"denyOut": ["0.0.0.0/0"], "allowOut": ["allowed.test"], "dnsServers": [RESOLVER], "rules": {"allowed.test": [rule]}},
    }
    key = {"X-API-Key": server.client["api_key"]}
    made = httpx.post(f"{server.url}/v2/sandboxes", json=body, headers=key, timeout=120)
    assert made.status_code == 201, made.text
    sandbox = e2b.Sandbox.connect(made.json()["sandboxID"], timeout=SANDBOX_LIFETIME_S, **server.client)
    try:
        command = 'curl --silent --header "Authorization: Bearer $OPENAI_API_KEY" https://allowed.test/'
        said = json.loads(sandbox.commands.run(command, timeout=120).stdout)
        assert said["headers"]["authorization"] == f"Bearer {VALUE}"
        assert sandbox.commands.run("echo $OPENAI_API_KEY").stdout.strip() == "${e2b.secrets.openai}"
    finally:
        sandbox.kill()


def test_an_identity_token_is_made_for_the_request_that_carries_it(server, create):
    token = Secret.iam_token(audience="sts.example", token_type="JWT-SVID")
    rule = {"transform": lambda context: {"headers": {"Authorization": f"Bearer {context.iam.tokens['aws']}"}}}
    sandbox = create(iam={"tokens": {"aws": token}}, network={**NAMED, "rules": {"allowed.test": [rule]}})
    carried = [ask(sandbox, "https://allowed.test/")["headers"]["authorization"].removeprefix("Bearer ") for _ in range(2)]
    assert carried[0] != carried[1]
    head, claims, _ = (part + "=" * (-len(part) % 4) for part in carried[0].split("."))
    claims = json.loads(base64.urlsafe_b64decode(claims))
    assert claims["iss"] == "https://firkin.test" and claims["aud"] == ["sts.example"]
    assert claims["sub"] == f"spiffe://firkin.test/sandbox/{sandbox.sandbox_id}"
    keys = httpx.get(f"{server.url}/.well-known/jwks.json").json()["keys"]
    assert json.loads(base64.urlsafe_b64decode(head))["kid"] in [key["kid"] for key in keys]


def test_a_value_is_in_no_memory_no_file_and_no_log(server, create):
    """Looked for where a sandbox keeps everything that it has: the state that a pause writes, and the server's own files."""
    sandbox = create(network=FILLED)
    marker = "marker-that-is-found-4711"
    sandbox.commands.run(f"sh -c 'K={marker}; exec sleep 1000'", background=True, timeout=0)
    sandbox.files.write("/home/user/marker", marker)
    # The host's answer repeats what it was sent; so its body is thrown away.
    asked = sandbox.commands.run("curl --silent --output /dev/null --write-out '%{http_code}' https://allowed.test/silent", timeout=120)
    assert asked.stdout == "200"
    sandbox.pause()

    def found(text: str) -> list[str]:
        files = [path for path in (server.dir).rglob("*") if path.is_file()]
        search = ["grep", "--files-with-matches", "--text", "--fixed-strings", text, *files]
        return subprocess.run(search, capture_output=True, text=True).stdout.split()

    assert found(marker), "what a sandbox has is found in what a pause writes"
    assert found(VALUE) == []
    assert VALUE not in (server.dir / "log").read_text(errors="replace")
