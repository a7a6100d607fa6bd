"""Records what PyTorch computes with seeded weights, and small files that torch.save wrote.

Run under an interpreter that has PyTorch and NumPy:
    python tests/models/record_torch_logits.py
It writes `data/torch_logits.json`, `data/simple.pth` and `data/unsafe.pth` beside this file. The
networks are torchvision's, written out, so that torchvision itself is not needed.
"""

import json
import pathlib

import numpy as np
import seeded_weights
import torch
from torch import nn

HERE = pathlib.Path(__file__).parent
BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
VGG = (1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8, 0)


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, blocks, width, n_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(seeded_weights.CHANNELS, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, n_blocks in enumerate(blocks):
            layers, outputs = [], width * 2**stage
            for block in range(n_blocks):
                layers.append(BasicBlock(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(inputs, n_classes)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class VGG16(nn.Module):
    def __init__(self, norm, width, n_classes):
        super().__init__()
        layers, inputs = [], seeded_weights.CHANNELS
        for multiple in VGG:
            if not multiple:
                layers.append(nn.MaxPool2d(2))
                continue
            layers.append(nn.Conv2d(inputs, multiple * width, 3, padding=1))
            if norm:
                layers.append(nn.BatchNorm2d(multiple * width))
            layers.append(nn.ReLU())
            inputs = multiple * width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        hidden = 64 * width
        self.classifier = nn.Sequential(
            nn.Linear(inputs * 49, hidden),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(hidden, n_classes),
        )

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def build(name, norm, width):
    if name in BLOCKS:
        return ResNet(BLOCKS[name], width, seeded_weights.N_CLASSES)
    return VGG16(norm == "batch", width, seeded_weights.N_CLASSES)


def record(case):
    network = build(case["name"], case["norm"], case["width"]).eval()
    state = {
        name: torch.tensor(seeded_weights.tensor(name, tuple(value.shape)))
        for name, value in network.state_dict().items()
        if value.ndim
    }
    network.load_state_dict(state, strict=False)
    shapes = {name: list(value.shape) for name, value in state.items()}
    x = torch.tensor(seeded_weights.images(case["image_size"]).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        recorded = {"shapes": shapes, "logits": network(x).tolist()}
        if case["name"] in BLOCKS:
            recorded["train_logits"] = network.train()(x).tolist()
            recorded["running_mean_sum"] = float(network.bn1.running_mean.sum())
    return recorded


class Opaque:
    """Something that a file of weights has no business to contain."""


def save_files():
    """A state dictionary with every oddity at once, and one that needs a class to be loaded."""
    shapes = {
        "conv1.weight": (4, 1, 3, 3),
        "conv2.weight": (8, 4, 3, 3),
        "conv3.weight": (16, 8, 3, 3),
        "fc.weight": (3, 16),
        "fc.bias": (3,),
    }
    for layer, channels in ((1, 4), (2, 8), (3, 16)):
        for kind in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"bn{layer}.{kind}"] = (channels,)
    state = {k: torch.tensor(seeded_weights.tensor(k, v)) for k, v in shapes.items()}
    # Transposed in memory, an offset into a larger storage, and other widths.
    state["conv2.weight"] = (
        state["conv2.weight"].permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3)
    )
    state["conv1.weight"] = state["conv1.weight"].to(memory_format=torch.channels_last)
    state["bn1.bias"] = torch.cat([torch.ones(3), state["bn1.bias"]])[3:]
    state["bn2.bias"] = state["bn2.bias"].double()
    state["bn3.bias"] = state["bn3.bias"].half()
    state["bn3.weight"] = state["bn3.weight"].bfloat16()
    state["fc.weight"] = nn.Parameter(state["fc.weight"])
    state["bn1.num_batches_tracked"] = torch.tensor(7)
    wrapped = {"state_dict": {f"module.{name}": value for name, value in state.items()}}
    torch.save(wrapped, HERE / "data" / "simple.pth")
    torch.save({"state_dict": {"fc.bias": Opaque()}}, HERE / "data" / "unsafe.pth")


def main():
    torch.manual_seed(0)
    np.seterr(all="raise")
    cases = {name: record(case) for name, case in seeded_weights.CASES.items()}
    with open(HERE / "data" / "torch_logits.json", "w") as file:
        json.dump(cases, file, separators=(",", ":"))
        file.write("\n")
    save_files()


if __name__ == "__main__":
    main()
