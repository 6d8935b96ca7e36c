#!/usr/bin/env python3
"""Tests of what makes the `stories` checkpoint, as far as they need no PyTorch.

    python3 test_stories.py        (NumPy is used where it is installed; its tests are skipped elsewhere)
"""
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest

import corpus
import data
import shape

try:
    import numpy
    import checkpoint
    import mxfp4
except ImportError:
    numpy = None

FOLDER = os.path.dirname(os.path.abspath(__file__))
SHIPPED = os.path.join(FOLDER, "checkpoint")
needs_numpy = unittest.skipIf(numpy is None, "NumPy is not installed")


class Corpus(unittest.TestCase):
    def test_streams_are_those_the_model_was_trained_on(self):
        """The first 1,000 documents of a seed; these digests were taken from the generator of the training run."""
        for seed, digest in ((0, "c24419921f339cf82ac75833702524abd992c287023e531c1a57773f3170e3cc"),
                             (101, "4d2968e51b75c9cca3704a9461eaa80734d1eb8e3e34a9aa9f7949faf55646cd")):
            text = "".join(itertools.islice(corpus.documents(seed), 1000))
            self.assertEqual(hashlib.sha256(text.encode()).hexdigest(), digest)

    def test_documents_are_harmony(self):
        message = re.compile(r"<\|start\|>(?:system|developer|user|assistant|functions\.get_weather to=assistant)"
                             r"(?:<\|channel\|>(?:analysis|final|commentary(?: to=\S+ <\|constrain\|>json)?))?"
                             r"<\|message\|>[^|{]*(?:\{[^|]*)?(?:<\|end\|>|<\|return\|>|<\|call\|>)")
        for document in itertools.islice(corpus.documents(5), 500):
            self.assertEqual(message.sub("", document), "", document)
            self.assertRegex(document, r"<\|(return|call)\|>$")

    def test_help_and_command_line(self):
        run = subprocess.run([sys.executable, "-B", os.path.join(FOLDER, "corpus.py"), "--seed", "3", "--count", "2"],
                             capture_output=True, text=True, check=True)
        first, second = itertools.islice(corpus.documents(3), 2)
        self.assertEqual(run.stdout, f"{first} \n{'-' * 80}\n{second} \n{'-' * 80}\n")


class Books(unittest.TestCase):
    def test_chunks(self):
        prose = ("\u201cWell,\u201d said the old man, \u2018that is\nthe way of _it_\u2019\u2014so it was. " * 10).strip()
        text = "\n\n".join([prose, "A TITLE THAT STANDS IN CAPITALS", "short", "caf\u00e9 " * 20, prose, prose])
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "books.txt")
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            chunks = data.read_books(path)
        plain = ("\"Well,\" said the old man, 'that is the way of it'--so it was. " * 10).strip()
        self.assertEqual(chunks, [plain] * 3)

    def test_mixture(self):
        mixed = list(data.documents(["a book"], 1, 2000))
        share = mixed.count("<|startoftext|>a book<|endoftext|>") / len(mixed)
        self.assertAlmostEqual(share, data.BOOK_SHARE, delta=0.03)
        self.assertEqual(mixed, list(data.documents(["a book"], 1, 2000)))


class Shape(unittest.TestCase):
    def test_special_tokens_are_the_tokenizers(self):
        with open(os.path.join(SHIPPED, "tokenizer.json"), encoding="utf-8") as file:
            added = json.load(file)["added_tokens"]
        self.assertEqual({token["content"]: token["id"] for token in added},
                         {name: shape.special_id(name) for name in shape.SPECIAL_TOKENS})


@needs_numpy
class Rounding(unittest.TestCase):
    def test_nearest_code_by_trying_all(self):
        random = numpy.random.default_rng(1)
        weights = (random.standard_normal((20, 64)) * 2.0 ** random.integers(-20, 20, (20, 1))).astype(numpy.float32)
        codes, exponents = mxfp4.quantize(weights)
        blocks = weights.reshape(20, 2, 32).astype(float)
        scaled = blocks / 2.0 ** exponents
        largest = abs(scaled).max(-1)
        self.assertTrue(((largest > 3.5) & (largest <= 7)).all())
        values = numpy.array(mxfp4.MAGNITUDES)
        best = abs(abs(scaled)[..., None] - values).min(-1)
        numpy.testing.assert_array_equal(abs(abs(scaled) - values[codes & 7]), best)
        numpy.testing.assert_array_equal(codes >= 8, scaled < 0)
        numpy.testing.assert_array_equal(mxfp4.dequantize(codes, exponents),
                                         (values[codes & 7] * numpy.where(codes < 8, 1, -1) * 2.0 ** exponents)
                                         .reshape(20, 64).astype(numpy.float32))

    def test_zeros_ties_and_packing(self):
        weights = numpy.zeros((3, 32), numpy.float32)
        weights[1, :8] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6]  # ties go towards zero
        weights[2, :2] = [-6, -0.0]
        codes, exponents = mxfp4.quantize(weights)
        self.assertEqual(codes[1, 0, :8].tolist(), [0, 1, 2, 3, 4, 5, 6, 7])
        self.assertEqual(codes[2, 0, :3].tolist(), [15, 8, 0])
        self.assertEqual(exponents[:, 0, 0].tolist(), [-122, 0, 0])
        blocks, scales = mxfp4.pack(codes, exponents)
        self.assertEqual((blocks.shape, scales.shape), ((3, 1, 16), (3, 1)))
        self.assertEqual((blocks[1, 0, :4].tolist(), scales[1, 0]), ([0x10, 0x32, 0x54, 0x76], 127))
        for ours, back in zip((codes, exponents), mxfp4.unpack(blocks, scales)):
            numpy.testing.assert_array_equal(ours, back)

    def test_bf16(self):
        numbers = numpy.array([1, 1 + 2 ** -8, 1 + 3 * 2 ** -8, 1 + 2 ** -8 + 2 ** -20, -3.5, 0], numpy.float32)
        expected = numpy.array([1, 1, 1 + 2 ** -6, 1 + 2 ** -7, -3.5, 0], numpy.float32)
        numpy.testing.assert_array_equal(checkpoint.from_bf16(checkpoint.to_bf16(numbers)), expected)


@needs_numpy
class Export(unittest.TestCase):
    def test_shipped_checkpoint_comes_out_again(self):
        """The weights read back and exported are the shipped file, byte for byte."""
        weights = checkpoint.loaded_weights(checkpoint.read_safetensors(os.path.join(SHIPPED, "model.safetensors")))
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.write(folder, weights)
            with open(os.path.join(folder, "model.safetensors"), "rb") as ours, \
                    open(os.path.join(SHIPPED, "model.safetensors"), "rb") as shipped:
                self.assertTrue(ours.read() == shipped.read())
            for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
                with open(os.path.join(folder, name), encoding="utf-8") as ours, \
                        open(os.path.join(SHIPPED, name), encoding="utf-8") as shipped:
                    self.assertEqual(json.load(ours), json.load(shipped))

    def test_plain_experts(self):
        weights = checkpoint.loaded_weights(checkpoint.read_safetensors(os.path.join(SHIPPED, "model.safetensors")))
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.write(folder, weights, plain=True)
            back = checkpoint.loaded_weights(checkpoint.read_safetensors(os.path.join(folder, "model.safetensors")))
            with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
                self.assertNotIn("quantization_config", json.load(file))
        self.assertEqual(weights.keys(), back.keys())
        for name, value in weights.items():
            numpy.testing.assert_array_equal(value, back[name], name)


if __name__ == "__main__":
    unittest.main()
