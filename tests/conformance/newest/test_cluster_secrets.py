"""Secrets of several servers that are one address: a sandbox's requests are filled on whichever node it is, and wherever it goes on."""

import json

import e2b
import httpx
import pytest
from e2b import Secret
from outside import RESOLVER, outside  # noqa: F401 (a fixture)
from own_cluster import ONLY_GVISOR, at, cluster, listed  # noqa: F401 (a fixture)
from support import SANDBOX_LIFETIME_S, WAIT_S, wait_for

pytestmark = pytest.mark.lacking(emulated=ONLY_GVISOR, kvm=ONLY_GVISOR)

FIRST, SECOND = "sk-of-all-4711", "sk-of-all-4712"
HEADERS = {"Authorization": "Bearer ${e2b.secrets.openai}"}
FILLED = {
    "deny_out": ["0.0.0.0/0"],
    "allow_out": ["allowed.test"],
    "dns_servers": [RESOLVER],
    "rules": {"allowed.test": [{"transform": {"headers": HEADERS}}]},
}


def told(sandbox) -> str:
    """What the host is told by a request of the sandbox's, whose TLS it has to believe."""
    said = sandbox.commands.run("curl --silent --show-error --fail https://allowed.test/", timeout=120).stdout
    return json.loads(said)["headers"]["authorization"]


def test_requests_are_filled_on_any_node_and_go_on_being_so_elsewhere_and_without_the_database(cluster, outside):  # noqa: F811
    cluster.firkin("cluster", "found", "--state-dir", cluster.database.dir / "nobody", *cluster.options)
    one, two = (cluster.node(name, "--identity-issuer", "https://firkin.test") for name in ("one", "two"))
    for server in (one, two):
        server.env["SSL_CERT_FILE"] = str(outside.authority)
        server.start(*server.as_node)
    key = one.client["api_key"]
    wait_for(lambda: listed(two, key).is_success, "the second node to know a key that the first has made")
    here, there = one.client, two.client | {"api_key": key}
    jwks = [httpx.get(f"{server.url}/.well-known/jwks.json", timeout=WAIT_S).json() for server in (one, two)]
    assert jwks[0] == jwks[1] and jwks[0]["keys"], "a token of either is believed by who asks the other"

    Secret.create("openai", FIRST, **here)
    sandbox = e2b.Sandbox.create(timeout=SANDBOX_LIFETIME_S, network=FILLED, **there)
    try:
        assert told(sandbox) == f"Bearer {FIRST}"
        home = at(one, key, sandbox).headers["x-firkin-node"]
        other = "two" if home == "one" else "one"
        Secret.update("openai", SECOND, **(there if home == "one" else here))
        wait_for(lambda: told(sandbox) == f"Bearer {SECOND}", "the other node to read the new value")
        # It trusts the same authority there.
        cluster.firkin("--state-dir", one.state, "sandbox", "move", sandbox.sandbox_id, other)
        assert at(one, key, sandbox).headers["x-firkin-node"] == other
        assert told(sandbox) == f"Bearer {SECOND}"

        cluster.database.stop()
        assert told(sandbox) == f"Bearer {SECOND}", "what runs goes on with what it has"
        body = {"templateID": "base", "network": {"rules": {"allowed.test": [{"transform": {"headers": HEADERS}}]}}}
        refused = httpx.post(f"{one.url}/v2/sandboxes", headers={"X-API-Key": key}, json=body, timeout=WAIT_S)
        assert (refused.status_code, refused.json()["error_code"]) == (503, "catalog_unavailable"), refused.text
        cluster.database.start()
        wait_for(lambda: httpx.get(f"{one.url}/secrets", headers={"X-API-Key": key}, timeout=WAIT_S).is_success, "the database to be back")
        assert told(sandbox) == f"Bearer {SECOND}"
    finally:
        wait_for(lambda: gone(sandbox.sandbox_id, here), "the sandbox to be killed")
    for server in (one, two):
        server.stop()


def gone(sandbox_id: str, client: dict) -> bool:
    try:
        e2b.Sandbox.kill(sandbox_id, **client)
        return True
    except e2b.SandboxException:
        return False
