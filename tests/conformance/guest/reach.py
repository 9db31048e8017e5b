"""Runs inside a sandbox: tries to reach what it is told to, and writes as JSON what came of each.

Arguments are JSON lists: `["http", where, called]`, `["tls", where, called]` (an address or a name, and what it is called there),
`["name", name]` by the system's resolver, `["question", server, name]` to a server of the client's choice, `["udp", address, port]`. With one more
word, `"must"`, the last two are tried again: a datagram may be lost, and an emulated guest may not be scheduled for a while.
"""

import json
import socket
import ssl
import struct
import sys

PATIENCE_S = 15
"""Longer than an emulated guest needs for what works."""
SILENCE_S = 3
"""How long is waited for an answer that should not come, and after which one that should is asked for again."""


def http(where: str, called: str, tls: bool = False) -> object:
    stream = socket.create_connection((where, 443 if tls else 80), PATIENCE_S)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        stream = context.wrap_socket(stream, server_hostname=called)
    stream.sendall(f"GET / HTTP/1.1\r\nHost: {called}\r\n\r\n".encode())
    answer = b""
    while block := stream.recv(1 << 16):
        answer += block
    if not answer:
        # Whether an end without a word is a reset is a matter of when what was sent arrived.
        raise ConnectionResetError
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    return json.loads(body) if status == 200 else status


def ask_udp(address: str, port: int, what: bytes, tries: int) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(SILENCE_S)
        for left in reversed(range(tries)):
            udp.sendto(what, (address, port))
            try:
                return udp.recv(1500)
            except TimeoutError:
                if not left:
                    raise


def tries_of(must: tuple) -> int:
    return 10 if must == ("must",) else 1


def question(server: str, name: str, *must: str) -> object:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    answer = ask_udp(server, 53, struct.pack(">6H", 4711, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1), tries_of(must))
    return {"code": answer[3] & 0x0F, "answers": int.from_bytes(answer[6:8], "big")}


TRIES = {
    "http": http,
    "tls": lambda where, called: http(where, called, tls=True),
    "name": socket.gethostbyname,
    "question": question,
    "udp": lambda address, port, *must: ask_udp(address, port, b"hello", tries_of(must)).decode(),
}


def attempt(kind: str, *words) -> object:
    try:
        return TRIES[kind](*words)
    except OSError as error:
        return type(error).__name__


print(json.dumps([attempt(*json.loads(argument)) for argument in sys.argv[1:]]))
