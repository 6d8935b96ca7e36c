/* JSON schemas as the TypeScript types that gpt-oss saw in training. Every oddity (a nested description that prints
 * twice, `"a" | "b"[]`, unescaped defaults) is the library's and therefore the model's. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer/harmony.h"
#include "tokenizer/harmony_private.h"

/* ---- members of objects ------------------------------------------------------------------------------------------ */
static int compare_bytes(const char *a, size_t a_size, const char *b, size_t b_size) {
    int order = memcmp(a, b, a_size < b_size ? a_size : b_size);
    return order ? order : (a_size > b_size) - (a_size < b_size);
}

static int by_key_then_position(const void *a, const void *b) {
    const mx_member *x = a, *y = b;
    int order = compare_bytes(x->value->key, x->value->key_size, y->value->key, y->value->key_size);
    return order ? order : (x->position > y->position) - (x->position < y->position);
}

static int by_position(const void *a, const void *b) {
    const mx_member *x = a, *y = b;
    return (x->position > y->position) - (x->position < y->position);
}

bool mx_json_members(const mx_json *object, mx_member_order order, mx_member **members, uint32_t *count) {
    *members = NULL;
    *count = 0;
    if (!object || object->type != MX_JSON_OBJECT || !object->count) return true;
    mx_member *list = malloc(object->count * sizeof *list);
    if (!list) return false;
    uint32_t n = 0, kept = 0;
    for (const mx_json *c = object->child; c; c = c->next, n++) list[n] = (mx_member){c, n};
    qsort(list, n, sizeof *list, by_key_then_position);
    for (uint32_t i = 0; i < n; i++) {
        const mx_json *a = kept ? list[kept - 1].value : NULL, *b = list[i].value;
        if (a && compare_bytes(a->key, a->key_size, b->key, b->key_size) == 0)
            list[kept - 1].value = b;
        else
            list[kept++] = list[i];
    }
    if (order == MX_SOURCE_ORDER) qsort(list, kept, sizeof *list, by_position);
    *members = list;
    *count = kept;
    return true;
}

/* ---- values as compact JSON -------------------------------------------------------------------------------------- */
static void add_json_string(mx_text *t, const char *text, size_t size) {
    static const char short_escape[] = "\"\"\\\\\bb\ff\nn\rr\tt";
    mx_text_puts(t, "\"");
    for (size_t i = 0, start = 0; i <= size; i++) {
        unsigned char c = i < size ? (unsigned char)text[i] : 0;
        if (i < size && c >= 0x20 && c != '"' && c != '\\') continue;
        mx_text_add(t, text + start, i - start);
        start = i + 1;
        if (i == size) break;
        char escape[8] = {'\\'};
        for (const char *e = short_escape; *e; e += 2)
            if ((unsigned char)e[0] == c) escape[1] = e[1];
        if (!escape[1]) snprintf(escape, sizeof escape, "\\u%04x", c);
        mx_text_puts(t, escape);
    }
    mx_text_puts(t, "\"");
}

/* An integer that 64 bits hold, signed or unsigned; "-0" is none. */
static bool fits_integer(const mx_json *v) {
    const char *digits = v->text + (v->text[0] == '-');
    size_t n = strspn(digits, "0123456789");
    if (digits[n] || (v->text[0] == '-' && digits[0] == '0')) return false;
    const char *limit = v->text[0] == '-' ? "9223372036854775808" : "18446744073709551615";
    return n < strlen(limit) || (n == strlen(limit) && strcmp(digits, limit) <= 0);
}

/* The shortest decimal that reads back as the same double, as 1e16, 1.5, 0.00001 or 1.5e-6: a point where the value is
 * at least 1e-5 and below 1e16, and always a sign that it is no integer. */
static void add_double(mx_text *t, double value) {
    char text[40], digits[24];
    for (int precision = 0; precision <= 16; precision++) {
        snprintf(text, sizeof text, "%.*e", precision, value);
        if (strtod(text, NULL) == value) break;
    }
    int n = 0, exponent = (int)strtol(strchr(text, 'e') + 1, NULL, 10);
    for (const char *p = text; *p != 'e'; p++)
        if (*p >= '0' && *p <= '9') digits[n++] = *p;
    while (n > 1 && digits[n - 1] == '0') n--;
    int point = exponent + 1; /* digits before the decimal point */
    if (text[0] == '-') mx_text_puts(t, "-");
    if (digits[0] == '0') {
        mx_text_puts(t, "0.0");
    } else if (point > 16 || point <= -5) {
        char tail[16];
        mx_text_add(t, digits, 1);
        if (n > 1) mx_text_puts(t, ".");
        mx_text_add(t, digits + 1, (size_t)n - 1);
        snprintf(tail, sizeof tail, "e%d", exponent);
        mx_text_puts(t, tail);
    } else if (point <= 0) {
        mx_text_puts(t, "0.");
        mx_text_add(t, "00000", (size_t)-point);
        mx_text_add(t, digits, (size_t)n);
    } else if (point >= n) {
        mx_text_add(t, digits, (size_t)n);
        mx_text_add(t, "0000000000000000", (size_t)(point - n));
        mx_text_puts(t, ".0");
    } else {
        mx_text_add(t, digits, (size_t)point);
        mx_text_puts(t, ".");
        mx_text_add(t, digits + point, (size_t)(n - point));
    }
}

static void add_json(mx_text *t, const mx_json *v) {
    double number;
    mx_member *members;
    uint32_t count;
    switch (v->type) {
    case MX_JSON_NULL:
        mx_text_puts(t, "null");
        return;
    case MX_JSON_BOOL:
        mx_text_puts(t, v->boolean ? "true" : "false");
        return;
    case MX_JSON_NUMBER:
        if (fits_integer(v) || !mx_json_double(v, &number))
            mx_text_add_string(t, v);
        else
            add_double(t, number);
        return;
    case MX_JSON_STRING:
        add_json_string(t, v->text, v->size);
        return;
    case MX_JSON_ARRAY:
        mx_text_puts(t, "[");
        for (const mx_json *c = v->child; c; c = c->next) {
            if (c != v->child) mx_text_puts(t, ",");
            add_json(t, c);
        }
        mx_text_puts(t, "]");
        return;
    case MX_JSON_OBJECT:
        mx_text_puts(t, "{");
        if (!mx_json_members(v, MX_SOURCE_ORDER, &members, &count)) t->failed = true;
        for (uint32_t i = 0; i < count; i++) {
            if (i) mx_text_puts(t, ",");
            add_json_string(t, members[i].value->key, members[i].value->key_size);
            mx_text_puts(t, ":");
            add_json(t, members[i].value);
        }
        free(members);
        mx_text_puts(t, "}");
        return;
    }
}

/* ---- types ------------------------------------------------------------------------------------------------------- */
static void add_type(mx_text *t, const mx_json *schema, int indent);

static void add_indent(mx_text *t, int indent) {
    for (; indent > 0; indent--) mx_text_puts(t, " ");
}

static void add_comment(mx_text *t, int indent, const char *before, const mx_json *text, const char *after) {
    add_indent(t, indent);
    mx_text_puts(t, "// ");
    mx_text_puts(t, before);
    mx_text_add_string(t, text);
    mx_text_puts(t, after);
}

static bool equal_strings(const mx_json *a, const mx_json *b) {
    return a && b && compare_bytes(a->text, a->size, b->text, b->size) == 0;
}

static bool has_enum(const mx_json *schema) {
    const mx_json *values = mx_json_array(schema, "enum");
    return values && values->count;
}

/* `default: VALUE`. Strings stand in plain quotes, those of an enum bare, or as JSON where `enum_as_json`. */
static void add_default(mx_text *t, const mx_json *schema, const mx_json *value, bool enum_as_json) {
    mx_text_puts(t, "default: ");
    if (value->type != MX_JSON_STRING || (enum_as_json && has_enum(schema))) {
        add_json(t, value);
        return;
    }
    const char *quote = has_enum(schema) ? "" : "\"";
    mx_text_puts(t, quote);
    mx_text_add_string(t, value);
    mx_text_puts(t, quote);
}

/* The type, and " | null" where the schema says nullable and the type's text does not. */
static void add_nullable_type(mx_text *t, const mx_json *schema, int indent) {
    size_t start = t->bytes.size;
    bool nullable = false;
    add_type(t, schema, indent);
    mx_json_bool(mx_json_get(schema, "nullable"), &nullable);
    if (nullable && !t->failed && !memmem(t->bytes.data + start, t->bytes.size - start, "null", 4))
        mx_text_puts(t, " | null");
}

/* " // description default: x" behind one variant of a oneOf; either may be absent. */
static void add_variant_comment(mx_text *t, const mx_json *variant, const mx_json *description, bool enum_as_json) {
    const mx_json *value = mx_json_get(variant, "default");
    if (!description && !value) return;
    mx_text_puts(t, " // ");
    if (description) mx_text_add_string(t, description);
    if (description && value) mx_text_puts(t, " ");
    if (value) add_default(t, variant, value, enum_as_json);
}

/* A oneOf that is not a property's own: each variant on a line, the first one too. */
static void add_variants(mx_text *t, const mx_json *variants, int indent) {
    for (const mx_json *v = variants->child; v; v = v->next) {
        mx_text_puts(t, "\n");
        add_indent(t, indent);
        mx_text_puts(t, " | ");
        add_nullable_type(t, v, indent + 3);
        add_variant_comment(t, v, mx_json_string(v, "description"), true);
    }
}

static void add_property_name(mx_text *t, int indent, const mx_json *property, bool required, const char *after) {
    add_indent(t, indent);
    mx_text_add(t, property->key, property->key_size);
    mx_text_puts(t, required ? ":" : "?:");
    mx_text_puts(t, after);
}

/* A property whose schema is a oneOf: comments above the name, the variants below it, then a comma of its own line. */
static void add_one_of_property(mx_text *t, const mx_json *property, const mx_json *variants, bool required,
                                int indent) {
    const mx_json *description = mx_json_string(property, "description"), *value = mx_json_get(property, "default");
    bool above = description && !equal_strings(description, mx_json_string(variants->child, "description"));
    if (above) add_comment(t, indent, "", description, "\n");
    if (value) {
        add_indent(t, indent);
        mx_text_puts(t, "// ");
        add_default(t, property, value, false);
        mx_text_puts(t, "\n");
    }
    add_property_name(t, indent, property, required, "\n");
    for (const mx_json *v = variants->child; v; v = v->next) {
        const mx_json *own = mx_json_string(v, "description");
        if ((v == variants->child && above) || equal_strings(own, description)) own = NULL;
        add_indent(t, indent);
        mx_text_puts(t, " | ");
        add_nullable_type(t, v, indent + 3);
        add_variant_comment(t, v, own, false);
        mx_text_puts(t, "\n");
    }
    add_indent(t, indent);
    mx_text_puts(t, ",\n");
}

static void add_property(mx_text *t, const mx_json *property, bool required, int indent) {
    const mx_json *title = mx_json_string(property, "title"), *description = mx_json_string(property, "description");
    const mx_json *examples = mx_json_array(property, "examples"), *value = mx_json_get(property, "default");
    bool has_one_of = mx_json_get(property, "oneOf") != NULL;
    if (title) {
        add_comment(t, indent, "", title, "\n");
        add_indent(t, indent);
        mx_text_puts(t, "//\n");
    }
    if (description && !has_one_of) add_comment(t, indent, "", description, "\n");
    if (examples && examples->count) {
        add_indent(t, indent);
        mx_text_puts(t, "// Examples:\n");
        for (const mx_json *e = examples->child; e; e = e->next)
            if (e->type == MX_JSON_STRING) add_comment(t, indent, "- \"", e, "\"\n");
    }
    const mx_json *variants = mx_json_array(property, "oneOf");
    if (variants) {
        add_one_of_property(t, property, variants, required, indent);
        return;
    }
    add_property_name(t, indent, property, required, " ");
    add_nullable_type(t, property, indent + 4);
    mx_text_puts(t, ",");
    if (value && !has_one_of) {
        mx_text_puts(t, " // ");
        add_default(t, property, value, false);
    }
    mx_text_puts(t, "\n");
}

static int by_text(const void *a, const void *b) {
    const mx_json *x = *(const mx_json *const *)a, *y = *(const mx_json *const *)b;
    return compare_bytes(x->text, x->size, y->text, y->size);
}

static int key_against_text(const void *key, const void *element) {
    const mx_json *member = key, *name = *(const mx_json *const *)element;
    return compare_bytes(member->key, member->key_size, name->text, name->size);
}

static void add_object(mx_text *t, const mx_json *schema, int indent) {
    const mx_json *description = mx_json_string(schema, "description"), *list = mx_json_array(schema, "required");
    mx_member *members;
    uint32_t count, names = 0;
    if (description) add_comment(t, indent, "", description, "\n");
    mx_text_puts(t, "{\n");
    const mx_json **required = malloc(((size_t)(list ? list->count : 0) + 1) * sizeof *required);
    if (!mx_json_members(mx_json_get(schema, "properties"), MX_SOURCE_ORDER, &members, &count) || !required) {
        t->failed = true;
        count = 0;
    }
    for (const mx_json *r = list && required ? list->child : NULL; r; r = r->next)
        if (r->type == MX_JSON_STRING) required[names++] = r;
    if (names) qsort(required, names, sizeof *required, by_text);
    for (uint32_t i = 0; i < count; i++) {
        const mx_json *p = members[i].value;
        add_property(t, p, names && bsearch(p, required, names, sizeof *required, key_against_text), indent);
    }
    free(required);
    free(members);
    add_indent(t, indent);
    mx_text_puts(t, "}");
}

/* "a" | "b", or string where no string is in the list. */
static void add_string_type(mx_text *t, const mx_json *schema) {
    const mx_json *values = mx_json_array(schema, "enum");
    bool any = false;
    for (const mx_json *v = values ? values->child : NULL; v; v = v->next) {
        if (v->type != MX_JSON_STRING) continue;
        mx_text_puts(t, any ? " | \"" : "\"");
        mx_text_add_string(t, v);
        mx_text_puts(t, "\"");
        any = true;
    }
    if (!any) mx_text_puts(t, "string");
}

/* ["integer", "null"] as number | null; false when no string is in the list. */
static bool add_type_list(mx_text *t, const mx_json *types) {
    bool any = false;
    for (const mx_json *v = types->child; v; v = v->next) {
        if (v->type != MX_JSON_STRING) continue;
        if (any) mx_text_puts(t, " | ");
        if (mx_json_is_string(v, "integer"))
            mx_text_puts(t, "number");
        else
            mx_text_add_string(t, v);
        any = true;
    }
    return any;
}

static void add_type(mx_text *t, const mx_json *schema, int indent) {
    const mx_json *variants = mx_json_array(schema, "oneOf"), *type = mx_json_get(schema, "type");
    const mx_json *items = mx_json_get(schema, "items");
    if (variants) {
        add_variants(t, variants, indent);
    } else if (type && type->type == MX_JSON_ARRAY && add_type_list(t, type)) {
        return;
    } else if (mx_json_is_string(type, "object")) {
        add_object(t, schema, indent);
    } else if (mx_json_is_string(type, "string")) {
        add_string_type(t, schema);
    } else if (mx_json_is_string(type, "number") || mx_json_is_string(type, "integer")) {
        mx_text_puts(t, "number");
    } else if (mx_json_is_string(type, "boolean")) {
        mx_text_puts(t, "boolean");
    } else if (mx_json_is_string(type, "array") && items) {
        add_type(t, items, indent);
        mx_text_puts(t, "[]");
    } else if (mx_json_is_string(type, "array")) {
        mx_text_puts(t, "Array<any>");
    } else {
        mx_text_puts(t, "any");
    }
}

void mx_text_add_typescript(mx_text *t, const mx_json *schema) {
    add_type(t, schema, 0);
}

mx_status mx_schema_to_typescript(const mx_json *schema, mx_bytes *out, mx_error *error) {
    mx_text t = {0};
    mx_text_add_typescript(&t, schema);
    if (!t.failed && t.bytes.size && !mx_bytes_add(out, t.bytes.data, t.bytes.size)) t.failed = true;
    mx_bytes_free(&t.bytes);
    return t.failed ? mx_fail(error, MX_NO_MEMORY, "tool schema: out of memory") : MX_OK;
}
