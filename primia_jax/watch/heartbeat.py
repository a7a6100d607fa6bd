"""The sign of life that a run leaves: D/status.json, by which another process tells how it stands.

It is written whole or not at all, at every stage and round and every few seconds between. A process
that was killed cannot say so: on the same machine that is told from its number and its start,
elsewhere from the age of what it wrote. This module imports nothing heavy, since whoever only asks
for the status should not wait for JAX.
"""

import contextlib
import os
import pathlib
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from primia_jax.core.locks import lock_folder
from primia_jax.core.storage import read_json, write_json
from primia_jax.errors import CheckpointError, StorageError

STATUS = "status.json"
RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"
_BEAT_S = 20.0
_MAX_STATUS_BYTES = 1 << 24
_SILENT_S = 120.0  # a process of another machine not heard of for so long is taken for dead


class Heartbeat:
    """Keeps status.json up to date, as a context manager.

    Its fields: kind ("training" or "search"), state, stage, stage_since, began, heard (seconds
    since 1970), host, pid, process (when the process was started), message (why it ended), and
    those that `update` adds.
    """

    def __init__(self, folder: pathlib.Path, kind: str):
        self._path = folder / STATUS
        self._lock = threading.Lock()
        self._over = threading.Event()
        now = time.time()
        self._fields: dict[str, Any] = {
            "kind": kind,
            "state": RUNNING,
            "stage": "starting",
            "stage_since": now,
            "began": now,
            "heard": now,
            "host": platform.node(),
            "pid": os.getpid(),
            "process": _started(os.getpid()),
        }

    def __enter__(self) -> "Heartbeat":
        self._write()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if error is None:
            ending = {"state": FINISHED, "stage": "finished"}
        elif isinstance(error, Exception):
            ending = {"state": FAILED, "message": _one_line(error)}
        else:
            ending = {"state": INTERRUPTED}
        try:
            self.update(**ending)
        except StorageError:
            if error is None:
                raise

    def stage(self, name: str) -> None:
        """Says what the run does from now on.

        Raises:
          StorageError: if it cannot be written.
        """
        self.update(stage=name, stage_since=time.time())

    def update(self, **fields: Any) -> None:
        """Adds or replaces fields.

        Raises:
          StorageError: if they cannot be written.
        """
        with self._lock:
            self._fields |= fields
        self._write()

    def _write(self) -> None:
        with self._lock:
            self._fields["heard"] = time.time()
            write_json(self._path, self._fields, durable=False)

    def _beat(self) -> None:
        while not self._over.wait(_BEAT_S):
            try:
                self._write()
            except StorageError:
                continue  # the run meets the same disk, and says so


def read(folder: pathlib.Path) -> dict[str, Any] | None:
    """Reads status.json of `folder`; None where there is none, or none that can be read."""
    try:
        return read_json(folder / STATUS, max_bytes=_MAX_STATUS_BYTES)
    except CheckpointError:
        return None


def alive(status: Mapping[str, Any], now: float | None = None) -> bool:
    """True if the run that wrote `status` still goes on.

    On the machine that it runs on this is certain; of another it is known only when it was last
    heard, by that machine's clock.
    """
    if status.get("state") != RUNNING:
        return False
    if status.get("host") == platform.node():
        started = _started(status.get("pid") or 0)
        return started is not None and started == status.get("process")
    return (time.time() if now is None else now) - (status.get("heard") or 0) < _SILENT_S


@contextlib.contextmanager
def only_writer(folder: pathlib.Path, activity: str) -> Iterator[None]:
    """Makes this thread the only writer of `folder`; see `locks.lock_folder`.

    Where the locks of a shared disk do not reach other machines, their heartbeat counts.

    Raises:
      StorageError: naming the process that writes there.
    """
    with lock_folder(folder, activity):
        status = read(folder)
        if status is not None and status.get("host") != platform.node() and alive(status):
            raise StorageError(
                f"a {status.get('kind')} goes on in {folder} (process {status.get('pid')} on "
                f"{status.get('host')}); wait until it has ended, or name another folder by "
                "--workdir"
            )
        yield


def _started(pid: int) -> str | None:
    """When the process `pid` of this machine was started, in the kernel's ticks; None if none is.

    Together with `pid` it names the process: numbers are used again. Where the system does not
    tell, the answer is the same for all processes that exist.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except FileNotFoundError:
        return None if os.path.isdir("/proc/self") else _exists(pid)
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # a zombie is dead


def _exists(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return "unknown"
    except OSError:
        return None
    return "unknown"


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
