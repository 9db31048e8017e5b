"""Runs inside a sandbox: state that lives in this process's memory and nowhere else.

Each connection is answered with one line, `pid secret asked ticks`: who we are, random bytes drawn once at start, how often
we were asked (so a test can demand an exact number), and a number that grows by itself while the machine runs.
"""

import itertools
import os
import secrets
import socket
import threading
import time

PORT = 7777

secret = secrets.token_hex(8)
ticks = 0


def tick() -> None:
    global ticks
    while True:
        ticks += 1
        time.sleep(0.1)


threading.Thread(target=tick, daemon=True).start()
server = socket.create_server(("127.0.0.1", PORT))
for asked in itertools.count(1):
    connection, _ = server.accept()
    with connection:
        connection.sendall(f"{os.getpid()} {secret} {asked} {ticks}\n".encode())
