"""The Python kernel: IPython's shell, whose cells come from the agent and whose results go there.

The shell is IPython's own, so magics, `!commands`, `display()`, representations and tracebacks are those of a notebook. Cells
run on an event loop that also runs between them: tasks that a cell leaves behind go on.
"""

import asyncio
import base64
import builtins
import gc
import getpass
import itertools
import os
import sys

import firkin_random
from firkin_channel import Capture, Channel, Environment
from firkin_values import MAX_DEPTH, Unfit, plain
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.error import StdinNotImplementedError
from IPython.core.formatters import DisplayFormatter
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Type
from traitlets.config import Config

try:
    import firkin_charts as charts
    import firkin_fonts as fonts
    import matplotlib.figure
    import matplotlib.pyplot
    import matplotlib_inline.backend_inline as inline
except ImportError:
    charts = None
try:
    import pandas
except ImportError:
    pandas = None
try:
    import PIL.Image
    import PIL.PngImagePlugin
except ImportError:
    PIL = None

MAX_DATA_CELLS = 1_000_000
"""A larger DataFrame is shown as text and HTML, which pandas abridges, and not as data."""

MAX_JSON_VALUES = 100_000
"""A list or dictionary of more values is shown as text, which IPython abridges, and not as JSON."""

FIELDS = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    "e2b/data": "data",
    "e2b/chart": "chart",
}
"""Where the contract has a field for a format; all others are `extra`."""

METHODS = {"e2b/data": "_repr_e2b_data_", "e2b/chart": "_repr_e2b_chart_"}
"""By which a class of the user's own shows itself in the contract's formats."""

PICTURES = (None, "inline", "agg", "svg", "pdf", "ps", "cairo")
"""What `%matplotlib` may be given that needs no window."""

WARM_UP = [
    "1 + 1",
    "print(end='')",
    "import numpy, pandas, matplotlib.pyplot as plt\nplt.plot([1, 2], [3, 4], label='a')\nplt.legend()\nplt.show()",
    "pandas.DataFrame({'a': [1, 2]})",
    "unknown_name",
]
"""Cells that are run for nobody, so that what they load is loaded when the first cell of a user comes."""


def prepare():
    """Does once, before kernels are forked, what all of them need."""
    builtins.input = refuse_input
    getpass.getpass = refuse_input
    shell = Shell.instance(config=settings())
    shell.channel = Silence()
    if charts:
        charts.install()
        fonts.install()
        shell.enable_matplotlib("inline")
    if PIL:
        show_images()
    for cell in WARM_UP:
        shell.run_cell(cell, silent=True, store_history=False)
    shell.forget()
    firkin_random.install()
    # What is there now stays. A collection that looked at it would touch the memory of every fork, and of every sandbox.
    gc.collect()
    gc.freeze()


def main():
    channel = Channel()
    streams = [Capture(channel, "stdout"), Capture(channel, "stderr")]
    for fd, stream in enumerate(streams, start=1):
        stream.onto(fd)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    Kernel(channel, streams).run()


class Kernel:
    def __init__(self, channel: Channel, streams: list[Capture]):
        self.channel = channel
        self.streams = streams
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.environment = Environment(put_variable)
        sys.path[0] = ""
        sys.argv = [""]
        self.shell = Shell.instance()
        self.shell.channel = self.channel
        sys.modules["__main__"] = self.shell.user_module
        # Forks of one process have one random state.
        firkin_random.renew()

    def run(self) -> None:
        self.channel.send({"type": "ready"})
        requests = asyncio.Queue()
        self.channel.serve(lambda request: self.loop.call_soon_threadsafe(requests.put_nowait, request))
        while True:
            self.cell(self.loop.run_until_complete(requests.get()))

    def cell(self, request: dict) -> None:
        """Runs one cell and tells its end, whatever it does."""
        self.channel.begin(request)
        if request.get("reseed"):
            firkin_random.renew()
        self.environment.enter(request)
        self.channel.send({"type": "count", "execution_count": self.shell.execution_count})
        try:
            try:
                self.channel.interruptible = True
                self.execute(request["code"])
            finally:
                self.channel.interruptible = False
        except KeyboardInterrupt:
            # It came at the edge of the cell, where the shell no longer catches it.
            self.channel.send({"type": "error", "name": "KeyboardInterrupt", "value": "", "traceback": "KeyboardInterrupt"})
        if self.channel.is_copy:
            os._exit(0)
        self.environment.leave(request)
        self.flush()
        if request.get("warm"):
            self.shell.forget()
        self.channel.send({"type": "done"})
        self.channel.cell = None

    def execute(self, code: str) -> None:
        task = self.loop.create_task(self.shell.run(code))
        try:
            self.loop.run_until_complete(task)
        except KeyboardInterrupt:
            # It hit the event loop: the cell was waiting for something.
            if task.cancel():
                self.loop.run_until_complete(asyncio.wait([task]))
                if not task.cancelled() and task.exception() is None:
                    return
            raise

    def flush(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                pass  # The cell has closed or replaced it.
        for stream in self.streams:
            stream.flush()


class Silence:
    """The channel of what is run for nobody."""

    def send(self, event: dict) -> None:
        """Nobody is there."""


class Formatter(DisplayFormatter):
    """IPython's formats, and two of the contract: what is in a table, what is in a figure."""

    def format(self, obj, include=None, exclude=None):
        formats, metadata = super().format(obj, include, exclude)
        try:
            if type(obj) in (int, str, float, bool):
                pass  # Most values are, and have no more to show.
            elif pandas and isinstance(obj, pandas.DataFrame) and obj.size <= MAX_DATA_CELLS:
                formats["e2b/data"] = table(obj)
            elif charts and isinstance(obj, matplotlib.figure.Figure) and (chart := charts.chart_of(obj)):
                formats["e2b/chart"] = chart
            elif isinstance(obj, (list, dict)) and is_small(obj):
                formats.setdefault("application/json", plain(obj))
            for mime, method in METHODS.items():
                if callable(own := getattr(type(obj), method, None)) and (made := own(obj)) is not None:
                    formats[mime] = made
        except Unfit:
            pass  # Nobody asked for this form of it: the others say what it is.
        except Exception as error:  # Foreign objects do what they want; their other formats remain.
            print(f"cannot extract the data of a {type(obj).__name__}: {error!r}", file=sys.stderr)
        return formats, metadata


class Publisher(DisplayPublisher):
    """`display()`: results that are not the cell's own."""

    def publish(self, data, metadata=None, *, update=False, **_):
        if not update:
            self.shell.channel.send({"type": "result", **result(data), "is_main_result": False})

    def clear_output(self, wait=False):
        """What has been told cannot be taken back."""


class Hook(DisplayHook):
    """The value of a cell's last expression."""

    def write_output_prompt(self):
        """There is no prompt."""

    def write_format_data(self, format_dict, md_dict=None):
        self.shell.channel.send({"type": "result", **result(format_dict), "is_main_result": True})

    def finish_displayhook(self):
        """Nothing is printed, so there is no line to end."""


class Shell(InteractiveShell):
    channel = None
    display_pub_class = Type(Publisher)
    displayhook_class = Type(Hook)

    def init_display_formatter(self):
        self.display_formatter = Formatter(parent=self)
        self.configurables.append(self.display_formatter)

    def init_io(self):
        """The streams are set up already."""

    def enable_gui(self, gui=None):
        """Figures are shown as results, in no window."""

    def enable_matplotlib(self, gui=None):
        """`%matplotlib` of any kind that wants a window or a page of its own means pictures here, and says so."""
        if gui not in PICTURES:
            print(f"%matplotlib {gui}: there is no window and no page to draw in; figures are shown as pictures", file=sys.stderr)
            gui = "inline"
        return super().enable_matplotlib(gui or "inline")

    def ask_exit(self):
        """A kernel is ended by the agent."""

    def _showtraceback(self, etype, evalue, stb):
        traceback = "\n".join(stb)
        name = "KeyboardInterrupt" if etype is asyncio.CancelledError else etype.__name__
        self.channel.send({"type": "error", "name": name, "value": str(evalue), "traceback": traceback})

    def forget(self) -> None:
        """As if no cell had run."""
        self.reset(new_session=True, aggressive=False)
        hook = self.displayhook
        hook._ = hook.__ = hook.___ = ""
        self.user_ns.update({"_": "", "__": "", "___": ""})

    async def run(self, code: str) -> None:
        """One cell, which may use `await` at its top level."""
        try:
            transformed, broken = self.transform_cell(code), None
        except Exception:
            transformed, broken = code, sys.exc_info()
        if not self.should_run_async(code, transformed_cell=transformed, preprocessing_exc_tuple=broken):
            self.run_cell(code, store_history=True)
            return
        try:
            await self.run_cell_async(code, store_history=True, transformed_cell=transformed, preprocessing_exc_tuple=broken)
        finally:
            self.events.trigger("post_execute")


def settings() -> Config:
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.autoindent = False
    # Nobody types here: a name that is not there is an error, not the beginning of a command.
    config.InteractiveShell.automagic = True
    return config


def result(data: dict) -> dict:
    """A bundle of formats in the fields of the contract. The text comes first: it arrives whatever the others are."""
    fields, extra = {"text": None}, {}
    for mime, value in data.items():
        if isinstance(value, bytes):
            value = base64.b64encode(value).decode()
        try:
            value = plain(value)
        except Unfit as why:
            print(f"{mime} is not shown: {why}", file=sys.stderr)
            continue
        if mime in FIELDS:
            fields[FIELDS[mime]] = value
        else:
            extra[str(mime)] = value
    if extra:
        fields["extra"] = extra
    return fields


def table(frame) -> dict:
    """A DataFrame by columns."""
    if not frame.columns.is_unique:
        raise Unfit("columns of the same name")
    return plain({name: column.tolist() for name, column in frame.items()})


def is_small(value) -> bool:
    """Whether it is worth being told as JSON."""
    layer, values = [value], 0
    for _ in range(MAX_DEPTH):
        if not layer:
            return True
        values += len(layer)
        if values > MAX_JSON_VALUES:
            return False
        inside = (one.values() if isinstance(one, dict) else one for one in layer if isinstance(one, (list, tuple, dict)))
        layer = list(itertools.islice(itertools.chain.from_iterable(inside), MAX_JSON_VALUES + 1))
    return False


def show_images() -> None:
    """`image.show()` has no screen to show it on, and what is saved under a name is also shown; figures show themselves."""
    from IPython.display import display

    save = PIL.Image.Image.save

    def save_and_show(self, fp, format=None, **options):
        save(self, fp, format, **options)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if isinstance(fp, (str, os.PathLike)) and not caller.startswith("matplotlib."):
            display(self)

    PIL.Image.Image.save = save_and_show
    PIL.Image.Image.show = lambda self, *_args, **_options: display(self)


def put_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def refuse_input(prompt="", *_args, **_options):
    raise StdinNotImplementedError("input() was called, but there is nobody to answer: run_code takes no input")
