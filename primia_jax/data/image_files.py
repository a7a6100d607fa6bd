"""Image files: recognised by content, decoded to grey arrays, fitted to squares, found in folders.

Axis letters: h rows, w columns of a stored image, s side of a fitted one.
"""

import hashlib
import os
import pathlib
import stat
from collections.abc import Sequence

import numpy as np
from PIL import Image

from primia_jax.config.sections import DataConfig
from primia_jax.data import pictures
from primia_jax.data.decoded import (
    MAX_FILE_BYTES,
    Decoded,
    Fitted,
    ImageError,
    float_to_grey,
)
from primia_jax.data.quiet import quietly
from primia_jax.errors import DataError

__all__ = [
    "DICOM_SUFFIXES",
    "IMAGE_SUFFIXES",
    "Decoded",
    "ImageError",
    "decode",
    "fit",
    "fit_decoded",
    "float_to_grey",
    "is_candidate",
    "kind_of",
    "pixel_digest",
    "read_bytes",
    "stack",
    "walk",
]

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf"}
    | {".jpg", ".jpx", ".png", ".tif", ".tiff", ".webp"}
)
DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".dic"})
# Images of formats that are not read: listed as unreadable, so that nothing vanishes.
_OTHER_SUFFIXES = frozenset(
    {".avif", ".eps", ".exr", ".heic", ".heif", ".ico", ".jxl", ".mha", ".mhd", ".nii", ".nrrd"}
    | {".pbm", ".pgm", ".pnm", ".ppm", ".psd", ".svg", ".tga"}
)
_DIGEST_BLOCK = 1 << 20  # pixels that are widened at a time
MIN_SIDE = 2  # a line or a point is no picture

# What archives and desktops leave behind: the macOS resource forks of a zip archive carry image
# suffixes; a DICOMDIR is a DICOM file without an image.
_IGNORED_NAMES = frozenset({"__macosx", "dicomdir", "thumbs.db", "desktop.ini"})
_SNIFFED_BYTES = 132  # the DICOM mark stands at 128 to 131
_FIRST_TAGS = frozenset(
    bytes([element, 0]) for element in (0x00, 0x01, 0x05, 0x08, 0x12, 0x16, 0x18)
)


def kind_of(content: bytes) -> str | None:
    """Kind of file by its first bytes (at least 132, or all): "dicom", "image" or None."""
    if content[128:132] == b"DICM":
        return "dicom"
    if pictures.is_picture(content):
        return "image"
    # Without the preamble, a DICOM file begins with the tag of its first element.
    return "dicom" if content[:2] in (b"\2\0", b"\x08\0") and content[2:4] in _FIRST_TAGS else None


def is_candidate(path: pathlib.Path) -> bool:
    """True if a file is meant as an image: by its suffix, or else by its first bytes."""
    suffixes = {suffix.lower() for suffix in path.suffixes[-2:]}
    if path.suffix.lower() in IMAGE_SUFFIXES | DICOM_SUFFIXES | _OTHER_SUFFIXES:
        return True
    if ".nii" in suffixes:  # .nii.gz
        return True
    try:
        if not path.is_file():  # a named pipe would wait for its writer
            return False
        with path.open("rb") as file:
            return kind_of(file.read(_SNIFFED_BYTES)) is not None
    except OSError:
        return False


def is_ignored(path: pathlib.Path) -> bool:
    """True if a file or folder is hidden or a leftover of an archive or a desktop."""
    return path.name.startswith(".") or path.name.lower() in _IGNORED_NAMES


def walk(root: pathlib.Path) -> list[pathlib.Path]:
    """Every file below `root` that is not ignored, in the order of their names.

    Raises:
      DataError: for a folder that may not be looked into.
    """
    paths = []
    visited = set()  # linked folders are followed, but not in circles
    for folder, folders, files in os.walk(root, onerror=_fail, followlinks=True):
        here = pathlib.Path(folder)
        folders[:] = sorted(name for name in folders if not is_ignored(here / name))
        if (place := os.path.realpath(folder)) in visited:
            folders.clear()
            continue
        visited.add(place)
        paths += [here / name for name in sorted(files) if not is_ignored(here / name)]
    return paths


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of a regular file of at most `MAX_FILE_BYTES`.

    Raises:
      ImageError: for a file that cannot be read, is empty or too large, and for a folder, named
        pipe, socket or device, which is not opened.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = "directory" if stat.S_ISDIR(status.st_mode) else "named pipe, socket or device"
            raise ImageError(f"is a {kind}, not a file")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(f"a file of {status.st_size >> 20} MiB; too large for an image")
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ImageError((error.strerror or str(error)).lower()) from error
    except ValueError as error:  # a NUL in the name
        raise ImageError(str(error)) from error
    if not content:
        raise ImageError("empty file")
    return content


def decode(content: bytes, suffix: str = "", data: DataConfig | None = None) -> Decoded:
    """The image in a file's `content`; `suffix` decides only where the content does not tell.

    Colour becomes luminance (ITU-R 601), transparency is dropped, the EXIF orientation is applied,
    and values keep their depth of 8 or 16 bits. Floating-point images must lie in [0, 1].

    Decoders stay silent: what is wrong with a file is in the error alone.

    Args:
      content: of the whole file.
      suffix: of the file's name, with the dot.
      data: has the settings of the DICOM guard; the default ones if None.

    Raises:
      ImageError: for content that is no image, is damaged, holds several frames, has no finite
        grey values, fewer than `MIN_SIDE` rows or columns or too many pixels, and for DICOM images
        that the guard refuses.
    """
    with quietly():
        decoded = _decode(content, suffix, data or DataConfig())
    check_shape(decoded.pixels)
    return decoded


def _decode(content: bytes, suffix: str, data: DataConfig) -> Decoded:
    kind = kind_of(content)
    if kind == "dicom" or (kind is None and suffix.lower() in DICOM_SUFFIXES):
        from primia_jax.data import dicom  # pydicom takes a while to import

        return dicom.decode(content, data)
    if kind is None and suffix.lower() in _OTHER_SUFFIXES:
        raise ImageError(f"{suffix.lower()} files are not read; save it as PNG or DICOM")
    return Decoded(pictures.decode(content))


def check_shape(pixels: np.ndarray) -> None:
    """ImageError unless `pixels` is [h, w] with at least `MIN_SIDE` rows and columns."""
    if pixels.ndim != 2:
        raise ImageError(f"an array of shape {pixels.shape} is not a grey image")
    if min(pixels.shape) < MIN_SIDE:
        height, width = pixels.shape
        raise ImageError(f"only {width}x{height} pixels; at least {MIN_SIDE}x{MIN_SIDE} are needed")


def fit(pixels: np.ndarray, side: int) -> np.ndarray:
    """[side, side]: the shorter side scaled to `side` (antialiased bilinear), then the centre.

    Scaling and cropping are one resampling of the central square, so that no pixel is rounded
    twice. The depth is kept: 16-bit images are interpolated in float32, which holds them exactly.

    Args:
      pixels: [h, w] uint8 or uint16.
      side: pixels of the result's side.
    """
    check_shape(pixels)
    if pixels.dtype == np.uint8:
        return _resampled(pixels, side)
    levels = _resampled(pixels.astype(np.float32), side)
    return np.clip(np.rint(levels), 0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)


def fit_decoded(decoded: Decoded, side: int) -> Fitted:
    """The square of `fit`, and its pixels that any padding has part in."""
    pixels, padding = fit(decoded.pixels, side), None
    if decoded.padding is not None:
        padding = _resampled(decoded.padding.astype(np.float32), side) > 0
    return Fitted(pixels, padding if padding is not None and padding.any() else None)


def _resampled(pixels: np.ndarray, side: int) -> np.ndarray:
    """The central square of [h, w] uint8 or float32, antialiased bilinear; of the same type."""
    height, width = pixels.shape
    square = min(height, width)
    left, top = (width - square) / 2, (height - square) / 2
    box = (left, top, left + square, top + square)
    picture = Image.fromarray(pixels)
    return np.array(picture.resize((side, side), Image.Resampling.BILINEAR, box))


def stack(images: Sequence[np.ndarray]) -> np.ndarray:
    """[n, s, s, 1] from n ≥ 1 images [s, s]; where depths differ, 8 bits are widened to 16."""
    if any(image.dtype == np.uint16 for image in images):
        images = [i * np.uint16(257) if i.dtype == np.uint8 else i for i in images]
    return np.stack(images)[..., np.newaxis]


def pixel_digest(pixels: np.ndarray) -> str:
    """SHA-256 of the decoded grey values, on a common scale of 16 bits, and of their shape.

    Two files of the same picture agree whatever their metadata or their lossless container, and
    also if one holds the 8-bit values of the other widened to 16 bits.
    """
    height, width = pixels.shape
    state = hashlib.sha256(f"{height}x{width} ".encode())
    rows = max(1, _DIGEST_BLOCK // width)
    for start in range(0, height, rows):
        levels = pixels[start : start + rows].astype("<u2", order="C")
        if pixels.dtype == np.uint8:
            levels *= np.uint16(257)
        state.update(levels.tobytes())
    return state.hexdigest()


def _fail(error: OSError) -> None:
    reason = (error.strerror or str(error)).lower()
    raise DataError(f"folder {error.filename}: {reason}") from error
