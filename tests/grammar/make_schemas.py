#!/usr/bin/env python3
"""Makes schemas.jsonl: 200 schemas as people write them, or as pydantic, zod and OpenAI's guides have them. Each line
is {"name", "schema", "bounded"}; bounded: no valid text is longer than some thousand bytes, so that sampling ends."""
import json
import random
from pathlib import Path

out = []


def add(name, schema, bounded=True):
    out.append({"name": name, "schema": schema, "bounded": bounded})


def text(most=24, **more):
    return {"type": "string", "maxLength": most, **more}


def obj(properties, required=None, closed=True, **more):
    s = {"type": "object", "properties": properties, **more}
    s["required"] = list(properties) if required is None else required
    if closed:
        s["additionalProperties"] = False
    return s


def arr(items, most=3, **more):
    return {"type": "array", "items": items, "maxItems": most, **more}


def num(low=0, high=1000, **more):
    return {"type": "number", "minimum": low, "maximum": high, **more}


def integer(low=0, high=1000, **more):
    return {"type": "integer", "minimum": low, "maximum": high, **more}


def enum(*values):
    return {"type": "string", "enum": list(values)}


def nullable(s):
    return {"anyOf": [s, {"type": "null"}]}


# ---- by hand -------------------------------------------------------------------------------------------------------
add("weather tool", obj({"location": text(), "unit": enum("celsius", "fahrenheit")}, ["location"]))
add("calendar event", obj({"name": text(), "date": {"type": "string", "format": "date"}, "participants": arr(text(12))}))
add("math reasoning", obj({"steps": arr(obj({"explanation": text(40), "output": text(20)})), "final_answer": text(20)}))
add("invoice", obj({
    "number": {"type": "string", "pattern": "^INV-[0-9]{4}-[0-9]{3,6}$"},
    "issued": {"type": "string", "format": "date"}, "due": {"type": "string", "format": "date"},
    "currency": enum("EUR", "USD", "GBP", "CHF", "JPY"),
    "lines": arr(obj({"description": text(30), "quantity": integer(1, 99), "unit_price": num(0, 99999, multipleOf=0.25),
                      "tax_rate": {"enum": [0, 0.07, 0.19]}}), 3, minItems=1),
    "total": num(0, 999999.99, multipleOf=0.25), "paid": {"type": "boolean"}}))
add("receipt", obj({"merchant": text(20), "time": {"type": "string", "format": "date-time"},
                    "total_cents": integer(0, 10000000), "tip": nullable(num(0, 100))}))
add("address", obj({"street": text(30), "zip": {"type": "string", "pattern": "^[0-9]{5}(-[0-9]{4})?$"}, "city": text(20),
                    "country": {"type": "string", "pattern": "^[A-Z]{2}$"}}))
add("person", obj({"first": text(12, minLength=1), "last": text(12, minLength=1), "age": integer(0, 130),
                   "email": {"type": "string", "pattern": "^[a-z]{1,10}@[a-z]{1,10}\\.(com|org|net)$"}}, ["first", "last"]))
add("ui tree", {"type": "object", "properties": {
    "type": enum("div", "button", "header", "section", "field", "form"), "label": {"type": "string"},
    "children": {"type": "array", "items": {"$ref": "#"}},
    "attributes": {"type": "array", "items": obj({"name": {"type": "string"}, "value": {"type": "string"}})}},
    "required": ["type", "label", "children", "attributes"], "additionalProperties": False}, False)
add("linked list", obj({"linked_list": {"$ref": "#/$defs/node"}}, **{"$defs": {"node": obj(
    {"value": integer(), "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}})}}), False)
add("expression", {"$ref": "#/$defs/e", "$defs": {"e": {"oneOf": [
    obj({"kind": {"const": "number"}, "value": integer(-99, 99)}),
    obj({"kind": {"const": "binary"}, "op": enum("+", "-", "*", "/"), "left": {"$ref": "#/$defs/e"},
         "right": {"$ref": "#/$defs/e"}}),
    obj({"kind": {"const": "call"}, "name": text(8), "arguments": arr({"$ref": "#/$defs/e"}, 2)})]}}}, False)
add("file system", {"$ref": "#/$defs/entry", "$defs": {
    "entry": {"anyOf": [{"$ref": "#/$defs/file"}, {"$ref": "#/$defs/folder"}]},
    "file": obj({"type": {"const": "file"}, "name": text(12), "size": integer(0, 4096)}),
    "folder": obj({"type": {"const": "folder"}, "name": text(12), "entries": arr({"$ref": "#/$defs/entry"}, 2)})}}, False)
add("comments", obj({"author": text(10), "text": text(40), "replies": arr({"$ref": "#"}, 2)}), False)
add("shape union", {"oneOf": [obj({"shape": {"const": "circle"}, "radius": num(0, 10)}),
                              obj({"shape": {"const": "square"}, "side": num(0, 10)}),
                              obj({"shape": {"const": "polygon"}, "points": arr({"type": "array", "prefixItems": [
                                  num(-1, 1), num(-1, 1)], "items": False, "minItems": 2}, 4, minItems=3)})]})
add("pet discriminator", {"$defs": {
    "Cat": {"properties": {"pet_type": {"const": "cat", "title": "Pet Type"}, "lives": integer(1, 9)},
            "required": ["pet_type", "lives"], "title": "Cat", "type": "object", "additionalProperties": False},
    "Dog": {"properties": {"pet_type": {"const": "dog", "title": "Pet Type"}, "good": {"type": "boolean"}},
            "required": ["pet_type", "good"], "title": "Dog", "type": "object", "additionalProperties": False}},
    "properties": {"pet": {"discriminator": {"mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"},
                                             "propertyName": "pet_type"},
                           "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}], "title": "Pet"}},
    "required": ["pet"], "title": "Model", "type": "object", "additionalProperties": False})
add("any json", {}, False)
add("any object", {"type": "object"}, False)
add("free strings", obj({"title": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}}), False)
add("map of numbers", {"type": "object", "additionalProperties": integer(0, 9), "maxProperties": 4,
                       "propertyNames": {"pattern": "^[a-z]{1,6}$"}})
add("map with names", obj({"id": integer()}, closed=False, additionalProperties=text(8), maxProperties=3,
                          propertyNames={"maxLength": 8}))
add("pattern properties", {"type": "object", "patternProperties": {"^n_[a-z]{1,4}$": integer(0, 99),
                                                                   "^s_[a-z]{1,4}$": text(6)},
                           "additionalProperties": False, "maxProperties": 4})
add("headers", {"type": "object", "properties": {"accept": text(16)}, "patternProperties": {"^x-[a-z]{1,8}$": text(12)},
                "additionalProperties": False, "maxProperties": 4})
add("boolean", {"type": "boolean"})
add("null", {"type": "null"})
add("an integer", {"type": "integer"})
add("a number", {"type": "number"})
add("a string", text(40))
add("constant", {"const": {"a": [1, "two", None, {"b": True}]}})
add("enum of all types", {"enum": [None, True, False, 0, -1, 2.5, "s", [], [1], {}, {"k": "v"}]})
add("types", {"type": ["string", "integer", "null"], "maxLength": 8, "minimum": 0, "maximum": 10})
add("even", integer(-100, 100, multipleOf=2))
add("sevens", integer(0, 10 ** 12, multipleOf=7))
add("price", num(0.25, 9999.99, multipleOf=0.25))
add("probability", num(0, 1))
add("temperature", {"type": "number", "exclusiveMinimum": -273.15, "exclusiveMaximum": 1000})
add("big integers", integer(-9223372036854775808, 18446744073709551615))
add("percent", integer(0, 100))
add("latitude", obj({"lat": num(-90, 90), "lon": num(-180, 180)}))
add("hex color", {"type": "string", "pattern": "^#([0-9a-f]{3}|[0-9a-f]{6})$"})
add("phone", {"type": "string", "pattern": "^\\+[1-9][0-9]{6,14}$"})
add("semver", {"type": "string", "pattern": "^(0|[1-9][0-9]{0,3})\\.(0|[1-9][0-9]{0,3})\\.(0|[1-9][0-9]{0,3})$"})
add("slug", {"type": "string", "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$", "maxLength": 20})
add("contains a digit", {"type": "string", "pattern": "[0-9]", "maxLength": 12})
add("quotes and backslashes", {"type": "string", "pattern": "^[\"\\\\\\n\\t/]{1,8}$"})
add("emoji", {"type": "string", "pattern": "^[😀-🙏]{1,5}$"})
for f in ("date", "time", "date-time", "duration", "uuid", "ipv4", "ipv6"):
    add("format " + f, {"type": "string", "format": f})
for f in ("email", "hostname", "uri", "uri-reference", "json-pointer"):
    add("format " + f, {"type": "string", "format": f, "maxLength": 40})
add("tuple", {"type": "array", "prefixItems": [text(8), integer(), {"type": "boolean"}], "items": False, "minItems": 3})
add("open tuple", {"type": "array", "prefixItems": [text(4), integer()], "items": {"type": "null"}, "maxItems": 4})
add("matrix", arr(arr(integer(-9, 9), 3, minItems=3), 3, minItems=3))
add("nested arrays", arr(arr(arr(integer(0, 9), 2), 2), 2))
add("contains", {"type": "array", "items": integer(0, 99), "contains": {"minimum": 50}, "maxItems": 5})
add("contains twice", {"type": "array", "items": {"type": ["integer", "string"], "minimum": 0, "maximum": 9, "maxLength": 3},
                       "contains": {"type": "string"}, "minContains": 1, "maxContains": 2, "maxItems": 5})
add("unique enum", arr(enum("red", "green", "blue", "black"), 4, uniqueItems=True))
add("weekdays", arr(enum("mon", "tue", "wed", "thu", "fri", "sat", "sun"), 7, uniqueItems=True, minItems=1))
add("two to three members", obj({k: integer(0, 9) for k in "abcd"}, [], minProperties=2, maxProperties=3))
add("at least one", obj({k: text(6) for k in ("email", "phone", "post")}, [], minProperties=1))
add("all optional", obj({k: integer(0, 9) for k in "abcdefghij"}, []))
add("forty optional", obj({f"field_{i}": {"type": "boolean"} for i in range(40)}, []))
add("hundred required", obj({f"f{i}": integer(0, 1) for i in range(100)}))
add("sixty of each", obj({f"k{i}": {"type": "boolean"} for i in range(60)}, [f"k{i}" for i in range(0, 60, 2)]))
add("long enum", {"enum": [f"value {i * i}" for i in range(300)]})
add("all of objects", {"allOf": [obj({"id": integer()}, closed=False), obj({"name": text(10)}, closed=False)],
                       "unevaluatedProperties": False})
add("all of ranges", {"allOf": [{"type": "integer"}, {"minimum": 10}, {"maximum": 20}, {"multipleOf": 5}]})
add("base and extension", {"$ref": "#/$defs/base", "properties": {"extra": text(8)}, "required": ["extra"],
                           "unevaluatedProperties": False, "$defs": {"base": {"type": "object", "properties": {
                               "id": integer(), "kind": enum("a", "b")}, "required": ["id"]}}})
add("not a word", {"type": "string", "pattern": "^[a-z]{1,5}$", "not": {"enum": ["foo", "bar", "admin"]}})
add("not zero", {"type": "integer", "minimum": -9, "maximum": 9, "not": {"const": 0}})
add("if then else", obj({"country": enum("US", "DE"), "zip": {"type": "string"}},
                        **{"if": {"properties": {"country": {"const": "US"}}},
                           "then": {"properties": {"zip": {"pattern": "^[0-9]{5}$"}}},
                           "else": {"properties": {"zip": {"pattern": "^D-[0-9]{5}$"}}}}))
add("card needs address", obj({"name": text(8), "card": integer(1000, 9999), "address": text(12)}, ["name"],
                              dependentRequired={"card": ["address"]}))
add("dependent schemas", obj({"a": integer(0, 9), "b": integer(0, 9)}, [],
                             dependentSchemas={"a": {"properties": {"b": {"minimum": 5}}}}))
add("one of numbers", {"oneOf": [{"type": "integer", "minimum": 0, "maximum": 10},
                                 {"type": "integer", "minimum": 5, "maximum": 15}]})
add("one of required", {"type": "object", "properties": {"url": text(10), "file": text(10)}, "additionalProperties": False,
                        "oneOf": [{"required": ["url"]}, {"required": ["file"]}]})
add("zod", {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "properties": {
    "username": {"type": "string", "minLength": 3, "maxLength": 16}, "role": enum("admin", "user"),
    "settings": obj({"theme": {"type": "string", "enum": ["dark", "light"], "default": "dark"},
                     "volume": {"type": "number", "minimum": 0, "maximum": 11}}, ["volume"]),
    "ids": arr(integer(1, 99), 3)}, "required": ["username", "role", "settings"], "additionalProperties": False})
add("pydantic", {"$defs": {
    "Color": {"enum": ["red", "green"], "title": "Color", "type": "string"},
    "Item": {"properties": {"name": {"title": "Name", "type": "string", "maxLength": 10},
                            "price": {"anyOf": [num(0, 100), {"type": "null"}], "default": None, "title": "Price"},
                            "color": {"$ref": "#/$defs/Color", "default": "red"}},
             "required": ["name"], "title": "Item", "type": "object", "additionalProperties": False}},
    "properties": {"items": {"items": {"$ref": "#/$defs/Item"}, "title": "Items", "type": "array", "maxItems": 3},
                   "meta": {"additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9},
                            "propertyNames": {"pattern": "^[a-z]{1,4}$"}, "maxProperties": 2,
                            "title": "Meta", "type": "object"}},
    "required": ["items"], "title": "Order", "type": "object", "additionalProperties": False})
add("anchor", obj({"a": {"$ref": "#point"}, "b": {"$ref": "#point"}},
                  **{"$defs": {"p": {"$anchor": "point", **obj({"x": integer(), "y": integer()})}}}))
add("escaped names", obj({"a\"b": integer(0, 9), "tab\t": integer(0, 9), "back\\slash": integer(0, 9), "ü€😀": integer(0, 9),
                          "": integer(0, 9)}))
add("sql", obj({"table": enum("orders", "users"), "columns": arr(enum("id", "name", "status"), 3),
                "conditions": arr(obj({"column": text(8), "operator": enum("=", ">", "<", ">=", "<=", "!="),
                                       "value": {"anyOf": [text(8), integer(), obj({"column_name": text(8)})]}}), 2),
                "order_by": enum("asc", "desc")}))
add("chess move", {"type": "string", "pattern": "^[a-h][1-8][a-h][1-8][qrbn]?$"})
add("deep", (lambda f: f(f, 12))(lambda f, n: obj({"v": integer(0, 9), "in": f(f, n - 1)}) if n else {"type": "null"}))
add("moderation", obj({"violation": {"type": "boolean"}, "category": nullable(enum("violence", "sexual", "self_harm")),
                       "explanation": nullable(text(40))}))
add("byte", {"type": "string", "format": "byte", "maxLength": 16})

# ---- made up -------------------------------------------------------------------------------------------------------
dice = random.Random(20260)
fields = {
    "id": lambda: integer(1, 999999), "uuid": lambda: {"type": "string", "format": "uuid"},
    "name": lambda: text(16, minLength=1), "title": lambda: text(24), "description": lambda: text(40),
    "status": lambda: enum(*dice.sample(["open", "closed", "pending", "draft", "sent", "failed", "done"], 4)),
    "priority": lambda: {"enum": [1, 2, 3]}, "score": lambda: num(0, 1), "rating": lambda: num(0, 5, multipleOf=0.5),
    "count": lambda: integer(0, 500), "enabled": lambda: {"type": "boolean"}, "notes": lambda: nullable(text(20)),
    "created_at": lambda: {"type": "string", "format": "date-time"}, "day": lambda: {"type": "string", "format": "date"},
    "starts": lambda: {"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"},
    "duration": lambda: {"type": "string", "format": "duration"}, "ip": lambda: {"type": "string", "format": "ipv4"},
    "language": lambda: {"type": "string", "pattern": "^[a-z]{2}(-[A-Z]{2})?$"},
    "tags": lambda: arr(text(8), 3), "scores": lambda: arr(num(0, 100), 3, minItems=1),
    "position": lambda: {"type": "array", "prefixItems": [integer(-9, 9), integer(-9, 9)], "items": False, "minItems": 2},
    "amount": lambda: num(0, 10000, multipleOf=0.25), "code": lambda: {"type": "string", "pattern": "^[A-Z]{3}[0-9]{2,4}$"},
    "limit": lambda: {"type": "integer", "minimum": 1, "maximum": 100, "default": 10},
    "sort": lambda: {"type": "string", "enum": ["asc", "desc"], "default": "asc", "description": "The order."},
    "query": lambda: text(30, minLength=1), "value": lambda: {"anyOf": [text(8), integer(), {"type": "boolean"}]},
    "level": lambda: {"const": dice.choice(["info", "warning", 3])},
}
topics = ["search", "ticket", "order", "booking", "sensor", "article", "user", "payment", "task", "recipe", "movie",
          "patient", "vehicle", "flight", "review", "email", "metric", "device", "contract", "lesson"]


def record(depth):
    names = dice.sample(sorted(fields), dice.randint(2, 5))
    properties = {n: fields[n]() for n in names}
    if depth and dice.random() < 0.6:
        properties[dice.choice(["details", "owner", "parent"])] = record(depth - 1)
    if depth and dice.random() < 0.5:
        properties[dice.choice(["items", "entries", "rows"])] = arr(record(depth - 1), 2)
    names = list(properties)
    required = names if dice.random() < 0.5 else [n for n in names if dice.random() < 0.6]
    return obj(properties, required)


def with_defs(schema):
    """Objects within are moved to $defs, as pydantic writes them."""
    defs = {}

    def move(s, top):
        if isinstance(s, list):
            return [move(x, False) for x in s]
        if not isinstance(s, dict):
            return s
        new = {k: ({n: move(v, False) for n, v in x.items()} if k == "properties" else move(x, False))
               for k, x in s.items()}
        if new.get("type") == "object" and not top:
            name = f"Model{len(defs) + 1}"
            defs[name] = {**new, "title": name}
            return {"$ref": f"#/$defs/{name}"}
        return new
    top = move(schema, True)
    return {"$defs": defs, **top} if defs else top


while len(out) < 200:
    topic = topics[len(out) % len(topics)]
    style = dice.choice(["plain", "plain", "defs", "union", "array"])
    schema = record(2)
    if style == "defs":
        schema = with_defs(schema)
    elif style == "union":
        schema = obj({"action": {"oneOf": [
            {**(r := record(1)), "properties": {"type": {"const": kind}, **r["properties"]},
             "required": ["type"] + r["required"]} for kind in dice.sample(topics, 3)]}})
    elif style == "array":
        schema = obj({"results": arr(record(1), 3), "total": integer()})
    add(f"{topic} {style} {len(out)}", schema)

lines = "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in out)
(Path(__file__).parent / "schemas.jsonl").write_text(lines)
