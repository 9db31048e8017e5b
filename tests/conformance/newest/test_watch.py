"""Watching directories: the exact events of each change, polled by the blocking SDK and streamed to the asynchronous one."""

import queue

import pytest
from e2b import FileNotFoundException, FilesystemEventType, InvalidArgumentException, SandboxException
from support import wait_for

CREATE, WRITE, REMOVE, RENAME, CHMOD = (
    FilesystemEventType.CREATE,
    FilesystemEventType.WRITE,
    FilesystemEventType.REMOVE,
    FilesystemEventType.RENAME,
    FilesystemEventType.CHMOD,
)
FENCE = "fence"


class Watch:
    """Collects the events of a directory until a file made for the purpose shows that all earlier ones have come."""

    def __init__(self, driver, sandbox, folder: str, **options) -> None:
        self.sandbox = sandbox
        self.folder = folder
        if isinstance(driver, type):
            self.handle = sandbox.files.watch_dir(folder, **options)
            self._new = self.handle.get_new_events
        else:
            arrived = queue.Queue()
            self.handle = sandbox.files.watch_dir(folder, on_event=arrived.put, **options)
            self._new = lambda: [arrived.get() for _ in range(arrived.qsize())]

    def events(self) -> list:
        self.sandbox.files.make_dir(f"{self.folder}/{FENCE}")
        seen = []

        def fence_came() -> bool:
            seen.extend(self._new())
            return any(event.name == FENCE and event.type == CREATE for event in seen)

        wait_for(fence_came, "the events before the fence")
        return [event for event in seen if event.name != FENCE]

    def changes(self) -> list[tuple]:
        return [(event.name, event.type) for event in self.events()]


@pytest.fixture
def watch(driver, sandbox, folder):
    started = []

    def start(**options) -> Watch:
        started.append(Watch(driver, sandbox, folder, **options))
        return started[-1]

    yield start
    for watch in started:
        watch.handle.stop()


def test_an_upload_is_three_events(sandbox, folder, watch):
    watching = watch()
    sandbox.files.write(f"{folder}/new", "content")
    assert watching.changes() == [("new", CREATE), ("new", CHMOD), ("new", WRITE)]


def test_each_change_has_its_event(sandbox, folder, watch):
    sandbox.files.write(f"{folder}/old", "content")
    watching = watch()
    sandbox.files.rename(f"{folder}/old", f"{folder}/moved")
    sandbox.commands.run("chmod 600 moved; echo more >>moved; rm moved", cwd=folder)
    assert watching.changes() == [
        ("old", RENAME),
        ("moved", CREATE),
        ("moved", CHMOD),
        ("moved", WRITE),
        ("moved", REMOVE),
    ]


def test_only_the_directory_itself_is_watched(sandbox, folder, watch):
    sandbox.files.make_dir(f"{folder}/sub")
    watching = watch()
    sandbox.commands.run("touch sub/unseen", cwd=folder)
    assert watching.changes() == []


def test_a_recursive_watch_covers_old_and_new_directories(sandbox, folder, watch):
    sandbox.files.make_dir(f"{folder}/sub")
    watching = watch(recursive=True)
    sandbox.commands.run("mkdir sub/later", cwd=folder)
    assert ("sub/later", CREATE) in watching.changes()
    sandbox.files.remove(f"{folder}/{FENCE}")
    sandbox.commands.run("touch sub/old sub/later/new", cwd=folder)
    changes = watching.changes()
    assert ("sub/old", CREATE) in changes
    assert ("sub/later/new", CREATE) in changes


def test_events_carry_the_entry_when_asked(sandbox, folder, watch):
    watching = watch(include_entry=True)
    sandbox.files.write(f"{folder}/file", "12345")
    sandbox.files.remove(f"{folder}/file")
    events = watching.events()
    assert events[-1].type == REMOVE
    assert events[-1].entry is None
    for event in events[:-1]:
        assert event.entry is None or event.entry.path == f"{folder}/file"


def test_what_is_not_a_directory_cannot_be_watched(driver, sandbox, folder):
    sandbox.files.write(f"{folder}/file", "")
    options = {} if isinstance(driver, type) else {"on_event": lambda event: None}
    with pytest.raises(FileNotFoundException):
        sandbox.files.watch_dir(f"{folder}/missing", **options)
    with pytest.raises(InvalidArgumentException):
        sandbox.files.watch_dir(f"{folder}/file", **options)


def test_a_stopped_watch_gives_no_more(driver, sandbox, folder):
    if isinstance(driver, type):
        watching = sandbox.files.watch_dir(folder)
        watching.stop()
        with pytest.raises(SandboxException):
            watching.get_new_events()
    else:
        ended = queue.Queue()
        watching = sandbox.files.watch_dir(folder, on_event=lambda event: None, on_exit=ended.put)
        watching.stop()
        assert ended.get(timeout=60) is None
