#!/usr/bin/env python3
"""The official JSON-Schema-Test-Suite (draft 2020-12) against our compiler.

json_schema_suite.py schema_match [FOLDER]: every group whose schema compiles must agree with "valid" in each of its
cases; the others are counted by what refused them. FOLDER (or MXRUN_JSON_SCHEMA_SUITE) is the suite's
tests/draft2020-12, as it lies in the source distribution of PyPI's jsonschema; without it the test is skipped.

Each value is spelled as the compiler has it: compact, members in the order of "properties", whole numbers without a
point, and strings without needless escapes."""
import json, os, re, subprocess, sys
from pathlib import Path

LEAST_GROUPS = 345  # that compile
# What may refuse the others: other documents, what nobody writes for a model, and unknown keywords.
REFUSING = {"$ref", "$dynamicRef", "$schema", "format", "minProperties", "uniqueItems", "unevaluatedItems", "unevaluatedProperties",
            "multipleOf", "pattern", "patternProperties", "unknown-keyword", "array_of_schemas"}
# Files about what we do otherwise, on purpose, and say so in docs/structured_output.md.
OTHERWISE = {
    "format.json": "formats are checked, not only noted",
    "optional/format-assertion.json": "formats are always checked",
    "optional/cross-draft.json": "other drafts",
}
# Cases that differ, each with its reason.
DIFFERENT = json.loads((Path(__file__).parent / "json_schema_suite.json").read_text())


def spell_number(x):
    if isinstance(x, float) and x == int(x) and abs(x) < 1e300:
        return str(int(x))
    if isinstance(x, float):
        from decimal import Decimal
        text = format(Decimal(repr(x)), "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    return str(x)


def order_of(schema, root, seen):
    """Names in the order in which "properties" below this schema (and what applies beside it) has them."""
    names = []
    if not isinstance(schema, dict) or id(schema) in seen:
        return names
    seen = seen | {id(schema)}
    for part in [schema.get("const")] + list(schema.get("enum") or []):
        if isinstance(part, dict):
            names += list(part)
    names += list(schema.get("properties", {}))
    names += [x for x in schema.get("required", []) if isinstance(x, str)]
    ref = schema.get("$ref", "")
    if ref.startswith("#"):
        at = root
        for step in ref[1:].split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~").replace("%25", "%").replace("%22", '"')
            at = at[int(step)] if isinstance(at, list) else at.get(step, {}) if isinstance(at, dict) else {}
        names += order_of(at, root, seen)
    for keyword in ("allOf", "anyOf", "oneOf"):
        for part in schema.get(keyword, []):
            names += order_of(part, root, seen)
    for keyword in ("not", "if", "then", "else"):
        names += order_of(schema.get(keyword), root, seen)
    for keyword in ("dependentSchemas",):
        for name, part in schema.get(keyword, {}).items():
            names += [name] + order_of(part, root, seen)
    for name, others in schema.get("dependentRequired", {}).items():
        names += [name] + others
    return names


def spellings(value, names, limit=120):
    """Of an object all orders where there are few: the compiler takes one of them."""
    from itertools import permutations
    if value is None or isinstance(value, bool):
        return [json.dumps(value)]
    if isinstance(value, (int, float)):
        return [spell_number(value)]
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
        return [re.sub(r"\x7f", "\x7f", text)]
    if isinstance(value, list):
        out = ["["]
        for i, x in enumerate(value):
            out = [a + ("," if i else "") + b for a in out for b in spellings(x, names)][:limit]
        return [a + "]" for a in out]
    keys = sorted(value, key=lambda k: names.index(k) if k in names else len(names))
    orders = list(permutations(keys)) if len(keys) <= 5 else [keys]
    result = []
    for order in orders:
        out = ["{"]
        for i, k in enumerate(order):
            one = [json.dumps(k, ensure_ascii=False) + ":" + b for b in spellings(value[k], names)]
            out = [a + ("," if i else "") + b for a in out for b in one][:limit]
        result += [a + "}" for a in out]
    return result[:limit]


def main():
    program = sys.argv[1]
    folder = sys.argv[2] if len(sys.argv) > 2 else os.environ.get("MXRUN_JSON_SCHEMA_SUITE", "")
    if not folder or not Path(folder).is_dir():
        print("SKIP: no JSON-Schema-Test-Suite (set MXRUN_JSON_SCHEMA_SUITE to its tests/draft2020-12)")
        return 77
    verbose = os.environ.get("VERBOSE")
    groups = []
    for file in sorted(Path(folder).rglob("*.json")):
        name = str(file.relative_to(folder))
        if name in OTHERWISE:
            continue
        for group in json.loads(file.read_text()):
            groups.append((name, group))
    lines, tests = [], []
    for name, group in groups:
        texts, spans = [], []
        names = order_of(group["schema"], group["schema"], frozenset())
        for test in group["tests"]:
            all_of_it = spellings(test["data"], names)
            spans.append((len(texts), len(texts) + len(all_of_it)))
            texts += all_of_it
        lines.append(json.dumps({"schema": group["schema"], "texts": texts}))
        tests.append(spans)
    run = subprocess.run([program], input="\n".join(lines) + "\n", capture_output=True, text=True)
    answers = [json.loads(x) for x in run.stdout.split("\n") if x]
    if run.returncode or len(answers) != len(groups):
        print(f"{program} ended with {run.returncode} after {len(answers)} of {len(groups)} groups: {run.stderr}")
        return 1
    compiled = agree = 0
    refused, wrong, used = {}, [], set()
    for (name, group), spans, answer in zip(groups, tests, answers):
        title = f'{name}: {group["description"]}'
        if answer.get("status") == "invalid argument" and "no value is valid" in answer["error"]:
            answer = {"matches": [False] * spans[-1][1]}  # so it is: every case must be invalid
        if "error" in answer:
            keyword = (re.search(r'"([$\w-]+)"', answer["error"]) or [None, answer["error"]])[1]
            refused.setdefault(keyword, []).append(title)
            if verbose:
                print("refused", title, answer["error"])
            continue
        compiled += 1
        for test, (begin, end) in zip(group["tests"], spans):
            got = any(answer["matches"][begin:end])
            case = f'{title}: {test["description"]}'
            if got == test["valid"]:
                agree += 1
            elif case in DIFFERENT:
                used.add(case)
            else:
                wrong.append(f'{case}: {json.dumps(test["data"])[:200]} is {"valid" if test["valid"] else "invalid"}, '
                             f'the grammar says otherwise')
    for line in wrong:
        print("WRONG", line)
    print(f"{compiled} groups compiled, {agree} cases agree, {len(wrong)} do not, {len(used)} differ as is known, "
          f"{sum(map(len, refused.values()))} groups refused (keywords: "
          + ", ".join(f"{k} {len(v)}" for k, v in sorted(refused.items(), key=lambda x: -len(x[1]))) + ")")
    if compiled < LEAST_GROUPS:
        print(f"fewer than {LEAST_GROUPS} groups compiled")
        return 1
    for keyword in sorted(set(refused) - REFUSING):
        print(f"refused by {keyword}, which was supported: {refused[keyword]}")
    for case in sorted(set(DIFFERENT) - used):
        print(f"json_schema_suite.json: no such case differs: {case}")
    return 1 if wrong or set(refused) - REFUSING or set(DIFFERENT) - used else 0


if __name__ == "__main__":
    sys.exit(main())
