"""Files: bytes in, bytes out, and what the sandbox says about them."""

import datetime
import hashlib
import io
import os

import pytest
from e2b import FileNotFoundException, FileType, InvalidArgumentException

BIG_BYTES = 64 * 1024 * 1024


def names(entries) -> list[str]:
    return [entry.name for entry in entries]


def test_text_comes_back_as_written(sandbox, folder):
    text = "first\nzweite Zeile: äöü\n最後 🦀"
    written = sandbox.files.write(f"{folder}/note.txt", text)
    assert (written.name, written.path, written.type) == ("note.txt", f"{folder}/note.txt", FileType.FILE)
    assert sandbox.files.read(f"{folder}/note.txt") == text
    assert sandbox.files.write(f"{folder}/note.txt", "short").path == f"{folder}/note.txt"
    assert sandbox.files.read(f"{folder}/note.txt") == "short"


def test_bytes_come_back_as_written(sandbox, folder):
    data = bytes(range(256)) * 1000
    sandbox.files.write(f"{folder}/data", data)
    assert sandbox.files.read(f"{folder}/data", format="bytes") == data
    assert b"".join(sandbox.files.read(f"{folder}/data", format="stream")) == data


def test_an_empty_file_is_a_file(sandbox, folder):
    sandbox.files.write(f"{folder}/empty", "")
    assert sandbox.files.read(f"{folder}/empty") == ""
    assert sandbox.files.read(f"{folder}/empty", format="bytes") == b""
    assert sandbox.files.get_info(f"{folder}/empty").size == 0


def test_every_way_of_uploading_writes_the_same(sandbox, folder):
    data = os.urandom(300_000)
    sandbox.files.write(f"{folder}/octets", data, use_octet_stream=True)
    sandbox.files.write(f"{folder}/gzip", data, gzip=True)
    sandbox.files.write(f"{folder}/file", io.BytesIO(data))
    for name in ("octets", "gzip", "file"):
        assert sandbox.files.read(f"{folder}/{name}", format="bytes") == data, name
    assert sandbox.files.read(f"{folder}/gzip", format="bytes", gzip=True) == data


def test_many_files_are_written_at_once(sandbox, folder):
    files = [{"path": f"{folder}/deep/{n}/file", "data": f"content {n}"} for n in range(5)]
    written = sandbox.files.write_files(files)
    assert [info.path for info in written] == [file["path"] for file in files]
    for file in files:
        assert sandbox.files.read(file["path"]) == file["data"]
    assert sandbox.files.write_files([]) == []


def test_paths_start_at_the_users_home(sandbox, folder):
    name = folder.removeprefix("/home/user/")
    assert sandbox.files.write(f"{name}/relative", "x").path == f"{folder}/relative"
    assert sandbox.files.read(f"~/{name}/relative") == "x"
    assert sandbox.files.write("conformance-of-root", "y", user="root").path == "/root/conformance-of-root"
    assert sandbox.files.get_info("/root/conformance-of-root", user="root").owner == "root"


def test_new_parents_belong_to_the_writer(sandbox, folder):
    sandbox.files.write(f"{folder}/a/b/c.txt", "x")
    for path in (f"{folder}/a", f"{folder}/a/b", f"{folder}/a/b/c.txt"):
        info = sandbox.files.get_info(path)
        assert (info.owner, info.group) == ("user", "user"), path


def test_files_of_the_kernel_can_be_read(sandbox):
    assert sandbox.files.read("/proc/sys/kernel/random/boot_id").count("-") == 4


def test_reading_what_is_not_a_file_is_an_error(sandbox, folder):
    with pytest.raises(FileNotFoundException, match="missing"):
        sandbox.files.read(f"{folder}/missing")
    with pytest.raises(InvalidArgumentException):
        sandbox.files.read(folder)


def test_info_of_a_file(sandbox, folder):
    sandbox.files.write(f"{folder}/script", "12345")
    sandbox.commands.run("chmod 750 script", cwd=folder)
    info = sandbox.files.get_info(f"{folder}/script")
    assert (info.name, info.path, info.type, info.size) == ("script", f"{folder}/script", FileType.FILE, 5)
    assert (info.mode, info.permissions) == (0o750, "-rwxr-x---")
    assert (info.owner, info.group) == ("user", "user")
    assert info.symlink_target is None
    age = datetime.datetime.now(datetime.timezone.utc) - info.modified_time
    assert abs(age) < datetime.timedelta(seconds=30)


def test_info_of_a_directory_and_of_a_link(sandbox, folder):
    sandbox.commands.run("mkdir sub && ln -s $PWD/sub link", cwd=folder)
    assert sandbox.files.get_info(f"{folder}/sub").type == FileType.DIR
    assert sandbox.files.get_info(f"{folder}/sub").permissions.startswith("d")
    link = sandbox.files.get_info(f"{folder}/link")
    # A link has the type of what it points at, and says where that is.
    assert link.type == FileType.DIR
    assert link.symlink_target == f"{folder}/sub"
    with pytest.raises(FileNotFoundException):
        sandbox.files.get_info(f"{folder}/missing")


def test_exists(sandbox, folder):
    assert sandbox.files.exists(folder)
    assert not sandbox.files.exists(f"{folder}/missing")
    sandbox.files.write(f"{folder}/there", "")
    assert sandbox.files.exists(f"{folder}/there")


def test_listing_goes_as_deep_as_asked(sandbox, folder):
    sandbox.commands.run("mkdir -p b/c/d && touch a b/x b/c/y b/c/d/z", cwd=folder)
    assert names(sandbox.files.list(folder)) == ["a", "b"]
    assert names(sandbox.files.list(folder, depth=2)) == ["a", "b", "c", "x"]
    assert names(sandbox.files.list(folder, depth=9)) == ["a", "b", "c", "d", "z", "y", "x"]
    by_name = {entry.name: entry for entry in sandbox.files.list(folder, depth=2)}
    assert by_name["x"].path == f"{folder}/b/x"
    assert by_name["c"].type == FileType.DIR


def test_listing_what_is_not_a_directory_is_an_error(sandbox, folder):
    with pytest.raises(FileNotFoundException):
        sandbox.files.list(f"{folder}/missing")
    sandbox.files.write(f"{folder}/file", "")
    with pytest.raises(InvalidArgumentException):
        sandbox.files.list(f"{folder}/file")


def test_make_dir_makes_parents_and_reports_what_was_there(sandbox, folder):
    assert sandbox.files.make_dir(f"{folder}/x/y/z") is True
    assert sandbox.files.make_dir(f"{folder}/x/y/z") is False
    assert sandbox.files.get_info(f"{folder}/x/y").owner == "user"
    sandbox.files.write(f"{folder}/file", "")
    with pytest.raises(InvalidArgumentException):
        sandbox.files.make_dir(f"{folder}/file")


def test_rename_moves_files_and_directories(sandbox, folder):
    sandbox.files.write(f"{folder}/old/file", "content")
    moved = sandbox.files.rename(f"{folder}/old/file", f"{folder}/old/renamed")
    assert (moved.name, moved.path) == ("renamed", f"{folder}/old/renamed")
    assert not sandbox.files.exists(f"{folder}/old/file")
    assert sandbox.files.rename(f"{folder}/old", f"{folder}/new").type == FileType.DIR
    assert sandbox.files.read(f"{folder}/new/renamed") == "content"
    with pytest.raises(FileNotFoundException):
        sandbox.files.rename(f"{folder}/old", f"{folder}/newer")


def test_remove_takes_whole_trees_and_does_not_mind_absence(sandbox, folder):
    sandbox.files.write(f"{folder}/tree/deep/file", "")
    sandbox.files.remove(f"{folder}/tree/deep/file")
    assert not sandbox.files.exists(f"{folder}/tree/deep/file")
    sandbox.files.remove(f"{folder}/tree")
    assert not sandbox.files.exists(f"{folder}/tree")
    sandbox.files.remove(f"{folder}/tree")


def test_a_big_file_goes_up_and_down(driver, sandbox, folder):
    # The blocking SDK sends it in one multipart body, the asynchronous one as a stream; both read it back as a stream.
    data = os.urandom(1 << 20) * (BIG_BYTES >> 20)
    path = f"{folder}/big"
    sandbox.files.write(path, data if isinstance(driver, type) else io.BytesIO(data), request_timeout=110)
    assert sandbox.files.get_info(path).size == BIG_BYTES
    digest = hashlib.sha256()
    for chunk in sandbox.files.read(path, format="stream", request_timeout=110):
        digest.update(chunk)
    assert digest.digest() == hashlib.sha256(data).digest()
    sandbox.files.remove(path)
