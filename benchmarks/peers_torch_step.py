"""PyTorch's ResNet-18 training step on a CPU, timed once for every line on standard input.

    python benchmarks/peers_torch_step.py SIDE BATCH contiguous_format|channels_last

Runs under an interpreter that has PyTorch; started by `benchmarks/train_step.py`. Prints the
seconds of each step; ends at a line `stop` or at the end of the input.
"""

import os
import sys
import time

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride > 1:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        """[n c h w] -> [n outputs h/stride w/stride]."""
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x), inplace=True)


class ResNet18(nn.Module):
    """torchvision's network for colour images and 3 classes."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        plan = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
        blocks = [block for i, o, stride in plan for block in (Block(i, o, stride), Block(o, o, 1))]
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(512, 3)

    def forward(self, x):
        """[n 3 s s] -> logits [n 3]."""
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.blocks(functional.max_pool2d(x, 3, 2, 1))
        return self.fc(x.mean((2, 3)))


def main():
    side, batch, memory_format = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    layout = getattr(torch, memory_format)
    model = ResNet18().to(memory_format=layout)
    images = torch.randn(batch, 3, side, side).to(memory_format=layout)
    labels = torch.arange(batch) % 3
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    for line in sys.stdin:
        if line.strip() == "stop":
            break
        start = time.perf_counter()
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
