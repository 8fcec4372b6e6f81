#!/usr/bin/env python3
"""The demonstration refuses a damaged checkpoint, settings that are not the checkpoint's, and what it could not write.

    checkpoint_test.py PROGRAM [folder of the pictures]     exit status 77: skipped, no pictures
"""
import os
import random
import struct
import subprocess
import sys
import tempfile
import unittest
import zlib

PROGRAM, DATA = "", "/usr/share/datasets/fashion-mnist"
SETTINGS = ["--network", "mlp", "--layers", "8", "--batch", "30000", "--epochs", "3", "--seed", "7"]  # two steps an epoch
# Behind the magic: one size of layers, "f32", "chain", "mlp", and then, 8 bytes each:
NUMBERS = {name: 8 + 16 + 11 + 13 + 11 + 8 * i for i, name in enumerate(
    ["epochs", "batch", "seed", "rate", "done.epoch", "done.batch", "loss", "history"])}


def run(folder, *options, data=None):
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run([PROGRAM, "--threads", "1", "--data", data or DATA, "--output", folder, *options],
                          capture_output=True, text=True, timeout=60, env=environment)
    return done.returncode, done.stderr


def sealed(body):
    return body + struct.pack("<Q", zlib.crc32(body))


class Checkpoint(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.holder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.holder.cleanup)
        cls.folder = cls.holder.name + "/run"
        status, error = run(cls.folder, *SETTINGS)
        assert status == 0, error
        with open(cls.folder + "/checkpoint", "rb") as file:
            cls.good = file.read()
        cls.body = cls.good[:-8]
        assert cls.good == sealed(cls.body)

    def refused(self, content, *words):
        with open(self.folder + "/checkpoint", "wb") as file:
            file.write(content)
        status, error = run(self.folder, "--resume")
        self.assertEqual(status, 1, error)
        for word in words:
            self.assertIn(word, error)

    def test_damaged(self):
        self.refused(b"", "no whole checkpoint")
        self.refused(self.good[:12], "no whole checkpoint")
        self.refused(b"x" * 1000, "no checkpoint of this program")
        self.refused(self.good[:len(self.good) // 2], "damaged")
        self.refused(self.good + b"x" * 100, "damaged")
        self.refused(self.good[:10] + self.good[11:], "damaged")
        draw = random.Random(1)
        for _ in range(50):
            at = draw.randrange(8, len(self.good))
            flipped = bytes([self.good[at] ^ 1 << draw.randrange(8)])
            self.refused(self.good[:at] + flipped + self.good[at + 1:], "damaged")

    def test_values_that_are_never_written(self):
        """With a checksum that fits."""
        def with_number(name, value, form="<q"):
            body = bytearray(self.body)
            struct.pack_into(form, body, NUMBERS[name] if name in NUMBERS else name, value)
            return sealed(bytes(body))

        self.refused(sealed(self.body[:-1]), "no whole checkpoint")
        self.refused(sealed(self.body + b"x"), "bytes behind its end")
        self.refused(sealed(self.body.replace(b"f32", b"zzz", 1)), "type zzz")
        self.refused(sealed(self.body.replace(b"chain", b"zzzzz", 1)), "sums zzzzz")
        self.refused(sealed(self.body.replace(b"mlp", b"abc", 1)), "network abc")
        self.refused(sealed(self.body.replace(b"mlp", b"cnn", 1)), "do not fit its layers")
        for value in (0, -4, 1 << 40):
            self.refused(with_number(16, value), f"a layer of {value}")
        self.refused(with_number(8, 1 << 62), "no whole checkpoint")
        self.refused(with_number("history", 1 << 61), "no whole checkpoint")
        for name, values in {"epochs": (0, -1, 1 << 62), "batch": (0, -1, 1 << 40)}.items():
            for value in values:
                self.refused(with_number(name, value), f"{name} {value}")
        for value in (-5, 1, 4, 1 << 62):
            self.refused(with_number("done.epoch", value), "epoch")
        for value in (-1, 1, 2, 1 << 40):
            self.refused(with_number("done.batch", value), f"batches {value}")
        for value in (float("nan"), float("inf"), -0.1, 0):
            self.refused(with_number("rate", value, "<d"), "learning rate")
        for value in (-7, 0, 5, 7):
            self.refused(with_number(len(self.body) - 8, value), f"steps {value}")
        self.refused(with_number(16, 9), "do not fit its layers")

    def test_other_settings(self):
        with open(self.folder + "/checkpoint", "wb") as file:
            file.write(self.good)
        self.assertEqual(run(self.folder, "--resume", *SETTINGS)[0], 0)
        for option, value in [("--epochs", "4"), ("--layers", "8,8"), ("--seed", "8"), ("--type", "bf16"),
                              ("--batch", "128"), ("--learning-rate", "0.2"), ("--network", "cnn")]:
            status, error = run(self.folder, "--resume", option, value)
            self.assertEqual(status, 1, option)
            self.assertIn(f"{option} differs from the checkpoint's", error)

    def test_learning_rate(self):
        for value in ("nan", "inf", "-inf", "-0.1", "0", "1e300"):
            status, error = run(self.holder.name + "/rate", *SETTINGS, f"--learning-rate={value}")
            self.assertEqual(status, 1, value)
            self.assertIn("--learning-rate", error)

    def test_what_cannot_be_written_is_found_first(self):
        """A folder in the place of each file; with another folder for the pictures it would fail on those."""
        for name in ("checkpoint", "checkpoint.part", "history.csv", "predictions.csv"):
            folder = f"{self.holder.name}/{name}.taken"
            os.makedirs(f"{folder}/{name}")
            status, error = run(folder, *SETTINGS, data="/nowhere")
            self.assertEqual(status, 1, name)
            self.assertIn(f"cannot write {folder}/{name}", error)
            self.assertEqual(os.listdir(folder), [name])


if __name__ == "__main__":
    PROGRAM = sys.argv.pop(1)
    if len(sys.argv) > 1:
        DATA = sys.argv.pop(1)
    if not os.path.exists(DATA + "/train-images-idx3-ubyte.gz"):
        print(f"skipped: no pictures in {DATA} (Debian: dataset-fashion-mnist)")
        sys.exit(77)
    unittest.main()
