"""Refusals: each with the right status, always the contract's JSON, and the right exception of the SDK."""

import json
import select
import socket
import urllib.parse

import pytest
from e2b import AuthenticationException, SandboxException, SandboxNotFoundException
from support import WAIT_S

ABSENT_ID = "iabsentabsentabsent00"
WRONG_KEY = "e2b_" + "0" * 40
DECLARED_BODY_BYTES = 256 * 1024 * 1024


def assert_error(response, status: int, message: str = "") -> None:
    assert response.status_code == status, response.text
    body = response.json()
    assert body["code"] == status
    assert isinstance(body["message"], str) and body["message"]
    assert message.lower() in body["message"].lower()


def test_an_unknown_template_is_not_found(driver, spawn, api):
    with pytest.raises(SandboxException, match="no-such-template") as refused:
        spawn("no-such-template")
    assert refused.value.status_code == 404
    assert_error(api.http.post("/v2/sandboxes", json={"templateID": "no-such-template"}), 404, "no-such-template")
    assert_error(api.http.post("/sandboxes", json={"templateID": "no-such-template"}), 404, "no-such-template")


def test_an_absent_sandbox_is_not_found(driver, api):
    with pytest.raises(SandboxNotFoundException):
        driver.get_info(ABSENT_ID)
    with pytest.raises(SandboxNotFoundException):
        driver.connect(ABSENT_ID)
    with pytest.raises(SandboxNotFoundException):
        driver.fork(ABSENT_ID)
    assert driver.kill(ABSENT_ID) is False
    assert_error(api.http.get(f"/sandboxes/{ABSENT_ID}"), 404, ABSENT_ID)
    assert_error(api.http.post(f"/v2/sandboxes/{ABSENT_ID}/connect", json={}), 404, ABSENT_ID)
    assert_error(api.http.post(f"/sandboxes/{ABSENT_ID}/pause", json={}), 404, ABSENT_ID)
    assert_error(api.http.post(f"/sandboxes/{ABSENT_ID}/timeout", json={"timeout": 1}), 404, ABSENT_ID)


@pytest.mark.parametrize("malformed", ["UPPER", "with space", "semi;colon", "ünicode", "-"])
def test_a_malformed_id_is_a_bad_request(driver, api, malformed):
    path = f"/sandboxes/{urllib.parse.quote(malformed)}"
    assert_error(api.http.get(path), 400)
    assert_error(api.http.delete(path), 400)
    assert_error(api.http.post(f"{path}/pause"), 400)
    with pytest.raises(SandboxException) as refused:
        driver.get_info(urllib.parse.quote(malformed))
    assert refused.value.status_code == 400


def test_an_id_with_a_client_part_is_accepted(driver, sandbox):
    assert driver.get_info(f"{sandbox.sandbox_id}-legacy").sandbox_id == sandbox.sandbox_id


def test_a_wrong_or_missing_key_is_unauthorised(driver, api, sandbox):
    with pytest.raises(AuthenticationException):
        driver.create(api_key=WRONG_KEY)
    with pytest.raises(AuthenticationException):
        driver.get_info(sandbox.sandbox_id, api_key=WRONG_KEY)
    with pytest.raises(AuthenticationException):
        driver.kill(sandbox.sandbox_id, api_key=WRONG_KEY)
    for method, path in [
        ("GET", "/v2/sandboxes"),
        ("POST", "/v2/sandboxes"),
        ("GET", f"/sandboxes/{sandbox.sandbox_id}"),
        ("DELETE", f"/sandboxes/{sandbox.sandbox_id}"),
        ("GET", "/snapshots"),
    ]:
        for key in ({}, {"X-API-Key": WRONG_KEY}, {"X-API-Key": ""}, {"X-API-Key": "not a key"}):
            assert_error(api.anonymous.request(method, path, headers=key), 401)
    assert sandbox.is_running()


def test_a_second_pause_is_a_conflict(spawn, api):
    sandbox = spawn()
    assert api.http.post(f"/sandboxes/{sandbox.sandbox_id}/pause").status_code == 204
    assert_error(api.http.post(f"/sandboxes/{sandbox.sandbox_id}/pause"), 409)
    assert_error(api.http.post(f"/sandboxes/{sandbox.sandbox_id}/pause", json={}), 409)


def test_resuming_what_runs_is_a_conflict(sandbox, api):
    assert_error(api.http.post(f"/sandboxes/{sandbox.sandbox_id}/resume", json={}), 409)


def test_connect_tells_whether_it_resumed(spawn, api):
    sandbox = spawn()
    connect = f"/v2/sandboxes/{sandbox.sandbox_id}/connect"
    assert api.http.post(connect, json={}).status_code == 200
    sandbox.pause()
    assert api.http.post(connect, json={}).status_code == 201


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"base"', b'{"templateID": 7}', b'{"timeout": 5}'])
def test_a_create_that_makes_no_sense_is_a_bad_request(api, body):
    response = api.http.post("/v2/sandboxes", content=body, headers={"Content-Type": "application/json"})
    assert_error(response, 400)


@pytest.mark.parametrize("timeout", [-1, "soon", 10**9])
def test_a_timeout_out_of_range_is_a_bad_request(sandbox, api, timeout):
    assert_error(api.http.post(f"/sandboxes/{sandbox.sandbox_id}/timeout", json={"timeout": timeout}), 400)


@pytest.mark.parametrize("count", [0, 101, -1])
def test_a_fork_count_out_of_range_is_a_bad_request(sandbox, api, count):
    assert_error(api.http.post(f"/sandboxes/{sandbox.sandbox_id}/fork", json={"count": count}), 400)


def test_a_listing_that_makes_no_sense_is_a_bad_request(api):
    assert_error(api.http.get("/v2/sandboxes", params={"limit": "0"}), 400)
    assert_error(api.http.get("/v2/sandboxes", params={"state": "asleep"}), 400)
    assert_error(api.http.get("/v2/sandboxes", params={"nextToken": "not a token"}), 400)
    assert_error(api.http.get("/v2/sandboxes", params={"metadata": "a=b=c"}), 400)


def test_unknown_fields_are_ignored(spawn, api):
    response = api.http.post("/v2/sandboxes", json={"templateID": "base", "fromTheFuture": {"x": 1}})
    assert response.status_code == 201, response.text
    api.kill(response.json()["sandboxID"])


def test_an_unknown_route_is_not_found(api):
    assert_error(api.http.get("/no/such/route"), 404)
    assert api.http.patch("/v2/sandboxes").status_code in (404, 405)


def test_health_needs_no_key(api):
    assert api.anonymous.get("/health").is_success


def test_an_oversized_body_is_refused_before_it_is_all_there(api):
    """The client sends until it is answered: the answer must come long before the declared end."""
    url = urllib.parse.urlsplit(api.url)
    block = b" " * 65536
    with socket.create_connection((url.hostname, url.port or 80), timeout=WAIT_S) as connection:
        head = (
            f"POST /v2/sandboxes HTTP/1.1\r\nHost: {url.netloc}\r\nX-API-Key: {api.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {DECLARED_BODY_BYTES}\r\n\r\n"
        )
        connection.sendall(head.encode())
        sent = 0
        while not select.select([connection], [], [], 0)[0]:
            assert sent < DECLARED_BODY_BYTES // 4, "the server takes any body"
            try:
                sent += connection.send(block)
            except (BrokenPipeError, ConnectionResetError):
                break  # It wants no more; what it said before must still be there to read.
        answer = b""
        while received := receive(connection):
            answer += received
            if answer.endswith(b"}"):
                break
    status, _, body = answer.partition(b"\r\n\r\n")
    assert status.split()[1] == b"413", answer
    assert json.loads(body[body.index(b"{") : body.rindex(b"}") + 1])["code"] == 413


def receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""
