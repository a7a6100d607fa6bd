"""Image files: recognised by content, decoded to grey arrays, fitted to squares, found in folders.

Axis letters: h rows, w columns of a stored image, s side of a fitted one.
"""

import hashlib
import io
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from primia_jax.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"})
DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})
MIN_SIDE = 2  # a line or a point is no picture

# What archives and desktops leave behind: the macOS resource forks of a zip archive carry image
# suffixes; a DICOMDIR is a DICOM file without an image.
_IGNORED_NAMES = frozenset({"__macosx", "dicomdir", "thumbs.db", "desktop.ini"})
_IMAGE_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*")
_SNIFFED_BYTES = 132  # the DICOM mark stands at 128 to 131
_GREY_16 = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})


class ImageError(Exception):
    """Why one image cannot be used; the text completes `NAME: …`."""


class Decoded(NamedTuple):
    """One image and what its file says about its origin."""

    pixels: np.ndarray  # [h, w] uint8 or uint16; the dtype's range is black to white
    patient: str | None = None  # pseudonym from a DICOM header
    institution: str | None = None  # from a DICOM header


def kind_of(content: bytes) -> str | None:
    """What a file's first bytes (at least 132, or all) say it is: "dicom", "image" or None."""
    if content[128:132] == b"DICM":
        return "dicom"
    return "image" if content.startswith(_IMAGE_SIGNATURES) else None


def is_candidate(path: pathlib.Path) -> bool:
    """Whether a file is meant as an image: by its suffix, or else by its first bytes."""
    if path.suffix.lower() in IMAGE_SUFFIXES | DICOM_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return kind_of(file.read(_SNIFFED_BYTES)) is not None
    except OSError:
        return False


def is_ignored(path: pathlib.Path) -> bool:
    """Whether a file or folder is hidden or a leftover of an archive or a desktop."""
    return path.name.startswith(".") or path.name.lower() in _IGNORED_NAMES


def walk(root: pathlib.Path) -> list[pathlib.Path]:
    """Every file below `root` that is not ignored, in the order of their names.

    Raises:
      DataError: for a folder that may not be looked into.
    """
    found = []
    seen = set()  # linked folders are followed, but not in circles
    for folder, folders, files in os.walk(root, onerror=_fail, followlinks=True):
        here = pathlib.Path(folder)
        folders[:] = sorted(name for name in folders if not is_ignored(here / name))
        if (place := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(place)
        found += [here / name for name in sorted(files) if not is_ignored(here / name)]
    return found


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of a file; ImageError for one that cannot be read or is empty."""
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ImageError((error.strerror or str(error)).lower()) from error
    except ValueError as error:  # a NUL in the name
        raise ImageError(str(error)) from error
    if not content:
        raise ImageError("empty file")
    return content


def decode(content: bytes, suffix: str = "") -> Decoded:
    """The image in a file's `content`; `suffix` decides only where the content does not tell.

    Colour becomes luminance (ITU-R 601), transparency is dropped, the EXIF orientation is applied,
    and grey values keep their depth of 8 or 16 bits. Floating-point images must lie in [0, 1].

    Raises:
      ImageError: for content that is no image, is damaged, holds several frames, has no finite
        grey values or fewer than `MIN_SIDE` rows or columns.
    """
    kind = kind_of(content)
    if kind == "dicom" or (kind is None and suffix.lower() in DICOM_SUFFIXES):
        from primia_jax.data import dicom  # pydicom takes a while to import

        decoded = dicom.decode(content)
    else:
        decoded = Decoded(_decode_picture(content))
    check_shape(decoded.pixels)
    return decoded


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
    height, width = pixels.shape
    square = min(height, width)
    left, top = (width - square) / 2, (height - square) / 2
    box = (left, top, left + square, top + square)
    if pixels.dtype == np.uint8:
        scaled = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR, box)
        return np.array(scaled)
    picture = Image.fromarray(pixels.astype(np.float32))
    levels = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR, box))
    return np.clip(np.rint(levels), 0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)


def stack(images: Sequence[np.ndarray]) -> np.ndarray:
    """[n, s, s, 1] from n ≥ 1 images [s, s]; where depths differ, 8 bits are widened to 16."""
    if any(image.dtype == np.uint16 for image in images):
        images = [i * np.uint16(257) if i.dtype == np.uint8 else i for i in images]
    return np.stack(images)[..., np.newaxis]


def pixel_digest(pixels: np.ndarray) -> str:
    """SHA-256 of the decoded grey values and their shape.

    Two files of the same picture agree whatever their metadata or their lossless container.
    """
    header = f"{pixels.shape[0]}x{pixels.shape[1]} {pixels.dtype.name} ".encode()
    state = hashlib.sha256(header)
    state.update(np.ascontiguousarray(pixels).data)
    return state.hexdigest()


def float_to_grey(values: np.ndarray) -> np.ndarray:
    """[h, w] uint16 from floating-point grey values, which must be finite and lie in [0, 1]."""
    if not np.isfinite(values).all():
        raise ImageError("grey values that are not finite (NaN or infinity)")
    if values.min(initial=0) < 0 or values.max(initial=0) > 1:
        raise ImageError("floating-point grey values outside [0, 1]: black and white are undefined")
    return np.rint(values.astype(np.float64) * 65535).astype(np.uint16)


def _decode_picture(content: bytes) -> np.ndarray:
    """[h, w] uint8 or uint16, by Pillow."""
    try:
        with Image.open(io.BytesIO(content)) as stored:
            # Some cameras append a preview as a second frame (MPO); the first is the photograph.
            frames = 1 if stored.format == "MPO" else getattr(stored, "n_frames", 1)
            if frames != 1:
                raise ImageError(f"{frames} frames; only single images are read")
            picture = ImageOps.exif_transpose(stored)
            picture.load()
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError("not an image in a known format") from error
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise ImageError(f"damaged image ({_one_line(error)})") from error
    if picture.mode in _GREY_16:
        values = np.asarray(picture)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ImageError("grey values outside 0 to 65535")
        return values.astype(np.uint16)
    if picture.mode == "F":
        return float_to_grey(np.asarray(picture))
    try:
        # A palette is looked up first: its own conversion to grey mistakes transparency.
        colour = picture.convert("RGB") if picture.mode in ("P", "PA") else picture
        return np.array(colour.convert("L"))
    except ValueError as error:
        raise ImageError(f"colour mode {picture.mode} cannot be turned to grey") from error


def _fail(error: OSError) -> None:
    reason = (error.strerror or str(error)).lower()
    raise DataError(f"folder {error.filename}: {reason}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
