"""MXFP4: blocks of 32 numbers of 4 bits (E2M1) that share one power of two (E8M0).

quantize and dequantize work on NumPy arrays and, with array=torch, on PyTorch tensors: the export and the rounding
inside the training's forward pass are the same code.
"""
import numpy

BLOCK = 32
MAGNITUDES = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
MIDDLES = tuple((low + high) / 2 for low, high in zip(MAGNITUDES, MAGNITUDES[1:]))
SMALLEST = 2.0 ** -120  # blocks below it get its exponent
SCALE_BIAS = 127


def quantize(weights, array=numpy):
    """weights [..., n], n a multiple of 32 -> (codes [..., n / 32, 32] of 0..15, exponents [..., n / 32, 1]).

    Codes are the nearest, ties towards zero. The exponent puts the largest magnitude between 3.5 and 7 times the power
    of two, where 6 is the largest code: it may be cut by a seventh, which costs less than a coarser block."""
    blocks = weights.reshape(*weights.shape[:-1], -1, BLOCK)
    largest = array.amax(abs(blocks), axis=-1, keepdims=True)
    largest = array.where(largest < SMALLEST, SMALLEST, largest)
    exponents = array.frexp(largest)[1] - 3  # floor(log2(largest)) - 2
    exponents = array.where(array.ldexp(largest, -exponents) > 7, exponents + 1, exponents)
    magnitudes = abs(array.ldexp(blocks, -exponents))
    codes = sum(magnitudes > middle for middle in MIDDLES)
    return codes + 8 * array.signbit(blocks), exponents


def dequantize(codes, exponents, array=numpy):
    """The numbers that quantize's result stands for, [..., n]."""
    values = array.asarray(MAGNITUDES + tuple(-m for m in MAGNITUDES), dtype=array.float32)
    values[8] = -0.0
    numbers = array.ldexp(values[codes], exponents)
    return numbers.reshape(*numbers.shape[:-2], -1)


def pack(codes, exponents):
    """quantize's result as a checkpoint stores it: blocks [..., n / 32, 16] (low nibble first), scales [..., n / 32]."""
    codes = codes.astype(numpy.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4, (exponents[..., 0] + SCALE_BIAS).astype(numpy.uint8)


def unpack(blocks, scales):
    """The reverse of pack."""
    codes = numpy.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], BLOCK)
    return codes, scales[..., None].astype(numpy.int32) - SCALE_BIAS
