"""Settings that must be made before JAX starts. Imports nothing heavy.

Threads are part of what makes a run bit-identical: XLA's CPU code splits sums by the number of
threads it has. Compiled programs are kept across processes and runs, so that three hospitals on one
machine, or the same experiment twice, compile once. Compiled programs are code: their folder is its
owner's alone.
"""

import contextlib
import ctypes
import hashlib
import os
import pathlib
import platform
import resource
import sys
from collections.abc import Iterator
from typing import Any

from primia_jax.errors import ConfigError

_THREADS = "PJRT_NPROC"
_CACHE = "JAX_COMPILATION_CACHE_DIR"
# M_MMAP_MAX: no large blocks beside the heap, or as many as glibc allows by default;
# M_TRIM_THRESHOLD: when the heap shrinks by itself (never, or glibc's default).
_KEEPING = ((-4, 0), (-1, 2**31 - 1))
_GIVING_BACK = ((-4, 65536), (-1, 128 << 10))


def thread_variables(threads: int) -> dict[str, str]:
    """Environment variables that give XLA's CPU client so many threads."""
    return {_THREADS: str(threads)}


def compilation_cache_dir() -> str:
    """Folder of compiled programs: JAX's own setting, or one for this processor."""
    if _CACHE in os.environ:
        return os.environ[_CACHE]
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return str(base / "primia_jax" / "xla" / _processor())


def private_cache() -> str:
    """Makes the folder of compiled programs, or closes it to others; returns it.

    A folder that JAX_COMPILATION_CACHE_DIR names keeps its mode.

    Raises:
      ConfigError: if others can write to the folder, and so choose code that this process runs.
    """
    name = compilation_cache_dir()
    if "://" in name:  # an object store, with access rules of its own
        return name
    folder = pathlib.Path(name)
    if name == os.environ.get(_CACHE):
        if folder.exists() and _writable_by_others(folder):
            raise _not_private(folder)
        return name
    with contextlib.suppress(OSError):  # without a folder JAX goes on without a cache
        for path in (*reversed(folder.parents), folder):
            path.mkdir(mode=0o700, exist_ok=True)
        for path in (*folder.parents[:2], folder):
            if _writable_by_others(path):
                raise _not_private(folder)
        if folder.stat().st_mode & 0o077:
            if any(map(_writable_by_others, folder.iterdir())):
                raise _not_private(folder)
            folder.chmod(0o700)
    return name


def _writable_by_others(path: pathlib.Path) -> bool:
    status = path.stat()
    return bool(status.st_mode & 0o022) or status.st_uid not in (os.getuid(), 0)


def _not_private(folder: pathlib.Path) -> ConfigError:
    return ConfigError(
        f"other users can write to the compiled programs in {folder}, which this process would "
        f"run; remove that folder, or name another one by {_CACHE}"
    )


def close_to_others() -> None:
    """Lets the files that this process and its children make be read by their owner alone.

    For processes of our own (command lines, actors). The API leaves a caller's umask as it is.
    """
    os.umask(0o077)


def set_up_process(threads: int | None = None) -> None:
    """Sets up this process; of use only before JAX and Ray are imported.

    Raises:
      ConfigError: if other users can write to the folder of compiled programs.
    """
    os.environ.setdefault(_CACHE, private_cache())
    # Ray would start a cluster of its own for a call that comes after the run's has ended.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    if threads is not None:
        os.environ.update(thread_variables(threads))


def ray_address() -> str | None:
    """Address of the Ray cluster that the environment variable RAY_ADDRESS names."""
    return os.environ.get("RAY_ADDRESS") or None


@contextlib.contextmanager
def memory_kept() -> Iterator[None]:
    """Within it, glibc keeps freed memory for the next use; at its end all of it is given back.

    XLA allocates and frees its temporary buffers at every step; getting the pages anew costs 11 to
    13 % of a training step's time. Outside, single large arrays are better given back at once.
    Without glibc nothing happens.
    """
    keep_memory()
    try:
        yield
    finally:
        _tune_malloc(_GIVING_BACK)
        give_memory_back()


def keep_memory() -> None:
    """As `memory_kept`, for the rest of this process."""
    _tune_malloc(_KEEPING)


def give_memory_back() -> None:
    """Returns malloc's free lists to the system: XLA's compiler leaves some 300 MB in them."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def memory_used() -> dict[str, Any]:
    """Memory of this process: {"rss_bytes": largest so far, "process": "HOST:PID"}.

    By `process` those who share one are told, whose memory counts once.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"rss_bytes": peak, "process": f"{platform.node()}:{os.getpid()}"}


def _tune_malloc(options: tuple[tuple[int, int], ...]) -> None:
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for option, value in options:
            libc.mallopt(option, value)


def _processor() -> str:
    """A name for the processor: code compiled for one may be illegal on another."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line for line in file if line.startswith(("flags", "Features", "model name"))]
        text = "".join(sorted(set(lines)))
    except OSError:
        text = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
