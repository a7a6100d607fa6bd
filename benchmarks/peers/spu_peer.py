"""SPU: two or three parties, compiled from JAX.

    python benchmarks/peers/spu_peer.py NETWORK.npz SEMI2K|ABY3|CHEETAH

Runs under a Python that has SPU; started by `python -m benchmarks.peers`. Image and weights are
shared between the parties; under Cheetah, whose products are cheapest so, the image is party 0's
and the weights are party 1's.
"""

import os
import re
import socket
import sys
import tempfile

import numpy as np
import processes
import spu.libspu as libspu
from spu import api

N_PARTIES = {"SEMI2K": 2, "ABY3": 3, "CHEETAH": 2}
CLIENT, SERVER = 0, 1
TIMEOUT_MS = 3_600_000
COUNTS = re.compile(r"Link details: total send bytes (\d+), recv bytes \d+, send actions (\d+)")


class Party:
    """One party's runtime."""

    def __init__(self, rank, protocol, ports, executable, shares):
        # Bytes and messages are told nowhere but in the log.
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        os.dup2(self.log.fileno(), 1)
        os.dup2(self.log.fileno(), 2)
        link = libspu.link.Desc()
        link.recv_timeout_ms = link.http_timeout_ms = TIMEOUT_MS
        for party, port in enumerate(ports):
            link.add_party(f"party{party}", f"127.0.0.1:{port}")
        self.link = libspu.link.create_brpc(link, rank)
        self.runtime = api.Runtime(self.link, config(protocol, profile=True))
        self.executable = executable
        for name, share in zip(executable.input_names, shares):
            self.runtime.set_var(name, share)

    def run(self):
        """One inference."""
        self.runtime.run(self.executable)

    def results(self):
        """Bytes and messages of the last run."""
        self.log.seek(0)
        n_bytes, messages = COUNTS.findall(self.log.read())[-1]
        share = self.runtime.get_var(self.executable.output_names[0])
        return int(n_bytes), int(messages), share


def config(protocol, profile=False):
    """64-bit words, everything else by default."""
    chosen = libspu.RuntimeConfig(
        protocol=getattr(libspu.ProtocolKind, protocol), field=libspu.FieldType.FM64
    )
    chosen.experimental_enable_colocated_optimization = protocol == "CHEETAH"
    chosen.enable_pphlo_profile = profile
    return chosen


def resnet18(x, w):
    """[1 s s 3] -> logits [1 k]; every batch norm is folded into the convolution before it."""
    import jax.numpy as jnp
    from jax import lax

    def conv(x, name, stride):
        kernel, bias = w[name + ".kernel"], w[name + ".bias"]
        padding = [(kernel.shape[0] // 2,) * 2] * 2
        layout = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layout)
        return y + bias

    def relu(x):
        return jnp.maximum(x, 0)

    x = jnp.pad(relu(conv(x, "conv1", 2)), ((0, 0), (1, 1), (1, 1), (0, 0)))  # nothing is below 0
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name = f"layer{stage}_{block}."
            stride = 2 if stage > 1 and block == 0 else 1
            y = conv(relu(conv(x, name + "conv1", stride)), name + "conv2", 1)
            x = relu(y + (conv(x, name + "downsample", stride) if stride == 2 else x))
    return jnp.mean(x, (1, 2)) @ w["fc.kernel"] + w["fc.bias"]


def compile_and_share(path, protocol):
    """The executable, and each party's shares of its inputs."""
    import jax
    from spu.utils import frontend

    with np.load(path) as arrays:
        weights = dict(arrays)
    arguments = (weights.pop("image"), weights)
    inputs = jax.tree_util.tree_leaves(arguments)
    secret = libspu.Visibility.VIS_SECRET
    executable, _ = frontend.compile(
        frontend.Kind.JAX, resnet18, arguments, {}, [f"input{i}" for i in range(len(inputs))],
        [secret] * len(inputs), lambda outputs: ["logits" for _ in outputs],
    )  # fmt: skip
    io = api.Io(N_PARTIES[protocol], config(protocol))
    owned = protocol == "CHEETAH"
    owners = [(CLIENT if i == 0 else SERVER) if owned else -1 for i in range(len(inputs))]
    shares = [io.make_shares(each, secret, owner) for each, owner in zip(inputs, owners)]
    return executable, list(zip(*shares)), io


def free_ports(n):
    """So many TCP ports of this machine."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def main():
    path, protocol = sys.argv[1:]
    executable, shares, io = compile_and_share(path, protocol)
    ports = free_ports(N_PARTIES[protocol])
    arguments = [(protocol, ports, executable, each) for each in shares]
    del shares
    processes.serve(Party, arguments, lambda shares: io.reconstruct(shares).flatten().tolist())


if __name__ == "__main__":
    main()
