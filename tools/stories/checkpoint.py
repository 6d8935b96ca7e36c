"""The Hugging Face folder of a gpt-oss model: config.json, generation_config.json, model.safetensors, tokenizer_config.json.

Needs NumPy alone. Weights come and go as float32 arrays by their Hugging Face names; the experts' matrices are
`mlp.experts.gate_up_proj` and `mlp.experts.down_proj`, [experts, rows, columns] as they are multiplied.
"""
import json
import os
import struct

import numpy

import mxfp4
import shape

EXPERT_MATRICES = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


# ---- tensors ---------------------------------------------------------------------------------------------------------
def to_bf16(numbers):
    """float32 -> the upper 16 bits as uint16, rounded to nearest, ties to even. NaN does not occur."""
    bits = numpy.ascontiguousarray(numbers, numpy.float32).view(numpy.uint32)
    return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(numpy.uint16)


def from_bf16(bits):
    return (bits.astype(numpy.uint32) << 16).view(numpy.float32)


def stored_tensors(weights, plain):
    """float32 weights -> {name: array} as the file holds them (uint16 stands for BF16)."""
    stored = {}
    for name, value in weights.items():
        if not name.endswith(EXPERT_MATRICES):
            stored[name] = to_bf16(value)
        elif plain:
            stored[name] = to_bf16(value.swapaxes(1, 2))  # Hugging Face keeps BF16 experts as [experts, in, out]
        else:
            stored[name + "_blocks"], stored[name + "_scales"] = mxfp4.pack(*mxfp4.quantize(value))
    return stored


def loaded_weights(stored):
    """The reverse of stored_tensors, rounding apart."""
    weights = {}
    for name, value in stored.items():
        if name.endswith("_blocks"):
            codes = mxfp4.unpack(value, stored[name[:-len("_blocks")] + "_scales"])
            weights[name[:-len("_blocks")]] = mxfp4.dequantize(*codes)
        elif name.endswith(EXPERT_MATRICES):
            weights[name] = from_bf16(value).swapaxes(1, 2)
        elif not name.endswith("_scales"):
            weights[name] = from_bf16(value)
    return weights


DTYPES = {"BF16": numpy.dtype(numpy.uint16), "U8": numpy.dtype(numpy.uint8)}


def write_safetensors(path, tensors):
    """tensors: {name: array of uint16 (BF16) or uint8}. Wide ones stand first, then by name."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    for name in order:
        value = tensors[name]
        header[name] = {"dtype": names[value.dtype], "shape": list(value.shape),
                        "data_offsets": [offset, offset + value.nbytes]}
        offset += value.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(numpy.ascontiguousarray(tensors[name]).tobytes())


def read_safetensors(path):
    with open(path, "rb") as file:
        data = file.read()
    start = 8 + struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        tensors[name] = numpy.frombuffer(data[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def write(folder, weights, plain=False):
    """Writes every file of the folder but tokenizer.json; returns the bytes of the tensors."""
    def write_json(name, value, **style):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(value, file, **style)

    tensors = stored_tensors(weights, plain)
    write_safetensors(os.path.join(folder, "model.safetensors"), tensors)
    write_json("config.json", shape.config(plain), indent=2)
    write_json("generation_config.json", shape.generation_config())
    write_json("tokenizer_config.json", shape.tokenizer_config(), indent=1)
    return sum(value.nbytes for value in tensors.values())
