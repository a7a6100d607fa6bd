"""A peer's script under its own Python, which runs once for every line that it is sent."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

TIMEOUT_S = 1800.0
_GRACE_S = 10.0


class PeerError(Exception):
    """A peer did not start, or did not end a run; one line."""


@contextlib.contextmanager
def started(
    python: str,
    script: str | os.PathLike[str],
    arguments: Sequence[str],
    timeout_s: float = TIMEOUT_S,
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Starts a script that speaks as `processes.serve` does; ends it and all its processes.

    Yields:
      what runs once, and returns what the script printed of it.

    Raises:
      PeerError: if the script cannot be started, ends or takes longer than `timeout_s`; here or
        in a run.
    """
    command = [python, os.fspath(script), *arguments]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                start_new_session=True, env=_environment(),
            )  # fmt: skip
        except OSError as error:
            raise PeerError(f"{python} cannot be started: {error.strerror}") from None

        def run() -> dict[str, Any]:
            assert process.stdin is not None
            with contextlib.suppress(OSError):  # it ended: `_reply` tells why
                process.stdin.write("run\n")
                process.stdin.flush()
            return _reply(process, log, timeout_s)

        try:
            _reply(process, log, timeout_s)
            yield run
            assert process.stdin is not None
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                process.stdin.close()  # it ends by itself, and removes what it left on the disk
                process.wait(_GRACE_S)
        finally:
            _end(process)


def _environment() -> dict[str, str]:
    """Of this process, less what steers this project's JAX."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "PJRT_", "XLA_"))}


def _reply(process: subprocess.Popen[str], log: IO[str], timeout_s: float) -> dict[str, Any]:
    assert process.stdout is not None
    late = threading.Event()

    def end() -> None:
        late.set()
        _end(process)

    timer = threading.Timer(timeout_s, end)
    timer.start()
    try:
        for line in process.stdout:
            if line.startswith("{"):  # libraries print too
                reply = dict(json.loads(line))
                if "error" in reply:
                    raise PeerError(reply["error"])
                return reply
    finally:
        timer.cancel()
    _end(process)
    if late.is_set():
        raise PeerError(f"no answer within {timeout_s:g} s")
    log.seek(0)
    said = [text.strip() for text in log.read().splitlines() if text.strip()]
    raise PeerError(f"ended: {said[-1] if said else f'exit code {process.returncode}'}")


def _end(process: subprocess.Popen[str]) -> None:
    """Ends the script and the parties that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
