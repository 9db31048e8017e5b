"""What users of `run_code` rely on: cells share a kernel, results are rich, failures are told, and none of it is lost by a pause."""

import os

import pytest
from e2b_code_interpreter import TimeoutException

WITHOUT_PARTS = os.environ.get("WITHOUT_PARTS", "").split(",")
"""Parts of the code interpreter that the server's template lacks: `firkin template build --without`."""


def test_cells_share_variables_and_are_counted(sandbox):
    first = sandbox.run_code("shared = 41")
    second = sandbox.run_code("shared + 1")
    assert (second.text, second.error) == ("42", None)
    assert second.execution_count == first.execution_count + 1


def test_nobody_runs_code_without_the_token(api, sandbox):
    with api.through_proxy(sandbox.sandbox_id, 49999) as interpreter:
        assert interpreter.post("/execute", json={"code": "1"}).status_code == 401
        assert interpreter.post("/warm-up").status_code == 401
        assert interpreter.get("/contexts", headers={"Origin": "https://evil.example"}).status_code == 401
    assert [context.id for context in sandbox.list_code_contexts()]


def test_output_arrives_at_callbacks_and_in_the_logs(sandbox):
    seen = []
    execution = sandbox.run_code(
        "import sys; print('out'); print('err', file=sys.stderr); 7",
        on_stdout=lambda message: seen.append(message.line),
        on_stderr=lambda message: seen.append(message.line),
        on_result=lambda result: seen.append(result.text),
    )
    assert sorted(seen) == ["7", "err\n", "out\n"]
    assert (execution.logs.stdout, execution.logs.stderr) == (["out\n"], ["err\n"])


def test_a_figure_is_a_picture_and_a_chart(sandbox):
    execution = sandbox.run_code(
        "import matplotlib.pyplot as plt\n"
        "plt.plot([1, 2, 3], [4, 5, 6], label='line')\n"
        "plt.title('Title'); plt.xlabel('Across')\n"
        "plt.show()"
    )
    [figure] = execution.results
    assert figure.png.startswith("iVBOR")
    assert (figure.chart.type.value, figure.chart.title, figure.chart.x_label) == ("line", "Title", "Across")
    assert figure.chart.elements[0].points == [(1, 4), (2, 5), (3, 6)]


def test_a_table_is_data_and_html(sandbox):
    [table] = sandbox.run_code("import pandas; pandas.DataFrame({'n': [1, 2], 's': ['x', 'y']})").results
    assert table.data == {"n": [1, 2], "s": ["x", "y"]}
    assert "<table" in table.html


def test_an_error_has_its_name_and_traceback_and_the_kernel_goes_on(sandbox):
    execution = sandbox.run_code("def divide(): return 1 / 0\ndivide()")
    assert (execution.error.name, execution.error.value) == ("ZeroDivisionError", "division by zero")
    assert "divide" in execution.error.traceback
    assert sandbox.run_code("callable(divide)").text == "True"


@pytest.mark.parametrize(
    ("language", "make", "use"),
    [
        ("bash", "made=4; sum() { echo $(($1 + made)); }", "sum 1"),
        ("js", "const made = await Promise.resolve(4)", "console.log(made + 1)"),
        ("ts", "var made: number = 4; interface Named { name: string }", "console.log(made + 1 as number)"),
        ("r", "made <- 4; add <- function(n) cat(made + n, '\\n', sep = '')", "add(1)"),
        ("java", "int made = 4; int add(int n) { return made + n; }", "System.out.println(add(1))"),
    ],
)
def test_other_languages_keep_what_they_made(sandbox, language, make, use):
    if language in WITHOUT_PARTS:
        pytest.skip(f"this template was built without {language}")
    assert sandbox.run_code(make, language=language).error is None
    assert "".join(sandbox.run_code(use, language=language).logs.stdout) == "5\n"


def test_javascript_that_exits_is_told_and_starts_anew(sandbox):
    assert sandbox.run_code("process.exit(1)", language="js").error.name == "UnexpectedEndOfExecution"
    assert sandbox.run_code("1 + 1", language="js").text == "2"


def test_contexts_keep_to_themselves(sandbox):
    sandbox.run_code("only_here = 1")
    context = sandbox.create_code_context(cwd="/tmp")
    assert sandbox.run_code("import os; print(os.getcwd())", context=context).logs.stdout == ["/tmp\n"]
    assert sandbox.run_code("only_here", context=context).error.name == "NameError"
    assert context.id in [listed.id for listed in sandbox.list_code_contexts()]
    sandbox.remove_code_context(context)
    assert context.id not in [listed.id for listed in sandbox.list_code_contexts()]


def test_variables_of_the_sandbox_and_of_one_cell(sandbox):
    ask = "import os; print(os.environ.get('FROM_CREATE'), os.environ.get('OF_CELL'))"
    assert sandbox.run_code(ask, envs={"OF_CELL": "cell"}).logs.stdout == ["create cell\n"]
    assert sandbox.run_code(ask).logs.stdout == ["create None\n"]


def test_a_client_that_gives_up_interrupts_its_cell(sandbox):
    sandbox.run_code("kept = 'kept'")
    with pytest.raises(TimeoutException):
        sandbox.run_code("import time; time.sleep(1000)", timeout=1)
    assert sandbox.run_code("print(kept)").logs.stdout == ["kept\n"]


def test_a_pause_keeps_the_kernel(driver, spawn):
    sandbox = spawn()
    sandbox.run_code("import os; kept, kernel = object(), os.getpid()")
    # Pages all over the memory, as work leaves them.
    sandbox.run_code("scattered = [bytearray(b'x' * 5000) for _ in range(4000)]")
    told = sandbox.run_code("print(id(kept), kernel)").logs.stdout
    sandbox.pause()
    resumed = driver.connect(sandbox.sandbox_id)
    assert resumed.run_code("print(id(kept), os.getpid())").logs.stdout == told


def test_sandboxes_of_one_snapshot_draw_other_numbers(spawn):
    draw = "import random, numpy, uuid; print(random.random(), numpy.random.rand(), uuid.uuid4())"
    draws = [spawn().run_code(draw).logs.stdout[0].split() for _ in range(2)]
    assert not set(draws[0]) & set(draws[1])
