#!/usr/bin/env python3
"""PyTorch's training step: forward, cross-entropy, backward, SGD with momentum, on resident batches taken in turn.

Prints {"pictures per second": the median of several samples, "version": ...}.
"""
import argparse
import json
import statistics
import time

import torch


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--type", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--layers", default="784-512-512-10")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)

    sizes = [int(size) for size in options.layers.split("-")]
    parts = []
    for features, width in zip(sizes, sizes[1:]):
        parts += [torch.nn.Linear(features, width), torch.nn.ReLU()]
    network = torch.nn.Sequential(*parts[:-1])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    loss_of = torch.nn.CrossEntropyLoss()
    batches = [(torch.rand(options.batch, sizes[0]) * 2 - 1, torch.randint(sizes[-1], (options.batch,)))
               for _ in range(64)]

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
