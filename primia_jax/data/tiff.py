"""TIFF files that Pillow does not read as they are, rewritten so that it does.

Source: TIFF 6.0 (1992), sections 2 and 8.
"""

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from primia_jax.data.decoded import ImageError

_WIDTH, _BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES = 256, 258, 262, 274, 277
_PLANAR, _PREDICTOR, _TILE_WIDTH, _EXTRA, _FORMAT = 284, 317, 322, 338, 339
_SHORT, _LONG = 3, 4
_SIGNED, _FLOAT = 2, 3  # values of `_FORMAT`
_MAX_SIDE = 1 << 31  # so that twice a width can be written


class Rewritten(NamedTuple):
    """A file that Pillow reads, and what its pixels have to go through afterwards."""

    content: bytes
    grey_and_alpha: bool = False  # a row holds grey and alpha by turns
    differences: bool = False  # along a row, a sample is the difference to the one before
    white_is_zero: bool = False
    orientation: int = 1  # as in EXIF; taken out of the file


class _Directory(NamedTuple):
    order: str  # "<" or ">"
    position: int  # of the first entry
    entries: tuple[bytes, ...]  # 12 bytes each
    values: Mapping[int, int]  # first value of each tag with SHORT or LONG values


def rewritten(content: bytes) -> Rewritten:
    """`content` with 16-bit grey images in the one layout that Pillow knows.

    A 16-bit WhiteIsZero image is declared BlackIsZero; 16-bit grey with an alpha channel is
    declared grey of twice the width. Anything else is returned as it is.
    """
    directory = _read_directory(content)
    if directory is None:
        return Rewritten(content)
    tags = directory.values
    grey_16 = (
        tags.get(_PHOTOMETRIC) in (0, 1)
        and tags.get(_BITS) == 16
        and tags.get(_FORMAT, 1) == 1
        and tags.get(_SAMPLES, 1) in (1, 2)
    )
    if not grey_16:
        return Rewritten(content)
    changes = {_PHOTOMETRIC: 1}
    removed = {_ORIENTATION}
    with_alpha = tags.get(_SAMPLES, 1) == 2
    if with_alpha:
        sides = [tags[tag] for tag in (_WIDTH, _TILE_WIDTH) if tag in tags]
        odd_layout = tags.get(_PLANAR, 1) != 1 or (_PREDICTOR in tags and _TILE_WIDTH in tags)
        if odd_layout or max(sides, default=0) >= _MAX_SIDE:
            return Rewritten(content)
        changes.update({_SAMPLES: 1, _BITS: 16, _PREDICTOR: 1})
        changes.update({tag: 2 * tags[tag] for tag in (_WIDTH, _TILE_WIDTH) if tag in tags})
        removed |= {_EXTRA, _FORMAT}
    return Rewritten(
        _with_entries(content, directory, changes, removed),
        grey_and_alpha=with_alpha,
        differences=with_alpha and tags.get(_PREDICTOR) == 2,
        white_is_zero=tags[_PHOTOMETRIC] == 0,
        orientation=tags.get(_ORIENTATION, 1),
    )


def check_samples(tags: Mapping[int, Any]) -> None:
    """Refuses integers whose black and white are undefined: signed ones, and those of 32 bits.

    Args:
      tags: of the image's directory, as Pillow reads them; empty for other formats.

    Raises:
      ImageError: for such samples.
    """
    formats, bits = (
        np.atleast_1d(tags.get(tag, default)) for tag, default in ((_FORMAT, 1), (_BITS, 1))
    )
    if (formats == _SIGNED).any():
        raise ImageError("signed grey values: black and white are undefined; save them unsigned")
    if (formats != _FLOAT).all() and (bits > 16).any():
        raise ImageError(
            f"integers of {bits.max()} bits: black and white are undefined; save 8 or 16 bits"
        )


def restored(pixels: np.ndarray, file: Rewritten) -> np.ndarray:
    """[h, w] uint16: the grey values of the image whose rewritten file gave `pixels`."""
    if file.grey_and_alpha:
        pixels = pixels[:, ::2]
    if file.differences:
        pixels = np.cumsum(pixels, axis=1, dtype=np.uint16)
    return np.iinfo(np.uint16).max - pixels if file.white_is_zero else pixels


def _read_directory(content: bytes) -> _Directory | None:
    """The first directory of a classic TIFF file; None for another or a damaged one."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(content[:4])
    if order is None:
        return None
    try:
        start = struct.unpack_from(order + "I", content, 4)[0]
        count = struct.unpack_from(order + "H", content, start)[0]
    except struct.error:
        return None
    position = start + 2
    if position + 12 * count > len(content):
        return None
    entries = tuple(content[position + 12 * i : position + 12 * (i + 1)] for i in range(count))
    values = {}
    for entry in entries:
        tag, kind, number = struct.unpack_from(order + "HHI", entry)
        if kind not in (_SHORT, _LONG) or not number:
            continue
        code, size = (order + "H", 2) if kind == _SHORT else (order + "I", 4)
        if number * size <= 4:
            values[tag] = struct.unpack_from(code, entry, 8)[0]
        else:
            at = struct.unpack_from(order + "I", entry, 8)[0]
            if at + size <= len(content):
                values[tag] = struct.unpack_from(code, content, at)[0]
    return _Directory(order, position, entries, values)


def _with_entries(
    content: bytes, directory: _Directory, changes: Mapping[int, int], removed: set[int]
) -> bytes:
    """`content` with a directory whose tags in `changes` hold one new value each."""
    order = directory.order
    kept = []
    for entry in directory.entries:
        tag = struct.unpack_from(order + "H", entry)[0]
        if tag in removed:
            continue
        if tag in changes:
            entry = struct.pack(order + "HHII", tag, _LONG, 1, changes[tag])
        kept.append(entry)
    start, end = directory.position - 2, directory.position + 12 * len(directory.entries)
    table = struct.pack(order + "H", len(kept)) + b"".join(kept) + content[end : end + 4]
    return content[:start] + table + content[start + len(table) :]
