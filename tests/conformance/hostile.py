"""Malformed requests: random bytes, and mutations of requests that would be good, the same ones at every run.

Whatever a mutation turns a request into, it does no harm if it is understood: templates and sandboxes in it do not exist, commands are
`/bin/true`, files are below `/tmp`.
"""

import collections
import concurrent.futures
import json
import random
import socket
import struct
import urllib.parse

from support import WAIT_S

CONNECTIONS = 16
"""At once. More would only wait for Python."""

ANSWER_S = WAIT_S
"""How long one answer may take: emulated guests are slow, and many ask at once."""

NO_SANDBOX = "i00000000000000000000"
CREATE = {"templateID": "no-such-template", "timeout": 60, "metadata": {"a": "b"}, "envVars": {"X": "1"}, "autoPause": True}
START = {"process": {"cmd": "/bin/true", "args": ["-x"], "envs": {"A": "b"}, "cwd": "/tmp"}, "tag": "t", "stdin": False}
CELL = {"code": "1", "context_id": "none", "env_vars": {"A": "b"}}


def request(method: str, target: str, headers: dict, body: bytes) -> bytes:
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def frame(message: dict) -> bytes:
    payload = json.dumps(message).encode()
    return struct.pack(">BI", 0, len(payload)) + payload


def multipart(boundary: str) -> bytes:
    disposition = 'Content-Disposition: form-data; name="file"; filename="/tmp/hostile"'
    return f"--{boundary}\r\n{disposition}\r\nContent-Type: text/plain\r\n\r\ntext\r\n--{boundary}--\r\n".encode()


def control_plane(key: str) -> list[bytes]:
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    post = [
        ("/v2/sandboxes", CREATE),
        ("/sandboxes", CREATE),
        (f"/sandboxes/{NO_SANDBOX}/timeout", {"timeout": 5}),
        (f"/v2/sandboxes/{NO_SANDBOX}/connect", {"timeout": 5, "memory": False}),
        (f"/sandboxes/{NO_SANDBOX}/fork", {"timeout": 5, "count": 3}),
        (f"/sandboxes/{NO_SANDBOX}/snapshots", {"name": "n"}),
        ("/templates/tags", {"target": "no-such-template:t", "tags": ["x"]}),
    ]
    get = ["/v2/sandboxes?state=running&limit=5&nextToken=AAAA&metadata=a%3Db", f"/sandboxes/{NO_SANDBOX}/metrics?start=1&end=2", "/snapshots?limit=1"]
    found = [request("POST", target, headers, json.dumps(body).encode()) for target, body in post]
    return found + [request("GET", target, headers, b"") for target in get] + [request("DELETE", f"/sandboxes/{NO_SANDBOX}", headers, b"")]


def data_plane(sandbox_id: str, token: str) -> list[bytes]:
    """At envd of one sandbox."""
    route = {"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": "49983", "X-Access-Token": token}
    stream, unary = route | {"Content-Type": "application/connect+json"}, route | {"Content-Type": "application/json"}
    start = frame(START)
    return [
        request("POST", "/process.Process/Start", stream, start),
        request("POST", "/process.Process/Start", stream | {"Connect-Timeout-Ms": "50"}, start),
        request("POST", "/process.Process/Start", route | {"Content-Type": "application/connect+proto"}, start),
        request("POST", "/process.Process/StreamInput", stream, frame({"start": {"process": {"pid": 1}}}) * 2),
        request("POST", "/filesystem.Filesystem/Stat", unary, b'{"path":"/tmp"}'),
        request("POST", "/filesystem.Filesystem/ListDir", unary, b'{"path":"/tmp","depth":1}'),
        request("POST", "/process.Process/SendInput", unary, b'{"process":{"pid":1},"input":{"stdin":"eA=="}}'),
        request("POST", "/files?path=/tmp/hostile", route | {"Content-Type": "multipart/form-data; boundary=b"}, multipart("b")),
        request("POST", "/files?path=/tmp/hostile", route | {"Content-Encoding": "gzip", "Content-Type": "application/octet-stream"}, b"\x1f\x8b no"),
        request("GET", "/files?path=/tmp/hostile&signature=v1_AAAA&signature_expiration=1", {k: v for k, v in route.items() if k != "X-Access-Token"}, b""),
        request("GET", "/files?path=/tmp/hostile", route | {"Range": "bytes=5-2,-1"}, b""),
    ]


def proxy() -> list[bytes]:
    """At sandboxes that are not there, and by names that lead nowhere."""
    named = [{"E2b-Sandbox-Id": NO_SANDBOX, "E2b-Sandbox-Port": port} for port in ("49983", "0", "65536", "x")]
    found = [request("GET", "/health", headers, b"") for headers in named]
    found.append(request("GET", "/", {"Connection": "Upgrade", "Upgrade": "websocket"} | named[0], b""))
    found.append(request("GET", "/files?path=/a&signature=v1_AAAA", {}, b""))
    return found


def interpreter(sandbox_id: str, token: str) -> list[bytes]:
    headers = {"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": "49999", "X-Access-Token": token, "Content-Type": "application/json"}
    return [
        request("POST", "/execute", headers, json.dumps(CELL).encode()),
        request("POST", "/contexts", headers, b'{"language":"no-such-language","cwd":"/tmp"}'),
        request("DELETE", "/contexts/none", headers, b""),
        request("POST", "/contexts/none/restart", headers, b"{}"),
    ]


def mutated(good: bytes, dice: random.Random) -> bytes:
    """Something that the request might have become on a bad day."""
    bytes_ = bytearray(good)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(bytes_) or 1)
        match dice.randrange(6):
            case 0:
                bytes_[at : at + 1] = dice.randbytes(1)
            case 1:
                del bytes_[at : at + dice.randint(1, 40)]
            case 2:
                bytes_[at:at] = dice.randbytes(dice.randint(1, 40))
            case 3:
                bytes_ += dice.randbytes(dice.randint(1, 200))
            case 4:
                bytes_[at:at] = bytes_[at : at + dice.randint(1, 60)] * dice.randint(1, 8)
            case 5:
                # The part of a body where lengths and types are.
                body = max(good.find(b"\r\n\r\n") + 4, 0)
                bytes_[body : body + 5] = dice.choice([b"\xff" * 5, b"\0" * 5, b"[[[[[", b'{"a":', b"-1e99"])
    return bytes(bytes_)


def answer(address: tuple[str, int], raw: bytes) -> str:
    """The first line of what came back; a closed connection is an answer too, silence is not."""
    try:
        with socket.create_connection(address, timeout=ANSWER_S) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(4096)
            return answer.split(b"\r\n", 1)[0][:12].decode("latin-1") if answer else "closed"
    except TimeoutError:
        return "silence"
    except OSError:
        return "closed"


def bombard(url: str, good: list[bytes], count: int, seed: int) -> collections.Counter:
    """Sends `count` malformed requests and counts the answers."""
    address = urllib.parse.urlsplit(url)
    dice = random.Random(seed)
    raws = [dice.randbytes(dice.randint(1, 300)) if dice.random() < 0.1 else mutated(dice.choice(good), dice) for _ in range(count)]
    with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as pool:
        return collections.Counter(pool.map(lambda raw: answer((address.hostname, address.port), raw), raws))
