"""Python packages that programs written for E2B's interpreter import: each kind is used once, in one sandbox."""

import os

import e2b_code_interpreter
import pytest
from support import Brood

WITHOUT_PARTS = os.environ.get("WITHOUT_PARTS", "").split(",")

PATIENCE_S = 300
"""The first import of a large library by an emulated processor."""

SCIENCE = {
    "sklearn": "__import__('sklearn.linear_model').linear_model.LinearRegression().fit([[0], [1]], [0, 1]).coef_.round().tolist() == [1]",
    "skimage": "__import__('skimage.filters').filters.sobel(numpy.zeros((4, 4))).shape == (4, 4)",
    "cv2": "__import__('cv2').Canny(numpy.zeros((20, 20), numpy.uint8), 1, 2).shape == (20, 20)",
    "xarray": "__import__('xarray').DataArray([1, 2]).mean().item() == 1.5",
    "numba": "__import__('numba').njit(lambda n: n + 1)(3) == 4",
    "nltk": "__import__('nltk.stem').stem.PorterStemmer().stem('running') == 'run'",
    "sympy": "str(__import__('sympy').sympify('x + x')) == '2*x'",
    "gensim": "__import__('gensim.corpora').corpora.Dictionary([['a']]).token2id == {'a': 0}",
    "spacy": "[token.text for token in __import__('spacy').blank('en')('dear world')] == ['dear', 'world']",
    "textblob": "__import__('textblob').Word('dogs').singularize() == 'dog'",
    "soundfile": "'WAV' in __import__('soundfile').available_formats()",
    "librosa": "__import__('librosa').note_to_midi('A4') == 69",
    "imageio": "bool(__import__('imageio').imread)",
}

pytestmark = pytest.mark.timeout(2 * PATIENCE_S)


@pytest.fixture(scope="module")
def sandbox(api):
    brood = Brood(e2b_code_interpreter.Sandbox, api)
    yield brood()
    brood.end()


@pytest.fixture
def run(sandbox):
    def run(code):
        execution = sandbox.run_code(code, timeout=PATIENCE_S)
        assert execution.error is None, execution.error.traceback
        return execution

    return run


def test_a_styled_table_is_html(run):
    [styled] = run("import pandas; pandas.DataFrame({'n': [1, 2]}).style.highlight_max(color='red')").results
    assert "background-color: red" in styled.html


def test_a_workbook_is_written_and_read(run):
    table = run(
        "import pandas\n"
        "pandas.DataFrame({'n': [1, 2]}).to_excel('/tmp/book.xlsx', index=False)\n"
        "pandas.read_excel('/tmp/book.xlsx')"
    )
    assert table.results[0].data == {"n": [1, 2]}


def test_a_figure_of_plotly_is_its_data_and_html(run):
    figure = run("import plotly.graph_objects as go; go.Figure(go.Bar(x=['p', 'q'], y=[1, 2]))").results[-1]
    [bars] = figure.extra["application/vnd.plotly.v1+json"]["data"]
    assert (bars["type"], bars["x"], bars["y"]) == ("bar", ["p", "q"], [1, 2])
    assert "plotly-graph-div" in figure.html


def test_a_figure_of_bokeh_is_a_script(run):
    shown = run(
        "from bokeh.io import output_notebook, show\n"
        "from bokeh.plotting import figure\n"
        "output_notebook()\n"
        "drawn = figure(); drawn.line([1, 2], [3, 4])\n"
        "show(drawn)"
    )
    assert "application/vnd.bokehjs_exec.v0+json" in shown.results[-1].extra
    assert "docs_json" in shown.results[-1].javascript


def test_a_figure_of_seaborn_is_a_picture_and_a_chart(run):
    [figure] = run(
        "import matplotlib.pyplot as plt, pandas, seaborn\n"
        "seaborn.set_theme()\n"
        "seaborn.scatterplot(data=pandas.DataFrame({'x': [1, 2], 'y': [3, 4]}), x='x', y='y')\n"
        "plt.show()"
    ).results
    assert figure.png.startswith("iVBOR")
    assert (figure.chart.type.value, figure.chart.x_label) == ("scatter", "x")


@pytest.mark.parametrize("fonts", ["", "plt.rcParams['font.sans-serif'] = ['Arial', 'DejaVu Sans']"])
def test_text_of_any_script_is_drawn(run, fonts):
    drawn = run(f"import matplotlib.pyplot as plt\n{fonts}\nplt.figure(); plt.title('你好 世界 かな 한글'); plt.plot([1, 2]); plt.show()")
    assert "missing from" not in "".join(drawn.logs.stderr)
    assert drawn.results[0].png.startswith("iVBOR")


def test_a_script_draws_text_of_any_script_too(sandbox):
    code = "import matplotlib.pyplot as plt; plt.title('你好 かな 한글'); plt.savefig('/tmp/drawn.png')"
    sandbox.files.write("/tmp/draw.py", code)
    assert "missing from" not in sandbox.commands.run("python3 /tmp/draw.py", timeout=PATIENCE_S).stderr


def test_what_programs_import_is_there(run):
    names = "requests aiohttp bs4 docx openpyxl xlrd jinja2 tornado pytest joblib urllib3 scipy lxml pytz yaml"
    run("\n".join(f"import {name}" for name in names.split()))


@pytest.mark.skipif("science" in WITHOUT_PARTS, reason="this template was built without science")
@pytest.mark.parametrize("library", SCIENCE)
def test_the_larger_libraries_work(run, library):
    assert run(f"import numpy; {SCIENCE[library]}").text == "True"
