#!/usr/bin/env python3
"""Draws what the demonstration wrote: test pictures with true and predicted names, and the learning curve."""
import csv
import gzip
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def draw_pictures(output, data):
    """Forty test pictures: the first 30, and the first 10 of the others that the network got wrong."""
    rows = read_rows(output / "predictions.csv")
    with gzip.open(data / "t10k-images-idx3-ubyte.gz") as file:
        pictures = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    wrong = [row for row in rows[30:] if row["class"] != row["predicted"]]
    figure, axes = plt.subplots(4, 10, figsize=(15, 7.5))
    for axis, row in zip(axes.flat, rows[:30] + wrong[:10]):
        right = row["class"] == row["predicted"]
        axis.imshow(pictures[int(row["picture"])], cmap="gray_r")
        axis.set_title(row["class_name"] if right else f"{row['class_name']}\nseen: {row['predicted_name']}",
                       fontsize=9, color="darkgreen" if right else "darkred")
        axis.set_xticks([])
        axis.set_yticks([])
    accuracy = sum(row["class"] == row["predicted"] for row in rows) / len(rows)
    figure.suptitle(f"Fashion-MNIST test pictures, the last row wrong ones; {100 * accuracy:.2f} % of all are right")
    figure.tight_layout()
    figure.savefig(output / "pictures.png", dpi=100)


def draw_curve(output):
    history = read_rows(output / "history.csv")
    epochs = [int(row["epoch"]) for row in history]
    figure, left = plt.subplots(figsize=(8, 5))
    left.plot(epochs, [float(row["loss"]) for row in history], "o-", color="tab:blue")
    left.set_xlabel("epoch")
    left.set_ylabel("loss on the training pictures", color="tab:blue")
    left.set_ylim(bottom=0)
    right = left.twinx()
    right.plot(epochs, [100 * float(row["accuracy"]) for row in history], "s-", color="tab:orange")
    right.set_ylabel("test pictures right, %", color="tab:orange")
    left.xaxis.get_major_locator().set_params(integer=True)
    figure.tight_layout()
    figure.savefig(output / "learning_curve.png", dpi=100)


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: plot.py FOLDER_OF_RESULTS FOLDER_OF_PICTURES")
    output, data = (pathlib.Path(argument) for argument in sys.argv[1:])
    draw_pictures(output, data)
    draw_curve(output)
    print(f"{output / 'pictures.png'}, {output / 'learning_curve.png'}")


main()
