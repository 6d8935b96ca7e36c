"""The GGUF that mxrun convert writes, as the Python package gguf reads it. Skips where that is not installed.

gguf_package_test.py MXRUN STORIES"""
import json
import pathlib
import subprocess
import sys
import tempfile

try:
    import gguf
except ImportError:
    print("the Python package gguf is not installed: nothing is tested")
    sys.exit(77)

program, folder = sys.argv[1], pathlib.Path(sys.argv[2])
with tempfile.TemporaryDirectory() as temporary:
    path = pathlib.Path(temporary, "stories.gguf")
    subprocess.run([program, "convert", folder, path, "--to", "gguf"], check=True)
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {t.name: t for t in reader.tensors}
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())

    assert fields["general.architecture"] == "gpt-oss" and fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_MXFP4_MOE
    assert fields["gpt-oss.block_count"] == config["num_hidden_layers"]
    assert fields["gpt-oss.rope.scaling.factor"] == config["rope_scaling"]["factor"]
    tokens = {**tokenizer["model"]["vocab"], **{t["content"]: t["id"] for t in tokenizer["added_tokens"]}}
    assert fields["tokenizer.ggml.tokens"] == sorted(tokens, key=tokens.get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    assert fields["tokenizer.ggml.merges"] == merges
    assert fields["mxrun.source.contents"][fields["mxrun.source.files"].index("config.json")] == (folder / "config.json").read_text()

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT_OSS, config["num_hidden_layers"])
    assert len(tensors) == 19 * config["num_hidden_layers"] + 3
    assert names.get_name("model.embed_tokens.weight", (".weight",)) in tensors
    gate = tensors["blk.0.ffn_gate_exps.weight"]
    assert gate.tensor_type == gguf.GGMLQuantizationType.MXFP4
    assert list(gate.shape) == [config["hidden_size"], config["intermediate_size"], config["num_local_experts"]]
    assert tensors["blk.0.ffn_gate_inp.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    assert tensors["output.weight"].tensor_type == gguf.GGMLQuantizationType.BF16
print("the same keys, vocabulary and tensors")
