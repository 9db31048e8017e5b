"""Volumes by the SDK's own calls, without a sandbox: made, listed, ended, and what is in them."""

import datetime
import io
import uuid

import pytest


@pytest.fixture
def volume(sdk):
    """A volume that ends with the test."""
    Volume = sdk("Volume")
    volume = Volume.create(f"files-{uuid.uuid4().hex[:12]}")
    yield volume
    Volume.destroy(volume.volume_id)


def kind(entry) -> str:
    return entry.type.value


def test_a_volume_is_made_listed_connected_to_and_ended(sdk):
    from e2b.exceptions import NotFoundException, VolumeNotFoundException

    Volume, name = sdk("Volume"), f"life-{uuid.uuid4().hex[:12]}"
    made = Volume.create(name)
    assert made.name == name and made.volume_id and made.token
    info = Volume.get_info(made.volume_id)
    assert (info.volume_id, info.name) == (made.volume_id, name) and info.token
    assert [each.name for each in Volume.list() if each.volume_id == made.volume_id] == [name]
    again = Volume.connect(made.volume_id)
    made.write_file("/by-one", "seen by the other")
    assert again.read_file("/by-one") == "seen by the other"
    assert Volume.destroy(made.volume_id) is True
    assert made.volume_id not in [each.volume_id for each in Volume.list()]
    for reference in (made.volume_id, "no-such-volume"):
        assert Volume.destroy(reference) is False
        with pytest.raises(VolumeNotFoundException) as refused:
            Volume.get_info(reference)
        assert isinstance(refused.value, NotFoundException)


def test_files_come_back_in_every_form(volume):
    everything = bytes(range(256)) * 300
    volume.write_file("/bytes", everything)
    assert bytes(volume.read_file("/bytes", format="bytes")) == everything
    assert b"".join(volume.read_file("/bytes", format="stream")) == everything
    volume.write_file("/text", "grüße")
    assert volume.read_file("/text") == volume.read_file("/text", format="text") == "grüße"
    volume.write_file("/streamed", io.BytesIO(everything))
    assert bytes(volume.read_file("/streamed", format="bytes")) == everything
    volume.write_file("/lines", io.StringIO("line\n" * 3))
    assert volume.read_file("/lines") == "line\n" * 3
    volume.write_file("/empty", "")
    assert volume.read_file("/empty") == "" and bytes(volume.read_file("/empty", format="bytes")) == b""
    assert b"".join(volume.read_file("/empty", format="stream")) == b""


def test_a_file_is_written_over_unless_that_is_ruled_out(volume):
    from e2b.exceptions import VolumeException

    volume.write_file("/file", "longer than the next")
    volume.write_file("/file", "next", force=True)
    assert volume.read_file("/file") == "next"
    with pytest.raises(VolumeException):
        volume.write_file("/file", "third", force=False)
    assert volume.read_file("/file") == "next"


def test_owners_and_modes_are_those_that_were_given(volume):
    from e2b.exceptions import NotFoundException

    made = volume.write_file("/file", "x", uid=1000, gid=1000, mode=0o644)
    known = volume.get_info("/file")
    assert (kind(known), known.name, known.path, known.uid, known.gid, known.mode) == ("file", "file", "/file", 1000, 1000, 0o644)
    assert made.path == "/file"
    for time in (known.atime, known.mtime, known.ctime):
        assert isinstance(time, datetime.datetime)
    changed = volume.update_metadata("/file", uid=1001, gid=1002, mode=0o755)
    assert (changed.path, kind(changed), changed.uid, changed.gid, changed.mode) == ("/file", "file", 1001, 1002, 0o755)
    volume.make_dir("/dir", uid=1000, gid=1000, mode=0o750)
    known = volume.get_info("/dir")
    assert (kind(known), known.uid, known.gid, known.mode & 0o777) == ("directory", 1000, 1000, 0o750)
    with pytest.raises(NotFoundException):
        volume.update_metadata("/none", mode=0o644)


def test_directories_are_made_listed_and_removed_with_all_that_is_in_them(volume):
    from e2b.exceptions import NotFoundException, VolumeException

    made = volume.make_dir("/a/b/c", force=True)
    assert kind(made) == "directory"
    with pytest.raises(VolumeException):
        volume.make_dir("/a", force=False)
    for n in range(3):
        volume.write_file(f"/a/file{n}", f"content {n}")
    assert sorted((entry.name, kind(entry)) for entry in volume.list("/a")) == [
        ("b", "directory"),
        ("file0", "file"),
        ("file1", "file"),
        ("file2", "file"),
    ]
    assert "a" in [entry.name for entry in volume.list("/")]
    assert [volume.read_file(f"/a/file{n}") for n in range(3)] == [f"content {n}" for n in range(3)]
    volume.remove("/a/file0")
    assert volume.exists("/a/file0") is False and volume.exists("/a/file1") is True
    volume.remove("/a")
    assert volume.exists("/a") is False
    for call in (lambda: volume.list("/a"), lambda: volume.remove("/a"), lambda: volume.get_info("/a/b")):
        with pytest.raises(NotFoundException):
            call()


def test_what_is_not_there_is_no_file_in_any_form(volume):
    from e2b.exceptions import VolumePathNotFoundException

    for form in ("text", "bytes"):
        with pytest.raises(VolumePathNotFoundException):
            volume.read_file("/missing", format=form)
    with pytest.raises(VolumePathNotFoundException):
        b"".join(volume.read_file("/missing", format="stream"))
