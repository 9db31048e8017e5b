"""Malformed requests leave the code interpreter's kernels as they were."""

import e2b_code_interpreter
import hostile
from support import Brood


def test_malformed_requests_do_no_harm(api):
    brood = Brood(e2b_code_interpreter.Sandbox, api)
    try:
        sandbox = brood()
        sandbox.run_code("kept = 41")
        good = hostile.interpreter(sandbox.sandbox_id, sandbox._envd_access_token)
        answers = hostile.bombard(api.sandbox_url, good, 200, seed=4)
        assert answers["silence"] == 0, answers
        assert sandbox.run_code("kept + 1").text == "42"
    finally:
        brood.end()
