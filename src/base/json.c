#include "base/json.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <yajl/yajl_parse.h>

enum { MAX_DEPTH = 512, BLOCK = 1 << 16 };

/* Nodes and strings are cut from blocks and die together. */
struct block {
    struct block *next;
    size_t used, size;
    _Alignas(16) char data[];
};

struct mx_json_document {
    struct block *blocks;
    size_t used, most; /* bytes of nodes and strings */
    mx_json *root;
    /* While parsing: the open containers, their last children, and the key that waits for its value. */
    mx_json *open[MAX_DEPTH], *last[MAX_DEPTH];
    int depth;
    const char *key;
    size_t key_size;
    const char *problem; /* why a callback gave up */
};

static void *take(mx_json_document *d, size_t size) {
    size = (size + 15) / 16 * 16;
    if (size > d->most - d->used) {
        d->problem = "too many values for a text of this length";
        return NULL;
    }
    d->used += size;
    struct block *b = d->blocks;
    if (!b || b->size - b->used < size) {
        size_t n = size > BLOCK ? size : BLOCK;
        b = malloc(sizeof *b + n);
        if (!b) {
            d->problem = "out of memory";
            return NULL;
        }
        *b = (struct block){.next = d->blocks, .size = n};
        d->blocks = b;
    }
    void *p = b->data + b->used;
    b->used += size;
    return p;
}

static const char *copy(mx_json_document *d, const void *text, size_t size) {
    char *p = take(d, size + 1);
    if (!p) return NULL;
    memcpy(p, text, size);
    p[size] = 0;
    return p;
}

/* A new node, hung into the container that is open. */
static mx_json *add(mx_json_document *d, mx_json_type type) {
    mx_json *v = take(d, sizeof *v);
    if (!v) return NULL;
    *v = (mx_json){.type = type, .key = d->key, .key_size = d->key_size};
    d->key = NULL;
    d->key_size = 0;
    if (!d->depth) {
        d->root = v;
        return v;
    }
    mx_json *parent = d->open[d->depth - 1], **last = &d->last[d->depth - 1];
    if (*last)
        (*last)->next = v;
    else
        parent->child = v;
    *last = v;
    parent->count++;
    return v;
}

static int on_null(void *d) {
    return add(d, MX_JSON_NULL) != NULL;
}

static int on_bool(void *d, int value) {
    mx_json *v = add(d, MX_JSON_BOOL);
    if (v) v->boolean = value;
    return v != NULL;
}

static int on_text(mx_json_document *d, mx_json_type type, const void *text, size_t size) {
    const char *s = copy(d, text, size);
    mx_json *v = s ? add(d, type) : NULL;
    if (!v) return 0;
    v->text = s;
    v->size = size;
    return 1;
}

static int on_number(void *d, const char *text, size_t size) {
    return on_text(d, MX_JSON_NUMBER, text, size);
}
static int on_string(void *d, const unsigned char *text, size_t size) {
    return on_text(d, MX_JSON_STRING, text, size);
}

static int on_key(void *user, const unsigned char *text, size_t size) {
    mx_json_document *d = user;
    d->key = copy(d, text, size);
    d->key_size = size;
    return d->key != NULL;
}

static int open_container(mx_json_document *d, mx_json_type type) {
    if (d->depth == MAX_DEPTH) {
        d->problem = "nested deeper than 512 levels";
        return 0;
    }
    mx_json *v = add(d, type);
    if (!v) return 0;
    d->open[d->depth] = v;
    d->last[d->depth++] = NULL;
    return 1;
}

static int on_open_object(void *d) {
    return open_container(d, MX_JSON_OBJECT);
}
static int on_open_array(void *d) {
    return open_container(d, MX_JSON_ARRAY);
}

static int on_close(void *user) {
    mx_json_document *d = user;
    d->depth--;
    return 1;
}

static const yajl_callbacks callbacks = {
    .yajl_null = on_null,
    .yajl_boolean = on_bool,
    .yajl_number = on_number,
    .yajl_string = on_string,
    .yajl_map_key = on_key,
    .yajl_start_map = on_open_object,
    .yajl_end_map = on_close,
    .yajl_start_array = on_open_array,
    .yajl_end_array = on_close,
};

/* YAJL's message without its own line breaks. */
static void describe(yajl_handle parser, const void *text, size_t size, char *out, size_t room) {
    unsigned char *message = yajl_get_error(parser, 0, text, size);
    size_t n = 0;
    for (const char *p = message ? (const char *)message : "not JSON"; *p && n + 1 < room; p++)
        out[n++] = *p == '\n' ? ' ' : *p;
    while (n && out[n - 1] == ' ') n--;
    out[n] = 0;
    if (message) yajl_free_error(parser, message);
}

static mx_status parse(const char *name, const void *text, size_t size, size_t most, mx_json_document **out,
                       mx_error *error) {
    *out = NULL;
    size_t valid = mx_utf8_prefix(text, size); /* YAJL's own check lets surrogates pass */
    if (valid != size) return mx_fail(error, MX_INVALID_FILE, "%s: not valid JSON: no UTF-8 at byte %zu", name, valid);
    mx_json_document *d = calloc(1, sizeof *d);
    yajl_handle parser = d ? yajl_alloc(&callbacks, NULL, d) : NULL;
    if (!parser) {
        free(d);
        return mx_fail(error, MX_NO_MEMORY, "%s: no memory to parse it", name);
    }
    d->most = most;
    yajl_config(parser, yajl_dont_validate_strings, 1);
    yajl_status status = yajl_parse(parser, text, size);
    size_t at = yajl_get_bytes_consumed(parser);
    if (status == yajl_status_ok) status = yajl_complete_parse(parser);
    mx_status result = MX_OK;
    if (d->problem)
        result = mx_fail(error, strstr(d->problem, "memory") ? MX_NO_MEMORY : MX_INVALID_FILE,
                         "%s: JSON at byte %zu: %s", name, at, d->problem);
    else if (status != yajl_status_ok) {
        char message[200];
        describe(parser, text, size, message, sizeof message);
        result = mx_fail(error, MX_INVALID_FILE, "%s: not valid JSON at byte %zu: %s", name, at, message);
    } else if (!d->root)
        result = mx_fail(error, MX_INVALID_FILE, "%s: empty where JSON was expected", name);
    yajl_free(parser);
    if (result)
        mx_json_free(d);
    else
        *out = d;
    return result;
}

/* ---- surrogates -------------------------------------------------------------------------------------------------- */
/* The code unit of "\\uXXXX" at `p`; -1: there is none. */
static int code_unit(const char *p, const char *end) {
    int value = 0;
    if (end - p < 6 || p[0] != '\\' || p[1] != 'u') return -1;
    for (int i = 2; i < 6; i++) {
        const char c = p[i], lower = (char)(c | 32);
        if (!isxdigit((unsigned char)c)) return -1;
        value = value * 16 + (c <= '9' ? c - '0' : lower - 'a' + 10);
    }
    return value;
}

static bool is_high(int unit) {
    return unit >= 0xD800 && unit <= 0xDBFF;
}

static bool is_low(int unit) {
    return unit >= 0xDC00 && unit <= 0xDFFF;
}

static bool has_surrogate(const char *text, size_t size) {
    const char *p = text, *end = text + size;
    while (p && (p = memchr(p, '\\', (size_t)(end - p)))) {
        const int unit = code_unit(p, end);
        if (is_high(unit) || is_low(unit)) return true;
        p = end - p > 2 ? p + 2 : NULL;
    }
    return false;
}

/* A half of a pair without the other becomes \ufffd; YAJL would swallow what follows it, or write "?". As long as it
 * was. */
static void mend_surrogates(char *text, size_t size) {
    const char *end = text + size;
    char *p = text;
    while (end - p > 2 && (p = memchr(p, '\\', (size_t)(end - p)))) {
        const int unit = code_unit(p, end);
        const bool pair = is_high(unit) && is_low(code_unit(p + 6, end));
        if (!pair && (is_high(unit) || is_low(unit))) memcpy(p + 2, "fffd", 4);
        p += pair ? 12 : unit >= 0 ? 6 : end - p > 2 ? 2 : end - p;
    }
}

mx_status mx_json_parse(const char *name, const void *text, size_t size, mx_json_document **out, mx_error *error) {
    return mx_json_parse_limited(name, text, size, SIZE_MAX, out, error);
}

mx_status mx_json_parse_limited(const char *name, const void *text, size_t size, size_t most, mx_json_document **out,
                                mx_error *error) {
    if (!size || !has_surrogate(text, size)) return parse(name, text, size, most, out, error);
    *out = NULL;
    char *mended = malloc(size);
    if (!mended) return mx_fail(error, MX_NO_MEMORY, "%s: no memory to parse it", name);
    memcpy(mended, text, size);
    mend_surrogates(mended, size);
    const mx_status status = parse(name, mended, size, most, out, error);
    free(mended);
    return status;
}

/* ---- values ------------------------------------------------------------------------------------------------------ */
const mx_json *mx_json_root(const mx_json_document *document) {
    return document->root;
}

void mx_json_free(mx_json_document *document) {
    if (!document) return;
    for (struct block *b = document->blocks, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    free(document);
}

const mx_json *mx_json_get(const mx_json *object, const char *key) {
    if (!object || object->type != MX_JSON_OBJECT) return NULL;
    const mx_json *found = NULL;
    size_t size = strlen(key);
    for (const mx_json *v = object->child; v; v = v->next)
        if (v->key_size == size && !memcmp(v->key, key, size)) found = v;
    return found;
}

bool mx_json_is_string(const mx_json *v, const char *text) {
    return v && v->type == MX_JSON_STRING && v->size == strlen(text) && !memcmp(v->text, text, v->size);
}

bool mx_json_double(const mx_json *v, double *out) {
    if (!v || v->type != MX_JSON_NUMBER) return false;
    double d = strtod(v->text, NULL);
    if (!isfinite(d)) return false;
    *out = d;
    return true;
}

bool mx_json_int64(const mx_json *v, int64_t *out) {
    if (!v || v->type != MX_JSON_NUMBER) return false;
    char *end;
    errno = 0;
    long long n = strtoll(v->text, &end, 10);
    if (!*end) {
        *out = n;
        return errno == 0;
    }
    double d; /* 1e5, 128.0 */
    if (!mx_json_double(v, &d) || d != floor(d) || fabs(d) > 9007199254740991.0) return false;
    *out = (int64_t)d;
    return true;
}

bool mx_json_bool(const mx_json *v, bool *out) {
    if (!v || v->type != MX_JSON_BOOL) return false;
    *out = v->boolean;
    return true;
}

bool mx_json_write(mx_bytes *out, const mx_json *v) {
    bool ok = true;
    switch (v->type) {
    case MX_JSON_NULL:
        return mx_bytes_add_string(out, "null");
    case MX_JSON_BOOL:
        return mx_bytes_add_string(out, v->boolean ? "true" : "false");
    case MX_JSON_NUMBER:
        return mx_bytes_add(out, v->text, v->size);
    case MX_JSON_STRING:
        return mx_bytes_add_json(out, v->text, v->size);
    case MX_JSON_ARRAY:
    case MX_JSON_OBJECT:
        break;
    }
    bool object = v->type == MX_JSON_OBJECT;
    ok = mx_bytes_add_string(out, object ? "{" : "[");
    for (const mx_json *c = v->child; ok && c; c = c->next) {
        if (c != v->child) ok = mx_bytes_add_string(out, ",");
        if (ok && object) ok = mx_bytes_add_json(out, c->key, c->key_size) && mx_bytes_add_string(out, ":");
        ok = ok && mx_json_write(out, c);
    }
    return ok && mx_bytes_add_string(out, object ? "}" : "]");
}
