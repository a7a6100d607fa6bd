"""Single-use keys: no number serves twice, whatever crashes, fails or runs beside it."""

import hashlib
import os
import resource
import signal
import stat
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from primia_jax.core import locks
from primia_jax.errors import ProtocolError, StorageError
from primia_jax.mpc import key_files, ring
from primia_jax.mpc.key_store import KeyStore
from primia_jax.mpc.ledger import Ledger

PROGRAM, SESSION = "f00d" * 16, "ab12"


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk():
    """What lasts through a power cut is one test's affair; the others need not wait for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(params=["memory", "disk"])
def store(request, tmp_path):
    return KeyStore(None if request.param == "memory" else tmp_path / "keys", PROGRAM, SESSION)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "keys"


def opened(folder, program=PROGRAM, session=SESSION):
    return KeyStore(folder, program, session)


def fill(store, numbers, n_levels=2):
    for number in numbers:
        for level in range(n_levels):
            store.put(number, level, {"w": np.arange(100, dtype=np.uint32) + 1000 * number + level})
        store.close_key(number)
    return store


def level_file(folder, number, level):
    return folder / f"key_{number:010d}" / f"level_{level:04d}"


@pytest.fixture
def full_disk():
    """Lets the process write no file beyond a size, as a disk that is full does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda n_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def run_python(code, *arguments):
    """Another process; `code` is run with what this module imports of the project."""
    start = (
        "import os, signal, sys, pathlib, numpy as np\n"
        "from primia_jax.errors import ProtocolError\n"
        "from primia_jax.mpc import key_store\n"
        "from primia_jax.mpc.key_store import KeyStore\n"
        "from primia_jax.mpc.ledger import Ledger\n"
        "folder = pathlib.Path(sys.argv[1])\n"
    )
    command = [sys.executable, "-c", start + code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)


def race(code, folder):
    """The numbers that each of two processes prints, which run `code` at the same time."""
    code = "print('ready', flush=True); input()\n" + code
    processes = [run_python(code, folder) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    won = [list(map(int, process.communicate(timeout=120)[0].split())) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return won


# --- ledger


@pytest.mark.parametrize("on_disk", [False, True])
def test_numbers_rise_and_none_is_burned_twice(tmp_path, on_disk):
    path = tmp_path / "new" / "ledger"
    ledger = Ledger(path if on_disk else None, SESSION)
    assert ledger.next() == 0
    ledger.burn(0)
    ledger.burn(np.uint64(7))
    assert ledger.next() == 8
    for used in (7, 3, 0):
        with pytest.raises(ProtocolError, match=f"key {used} of session ab12 was used before"):
            ledger.burn(used)
    for wrong in (-1, 10**18):
        with pytest.raises(ProtocolError, match=f"key number {wrong}: expected 0 to"):
            ledger.burn(wrong)
    if on_disk:
        assert Ledger(path, SESSION).next() == 8
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_ledgers_of_one_file_see_each_other(tmp_path):
    first, second = Ledger(tmp_path / "ledger"), Ledger(tmp_path / "ledger")
    first.burn(4)
    with pytest.raises(ProtocolError, match="key 4 was used before"):
        second.burn(4)
    second.burn(5)
    assert first.next() == 6


@given(st.integers(0, 10**12), st.integers(1, 10**6), st.data())
def test_a_torn_line_burns_all_that_it_may_have_said(tmp_path_factory, before, step, data):
    """A crash may cut the last line anywhere: never may it free the number it was to burn."""
    path = tmp_path_factory.mktemp("torn") / "ledger"
    ledger = Ledger(path)
    ledger.burn(before)
    size = path.stat().st_size
    ledger.burn(before + step)
    cut = data.draw(st.integers(size, path.stat().st_size))
    os.truncate(path, cut)
    after = Ledger(path).next()
    if cut == size:
        assert after == before + 1  # nothing of the line was written
    else:
        assert before + step < after <= 10 ** len(str(before + step))
    with pytest.raises(ProtocolError, match="used before"):
        Ledger(path).burn(after - 1)
    Ledger(path).burn(after)  # and the file is whole again
    assert Ledger(path).next() == after + 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace(b"a7", b"aX"),
        lambda text: text.replace(b"a7", b"b7"),
        lambda text: text.replace(b"a7", b"a1"),  # falls
        lambda text: text + b"\0\0\0\0",
        lambda text: text + b"\n",
        lambda text: text + b"a3",  # torn, and below what was burned
        lambda text: text[:20],
        lambda text: b"",
        lambda text: b"[]\n",
        lambda text: text.replace(b'"version": 1', b'"version": 2'),
        lambda text: b"\xff" + text,
    ],
)
def test_a_damaged_ledger_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "ledger"
    ledger = Ledger(path)
    for number in (3, 7, 12):
        ledger.burn(number)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ProtocolError, match=f"ledger {path} is damaged"):
        Ledger(path)


def test_a_ledger_that_shrinks_or_vanishes_is_refused(tmp_path):
    path = tmp_path / "ledger"
    ledger = Ledger(path)
    header = path.read_bytes()
    ledger.burn(0)
    path.write_bytes(header)
    with pytest.raises(ProtocolError, match="it has become shorter"):
        ledger.burn(0)
    path.unlink()
    with pytest.raises(StorageError, match=r"ledger .* cannot be read"):
        ledger.burn(1)


def test_a_ledger_of_another_session_is_refused(tmp_path):
    Ledger(tmp_path / "ledger", "ab12").burn(0)
    with pytest.raises(ProtocolError, match="is of session 'ab12', not 'cd34'"):
        Ledger(tmp_path / "ledger", "cd34")


@pytest.mark.parametrize("room", [0, 2])
def test_what_cannot_be_written_down_is_not_burned(tmp_path, full_disk, room):
    path = tmp_path / "ledger"
    ledger = Ledger(path)
    ledger.burn(100)
    full_disk(path.stat().st_size + room)  # 2: half a line fits
    with pytest.raises(StorageError, match="cannot be written"):
        ledger.burn(101)
    full_disk(1 << 20)
    ledger.burn(101)
    assert Ledger(path).next() == 102


def test_the_number_is_on_disk_before_burn_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    ledger = Ledger(tmp_path / "a" / "ledger")
    assert {str(tmp_path), str(tmp_path / "a")} <= set(synced)
    synced.clear()
    ledger.burn(3)
    assert synced == [str(ledger.path)]


def test_a_complete_key_is_on_disk(folder, monkeypatch):
    """Each file before the folder that names it, the list of levels last."""
    synced = []
    store = opened(folder)
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    fill(store, [0], 1)
    key = folder / "key_0000000000"
    files = [key / ".level_0000.partial", key, key / ".complete.partial", key]
    assert synced == [str(path) for path in (folder, *files)]


def test_two_processes_never_burn_one_number(tmp_path):
    code = (
        "ledger, won = Ledger(folder / 'ledger'), []\n"
        "for number in range(150):\n"
        "    try: ledger.burn(number)\n"
        "    except ProtocolError: continue\n"
        "    won.append(number)\n"
        "print(*won)\n"
    )
    first, second = race(code, tmp_path)
    assert sorted(first + second) == list(range(150))


# --- store


def test_keys_come_back_once_each_in_order(store):
    fill(store, range(3))
    assert (store.available(), store.next(), store.made) == (3, 0, 3)
    key = store.take(0)
    assert (store.available(), store.next(), store.made) == (2, 1, 3)
    assert list(key) == [0, 1]
    np.testing.assert_array_equal(key[1]["w"], np.arange(100) + 1)
    with pytest.raises(ProtocolError, match="level 1 of key 0 was loaded before"):
        key[1]
    with pytest.raises(ProtocolError, match="key 0 has no level 5, only 0 to 1"):
        key[5]
    ((level, message),) = key.items()
    assert level == 0 and message["w"][0] == 0 and message["w"].dtype == np.uint32
    for again in (store.take, store.burn):
        with pytest.raises(ProtocolError, match="key 0 of session ab12 was used before"):
            again(0)
    with pytest.raises(ProtocolError, match="used before"):
        store.put(0, 9, np.zeros(1))


def test_a_skipped_key_is_burned_and_removed(store, folder):
    fill(store, range(4)).take(2)
    assert (store.available(), store.next()) == (1, 3)
    with pytest.raises(ProtocolError, match="key 1 of session ab12 was used before"):
        store.take(1)
    if folder.exists():
        assert [path.name for path in folder.glob("key_*")] == ["key_0000000003"]


def test_a_burned_number_takes_its_key_along(store):
    fill(store, range(2))
    store.burn(store.next())
    assert (store.available(), store.next(), store.made) == (1, 1, 2)
    store.burn(7)
    assert (store.available(), store.next(), store.made) == (0, 8, 8)


def test_an_empty_store_says_how_to_fill_it(store):
    with pytest.raises(ProtocolError, match=r"no key is left in .*: 0 were made; make more with"):
        store.take(store.next())
    fill(store, range(2)).take(1)
    with pytest.raises(ProtocolError, match=r"no key is left in .*: 2 were made; make more with"):
        store.take(store.next())


def test_only_complete_keys_count(store):
    store.put(0, 0, np.zeros(3, np.uint8))
    assert (store.available(), store.made) == (0, 1)
    with pytest.raises(ProtocolError, match="no key is left"):
        store.take(0)
    fill(store, [1])
    assert store.next() == 1
    with pytest.raises(ProtocolError, match=r"key 0 is not complete in .* has number 1"):
        store.take(0)
    with pytest.raises(ProtocolError, match=r"key 5 is not there in .* has number 1"):
        store.take(5)
    store.close_key(0)  # neither attempt burned anything
    assert store.take(0)[0].shape == (3,)


def test_a_key_is_made_once(store):
    fill(store, [0])
    for number, level in ((0, 0), (0, 9)):
        with pytest.raises(ProtocolError, match=r"key 0 in .* is complete already"):
            store.put(number, level, np.zeros(1))
    with pytest.raises(ProtocolError, match="is complete already"):
        store.close_key(0)
    store.put(1, 0, np.zeros(1))
    with pytest.raises(ProtocolError, match=r"key 1 in .* has level 0 already"):
        store.put(1, 0, np.zeros(1))
    with pytest.raises(ProtocolError, match=r"key 2 in .* has no level yet"):
        store.close_key(2)
    with pytest.raises(ProtocolError, match="level -1: expected"):
        store.put(2, -1, np.zeros(1))


def test_a_key_remembers_its_epoch(store):
    for number, epoch in enumerate((b"", bytes(range(32)))):
        store.put(number, 0, np.zeros(1))
        store.close_key(number, epoch)
        assert store.take(number).epoch == epoch


def test_a_failed_run_uses_its_key_up(store):
    """A retry with the same masks would give away the difference of what they hid."""
    fill(store, range(2))

    def run():
        key = store.take(0)
        key[0]
        raise RuntimeError("the other party was lost")

    with pytest.raises(RuntimeError):
        run()
    with pytest.raises(ProtocolError, match=r"even one that fails; go on with .* from number 1"):
        run()
    assert store.take(store.next())[0]["w"][0] == 1000


array_types = st.sampled_from(["?", "u1", "u2", "u4", "u8", "i4", "i8", "f2", "f4", "f8", "c16"])
arrays = array_types.flatmap(
    lambda kind: hnp.arrays(np.dtype(kind), hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
)
messages = st.recursive(
    arrays,
    lambda parts: (
        st.lists(parts, max_size=3)
        | st.lists(parts, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), parts, max_size=3)
    ),
    max_leaves=8,
)


def assert_same(left, right):
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert list(left) == list(right)
        left, right = tuple(left.values()), tuple(right.values())
    if isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for pair in zip(left, right):
            assert_same(*pair)
    else:
        assert left.dtype == right.dtype and left.shape == right.shape
        np.testing.assert_array_equal(left, right)


@given(message=messages)
def test_any_message_comes_back_from_disk(tmp_path_factory, message):
    store = opened(tmp_path_factory.mktemp("keys"))
    store.put(0, 3, message)
    store.close_key(0)
    assert_same(store.take(0)[3], message)


def test_arrays_of_any_layout_and_library_come_back_as_numpy(folder):
    store = opened(folder)
    with ring.x64():
        words = jnp.asarray([1, 2**63 + 5], jnp.uint64)
    grid = np.arange(12, dtype=np.uint16).reshape(3, 4)
    big = np.arange(3_000_001, dtype=np.uint8)  # more than a piece
    store.put(0, 0, (words, np.uint64(7), grid.T, grid[:, ::2], grid.astype(">u2"), big))
    store.close_key(0)
    loaded = store.take(0)[0]
    assert all(type(array) is np.ndarray and array.dtype.isnative for array in loaded)
    expected: Any = (words, np.array(7, np.uint64), grid.T, grid[:, ::2], grid, big)
    for found, wanted in zip(loaded, expected):
        assert found.shape == wanted.shape and found.ctypes.data % 64 == 0
        np.testing.assert_array_equal(found, wanted)
    loaded[0][0] += np.uint64(1)  # the reader's own


@pytest.mark.parametrize(
    "message",
    [
        None, 3, "text", b"bytes", {1: np.zeros(1)}, {"a": [None]}, np.array(["text"]),
        np.array([None]), np.zeros(2, "u4,u4"), jnp.zeros(2, jnp.bfloat16),
        np.zeros(1, "datetime64[s]"), {1, 2},
    ],
)  # fmt: skip
def test_other_messages_are_refused(store, message):
    with pytest.raises(ProtocolError, match="a key"):
        store.put(0, 0, message)
    assert store.made == 0


def test_costs_are_counted_through_a_store_in_memory():
    """`runtime.cost.count` runs the programs on shapes alone."""

    def through(words):
        store = KeyStore(None, PROGRAM, SESSION)
        store.put(0, 0, {"w": words})
        store.close_key(0)
        return store.take(0)[0]["w"]

    counted = jax.tree.leaves(jax.eval_shape(through, jnp.zeros((3, 4), jnp.uint32)))
    assert [leaf.shape for leaf in counted] == [(3, 4)]


# --- store on disk


def test_a_store_outlives_its_process(folder):
    fill(opened(folder), range(2)).take(0)
    again = opened(folder)
    assert (again.available(), again.next(), again.made) == (1, 1, 2)
    with pytest.raises(ProtocolError, match="key 0 of session ab12 was used before"):
        again.take(0)
    assert again.take(1)[1]["w"][0] == 1001
    assert opened(folder).made == 2


def test_files_are_closed_to_others_and_gone_once_taken(folder):
    folder.mkdir(mode=0o755)
    store = fill(opened(folder), range(2))
    paths = [folder, *folder.rglob("*")]
    assert len(paths) == 11  # ledger, lock, and of each key its folder, two levels, their list
    for path in paths:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    key = store.take(0)
    assert not level_file(folder, 0, 0).parent.exists()
    assert key[0]["w"][0] == 0


def test_files_that_are_not_loaded_are_closed(folder):
    key = fill(opened(folder), [0], 20).take(0)
    open_files = len(os.listdir("/proc/self/fd"))
    key[3]
    assert len(os.listdir("/proc/self/fd")) == open_files - 1
    del key
    assert len(os.listdir("/proc/self/fd")) == open_files - 20


def test_one_level_at_a_time_is_read(folder, monkeypatch):
    """Memory for one level, not for a network; what was not asked for is not read."""
    key = fill(opened(folder), [0], 3).take(0)
    read = []
    real = key_files.LevelFile._contents

    def contents(file, size):
        read.append(size)
        return real(file, size)

    monkeypatch.setattr(key_files.LevelFile, "_contents", contents)
    for n_read, _ in enumerate(key.items(), 1):
        assert len(read) == n_read


@pytest.mark.parametrize(
    ("program", "session", "message"),
    [
        ("beef" * 16, SESSION, r"is of program 'f00df00df00d…', not 'beefbeefbeef…'"),
        (PROGRAM, "cd34", r"is of session 'ab12', not 'cd34'"),
    ],
)
def test_keys_of_another_program_or_session_are_refused(folder, program, session, message):
    fill(opened(folder), range(2))
    with pytest.raises(ProtocolError, match=message):
        opened(folder, program, session)
    assert opened(folder).take(0)[0]["w"][0] == 0  # nothing was burned


def test_keys_of_another_program_are_refused_when_taken(folder):
    """Both programs made keys in one folder that was empty when they opened it."""
    first, second = opened(folder), opened(folder, "beef" * 16)
    fill(first, [0])
    with pytest.raises(ProtocolError, match="is of program"):
        second.take(0)
    assert first.available() == 1


def test_keys_of_another_version_are_refused(folder):
    fill(opened(folder), [0])
    path = level_file(folder, 0, 0)
    body = bytearray(path.read_bytes()[:-32])
    body[8] = 2
    path.write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(ProtocolError, match="of version 2 of the format, this program reads"):
        opened(folder)


def test_a_swapped_file_is_refused(folder):
    store = fill(opened(folder), range(2))
    os.replace(level_file(folder, 1, 0), level_file(folder, 0, 0))
    with pytest.raises(ProtocolError, match="is of key '1', not '0'"):
        store.take(0)


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(tmp_path_factory, where, bit):
    folder = tmp_path_factory.mktemp("keys")
    store = fill(opened(folder), range(2), 1)
    path = level_file(folder, 0, 0)
    contents = bytearray(path.read_bytes())
    contents[int(where * len(contents))] ^= 1 << bit
    path.write_bytes(contents)
    with pytest.raises(ProtocolError, match=r"level_0000 is damaged .* counts as used"):
        store.take(0)[0]
    assert opened(folder).next() == 1  # the run after it has a key


@given(where=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_is_found(tmp_path_factory, where):
    folder = tmp_path_factory.mktemp("keys")
    store = fill(opened(folder), range(2), 1)
    path = level_file(folder, 0, 0)
    os.truncate(path, int(where * path.stat().st_size))
    with pytest.raises(ProtocolError, match="level_0000 is damaged"):
        store.take(0)
    assert store.next() == 1


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_of_levels_or_epoch_is_found(tmp_path_factory, where, bit):
    folder = tmp_path_factory.mktemp("keys")
    store = opened(folder)
    store.put(0, 0, np.zeros(1))
    store.close_key(0, bytes(range(32)))
    path = folder / "key_0000000000" / "complete"
    contents = bytearray(path.read_bytes())
    contents[int(where * len(contents))] ^= 1 << bit
    path.write_bytes(contents)
    with pytest.raises(ProtocolError, match="complete is damaged"):
        store.take(0)


@pytest.mark.parametrize("name", ["level_0001", "complete"])
def test_a_missing_or_emptied_file_is_found(folder, name):
    store = fill(opened(folder), range(2))
    path = folder / "key_0000000000" / name
    path.unlink() if name.startswith("level") else path.write_bytes(b"")
    assert opened(folder).available() == 2
    with pytest.raises(ProtocolError, match=f"{name} is damaged"):
        store.take(0)
    assert store.next() == 1


def test_keys_without_their_ledger_are_refused(folder):
    fill(opened(folder), [0])
    (folder / "ledger").unlink()
    with pytest.raises(ProtocolError, match="has files but no ledger of used keys"):
        opened(folder)


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    tmp_path.chmod(0o755)
    with pytest.raises(ProtocolError, match="has files but no ledger"):
        opened(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    with pytest.raises(StorageError, match=r"cannot be kept in .*thesis.tex"):
        opened(tmp_path / "thesis.tex")


def test_a_full_disk_leaves_the_key_incomplete(folder, full_disk):
    store = fill(opened(folder), [0])
    store.put(1, 0, np.zeros(10))
    full_disk(5000)
    with pytest.raises(
        StorageError, match=r"key_0000000001/level_0001 cannot be written .*; see to the disk"
    ):
        store.put(1, 1, np.zeros(10_000))
    assert [path.name for path in folder.rglob("*.partial")] == []
    full_disk(1 << 20)
    assert store.available() == 1
    store.put(1, 1, np.zeros(10_000))  # with room again
    store.close_key(1)
    assert store.take(1)[1].shape == (10_000,)


def test_a_system_without_file_locks_says_so(folder, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with pytest.raises(StorageError, match="locks need a POSIX system"):
        opened(folder)


def killed(code, folder):
    """Runs `code` until it kills itself."""
    process = run_python(f"store = KeyStore(folder, {PROGRAM!r}, {SESSION!r})\n{code}", folder)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "code",
    [
        "store.take(0)\nos.kill(os.getpid(), signal.SIGKILL)",  # burned, nothing loaded
        "store.take(0)[0]\nos.kill(os.getpid(), signal.SIGKILL)",  # one level loaded
        "key_store.shutil.rmtree = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.take(0)",  # burned, files still there
    ],
)
def test_a_crash_after_burning_loses_the_key(folder, code):
    fill(opened(folder), range(2))
    killed(code, folder)
    store = opened(folder)
    assert (store.available(), store.next()) == (1, 1)
    assert [path.name for path in folder.glob("key_*")] == ["key_0000000001"]
    with pytest.raises(ProtocolError, match="key 0 of session ab12 was used before"):
        store.take(0)
    assert store.take(1)[0]["w"][0] == 1000


def test_a_crash_before_burning_keeps_the_key(folder):
    fill(opened(folder), range(2))
    killed(
        "key_store.os.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nstore.take(0)",
        folder,
    )
    assert opened(folder).take(0)[0]["w"][0] == 0


def test_a_crash_while_making_leaves_the_number_unused(folder):
    fill(opened(folder), [0])
    killed(
        "store.put(1, 0, np.zeros(3))\n"
        "key_store.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.put(1, 1, np.zeros(3))",
        folder,
    )
    store = opened(folder)
    assert (store.available(), store.next(), store.made) == (1, 0, 2)
    fill(store, [2]).take(2)
    assert list(folder.glob("key_*")) == []  # the remains went with it


def test_two_processes_never_take_one_key(folder):
    fill(opened(folder), range(30))
    code = (
        f"store, won = KeyStore(folder, {PROGRAM!r}, {SESSION!r}), []\n"
        "while store.available():\n"
        "    number = store.next()\n"
        "    try: key = store.take(number)\n"
        "    except ProtocolError: continue\n"
        "    assert [m['w'][0] for _, m in key.items()] == [1000 * number, 1000 * number + 1]\n"
        "    won.append(number)\n"
        "print(*won)\n"
    )
    first, second = race(code, folder)
    assert sorted(first + second) == list(range(30))
