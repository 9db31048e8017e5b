"""Runs inside a sandbox: what a user's web application may ask of the proxy in front of it.

`GET /gate` sends one chunk, waits until the file `gate` exists, then sends another. `POST /digest` answers with the size and
SHA-256 of the body as it arrived. `GET /request` answers with the request's headers and its peer. `GET /ws` is a WebSocket echo.
Arguments: the port, and the address to listen on if it is not every one.
"""

import base64
import hashlib
import http.server
import json
import pathlib
import socket
import struct
import sys
import time

GATE = pathlib.Path("/home/user/gate")
WEBSOCKET_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
OPCODE_CLOSE = 8


class Peer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/gate":
            self.gate()
        elif self.path == "/ws":
            self.echo()
        else:
            peer = self.client_address[0]
            self.answer({"path": self.path, "headers": dict(self.headers.items()), "peer": peer})

    def do_POST(self) -> None:
        digest, size = hashlib.sha256(), 0
        for block in self.body():
            digest.update(block)
            size += len(block)
        self.answer({"size": size, "sha256": digest.hexdigest()})

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while length := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers.get("Content-Length", 0))
            while left:
                block = self.rfile.read(min(left, 1 << 16))
                left -= len(block)
                yield block

    def answer(self, value: dict) -> None:
        payload = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def gate(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"5\r\nfirst\r\n")
        self.wfile.flush()
        while not GATE.exists():
            time.sleep(0.02)
        self.wfile.write(b"6\r\nsecond\r\n0\r\n\r\n")

    def echo(self) -> None:
        token = self.headers["Sec-WebSocket-Key"] + WEBSOCKET_GUID
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(token.encode()).digest()).decode())
        self.end_headers()
        opcode = None
        while opcode != OPCODE_CLOSE:
            opcode, payload = self.frame()
            self.wfile.write(bytes([0x80 | opcode]) + self.length(payload) + payload)
            self.wfile.flush()
        self.close_connection = True

    def frame(self) -> tuple[int, bytes]:
        first, second = self.rfile.read(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack(">H", self.rfile.read(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self.rfile.read(8))
        mask = self.rfile.read(4)
        masked = self.rfile.read(length)
        return first & 0x0F, bytes(byte ^ mask[at % 4] for at, byte in enumerate(masked))

    @staticmethod
    def length(payload: bytes) -> bytes:
        if len(payload) < 126:
            return bytes([len(payload)])
        return b"\x7e" + struct.pack(">H", len(payload))


ADDRESS = sys.argv[2] if len(sys.argv) > 2 else "0.0.0.0"


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in ADDRESS else socket.AF_INET


Server((ADDRESS, int(sys.argv[1])), Peer).serve_forever()
