"""The Hugging Face folder of a gpt-oss model: config.json, generation_config.json, model.safetensors, tokenizer_config.json.

Needs NumPy alone. Weights come and go as float32 arrays by their Hugging Face names; the experts' matrices are
`mlp.experts.gate_up_proj` and `mlp.experts.down_proj`, [experts, rows, columns] as they are multiplied.
"""
import json
import os
import struct

import numpy

import mxfp4

SPECIAL_TOKENS = ["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>",
                  "<|end|>", "<|message|>", "<|call|>"]
LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 4, 256, 8, 2, 64
EXPERTS, ACTIVE, EXPERT_WIDTH = 16, 4, 128
VOCABULARY, WINDOW = 4096, 128
EPSILON, SWIGLU_LIMIT, SWIGLU_ALPHA = 1e-5, 7.0, 1.702
ROPE_THETA, YARN_FACTOR, BETA_FAST, BETA_SLOW, ORIGINAL_POSITIONS = 150000, 32.0, 32.0, 1.0, 4096

EXPERT_MATRICES = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def special_id(name):
    """The special tokens are the last ids of the vocabulary."""
    return VOCABULARY - len(SPECIAL_TOKENS) + SPECIAL_TOKENS.index(name)


def is_sliding(layer):
    return layer % 2 == 0


def config(plain):
    """config.json. plain: the experts are BF16."""
    values = {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": special_id("<|return|>"),
        "pad_token_id": special_id("<|endoftext|>"),
        "experts_per_token": ACTIVE,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initial_context_length": ORIGINAL_POSITIONS,
        "initializer_range": 0.02,
        "intermediate_size": EXPERT_WIDTH,
        "layer_types": ["sliding_attention" if is_sliding(i) else "full_attention" for i in range(LAYERS)],
        "max_position_embeddings": 131072,
        "num_attention_heads": HEADS,
        "num_experts_per_tok": ACTIVE,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "num_local_experts": EXPERTS,
        "output_router_logits": False,
        "quantization_config": {
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens",
                                       "lm_head"],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": EPSILON,
        "rope_scaling": {"beta_fast": BETA_FAST, "beta_slow": BETA_SLOW, "factor": YARN_FACTOR,
                         "original_max_position_embeddings": ORIGINAL_POSITIONS, "rope_type": "yarn",
                         "truncate": False},
        "rope_theta": ROPE_THETA,
        "router_aux_loss_coef": 0.9,
        "sliding_window": WINDOW,
        "swiglu_limit": SWIGLU_LIMIT,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }
    if plain:
        del values["quantization_config"]
        values["torch_dtype"] = "bfloat16"
    return values


def generation_config():
    return {"bos_token_id": special_id("<|startoftext|>"), "do_sample": True,
            "eos_token_id": [special_id("<|return|>"), special_id("<|endoftext|>")],
            "pad_token_id": special_id("<|endoftext|>")}


def tokenizer_config():
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "added_tokens_decoder": {str(special_id(name)): {"content": name, **flags} for name in SPECIAL_TOKENS},
        "bos_token": "<|startoftext|>",
        "eos_token": "<|return|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


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
    write_json("config.json", config(plain), indent=2)
    write_json("generation_config.json", generation_config())
    write_json("tokenizer_config.json", tokenizer_config(), indent=1)
    return sum(value.nbytes for value in tensors.values())
