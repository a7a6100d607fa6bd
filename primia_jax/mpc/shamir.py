"""Shamir's sharing of seeds and private keys: any t of n shares open a secret, t - 1 tell nothing.

A secret is a row of elements of GF(2^m), each the constant term of a polynomial of degree t - 1
whose other coefficients are uniform; a share is its values at one point x != 0 (A. Shamir, "How to
share a secret", 1979). With m = 16 a secret of 32 bytes is two elements of GF(2^128), and a share
is as long: GF(2^128) is a vector space of dimension 8 over its subfield GF(2^16), and as the points
lie in the subfield, sharing its elements and sharing their eight coordinates is the same thing.
Products of 16 bits are a table's matter, and whole arrays of them NumPy's.

Axis letters: s secrets, n shares, t threshold, w words of a secret.
"""

import dataclasses
import functools
import os

import numpy as np

from primia_jax.errors import ProtocolError


@dataclasses.dataclass(frozen=True)
class Field:
    """GF(2^bits), as polynomials over GF(2) modulo one of which x is a primitive element."""

    bits: int
    polynomial: int

    @property
    def order(self) -> int:
        """Number of its elements."""
        return 1 << self.bits

    @functools.cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray]:
        """(exponents of x, twice over; logarithms), int32; logarithm 0 is of no use."""
        last = self.order - 1
        powers, value = np.empty(2 * last, np.int32), 1
        for i in range(last):
            powers[i] = powers[last + i] = value
            value <<= 1
            if value & self.order:
                value ^= self.polynomial
        logarithms = np.zeros(self.order, np.int32)
        logarithms[powers[:last]] = np.arange(last)
        return powers, logarithms

    def multiply(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The products of two arrays of elements, uint16, broadcast."""
        powers, logarithms = self._tables
        product = powers[logarithms[a] + logarithms[b]]
        return np.where((a == 0) | (b == 0), 0, product).astype(np.uint16)

    def inverse(self, a: np.ndarray) -> np.ndarray:
        """1 / a for elements other than 0, uint16."""
        powers, logarithms = self._tables
        return powers[self.order - 1 - logarithms[a]].astype(np.uint16)

    def random(self, *shape: int) -> np.ndarray:
        """Uniform elements from the operating system, uint16 [shape]."""
        count = int(np.prod(shape))
        words = np.frombuffer(os.urandom(2 * count), "<u2").astype(np.uint16)
        return (words & np.uint16(self.order - 1)).reshape(shape)


GF16 = Field(16, 0x1100B)  # x^16 + x^12 + x^3 + x + 1


def share_words(
    secrets: np.ndarray, points: np.ndarray, threshold: int, field: Field = GF16
) -> np.ndarray:
    """uint16 [s w] -> uint16 [n s w]: each secret's share at each of the points [n].

    Raises:
      ProtocolError: for a point that is 0 or comes twice, or fewer points than the threshold.
    """
    points = _checked(points, field)
    if not 1 <= threshold <= len(points):
        raise ProtocolError(f"{len(points)} shares cannot be made so that {threshold} are needed")
    x = points[:, None, None]
    values = np.zeros((len(points), *secrets.shape), np.uint16)
    for coefficients in field.random(threshold - 1, *secrets.shape):  # Horner's rule
        values = field.multiply(values ^ coefficients, x)
    return values ^ secrets


def reconstruct_words(points: np.ndarray, shares: np.ndarray, field: Field = GF16) -> np.ndarray:
    """Points [t], shares uint16 [t ...] -> the secrets uint16 [...]: Lagrange's formula at 0.

    Whether there are as many shares as the threshold, and right ones, this cannot tell.

    Raises:
      ProtocolError: for a point that is 0 or comes twice, or none.
    """
    points = _checked(points, field)
    if not len(points) or len(points) != len(shares):
        raise ProtocolError(f"{len(points)} points of {len(shares)} shares open nothing")
    differences = points[:, None] ^ points[None, :]
    np.fill_diagonal(differences, 1)
    factors = field.multiply(points[None, :], field.inverse(differences))
    np.fill_diagonal(factors, 1)
    weights = functools.reduce(field.multiply, factors.T)
    terms = field.multiply(shares, weights.reshape(-1, *[1] * (shares.ndim - 1)))
    return np.bitwise_xor.reduce(terms, axis=0)


def share(secrets: np.ndarray, points: np.ndarray, threshold: int) -> np.ndarray:
    """uint8 [s 2w] -> uint8 [n s 2w]: shares of secrets of whole 16-bit words, over GF(2^16)."""
    words = np.ascontiguousarray(secrets).view("<u2").astype(np.uint16)
    return share_words(words, points, threshold).astype("<u2").view(np.uint8)


def reconstruct(points: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Points [t], shares uint8 [t ... 2w] -> uint8 [... 2w], the inverse of `share`."""
    words = np.ascontiguousarray(shares).view("<u2").astype(np.uint16)
    return reconstruct_words(points, words).astype("<u2").view(np.uint8)


def _checked(points: np.ndarray, field: Field) -> np.ndarray:
    points = np.asarray(points)
    valid = points.ndim == 1 and np.all((points > 0) & (points < field.order))
    if not valid or len(np.unique(points)) != len(points):
        raise ProtocolError("points of shares must differ from one another and from 0")
    return points.astype(np.uint16)
