"""CrypTen: two parties, image and weights shared between them, triples dealt by the first.

    python benchmarks/peers/crypten_peer.py NETWORK.npz

Runs under a Python that has CrypTen; started by `python -m benchmarks.peers`.
"""

import os
import sys
import tempfile
import types

# For its ONNX import, which is not used here, CrypTen wants a module that PyTorch no longer has.
sys.modules["torch.onnx.symbolic_registry"] = types.ModuleType("torch.onnx.symbolic_registry")

import crypten  # noqa: E402
import crypten.communicator  # noqa: E402
import numpy as np  # noqa: E402
import processes  # noqa: E402
import torch  # noqa: E402

N_PARTIES = 2
CLIENT, SERVER = 0, 1


class Party:
    """One of the two."""

    def __init__(self, rank, path, rendezvous):
        threads = max(1, len(os.sched_getaffinity(0)) // N_PARTIES)
        torch.set_num_threads(threads)
        os.environ.update(
            WORLD_SIZE=str(N_PARTIES),
            RANK=str(rank),
            RENDEZVOUS=rendezvous,
            DISTRIBUTED_BACKEND="gloo",
        )
        crypten.init()
        crypten.config.cfg.communicator.verbose = True  # counts rounds and bytes
        with np.load(path) as arrays:
            tensors = {name: layout(name, array) for name, array in arrays.items()}
        image = tensors.pop("image")
        self.image = crypten.cryptensor(image, src=CLIENT)
        self.weights = {n: crypten.cryptensor(t, src=SERVER) for n, t in tensors.items()}
        self.communicator = crypten.communicator.get()

    def run(self):
        """One inference."""
        self.communicator.reset_communication_stats()
        self.logits = resnet18(self.image, self.weights)
        self.cost = self.communicator.get_communication_stats()

    def results(self):
        """Half of the bytes that this party counts: each is counted at either end."""
        share = self.logits.get_plain_text().flatten().tolist()
        return self.cost["bytes"] // 2, self.cost["rounds"], share


def layout(name, array):
    """As PyTorch has it: images [n c h w], kernels [o i h w]."""
    if name == "image":
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(array))


def resnet18(x, w):
    """[1 3 s s] -> logits [1 k]; every batch norm is folded into the convolution before it."""

    def conv(x, name, stride):
        kernel, bias = w[name + ".kernel"], w[name + ".bias"]
        y = x.conv2d(kernel, stride=stride, padding=kernel.size(2) // 2)
        return y + bias.view(1, -1, 1, 1)

    x = conv(x, "conv1", 2).relu().max_pool2d(3, stride=2, padding=1)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name = f"layer{stage}_{block}."
            stride = 2 if stage > 1 and block == 0 else 1
            y = conv(conv(x, name + "conv1", stride).relu(), name + "conv2", 1)
            x = (y + (conv(x, name + "downsample", stride) if stride == 2 else x)).relu()
    return x.mean((2, 3)).matmul(w["fc.kernel"]) + w["fc.bias"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        arguments = (sys.argv[1], f"file://{folder}/rendezvous")
        processes.serve(Party, [arguments] * N_PARTIES, lambda logits: logits[0])
