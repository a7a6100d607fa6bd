"""Decoding with GDCM in a process of its own: a file that crashes it costs one image, not the run.

See `gdcm_worker`.
"""

import atexit
import contextlib
import json
import os
import pathlib
import struct
import subprocess
import sys
import threading
from typing import Any

from primia_jax.data.decoded import ImageError

_WORKER = pathlib.Path(__file__).with_name("gdcm_worker.py")
_TIMEOUT_S = 300.0  # of one image; the largest takes seconds
_CRASHED = "damaged compressed data (the decoder failed on it)"

_lock = threading.Lock()
_running: tuple[int, subprocess.Popen[bytes]] | None = None  # the process that started it, and it


def decode(frame: bytes, **request: Any) -> bytes:
    """The samples of a JPEG, JPEG Lossless or JPEG 2000 `frame`, pixel by pixel.

    Args:
      frame: the codestream.
      request: width, height, samples, bits (of a sample), cell (8 or 16 bits that hold it), signed,
        planar, photometric and syntax, as in DICOM.

    Raises:
      ImageError: if it cannot be decoded, crashes the decoder or keeps it busy for minutes.
    """
    text = json.dumps({**request, "bytes": len(frame)}).encode()
    with _lock:
        worker = _worker()
        timer = threading.Timer(_TIMEOUT_S, worker.kill)
        timer.start()
        try:
            assert worker.stdin is not None and worker.stdout is not None
            worker.stdin.write(struct.pack("<Q", len(text)) + text)
            worker.stdin.write(frame)
            worker.stdin.flush()
            head = worker.stdout.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
            pixels = worker.stdout.read(length) if length > 0 else b""
        except OSError as error:
            _stop()
            raise ImageError(_CRASHED) from error
        finally:
            timer.cancel()
        if len(pixels) != length:
            _stop()
            raise ImageError(_CRASHED)
    if not pixels:
        raise ImageError("damaged compressed data (it cannot be decoded)")
    return pixels


def _worker() -> "subprocess.Popen[bytes]":
    """The running worker of this process; one that was copied by a fork is left to its owner."""
    global _running
    if _running is None or _running[0] != os.getpid() or _running[1].poll() is not None:
        # Its messages are for nobody: the decoders complain about every 12-bit image.
        # -P: the folder of the script is not searched for modules.
        process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        _running = os.getpid(), process
    return _running[1]


def _stop() -> None:
    """Ends the worker, if this process has one."""
    global _running
    if _running is not None and _running[0] == os.getpid():
        process = _running[1]
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was left to write has nowhere to go
                    pipe.close()
    _running = None


atexit.register(_stop)
