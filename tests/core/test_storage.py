"""Files are there whole or not at all, for their owner alone, and a folder has one writer."""

import errno
import json
import os
import pathlib
import stat
import threading

import pytest

from primia_jax.core import storage
from primia_jax.errors import CheckpointError, DataError, StorageError


def _mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def _open_umask():
    former = os.umask(0o002)
    yield
    os.umask(former)


WRITERS = {
    "bytes": lambda path: storage.write_bytes(path, b"new"),
    "pieces": lambda path: storage.write_bytes(path, iter([b"n", memoryview(b"ew")])),
    "text": lambda path: storage.write_text(path, "new"),
    "json": lambda path: storage.write_json(path, "new"),
    "append": lambda path: storage.append_line(path, "new"),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_files_and_new_folders_are_their_owners_alone(writer, tmp_path):
    path = tmp_path / "a" / "b" / "file"
    writer(path)
    assert b"new" in path.read_bytes()
    assert [_mode(p) for p in (path, path.parent, path.parent.parent)] == [0o600, 0o700, 0o700]
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_on_a_full_disk_the_former_file_stays(writer, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old\n")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left") as error:
        writer(path)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == b"old\n"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failure_half_way_leaves_the_former_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), storage.replacing(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_what_a_crash_left_is_overwritten(tmp_path):
    with storage.replacing(tmp_path / "file") as partial:
        name = partial.name
    (tmp_path / name).write_text("longer than what comes")
    storage.write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new" and os.listdir(tmp_path) == ["file"]


def test_a_link_in_the_place_of_the_partial_file_is_not_followed(tmp_path):
    with storage.replacing(tmp_path / "file") as partial:
        name = partial.name
    (tmp_path / "precious").write_text("precious")
    (tmp_path / name).symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError):
        storage.write_text(tmp_path / "file", "new")
    assert (tmp_path / "precious").read_text() == "precious"


def test_writers_of_one_file_wait_for_one_another(tmp_path):
    path, failures = tmp_path / "file", []

    def write(letter):
        try:
            for _ in range(20):
                storage.write_bytes(path, letter * 5000, durable=False)
                data = path.read_bytes()
                assert len(data) == 5000 and len(set(data)) == 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failures and os.listdir(tmp_path) == ["file"]


def test_a_name_as_long_as_the_system_allows_can_be_written(tmp_path):
    storage.write_text(tmp_path / ("x" * 255), "new")
    assert os.listdir(tmp_path) == ["x" * 255]


def test_a_folder_appears_whole(tmp_path):
    target = tmp_path / "round"
    target.mkdir()
    (target / "old").touch()
    with storage.replacing_folder(target) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "new").write_text("new")
        assert (target / "old").exists()
    assert [p.name for p in target.rglob("*")] == ["inner", "new"]
    assert _mode(target) == 0o700 and _mode(target / "inner" / "new") == 0o600
    with pytest.raises(ZeroDivisionError), storage.replacing_folder(target):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["round"] and (target / "inner" / "new").exists()


def test_appending_drops_the_line_that_a_crash_cut_short(tmp_path):
    path = tmp_path / "log"
    path.write_text("first\n" + "x" * 200_000)
    storage.append_line(path, "second")
    assert path.read_text() == "first\nsecond\n"
    path.write_text("no whole line")
    storage.append_lines(path, ["a", "b"])
    assert path.read_text() == "a\nb\n"


def test_text_that_is_not_utf8_is_escaped(tmp_path):
    storage.write_text(tmp_path / "file", os.fsdecode(b"M\xfcller"))
    assert (tmp_path / "file").read_text() == "M\\udcfcller"


def test_an_open_folder_is_closed_and_one_above_stays(tmp_path):
    above = tmp_path / "above"
    (above / "mine").mkdir(parents=True)
    above.chmod(0o755), (above / "mine").chmod(0o755)
    storage.private_folder(above / "mine")
    assert _mode(above) == 0o755 and _mode(above / "mine") == 0o700


def test_a_folder_of_all_users_is_not_closed(tmp_path):
    """As root, old code would have closed /tmp to everyone."""
    tmp_path.chmod(0o1777)
    with pytest.raises(StorageError, match="folder of all users"):
        storage.private_folder(tmp_path)
    assert _mode(tmp_path) == 0o1777


NO_JSON = [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"[1, 2]", b"{}", "{}".encode("utf-16")]


@pytest.mark.parametrize("content", [None, *NO_JSON])
def test_json_that_cannot_be_read_is_one_line(content, tmp_path):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        storage.read_json(path, ["field"])
    assert "\n" not in str(error.value) and "file.json" in str(error.value)
    path.write_text('{"field": 1}')
    assert storage.read_json(path, ["field"]) == {"field": 1}
    with pytest.raises(DataError, match="at most 11"):
        storage.read_json(path, max_bytes=11, error=DataError)


@pytest.mark.parametrize("content", NO_JSON)
def test_lines_that_cannot_be_read_are_named(content, tmp_path):
    """Unless a crash cut the last one short."""
    path, whole = tmp_path / "file.jsonl", b'{"field": 1}\n'
    assert storage.read_json_lines(path) == []
    path.write_bytes(whole + content.replace(b"\n", b""))
    assert storage.read_json_lines(path, ["field"]) == [{"field": 1}]
    path.write_bytes(whole + content + b"\n" + whole)
    with pytest.raises(
        CheckpointError, match=r"file.jsonl is damaged in line 2 .*restore"
    ) as error:
        storage.read_json_lines(path, ["field"])
    assert "\n" not in str(error.value)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="a folder, not a regular file"):
        storage.read_json_lines(path)


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    kinds = {
        tmp_path: "folder",
        tmp_path / "pipe": "pipe",
        tmp_path / "link": "pipe",
        pathlib.Path("/dev/zero"): "device",
        tmp_path / "none": "No such",
    }
    for path, kind in kinds.items():
        with pytest.raises(DataError, match=kind):
            storage.check_regular(path)
    (tmp_path / "file").write_bytes(bytes(11))
    assert storage.check_regular(tmp_path / "file", max_bytes=11) == 11
    with pytest.raises(DataError, match="11 bytes"):
        storage.check_regular(tmp_path / "file", max_bytes=10)


def test_earlier_files_are_moved_aside_in_turn(tmp_path):
    for number in ("1", "2"):
        (tmp_path / "config.json").write_text(number)
        (tmp_path / "dangling").symlink_to("nowhere")
        storage.move_aside(tmp_path, ("config.json", "dangling", "missing"))
    storage.move_aside(tmp_path, ("config.json",))
    previous = tmp_path / "previous"
    assert sorted(os.listdir(tmp_path)) == ["previous"] and sorted(os.listdir(previous)) == [
        "1",
        "2",
    ]
    assert json.loads((previous / "2" / "config.json").read_text()) == 2
