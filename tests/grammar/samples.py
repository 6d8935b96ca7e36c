#!/usr/bin/env python3
"""Answers under JSON schemas at temperature 2: each that ended validates.

samples.py MXRUN SCHEMAS [--samples N] [--every K] [--tokenizer FILE]: N answers to each Kth of the schemas, of which the
first half are completions and the other chats, by stories or, with --tokenizer, by random weights with that vocabulary.
What ends strings, numbers, objects and thinking is made more likely, so that most answers end; an answer that
max_tokens cut must say so. Skipped (status 77) where Python has no jsonschema."""
import argparse, decimal, json, re, subprocess, sys, tempfile, time
from pathlib import Path

try:
    import jsonschema
except ImportError:
    print("skipped: no jsonschema for this Python")
    sys.exit(77)

SOURCE = Path(__file__).resolve().parents[2]
STORIES = SOURCE / "tools" / "stories" / "checkpoint"


def options():
    p = argparse.ArgumentParser()
    p.add_argument("mxrun")
    p.add_argument("schemas")
    p.add_argument("--samples", type=int, default=20)
    p.add_argument("--every", type=int, default=1)
    p.add_argument("--tokenizer")
    p.add_argument("--max-tokens", type=int, default=400)
    p.add_argument("--least", type=float, default=0.5, help="part of the answers that must have ended")
    return p.parse_args()


def ends(tokenizer, value):
    vocabulary = {**tokenizer["model"]["vocab"], **{t["content"]: t["id"] for t in tokenizer["added_tokens"]}}
    wanted = ['"', '"}', '",', '"]', "}", "]", "}}", "]}", ",", "<|end|>", "<|return|>"]
    return {str(vocabulary[t]): value for t in wanted if t in vocabulary}


def synthetic_config(folder, tokenizer):
    """The shape of tests/data/base with as many logits as the vocabulary has tokens, rounded as published."""
    config = json.loads((SOURCE / "tests" / "data" / "base" / "config.json").read_text())
    top = max(t["id"] for t in tokenizer["added_tokens"]) + 1
    config["vocab_size"] = 201088 if top > 200000 else -(-top // 64) * 64
    special = {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    config["eos_token_id"] = [special["<|return|>"], special["<|endoftext|>"]]
    (Path(folder) / "config.json").write_text(json.dumps(config))
    return Path(folder) / "config.json"


def requests(schemas, o, bias):
    for i, s in enumerate(schemas):
        body = {"max_tokens": o.max_tokens, "temperature": 2, "seed": i, "n": o.samples, "logit_bias": bias,
                "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": s["schema"]}}}
        if i % 2:
            url, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": "Tell me, in JSON: " + s["name"]}]
        else:
            url, body["prompt"] = "/v1/completions", "In JSON: "
        yield {"custom_id": str(i), "method": "POST", "url": url, "body": body}


unchecked = set()


def pattern(validator, expression, instance, schema):
    """Python's own expressions, which have no \\p and spell \\u otherwise."""
    python = re.sub(r"\\u\{([0-9a-fA-F]+)\}", lambda m: "\\U%08x" % int(m[1], 16), expression)
    try:
        compiled = re.compile(python)
    except re.error:
        unchecked.add(expression)
        return
    if isinstance(instance, str) and not compiled.search(instance):
        yield jsonschema.ValidationError("%r does not match %r" % (instance, expression))


Validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": pattern})


def exact(schema):
    """0.01 as it is written, so that 9.02 is a multiple of it."""
    return json.loads(json.dumps(schema), parse_float=decimal.Decimal)


def once(pairs):
    names = [k for k, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a name twice: %r" % names)
    return dict(pairs)


def main():
    o = options()
    if o.tokenizer and not Path(o.tokenizer).exists():
        print("skipped: no %s" % o.tokenizer)
        sys.exit(77)
    schemas = [json.loads(line) for line in open(o.schemas)][:: o.every]
    tokenizer = json.loads(Path(o.tokenizer or STORIES / "tokenizer.json").read_text())
    wrong, cut, ended, tokens = [], 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "in.jsonl"
        bias = ends(tokenizer, 10 if o.tokenizer else 6)
        lines.write_text("".join(json.dumps(r) + "\n" for r in requests(schemas, o, bias)))
        model = ["--synthetic", str(synthetic_config(folder, tokenizer)), "--tokenizer", o.tokenizer] if o.tokenizer \
            else ["-m", str(STORIES)]
        start = time.time()
        run = subprocess.run([o.mxrun, "batch", *model, "-i", str(lines), "-o", "-", "-c", "1024", "-q"], stdout=-1)
        seconds = time.time() - start
        if run.returncode:
            sys.exit("mxrun batch: status %d" % run.returncode)
    for line in run.stdout.decode().splitlines():
        record = json.loads(line)
        s = schemas[int(record["custom_id"])]
        if record["error"] or record["response"]["status_code"] != 200:
            wrong.append((s["name"], json.dumps(record["error"] or record["response"]["body"])))
            continue
        check = Validator(exact(s["schema"]), format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
        tokens += record["response"]["body"]["usage"]["completion_tokens"]
        for choice in record["response"]["body"]["choices"]:
            text = choice["message"]["content"] if "message" in choice else choice["text"]
            if choice["finish_reason"] == "length":
                cut += 1
                continue
            ended += 1
            try:
                if choice["finish_reason"] != "stop":
                    raise ValueError("finish_reason " + choice["finish_reason"])
                problem = next(check.iter_errors(json.loads(text, object_pairs_hook=once, parse_float=decimal.Decimal)), None)
            except (ValueError, re.error) as e:
                problem = e
            if problem:
                wrong.append((s["name"], "%s: %s" % (str(problem).splitlines()[0], text)))
    print("%d schemas, %d answers ended, %d were cut by max_tokens, %d are wrong; %d tokens in %.1f s"
          % (len(schemas), ended, cut, len(wrong), tokens, seconds))
    if unchecked:
        print("patterns that Python cannot read, not checked: %s" % " ".join(sorted(unchecked)))
    for name, what in wrong[:20]:
        print("%s: %s" % (name, what[:600]))
    if len(wrong) or ended + cut != len(schemas) * o.samples or ended < o.least * (ended + cut):
        sys.exit("not as it should be")


main()
