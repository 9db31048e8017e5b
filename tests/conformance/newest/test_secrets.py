"""Secrets and identity tokens that are put into requests and never enter a sandbox.

The server is the tests' own: it believes the authority of the little internet beside the host.
"""

import base64
import json
import subprocess

import httpx
import pytest
from e2b import Secret
from outside import ALLOWED, OTHER, PASSWORD, PROXY, RESOLVER, USER, outside  # noqa: F401 (a fixture)
from own_server import own_server, sandboxes_of
from support import SANDBOX_LIFETIME_S, WAIT_S

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
def create(server, driver):
    """Creates sandboxes that have the program and end with the test."""
    with sandboxes_of(server, driver) as create:

        def with_program(**options):
            sandbox = create(**options)
            sandbox.files.write("/home/user/ask.py", ASK)
            return sandbox

        yield with_program


def ask(sandbox, url: str, **headers) -> dict:
    """What the host says of a request of the sandbox's."""
    command = f"python3 /home/user/ask.py {url} '{json.dumps(headers)}'"
    return json.loads(sandbox.commands.run(command, timeout=120).stdout)


def test_a_value_goes_to_its_host_and_nowhere_else(server, create, sdk):
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

    sdk("Secret").update("openai", NEWER, **server.client)
    try:
        assert ask(sandbox, "https://allowed.test/")["headers"]["authorization"] == f"Bearer {NEWER}"
    finally:
        sdk("Secret").update("openai", VALUE, **server.client)


def test_rules_come_with_an_update_outlive_a_pause_and_are_in_forks(server, create, driver):
    sandbox = create(network=NAMED)
    sandbox.update_network(FILLED)
    assert ask(sandbox, "https://allowed.test/")["headers"]["authorization"] == f"Bearer {VALUE}"
    sandbox.pause()
    sandbox = driver.connect(sandbox.sandbox_id, timeout=SANDBOX_LIFETIME_S, **server.client)
    assert ask(sandbox, "https://allowed.test/")["headers"]["authorization"] == f"Bearer {VALUE}"
    (fork,) = sandbox.fork()
    try:
        assert ask(fork, "https://allowed.test/")["headers"]["authorization"] == f"Bearer {VALUE}"
    finally:
        fork.kill()
    sandbox.update_network(NAMED)
    refused = sandbox.commands.run("curl --silent https://allowed.test/ || echo $?", timeout=120).stdout
    assert refused.strip() in {"60", "35"}, "without the rule the host's own certificate is shown"


def test_a_program_that_reads_a_variable_holds_a_placeholder(server, driver):
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
    sandbox = driver.connect(made.json()["sandboxID"], timeout=SANDBOX_LIFETIME_S, **server.client)
    try:
        command = 'curl --silent --header "Authorization: Bearer $OPENAI_API_KEY" https://allowed.test/'
        said = json.loads(sandbox.commands.run(command, timeout=120).stdout)
        assert said["headers"]["authorization"] == f"Bearer {VALUE}"
        assert sandbox.commands.run("echo $OPENAI_API_KEY").stdout.strip() == "${e2b.secrets.openai}"
    finally:
        sandbox.kill()


def test_rules_are_what_the_sdk_makes_of_them(create):
    """Headers without a secret, a list of hosts that is made of the rules, several hosts, and a rule that does nothing."""
    static = {"transform": {"headers": {"X-Test-Token": "static", "X-Other": "two words"}}}
    network = {
        **NAMED,
        "allow_out": lambda context: [*context.rules.keys()],
        "rules": {"allowed.test": [static], "*.wild.test": [static], "other.test": [{"transform": None}]},
    }
    sandbox = create(network=network)
    for host, at in [("allowed.test", ALLOWED), ("deep.wild.test", OTHER)]:
        said = ask(sandbox, f"https://{host}/", **{"X-Test-Token": "mine"})
        assert (said["at"], said["headers"]["x-test-token"], said["headers"]["x-other"]) == (at, "static", "two words")
    # Nothing is put in for the third, so its TLS is its own: nobody in the sandbox believes it.
    assert sandbox.commands.run("curl --silent https://other.test/ || echo $?", timeout=120).stdout.strip() == "60"
    other = sandbox.commands.run("curl --silent --insecure https://other.test/", timeout=120).stdout
    assert json.loads(other)["at"] == OTHER and "x-test-token" not in json.loads(other)["headers"]


@pytest.mark.parametrize("text", ["${e2b.secrets.no-such-secret}", "${e2b.identity.tokens.none}"])
def test_rules_that_name_what_there_is_not_are_refused(server, create, text):
    from e2b.exceptions import SandboxException

    rules = {"allowed.test": [{"transform": {"headers": {"Authorization": text}}}]}
    key = {"X-API-Key": server.client["api_key"]}
    there = lambda: httpx.get(f"{server.url}/v2/sandboxes", headers=key, timeout=WAIT_S).json()
    before = len(there())
    with pytest.raises(SandboxException, match="400"):
        create(network={**NAMED, "rules": rules})
    assert len(there()) == before, "nothing was started"
    sandbox = create(network=FILLED)
    with pytest.raises(SandboxException, match="400"):
        sandbox.update_network({**NAMED, "rules": rules})
    assert ask(sandbox, "https://allowed.test/")["headers"]["authorization"] == f"Bearer {VALUE}", "what it had stays"


def test_an_identity_token_is_made_for_the_request_that_carries_it(server, create, sdk):
    token = sdk("Secret").iam_token(audience="sts.example", token_type="JWT-SVID")
    rule = {"transform": lambda context: {"headers": {"Authorization": f"Bearer {context.iam.tokens['aws.prod-1_x']}"}}}
    sandbox = create(iam={"tokens": {"aws.prod-1_x": token}}, network={**NAMED, "rules": {"allowed.test": [rule]}})
    carried = [ask(sandbox, "https://allowed.test/")["headers"]["authorization"].removeprefix("Bearer ") for _ in range(2)]
    assert carried[0] != carried[1]
    head, claims, _ = (part + "=" * (-len(part) % 4) for part in carried[0].split("."))
    claims = json.loads(base64.urlsafe_b64decode(claims))
    assert claims["iss"] == "https://firkin.test" and claims["aud"] == ["sts.example"]
    assert claims["sub"] == f"spiffe://firkin.test/sandbox/{sandbox.sandbox_id}"
    keys = httpx.get(f"{server.url}/.well-known/jwks.json", timeout=WAIT_S).json()["keys"]
    assert json.loads(base64.urlsafe_b64decode(head))["kid"] in [key["kid"] for key in keys]


def found(server, text: str) -> list[str]:
    """The files of a server, those of its sandboxes among them, that have this text."""
    files = [path for path in server.dir.rglob("*") if path.is_file()]
    search = ["grep", "--files-with-matches", "--text", "--fixed-strings", text, *files]
    return subprocess.run(search, capture_output=True, text=True).stdout.split()


def test_a_value_is_in_no_memory_no_file_and_no_log(server, create):
    """Looked for where a sandbox keeps everything that it has: what a snapshot and a pause write, the server's files, what it answers."""
    sandbox = create(network=FILLED)
    marker = "marker-that-is-found-4711"
    sandbox.commands.run(f"sh -c 'K={marker}; exec sleep 1000'", background=True, timeout=0)
    sandbox.files.write("/home/user/marker", marker)
    # The host's answer repeats what it was sent; so its body is thrown away.
    asked = sandbox.commands.run("curl --silent --output /dev/null --write-out '%{http_code}' https://allowed.test/silent", timeout=120)
    assert asked.stdout == "200"
    key = {"X-API-Key": server.client["api_key"]}
    for route in (f"/sandboxes/{sandbox.sandbox_id}", f"/sandboxes/{sandbox.sandbox_id}/network/audit", f"/v2/sandboxes/{sandbox.sandbox_id}/logs", "/metrics"):
        answer = httpx.get(f"{server.url}{route}", headers=key, timeout=WAIT_S)
        assert answer.status_code == 200 and VALUE not in answer.text, route
    snapshot = sandbox.create_snapshot()
    of_snapshot = {path for path in found(server, marker) if "/artifacts/" in path}
    assert of_snapshot, "what a sandbox has is found in a snapshot of it"
    sandbox.pause()
    assert {path for path in found(server, marker) if "/artifacts/" in path} > of_snapshot, "and in what a pause writes"
    assert found(server, VALUE) == []
    assert VALUE not in (server.dir / "log").read_text(errors="replace")
    httpx.delete(f"{server.url}/templates/{snapshot.snapshot_id.replace('/', '%2F')}", headers=key, timeout=WAIT_S).raise_for_status()


def test_a_proxys_credentials_are_in_the_database_alone(server, create):
    proxy = {"address": f"{PROXY}:1080", "username": USER, "password": PASSWORD}
    sandbox = create(network={"egress_proxy": proxy})
    asked = sandbox.commands.run(f"curl --silent --output /dev/null --write-out '%{{http_code}}' http://{ALLOWED}/silent", timeout=120)
    assert asked.stdout == "200"
    sandbox.pause()
    named = {path.rsplit("/", 1)[-1] for path in found(server, PASSWORD)}
    assert named and named <= {"firkin.db", "firkin.db-wal"}, "where the next server finds it, and nowhere else"
