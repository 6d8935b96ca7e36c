#!/usr/bin/env python3
"""Made-up schemas of all keywords, and values, held against Python's jsonschema.

random_schemas.py schema_match [COUNT] [SEED]: where a schema compiles, the grammar takes a value, in some order of its
members, if and only if it is valid; and where it takes an object that names a member twice, what readers make of that
(the last one counts) is valid. Skipped (status 77) where Python has no jsonschema."""
import json
import random
import subprocess
import sys

from json_schema_suite import spellings

try:
    from jsonschema import Draft202012Validator
except ImportError:
    print("SKIP: no jsonschema for this Python")
    sys.exit(77)

KEYS = ["a", "b", "ab", "c"]
SCALARS = [None, True, False, 0, 1, 2, -3, 2.5, "", "a", "ab", "abc", 7]
TYPES = ["null", "boolean", "object", "array", "number", "string", "integer"]


def value(dice, depth):
    kind = dice.random()
    if not depth or kind < 0.5:
        return dice.choice(SCALARS)
    if kind < 0.75:
        return [value(dice, depth - 1) for _ in range(dice.randrange(4))]
    return {k: value(dice, depth - 1) for k in dice.sample(KEYS, dice.randrange(4 if depth < 2 else 3))}


def twice(dice, v):
    """Texts of the object with a name twice: its members in order, and again some of them with other values."""
    texts = []
    for _ in range(6):
        members = [(dice.choice(list(v)), dice.choice(SCALARS)) for _ in range(dice.randrange(1, 3))]
        members = members + list(v.items()) if dice.random() < 0.3 else list(v.items()) + members
        if dice.random() < 0.5:
            members.sort(key=lambda m: m[0])
        texts.append("{" + ",".join(json.dumps(k) + ":" + json.dumps(x, separators=(",", ":")) for k, x in members) + "}")
    return texts


def schema(dice, depth):
    if dice.random() < 0.06:
        return dice.choice([True, False, {}])

    def sub():
        return schema(dice, depth - 1) if depth else dice.choice([True, False, {"type": dice.choice(TYPES)}, {"const": 1}])

    def subs():
        return [sub() for _ in range(dice.randrange(1, 4))]

    def some(low=1):
        return dice.sample(KEYS, dice.randrange(low, 3))
    keywords = {
        "type": lambda: dice.choice([dice.choice(TYPES), dice.sample(TYPES, dice.randrange(1, 4))]),
        "enum": lambda: [value(dice, 1) for _ in range(dice.randrange(1, 4))], "const": lambda: value(dice, 1),
        "minimum": lambda: dice.choice([-3, 0, 1, 1.5, 2]), "maximum": lambda: dice.choice([-3, 0, 1, 2.5, 2]),
        "exclusiveMinimum": lambda: dice.choice([0, 1, 2]), "exclusiveMaximum": lambda: dice.choice([1, 2.5, 7]),
        "multipleOf": lambda: dice.choice([1, 2, 0.5, 3]),
        "minLength": lambda: dice.randrange(3), "maxLength": lambda: dice.randrange(3),
        "pattern": lambda: dice.choice(["a", "^a", "b$", "^ab?$", "c"]),
        "properties": lambda: {k: sub() for k in some()}, "required": some, "additionalProperties": sub,
        "patternProperties": lambda: {dice.choice(["a", "^b", "c$"]): sub()},
        "propertyNames": lambda: dice.choice([{"maxLength": 1}, {"pattern": "a"}, {"not": {"const": "a"}}]),
        "minProperties": lambda: dice.randrange(3), "maxProperties": lambda: dice.randrange(3),
        "items": sub, "prefixItems": subs, "minItems": lambda: dice.randrange(3), "maxItems": lambda: dice.randrange(4),
        "contains": sub, "minContains": lambda: dice.randrange(3), "maxContains": lambda: dice.randrange(3),
        "allOf": subs, "anyOf": subs, "oneOf": subs, "not": sub, "if": sub, "then": sub, "else": sub,
        "dependentRequired": lambda: {dice.choice(KEYS): some()}, "dependentSchemas": lambda: {dice.choice(KEYS): sub()},
        "unevaluatedProperties": lambda: dice.choice([False, {"type": "integer"}]),
        "unevaluatedItems": lambda: dice.choice([False, {"type": "integer"}]),
        "$ref": lambda: "#/$defs/" + dice.choice("xy"),
    }
    chosen = dice.sample(sorted(keywords), dice.choice([1, 2, 2, 3, 4, 5]))
    if "properties" not in chosen and dice.random() < 0.3:
        chosen.append("properties")
    return {k: keywords[k]() for k in chosen}


def main():
    program = sys.argv[1]
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    dice = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    cases, lines = [], []
    while len(cases) < count:
        s = schema(dice, 2)
        if not isinstance(s, dict):
            continue
        s["$defs"] = {"x": schema(dice, 1), "y": schema(dice, 1)}
        values = [value(dice, 2) for _ in range(25)]
        texts, spans = [], []
        for v in values:
            orders = spellings(v, [], 1000)
            spans.append((len(texts), len(texts) + len(orders)))
            texts += orders
        doubles = [t for v in values if isinstance(v, dict) and v for t in twice(dice, v)]
        cases.append((s, values, spans, doubles))
        texts += doubles
        lines.append(json.dumps({"schema": s, "texts": texts}))
    run = subprocess.run([program], input="\n".join(lines) + "\n", capture_output=True, text=True)
    answers = [json.loads(x) for x in run.stdout.split("\n") if x]
    if run.returncode or len(answers) != count:
        print(f"{program} ended with {run.returncode} at {json.dumps(cases[len(answers)][0])}: {run.stderr}")
        return 1
    compiled = wrong = taken = 0
    seen = {True: 0, False: 0}
    for (s, values, spans, doubles), answer in zip(cases, answers):
        if "no value is valid" in answer.get("error", ""):
            answer = {"matches": [False] * (spans[-1][1] + len(doubles))}
        if "error" in answer:
            continue
        validator = Draft202012Validator(s)
        try:
            [validator.is_valid(v) for v in values]
        except RecursionError:  # a reference to itself, where no value comes to
            continue
        compiled += 1
        for v, (begin, end) in zip(values, spans):
            valid = validator.is_valid(v)
            seen[valid] += 1
            if any(answer["matches"][begin:end]) != valid:
                wrong += 1
                print(f'WRONG {"valid" if valid else "invalid"}: {json.dumps(v)} of {json.dumps(s)}')
        for text, match in zip(doubles, answer["matches"][spans[-1][1]:]):
            taken += match
            if match and not validator.is_valid(json.loads(text)):
                wrong += 1
                print(f"WRONG: {text} of {json.dumps(s)}")
    print(f"{compiled} of {count} schemas compiled; of {seen[True]} valid and {seen[False]} invalid values and {taken} with a name twice {wrong} are wrong")
    return 1 if wrong or compiled < count * 0.8 or min(seen.values()) < 5 * count else 0


if __name__ == "__main__":
    sys.exit(main())
