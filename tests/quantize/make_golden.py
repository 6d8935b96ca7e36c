"""golden.h: what compressed-tensors and gguf make of the same numbers. Wanted: numpy, torch, compressed-tensors, gguf.
python3 tests/quantize/make_golden.py > tests/quantize/golden.h"""
import importlib.metadata

import gguf
import numpy
import torch
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils.helpers import calculate_qparams, generate_gparam

ROWS, COLS = 8, 128


def numbers():
    """Of several sizes, zeros, and BF16 ones, in whose blocks ties lie."""
    r = numpy.random.default_rng(8)
    x = (r.standard_normal((ROWS, COLS)) * 0.02 * 2.0 ** r.integers(-3, 3, (ROWS, COLS // 16)).repeat(16, 1)).astype("f4")
    x[1, 32:48] = 0
    x[2] = torch.tensor(x[2]).to(torch.bfloat16).to(torch.float32).numpy()
    x[3] = (numpy.round(x[3] * 256) / 256).astype("f4")
    return x


def blocks(x, size, **how):
    """Scales, and elements over their scales, rounded."""
    t = torch.tensor(x)
    args = QuantizationArgs(num_bits=how.pop("bits", 4), type=how.pop("type", "float"), symmetric=True, **how)
    g = generate_gparam(t.min(), t.max()) if args.strategy == "tensor_group" else None
    parts = t.reshape(ROWS, -1, size) if size else t.reshape(1, 1, -1) if args.strategy == "tensor" else t[:, None]
    scales, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), args, global_scale=g)
    if not size:
        scales = scales.reshape(-1, 1) if args.strategy == "channel" else scales.reshape(1)
    used = scales
    if args.scale_dtype == torch.uint8:  # the exponents themselves
        from compressed_tensors.quantization.utils.mxfp_utils import generate_mx_scales
        scales = generate_mx_scales(parts.abs().amax(-1), num_bits=args.num_bits)
        used = 2.0 ** (scales.to(torch.float32) - 127)
    return g, scales, quantize(t, used, torch.zeros(()), args, global_scale=g)


def show(kind, name, values):
    values = numpy.asarray(values).reshape(-1)
    text = ", ".join(str(int(v)) for v in values)
    lines, line = [], ""
    for word in text.split(" "):
        if len(line) + len(word) > 112:
            lines.append(line)
            line = ""
        line += (" " if line else "") + word
    print(f"static const {kind} golden_{name}[{len(values)}] = {{\n    " + "\n    ".join(lines + [line]) + "};")


x = numbers()
version = importlib.metadata.version
print(f"""/* Made by make_golden.py with compressed-tensors {version('compressed-tensors')} and gguf {version('gguf')}. */
/* clang-format off */
#include <stdint.h>
""")
print(f"enum {{ GOLDEN_ROWS = {ROWS}, GOLDEN_COLS = {COLS} }};")
show("uint32_t", "x", x.view("u4"))
g, s, q = blocks(x, 16, strategy="tensor_group", group_size=16, scale_dtype=torch.float8_e4m3fn, zp_dtype=torch.float8_e4m3fn)
show("uint32_t", "nvfp4_global_scale", g.numpy().view("u4"))
show("uint8_t", "nvfp4_scales", s.to(torch.float8_e4m3fn).view(torch.uint8).numpy())
show("uint8_t", "nvfp4_packed", pack_fp4_to_uint8(q).numpy())
g, s, q = blocks(x, 32, strategy="group", group_size=32, scale_dtype=torch.uint8, zp_dtype=torch.uint8)
show("uint8_t", "mxfp4_scales", s.numpy())
show("uint8_t", "mxfp4_packed", pack_fp4_to_uint8(q).numpy())
for strategy in ("tensor", "channel"):
    g, s, q = blocks(x, 0, strategy=strategy, bits=8)
    show("uint32_t", f"fp8_{strategy}_scale", s.numpy().astype("f4").view("u4"))
    show("uint8_t", f"fp8_{strategy}", q.to(torch.float8_e4m3fn).view(torch.uint8).numpy())
show("uint8_t", "gguf_mxfp4", gguf.quants.quantize(x, gguf.GGMLQuantizationType.MXFP4))
