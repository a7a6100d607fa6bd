"""Reads the tensors of a PyTorch file without PyTorch, and without running anything it contains.

A `.pth` file is a zip archive of one pickle and one raw file per storage. A pickle is a program;
the reader below lets it call nothing but the functions that put tensors together. Sizes that the
file declares are held against its own before memory is taken.
"""

import dataclasses
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from primia_jax.core.storage import check_regular
from primia_jax.errors import CheckpointError

STORAGES: dict[str, Any] = {
    "BFloat16Storage": ml_dtypes.bfloat16,
    "BoolStorage": np.bool_,
    "ByteStorage": np.uint8,
    "CharStorage": np.int8,
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "IntStorage": np.int32,
    "LongStorage": np.int64,
    "ShortStorage": np.int16,
}
_MOST_VIEWS = 4  # bytes of all tensors over bytes of the file: several may view one storage
WRAPPERS = ("state_dict", "model_state_dict", "model")


def read_tensors(path: str) -> dict[str, np.ndarray]:
    """The named tensors of a `.safetensors` file or of a `torch.save`d state dictionary.

    A dictionary that holds the tensors under 'state_dict' and a prefix 'module.' of all names are
    seen through.

    Args:
      path: a file whose name ends in .safetensors, .pth or .pt.

    Returns:
      Arrays by name: float32 for what is stored as floating point of any width.

    Raises:
      CheckpointError: if the file is absent, damaged, of another format, not only tensors, or
        declares tensors that are larger than itself.
    """
    file = check_weights(path)
    try:
        tensors = _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def check_weights(path: str) -> Path:
    """Returns the path of a file that may hold weights; does not read it.

    Raises:
      CheckpointError: if it is absent, no regular file, or has another ending than .safetensors,
        .pth or .pt.
    """
    file = Path(path)
    if file.suffix not in (".safetensors", ".pth", ".pt"):
        raise CheckpointError(f"{path}: weights are read from .safetensors, .pth or .pt files only")
    if not file.exists():
        raise CheckpointError(f"{path}: no such weights file")
    check_regular(file, error=CheckpointError)
    return file


def _safetensors(file: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(file, framework="numpy") as opened:
            return {name: _as_float32(opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: not a readable safetensors file ({error})") from error


def _pickled(file: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(file):
        raise CheckpointError(
            f"{file}: not a zip archive; files saved before PyTorch 1.6, or damaged ones, must be "
            "saved again with torch.save"
        )
    try:
        with zipfile.ZipFile(file) as archive:
            content = _unpickle(archive, str(file))
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle may fail in any way while it is interpreted
        raise CheckpointError(f"{file}: damaged ({type(error).__name__}: {error})") from error
    return _state(content, str(file))


def _unpickle(archive: zipfile.ZipFile, path: str) -> Any:
    pickles = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise CheckpointError(f"{path}: not written by torch.save (no data.pkl inside)")
    size = Path(path).stat().st_size
    declared = sum(member.file_size for member in archive.infolist())
    if declared > size:
        raise CheckpointError(
            f"{path}: {size:,} bytes that declare {declared:,}; save it uncompressed, with "
            "torch.save"
        )
    root = pickles[0].split("/")[0]
    order = "little"
    if f"{root}/byteorder" in archive.namelist():
        order = archive.read(f"{root}/byteorder").decode("ascii").strip()
    with archive.open(pickles[0]) as stream:
        return _TensorUnpickler(
            stream, lambda key: archive.read(f"{root}/data/{key}"), order, path, _MOST_VIEWS * size
        ).load()


def _state(content: Any, path: str) -> dict[str, np.ndarray]:
    """The tensors of what was pickled: a state dictionary, bare or one level down."""
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no dictionary of tensors; save model.state_dict()")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            raise CheckpointError(
                f"{path}: entry {name!r} is not a tensor; save model.state_dict() alone"
            )
    return {name: _as_float32(value) for name, value in content.items()}


def _as_float32(array: np.ndarray) -> np.ndarray:
    floating = array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16
    return np.ascontiguousarray(array, np.float32) if floating else array


@dataclasses.dataclass(frozen=True)
class _Storage:
    """The elements that one or several tensors view."""

    elements: np.ndarray


class _TensorUnpickler(pickle.Unpickler):
    """Interprets a pickle of tensors; refuses every other class or function it names."""

    def __init__(
        self,
        stream: BinaryIO | Any,
        read: Callable[[str], bytes],
        order: str,
        path: str,
        max_bytes: int,
    ) -> None:
        super().__init__(stream)
        self._read = read
        self._order = {"little": "<", "big": ">"}[order]
        self._path = path
        self._bytes_left = max_bytes

    def find_class(self, module: str, name: str) -> Any:
        """Finds what a pickle may call: rebuilding of tensors, ordered dictionaries, storages."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _parameter
        if module == "torch" and name in STORAGES:
            return np.dtype(STORAGES[name])
        raise CheckpointError(
            f"{self._path}: refers to {module}.{name}, which is not run; "
            "save model.state_dict() alone"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage ('storage', dtype, file name, device, number of elements)."""
        kind, dtype, key, _, size = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise ValueError(f"unknown reference {kind!r}")
        content = self._read(str(key))
        if len(content) != size * dtype.itemsize:
            raise ValueError(f"storage {key} has {len(content)} bytes of {size * dtype.itemsize}")
        if self._order == ">" and dtype.itemsize > 1:
            swapped = np.frombuffer(content, np.dtype(f"u{dtype.itemsize}")).byteswap()
            return _Storage(swapped.view(dtype))
        return _Storage(np.frombuffer(content, dtype))

    def _tensor(
        self,
        storage: _Storage,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        *_: Any,
    ) -> np.ndarray:
        """The tensor of `shape` whose steps along each axis are `strides` elements of `storage`."""
        elements = storage.elements
        if len(shape) != len(strides) or min((offset, *shape, *strides)) < 0:
            raise ValueError(f"impossible shape {shape} or strides {strides}")
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides))
        if 0 not in shape and last >= len(elements):
            raise ValueError(f"a tensor of shape {shape} reaches beyond its storage")
        if 0 in shape:
            return np.zeros(shape, elements.dtype)
        self._bytes_left -= math.prod(shape) * elements.itemsize
        if self._bytes_left < 0:
            raise ValueError(f"a tensor of shape {shape} in a file that is much smaller")
        steps = [step * elements.itemsize for step in strides]
        view = np.lib.stride_tricks.as_strided(elements[offset:], shape, steps, writeable=False)
        return view.copy()


def _parameter(tensor: np.ndarray, *_: Any) -> np.ndarray:
    return tensor
