"""What users of `run_code` feel, measured through the unmodified SDK against a running server.

    python benches/run_code.py --state-dir DIR [--samples 20] [--languages bash,js,...] [--json]

Needs the environment that `firkin env` prints, and `e2b-code-interpreter`. For each fresh sandbox: the first `run_code("1 + 1")`,
the second, and how many times as long the first takes; then the first cell of other languages, whose kernels start with it. Whether
creates come from the warm pool is the server's business (`firkin up --warm`): between two samples it is given time to refill.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import time
import urllib.request

from e2b_code_interpreter import Sandbox

REFILL_DEADLINE_S = 120
"""A warm session of an emulated guest takes seconds; a pool that does not fill at all is told."""


def milliseconds(since):
    return (time.perf_counter() - since) * 1000


def percentile(samples, part):
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def pool(url):
    """Warm sessions: wanted, ready, being made."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        text = answer.read().decode()
    return {state: float(count) for state, count in re.findall(r'^firkin_pool_sessions\{[^}]*state="(\w+)"[^}]*\} (\S+)', text, re.M)}


def refilled(url):
    """Waits until a warm session is ready, if any is wanted, and no other is being made, which would slow what is measured."""
    deadline = time.monotonic() + REFILL_DEADLINE_S
    while (state := pool(url)).get("ready", 0) < min(state.get("wanted", 0), 1) or state.get("making", 0):
        if time.monotonic() > deadline:
            raise SystemExit(f"the warm pool does not fill: {state}")
        time.sleep(0.1)
    return bool(state.get("wanted", 0))


def timed(sandbox, code, **options):
    begun = time.perf_counter()
    execution = sandbox.run_code(code, **options)
    if execution.error:
        raise SystemExit(f"a cell failed: {execution.error}")
    return milliseconds(begun)


def cells(url, count):
    created, first, second, later = [], [], [], []
    for _ in range(count):
        refilled(url)
        begun = time.perf_counter()
        sandbox = Sandbox.create(timeout=300)
        created.append(milliseconds(begun))
        try:
            first.append(timed(sandbox, "1 + 1"))
            second.append(timed(sandbox, "1 + 1"))
            later += [timed(sandbox, "1 + 1") for _ in range(5)]
        finally:
            sandbox.kill()
    ratios = [one / two for one, two in zip(first, second)]
    return {
        "create": created,
        "first 1 + 1": first,
        "second 1 + 1": second,
        "third to seventh": later,
        "first / second, times": ratios,
    }


def languages(names, count):
    samples = {}
    for name in names:
        for _ in range(count):
            sandbox = Sandbox.create(timeout=300)
            try:
                cell = {"java": "int made = 1", "r": "made <- 1"}.get(name, "made=1")
                samples.setdefault(f"first cell of {name}", []).append(timed(sandbox, cell, language=name))
                samples.setdefault(f"second cell of {name}", []).append(timed(sandbox, cell, language=name))
            finally:
                sandbox.kill()
    return samples


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state-dir", required=True)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--languages", default="", help="comma-separated; three samples each")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    server = json.loads((pathlib.Path(options.state_dir) / "server.json").read_text())
    pooled = refilled(server["url"])
    samples = cells(server["url"], options.samples)
    samples |= languages(filter(None, options.languages.split(",")), 3)
    rows = {
        name: {"samples": len(v), "p50": statistics.median(v), "p95": percentile(v, 0.95), "max": max(v)}
        for name, v in samples.items()
    }
    acceleration = server.get("acceleration", "unknown")
    if options.json:
        print(json.dumps({"acceleration": acceleration, "cpus": os.cpu_count(), "pool": pooled, "rows": rows}, indent=2))
        return
    print(f"acceleration {acceleration}, {os.cpu_count()} CPUs, {'with' if pooled else 'without'} warm pool; milliseconds\n")
    print(f"{'':34}{'samples':>8}{'p50':>9}{'p95':>9}{'max':>9}")
    for name, row in rows.items():
        print(f"{name:34}{row['samples']:>8}{row['p50']:>9.1f}{row['p95']:>9.1f}{row['max']:>9.1f}")


if __name__ == "__main__":
    main()
