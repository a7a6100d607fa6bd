"""Silence while a file is decoded: warnings of decoders may quote what is in it.

Pillow warns through Python, libtiff and others write to the standard error of the process. In a
party's process both would end in a log that others can read.
"""

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Iterator

_STDERR = 2
_mutex = threading.RLock()  # the standard error is one for all threads


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Drops Python's warnings and what is written to standard error within the block."""
    with _mutex, warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            kept = os.dup(_STDERR)
        except OSError:  # a process without standard error
            yield
            return
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, _STDERR)
            os.close(nowhere)
            yield
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)
