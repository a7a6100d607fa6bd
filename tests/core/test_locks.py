"""A folder has one writer, until its process ends."""

import multiprocessing
import threading

import pytest

from primia_jax.core import locks
from primia_jax.errors import StorageError


def _hold(folder, ready):
    with locks.lock_folder(folder, "a training"):
        ready.set()
        threading.Event().wait()


def test_a_folder_has_one_writer_until_its_process_ends(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(60)
    with (
        pytest.raises(StorageError, match=f"a training goes on in .*process {holder.pid}"),
        locks.lock_folder(tmp_path, "a diagnosis"),
    ):
        raise AssertionError
    holder.kill()
    holder.join()
    with locks.lock_folder(tmp_path, "a diagnosis"):
        pass


def test_blocks_of_one_thread_nest_and_other_threads_are_refused(tmp_path):
    refused = []

    def other():
        try:
            with locks.lock_folder(tmp_path):
                pass
        except StorageError as error:
            refused.append(error)

    with locks.lock_folder(tmp_path, "an audit"), locks.lock_folder(tmp_path, "a training"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1 and "an audit goes on in" in str(refused[0])
    other()
    assert len(refused) == 1 and not list(tmp_path.iterdir())
