"""Writes tests/data/compressed_tensors.safetensors: a matrix [16, 128] of random numbers in every format that
compressed-tensors has and mxrun reads, packed by that library's code, and NAME.expected, what its own unpacking makes
of each, in F32. Made with compressed-tensors 0.20.0, torch 2.15.0, safetensors.

compressed_tensors.py OUT"""
import sys

import torch
from compressed_tensors.compressors import BaseCompressor, unpack_fp4_from_uint8, unpack_from_int32
from compressed_tensors.compressors.mx_utils import decompress_mx_scale
from compressed_tensors.compressors.mxfp6.helpers import unpack_fp6_from_uint8
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

ROWS, COLS = 16, 128
torch.manual_seed(5)
out = {}


def scale_of(weight, args, size):
    """Scales (and zeros) of blocks of `size` columns, by the library's own rule."""
    blocks = weight.float().reshape(ROWS, -1, size)
    return calculate_qparams(blocks.amin(-1), blocks.amax(-1), args)


def put(name, form, args, size, scale_dtype, unpack, global_scale=None):
    weight = (torch.randn(ROWS, COLS) * torch.rand(ROWS, 1)).bfloat16()
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    state = {"weight": weight}
    if global_scale is not None:
        state["weight_global_scale"] = global_scale
        blocks = weight.float().reshape(ROWS, -1, size)
        state["weight_scale"] = (blocks.abs().amax(-1) / 6 * global_scale).to(torch.float8_e4m3fn).float()
    else:
        scale, zero = scale_of(weight, args, size)
        state["weight_scale"] = scale.to(scale_dtype)
        if not args.symmetric:
            state["weight_zero_point"] = zero.to(torch.int8)
    made = BaseCompressor.get_value_from_registry(form).compress(state, scheme)
    for key, value in made.items():
        out[f"{name}.{key}"] = value.contiguous()
    expected = unpack(made)
    assert expected.shape == (ROWS, COLS)
    error = (expected - weight.float()).norm() / weight.float().norm()
    assert error < 0.2, (name, error)  # it is that weight, roughly
    out[f"{name}.expected"] = expected.contiguous()
    print(name, form, f"error {error:.4f}", {k: (str(v.dtype), list(v.shape)) for k, v in made.items()})


def wide(scale, size):
    return scale.float().repeat_interleave(size, 1)


def fp4(made):
    return unpack_fp4_from_uint8(made["weight_packed"], ROWS, COLS, dtype=torch.float32)


def e8m0(made):
    return wide(torch.exp2(made["weight_scale"].view(torch.uint8).float() - 127), 32)


def integers(size):
    def unpack(made):
        q = unpack_from_int32(made["weight_packed"], 4, torch.Size([ROWS, COLS])).float()
        if "weight_zero_point" in made:
            zero = unpack_from_int32(made["weight_zero_point"], 4, torch.Size([ROWS, COLS // size]), packed_dim=0)
            q = q - wide(zero, size)
        return q * wide(made["weight_scale"], size)

    return unpack


def bytes_of(size):
    def unpack(made):
        q = made["weight"].float()
        if "weight_zero_point" in made:
            q = q - wide(made["weight_zero_point"], size)
        return q * wide(made["weight_scale"], size)

    return unpack


def floats(bits, size, **more):
    return QuantizationArgs(num_bits=bits, type="float", symmetric=True, group_size=size,
                            strategy=more.pop("strategy", "group"), **more)


def ints(bits, size, symmetric):
    return QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, group_size=size, strategy="group")


u8 = {"scale_dtype": torch.uint8, "zp_dtype": torch.uint8}
put("mxfp4", "mxfp4-pack-quantized", floats(4, 32, **u8), 32, torch.float32, lambda m: fp4(m) * e8m0(m))
put("mxfp6", "mxfp6-pack-quantized", floats(6, 32, **u8), 32, torch.float32,
    lambda m: unpack_fp6_from_uint8(m["weight_packed"], ROWS, COLS, torch.float32) * e8m0(m))
put("mxfp8", "mxfp8-quantized", floats(8, 32, **u8), 32, torch.float32, lambda m: m["weight"].float() * e8m0(m))
put("nvfp4", "nvfp4-pack-quantized", floats(4, 16, strategy="tensor_group"), 16, torch.float32,
    lambda m: fp4(m) * wide(m["weight_scale"], 16) / m["weight_global_scale"], torch.tensor([700.0]))
for group in 32, 64, 128:
    put(f"int4_{group}", "pack-quantized", ints(4, group, True), group, torch.bfloat16, integers(group))
    put(f"int4_{group}_asym", "pack-quantized", ints(4, group, False), group, torch.bfloat16, integers(group))
    put(f"int8_{group}", "naive-quantized", ints(8, group, True), group, torch.bfloat16, bytes_of(group))
put("int8_64_asym", "naive-quantized", ints(8, 64, False), 64, torch.bfloat16, bytes_of(64))
put("fp8_channel", "naive-quantized", QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy="channel"), COLS,
    torch.bfloat16, bytes_of(COLS))
save_file(out, sys.argv[1])
