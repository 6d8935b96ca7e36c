"""Small valid files for the fuzzers to start from: seeds.py FOLDER makes FOLDER/TARGET/NAME for each target."""
import json
import os
import struct
import sys

O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
ALPHABET = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
LETTERS = {b: chr(b) for b in ALPHABET} | {
    b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in set(ALPHABET))}
SPECIAL = ["<|start|>", "<|end|>", "<|message|>"]
MERGES = ["a b", "ab c", "Ġ a"]


def tokenizer_json(**changes):
    vocab = {LETTERS[b]: b for b in range(256)} | {m.replace(" ", ""): 256 + i for i, m in enumerate(MERGES)}
    split = {"type": "Split", "pattern": {"Regex": O200K}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": vocab, "merges": [m.split() for m in MERGES]}
    out = {"version": "1.0", "truncation": None, "padding": None,
           "added_tokens": [{"id": 259 + i, "content": s, "special": i != 2} for i, s in enumerate(SPECIAL)],
           "normalizer": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}, "model": model}
    out["model"] |= changes
    return json.dumps(out, ensure_ascii=False).encode()


def safetensors(tensors):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())


# ---- GGUF ------------------------------------------------------------------------------------------------------------

def string(text):
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text)) + text


def value(v):
    """Type and bytes of a value: int as u32, float as f32, str, list of str or of int (i32), or (type, bytes)."""
    if isinstance(v, tuple):
        return struct.pack("<I", v[0]) + v[1]
    if isinstance(v, int):
        return struct.pack("<II", 4, v)
    if isinstance(v, float):
        return struct.pack("<If", 6, v)
    if isinstance(v, str):
        return struct.pack("<I", 8) + string(v)
    if v and isinstance(v[0], int):
        return struct.pack("<IIQ", 9, 5, len(v)) + struct.pack(f"<{len(v)}i", *v)
    return struct.pack("<IIQ", 9, 8, len(v)) + b"".join(map(string, v))


F32, F16, Q8_0, BF16, MXFP4 = 0, 1, 8, 30, 39
BLOCK = {F32: (1, 4), F16: (1, 2), Q8_0: (32, 34), BF16: (1, 2), MXFP4: (32, 17)}


def gguf(keys, tensors, alignment=32):
    """tensors: name -> (type, ne)."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    out += b"".join(string(k) + value(v) for k, v in keys.items())
    data = b""
    for name, (kind, ne) in tensors.items():
        data += bytes(-len(data) % alignment)
        out += string(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, kind, len(data))
        size = 1
        for n in ne:
            size *= n
        elements, size_of_block = BLOCK[kind]
        one = bytes([1] * size_of_block) if kind != MXFP4 else bytes([120] + [0x21] * 16)
        data += one * (size // elements)
    return out + bytes(-len(out) % alignment) + data if tensors else out


def tokenizer_keys():
    tokens = [LETTERS[b] for b in range(256)] + [m.replace(" ", "") for m in MERGES] + SPECIAL + ["[PAD262]"]
    types = [1] * 259 + [3, 3, 4, 5]
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-4o", "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": MERGES}


def every_kind():
    numbers = [b"\1", b"\2", b"\3\0", b"\4\0", b"\5\0\0\0", b"\6\0\0\0", b"\0\0\x80\x3f", b"\1", None, None,
               bytes(8), bytes(8), struct.pack("<d", 1.5)]
    keys = {f"kind.{i}": (i, n) for i, n in enumerate(numbers) if n}
    keys |= {f"array.{i}": (9, struct.pack("<IQ", i, 2) + 2 * n) for i, n in enumerate(numbers) if n}
    return keys | {"text": "word", "words": ["one", "", "three"], "none": [], "general.alignment": 64}


SHAPE = {"layers": 1, "hidden": 32, "inter": 32, "heads": 2, "kv": 1, "dim": 16, "experts": 2, "vocab": 4}


def model_gguf(dense, experts, names=("attn_sinks.weight",), **keys):
    s = SHAPE
    arch = {"block_count": s["layers"], "context_length": 4096, "embedding_length": s["hidden"],
            "feed_forward_length": s["inter"], "expert_feed_forward_length": s["inter"], "expert_count": s["experts"],
            "expert_used_count": 1, "attention.head_count": s["heads"], "attention.head_count_kv": s["kv"],
            "attention.key_length": s["dim"], "attention.value_length": s["dim"],
            "attention.layer_norm_rms_epsilon": 1e-5, "attention.sliding_window": 128, "rope.freq_base": 150000.0,
            "rope.scaling.type": "yarn", "rope.scaling.factor": 32.0, "rope.scaling.original_context_length": 4096,
            "vocab_size": s["vocab"]}
    all_keys = {"general.architecture": "gpt-oss"} | {f"gpt-oss.{k}": v for k, v in arch.items()} | keys
    h, i, q, k, e = s["hidden"], s["inter"], s["heads"] * s["dim"], s["kv"] * s["dim"], s["experts"]
    tensors = {"token_embd.weight": (dense, [h, s["vocab"]]), "output_norm.weight": (F32, [h]),
               "output.weight": (dense, [h, s["vocab"]])}
    for n in range(s["layers"]):
        layer = {"attn_norm.weight": (F32, [h]), "attn_q.weight": (dense, [h, q]), "attn_q.bias": (F32, [q]),
                 "attn_k.weight": (dense, [h, k]), "attn_k.bias": (F32, [k]), "attn_v.weight": (dense, [h, k]),
                 "attn_v.bias": (F32, [k]), "attn_output.weight": (dense, [q, h]), "attn_output.bias": (F32, [h]),
                 names[0]: (F32, [s["heads"]]), "post_attention_norm.weight": (F32, [h]),
                 "ffn_gate_inp.weight": (F32, [h, e]), "ffn_gate_inp.bias": (F32, [e]),
                 "ffn_gate_exps.weight": (experts, [h, i, e]), "ffn_up_exps.weight": (experts, [h, i, e]),
                 "ffn_down_exps.weight": (experts, [i, h, e]), "ffn_gate_exps.bias": (F32, [i, e]),
                 "ffn_up_exps.bias": (F32, [i, e]), "ffn_down_exps.bias": (F32, [h, e])}
        tensors |= {f"blk.{n}.{name}": t for name, t in layer.items()}
    return gguf(all_keys, tensors)


# ---- model.bin -------------------------------------------------------------------------------------------------------

def uuid(text):
    return bytes.fromhex(text.replace("-", ""))


def tokenizer_metal(texts, specials):
    data = b"".join(struct.pack("<H", len(t)) + t for t in texts)
    pattern = O200K.encode() + b"\0"
    return (uuid("7401aded-2a95-40cb-b782-9ccebaafe72b") +
            struct.pack("<4I", len(specials), len(texts), len(pattern), len(data)) + b"".join(specials) + pattern + data)


def model_bin():
    layers, experts, hidden, inter, heads, kv, dim = 1, 2, 32, 32, 1, 1, 64
    texts = [bytes([b]) for b in range(256)] + [b"ab", b"abc"]
    specials = [bytes(16), bytes(16), uuid("f799ff69-1992-43c4-a3d8-d831f475dc75"),
                uuid("55a77c2f-8a01-4c54-8ac2-313bfc7e208d"), uuid("fcac2f6d-4705-4f6b-b228-642accac7238")]
    vocab = len(texts) + len(specials)
    out = bytearray(b"GPT-OSS v1.0" + bytes(4) + uuid("df52dc86-1789-4ed0-a295-66f10508145b"))
    out += struct.pack("<6If4I6f", 131072, layers, experts, 1, hidden, inter, 7.0, dim, heads, kv, 128, 150000.0,
                       1 / 32, -0.8697007741, 0.1074662686, 1.34657359, 1e-5)
    out += uuid("229177a8-5775-4268-bfd8-d588b351c56d") + tokenizer_metal(texts, specials)

    def put(size, byte=1, align=16):
        out.extend(bytes(-len(out) % align))
        out.extend(bytes([byte]) * size)

    rows = (heads + 2 * kv) * dim
    put(0, align=16384)
    put(2 * vocab * hidden)
    for _ in range(layers):
        for size in (hidden, rows * hidden, rows, heads, hidden * heads * dim, hidden, hidden, experts * hidden, experts):
            put(2 * size)
    put(2 * hidden)
    put(2 * vocab * hidden)
    for _ in range(layers):
        put(0, align=16384)
        for _ in range(experts):
            put(2 * inter * hidden // 2)
            put(2 * inter * hidden // 32, 134)
            put(2 * 2 * inter)
            put(hidden * inter // 2)
            put(hidden * inter // 32, 134)
            put(2 * hidden)
    return bytes(out)


# ---- quantised folders: docs/quantized.md, of the sizes that quantized.c has ----------------------------------------

SCALED = {  # format: part, type, bits, columns of a scale, its type and byte, its tensors beside
    "bf16": ("weight", "BF16", 16, 0, None, 0), "mxfp4": ("weight_packed", "U8", 4, 32, "U8", 120),
    "mxfp4_16": ("weight_packed", "U8", 4, 16, "F8_E8M0", 120), "amxfp4": ("weight_amxfp4", "U8", 4, 16, "U8", 120),
    "nvfp4": ("weight_packed", "U8", 4, 16, "F8_E4M3", 56), "modelopt": ("weight", "U8", 4, 16, "F8_E4M3", 56),
    "mxfp8": ("weight", "F8_E4M3", 8, 32, "U8", 120), "e2m3": ("weight_e2m3", "U8", 6, 32, "U8", 120),
    "e3m2": ("weight_e3m2", "U8", 6, 32, "U8", 120), "fp8": ("weight", "F8_E5M2", 8, 0, None, 0),
    "fp8_channel": ("weight", "F8_E4M3", 8, 0, None, 0), "int8": ("weight", "I8", 8, 32, "BF16", 60),
    "int4": ("weight_packed", "I32", 4, 32, "BF16", 60),
}
SIZE = {"U8": 1, "I8": 1, "F8_E8M0": 1, "F8_E4M3": 1, "F8_E5M2": 1, "BF16": 2, "I32": 4}


def module(name, kind, rows, cols):
    part, dtype, bits, block, scale, byte = SCALED[kind]
    data = rows * cols * bits // 8
    out = {f"{name}.{part}": (dtype, [rows, data // rows // SIZE[dtype]], bytes([0x21]) * data)}
    if block:
        count = rows * cols // block
        out[f"{name}.weight_scale"] = (scale, [rows, cols // block], bytes([byte]) * count * SIZE[scale])
    one = struct.pack("<f", 0.5)
    if kind.startswith("int"):
        packed = kind == "int4"
        shape = [(rows + 7) // 8 if packed else rows, cols // block]
        out[f"{name}.weight_zero_point"] = (("I32" if packed else "I8"), shape,
                                            bytes(shape[0] * shape[1] * (4 if packed else 1)))
    if kind == "int4":
        out[f"{name}.weight_shape"] = ("I64", [2], struct.pack("<qq", rows, cols))
    if kind == "nvfp4":
        out[f"{name}.weight_global_scale"] = ("F32", [1], one)
    if kind == "modelopt":
        out[f"{name}.weight_scale_2"] = ("F32", [], one)
    if kind.startswith("fp8"):
        out[f"{name}.weight_scale"] = ("F32", [rows, 1] if "channel" in kind else [1], one * (rows if "ch" in kind else 1))
    return out


def quantised(experts, dense, scattered=False, fused=False):
    h, inter, q, kv, count = 128, 32, 64, 32, 2
    vector = lambda n: ("BF16", [n], bytes(2 * n))
    layer = "model.layers.0."
    out = module("model.embed_tokens", dense, 16, h) | module("lm_head", dense, 16, h)
    out |= {"model.norm.weight": vector(h), layer + "input_layernorm.weight": vector(h),
            layer + "post_attention_layernorm.weight": vector(h), layer + "self_attn.sinks": vector(2)}
    for name, rows, cols in (("self_attn.q_proj", q, h), ("self_attn.k_proj", kv, h), ("self_attn.v_proj", kv, h),
                             ("self_attn.o_proj", h, q), ("mlp.router", count, h)):
        out |= module(layer + name, dense, rows, cols) | {layer + name + ".bias": vector(rows)}
    for name, rows, cols in (("gate_proj", inter, h), ("up_proj", inter, h), ("down_proj", h, inter)):
        for e in () if fused else range(count):
            one = f"{layer}mlp.experts.{e}.{name}"
            out |= module(one, experts, rows, cols) | {one + ".bias": vector(rows)}
    if fused:
        for name, rows, cols in (("gate_up_proj", 2 * inter, h), ("down_proj", h, inter)):
            out[f"{layer}mlp.experts.{name}"] = ("BF16", [count, cols, rows], bytes([0, 60]) * count * rows * cols)
            out[f"{layer}mlp.experts.{name}_bias"] = ("BF16", [count, rows], bytes(2 * count * rows))
    if scattered:  # no stride leads from the first expert to the second
        return safetensors(dict(sorted(out.items(), key=lambda item: item[0][::-1])))
    return safetensors(dict(sorted(out.items(), key=lambda item: item[0].split(".")[-1])))


# Pattern, zero, text.
REGEX = ["abc\0xabcx", "^a|b$\0xb", "^(?:ab)+?$\0abab", "^[\\w.+-]+@\\w+(?:\\.\\w+)+$\0a.b@c.de", "^\\d{3}-\\d{4}$\x00555-1212",
         "^(?!foo).*(?=bar$)\0xbar", "\\bfoo\\B\0food", "^\\p{Lu}[^\\P{L}\\s]*$\0\u00c4pfel", "[A-\\u{1FAFF}]{2,}\0ab",
         "^(?:(?!ab).)*$\0ba", "(a|aa)*$\0aaa", "^\\s\\S\\cJ\\x41\\0?\0 x\nA"]


# ---- what clients send -----------------------------------------------------------------------------------------------

# What a model might write, as body.c and harmony.c have format tokens: by their place in a list.
CHANNEL, MESSAGE, END, START, CONSTRAIN, CALL, RETURN = range(7)
WRITTEN = bytes([CHANNEL, 40, MESSAGE, 50, 51, 52, END, START, 60, CHANNEL, 41, MESSAGE, 70, 71, 72, RETURN])

WEATHER = {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}
FUNCTION = {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": WEATHER}}
FLAT = {"type": "function", "name": "get_weather", "description": "d", "parameters": WEATHER, "strict": True}
CALLED = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
TALK = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [CALLED]},
        {"role": "tool", "tool_call_id": "call_1", "content": "7"}, {"role": "assistant", "content": "Seven."},
        {"role": "user", "content": "Thanks"}]
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": WEATHER, "strict": True}}
BODIES = {
    "chat": {"model": "m", "messages": TALK, "tools": [FUNCTION], "tool_choice": "auto", "stream": True,
             "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 2, "n": 2, "seed": 1,
             "stop": ["x"], "logit_bias": {"5": 1}, "max_completion_tokens": 9, "reasoning_effort": "low"},
    "format": {"messages": TALK[:2], "response_format": FORMAT, "tool_choice": "none", "temperature": 0.5},
    "completion": {"prompt": ["Once", [1, 2]], "max_tokens": 3, "echo": True, "logprobs": 2, "best_of": 2, "stream": True},
    "messages": {"max_tokens": 9, "system": [{"type": "text", "text": "s"}], "stream": True, "stop_sequences": ["x"],
                 "tools": [{"name": "t", "input_schema": WEATHER}], "tool_choice": {"type": "any"},
                 "thinking": {"type": "enabled", "budget_tokens": 2000},
                 "messages": [{"role": "user", "content": "a"},
                              {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": ""},
                                                                {"type": "tool_use", "id": "c", "name": "t", "input": {}}]},
                              {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "r"}]}]},
    "ollama": {"model": "m", "messages": [{"role": "user", "content": "a"}], "think": "low", "format": WEATHER,
               "options": {"temperature": 1, "stop": ["x"], "num_predict": 3}, "stream": False},
    "generate": {"model": "m", "prompt": "a", "system": "s", "raw": False, "format": "json"},
    "responses": {"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
                            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "t"}]},
                            {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": "{}"},
                            {"type": "function_call_output", "call_id": "c", "output": "r"}],
                  "tools": [FLAT, {"type": "web_search"}], "text": {"format": {"type": "json_object"}}, "stream": True,
                  "instructions": "i", "reasoning": {"effort": "low"}, "max_output_tokens": 9},
    "tokens": {"input": "a <|start|> b", "tokens": [1, 2, 3]},
}


def bodies():
    out = {}
    for name, body in BODIES.items():
        text = json.dumps(body, separators=(",", ":")).encode()
        for endpoint in range(16):
            out[f"{name}-{endpoint}"] = bytes([endpoint, endpoint % 6, len(WRITTEN)]) + text + WRITTEN
    return out


SCHEMAS = {
    "object": {"type": "object", "properties": {"a": {"type": "integer", "minimum": -3, "maximum": 40},
                                                "b": {"enum": ["x", 1, None, [1]]}}, "required": ["a"],
               "additionalProperties": False},
    "tree": {"$defs": {"n": {"type": "object", "properties": {"v": {"type": "number", "multipleOf": 0.5},
                                                              "c": {"type": "array", "items": {"$ref": "#/$defs/n"}}}}},
             "$ref": "#/$defs/n"},
    "texts": {"type": "array", "prefixItems": [{"type": "string", "pattern": "^a[b-d]*$", "maxLength": 9}],
              "items": {"type": "string", "format": "date"}, "minItems": 1, "maxItems": 4},
    "all": {"allOf": [{"properties": {"a": {"type": "string"}}}, {"required": ["a"]}], "type": "object",
            "patternProperties": {"^x": True}, "propertyNames": {"maxLength": 4}, "minProperties": 1},
    "any": {"anyOf": [{"type": "string", "minLength": 2}, {"type": ["null", "boolean"]}, {"const": {"k": [1.5]}}],
            "not": {"const": "no"}},
    "one": {"oneOf": [{"properties": {"t": {"const": "a"}}, "required": ["t"]},
                      {"properties": {"t": {"const": "b"}}, "required": ["t"]}], "type": "object"},
    "if": {"if": {"properties": {"a": {"const": 1}}}, "then": {"required": ["b"]}, "else": {"maxProperties": 2}},
}
VALUES = [b'{"a":1}', b'{"v":1.5,"c":[{}]}', b'["ab","2026-11-27"]', b'"no"', b'{"t":"b"}']


def schemas():
    return {f"{name}-{i}": bytes([i]) + json.dumps(schema).encode() + b"\0" + value
            for name, schema in SCHEMAS.items() for i, value in enumerate(VALUES[:2])}


def seeds():
    small = safetensors({"a": ("BF16", [2, 3], bytes(12)), "b": ("U8", [4], bytes(4)), "c": ("F32", [], bytes(4)),
                         "d": ("F32", [0, 7], b"")})
    model = model_bin()
    return {
        "safetensors": {"small": small, "empty": safetensors({}),
                        "model": safetensors({f"model.layers.0.{i}": ("F8_E8M0", [1, i], bytes(i)) for i in range(9)})},
        "gguf": {"kinds": gguf(every_kind(), {"a": (F32, [3]), "b": (MXFP4, [64, 2, 2]), "c": (Q8_0, [32])}, 64),
                 "tokenizer": gguf(tokenizer_keys(), {}), "empty": gguf({}, {}),
                 "model": model_gguf(BF16, MXFP4)},
        "tokenizer_json": {"small": tokenizer_json(), "ignore": tokenizer_json(ignore_merges=True),
                           "strings": tokenizer_json(merges=MERGES), "metal": model[:2500]},
        "weights": {"q8_0": model_gguf(Q8_0, MXFP4), "bf16": model_gguf(BF16, BF16),
                    "f32": model_gguf(F32, MXFP4, names=("attn_sinks",)), "f16": model_gguf(F16, F16), "metal": model},
        "quantized": {kind: quantised(kind, kind) for kind in SCALED if kind != "bf16"} |
                     {"scattered": quantised("nvfp4", "mxfp8", scattered=True), "fused": quantised("bf16", "int4", fused=True),
                      "mixed": quantised("int4", "amxfp4", scattered=True)},
        "regex": {str(i): regex.encode() for i, regex in enumerate(REGEX)},
        "schema": schemas(),
        "utf8": {"text": b"\3\7ab st \xe2\x82\xac! \xf0\x9f\x98\x80\xff stop \n\n", "cut": b"\4\0\xf0\x9f\xe2\x82"},
        "harmony": {"answer": bytes([0, 3, 40, 41, 2, 50, 51, 52, 53, 1, 0, 60, 61, 3, 42, 43, 2, 70, 71, 5]),
                    "call": bytes([6, 3, 40, 41, 4, 44, 45, 2, 50, 51, 6]), "raw": bytes([1, 50, 51, 52, 53, 8])},
        "body": bodies(),
    }


def main():
    for target, files in seeds().items():
        folder = os.path.join(sys.argv[1], target)
        os.makedirs(folder, exist_ok=True)
        for name, data in files.items():
            with open(os.path.join(folder, name), "wb") as file:
                file.write(data)


if __name__ == "__main__":
    main()
