"""Runs inside a sandbox with a volume until it is ended: writes numbered records there that show whether one was lost, torn or mixed up.

The argument is the directory. Under the sandbox's present name, which a fork has anew, it appends record after record to a journal and puts
each in the place of the last. What fails is written to /tmp/errors and done again. How far it has come stands in /tmp/reached, on the sandbox's
own disk.
"""

import errno
import hashlib
import os
import sys
import time


def keep(n: int) -> None:
    name = os.uname().nodename
    record = f"{name} {n} {hashlib.sha256(f'{name} {n}'.encode()).hexdigest()}\n"
    journal = os.open(f"journal-{name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        assert os.write(journal, record.encode()) == len(record)
    finally:
        os.close(journal)
    with open(f"next-{name}", "w") as file:
        file.write(record * 100)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.rename(f"next-{name}", f"last-{name}")
    except FileNotFoundError:
        # It was carried out, and then the server was killed before it said so.
        pass


os.chdir(sys.argv[1])
n = 0
while True:
    n += 1
    kept = False
    while not kept:
        try:
            keep(n)
            kept = True
        except OSError as error:
            with open("/tmp/errors", "a") as errors:
                errors.write(f"{errno.errorcode[error.errno]}\n")
            time.sleep(0.01)
    with open("/tmp/reached.next", "w") as file:
        file.write(str(n))
    os.rename("/tmp/reached.next", "/tmp/reached")
    time.sleep(0.01)
