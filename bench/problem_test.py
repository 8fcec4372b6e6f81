#!/usr/bin/env python3
"""A problem file that is not what it should be ends the driver with 2 and a line that says where and what was expected.

    problem_test.py PROGRAM
"""
import os
import subprocess
import sys
import tempfile
import unittest

PROGRAM = ""

# The line, and words that the message has.
BAD_LINES = [
    ("frobnicate 1 2", "no kind of problem", "frobnicate"),
    ("gemm f33 5 5 5 2", "TYPE", "f33", "bf16"),
    ("gemm f32 5 5 x 2", "K", '"x"', "whole number"),
    ("gemm f32 5 5 5", "gemm TYPE M N K BATCH", "there are 5"),
    ("gemm f32 5 5 5 2 2", "gemm TYPE M N K BATCH", "there are 7"),
    ("gemm f32 5 5 0 2", "K", "from 1"),
    ("gemm f32 -5 5 5 2", "M", "from 1"),
    ("gemm f32 5 +5 5 2", "N", "from 1"),
    ("gemm f32 5 5x 5 2", "N", "5x"),
    ("gemm f32 5 5 5 99999999999999999999", "BATCH", "99999999999999999999", "to 32768"),
    ("at_call f32 1000000 8 8 2", "M", "to 32768"),
    ("epilogue f32 8 8 8 2", "epilogue TYPE M N K BATCH STEPS"),
    ("epilogue f32 8 8 8 2 foo", "a step", "foo", "gelu_erf"),
    ("epilogue f32 8 8 8 2 bias,", "comma"),
    ("epilogue f32 8 8 8 2 bias,,relu", "a step", '""'),
    ("handle_call 3", "handle_call", "there are 2"),
    ("lookup 0 0", "DESCS", "from 1"),
    ("lookup 1 100000", "THREADS", "to 1024"),
    ("generation shapes.txt x", "COUNT", '"x"'),
    ("generation absent.txt 4", "absent.txt", "cannot be opened"),
    ("shapes f32 absent.txt 16", "absent.txt", "cannot be opened"),
    ("shapes f32 bad_shapes.txt 16", "bad_shapes.txt:2: ", "M N K"),
    ("shapes f32 no_shapes.txt 16", "no_shapes.txt", "ends without"),
    ("linear f64 8 8 8 1", "LINEAR_TYPE", "f64"),
    ("train bf16x3 8 1 20 30", "LAYER_TYPE", "bf16x3"),
    ("product bf16 8 8 8 1", "MATH", "bf16x2"),
    ("conv f32 1 3 8 1 9 9 3 3 1 1 -1 0 1", "PAD_H", "from 0 to 32768"),
    ("conv f32 1 3 8 1 9 9 3 3 0 1 0 0 1", "STRIDE_H", "from 1 to 32768"),
    ("linear f32", "linear LINEAR_TYPE ROWS IN OUT THREADS"),
    ("train f32 8 1 20", "train LAYER_TYPE BATCH THREADS FEATURES FEATURES..."),
    ("train f32 8 1 20 30 y", "FEATURES", '"y"'),
    ("train_cnn f16 8 1 20", "LAYER_TYPE", "f16", "bf16"),
    ("bandwidth 0 1", "BYTES", "from 1"),
    ("bandwidth 4096", "bandwidth BYTES THREADS"),
    ("peak f16 1", "TYPE", "f16"),
    ("\x00\x7f\x1b[2J\xff 1", "no kind of problem"),
]


class Problems(unittest.TestCase):
    def setUp(self):
        self.holder = tempfile.TemporaryDirectory()
        self.folder = self.holder.name
        self.addCleanup(self.holder.cleanup)
        self.write("shapes.txt", "3 4 5\n")
        self.write("bad_shapes.txt", "3 4 5\n3 4\n")
        self.write("no_shapes.txt", "# none\n")

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w", encoding="latin-1") as file:
            file.write(text)
        return path

    def run_driver(self, *arguments):
        return subprocess.run([PROGRAM, "--rounds=1", "--sample-us=1", "--peers", self.folder, *arguments],
                              capture_output=True, text=True, timeout=60)

    def expect_bad(self, done, *words):
        self.assertEqual(done.returncode, 2, done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)
        self.assertTrue(all(c == "\n" or " " <= c <= "~" for c in done.stderr), done.stderr)

    def test_lines(self):
        for line, *words in BAD_LINES:
            with self.subTest(line):
                path = self.write("problems.txt", f"# the one below is good\nbandwidth 4096 1\n{line}\n")
                self.expect_bad(self.run_driver(path), path + ":3: ", *words)

    def test_files(self):
        self.expect_bad(self.run_driver(self.write("empty.txt", "")), "empty.txt:0: ", "ends without")
        self.expect_bad(self.run_driver(os.path.join(self.folder, "absent.txt")), "absent.txt")
        self.expect_bad(self.run_driver(self.folder), self.folder)
        with open("/dev/urandom", "rb") as file:
            self.expect_bad(self.run_driver(self.write("random.txt", file.read(1 << 16).decode("latin-1"))), "random.txt:")

    def test_options(self):
        good = self.write("good.txt", "bandwidth 4096 1\n")
        self.assertEqual(self.run_driver(good).returncode, 0)
        for option in ("--sample-us=nan", "--sample-us=0", "--sample-us=inf", "--rounds=0", "--rounds=-1", "--no-such"):
            self.assertEqual(self.run_driver(good, option).returncode, 2, option)
        only = self.write("only.txt", "bandwidth/4097/threads1\n")
        self.assertEqual(self.run_driver(good, f"--only={only}").returncode, 2)

    def test_more_than_the_memory(self):
        """A case that cannot have its memory is an error of the run, not a crash."""
        done = self.run_driver(self.write("huge.txt", "gemm f64 32768 1 32768 32768\n"))
        self.assertEqual(done.returncode, 1, done.stderr)


if __name__ == "__main__":
    PROGRAM = sys.argv.pop(1)
    unittest.main()
