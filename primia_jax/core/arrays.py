"""Files of named arrays: safetensors and NumPy's archives; what cannot be read is one line."""

import pathlib
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from primia_jax.core import storage
from primia_jax.errors import CheckpointError, UserError


def write_tensors(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file in place, to be used within `storage.replacing`.

    Raises:
      OSError: if it cannot be written.
    """
    try:
        save_file(dict(arrays), path, dict(facts) if facts else None)
    except SafetensorError as error:  # a full disk or a limit of the file's size
        raise OSError(storage.reason(error)) from error


def read_tensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and facts of a safetensors file.

    Raises:
      CheckpointError: if it is missing, damaged or no regular file.
    """
    storage.check_regular(path, error=CheckpointError)
    try:
        with safe_open(path, "numpy") as file:
            facts = dict(file.metadata() or {})
        return load_file(path), facts
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({storage.reason(error)})") from error


def read_archive(
    path: pathlib.Path, error: type[UserError] = CheckpointError
) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file.

    Raises:
      UserError: if it is missing, damaged or no regular file.
    """
    storage.check_regular(path, error=error)
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (
        *(OSError, EOFError, ValueError, TypeError, LookupError, SyntaxError, RecursionError),
        *(zipfile.BadZipFile, zlib.error, NotImplementedError, AttributeError),
    ) as failure:
        raise error(f"{path} cannot be read ({storage.reason(failure)})") from failure
