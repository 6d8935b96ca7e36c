"""mxrun quantize against compressed-tensors: its QuantizationConfig takes our config.json, each module is in exactly one
group or ignored, and its decompression gives the numbers that mxrun's own quantiser reports.

compressed_tensors_test.py MXRUN MODEL    (a model in BF16; ends with 77 where a package is missing)"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

try:
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils.match import match_name
    from safetensors.torch import load_file
except ImportError as missing:
    print("skipped:", missing)
    sys.exit(77)

mxrun, model = sys.argv[1:]
if not os.path.isdir(model):
    print("skipped: no", model)
    sys.exit(77)

CASES = [
    {"experts": "nvfp4", "attention": "mxfp4", "lm-head": "int4:32", "embedding": "int8:64"},
    {"experts": "mxfp8", "attention": "int4:64:asym", "lm-head": "int8:32:asym", "router": "fp8:channel"},
    {"experts": "int4:32", "attention": "fp8", "lm-head": "nvfp4", "embedding": "mxfp8"},
    {"experts": "mxfp4", "attention": "nvfp4"},
    # Some experts in MXFP4: not what transformers' mxfp4 is.
    {"rules": "*.layers.[01].mlp.experts.*.gate_up_proj mxfp4\n*.layers.2.*.down_proj mxfp4\n", "experts": "keep"},
]


def tensors(folder):
    out = {}
    for file in sorted(pathlib.Path(folder).glob("*.safetensors")):
        out.update(load_file(file))
    return out


def original(weights, name):
    """The matrix that a module is in the source."""
    if ".experts." not in name:
        return weights[name + ".weight"]
    stem, last = name.rsplit(".", 1)
    stem, expert = stem.rsplit(".", 1)
    if last == "down_proj":
        return weights[stem + ".down_proj"][int(expert)].T
    return weights[stem + ".gate_up_proj"][int(expert)][:, 0 if last == "gate_proj" else 1::2].T


source = tensors(model)
for case in CASES:
    with tempfile.TemporaryDirectory() as folder:
        out = folder + "/out"
        if "rules" in case:
            pathlib.Path(folder + "/rules").write_text(case["rules"])
            case = {**case, "rules": folder + "/rules"}
        options = [word for key, value in case.items() for word in ("--" + key, value)]
        done = subprocess.run([mxrun, "quantize", model, out, "--json", *options], check=True, capture_output=True)
        report = {m["name"]: m for m in json.loads(done.stdout)["matrices"]}
        made = tensors(out)
        config = QuantizationConfig.model_validate(json.load(open(out + "/config.json"))["quantization_config"])
        assert config.quant_method == "compressed-tensors", config
        for name, line in report.items():
            groups = [g for g in config.config_groups.values() if any(match_name(name, t) for t in g.targets)]
            ignored = any(match_name(name, t) for t in config.ignore)
            if line["kept"]:
                assert not groups and ignored, name
                assert torch.equal(original(made, name), original(source, name)), name
                continue
            assert len(groups) == 1 and not ignored, (name, groups)
            compressor = BaseCompressor.get_value_from_registry(groups[0].format)
            parts = {k[len(name) + 1:]: v for k, v in made.items() if k.startswith(name + ".weight")}
            if groups[0].format in ("pack-quantized", "int-quantized"):  # dequantised in the scale's type
                parts["weight_scale"] = parts["weight_scale"].float()
            w = compressor.decompress(parts, groups[0])["weight"].float()
            was = original(source, name).float()
            assert w.shape == was.shape, (name, w.shape, was.shape)
            error = ((w - was).double().norm() / was.double().norm()).item()
            # Its dequantisation may round to BF16: the error is the same to that.
            assert abs(error - line["relative_error"]) < 2e-3 + 1e-2 * error, (name, groups[0].format, error, line)
        print("ok:", case, len(report), "matrices")
