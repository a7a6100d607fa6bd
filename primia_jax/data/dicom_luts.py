"""Lookup tables of DICOM headers, in every encoding: modality LUT and VOI LUT.

Source: DICOM PS3.3, C.11.1.1 (Modality LUT), C.11.2.1.1 (VOI LUT).
"""

from typing import NamedTuple

import numpy as np
import pydicom

from primia_jax.data.decoded import ImageError

_BITS = range(2, 17)  # of an entry


class Table(NamedTuple):
    """A lookup table; inputs before its first and after its last map to the nearest entry."""

    first: int  # the input of entries[0]
    bits: int  # of an entry, as declared
    entries: np.ndarray  # [n] uint16

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """The entries (uint16) of numbers, which are rounded."""
        rounded = np.clip(np.rint(inputs), -(2**31), 2**31 - 1).astype(np.int64)
        return self.entries[np.clip(rounded - self.first, 0, len(self.entries) - 1)]


def read_table(item: pydicom.Dataset, *, little_endian: bool, signed: bool) -> Table:
    """The table in an `item` of a LUT sequence.

    Args:
      item: has LUTDescriptor and LUTData, whose VR is US, SS or OW.
      little_endian: byte order of the file.
      signed: True if inputs are signed 16-bit integers, so that a first input above 32767 is
        negative; some devices write it as an unsigned number.

    Raises:
      ImageError: for tables without entries or with too few, and for entries of other sizes than
        declared.
    """
    descriptor = item.get("LUTDescriptor")
    if not isinstance(descriptor, (list, pydicom.multival.MultiValue)) or len(descriptor) != 3:
        raise ImageError("a lookup table without a descriptor of three numbers")
    count, first, bits = int(descriptor[0]) & 0xFFFF or 1 << 16, int(descriptor[1]), descriptor[2]
    if first >= 1 << 15 and signed:
        first -= 1 << 16
    if bits not in _BITS:
        raise ImageError(f"a lookup table with entries of {bits} bits")
    entries = _entries(item.get("LUTData"), count, bits, little_endian)
    if len(entries) < count:
        raise ImageError(f"a lookup table of {len(entries)} entries, where {count} are declared")
    entries = entries[:count]
    if int(entries.max()) >> bits:
        raise ImageError(f"a lookup table with {entries.max()} among its entries of {bits} bits")
    return Table(first, int(bits), entries)


def _entries(data: object, count: int, bits: int, little_endian: bool) -> np.ndarray:
    """[≥ count] uint16, unless there are fewer."""
    if data is None:
        return np.zeros(0, np.uint16)
    if not isinstance(data, bytes):
        return np.atleast_1d(np.asarray(data)).astype(np.int64).astype(np.uint16)
    words = np.frombuffer(data[: len(data) & ~1], "<u2" if little_endian else ">u2")
    if bits > 8 or len(words) >= count:
        return words.astype(np.uint16)
    return words.astype("<u2").view(np.uint8).astype(np.uint16)  # two entries a word
