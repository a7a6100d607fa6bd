"""The benchmark beside other systems: its flags, its network, and how a peer's script is run.

The peers themselves need environments of their own; scripts of the standard library stand in.
"""

import contextlib
import json
import sys
import textwrap

import jax
import numpy as np
import pytest
from jax import lax

from benchmarks.peers import __main__ as peers
from benchmarks.peers import network, subprocesses

SIDE = 32


@pytest.mark.parametrize(
    "flag, said",
    [
        ("--protocols=fss,spdz", "expected fss and any of ariann, fss, securenn"),
        ("--protocols=ariann", "expected fss and any of"),
        ("--image_size=100", "expected a multiple of 32"),
        ("--image_size=0", "expected a multiple of 32"),
        ("--runs=0", "expected at least 1"),
        ("--spu=python", "unrecognized arguments"),
    ],
)
def test_a_wrong_flag_is_refused_in_one_line(capsys, flag, said):
    """Users learn what was expected before anything is measured."""
    with pytest.raises(SystemExit) as ended:
        peers.parse([flag])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_peers_left_out_are_named(capsys):
    """A row that is not there must not pass for one that was measured."""
    found = peers.chosen(peers.parse(["--spu_python=python"]))
    assert [peer.name for peer in found] == ["spu_semi2k", "spu_aby3"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("crypten is left out: --crypten_python is not given")
    assert lines[1].endswith("spu_cheetah is left out: it takes minutes beyond 64 pixels")
    assert len(lines) == 2


def test_the_peers_network_is_ours():
    """With batch norms folded, as the scripts build it, the logits are the module's own."""
    variables = network.variables(SIDE)
    image = network.images(SIDE, 1, seed=1)
    arrays = network.folded(variables)
    np.testing.assert_allclose(
        plain_resnet18(image, arrays), network.logits(variables, image), rtol=1e-3, atol=1e-5
    )


def plain_resnet18(x, w):
    """The scripts' network, in JAX."""

    def conv(x, name, stride):
        kernel = w[name + ".kernel"]
        padding = [(kernel.shape[0] // 2,) * 2] * 2
        layout = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, dimension_numbers=layout)
        return y + w[name + ".bias"].reshape(1, 1, 1, -1)

    x = jax.nn.relu(conv(x, "conv1", 2))
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    x = lax.reduce_window(x, -np.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name = f"layer{stage}_{block}."
            stride = 2 if stage > 1 and block == 0 else 1
            y = conv(jax.nn.relu(conv(x, name + "conv1", stride)), name + "conv2", 1)
            x = jax.nn.relu(y + (conv(x, name + "downsample", stride) if stride == 2 else x))
    return x.mean((1, 2)) @ w["fc.kernel"] + w["fc.bias"].reshape(1, -1)


@pytest.fixture
def script(tmp_path):
    """Makes a peer's script of two parties, of which party 1 does `misdeed` in its run."""

    def make(misdeed=""):
        path = tmp_path / "peer.py"
        path.write_text(
            textwrap.dedent(
                f"""
                import os, sys
                sys.path.insert(0, {str(peers.FOLDER)!r})
                import processes

                class Party:
                    def __init__(self, rank, factor):
                        print("a library's greeting", flush=True)
                        self.rank, self.factor = rank, factor
                    def run(self):
                        if self.rank == 1:
                            {misdeed or "pass"}
                    def results(self):
                        return 10, 3 + self.rank, self.factor

                if __name__ == "__main__":
                    processes.serve(Party, [(2,), (5,)], lambda shares: [sum(shares)])
                    open({str(tmp_path / "tidy")!r}, "w").close()
                """
            )
        )
        return path

    return make


def test_a_script_runs_once_a_line(script, tmp_path):
    """Bytes and CPU of the parties add up, rounds do not; what libraries print is passed over.

    At the end the script may tidy up.
    """
    with subprocesses.started(sys.executable, script(), []) as run:
        for _ in range(2):
            found = run()
            assert found["logits"] == [7]
            assert (found["bytes"], found["rounds"]) == (20, 4)
            assert found["seconds"] >= 0
    assert (tmp_path / "tidy").exists()


@pytest.mark.parametrize(
    "misdeed, said",
    [
        ("raise ValueError('a share is odd')", "party 1: ValueError: a share is odd"),
        ("os.kill(os.getpid(), 9)", "party 1 died with exit code -9"),
    ],
)
def test_a_peer_that_fails_says_why_in_one_line(script, misdeed, said):
    """Also when one party fails while the other waits for it."""
    with (
        pytest.raises(subprocesses.PeerError, match=said),
        subprocesses.started(sys.executable, script(misdeed), []) as run,
    ):
        run()


def test_a_peer_that_hangs_is_ended(script):
    """With all its processes, after the time given."""
    path = script("__import__('time').sleep(600)")
    with (
        pytest.raises(subprocesses.PeerError, match="no answer within 3 s"),
        subprocesses.started(sys.executable, path, [], timeout_s=3) as run,
    ):
        run()


def test_a_script_that_does_not_start(tmp_path):
    """As without the peer's package: the last line that it left."""
    path = tmp_path / "peer.py"
    path.write_text("print('hello')\nimport not_installed_here")
    with (
        pytest.raises(subprocesses.PeerError, match="No module named 'not_installed_here'"),
        subprocesses.started(sys.executable, path, []),
    ):
        pass


def test_a_python_that_is_not_there():
    """One line, no traceback."""
    with (
        pytest.raises(subprocesses.PeerError, match="no/python cannot be started: No such file"),
        subprocesses.started("no/python", "peer.py", []),
    ):
        pass


def test_rows(capsys):
    """The ratio is of the fastest peer; a peer that fails is a row, and the rest still runs."""

    def system(seconds):
        figures = {"cpu_seconds": 1.0, "bytes": 10, "rounds": 2, "logits": [1.0, -2.1]}
        return lambda: {"seconds": seconds, **figures}

    def fails():
        raise subprocesses.PeerError("ended:\nno")

    def fss():
        return {**system(0.5)(), "key_bytes": 7, "offline_seconds": 1.5}

    flags = peers.parse(["--runs=2", "--image_size=64"])
    benchmark = peers.Benchmark(fss, np.array([[1.0, -2.0]]), flags)
    for peer, run in zip(peers.PEERS, (system(4.0), fails, system(3.0), system(9.0))):
        benchmark.compare(peer, contextlib.nullcontext(run))
    benchmark.conclude()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row.get("seconds") for row in rows] == [4.0, None, 3.0, 9.0, 0.5, None]
    assert rows[1]["error"] == "ended: no" and benchmark.failed
    assert rows[0]["max_error"] == 0.05 and rows[0]["key_bytes"] is None
    assert rows[4]["key_bytes"] == 7 and len(rows[4]["seconds_of_runs"]) == 6
    assert rows[5]["best_peer"] == "spu_aby3"
    assert rows[5]["best_peer_over_fss"] == 6.0
    assert rows[5]["best_peer_over_fss_with_offline"] == 1.5
