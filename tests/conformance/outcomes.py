"""A pytest plugin: writes one line for each test into the file that OUTCOMES names.

A line is outcome, test (behind PART) and the last line of what went wrong, with tabs between. It is for test suites of others, whose output
should not have to be parsed: `cargo xtask e2b-suite` loads it.
"""

import os


def _line(text):
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return lines[-1].replace("\t", " ")[:300] if lines else ""


def _crash(report):
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return _line(crash.message.splitlines()[0] if crash.message else "")
    if isinstance(report.longrepr, tuple):
        return _line(report.longrepr[2])
    return _line(report.longreprtext)


def _write(outcome, nodeid, why):
    with open(os.environ["OUTCOMES"], "a", encoding="utf-8") as file:
        file.write(f"{outcome}\t{os.environ['PART']}:{nodeid}\t{why}\n")


def pytest_runtest_logreport(report):
    if report.outcome == "rerun":
        _write("rerun", report.nodeid, _crash(report))
    elif report.when == "call" or report.outcome != "passed":
        outcome = report.outcome if report.when == "call" or report.outcome == "skipped" else "failed"
        _write(outcome, report.nodeid, "" if outcome == "passed" else _crash(report))


def pytest_collectreport(report):
    if report.failed:
        _write("failed", report.nodeid, _line(report.longreprtext))
