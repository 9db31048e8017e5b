"""The way into a sandbox: who may talk to envd, and how a user's own ports are reached."""

import hashlib
import os
import socket
import uuid

import httpx
import pytest
import websockets.sync.client
from support import WAIT_S, Brood, start_guest_program, wait_for_port

ENVD_PORT = 49983
PEER_PORT = 8000
CLOSED_PORT = 8099
LIST_PROCESSES = "/process.Process/List"


@pytest.fixture(scope="module")
def driver():
    """The proxy does not see which SDK made a sandbox: the blocking one is enough."""
    import e2b

    return e2b.Sandbox


@pytest.fixture(scope="module")
def peer(driver, api):
    """A sandbox with guest/peer.py listening on PEER_PORT."""
    brood = Brood(driver, api)
    sandbox = brood()
    start_guest_program(sandbox, "peer.py", PEER_PORT, str(PEER_PORT))
    yield sandbox
    brood.end()


@pytest.fixture
def web(api, peer):
    with api.through_proxy(peer.sandbox_id, PEER_PORT) as web:
        yield web


def access_token(sandbox) -> dict:
    return {"X-Access-Token": sandbox.connection_config.sandbox_headers["X-Access-Token"]}


def test_envd_refuses_whoever_has_no_token(api, peer):
    for headers in ({}, {"X-Access-Token": "wrong"}, {"X-API-Key": api.key}):
        with api.through_proxy(peer.sandbox_id, ENVD_PORT, headers) as envd:
            for response in (
                envd.post(LIST_PROCESSES, json={}),
                envd.post("/filesystem.Filesystem/ListDir", json={"path": "/"}),
                envd.get("/metrics"),
                envd.get("/envs"),
                envd.get("/files", params={"path": "/etc/hostname"}),
                envd.post("/files", params={"path": "/tmp/x"}, files={"file": b"x"}),
            ):
                assert response.status_code == 401, (headers, response.request.url)
                assert response.json()["message"]


def test_envd_answers_whoever_has_the_token(api, peer):
    with api.through_proxy(peer.sandbox_id, ENVD_PORT, access_token(peer)) as envd:
        listed = envd.post(LIST_PROCESSES, json={})
        assert listed.status_code == 200
        assert listed.json()["processes"]
        assert envd.get("/metrics").json()["mem_total"] > 0


def test_health_of_envd_needs_no_token(api, peer):
    with api.through_proxy(peer.sandbox_id, ENVD_PORT) as envd:
        assert envd.get("/health").status_code == 204


def test_one_sandboxes_token_opens_no_other(api, peer, spawn):
    other = spawn()
    with api.through_proxy(other.sandbox_id, ENVD_PORT, access_token(peer)) as envd:
        assert envd.post(LIST_PROCESSES, json={}).status_code == 401


def test_routes_of_the_host_do_not_exist_on_the_network(api, peer):
    with api.through_proxy(peer.sandbox_id, ENVD_PORT, access_token(peer)) as envd:
        for route in ("/init", "/freeze", "/unfreeze", "/upgrade", "/forward"):
            assert envd.post(route, json={}).status_code == 404, route
        upgrade = {"Connection": "Upgrade", "Upgrade": "firkin-forward"}
        for route in ("/forward?port=22", "/%66orward?port=22", "//forward?port=22"):
            assert envd.get(route, headers=upgrade).status_code == 404, route


def test_a_signed_url_opens_one_file(api, peer):
    peer.files.write("/home/user/signed.txt", "signed")
    url = httpx.URL(peer.download_url("/home/user/signed.txt"))
    with api.through_proxy(peer.sandbox_id, ENVD_PORT) as envd:
        assert envd.get("/files", params=url.params).text == "signed"
        assert envd.head("/files", params=url.params).headers["content-length"] == "6"
        assert envd.get("/files", params=url.params.set("path", "/etc/passwd")).status_code == 401


def test_pythons_own_web_server_is_reached(api, driver, spawn):
    sandbox = spawn()
    sandbox.files.write("/home/user/www/page.txt", "served from inside")
    sandbox.commands.run("exec python3 -m http.server 8123 -d /home/user/www", background=True, timeout=0)
    wait_for_port(sandbox, 8123)
    with api.through_proxy(sandbox.sandbox_id, 8123) as web:
        assert web.get("/page.txt").text == "served from inside"
        assert web.get("/absent.txt").status_code == 404


def test_a_port_is_reached_by_host_name(api, peer):
    with httpx.Client(base_url=api.sandbox_url, headers={"Host": peer.get_host(PEER_PORT)}, timeout=WAIT_S) as web:
        answer = web.get("/some/path?with=query").json()
    assert answer["path"] == "/some/path?with=query"


LOOPBACK = {"127.0.0.1": 8301, "::1": 8302, "localhost": 8303}


def peers_on_the_loopback(api, sandbox) -> list[str]:
    """Who asks, as a server on each of the loopback's addresses is told it."""
    peers = []
    for port in LOOPBACK.values():
        with httpx.Client(base_url=api.sandbox_url, headers={"Host": sandbox.get_host(port)}, timeout=WAIT_S) as web:
            peers.append(web.get("/").json()["peer"])
    return peers


def test_servers_on_the_loopback_are_reached_in_every_life(api, spawn):
    """Most development servers bind there. One that comes later is reached from its first moment on."""
    sandbox = spawn()
    with api.through_proxy(sandbox.sandbox_id, 8301) as web:
        assert web.get("/").json()["message"] == "The sandbox is running but port is not open"
    start_guest_program(sandbox, "peer.py", 8301, "8301 127.0.0.1")
    for address, port in LOOPBACK.items():
        if port != 8301:
            sandbox.commands.run(f"exec python3 /home/user/peer.py {port} {address}", background=True, timeout=0)
            sandbox.commands.run(f"until (: </dev/tcp/{address}/{port}) 2>/dev/null; do sleep 0.05; done")
    expected = ["127.0.0.1", "::1", "127.0.0.1"]
    assert peers_on_the_loopback(api, sandbox) == expected
    (child,) = sandbox.fork()
    spawn.adopt(child)
    assert peers_on_the_loopback(api, child) == expected
    sandbox.pause()
    sandbox.connect()
    assert peers_on_the_loopback(api, sandbox) == expected
    data = os.urandom(1 << 20)
    with api.through_proxy(sandbox.sandbox_id, 8301) as web:
        assert web.post("/digest", content=data).json() == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    routing = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8301"}
    url = api.sandbox_url.replace("http", "ws", 1) + "/ws"
    with websockets.sync.client.connect(url, additional_headers=routing, compression=None) as echo:
        echo.send("hello")
        assert echo.recv(timeout=60) == "hello"
    # The outer address is free for whoever wants it, and who has it is not shadowed.
    outer = sandbox.commands.run("hostname -I || ip -4 -o address show eth0 | awk '{print $4}'").stdout.split()[0].split("/")[0]
    sandbox.commands.run(f"exec python3 /home/user/peer.py 8301 {outer}", background=True, timeout=0)
    sandbox.commands.run(f"until (: </dev/tcp/{outer}/8301) 2>/dev/null; do sleep 0.05; done")
    with api.through_proxy(sandbox.sandbox_id, 8301) as web:
        assert web.get("/").json()["peer"] not in ("127.0.0.1", "::1")


def test_a_request_arrives_as_it_was_sent(peer, web):
    answer = web.get("/a%20b?c=d%26e", headers={"X-Mine": "kept", "Cookie": "a=b"}).json()
    assert answer["path"] == "/a%20b?c=d%26e"
    headers = {name.lower(): value for name, value in answer["headers"].items()}
    assert (headers["x-mine"], headers["cookie"]) == ("kept", "a=b")


def test_a_response_streams_while_it_is_made(peer, web):
    """The second half is not made before the first was read here."""
    peer.files.remove("/home/user/gate")
    with web.stream("GET", "/gate") as response:
        chunks = response.iter_bytes()
        assert next(chunks) == b"first"
        peer.files.write("/home/user/gate", "")
        assert b"".join(chunks) == b"second"


@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_a_large_request_body_arrives_whole(web, chunked):
    data = os.urandom(4 << 20)
    blocks = (data[at : at + 65536] for at in range(0, len(data), 65536))
    answer = web.post("/digest", content=blocks if chunked else data).json()
    assert answer == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_http2_without_tls_is_spoken(api, peer):
    with api.through_proxy(peer.sandbox_id, PEER_PORT, http1=False, http2=True) as web:
        answer = web.get("/over-h2")
        assert answer.http_version == "HTTP/2"
        assert answer.json()["path"] == "/over-h2"
    with httpx.Client(base_url=api.url, http1=False, http2=True, headers={"X-API-Key": api.key}, timeout=WAIT_S) as control:
        assert control.get("/v2/sandboxes").http_version == "HTTP/2"


def test_a_websocket_echoes(api, peer):
    routing = {"E2b-Sandbox-Id": peer.sandbox_id, "E2b-Sandbox-Port": str(PEER_PORT)}
    url = api.sandbox_url.replace("http", "ws", 1) + "/ws"
    with websockets.sync.client.connect(url, additional_headers=routing, compression=None) as socket:
        for message in ("hello", "x" * 5000, bytes(range(256))):
            socket.send(message)
            assert socket.recv(timeout=60) == message


def assert_bad_gateway(response, **body) -> None:
    assert response.status_code == 502
    assert response.json() == {"code": 502, **body}


def test_a_closed_port_says_so(api, peer):
    with api.through_proxy(peer.sandbox_id, CLOSED_PORT) as web:
        assert_bad_gateway(
            web.get("/"),
            sandboxId=peer.sandbox_id,
            message="The sandbox is running but port is not open",
            port=CLOSED_PORT,
        )


def test_an_absent_sandbox_says_so(api, spawn):
    sandbox = spawn()
    sandbox.kill()
    for sandbox_id in (sandbox.sandbox_id, "i" + uuid.uuid4().hex[:20]):
        for port in (ENVD_PORT, PEER_PORT):
            with api.through_proxy(sandbox_id, port) as web:
                assert_bad_gateway(web.get("/health"), sandboxId=sandbox_id, message="The sandbox was not found")


def test_a_peer_that_hangs_up_is_not_a_hang(api, driver, spawn):
    sandbox = spawn()
    program = "import socket; s = socket.create_server(('0.0.0.0', 8200))\nwhile True: s.accept()[0].close()"
    sandbox.files.write("/home/user/rude.py", program)
    sandbox.commands.run("exec python3 /home/user/rude.py", background=True, timeout=0)
    wait_for_port(sandbox, 8200)
    with api.through_proxy(sandbox.sandbox_id, 8200) as web:
        assert web.get("/").status_code == 502


def test_guests_reach_neither_host_nor_each_other(api, driver, peer, spawn):
    """From inside, neither the server nor a port of another sandbox answers; that sandbox's own address is the same as ours."""
    other = spawn()
    host, port = api.url.removeprefix("http://").rsplit(":", 1)
    gateway = other.commands.run("ip route show default | awk '{print $3}'").stdout.strip()
    for address in filter(None, {gateway, host, socket.gethostbyname(socket.gethostname())}):
        probe = f"timeout 2 bash -c ': </dev/tcp/{address}/{port}' 2>/dev/null && echo reached || echo apart"
        assert other.commands.run(probe).stdout == "apart\n", address
    own = other.commands.run("hostname -I || ip -4 -o address show scope global | awk '{print $4}'").stdout.split()
    for address in own:
        probe = f"timeout 2 bash -c ': </dev/tcp/{address.split('/')[0]}/{PEER_PORT}' 2>/dev/null && echo reached || echo apart"
        assert other.commands.run(probe).stdout == "apart\n", address
