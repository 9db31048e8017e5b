"""What a noisy neighbour costs: commands in a quiet sandbox before and while another one does its worst, through the unmodified SDK.

    python benches/noisy.py [--samples 100] [--attack fork --attack memory ...] [--json]

Needs the environment that `firkin env` prints, and a machine on which nothing else runs: only then do the figures mean anything. Each
attack has a sandbox of its own, which is killed after it. Both figures of each are printed, and how many times one is the other;
the exit status is 1 if a p95 more than doubled or the server stopped answering. With fewer than 100 samples no p95 is given.
"""

import argparse
import json
import os
import time
import urllib.request

from e2b import Sandbox, SandboxException

# Each runs until it is killed. A sandbox may die of it: that is its own affair.
ATTACKS = {
    "fork": ":(){ :|:& };:; sleep 3600",
    "memory": "python3 -c 'x = []\nwhile True: x.append(bytearray(1 << 20))'",
    "disk": "while :; do dd if=/dev/urandom of=/tmp/full bs=1M 2>/dev/null; rm -f /tmp/full; done",
    "packets": "python3 -c 'import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nn = 0\nwhile True:\n"
    ' n += 1\n try: s.sendto(b"x", ("192.0.2.1", 1 + n % 60000))\n except OSError: pass\'',
    "log": 'while :; do echo "<0>$RANDOM a line of noise for the console" > /dev/kmsg; done',
}
# Under emulation a command takes longer than its cause; a limit for one that never returns.
COMMAND_DEADLINE = 60
# Samples from which on a p95 is one.
P95_SAMPLES = 100
# What a neighbour may cost.
BOUND = 2.0


def milliseconds(since):
    return (time.perf_counter() - since) * 1000


def percentile(samples, part):
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def commands(sandbox, count):
    """Milliseconds of each of `count` small commands; one that fails counts as its deadline."""
    taken = []
    for _ in range(count):
        since = time.perf_counter()
        try:
            sandbox.commands.run("true", timeout=COMMAND_DEADLINE)
            taken.append(milliseconds(since))
        except SandboxException:
            taken.append(COMMAND_DEADLINE * 1000)
    return taken


def answers():
    """Whether the server says that it is well."""
    try:
        with urllib.request.urlopen(os.environ["E2B_API_URL"] + "/health", timeout=10) as answer:
            return answer.status < 300
    except OSError:
        return False


def figures(samples):
    told = {"samples": len(samples), "p50_ms": round(percentile(samples, 0.5), 1)}
    if len(samples) >= P95_SAMPLES:
        told["p95_ms"] = round(percentile(samples, 0.95), 1)
    return told


def attacked(quiet, name, count):
    """One attack: figures before, during, and their ratio."""
    before = commands(quiet, count)
    with Sandbox.create(timeout=3600) as noisy:
        noisy.commands.run(ATTACKS[name], user="root", background=True)
        during = commands(quiet, count)
        well = answers()
    part = 0.95 if count >= P95_SAMPLES else 0.5
    ratio = percentile(during, part) / percentile(before, part)
    return {"attack": name, "before": figures(before), "during": figures(during), "ratio": round(ratio, 2), "server_answers": well}


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--samples", type=int, default=P95_SAMPLES)
    options.add_argument("--attack", action="append", choices=sorted(ATTACKS))
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    with Sandbox.create(timeout=3600) as quiet:
        commands(quiet, 3)
        rows = [attacked(quiet, name, given.samples) for name in given.attack or ATTACKS]
    if given.json:
        print(json.dumps(rows, indent=2))
    else:
        print(f"{'attack':<10} {'before p50':>11} {'p95':>8} {'during p50':>11} {'p95':>8} {'ratio':>6}  server")
        for row in rows:
            cells = [row[when].get(figure, "-") for when in ("before", "during") for figure in ("p50_ms", "p95_ms")]
            state = "answers" if row["server_answers"] else "SILENT"
            print(f"{row['attack']:<10} {cells[0]:>11} {cells[1]:>8} {cells[2]:>11} {cells[3]:>8} {row['ratio']:>6}  {state}")
    raise SystemExit(any(row["ratio"] > BOUND or not row["server_answers"] for row in rows))


if __name__ == "__main__":
    main()
