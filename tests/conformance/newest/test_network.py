"""Network options of a sandbox: who is let in, under which name they come, and which rules are taken."""

import httpx
import pytest
from support import WAIT_S, start_guest_program, wait_for

PORT = 8000


def test_a_signed_url_needs_no_sandbox_id(driver, spawn):
    sandbox = spawn()
    sandbox.files.write("/home/user/signed.txt", "signed")
    url = sandbox.download_url("/home/user/signed.txt")
    # As a person would open it: nothing but the URL.
    assert httpx.get(url, timeout=WAIT_S).text == "signed"
    assert httpx.head(url, timeout=WAIT_S).headers["content-length"] == "6"
    assert httpx.get(url.replace("signed.txt", "other.txt"), timeout=WAIT_S).status_code == 401
    expired = sandbox.download_url("/home/user/signed.txt", use_signature_expiration=-10)
    refused = httpx.get(expired, timeout=WAIT_S)
    assert (refused.status_code, refused.json()["message"]) == (401, "signature is already expired")


def test_a_private_sandbox_wants_its_traffic_token(driver, spawn, api):
    sandbox = spawn(network={"allow_public_traffic": False})
    start_guest_program(sandbox, "peer.py", PORT, str(PORT))
    with api.through_proxy(sandbox.sandbox_id, PORT) as web:
        assert web.get("/").status_code == 403
        assert web.get("/", headers={"e2b-traffic-access-token": "wrong"}).status_code == 403
        answer = web.get("/", headers={"e2b-traffic-access-token": sandbox.traffic_access_token})
    assert answer.status_code == 200
    assert sandbox.traffic_access_token not in answer.text


def test_a_public_sandbox_wants_none(driver, spawn, api):
    sandbox = spawn(network={"allow_public_traffic": True})
    start_guest_program(sandbox, "peer.py", PORT, str(PORT))
    with api.through_proxy(sandbox.sandbox_id, PORT) as web:
        assert web.get("/").status_code == 200


def test_servers_in_the_guest_see_the_masked_host(driver, spawn, api):
    sandbox = spawn(network={"mask_request_host": "masked.example:${PORT}"})
    start_guest_program(sandbox, "peer.py", PORT, str(PORT))
    with api.through_proxy(sandbox.sandbox_id, PORT) as web:
        headers = {name.lower(): value for name, value in web.get("/").json()["headers"].items()}
    assert headers["host"] == f"masked.example:{PORT}"


def test_rules_are_replaced_and_survive_a_pause(driver, spawn, api):
    sandbox = spawn(network={"deny_out": ["0.0.0.0/0"], "allow_out": ["192.0.2.1"]})
    shown = lambda: api.http.get(f"/sandboxes/{sandbox.sandbox_id}").json().get("network")
    assert shown() == {"allowOut": ["192.0.2.1"], "denyOut": ["0.0.0.0/0"]}
    sandbox.update_network({"deny_out": ["198.51.100.0/24"]})
    sandbox.pause()
    sandbox.connect()
    assert shown() == {"allowOut": [], "denyOut": ["198.51.100.0/24"]}
    assert sandbox.commands.run("echo still here").stdout == "still here\n"
    sandbox.update_network({})
    assert shown() is None


@pytest.mark.parametrize("network", [{"allow_out": ["example.com"]}, {"deny_out": ["example.com"]}])
def test_rules_that_cannot_be_kept_are_refused(driver, spawn, network):
    import e2b

    with pytest.raises(e2b.SandboxException, match="400"):
        spawn(network=network)


@pytest.mark.lacking(gvisor="its kernel does not take interfaces down")
def test_a_network_that_was_taken_down_is_back_after_a_resume(spawn, api):
    sandbox = spawn()
    # The command answers before it cuts itself off.
    sandbox.commands.run("(sleep 3; ip link set eth0 down) >/dev/null 2>&1 & true", user="root")

    def is_down() -> bool:
        try:
            return envd.get("/health", timeout=2).status_code == 502
        except httpx.TimeoutException:
            return True

    with api.through_proxy(sandbox.sandbox_id, 49983) as envd:
        wait_for(is_down, "the end of the network")
    sandbox.pause()
    sandbox.connect()
    assert sandbox.commands.run("ip route show default | wc -l").stdout == "1\n"
