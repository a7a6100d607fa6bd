"""Decoded images, the reasons why a file gives none, and the largest image that is decoded.

Axis letters: h rows, w columns, s side of a square.
"""

from typing import NamedTuple

import numpy as np

from primia_jax.core import names

MAX_PIXELS = 80_000_000  # five times the largest radiograph
MAX_FILE_BYTES = 8 * MAX_PIXELS
MAX_RATIO = 100  # decoded bytes over stored ones, for images of more than `_SMALL_BYTES`
_SMALL_BYTES = 1 << 26


class ImageError(Exception):
    """Why one image cannot be used; the text, one line, completes `NAME: …`."""

    def __init__(self, text: str):
        super().__init__(names.printable(" ".join(text.split()))[:300])


class Decoded(NamedTuple):
    """One image and what its file says about its origin."""

    pixels: np.ndarray  # [h, w] uint8 or uint16; the dtype's range is black to white
    patient: str | None = None  # pseudonym from a DICOM header
    institution: str | None = None  # from a DICOM header
    remarks: tuple[str, ...] = ()  # doubts whether the image suits the model (`dicom_guard`)
    padding: np.ndarray | None = None  # [h, w] bool: pixels outside the picture, if there are any


class Fitted(NamedTuple):
    """One image as a square."""

    pixels: np.ndarray  # [s, s] uint8 or uint16
    padding: np.ndarray | None = None  # [s, s] bool: pixels that any padding has part in


def check_size(height: int, width: int, pixel_bytes: int, stored_bytes: int) -> None:
    """Refuses an image by its declared size, before any decoder allocates memory for it.

    Args:
      height: declared rows.
      width: declared columns.
      pixel_bytes: declared bytes a pixel, all samples together.
      stored_bytes: bytes that hold the image in its file.

    Raises:
      ImageError: for more than `MAX_PIXELS` pixels, or for a large image whose file is more than
        `MAX_RATIO` times smaller: no radiograph compresses so well.
    """
    if height < 1 or width < 1:
        raise ImageError(f"an image of {width}x{height} pixels")
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"{width}x{height} pixels; at most {MAX_PIXELS // 10**6} million are decoded"
        )
    size = height * width * pixel_bytes
    if size > max(_SMALL_BYTES, MAX_RATIO * stored_bytes):
        raise ImageError(
            f"{stored_bytes} bytes that claim to hold {size} bytes of pixels; not decoded"
        )


def float_to_grey(values: np.ndarray) -> np.ndarray:
    """[h, w] uint16 from floating-point grey values, which must be finite and lie in [0, 1]."""
    if not np.isfinite(values).all():
        raise ImageError("grey values that are not finite (NaN or infinity)")
    if values.min(initial=0) < 0 or values.max(initial=0) > 1:
        raise ImageError("floating-point grey values outside [0, 1]: black and white are undefined")
    return np.rint(values.astype(np.float64) * 65535).astype(np.uint16)


def one_line(error: Exception) -> str:
    """The text of `error` on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
