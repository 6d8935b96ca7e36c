#!/usr/bin/env python3
"""Makes mx.golden: what ml_dtypes says of the element codes and scales of kernels/mx.h. Prints it.

    python3 tests/data/mx_golden.py > tests/data/mx.golden

A line is "value FORMAT", then the bits in fp32 of each code from 0 on, or "code FORMAT", then BITS:CODE of numbers: for
each two neighbouring codes their middle and the floats on either side of it, both signs, and numbers around the
smallest and the largest. Beyond the middle behind the largest number ml_dtypes makes NaN or infinity, mxrun saturates
(OCP MX v1.0 allows either); such numbers are left out.
"""
import ml_dtypes
import numpy as np

FORMATS = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e8m0": ml_dtypes.float8_e8m0fnu,
}
BITS = {"e2m1": 4, "e2m3": 6, "e3m2": 6}


def words(x):
    return [f"{int(v):08x}" for v in np.asarray(x, np.float32).view(np.uint32)]


def print_wrapped(head, items):
    for i in range(0, len(items), 16):
        print(head, " ".join(items[i : i + 16]))


print(f"# By tests/data/mx_golden.py with ml_dtypes {ml_dtypes.__version__}, numpy {np.__version__}.")
for name, dtype in FORMATS.items():
    codes = np.arange(1 << BITS.get(name, 8), dtype=np.uint8)
    values = codes.view(dtype).astype(np.float32)
    print_wrapped(f"value {name}", words(values))
    if name == "e8m0":
        x = values[np.isfinite(values)]  # powers of two: others have no nearest one that all agree on
    else:
        half = values[: len(codes) // 2]
        half = half[np.isfinite(half)]
        middle = (half[1:] + half[:-1]) / np.float32(2)
        zero, infinity = np.float32(0), np.float32(np.inf)
        x = np.concatenate(
            [middle, np.nextafter(middle, zero), np.nextafter(middle, infinity), -middle, -np.nextafter(middle, zero)]
            + [np.array([1e-45, -1e-45, 1e-38, half[1] / 4, half[-1], np.nextafter(half[-1], infinity)], np.float32)]
        )
    to = x.astype(dtype)
    kept = np.isfinite(to.astype(np.float32))
    pairs = [f"{w}:{int(c):02x}" for w, c in zip(words(x[kept]), to[kept].view(np.uint8))]
    print_wrapped(f"code {name}", pairs)
