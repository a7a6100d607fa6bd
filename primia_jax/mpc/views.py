"""Tests of a party's whole view: its bits are uniform, in pairs and jointly, over many copies.

A run over a batch of copies of one input is as many independent runs: each copy has masks of its
own. If the protocol hides the input, all that a party receives, opens and draws is uniform and
independent, whatever the input: so are its bits over the copies. Three tests, from what is cheap to
see to what only all messages together tell:

- each bit is balanced;
- no two bits are correlated, of one message, of two, or of two diagnoses;
- no sum modulo 2 of any number of bits is constant: the matrix of bits has full rank over GF(2).
  Masks are added modulo 2^n, so that lowest bits are linear: a missing or repeated mask, or one
  that is told from other messages, leaves a sum without any mask.

Not seen: relations of three and more bits that hold only most of the time, and those of higher
degree (of products). An input of zeros makes what is linear in the network exact, too.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from primia_jax.errors import ProtocolError

FEWEST_COPIES = 256
_FALSE_ALARM = 1e-12  # of a bit, or a pair of bits
_SPARE_COPIES = 64  # random bits of so many more copies than bits are independent but for 2^-64


@dataclasses.dataclass(frozen=True)
class Bits:
    """Bits of one message or word for each copy.

    Attributes:
      name: of the message.
      planes: bool [bits, copies].
      linear: which of the planes enter the test of rank, bool [bits].
    """

    name: str
    planes: np.ndarray
    linear: np.ndarray


def bits_of(name: str, words: Any, copies: int) -> Bits | None:
    """The bits of an array for each copy; None if it is not one of so many copies.

    Of each word four bits are taken, the lowest and the highest among them; these two are the
    linear ones.

    Args:
      name: for messages.
      words: unsigned, with the copies last, or packed bits likewise.
      copies: of the input.
    """
    flat = np.asarray(words).reshape(-1)
    if not flat.size:
        return None
    if flat.dtype == np.uint8 and flat.size < copies and 8 * flat.size % copies == 0:
        flat = np.unpackbits(flat, bitorder="little")
    if flat.size % copies:
        return None
    rows = flat.reshape(-1, copies)
    width = max(1, int(rows.max()).bit_length())
    chosen = sorted({0, 1 % width, width // 2, width - 1})
    shifts = np.asarray(chosen, rows.dtype)[:, None, None]
    planes = ((rows[None] >> shifts) & rows.dtype.type(1)).astype(bool)
    linear = np.isin(chosen, (0, width - 1))
    return Bits(name, planes.reshape(-1, copies), np.repeat(linear, len(rows)))


def check_balanced(view: Sequence[Bits]) -> None:
    """Each bit is 0 as often as 1.

    Raises:
      ProtocolError: naming a message of which one is not.
    """
    for bits in view:
        copies = bits.planes.shape[1]
        limit = stats.norm.isf(_FALSE_ALARM / 2) / np.sqrt(copies)
        if np.abs(2 * bits.planes.mean(1) - 1).max() > limit:
            raise ProtocolError(f"a bit is not masked: {bits.name}")


def check_pairs(view: Sequence[Bits]) -> None:
    """No two bits tell anything about one another.

    Raises:
      ProtocolError: naming two messages of which two do.
    """
    if not view:
        return
    signs = np.concatenate([bits.planes for bits in view]).astype(np.float32) * 2 - 1
    names = [bits.name for bits in view for _ in bits.planes]
    copies = signs.shape[1]
    correlation = np.abs(np.triu(signs @ signs.T, 1)) / copies
    limit = stats.norm.isf(_FALSE_ALARM / 2) / np.sqrt(copies)
    first, second = np.unravel_index(correlation.argmax(), correlation.shape)
    if correlation[first, second] > limit:
        raise ProtocolError(f"two bits are masked by one mask: {names[first]}, and {names[second]}")


def check_rank(view: Sequence[Bits]) -> None:
    """No sum modulo 2 of linear bits is constant.

    Raises:
      ProtocolError: naming the messages of one that is; or if there are too few copies to tell.
    """
    rows = [(bits.name, plane) for bits in view for plane in bits.planes[bits.linear]]
    if not rows:
        return
    copies = len(rows[0][1])
    if len(rows) + _SPARE_COPIES > copies:
        raise ProtocolError(
            f"{len(rows)} bits of a view need {len(rows) + _SPARE_COPIES} copies, not {copies}"
        )
    # Gaussian elimination, one integer a row; the row of ones makes constants dependent as well.
    basis: dict[int, tuple[int, int]] = {}
    for index, (_, plane) in enumerate([("", np.ones(copies, bool)), *rows]):
        row, members = int.from_bytes(np.packbits(plane).tobytes()), 1 << index
        while row:
            pivot = row.bit_length()
            if pivot not in basis:
                basis[pivot] = (row, members)
                break
            row, members = row ^ basis[pivot][0], members ^ basis[pivot][1]
        else:
            names = [name for i, (name, _) in enumerate(rows, 1) if members >> i & 1]
            raise ProtocolError(
                f"messages together are not masked: {'; '.join(dict.fromkeys(names))}"
            )
