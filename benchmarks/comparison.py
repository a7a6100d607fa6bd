"""Encrypted comparisons: time, key bytes and PRG calls, beside a bare ChaCha block.

    python -m benchmarks.comparison [--platform=cpu|gpu|tpu] [--elements=N] [--rounds=8|12|20]

A comparison of words of N bits compares N - 1 (the sign is apart). For N = 13, 16, 20, 32 and 64,
trees with every ν and arity are timed, for N = 8, 9 and 10 truth tables, and for N = 13 and 32 the
comparison function that AriaNN uses. What is compared takes turns, so that a busy machine slows all
alike, and the fastest repetition of each counts. Takes two to three minutes on a CPU with nothing
compiled yet, most of it compiling. Prints JSON lines:

- `prg`: nanoseconds of one ChaCha block by XLA (one loop that folds the block into one word), and
  by C with GCC's vector extensions on as many threads as there are processors; the latter is null,
  with a reason, without a compiler or elsewhere than on a CPU.
- `tree`, `table`, `dcf`: nanoseconds of evaluating and of dealing one comparison, bytes of its key
  (of a table: what party 1 is sent), PRG blocks, and how many block-times by XLA and by C the
  evaluation takes.
"""

import argparse
import ctypes
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

from primia_jax import environment

environment.set_up_process()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.flags import at_least  # noqa: E402
from primia_jax.mpc import dcf, dpf, prg, ring  # noqa: E402

TREE_BITS, TABLE_BITS, DCF_BITS = (13, 16, 20, 32, 64), (8, 9, 10), (13, 32)
SECONDS = 0.4  # that the repetitions of one line take, about
DOMAIN = (1, 2)
C_SOURCE = """
#include <stddef.h>
#include <stdint.h>
#include <string.h>
typedef uint32_t v __attribute__((vector_size(64)));
#define ROT(x, n) ((x) << n | (x) >> (32 - n))
#define QUARTER(a, b, c, d) \\
  a += b; d ^= a; d = ROT(d, 16); c += d; b ^= c; b = ROT(b, 12); \\
  a += b; d ^= a; d = ROT(d, 8); c += d; b ^= c; b = ROT(b, 7);
void blocks(const uint32_t *seed, size_t stride, uint32_t *out, size_t n, int rounds) {
  static const uint32_t k[4] = {0x61707865, 0x3120646e, 0x79622d36, 0x6b206574};
  for (size_t i = 0; i + 16 <= n; i += 16) {
    v s[16], x[16], folded = {0};
    for (int j = 0; j < 4; j++) {
      s[j] = (v){0} + k[j];
      memcpy(&s[4 + j], seed + j * stride + i, 64);
      s[8 + j] = s[4 + j];
      s[12 + j] = (v){0};
    }
    for (int j = 0; j < 16; j++) x[j] = s[j];
    for (int r = 0; r < rounds; r += 2) {
      QUARTER(x[0], x[4], x[8], x[12]) QUARTER(x[1], x[5], x[9], x[13])
      QUARTER(x[2], x[6], x[10], x[14]) QUARTER(x[3], x[7], x[11], x[15])
      QUARTER(x[0], x[5], x[10], x[15]) QUARTER(x[1], x[6], x[11], x[12])
      QUARTER(x[2], x[7], x[8], x[13]) QUARTER(x[3], x[4], x[9], x[14])
    }
    for (int j = 0; j < 16; j++) folded ^= x[j] + s[j];
    memcpy(out + i, &folded, 64);
  }
}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--platform", choices=("cpu", "gpu", "tpu"))
    parser.add_argument("--elements", type=at_least(1), default=prg.CHUNKS[0])
    parser.add_argument("--rounds", type=int, choices=(8, 12, 20), default=12)
    flags = parser.parse_args()
    if flags.platform:
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(flags.platform, flags.platform))
    with environment.memory_kept(), ring.x64():
        Benchmark(flags.elements, flags.rounds).run()


class Benchmark:
    """Inputs of one size, and the two bare blocks that all lines are set against."""

    def __init__(self, n: int, rounds: int):
        self.n, self.rounds = n, rounds
        self.rng = np.random.default_rng(0)
        self.roots = [jnp.asarray(self.words((4, n))) for _ in range(2)]
        self.blocks = {"xla_block": lambda: bare_block(self.roots[0], rounds)}
        c_block, self.no_c = c_blocks(np.asarray(self.roots[0]), rounds)
        if c_block:
            self.blocks["c_block"] = c_block

    def words(self, shape: Any) -> np.ndarray:
        """Uniform words, of no cryptographic worth."""
        return self.rng.integers(0, 2**32, shape, dtype=np.uint32)

    def values(self, m: int) -> Any:
        """m-bit values [N]."""
        kind = np.uint32 if m <= 32 else np.uint64
        return jnp.asarray(self.rng.integers(0, 2**m, self.n, dtype=np.uint64).astype(kind))

    def run(self) -> None:
        """Prints all lines."""
        self.line("prg", {"backend": jax.default_backend(), "c_reason": self.no_c}, {})
        for bits in TABLE_BITS:
            self.table(bits)
        for bits, arity, nu in itertools.product(TREE_BITS, (2, 4), (7, 8, 9)):
            self.tree(bits, arity, nu)
        for bits in DCF_BITS:
            self.dcf(bits)

    def tree(self, bits: int, arity: int, nu: int) -> None:
        """The line of a comparison tree."""
        params = dpf.Params(bits - 1, nu, arity, self.rounds)
        alpha, x = self.values(params.m), self.values(params.m)
        root0, root1 = self.roots
        key = dpf.keygen(alpha, root0, root1, params, DOMAIN)
        actions = {
            "eval": lambda: dpf.evaluate(0, root0, key, x, params, DOMAIN),
            "keygen": lambda: dpf.keygen(alpha, root0, root1, params, DOMAIN),
        }
        self.line(
            "tree", {"bits": bits, "nu": nu, "arity": arity, **dpf.cost(params)._asdict()}, actions
        )

    def table(self, bits: int) -> None:
        """The line of a truth table."""
        m = bits - 1
        alpha, x = self.values(m), self.values(m)
        own = jnp.asarray(self.words((dpf.table_words(m), self.n)))
        actions = {
            "eval": lambda: dpf.table_eval(own, x, m),
            "keygen": lambda: dpf.table_keygen(alpha, own, m),
        }
        self.line("table", {"bits": bits, "key_bytes": 4 * dpf.table_words(m)}, actions)

    def dcf(self, bits: int) -> None:
        """The line of AriaNN's comparison function."""
        params = dcf.Params(bits - 1, 64, self.rounds)
        alpha, x = self.values(params.m), self.values(params.m)
        root0, root1 = self.roots
        beta = jnp.ones(self.n, jnp.uint64)
        key = dcf.keygen(alpha, beta, root0, root1, params, DOMAIN)
        actions = {
            "eval": lambda: dcf.evaluate(0, root0, key, x, params, DOMAIN),
            "keygen": lambda: dcf.keygen(alpha, beta, root0, root1, params, DOMAIN),
        }
        self.line("dcf", {"bits": bits, **dcf.cost(params)._asdict()}, actions)

    def line(self, kind: str, facts: dict[str, Any], actions: dict[str, Callable]) -> None:
        """Times the actions and the bare blocks, and prints the JSON line."""
        best = fastest(self.blocks | actions)
        ns = {name: seconds / self.n * 1e9 for name, seconds in best.items()}
        line = {
            "benchmark": "comparison",
            "kind": kind,
            "rounds": self.rounds,
            "n": self.n,
            **facts,
        }
        line |= {f"{name}_ns": round(value, 2) for name, value in ns.items()}
        line.setdefault("c_block_ns", None)
        if "eval" in ns:
            for block in self.blocks:
                line[f"eval_over_{block}"] = round(ns["eval"] / ns[block], 2)
        print(json.dumps(line), flush=True)


def fastest(actions: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of the fastest repetition of each; they take turns. The first does not count."""
    for act in actions.values():
        jax.block_until_ready(act())
    best = dict.fromkeys(actions, float("inf"))
    end, turns = time.perf_counter() + SECONDS, 0
    while turns < 3 or time.perf_counter() < end:
        turns += 1
        for name, act in actions.items():
            start = time.perf_counter()
            jax.block_until_ready(act())
            best[name] = min(best[name], time.perf_counter() - start)
    return best


@prg.kernel
def _folded_block(rounds: int, seed: Any) -> Any:
    words = prg.tree_block(list(seed), [jnp.uint32(0)] * 4, rounds)
    folded = words[0]
    for word in words[1:]:
        folded = folded ^ word
    return folded


def bare_block(seed: Any, rounds: int) -> Any:
    """uint32 [N]: one block of each seed, folded into one word."""
    return _folded_block(rounds, seed)


def c_blocks(seed: np.ndarray, rounds: int) -> tuple[Callable[[], Any] | None, str | None]:
    """The same by C on all processors, or None and why not."""
    if jax.default_backend() != "cpu":
        return None, f"the backend is {jax.default_backend()}"
    compiler = shutil.which("cc")
    if compiler is None:
        return None, "no compiler: cc is not in PATH"
    with tempfile.TemporaryDirectory() as folder:
        source, library = pathlib.Path(folder, "block.c"), pathlib.Path(folder, "block.so")
        source.write_text(C_SOURCE)
        command = [
            compiler,
            "-O3",
            "-march=native",
            "-shared",
            "-fPIC",
            "-o",
            str(library),
            str(source),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return None, f"cc failed: {done.stderr.strip().splitlines()[-1:]}"
        blocks = ctypes.CDLL(str(library)).blocks
    blocks.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t]
    blocks.argtypes += [ctypes.c_int]
    n, threads = seed.shape[1], len(os.sched_getaffinity(0))
    seed, out = np.ascontiguousarray(seed), np.empty(n, np.uint32)
    size = -(-n // (16 * threads)) * 16
    starts = range(0, n, size)
    pool = futures.ThreadPoolExecutor(threads)

    def one(start: int) -> None:
        count = min(size, n - start)
        blocks(seed.ctypes.data + 4 * start, n, out.ctypes.data + 4 * start, count, rounds)

    def act() -> np.ndarray:
        list(pool.map(one, starts))
        return out

    whole = n // 16 * 16
    if not np.array_equal(act()[:whole], np.asarray(bare_block(jnp.asarray(seed), rounds))[:whole]):
        raise AssertionError("the blocks of C and of XLA differ")
    return act, None


if __name__ == "__main__":
    main()
