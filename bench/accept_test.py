#!/usr/bin/env python3
"""Tests of accept.py on made-up measurements: what is met, what is not, and what voids a run."""
import os
import subprocess
import sys
import tempfile
import unittest

import accept


def results_of(cases, peers="OpenBLAS 0.3, oneDNN 2.6"):
    """Results with one run a case; cases: name -> counters, or an error's text. `peers` are those that were loaded."""
    entries = []
    for name, counters in cases.items():
        entry = {"name": name + "/iterations:1/manual_time", "run_type": "iteration"}
        if isinstance(counters, str):
            entry.update(error_occurred=True, error_message=counters)
        else:
            entry.update(counters)
        entries.append(entry)
    results = accept.Results()
    results.add({"context": {"peers": peers}, "benchmarks": entries})
    return results


def kernel(share=0.99, speed=1.1, peer="LIBXSMM 1.17", **more):
    return {"work": 1e6, "seconds ours": 1e-6, "share ours": share, "seconds " + peer: speed * 1e-6,
            "speed " + peer: speed, "cycles": 100.0, "bound cycles": 99.0, "predicted cycles": 101.0,
            "code bytes": 1000, **more}


class Rows(unittest.TestCase):
    def test_share(self):
        name = "gemm/f32/64x64x64/batch16"
        for share, met in [(0.97, True), (0.96, False)]:
            row = accept.share_row("primitive", results_of({name: kernel(share)}), name, 0.97)
            self.assertIs(row["met"], met)
        row = accept.share_row("primitive", results_of({name: "no backend"}), name, 0.97)
        self.assertIs(row["met"], False)
        self.assertIn("no backend", row["reason"])
        self.assertIs(accept.share_row("primitive", results_of({}), name, 0.97)["met"], False)
        alone = {k: v for k, v in kernel().items() if "LIBXSMM" not in k}
        row = accept.share_row("primitive", results_of({name: alone}), name, 0.97)
        self.assertEqual((row["met"], row["reason"]), (False, "LIBXSMM is missing"))
        row = accept.share_row("primitive", results_of({name: kernel(peer="OpenBLAS 0.3")}), name, 0.97)
        self.assertEqual((row["met"], row["reason"]), (False, "LIBXSMM is missing"))

    def test_an_error_stays(self):
        """Also where the case ends well afterwards, and for a row of one counter."""
        results = results_of({"generation": "out of memory"})
        results.add({"context": {}, "benchmarks": [{"name": "generation", "seconds ours": 1e-6}]})
        row = accept.value_row("primitive", results, "generation", "generation", "seconds ours", 1e6, "us", "<=", 12)
        self.assertEqual((row["met"], row["ours"]), (False, 1))
        self.assertIn("out of memory", row["reason"])

    def test_median_over_repetitions(self):
        results = accept.Results()
        for share in (0.5, 0.98, 0.99):
            results.add({"context": {}, "benchmarks": [{"name": "x", "share ours": share}]})
        self.assertEqual(results.get("x", "share ours"), 0.98)

    def test_overhead(self):
        name = "epilogue/f32/64x64x64/batch16/bias,relu"
        for speed, met in [(0.98, True), (0.96, False)]:
            results = results_of({name: kernel(speed=speed, peer="plain kernel")})
            self.assertIs(accept.overhead_row("primitive", results, name, 0.03)["met"], met)

    def shapes(self, **changed):
        cases = {f"shapes_1000/f32/{m}x16x16/batch{b}": kernel() for m in range(1, 21) for b in (1, 16)}
        cases["shapes_1000/f32/1x16x16/batch16"].update(changed)
        return {row["case"].removeprefix("f32, "): row
                for row in accept.shape_rows("primitive", results_of(cases), "shapes_1000", "f32")}

    def test_shapes(self):
        self.assertTrue(all(row["met"] for row in self.shapes().values()))
        slow = self.shapes(**{"speed LIBXSMM 1.17": 0.94})
        self.assertIs(slow["batch 16, least of the shapes"]["met"], False)
        self.assertEqual(slow["batch 16, least of the shapes"]["cases"], ["shapes_1000/f32/1x16x16/batch16"])
        self.assertIs(slow["batch 16, geometric mean"]["met"], True)
        unforeseen = self.shapes(**{"cycles": 200.0})
        self.assertIs(unforeseen["batch 16, shapes that dump predicts within 15 %"]["met"], True)  # 19 of 20
        beyond = self.shapes(**{"bound cycles": 1000.0})  # quicker than its bound: does not make up for others
        self.assertLess(beyond["batch 16, geometric mean of bound/measured cycles"]["ours"], 1)
        silent = self.shapes(**{"bound cycles": 0.0})
        self.assertIs(silent["batch 16, geometric mean of bound/measured cycles"]["met"], False)

    def test_missing_peer(self):
        cases = {f"shapes_1000/f32/4x16x16/batch{b}": kernel(peer="another") for b in (1, 16)}
        rows = accept.shape_rows("primitive", results_of(cases), "shapes_1000", "f32")
        self.assertEqual([r["met"] for r in rows if "LIBXSMM" in r["target"]], [False] * 4)
        cases = {f"shapes_1000/f32/{m}x16x16/batch{b}": kernel() for m in (1, 2) for b in (1, 16)}
        cases["shapes_1000/f32/1x16x16/batch1"] = kernel(peer="another")  # one shape alone
        rows = accept.shape_rows("primitive", results_of(cases), "shapes_1000", "f32")
        self.assertEqual([r["met"] for r in rows if "LIBXSMM" in r["target"]], [True, True, False, False])
        cases = {f"shapes_1000/f32/{m}x16x16/batch{b}": kernel() for m in (1, 2) for b in (1, 16)}
        cases["shapes_1000/f32/1x16x16/batch1"].update(kernel(peer="LIBXSMM 2.0"))  # one version on one shape alone
        rows = accept.shape_rows("primitive", results_of(cases), "shapes_1000", "f32")
        self.assertEqual([r["met"] for r in rows if "LIBXSMM" in r["target"]], [True, True, False, False])

    def conv(self, name, **changed):
        """Rows by case of two layers in all passes, one of them with other counters."""
        cases = {}
        for layer in ("224x224/3to64/kernel7x7/stride2x2", "56x56/64to64/kernel1x1"):
            for direction in ("forward", "backward_data", "backward_weights"):
                for threads in (1, 2):
                    cases[f"conv/bf16/images1/{layer}/threads{threads}/{direction}"] = {
                        **kernel(speed=1.3, peer="oneDNN 2.6"), "work": 1e8, "seconds ours": 1e-3 / threads}
        if name is not None:
            cases[name] = {**cases[name], **changed} if changed else "no backend"
        return {row["case"]: row for row in accept.conv_rows(results_of(cases))}

    def test_conv(self):
        rows = self.conv(None)
        self.assertTrue(all(row["met"] for row in rows.values()), [r for r in rows.values() if not r["met"]])
        self.assertEqual(len(rows), 12 + 6 + 4 + 6)
        first = "conv/bf16/images1/224x224/3to64/kernel7x7/stride2x2/threads1/"
        mean = "conv, geometric mean, "
        slow = {"speed oneDNN 2.6": 0.96}
        missed = {case for case, row in self.conv(first + "backward_data", **slow).items() if not row["met"]}
        self.assertEqual(missed, {first + "backward_data", mean + "backward_data, strided"})
        by_share = "conv, bf16, %s, 1 images, 1 threads, by operations"
        low = self.conv(first + "forward", **{"share ours": 0.5})
        self.assertAlmostEqual(low[by_share % "forward"]["share"], 2 / (1 / 0.5 + 1 / 0.99))
        self.assertFalse(low[by_share % "forward"]["met"])
        # Backward by data is counted without the first layer.
        self.assertTrue(self.conv(first + "backward_data", **{"share ours": 0.5})[by_share % "backward_data"]["met"])
        failing = self.conv(first + "backward_weights")
        for case in (first + "backward_weights", by_share % "backward_weights", mean + "all",
                     mean + "bf16, backward_weights", mean + "bf16, first layer"):
            self.assertFalse(failing[case]["met"], case)
            self.assertTrue(failing[case]["reason"], case)
        two = first.replace("threads1", "threads2") + "forward"
        scaling = self.conv(two, **{"seconds ours": 0.6e-3})[two + ", over one thread"]
        self.assertEqual((scaling["met"], round(scaling["ours"], 2)), (False, 1.67))
        small = self.conv(two, **{"work": 1e6, "seconds ours": 1e-3})
        self.assertNotIn(two + ", over one thread", small)
        other = self.conv(first + "forward", **{"speed another": 0.5, "seconds another": 0.5e-6})
        self.assertIn("missing", other[first + "forward"]["reason"])

    def tiles(self, name="", **changed):
        """Rows by case of one case of each kind of the suite of tiles, of which one has other counters."""
        libxsmm = {f"{kind}/{shape}/batch16": kernel(speed=1.3, peer="LIBXSMM 2.0") for kind in ("gemm/bf16", "gemm/u8s8")
                   for shape in accept.TILE_KERNELS}
        libxsmm |= {f"shapes_1000/{kind}/{m}x16x16/batch16": kernel(speed=1.3, peer="LIBXSMM 2.0")
                    for kind in ("bf16", "u8s8") for m in (1, 2)}
        unscoped = {f"unscoped/{kind}/16x16x16/batch1": {"configurations": 0.98} for kind in ("bf16", "u8s8")}
        hot = {f"hot/{kind}/64x64x64/batch16": kernel(0.9, peer="LIBXSMM 2.0") for kind in ("bf16", "u8s8")}
        products = {f"product/{kind}/512x512x512/threads1{given}": kernel(speed=speed, peer="oneDNN 3.13")
                    for kind, given, speed in [("bf16x3", "/pieces_given", 2.5), ("bf16x3", "", 2.1),
                                               ("bf16x2", "/pieces_given", 4.5), ("bf16x2", "", 3.1)]}
        layers = {f"linear/{kind}/64x1024x1024/threads1/{direction}": kernel(speed=limit + 0.1, peer="oneDNN 3.13")
                  for (layer, kind, direction), limit in accept.TILE_LAYERS.items() if layer == "linear"}
        layers |= {f"conv/{kind}/images{images}/56x56/64to64/kernel1x1/threads1/{direction}":
                   kernel(speed=limit + 0.1, peer="oneDNN 3.13")
                   for (layer, kind, direction), limit in accept.TILE_LAYERS.items() if layer == "conv"
                   for images in (2, 32)}
        layers["linear/bf16/1x1024x1024/threads1/forward"] = kernel(0.95, peer="oneDNN 3.13", reading=1)
        cases = {**libxsmm, **hot, **unscoped, **products, **layers}
        if name:
            self.assertIn(name, cases)
            cases[name] = {**cases[name], **changed}
        return {row["case"]: row for row in accept.tile_rows(results_of(cases, "LIBXSMM 2.0, oneDNN 3.13"))}

    def test_tiles(self):
        rows = self.tiles()
        self.assertTrue(all(row["met"] for row in rows.values()), [r for r in rows.values() if not r["met"]])
        # Kernels 16, hot 2, without a scope 2, shapes 2 x 2, products 4, linear 10 and a mean of each, conv 7 x 2 and a
        # mean, one read.
        self.assertEqual(len(rows), 16 + 2 + 2 + 4 + 4 + 10 * 2 + 7 * 2 * 2 + 1)

        def missed(name, **changed):
            return {case for case, row in self.tiles(name, **changed).items() if not row["met"]}

        gemm, hot, given = "gemm/bf16/64x64x64/batch16", "hot/u8s8/64x64x64/batch16", "product/bf16x3/512x512x512/threads1"
        self.assertEqual(missed(gemm, **{"speed LIBXSMM 2.0": 1.19}), {gemm})
        self.assertEqual(missed(hot, **{"share ours": 0.84}), {hot})
        self.assertEqual(missed("unscoped/bf16/16x16x16/batch1", configurations=1.1),
                         {"a call without a scope over one inside, bf16/16x16x16/batch1"})
        self.assertEqual(missed(given + "/pieces_given", **{"speed oneDNN 3.13": 2.3}), {given + "/pieces_given"})
        self.assertEqual(missed(given, **{"speed oneDNN 3.13": 1.9}), {given})
        read = "linear/bf16/1x1024x1024/threads1/forward"
        self.assertEqual(missed(read, **{"share ours": 0.89}), {read})
        shapes = "bf16, 2 different shapes, batch 16, "
        self.assertEqual(missed("shapes_1000/bf16/1x16x16/batch16", **{"speed LIBXSMM 2.0": 0.9}),
                         {shapes + "geometric mean", shapes + "least of the shapes"})
        layer = "conv/bf16/images32/56x56/64to64/kernel1x1/threads1/backward_weights"
        mean = "conv, bf16, backward_weights, images32, geometric mean"
        self.assertEqual(missed(layer, **{"speed oneDNN 3.13": 2.0}), {mean})  # behind the mean's limit, before the peer
        self.assertEqual(missed(layer, **{"speed oneDNN 3.13": 0.9}), {layer, mean})

    def test_suites_without_tiles_hide_them(self):
        before = os.environ.pop("BRGEMM_CPU", None)
        try:
            self.assertEqual(accept.environment_of("conv")["BRGEMM_CPU"], "-amx")
            self.assertNotIn("BRGEMM_CPU", accept.environment_of("tiles"))
            os.environ["BRGEMM_CPU"] = "-vnni"
            self.assertEqual(accept.environment_of("primitive")["BRGEMM_CPU"], "-vnni,-amx")
            self.assertEqual(accept.environment_of("tiles")["BRGEMM_CPU"], "-vnni")
        finally:
            os.environ.pop("BRGEMM_CPU", None)
            if before is not None:
                os.environ["BRGEMM_CPU"] = before

    def test_linear_needs_both_peers(self):
        """Each row is false, and its reason names the peer, where one was not loaded or was left out."""
        both = {**kernel(peer="oneDNN 2.6"), **kernel(peer="OpenBLAS 0.3")}
        f32, bf16 = ("linear/%s/64x1024x1024/threads1/forward" % t for t in ("f32", "bf16"))

        def rows(cases, peers="OpenBLAS 0.3, oneDNN 2.6"):
            return accept.linear_rows("primitive", results_of(cases, peers))

        self.assertEqual([r["met"] for r in rows({f32: both, bf16: kernel(peer="oneDNN 2.6")})], [True] * 3)
        for name, counters, peers, missing in [
                (f32, kernel(peer="oneDNN 2.6"), "BLIS 0.9, oneDNN 2.6", "OpenBLAS"),
                (bf16, kernel(peer="oneDNN 2.6"), "BLIS 0.9, oneDNN 2.6", "OpenBLAS"),
                (f32, kernel(peer="OpenBLAS 0.3"), "OpenBLAS 0.3", "oneDNN"),
                (f32, kernel(peer="oneDNN 2.6"), "OpenBLAS 0.3, oneDNN 2.6", "OpenBLAS"),
                (bf16, kernel(peer="another"), "OpenBLAS 0.3, oneDNN 2.6", "oneDNN"),
                (f32, kernel(peer="another"), "", "oneDNN")]:
            row, mean = rows({name: counters}, peers)
            self.assertEqual((row["met"], mean["met"]), (False, False), (name, peers))
            self.assertTrue(row["reason"].startswith(missing + " is missing"), row["reason"])

    def test_a_peer_that_differs_is_said(self):
        name = "linear/bf16/64x1024x1024/threads1/forward"
        differs = "oneDNN 3.14: its result differs from ours"
        row, mean = accept.linear_rows("primitive", results_of({name: {**kernel(peer="oneDNN 2.6"), "label": differs}}))
        self.assertEqual((row["met"], row["reason"], mean["met"]), (False, differs, False))

    def test_linear_takes_the_best_peer(self):
        name = "linear/f32/64x1024x1024/threads1/forward"
        both = {**kernel(speed=1.2, peer="OpenBLAS"), **kernel(speed=0.9, peer="oneDNN")}
        row, mean = accept.linear_rows("primitive", results_of({name: both}))
        self.assertEqual((row["peer_name"], row["met"], mean["met"]), ("oneDNN", False, False))

    def test_what_cannot_be_written_is_found_first(self):
        """A folder in the place of a file, a file in the place of a folder, a page without a place for the table."""
        with tempfile.TemporaryDirectory() as folder:
            taken, page = os.path.join(folder, "taken"), os.path.join(folder, "page.md")
            os.makedirs(taken)
            os.makedirs(os.path.join(folder, "pictures", "roofline.png"))
            with open(page, "w") as file:
                file.write("a page")
            for option, value in [("--json", taken), ("--raw", taken), ("--document", taken), ("--document", page),
                                  ("--document", os.path.join(folder, "absent.md")), ("--plot", page),
                                  ("--plot", os.path.join(folder, "pictures"))]:
                done = subprocess.run([sys.executable, "-B", accept.__file__, "primitive", "--bench", "/nowhere", option,
                                       value], capture_output=True, text=True)
                self.assertEqual(done.returncode, 1, done.stderr)
                self.assertIn(value, done.stderr)
                self.assertNotIn("Traceback", done.stderr)
            self.assertEqual(sorted(os.listdir(folder)), ["page.md", "pictures", "taken"])

    def test_void(self):
        self.assertEqual(accept.void_cases(results_of({"x": kernel(1.02)})), {})
        self.assertIn("x", accept.void_cases(results_of({"x": kernel(1.04)})))
        self.assertIn("x", accept.void_cases(results_of({"x": kernel(**{"share LIBXSMM 1.17": 1.04})})))

    def test_void_rows(self):
        """All that a void case is part of: the means of the shapes, and the least of them."""
        cases = {f"shapes_1000/f32/{m}x16x16/batch{b}": kernel() for m in (1, 2) for b in (1, 16)}
        void = "shapes_1000/f32/1x16x16/batch16"
        rows = accept.shape_rows("primitive", results_of(cases), "shapes_1000", "f32")
        self.assertTrue(all(r["met"] for r in rows))
        accept.void_rows(rows, {void: "ours at 1.1 of the ceiling"})
        for r in rows:
            self.assertIs(r["met"], "batch 1," in r["case"], r["case"])
            self.assertEqual(void in r["reason"], not r["met"])

    def test_draw_is_what_the_list_says(self):
        with open(accept.PROBLEMS + "/shapes_1000.txt") as file:
            first, *lines = file.read().splitlines()
        self.assertEqual([tuple(map(int, line.split())) for line in lines], accept.draw(1000, int(first.split()[-1])))
        self.assertEqual(len(set(lines)), 998)  # as the table's note and docs/performance.md say


if __name__ == "__main__":
    unittest.main()
