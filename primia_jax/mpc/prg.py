"""Pseudo-random ring elements from ChaCha20 (RFC 8439) under a 256-bit key of the operating system.

The whole key enters the cipher. Streams of one key are told apart by a 96-bit nonce. On a CPU the
bytes come from OpenSSL; on accelerators, and while JAX traces, from the same cipher written in JAX.

Axis letters: m elements, b blocks of 16 words.
"""

import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from primia_jax.errors import ProtocolError
from primia_jax.mpc import ring

SEED_BYTES = 32
_CHUNK = 1 << 15  # elements: 256 KB, which stay in the processor's cache
_CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)  # "expand 32-byte k"
_COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
_DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def new_seed() -> np.ndarray:
    """uint8 [32]: a fresh key from the operating system."""
    return np.frombuffer(os.urandom(SEED_BYTES), np.uint8)


def expand(seed: Any, n_elements: int, nonce: int = 0) -> Any:
    """uint64 [m]: the first 8·m bytes of the key stream, little-endian, from block counter 0.

    Args:
      seed: uint8 [32], consumed together with `nonce`: never expand both twice for two purposes.
      n_elements: m.
      nonce: below 2^96.
    """
    _check_seed(seed)
    on_cpu = not isinstance(seed, jax.core.Tracer) and jax.default_backend() == "cpu"
    if on_cpu:
        pieces = [piece.copy() for piece in chunks(np.asarray(seed), n_elements, nonce)]
        return np.concatenate(pieces) if pieces else np.zeros(0, np.uint64)
    with ring.x64():
        return _expand_jax(jnp.asarray(seed), n_elements, nonce)


def _check_seed(seed: Any) -> None:
    if seed.shape != (SEED_BYTES,):
        raise ProtocolError(f"a seed has {SEED_BYTES} bytes, not shape {seed.shape}")


def chunks(seed: np.ndarray, n_elements: int, nonce: int = 0) -> Iterator[np.ndarray]:
    """The same elements as `expand` gives, piece by piece, on a CPU.

    Each piece is overwritten by the next: a stream as long as a network never stands in memory.
    """
    _check_seed(seed)
    counter_and_nonce = bytes(4) + nonce.to_bytes(12, "little")
    cipher = Cipher(algorithms.ChaCha20(seed.tobytes(), counter_and_nonce), mode=None).encryptor()
    zeros = np.zeros(8 * min(_CHUNK, n_elements), np.uint8)
    stream = np.empty_like(zeros)
    for start in range(0, n_elements, _CHUNK):
        size = 8 * min(_CHUNK, n_elements - start)
        cipher.update_into(zeros[:size].data, stream[:size].data)
        yield stream[:size].view("<u8")


def _expand_jax(seed: Any, n_elements: int, nonce: int) -> Any:
    key = jax.lax.bitcast_convert_type(seed.reshape(8, 4), jnp.uint32)
    nonce_words = [(nonce >> (32 * i)) & 0xFFFFFFFF for i in range(3)]
    n_blocks = -(-n_elements // 8)
    words = chacha_blocks(key, jnp.arange(n_blocks, dtype=jnp.uint32), nonce_words)
    pairs = jnp.stack(words, -1).reshape(n_blocks * 8, 2)
    return jax.lax.bitcast_convert_type(pairs, jnp.uint64)[:n_elements]


def chacha_blocks(key: Any, counters: Any, nonce: Any, rounds: int = 20) -> list[Any]:
    """ChaCha blocks (RFC 8439 §2.3; fewer rounds for the reduced variants).

    Args:
      key: uint32 [8].
      counters: uint32 [b], the block counters.
      nonce: three 32-bit words.
      rounds: 8, 12 or 20.

    Returns:
      16 arrays uint32 [b], the words of each block.
    """
    zero = jnp.zeros_like(counters)
    initial = [
        *(zero + jnp.uint32(word) for word in _CONSTANTS),
        *(zero + key[i] for i in range(8)),
        counters,
        *(zero + jnp.uint32(word) for word in nonce),
    ]
    state = jax.lax.fori_loop(0, rounds // 2, lambda _, words: _double_round(words), initial)
    return [word + start for word, start in zip(state, initial)]


def _double_round(state: list[Any]) -> list[Any]:
    words = list(state)
    for a, b, c, d in (*_COLUMNS, *_DIAGONALS):
        words[a] += words[b]
        words[d] = _rotate(words[d] ^ words[a], 16)
        words[c] += words[d]
        words[b] = _rotate(words[b] ^ words[c], 12)
        words[a] += words[b]
        words[d] = _rotate(words[d] ^ words[a], 8)
        words[c] += words[d]
        words[b] = _rotate(words[b] ^ words[c], 7)
    return words


def _rotate(words: Any, bits: int) -> Any:
    return (words << bits) | (words >> (32 - bits))
