"""Pseudo-random ring elements from ChaCha20 (RFC 8439) under a 256-bit key of the operating system.

The whole key enters the cipher. Streams of one key are told apart by a 96-bit nonce. On a CPU the
bytes come from OpenSSL; on accelerators, and while JAX traces, from the same cipher written in JAX.
Trees of seeds (`mpc.dpf`, `mpc.dcf`) grow by single blocks of it under 128-bit keys.

Axis letters: m elements, b blocks of 16 words.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from jax import lax

from primia_jax.errors import ProtocolError
from primia_jax.mpc import observation, ring

SEED_BYTES = 32
_BLOCK_BYTES = 64
_CHUNK = 1 << 15  # elements: 256 KB, which stay in the processor's cache
_CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)  # "expand 32-byte k"
_TREE_CONSTANTS = (0x61707865, 0x3120646E, 0x79622D36, 0x6B206574)  # "expand 16-byte k"
_ROLE_SHIFT = 8  # levels of a tree lie below it
# A seed in a tree has 126 bits, and two of its own travel in the places that it leaves free. Who
# attacks K trees at once finds one of their seeds K times sooner: 126 - log2(K) bits of security.
SEED_BITS = 126
SEED_MASK = np.uint32(0xFFFFFFFC)  # of a seed's first word
_UNROLLED_ROUNDS = 12
CHUNKS = (1 << 18, 1 << 15, 1 << 12)  # elements that a tree's kernels are compiled for
_COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
_DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def new_seed() -> np.ndarray:
    """uint8 [32]: a fresh key from the operating system."""
    return np.frombuffer(os.urandom(SEED_BYTES), np.uint8)


def derived(seed: Any, purpose: bytes) -> np.ndarray:
    """uint8 [32]: a seed for one purpose, by HKDF-Expand (RFC 5869) with SHA-256.

    A seed that others are derived from is expanded in no other way.
    """
    _check_seed(seed)
    derivation = HKDFExpand(hashes.SHA256(), SEED_BYTES, purpose)
    return np.frombuffer(derivation.derive(np.asarray(seed).tobytes()), np.uint8)


def expand(seed: Any, n_elements: int, nonce: int = 0, words: Any = np.uint64) -> Any:
    """Words [m]: the first bytes of the key stream, little-endian, from block counter 0.

    Args:
      seed: uint8 [32], consumed together with `nonce`: never expand both twice for two purposes.
      n_elements: m.
      nonce: below 2^96.
      words: their type, uint64 or uint32.
    """
    _check_seed(seed)
    on_cpu = not isinstance(seed, jax.core.Tracer) and jax.default_backend() == "cpu"
    if on_cpu:
        stream = np.empty(n_elements, little(words))
        for _ in _encrypt(np.asarray(seed), nonce, stream.view(np.uint8)):
            pass
        return stream
    if not isinstance(seed, jax.core.Tracer):
        observation.consumed(seed, nonce)
    with ring.x64():
        return _expand_jax(jnp.asarray(seed), n_elements, nonce, words)


def little(words: Any) -> np.dtype:
    """The type of words of the key stream, whatever the machine's order of bytes."""
    return np.dtype(words).newbyteorder("<")


def _check_seed(seed: Any) -> None:
    if seed.shape != (SEED_BYTES,):
        raise ProtocolError(f"a seed has {SEED_BYTES} bytes, not shape {seed.shape}")


def chunks(seed: np.ndarray, n_elements: int, nonce: int = 0) -> Iterator[np.ndarray]:
    """The same elements as `expand` gives, piece by piece, on a CPU.

    Each piece is overwritten by the next: a stream as long as a network never stands in memory.
    """
    _check_seed(seed)
    stream = np.empty(8 * min(_CHUNK, n_elements), np.uint8)
    for size in _encrypt(seed, nonce, stream, 8 * n_elements):
        yield stream[:size].view("<u8")


def _encrypt(
    seed: np.ndarray, nonce: int, out: np.ndarray, n_bytes: int | None = None
) -> Iterator[int]:
    """The key stream in pieces: one behind the other in `out`, or, if `n_bytes` is given, each over
    the one before. Yields the size of each piece."""
    cipher = encryptor(seed, nonce)
    total = len(out) if n_bytes is None else n_bytes
    zeros = np.zeros(min(8 * _CHUNK, total), np.uint8)
    for start in range(0, total, 8 * _CHUNK):
        size = min(8 * _CHUNK, total - start)
        at = start if n_bytes is None else 0
        cipher.update_into(zeros[:size].data, out[at : at + size].data)
        yield size


def encryptor(seed: np.ndarray, nonce: int = 0) -> Any:
    """The cipher under `seed` from block counter 0: what it makes of zeros is the key stream."""
    _check_seed(seed)
    observation.consumed(seed, nonce)
    counter_and_nonce = bytes(4) + nonce.to_bytes(12, "little")
    return Cipher(algorithms.ChaCha20(seed.tobytes(), counter_and_nonce), mode=None).encryptor()


def _expand_jax(seed: Any, n_elements: int, nonce: int, words: Any) -> Any:
    key = lax.bitcast_convert_type(seed.reshape(8, 4), jnp.uint32)
    nonce_words = [(nonce >> (32 * i)) & 0xFFFFFFFF for i in range(3)]
    n_bytes = np.dtype(words).itemsize * n_elements
    counters = jnp.arange(-(-n_bytes // _BLOCK_BYTES), dtype=jnp.uint32)
    stream = jnp.stack(chacha_blocks(key, counters, nonce_words), -1).reshape(-1)
    if np.dtype(words).itemsize == 8:
        stream = lax.bitcast_convert_type(stream.reshape(-1, 2), jnp.uint64)
    return stream[:n_elements]


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
    state = lax.fori_loop(0, rounds // 2, lambda _, words: _double_round(words), initial)
    return [word + start for word, start in zip(state, initial)]


# --- trees


def domain_words(domain: tuple[Any, Any]) -> np.ndarray:
    """uint32 [3] of (gate, session): the gate's number, and a 64-bit one of session and key."""
    gate, session = int(domain[0]), int(domain[1])
    if not 0 <= gate < 1 << 32 or not 0 <= session < 1 << 64:
        raise ProtocolError(
            f"a tree's domain is a 32-bit and a 64-bit number, not {gate} and {session}"
        )
    return np.asarray([gate, session & 0xFFFFFFFF, session >> 32], np.uint32)


def tree_domain(role: int, level: Any, domain: Any) -> list[Any]:
    """The four words that tell one PRG call on a seed from all others.

    Args:
      role: what the block is for; below 2^24.
      level: uint32 scalar below 2^8, the depth in the tree.
      domain: uint32 [3]: gate, low and high half of the session.
    """
    return [level | jnp.uint32(role << _ROLE_SHIFT), domain[0], domain[1], domain[2]]


def tree_block(seed: Any, domain: Any, rounds: int) -> list[Any]:
    """One ChaCha block under a 128-bit key: what a node of a tree expands to.

    The state is the 128-bit form's constants, the seed twice, and four words of domain separation
    where the stream cipher has its counter and nonce (D. J. Bernstein, "ChaCha, a variant of
    Salsa20", 2008). Up to twelve rounds are written out, so that XLA compiles the block, and what
    is made of it, into one loop over the elements; a word that nobody uses costs nothing. Of
    twenty it would take minutes to compile such loops: they run as a loop over rounds, which
    costs time and memory.

    Args:
      seed: four arrays uint32 [m].
      domain: four words, see `tree_domain`.
      rounds: 8, 12 or 20.

    Returns:
      16 arrays uint32 [m].
    """
    zero = jnp.zeros_like(seed[0])
    constants = [zero + jnp.uint32(word) for word in _TREE_CONSTANTS]
    initial = [*constants, *seed, *seed, *(zero + word for word in domain)]
    state = initial
    if rounds > _UNROLLED_ROUNDS:
        state = jax.lax.fori_loop(0, rounds // 2, lambda _, words: _double_round(words), state)
    else:
        for _ in range(rounds // 2):
            state = _double_round(state)
    return [word + start for word, start in zip(state, initial)]


def pack_words(words: Any, packed: bool) -> Any:
    """Four arrays uint32 [m] as a tuple, or packed bit by bit into one complex128 [m].

    XLA's CPU compiler makes one vectorised loop of whatever ends in one array, and computes it all
    anew for each further one. On other backends loops may end in several arrays.
    """
    if not packed:
        return tuple(words)
    wide = [word.astype(jnp.uint64) for word in words]
    halves = [low | (high << jnp.uint64(32)) for low, high in (wide[:2], wide[2:])]
    return lax.complex(*(lax.bitcast_convert_type(half, jnp.float64) for half in halves))


def unpack_words(state: Any) -> list[Any]:
    """The inverse of `pack_words`."""
    if isinstance(state, tuple):
        return list(state)
    halves = [lax.bitcast_convert_type(x, jnp.uint64) for x in (state.real, state.imag)]
    return [part.astype(jnp.uint32) for half in halves for part in (half, half >> jnp.uint64(32))]


def packs() -> bool:
    """True if seeds leave a kernel packed on JAX's default backend."""
    return jax.default_backend() == "cpu"


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles an element-wise function of (hashable settings, *arrays), once for all callers.

    On processors with 512-bit vectors they are asked for, which halves the time of a block: a loop
    that touches complex128 is otherwise as wide as four elements. Within another traced function
    the compiler's settings are the outer one's.
    """
    compiled = functools.cache(
        lambda options: jax.jit(function, static_argnums=0, compiler_options=dict(options))
    )

    @functools.wraps(function)
    def call(settings: Any, *arrays: Any) -> Any:
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arrays)):
            return function(settings, *arrays)
        return compiled(_compiler_options(jax.default_backend()))(settings, *arrays)

    call.compiled = lambda: compiled(_compiler_options(jax.default_backend()))  # type: ignore
    return call


@functools.cache
def _compiler_options(backend: str) -> tuple[tuple[str, int], ...]:
    try:
        wide = backend == "cpu" and "avx512f" in pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        wide = False
    return (("xla_cpu_prefer_vector_width", 512),) if wide else ()


def chunk_sizes(n_elements: int) -> list[int]:
    """Elements that each call of a tree's kernels takes: `CHUNKS`, and the rest at last."""
    sizes = []
    for chunk in CHUNKS:
        sizes += [chunk] * (n_elements // chunk)
        n_elements %= chunk
    return sizes + [n_elements] * bool(n_elements)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _cut(size: int, padded: int, array: Any, start: Any) -> Any:
    piece = lax.dynamic_slice_in_dim(array, start, size, axis=-1)
    return jnp.pad(piece, [(0, 0)] * (array.ndim - 1) + [(0, padded - size)])


def chunk(array: Any, start: int, size: int) -> Any:
    """Elements (last axis) from `start` on, filled up with zeros to the next of `CHUNKS`."""
    padded = min(chunk for chunk in CHUNKS if chunk >= size)
    if array.shape[-1] == size == padded:
        return array
    return _cut(size, padded, array, np.int32(start))


def in_chunks(function: Callable[..., Any], sizes: Any, *arrays: Any) -> list[Any]:
    """Results of `function(i, *pieces)` for each piece i of the arrays [... N], cut back to it.

    Args:
      function: of a number and pieces padded to one of `CHUNKS`; gives a tree of arrays [... N].
      sizes: of the pieces.
      *arrays: with the elements last.
    """
    results, start = [], 0
    for i, size in enumerate(sizes):
        result = function(i, *(chunk(array, start, size) for array in arrays))
        whole = jax.tree.map(lambda x, n=size: x if x.shape[-1] == n else x[..., :n], result)
        results.append(whole)
        start += size
    return results


def narrow(values: Any, m: int, bits: int) -> tuple[Any, int]:
    """Bits of m-bit `values` that a tree reads from bit `bits` on: uint32 [N], and their start.

    Kernels read 32-bit words only: a 64-bit one would halve what a vector holds.
    """
    if m <= 32:
        return values, bits
    return _shifted(values, np.uint64(bits)), 0


@jax.jit
def _shifted(values: Any, bits: Any) -> Any:
    return (values >> bits).astype(jnp.uint32)


def tree_inputs(values: Any, m: int, *roots: Any, sizes: Any = None) -> list[Any]:
    """m-bit values [N] as uint32 or uint64, roots as uint32 [4, N].

    Raises:
      ProtocolError: unless all have N elements, and N is the sum of `sizes` too.
    """
    values = jnp.asarray(values).astype(jnp.uint32 if m <= 32 else jnp.uint64)
    roots = tuple(jnp.asarray(root).reshape(4, -1) for root in roots)
    counts = [root.shape[1] for root in roots] + ([] if sizes is None else [sum(sizes)])
    if any(count != values.shape[0] for count in counts):
        raise ProtocolError(f"{values.shape[0]} values are compared with keys of {counts} elements")
    return [values, *roots]


def _double_round(state: list[Any]) -> list[Any]:
    # By lax: operators take twice as long to trace, and a tree's kernels have thousands.
    words = list(state)
    for a, b, c, d in (*_COLUMNS, *_DIAGONALS):
        words[a] = lax.add(words[a], words[b])
        words[d] = _rotate(lax.bitwise_xor(words[d], words[a]), 16)
        words[c] = lax.add(words[c], words[d])
        words[b] = _rotate(lax.bitwise_xor(words[b], words[c]), 12)
        words[a] = lax.add(words[a], words[b])
        words[d] = _rotate(lax.bitwise_xor(words[d], words[a]), 8)
        words[c] = lax.add(words[c], words[d])
        words[b] = _rotate(lax.bitwise_xor(words[b], words[c]), 7)
    return words


def _rotate(words: Any, bits: int) -> Any:
    left, right = np.uint32(bits), np.uint32(32 - bits)
    return lax.bitwise_or(lax.shift_left(words, left), lax.shift_right_logical(words, right))
