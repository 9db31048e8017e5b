"""Runs in a network namespace of its own: hosts on an internet of a few addresses, and the resolver that knows them.

It waits for a line on its standard input, which says that its addresses are there, and writes what happens as lines of JSON: names that the
resolver is asked for, and connections that the proxy is asked for. It ends with its input.
"""

import asyncio
import json
import pathlib
import ssl
import sys

RECORDS: dict[str, list[str]] = json.loads(sys.argv[1])
HOSTS, RESOLVER, PROXY = sys.argv[2].split(","), sys.argv[3], sys.argv[4]
USER, PASSWORD = sys.argv[5].split(":")
CERTIFICATE = pathlib.Path(sys.argv[6])
QUERY_A, CLASS_IN, NO_SUCH_NAME = 1, 1, 3


def tell(**what) -> None:
    print(json.dumps(what), flush=True)


def resolve(question: bytes) -> bytes:
    at, labels = 12, []
    while question[at]:
        labels.append(question[at + 1 : at + 1 + question[at]].decode())
        at += 1 + question[at]
    kind = int.from_bytes(question[at + 1 : at + 3])
    name = ".".join(labels).lower()
    tell(asked=name)
    known = RECORDS.get(name)
    addresses = known if known and kind == QUERY_A else []
    head = question[:2] + (0x8180 | (0 if known else NO_SUCH_NAME)).to_bytes(2)
    counts = b"".join(count.to_bytes(2) for count in (1, len(addresses), 0, 0))
    records = b""
    for address in addresses:
        data = bytes(map(int, address.split(".")))
        records += b"\xc0\x0c" + QUERY_A.to_bytes(2) + CLASS_IN.to_bytes(2) + (1).to_bytes(4) + (4).to_bytes(2) + data
    return head + counts + question[12 : at + 5] + records


class Questions(asyncio.DatagramProtocol):
    def connection_made(self, transport) -> None:
        self.transport = transport

    def datagram_received(self, data, peer) -> None:
        self.transport.sendto(resolve(data), peer)


class Echo(Questions):
    def datagram_received(self, data, peer) -> None:
        self.transport.sendto(data, peer)


async def answer(reader, writer) -> None:
    """Says which host this is, whom it was called, who asks, and with which headers."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = [line.partition(":") for line in head.decode().split("\r\n")[1:] if ":" in line]
    headers = {name.lower(): text.strip() for name, _, text in lines}
    said = {"at": writer.get_extra_info("sockname")[0], "called": headers.get("host"), "by": writer.get_extra_info("peername")[0]}
    said["headers"] = headers
    body = b"" if head.startswith(b"GET /silent ") else json.dumps(said).encode()
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    writer.close()


async def carry(reader, writer) -> None:
    try:
        while block := await reader.read(1 << 16):
            writer.write(block)
            await writer.drain()
    finally:
        writer.close()


async def proxy(reader, writer) -> None:
    """SOCKS5 with a name and a password, for IPv4."""
    _, count = await reader.readexactly(2)
    await reader.readexactly(count)
    writer.write(b"\x05\x02")
    _, length = await reader.readexactly(2)
    user = (await reader.readexactly(length)).decode()
    (length,) = await reader.readexactly(1)
    password = (await reader.readexactly(length)).decode()
    allowed = (user, password) == (USER, PASSWORD)
    writer.write(b"\x01" + (b"\x00" if allowed else b"\x01"))
    if not allowed:
        tell(refused=user)
        writer.close()
        return
    await reader.readexactly(4)
    address = ".".join(map(str, await reader.readexactly(4)))
    port = int.from_bytes(await reader.readexactly(2))
    tell(proxied=f"{address}:{port}")
    onward = await asyncio.open_connection(address, port, local_addr=(PROXY, 0))
    writer.write(b"\x05\x00\x00\x01" + bytes(6))
    await asyncio.gather(carry(reader, onward[1]), carry(onward[0], writer), return_exceptions=True)


async def main() -> None:
    loop = asyncio.get_running_loop()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(CERTIFICATE)
    for host in HOSTS:
        await asyncio.start_server(answer, host, 80)
        await asyncio.start_server(answer, host, 443, ssl=tls)
        await loop.create_datagram_endpoint(Echo, (host, 443))
    await asyncio.start_server(proxy, PROXY, 1080)
    await loop.create_datagram_endpoint(Questions, (RESOLVER, 53))
    tell(ready=True)
    await loop.run_in_executor(None, sys.stdin.read)


sys.stdin.readline()
asyncio.run(main())
