#!/usr/bin/env python3
"""Runs a suite of bench/problems through brgemm_bench and holds it against the targets.

Prints a table  case | ours | peer | ours/peer | ours/ceiling | target | met  and, with --json, writes it as a list of rows
with the keys  suite case ours unit peer peer_name ratio share target met reason.  `met` is true, false, or null for what
this machine has no hardware for.  A row that fails is measured twice more before it is believed.  Exit status 1 if a
row is not met, or if something ran above 1.03 times its ceiling, which says that the ceiling was measured wrongly.
Plain Python 3; matplotlib only for --plot.
"""
import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
PROBLEMS = os.path.join(HERE, "problems")
VOID_ABOVE = 1.03
CHAINS = " (desc.chains = 2 where C has fewer than 8 vectors)"  # as brgemm_bench asks for
PICTURES = ("roofline.png", "ratio_per_shape.png")
FILES = {
    "primitive": ["ceilings.txt", "kernels.txt", "epilogues.txt", "calls.txt", "shapes.txt", "linear.txt"],
    "conv": ["conv.txt"],
    "conv_more": ["conv_more.txt"],
    "tiles": ["tiles.txt"],
    "train": ["train.txt"],
}
WITHOUT_TILES = ("primitive", "conv", "conv_more")  # AVX-512 against AVX-512, on CPUs with AMX too


# ---- measuring ----------------------------------------------------------------------------------------------------

class Results:
    """Counters of every case, each the median over all its repetitions."""

    def __init__(self):
        self.runs = {}  # name -> list of {counter: value}
        self.errors = {}
        self.labels = {}
        self.context = {}

    def add(self, document):
        self.context = document["context"]
        for entry in document["benchmarks"]:
            if entry.get("run_type", "iteration") != "iteration":
                continue
            name = entry["name"].replace("/iterations:1", "").replace("/manual_time", "").split("/repeats:")[0]
            if entry.get("error_occurred"):
                self.errors[name] = entry["error_message"]  # stays, though a later run of the case may end well
                continue
            self.labels[name] = entry.get("label", "")
            counters = {k: v for k, v in entry.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
            self.runs.setdefault(name, []).append(counters)

    def names(self):
        return list(dict.fromkeys(list(self.runs) + list(self.errors)))

    def get(self, name, counter):
        values = [run[counter] for run in self.runs.get(name, []) if counter in run]
        return statistics.median(values) if values else None

    def peers(self, name, prefix="speed "):
        """Peer -> how many times ours is as quick as it."""
        found = {}
        for run in self.runs.get(name, []):
            for counter in run:
                if counter.startswith(prefix):
                    found[counter[len(prefix):]] = self.get(name, counter)
        return found


def environment_of(suite):
    """Where the suite leaves AMX out, BRGEMM_CPU says so, to ours and through it to the peers."""
    environment = dict(os.environ)
    if suite in WITHOUT_TILES:
        hidden = environment.get("BRGEMM_CPU", "")
        environment["BRGEMM_CPU"] = f"{hidden},-amx" if hidden else "-amx"
    return environment


class Driver:
    def __init__(self, options):
        self.options = options

    def run(self, files, only=None):
        """Runs problem files, all of their cases or those named; the document that Google Benchmark wrote."""
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, "out.json")
            command = [self.options.bench, *files, f"--rounds={self.options.rounds}",
                       f"--sample-us={self.options.sample_us}", f"--benchmark_repetitions={self.options.repeats}",
                       f"--benchmark_out={out}", "--benchmark_out_format=json"]
            if only is not None:
                names = os.path.join(folder, "only.txt")
                with open(names, "w") as file:
                    file.write("\n".join(only) + "\n")
                command.append(f"--only={names}")
            quiet = None if self.options.verbose else subprocess.PIPE
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=quiet, text=True,
                                  env=environment_of(self.options.suite))
            if done.returncode != 0:
                sys.exit(f"{self.options.bench} ended with {done.returncode}\n{(done.stderr or '').strip()[-2000:]}")
            with open(out) as file:
                return json.load(file)


def draw(count, seed):
    """Shapes m, n, k, each uniform in 1..64."""
    source = random.Random(seed)
    return [tuple(source.randint(1, 64) for _ in range(3)) for _ in range(count)]


def write_shapes(path, shapes, comment):
    with open(path, "w") as file:
        file.write(f"# {comment}\n")
        file.writelines(f"{m} {n} {k}\n" for m, n, k in shapes)


# ---- rows ---------------------------------------------------------------------------------------------------------

def row(suite, case, target, *, ours=None, unit="", peer=None, peer_name="", ratio=None, share=None, met=False,
        reason="", cases=(), made_of=None):
    """One line of the table; `cases` are what is measured again where it fails, `made_of` all that it says something
    of, if that is more."""
    return {"suite": suite, "case": case, "ours": ours, "unit": unit, "peer": peer, "peer_name": peer_name,
            "ratio": ratio, "share": share, "target": target, "met": met, "reason": reason, "cases": list(cases),
            "made_of": list(cases if made_of is None else made_of)}


def compare(value, relation, limit):
    return value is not None and (value >= limit if relation == ">=" else value <= limit)


def text_of(what, relation, limit, unit=""):
    return f"{what} {relation} {limit:g}{unit}"


def fastest(results, name, accepted=lambda peer: True):
    """The peer that ours is least ahead of: (peer's name, ratio) or None."""
    peers = {p: r for p, r in results.peers(name).items() if accepted(p)}
    return min(peers.items(), key=lambda item: item[1]) if peers else None


def measured(results, name, unit=None):
    """Rate of ours and of the quickest peer, in the unit of the case."""
    work, seconds = results.get(name, "work"), results.get(name, "seconds ours")
    best = fastest(results, name)
    reading = results.get(name, "reading") == 1
    operations = "GOP/s" if "u8s8" in name else "GFLOP/s"
    found = {"unit": unit or ("GB/s" if reading else operations), "share": results.get(name, "share ours")}
    if work and seconds:
        found["ours"] = work / seconds * 1e-9
    if best:
        found.update(peer_name=best[0], ratio=best[1], peer=work / results.get(name, "seconds " + best[0]) * 1e-9)
    return found


def failed(results, names):
    for name in names:
        if name in results.errors:
            return f"{name}: {results.errors[name]}"
        if name not in results.runs:
            return f"{name} was not measured"
    return ""


def share_row(suite, results, name, limit):
    """ours/ceiling >= limit."""
    beside = any(p.startswith("LIBXSMM") for p in results.peers(name))
    reason = failed(results, [name]) or ("" if beside else "LIBXSMM is missing")
    found = {} if failed(results, [name]) else measured(results, name)
    met = not reason and compare(found.get("share"), ">=", limit)
    return row(suite, name, text_of("ours/ceiling", ">=", limit), met=met, reason=reason, cases=[name], **found)


def overhead_row(suite, results, name, limit):
    """Time over the plain kernel's <= limit."""
    reason = failed(results, [name])
    found = {} if reason else measured(results, name)
    met = found.get("ratio") is not None and 1 / found["ratio"] <= 1 + limit
    return row(suite, name, f"<= {limit * 100:g} % over the plain kernel", met=met, reason=reason, cases=[name], **found)


def value_row(suite, results, case, name, counter, scale, unit, relation, limit):
    """A counter of ours by itself."""
    reason = failed(results, [name])
    value = results.get(name, counter)
    ours = value * scale if value is not None else None
    return row(suite, case, text_of("", relation, limit, " " + unit).strip(), ours=ours, unit=unit,
               met=not reason and compare(ours, relation, limit), reason=reason, cases=[name])


def geometric_mean(values):
    return math.exp(statistics.fmean(math.log(v) for v in values))


def shape_of(name):
    """The m, n, k of ".../f32/MxNxK/batchB"."""
    return tuple(int(x) for x in name.split("/")[2].split("x"))


def libxsmm_rows(suite, results, label, names, batch, mean_limit=1.05):
    """Geometric mean and least of the speed against LIBXSMM, with each version of it; the worst version counts."""
    versions = {p for name in names for p in results.peers(name) if p.startswith("LIBXSMM")}
    alone = [n for n in names if not versions or not versions <= set(results.peers(n))]
    reason = failed(results, names) or (
        f"LIBXSMM is missing: {len(alone)} shapes without it" if alone or not names else "")
    mean_case, least_case = f"{label}, batch {batch}, geometric mean", f"{label}, batch {batch}, least of the shapes"
    if reason:
        return [row(suite, mean_case, text_of("ours/LIBXSMM", ">=", mean_limit), reason=reason, cases=names),
                row(suite, least_case, "ours/LIBXSMM >= 0.95", reason=reason, cases=names)]
    means, least = {}, {}
    for version in versions:
        ratios = {n: results.peers(n)[version] for n in names}
        means[version] = geometric_mean(ratios.values())
        for n, ratio in ratios.items():
            least[n] = min((ratio, version), least.get(n, (math.inf, "")))
    rate = geometric_mean(results.get(n, "work") / results.get(n, "seconds ours") * 1e-9 for n in names)
    version = min(means, key=means.get)
    slow = {n: r for n, (r, _) in least.items() if r < 0.95}
    worst = min(least, key=least.get)
    m, n, k = shape_of(worst)
    unit = "GOP/s" if "/u8s8/" in names[0] else "GFLOP/s"
    return [row(suite, mean_case, text_of("ours/LIBXSMM", ">=", mean_limit), ours=rate, unit=unit,
                peer=rate / means[version], peer_name=version, ratio=means[version],
                met=means[version] >= mean_limit, cases=names),
            row(suite, least_case, "ours/LIBXSMM >= 0.95", peer_name=least[worst][1], ratio=least[worst][0],
                **{key: value for key, value in measured(results, worst).items() if key in ("ours", "unit", "share")},
                met=not slow, reason="" if not slow else f"{len(slow)} shapes; the slowest is {m}x{n}x{k}",
                cases=list(slow), made_of=names)]


def shape_rows(suite, results, stem, label):
    by_batch = {b: [n for n in results.names() if n.startswith(stem + "/") and n.endswith(f"/batch{b}")] for b in (16, 1)}
    names = by_batch[16]
    if not names:
        return [row(suite, f"{label}, batch 16", "measured", reason="no shapes were measured")]
    reason = failed(results, names)
    rows = []

    def add(what, relation, limit, value, unit="", cases=names, why=""):
        rows.append(row(suite, f"{label}, batch 16, {what}", text_of("", relation, limit, unit).strip(), ours=value,
                        unit=unit.strip(), met=compare(value, relation, limit), reason=why or reason, cases=cases,
                        made_of=names))

    good = [n for n in names if n in results.runs]
    bounds = {n: results.get(n, "bound cycles") for n in good}
    known = bool(good) and not reason and all(bounds.values())
    unknown = "" if known else "dump states no cycles"
    add("geometric mean of bound/measured cycles", ">=", 0.97,
        geometric_mean(min(1, bounds[n] / results.get(n, "cycles")) for n in good) if known else None, why=unknown)

    def padding(name):
        columns = shape_of(name)[1]
        return columns / (16 * math.ceil(columns / 16))

    add("geometric mean of ours/(ceiling x n/(16 ceil(n/16)))", ">=", 0.91,
        geometric_mean(results.get(n, "share ours") / padding(n) for n in good) if good and not reason else None)
    off = [n for n in good
           if known and not 0.85 <= results.get(n, "predicted cycles") / results.get(n, "cycles") <= 1.15]
    add("shapes that dump predicts within 15 %", ">=", 95, 100 * (1 - len(off) / len(good)) if known else None, " %",
        cases=off, why=unknown)
    add("median of the bytes of code", "<=", 3072,
        statistics.median(results.get(n, "code bytes") for n in good) if good and not reason else None, " bytes",
        cases=[])
    for batch in (16, 1):
        rows += libxsmm_rows(suite, results, label, by_batch[batch], batch)
    return rows


def missing_peer(results, name):
    """Why a layer is not compared with all that its target names, oneDNN and OpenBLAS; empty where it is."""
    loaded = results.context.get("peers", "").split(", ")
    label = results.labels.get(name, "")
    if "differs" in label:
        return label
    for peer in ("oneDNN", "OpenBLAS"):
        if not any(p.startswith(peer) for p in loaded):
            return f"{peer} is missing"
        no_such_type = peer == "OpenBLAS" and "/f32/" not in name  # a BLAS has f32 and f64
        if not no_such_type and not any(p.startswith(peer) for p in results.peers(name)):
            return f"{peer} is missing here: {label}"
    return ""


def linear_rows(suite, results):
    names = [n for n in results.names() if n.startswith("linear/")]
    rows, ratios = [], []
    for name in names:
        reason = failed(results, [name])
        found = {} if reason else measured(results, name)
        missing = reason or missing_peer(results, name)
        met = not missing and compare(found.get("ratio"), ">=", 0.98)
        ratios += [found["ratio"]] if not missing else []
        rows.append(row(suite, name, "ours/peer >= 0.98", met=met, reason=missing, cases=[name], **found))
        if results.get(name, "reading") == 1:
            one = {k: v for k, v in found.items() if k in ("ours", "unit", "share")}
            rows.append(row(suite, name + ", of the read bandwidth", "ours/ceiling >= 0.9", cases=[name], reason=reason,
                            met=compare(found.get("share"), ">=", 0.9), **one))
    mean = geometric_mean(ratios) if ratios and len(ratios) == len(names) else None
    rows.append(row(suite, "linear, geometric mean of all", "ours/peer >= 1.03", ratio=mean, peer_name="best of each row",
                    met=compare(mean, ">=", 1.03), reason="" if mean else "rows or their peers are missing", cases=names))
    return rows


def primitive_rows(results):
    suite = "primitive"
    rows = [share_row(suite, results, f"gemm/{case}/batch16", limit) for case, limit in
            [("f32/32x32x32", 0.97), ("f32/64x64x64", 0.97), ("f32/128x128x128", 0.94), ("f64/64x64x64", 0.96),
             ("bf16/64x64x64", 0.95), ("u8s8/64x64x64", 0.92)]]
    # A shape that was drawn twice is one row: 998 of the list's 1,000 draws differ.
    count = sum(n.startswith("shapes_1000/") and n.endswith("/batch16") for n in results.names())
    rows += shape_rows(suite, results, "shapes_1000", f"f32, {count:,} different shapes{CHAINS}")
    rows += shape_rows(suite, results, "shapes_fresh", f"f32, fresh shapes{CHAINS}")
    for case, limit in [("f32/64x64x64/batch16/bias,relu", 0.03), ("f32/64x64x64/batch16/bias,gelu_tanh", 0.12),
                        ("f32/64x64x64/batch16/bias,gelu_erf", 0.12), ("u8s8/64x64x64/batch16/requantise", 0.05)]:
        rows.append(overhead_row(suite, results, "epilogue/" + case, limit))
    rows += [overhead_row(suite, results, name, 0.03) for name in results.names() if name.startswith("at_call/")]
    rows += [
        value_row(suite, results, "handle call, over a direct call of code that only returns", "handle_call",
                  "excess seconds", 1e9, "ns", "<=", 3),
        value_row(suite, results, "make_kernel again, same desc", "lookup/descs1/threads1", "seconds ours", 1e9, "ns",
                  "<=", 10),
        value_row(suite, results, "make_kernel again, 64 descs in turn, two threads", "lookup/descs64/threads2",
                  "seconds ours", 1e9, "ns", "<=", 25),
        value_row(suite, results, "generation, median a kernel", "generation", "seconds ours", 1e6, "us", "<=", 12),
        value_row(suite, results, "generation, two threads over one", "generation", "speedup two threads", 1, "x", ">=",
                  1.8),
    ]
    return rows + linear_rows(suite, results)


CONV_SHARES = {("f32", "forward"): 0.95, ("f32", "backward_data"): 0.94, ("f32", "backward_weights"): 0.94,
               ("bf16", "forward"): 0.97, ("bf16", "backward_data"): 0.93, ("bf16", "backward_weights"): 0.9,
               ("u8s8", "forward"): 0.94}


def conv_case(name):
    """Of conv/TYPE/imagesN/HxW/INtoOUT/.../threadsT/PASS: (type, images, threads, pass, first layer, strided)."""
    parts = name.split("/")
    return (parts[1], int(parts[2].removeprefix("images")), int(parts[-2].removeprefix("threads")), parts[-1],
            parts[4].startswith("3to"), any(part.startswith("stride") for part in parts))


def mean_row(suite, case, cases, ratios, limit, peer="oneDNN, the quicker version"):
    """The geometric mean of ours/peer over cases, all of which must have been compared."""
    mean = geometric_mean(ratios.values()) if cases and len(ratios) == len(cases) else None
    return row(suite, case, text_of("ours/peer", ">=", limit), ratio=mean, peer_name=peer,
               met=compare(mean, ">=", limit), reason="" if mean else "rows or their peer are missing", cases=cases)


def conv_mean_rows(suite, results, ratios):
    """Geometric means over oneDNN: of all layers, and of those that it is slow on."""
    groups = {"all": (lambda kind, direction, first, strided: True, 1.06),
              "backward_data, strided": (lambda kind, direction, first, strided: direction == "backward_data" and strided, 1.2),
              "bf16, backward_weights": (lambda kind, direction, first, strided: (kind, direction) ==
                                         ("bf16", "backward_weights"), 1.2),
              "bf16, first layer": (lambda kind, direction, first, strided: kind == "bf16" and first, 1.15)}
    rows = []
    for label, (chosen, limit) in groups.items():
        cases = []
        for name in results.names():
            kind, _, _, direction, first, strided = conv_case(name)
            cases += [name] if chosen(kind, direction, first, strided) else []
        rows.append(mean_row(suite, f"conv, geometric mean, {label}", cases,
                             {n: r for n, r in ratios.items() if n in cases}, limit))
    return rows


def conv_share_rows(suite, results):
    """Share of the ceiling over all layers, each with the weight of its operations; backward by data without the first."""
    groups = {}
    for name in results.names():
        kind, images, threads, direction, first, _ = conv_case(name)
        if direction != "backward_data" or not first:
            groups.setdefault((kind, direction, images, threads), []).append(name)
    rows = []
    for (kind, direction, images, threads), names in groups.items():
        reason = failed(results, names)
        work = {n: results.get(n, "work") for n in names}
        share = None
        if not reason:
            share = sum(work.values()) / sum(w / results.get(n, "share ours") for n, w in work.items())
        limit = CONV_SHARES[kind, direction]
        rows.append(row(suite, f"conv, {kind}, {direction}, {images} images, {threads} threads, by operations",
                        text_of("ours/ceiling", ">=", limit), share=share, met=compare(share, ">=", limit),
                        reason=reason, cases=names))
    return rows


def conv_scaling_rows(suite, results):
    """One image: two threads over one, for layers of 50 million operations or more."""
    rows = []
    for name in results.names():
        _, images, threads, _, _, _ = conv_case(name)
        alone = name.replace("/threads2/", "/threads1/")
        if images != 1 or threads != 2 or alone not in results.names():
            continue
        reason = failed(results, [name, alone])
        if not reason and results.get(name, "work") < 50e6:
            continue
        speedup = None if reason else results.get(alone, "seconds ours") / results.get(name, "seconds ours")
        rows.append(row(suite, name + ", over one thread", "two threads >= 1.7 x", ours=speedup, unit="x",
                        met=compare(speedup, ">=", 1.7), reason=reason, cases=[name, alone]))
    return rows


def conv_layer_rows(suite, results, names, limit):
    """A row a layer, and its ratio to the quicker oneDNN where it was compared."""
    rows, ratios = [], {}
    for name in names:
        reason = failed(results, [name])
        found = {} if reason else measured(results, name)
        label = results.labels.get(name, "")
        if not reason and ("differs" in label or not found.get("peer_name", "").startswith("oneDNN")):
            reason = label or "oneDNN is missing"
        if not reason:
            ratios[name] = found["ratio"]
        rows.append(row(suite, name, text_of("ours/peer", ">=", limit),
                        met=not reason and compare(found["ratio"], ">=", limit), reason=reason, cases=[name], **found))
    return rows, ratios


def conv_rows(results):
    suite = "conv"
    rows, ratios = conv_layer_rows(suite, results, results.names(), 0.97)
    return (rows + conv_share_rows(suite, results) + conv_mean_rows(suite, results, ratios) +
            conv_scaling_rows(suite, results))


def conv_more_rows(results):
    """Other networks' layers over oneDNN; Winograd's algorithm over ours direct."""
    suite = "conv_more"
    layers = [n for n in results.names() if n.startswith("conv/")]
    rows, ratios = conv_layer_rows(suite, results, layers, 0.9)
    rows.append(mean_row(suite, "conv_more, geometric mean, all", layers, ratios, 1.05))
    for name in [n for n in results.names() if n.startswith("winograd/")]:
        reason = failed(results, [name])
        found = {} if reason else measured(results, name)
        rows.append(row(suite, name, "ours/direct >= 1.5", met=compare(found.get("ratio"), ">=", 1.5), reason=reason,
                        cases=[name], **found))
    return rows


def train_rows(results):
    rows = []
    for name in [n for n in results.names() if n.startswith("train/")]:
        reason = failed(results, [name])
        rate = results.get(name, "pictures per second")
        peer = results.get(name, "PyTorch pictures per second")
        reason = reason or ("" if peer else results.labels.get("PyTorch's error", "PyTorch is missing"))
        ratio = rate / peer if rate and peer else None
        cnn = name.split("/")[2].startswith("cnn")
        least = (2.0 if "/bf16/" in name else 1.5) if cnn else 1.2
        rows.append(row("train", name, f"ours/peer >= {least}", ours=rate, unit="pictures/s", peer=peer,
                        peer_name=results.labels.get("PyTorch", "PyTorch"), ratio=ratio,
                        share=results.get(name, "share ours"), met=compare(ratio, ">=", least), reason=reason, cases=[name]))
    return rows


TILE_KERNELS = {"64x64x64": 1.2, "128x128x128": 1.2, "64x64x256": 1.2, "32x32x32": 1.1, "64x28x64": 1.1,
                "48x28x64": 1.1, "23x23x24": 1.1, "16x16x16": 1.1}  # over LIBXSMM
TILE_LAYERS = {("linear", "bf16", "forward"): 1.3, ("linear", "bf16", "backward_data"): 1.3,
               ("linear", "bf16", "backward_weights"): 1.5, ("linear", "u8s8", "forward"): 1.2,
               ("linear", "bf16x3", "forward"): 2,
               ("linear", "bf16x3", "backward_data"): 2, ("linear", "bf16x3", "backward_weights"): 2,
               ("linear", "bf16x2", "forward"): 3, ("linear", "bf16x2", "backward_data"): 3,
               ("linear", "bf16x2", "backward_weights"): 3, ("conv", "bf16", "forward"): 1.4,
               ("conv", "bf16", "backward_data"): 1.7, ("conv", "bf16", "backward_weights"): 3,
               ("conv", "u8s8", "forward"): 1.3, ("conv", "f32", "forward"): 1.04,
               ("conv", "f32", "backward_data"): 1.15, ("conv", "f32", "backward_weights"): 1.12}


def ratio_row(suite, results, name, limit, accepted=lambda peer: True):
    """ours/peer >= limit, the quickest of the peers that are accepted."""
    reason = failed(results, [name])
    found = {} if reason else measured(results, name)
    best = fastest(results, name, accepted)
    if not reason and best is None:
        reason = results.labels.get(name, "") or "no peer"
    if best:
        found.update(peer_name=best[0], ratio=best[1],
                     peer=results.get(name, "work") / results.get(name, "seconds " + best[0]) * 1e-9)
    return row(suite, name, text_of("ours/peer", ">=", limit), reason=reason, cases=[name],
               met=not reason and compare(found.get("ratio"), ">=", limit), **found)


def tile_kernel_rows(suite, results):
    def is_libxsmm(peer):
        return peer.startswith("LIBXSMM")

    rows = []
    for kind in ("bf16", "u8s8"):
        rows += [ratio_row(suite, results, f"gemm/{kind}/{shape}/batch16", limit, is_libxsmm)
                 for shape, limit in TILE_KERNELS.items()]
        name = f"hot/{kind}/64x64x64/batch16"
        reason = failed(results, [name])
        found = {} if reason else measured(results, name)
        rows.append(row(suite, name, "ours/ceiling >= 0.85", met=compare(found.get("share"), ">=", 0.85), reason=reason,
                        cases=[name], **found))
        rows += [value_row(suite, results, f"a call without a scope over one inside, {name.removeprefix('unscoped/')}",
                           name, "configurations", 1, "configurations", "<=", 1)
                 for name in results.names() if name.startswith(f"unscoped/{kind}/")]
        shapes = [n for n in results.names() if n.startswith(f"shapes_1000/{kind}/")]
        rows += libxsmm_rows(suite, results, f"{kind}, {len(shapes):,} different shapes", shapes, 16, 1.15)
    return rows


def tile_rows(results):
    """With AMX: kernels over LIBXSMM, products by pieces and layers over the quickest peer."""
    suite = "tiles"
    rows = tile_kernel_rows(suite, results)
    for name in [n for n in results.names() if n.startswith("product/")]:
        limits = {"bf16x3": (2.4, 2.0), "bf16x2": (4.0, 3.0)}[name.split("/")[1]]
        rows.append(ratio_row(suite, results, name, limits[0 if name.endswith("/pieces_given") else 1]))
    for (layer, kind, direction), limit in TILE_LAYERS.items():
        by_images = {}
        for name in results.names():
            if not name.startswith(f"{layer}/{kind}/") or not name.endswith("/" + direction):
                continue
            if results.get(name, "reading") == 1:
                found = measured(results, name)
                rows.append(row(suite, name, "ours/ceiling >= 0.9", met=compare(found.get("share"), ">=", 0.9),
                                cases=[name], **found))
            elif layer == "conv" or not name.split("/")[2].startswith("1x"):
                by_images.setdefault(name.split("/")[2] if layer == "conv" else "", []).append(name)
        for images, names in by_images.items():
            layers = [ratio_row(suite, results, n, 1.0 if layer == "linear" else 0.97) for n in names]
            ratios = {r["case"]: r["ratio"] for r in layers if r["ratio"]}
            label = ", ".join(filter(None, [layer, kind, direction, images])) + ", geometric mean"
            rows += layers + [mean_row(suite, label, names, ratios, limit, "the quickest of each row")]
    return rows


def void_cases(results):
    """Cases in which ours or a peer ran above its ceiling."""
    found = {}
    for name in results.runs:
        for who, share in results.peers(name, "share ").items():
            if share > VOID_ABOVE:
                found[name] = f"{who} at {share:.3f} of the ceiling"
    return found


def void_rows(rows, void):
    """No row is met that says something of a void case."""
    for r in rows:
        for case in r["made_of"]:
            if case in void and r["met"] is not None:
                r.update(met=False, reason=f"void: {case}: {void[case]}")


# ---- output -------------------------------------------------------------------------------------------------------

def machine():
    """The machine by its CPU."""
    facts = {}
    with open("/proc/cpuinfo") as file:
        for line in file:
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    family, model = int(facts.get("cpu family", 0)), int(facts.get("model", 0))
    names = {("AuthenticAMD", 26): "Zen 5", ("AuthenticAMD", 25): "Zen 3 or 4", ("AuthenticAMD", 23): "Zen to Zen 2",
             ("GenuineIntel", 6, 85): "Skylake-SP or Cascade Lake", ("GenuineIntel", 6, 106): "Ice Lake-SP",
             ("GenuineIntel", 6, 143): "Sapphire Rapids", ("GenuineIntel", 6, 207): "Emerald Rapids",
             ("GenuineIntel", 6, 173): "Granite Rapids"}
    vendor = facts.get("vendor_id", "?")
    name = names.get((vendor, family, model)) or names.get((vendor, family)) or "code name not known"
    return f"{vendor} family {family} model {model} ({name}), {facts.get('model name', '?')}, {os.cpu_count()} cores"


def has_tiles():
    with open("/proc/cpuinfo") as file:
        return any(line.startswith("flags") and " amx_tile" in line for line in file)


def number(value):
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def table(rows, markdown=False):
    lines = [["case", "ours", "peer", "ours/peer", "ours/ceiling", "target", "met"]]
    for r in rows:
        peer = (number(r["peer"]) + " " + r["peer_name"]).strip() if r["peer_name"] else number(r["peer"])
        met = {True: "yes", False: "NO", None: "-"}[r["met"]] + (f" ({r['reason']})" if r["reason"] else "")
        lines.append([r["case"], (number(r["ours"]) + " " + r["unit"]).strip(), peer, number(r["ratio"]),
                      number(r["share"]), r["target"], met])
    if markdown:
        lines.insert(1, ["---"] * 7)
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(len(line[i]) for line in lines) for i in range(6)]
    return "\n".join(" | ".join([*(line[i].ljust(widths[i]) for i in range(6)), line[6]]) for line in lines)


def split_page(path, suite):
    """What stands before and after the place of the suite's table, and the two marks."""
    begin, end = f"<!-- begin {suite} -->", f"<!-- end {suite} -->"
    try:
        with open(path) as file:
            before, found_begin, rest = file.read().partition(begin)
    except OSError as error:
        sys.exit(f"cannot read {path}: {error}")
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        sys.exit(f"{path} has no place for a table: {begin} and {end}")
    return before, begin, end, after


def replace_in_page(path, suite, text):
    before, begin, end, after = split_page(path, suite)
    with open(path, "w") as file:
        file.write(f"{before}{begin}\n{text}\n{end}{after}")


def plot_roofline(results, folder, plt):
    peak = results.get("peak/f32/threads1", "operations per second")
    if not peak:
        return
    figure, axes = plt.subplots(figsize=(8, 5))
    intensity = [2.0 ** (i / 4) for i in range(-12, 33)]
    for size, level in [(32768, "L1"), (524288, "L2"), (8388608, "L3"), (268435456, "DRAM")]:
        speed = results.get(f"bandwidth/{size}/threads1", "bytes per second")
        if speed:
            axes.plot(intensity, [min(peak, speed * i) * 1e-9 for i in intensity], label=f"{level}, {speed * 1e-9:.0f} GB/s")
    points = []
    for name in results.runs:
        if name.startswith("shapes_1000/") or name.startswith("gemm/f32/"):
            m, n, k = shape_of(name)
            batch = int(name.rsplit("batch", 1)[1])
            rate = results.get(name, "work") / results.get(name, "seconds ours")
            points.append((2 * m * n * k * batch / (4 * (batch * (m * k + k * n) + m * n)), rate * 1e-9))
    axes.scatter(*zip(*points), s=4, color="black", alpha=0.4, label="ours, f32")
    axes.set(xscale="log", yscale="log", xlabel="flop a byte of A, B and C", ylabel="GFLOP/s",
             title="f32 kernels under the roofline, one thread")
    axes.legend(fontsize=8)
    figure.savefig(os.path.join(folder, PICTURES[0]), dpi=120, bbox_inches="tight")


def plot_ratio(results, folder, plt):
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for part, batch in zip(axes, (16, 1)):
        points = {}
        for name in results.runs:
            if name.startswith("shapes_1000/") and name.endswith(f"/batch{batch}"):
                m, n, k = shape_of(name)
                for peer, ratio in results.peers(name).items():
                    if peer.startswith("LIBXSMM"):
                        points.setdefault(peer, []).append((m * n * k, ratio))
        for peer, pairs in sorted(points.items()):
            part.scatter(*zip(*pairs), s=5, alpha=0.5, label=peer)
        part.axhline(1, color="black", linewidth=0.8)
        part.set(xscale="log", yscale="log", xlabel="m n k", title=f"batch {batch}")
        if points:
            part.legend(fontsize=8)
    axes[0].set_ylabel("times as quick as the peer")
    figure.savefig(os.path.join(folder, PICTURES[1]), dpi=120, bbox_inches="tight")


def plot(results, folder):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    os.makedirs(folder, exist_ok=True)
    plot_roofline(results, folder, plt)
    plot_ratio(results, folder, plt)


# ---- the run ------------------------------------------------------------------------------------------------------

def primitive_files(options, folder):
    """The suite's problem files, with a fresh draw of shapes added, cut short for --quick."""
    files = [os.path.join(PROBLEMS, name) for name in FILES["primitive"]]
    fresh = draw(20 if options.quick else 200, options.seed)
    write_shapes(os.path.join(folder, "shapes_fresh.txt"), fresh, f"seed {options.seed}")
    with open(os.path.join(folder, "fresh.txt"), "w") as file:
        file.write("shapes f32 shapes_fresh.txt 16\nshapes f32 shapes_fresh.txt 1\n")
    files.append(os.path.join(folder, "fresh.txt"))
    if options.quick:  # the first 100 shapes of the list, under the same name
        files.remove(os.path.join(PROBLEMS, "shapes.txt"))
        with open(os.path.join(PROBLEMS, "shapes_1000.txt")) as file:
            lines = [line for line in file if not line.startswith("#")][:100]
        with open(os.path.join(folder, "shapes_1000.txt"), "w") as file:
            file.writelines(lines)
        with open(os.path.join(folder, "shapes.txt"), "w") as file:
            file.write("shapes f32 shapes_1000.txt 16\nshapes f32 shapes_1000.txt 1\n")
        files.append(os.path.join(folder, "shapes.txt"))
    return files


def suite_files(options, folder):
    if options.suite == "primitive":
        return primitive_files(options, folder)
    files = [os.path.join(PROBLEMS, name) for name in FILES[options.suite]]
    if options.suite == "conv" and options.quick:  # one image, one thread
        with open(files[0]) as all_layers, open(os.path.join(folder, "conv.txt"), "w") as file:
            file.writelines(line for line in all_layers if line.split()[2] == "1" and line.split()[-1] == "1")
        files = [os.path.join(folder, "conv.txt")]
    return files


def measure_pytorch(options, results, only):
    """PyTorch runs in a process of its own, in turn with ours."""
    for name in [n for n in results.names() if n.startswith("train/") and n in only]:
        _, kind, layers, batch, threads = name.split("/")
        command = [options.python, os.path.join(HERE, "peers", "pytorch_step.py"), "--type", kind, "--layers", layers,
                   "--batch", batch.removeprefix("batch"), "--threads", threads.removeprefix("threads")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            results.labels["PyTorch's error"] = "PyTorch ended with " + (done.stderr.strip().splitlines() or ["?"])[-1]
            continue
        told = json.loads(done.stdout)
        results.runs.setdefault(name, []).append({"PyTorch pictures per second": told["pictures per second"]})
        results.labels["PyTorch"] = "PyTorch " + told["version"]


def measure_suite(options, driver, results, folder):
    """All cases once; those of rows that fail, and those above their ceiling, twice more."""
    if options.suite == "tiles" and not has_tiles():
        return [row("tiles", "tiles", "AMX", met=None, reason="this CPU has no AMX, or the system hides it")]
    files = suite_files(options, folder)
    rows_of = {"primitive": primitive_rows, "conv": conv_rows, "conv_more": conv_more_rows,
               "tiles": tile_rows, "train": train_rows}[options.suite]
    only, begin = None, time.monotonic()
    for attempt in range(3):
        started = time.monotonic()
        turns = 3 if options.suite == "train" else 1
        for _ in range(turns):
            results.add(driver.run(files, only))
            if options.suite == "train":
                measure_pytorch(options, results, only or results.names())
        again = {c for r in rows_of(results) if r["met"] is False for c in r["cases"]} | set(void_cases(results))
        if not again or attempt == 2:
            break
        took = (time.monotonic() - started) / (len(only) if only else len(results.names()))
        left = options.minutes * 60 - (time.monotonic() - begin)
        if took * len(again) > left:
            print(f"no time to measure {len(again)} cases again", file=sys.stderr)
            break
        only = sorted(again)
        print(f"measuring {len(only)} cases again", file=sys.stderr)
    return rows_of(results)


def expect_writable(options):
    """Opens what the run will write, before it measures for many minutes."""
    if options.document:
        split_page(options.document, options.suite)
    if options.plot:
        try:
            import matplotlib  # noqa: F401
            os.makedirs(options.plot, exist_ok=True)
        except (ImportError, OSError) as error:
            sys.exit(f"cannot draw into {options.plot}: {error}")
    pictures = [os.path.join(options.plot, name) for name in PICTURES] if options.plot else []
    for path in filter(None, [options.json, options.raw, options.document, *pictures]):
        try:
            there = os.path.exists(path)
            with open(path, "a"):
                pass
            if not there:
                os.remove(path)
        except OSError as error:
            sys.exit(f"cannot write {path}: {error}")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", nargs="?", choices=sorted(FILES))
    parser.add_argument("--bench", default="build/release/bench/brgemm_bench", help="the driver")
    parser.add_argument("--json", metavar="FILE", help="write the rows")
    parser.add_argument("--document", metavar="FILE",
                        help="replace the table between <!-- begin SUITE --> and <!-- end SUITE --> in a page")
    parser.add_argument("--raw", metavar="FILE", help="write every counter of every case")
    parser.add_argument("--plot", metavar="DIR", help="write pictures (needs matplotlib)")
    parser.add_argument("--quick", action="store_true", help="fewer shapes and rounds: a look, not a verdict")
    parser.add_argument("--rounds", type=int, help="interleaved rounds a case")
    parser.add_argument("--sample-us", type=float, help="microseconds a contestant runs in one round")
    parser.add_argument("--repeats", type=int, help="repetitions of a case")
    parser.add_argument("--minutes", type=float, help="no row is measured again that would not end in this time")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"), help="of the fresh shapes")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has torch, for the suite train")
    parser.add_argument("--draw", type=int, metavar="COUNT", help="print a list of shapes drawn with --seed, and end")
    parser.add_argument("--verbose", action="store_true", help="print the name of each case as it ends")
    options = parser.parse_args()
    if options.suite is None and options.draw is None:
        parser.error("name a suite")
    if options.draw is None:
        expect_writable(options)
    options.rounds = options.rounds or (5 if options.quick else 11)
    options.sample_us = options.sample_us or (150 if options.quick else 300)
    options.minutes = options.minutes or (1.5 if options.quick else 20)
    options.repeats = options.repeats or (1 if options.quick or options.suite.startswith("conv") else 3)
    return options


def main():
    options = parse_arguments()
    if options.draw is not None:
        for shape in draw(options.draw, options.seed):
            print(*shape)
        return 0
    results = Results()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_suite(options, Driver(options), results, folder)
    void = void_cases(results)
    void_rows(rows, void)
    print(f"machine: {machine()}\npeers: {results.context.get('peers', '')}")
    print(f"fresh shapes: seed {options.seed}\n" if options.suite == "primitive" else "")
    print(table(rows))
    for name, reason in void.items():
        print(f"VOID: {name}: {reason}")
    for name, reason in results.errors.items():
        print(f"ERROR: {name}: {reason}")
    missed = sum(r["met"] is False for r in rows)
    print(f"\n{sum(r['met'] is True for r in rows)} met, {missed} not met, "
          f"{sum(r['met'] is None for r in rows)} not for this machine{'; the run is void' if void else ''}")
    written = [{k: v for k, v in r.items() if k not in ("cases", "made_of")} for r in rows]
    if options.json:
        with open(options.json, "w") as file:
            json.dump(written, file, indent=1)
    if options.document:
        text = f"{machine()}. Peers: {results.context.get('peers', '')}.\n\n{table(rows, markdown=True)}"
        text += "".join(f"\n\nVoid: {name}: {reason}." for name, reason in void.items())
        replace_in_page(options.document, options.suite, text)
    if options.raw:
        with open(options.raw, "w") as file:
            json.dump({name: {c: results.get(name, c) for run in runs for c in run}
                       for name, runs in results.runs.items()}, file, indent=1)
    if options.plot:
        plot(results, options.plot)
    return 1 if missed or void or results.errors else 0


if __name__ == "__main__":
    sys.exit(main())
