#!/usr/bin/env python3
"""PyTorch's training step: forward, cross-entropy, backward, SGD with momentum, on resident batches taken in turn.

Prints {"pictures per second": the median of several samples, "version": ...}.
"""
import argparse
import json
import statistics
import time

import torch


def network_of(layers):
    """The network, the shape of a picture and the classes: 784-512-10, or cnn32-64-128 with its tensors channels last."""
    if layers.startswith("cnn"):
        widths = [int(width) for width in layers.removeprefix("cnn").split("-")]
        parts, channels = [], 1
        for number, width in enumerate(widths):
            parts += [torch.nn.Conv2d(channels, width, 3, padding=1, bias=False), torch.nn.BatchNorm2d(width),
                      torch.nn.ReLU()]
            parts += [torch.nn.MaxPool2d(2)] if number < 2 else []
            channels = width
        parts += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(channels, 10)]
        return torch.nn.Sequential(*parts).to(memory_format=torch.channels_last), (1, 28, 28), 10
    sizes = [int(size) for size in layers.split("-")]
    parts = []
    for features, width in zip(sizes, sizes[1:]):
        parts += [torch.nn.Linear(features, width), torch.nn.ReLU()]
    return torch.nn.Sequential(*parts[:-1]), (sizes[0],), sizes[-1]


def pictures_of(batch, shape):
    pictures = torch.rand(batch, *shape) * 2 - 1
    return pictures.contiguous(memory_format=torch.channels_last) if len(shape) == 3 else pictures


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--type", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--layers", default="784-512-512-10")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)

    network, shape, classes = network_of(options.layers)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    loss_of = torch.nn.CrossEntropyLoss()
    batches = [(pictures_of(options.batch, shape), torch.randint(classes, (options.batch,))) for _ in range(64)]

    def step(pictures, labels):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.type == "bf16"):
            loss = loss_of(network(pictures), labels)
        loss.backward()
        optimizer.step()

    def sample():
        start = time.perf_counter()
        for pictures, labels in batches:
            step(pictures, labels)
        return len(batches) * options.batch / (time.perf_counter() - start)

    sample()
    print(json.dumps({"pictures per second": statistics.median(sample() for _ in range(9)),
                      "version": torch.__version__}))


if __name__ == "__main__":
    main()
