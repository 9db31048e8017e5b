"""Runs inside each of several sandboxes that have one volume: does what only works if all of them see one file system.

Arguments: the directory, who this is, and how often. Each time it appends a line to a log of all, puts a whole file in the place of one that
all read, and counts one up in a file that is nobody's but for as long as he holds a directory that can be made only once.
"""

import os
import sys
import time

PATIENCE_S = 240
"""For a turn, with all the others before and an emulated processor."""


def exclusively(work) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            os.mkdir("taken")
            break
        except FileExistsError:
            assert time.monotonic() < deadline, "nobody gives the turn back"
            time.sleep(0.01)
    try:
        work()
    finally:
        os.rmdir("taken")


def count() -> None:
    with open("counter") as counter:
        counted = int(counter.read())
    with open("counter", "w") as counter:
        counter.write(str(counted + 1))


os.chdir(sys.argv[1])
me, times = sys.argv[2], int(sys.argv[3])
log = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
for n in range(times):
    os.write(log, f"{me} {n}\n".encode())
    with open(f"next-{me}", "w") as mine:
        mine.write(f"{me} {n} {'x' * 9000} end")
    os.rename(f"next-{me}", "current")
    with open("current") as current:
        text = current.read()
    assert len(text) > 9000 and text.endswith(" end"), f"half a file: {text[:20]}...{text[-20:]}"
    exclusively(count)
