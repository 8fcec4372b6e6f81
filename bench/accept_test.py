#!/usr/bin/env python3
"""Tests of accept.py on made-up measurements: what is met, what is not, and what voids a run."""
import unittest

import accept


def results_of(cases):
    """Results with one run a case; cases: name -> counters, or an error's text."""
    entries = []
    for name, counters in cases.items():
        entry = {"name": name + "/iterations:1/manual_time", "run_type": "iteration"}
        if isinstance(counters, str):
            entry.update(error_occurred=True, error_message=counters)
        else:
            entry.update(counters)
        entries.append(entry)
    results = accept.Results()
    results.add({"context": {}, "benchmarks": entries})
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
        silent = self.shapes(**{"bound cycles": 0.0})
        self.assertIs(silent["batch 16, geometric mean of bound/measured cycles"]["met"], False)

    def test_missing_peer(self):
        cases = {f"shapes_1000/f32/4x16x16/batch{b}": kernel(peer="another") for b in (1, 16)}
        rows = accept.shape_rows("primitive", results_of(cases), "shapes_1000", "f32")
        self.assertEqual([r["met"] for r in rows if "LIBXSMM" in r["target"]], [False] * 4)
        name = "linear/f32/64x1024x1024/threads1/forward"
        alone = {k: v for k, v in kernel().items() if "LIBXSMM" not in k}
        self.assertIs(accept.linear_rows("primitive", results_of({name: alone}))[0]["met"], False)

    def test_linear_takes_the_best_peer(self):
        name = "linear/f32/64x1024x1024/threads1/forward"
        both = {**kernel(speed=1.2, peer="OpenBLAS"), **kernel(speed=0.9, peer="oneDNN")}
        row, mean = accept.linear_rows("primitive", results_of({name: both}))
        self.assertEqual((row["peer_name"], row["met"], mean["met"]), ("oneDNN", False, False))

    def test_void(self):
        self.assertEqual(accept.void_cases(results_of({"x": kernel(1.02)})), {})
        self.assertIn("x", accept.void_cases(results_of({"x": kernel(1.04)})))
        self.assertIn("x", accept.void_cases(results_of({"x": kernel(**{"share LIBXSMM 1.17": 1.04})})))

    def test_draw_is_what_the_list_says(self):
        with open(accept.PROBLEMS + "/shapes_1000.txt") as file:
            first, *lines = file.read().splitlines()
        self.assertEqual([tuple(map(int, line.split())) for line in lines], accept.draw(1000, int(first.split()[-1])))


if __name__ == "__main__":
    unittest.main()
