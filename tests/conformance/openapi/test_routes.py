"""Our own routes against their own description, `GET /openapi.json`, by Schemathesis: no request makes the server fail, and what it answers is
what it says that it answers.

The server is one of this test's own, since among its routes are those that revoke keys and take teams their room.
"""

import pathlib
import subprocess
import sys

from own_server import own_server

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
]
"""Not `positive_data_acceptance`: ids and times have rules that a schema does not tell."""

NEVER_ENDS = "/events"
"""A stream, which has tests of its own."""

EXAMPLES = 20
SEED = 1
REQUEST_S = 10
RUN_S = 300
"""On a busy host. Alone it takes some 40 s."""


def test_every_answer_is_one_that_the_description_has():
    with own_server() as server:
        key, admin = ((server.state / name).read_text().strip() for name in ("api-key", "admin-token"))
        program = pathlib.Path(sys.executable).parent / "st"
        command = [program, "run", f"{server.url}/openapi.json", "--header", f"X-API-Key: {key}", "--header", f"X-Admin-Token: {admin}"]
        # Coverage begins with the edges of each schema; then come requests by chance, the same in each run.
        command += ["--phases", "coverage,fuzzing", "--max-examples", str(EXAMPLES), "--seed", str(SEED), "--exclude-path", NEVER_ENDS]
        command += ["--checks", ",".join(CHECKS), "--request-timeout", str(REQUEST_S), "--continue-on-failure", "--warnings", "off", "--no-color"]
        ran = subprocess.run(command, cwd=server.dir, capture_output=True, text=True, timeout=RUN_S, check=False)
        assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
        assert "panicked" not in (server.dir / "log").read_text()
