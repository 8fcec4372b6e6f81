#!/usr/bin/env python3
"""Draws what `07_layers --csv FILE` wrote: the share of each layer and direction, and its limit.

    examples/07_layers.py FILE.csv PICTURE.png        needs matplotlib
"""
import csv
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

if len(sys.argv) != 3:
    sys.exit(__doc__)
with open(sys.argv[1], newline="") as file:
    rows = list(csv.DictReader(file))
layers = list(dict.fromkeys(row["layer"] for row in rows))
directions = list(dict.fromkeys(row["direction"] for row in rows))
figure, axes = plt.subplots(figsize=(14, 6))
for number, direction in enumerate(directions):
    mine = [row for row in rows if row["direction"] == direction]
    places = [layers.index(row["layer"]) + (number - 1) * 0.28 for row in mine]
    axes.bar(places, [float(row["share"]) for row in mine], 0.26, label=direction)
    limits = [min(1.0, float(row["bound_share"])) for row in mine]
    axes.scatter(places, limits, marker="_", color="black", s=60, label="limit" if number == 0 else None)
axes.set_xticks(range(len(layers)), layers, rotation=60, ha="right", fontsize=8)
axes.set_ylabel("share of a kernel's rate from L1")
axes.set_ylim(0, 1.05)
axes.legend(loc="upper center", ncols=4, bbox_to_anchor=(0.5, 1.1))
figure.savefig(sys.argv[2], dpi=110, bbox_inches="tight")
