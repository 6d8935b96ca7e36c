#include "base/gguf.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"

/* Far more than any file has; what the tables of a hostile one may cost. */
enum { MOST_KEYS = 1 << 16, MOST_TENSORS = 1 << 20, LONGEST_KEY = 65535, LONGEST_TENSOR = 255 };
enum { ALIGNMENT = 32, LEAST_ALIGNMENT = 8, MOST_ALIGNMENT = 1 << 20 };
enum { HEADER = 24, LEAST_KEY = 8 + 1 + 4 + 1, LEAST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8 };

static const uint8_t size_of[MX_GGUF_KINDS] = {
    [MX_GGUF_U8] = 1,  [MX_GGUF_I8] = 1,   [MX_GGUF_U16] = 2, [MX_GGUF_I16] = 2, [MX_GGUF_U32] = 4, [MX_GGUF_I32] = 4,
    [MX_GGUF_F32] = 4, [MX_GGUF_BOOL] = 1, [MX_GGUF_U64] = 8, [MX_GGUF_I64] = 8, [MX_GGUF_F64] = 8,
};

/* The reading of one file: what is left is data[at .. size). */
typedef struct cursor {
    mx_gguf *g;
    const uint8_t *data;
    uint64_t at, size;
    mx_error *error;
} cursor;

/* For messages: "key 3" or "key general.name". */
typedef struct label_text {
    char text[140];
} label_text;

static label_text name_of(const char *what, mx_gguf_string name, uint64_t index) {
    label_text out;
    if (name.size)
        snprintf(out.text, sizeof out.text, "%s %.*s%s", what, (int)(name.size < 100 ? name.size : 100), name.text,
                 name.size < 100 ? "" : "...");
    else
        snprintf(out.text, sizeof out.text, "%s %" PRIu64, what, index);
    return out;
}

#define BAD(c, ...) mx_fail((c)->error, MX_INVALID_FILE, __VA_ARGS__)

static const char *path_of(const cursor *c) {
    return c->g->file.path;
}

static mx_status cut_off(const cursor *c, const char *what, uint64_t needed) {
    return BAD(c,
               "%s: %s at byte %" PRIu64 " needs %" PRIu64 " bytes, the file has %" PRIu64 " more; download it again",
               path_of(c), what, c->at, needed, c->size - c->at);
}

static bool take(cursor *c, uint64_t bytes, const uint8_t **out) {
    if (bytes > c->size - c->at) return false;
    *out = c->data + c->at;
    c->at += bytes;
    return true;
}

static bool take_string(cursor *c, mx_gguf_string *out) {
    const uint8_t *p;
    if (!take(c, 8, &p)) return false;
    out->size = mx_load_u64(p);
    if (!take(c, out->size, &p)) return false;
    out->text = (const char *)p;
    return true;
}

/* A name that can stand in a message: UTF-8, one line. */
static bool is_name(mx_gguf_string s) {
    for (uint64_t i = 0; i < s.size; i++)
        if ((unsigned char)s.text[i] < 0x20 || s.text[i] == 0x7F) return false;
    return mx_is_utf8(s.text, s.size);
}

static mx_status take_name(cursor *c, const char *what, uint64_t index, uint64_t longest, mx_gguf_string *out) {
    uint64_t begin = c->at;
    label_text label = name_of(what, (mx_gguf_string){0}, index);
    if (!take_string(c, out)) {
        c->at = begin;
        return c->size - begin < 8 ? cut_off(c, label.text, 8)
                                   : BAD(c,
                                         "%s: %s: its name of %" PRIu64 " bytes goes beyond the end of the file; "
                                         "download it again",
                                         path_of(c), label.text, out->size);
    }
    if (!out->size || out->size > longest)
        return BAD(c, "%s: %s: its name has %" PRIu64 " bytes, expected 1 to %" PRIu64, path_of(c), label.text,
                   out->size, longest);
    if (!is_name(*out))
        return BAD(c, "%s: %s: its name is not one line of UTF-8 without control characters", path_of(c), label.text);
    return MX_OK;
}

/* ---- keys -------------------------------------------------------------------------------------------------------- */

static mx_status take_array(cursor *c, mx_gguf_value *v) {
    const uint8_t *p;
    label_text key = name_of("key", v->key, 0);
    if (!take(c, 12, &p)) return cut_off(c, key.text, 12);
    uint32_t kind = mx_load_u32(p);
    uint64_t count = mx_load_u64(p + 4), begin = c->at;
    if (kind == MX_GGUF_ARRAY)
        return mx_fail(c->error, MX_UNSUPPORTED, "%s: %s: an array of arrays; such keys are not supported", path_of(c),
                       key.text);
    if (kind >= MX_GGUF_KINDS)
        return BAD(c, "%s: %s: an array of type %" PRIu32 ", expected 0 to %d", path_of(c), key.text, kind,
                   MX_GGUF_KINDS - 1);
    uint64_t least = kind == MX_GGUF_STRING ? 8 : size_of[kind];
    if (count > (c->size - c->at) / least)
        return BAD(c, "%s: %s: an array of %" PRIu64 " elements goes beyond the end of the file; download it again",
                   path_of(c), key.text, count);
    v->as.array.kind = (mx_gguf_kind)kind;
    v->as.array.count = count;
    v->as.array.data = c->data + c->at;
    if (kind != MX_GGUF_STRING) take(c, count * least, &p);
    for (uint64_t i = 0; kind == MX_GGUF_STRING && i < count; i++) {
        mx_gguf_string s;
        if (!take_string(c, &s))
            return BAD(c,
                       "%s: %s: string %" PRIu64 " of %" PRIu64 " goes beyond the end of the file; download it again",
                       path_of(c), key.text, i, count);
    }
    for (uint64_t i = 0; kind == MX_GGUF_BOOL && i < count; i++)
        if (v->as.array.data[i] > 1)
            return BAD(c, "%s: %s: element %" PRIu64 " is a bool of value %u, expected 0 or 1", path_of(c), key.text, i,
                       v->as.array.data[i]);
    v->as.array.bytes = c->at - begin;
    return MX_OK;
}

static float load_f32(const uint8_t *p) {
    float f;
    memcpy(&f, p, sizeof f);
    return f;
}

static double load_f64(const uint8_t *p) {
    double f;
    memcpy(&f, p, sizeof f);
    return f;
}

static mx_status take_value(cursor *c, mx_gguf_value *v) {
    const uint8_t *p;
    label_text key = name_of("key", v->key, 0);
    if (v->kind == MX_GGUF_ARRAY) return take_array(c, v);
    if (v->kind == MX_GGUF_STRING) {
        if (take_string(c, &v->as.string)) return MX_OK;
        return BAD(c, "%s: %s: its string goes beyond the end of the file; download it again", path_of(c), key.text);
    }
    if (!take(c, size_of[v->kind], &p)) return cut_off(c, key.text, size_of[v->kind]);
    switch (v->kind) {
    case MX_GGUF_U8:
        v->as.u = *p;
        break;
    case MX_GGUF_I8:
        v->as.i = (int8_t)*p;
        break;
    case MX_GGUF_U16:
        v->as.u = mx_load_u16(p);
        break;
    case MX_GGUF_I16:
        v->as.i = (int16_t)mx_load_u16(p);
        break;
    case MX_GGUF_U32:
        v->as.u = mx_load_u32(p);
        break;
    case MX_GGUF_I32:
        v->as.i = (int32_t)mx_load_u32(p);
        break;
    case MX_GGUF_U64:
        v->as.u = mx_load_u64(p);
        break;
    case MX_GGUF_I64:
        v->as.i = (int64_t)mx_load_u64(p);
        break;
    case MX_GGUF_F32:
        v->as.f = load_f32(p);
        break;
    case MX_GGUF_F64:
        v->as.f = load_f64(p);
        break;
    default: /* BOOL */
        if (*p > 1) return BAD(c, "%s: %s: a bool of value %u, expected 0 or 1", path_of(c), key.text, *p);
        v->as.u = *p;
    }
    return MX_OK;
}

static mx_status read_keys(cursor *c, uint64_t count) {
    mx_gguf *g = c->g;
    g->value = calloc(count ? count : 1, sizeof *g->value);
    if (!g->value) return mx_fail(c->error, MX_NO_MEMORY, "%s: no memory for %" PRIu64 " keys", path_of(c), count);
    for (; (uint64_t)g->values < count; g->values++) {
        mx_gguf_value *v = &g->value[g->values];
        const uint8_t *p;
        mx_status status = take_name(c, "key", (uint64_t)g->values, LONGEST_KEY, &v->key);
        if (status != MX_OK) return status;
        if (!take(c, 4, &p)) return cut_off(c, name_of("key", v->key, 0).text, 4);
        uint32_t kind = mx_load_u32(p);
        if (kind >= MX_GGUF_KINDS)
            return BAD(c, "%s: %s: its value has the type %" PRIu32 ", expected 0 to %d", path_of(c),
                       name_of("key", v->key, 0).text, kind, MX_GGUF_KINDS - 1);
        v->kind = (mx_gguf_kind)kind;
        status = take_value(c, v);
        if (status != MX_OK) return status;
    }
    return MX_OK;
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

/* Types by their number; sizes only of those that are read here. */
static const struct {
    const char *name;
    uint16_t block, bytes; /* elements of a block and its bytes */
} types[] = {
    [0] = {"F32", 1, 4},      [1] = {"F16", 1, 2},     [2] = {"Q4_0", 0, 0},     [3] = {"Q4_1", 0, 0},
    [6] = {"Q5_0", 0, 0},     [7] = {"Q5_1", 0, 0},    [8] = {"Q8_0", 32, 34},   [9] = {"Q8_1", 0, 0},
    [10] = {"Q2_K", 0, 0},    [11] = {"Q3_K", 0, 0},   [12] = {"Q4_K", 0, 0},    [13] = {"Q5_K", 0, 0},
    [14] = {"Q6_K", 0, 0},    [15] = {"Q8_K", 0, 0},   [16] = {"IQ2_XXS", 0, 0}, [17] = {"IQ2_XS", 0, 0},
    [18] = {"IQ3_XXS", 0, 0}, [19] = {"IQ1_S", 0, 0},  [20] = {"IQ4_NL", 0, 0},  [21] = {"IQ3_S", 0, 0},
    [22] = {"IQ2_S", 0, 0},   [23] = {"IQ4_XS", 0, 0}, [24] = {"I8", 0, 0},      [25] = {"I16", 0, 0},
    [26] = {"I32", 0, 0},     [27] = {"I64", 0, 0},    [28] = {"F64", 0, 0},     [29] = {"IQ1_M", 0, 0},
    [30] = {"BF16", 1, 2},    [34] = {"TQ1_0", 0, 0},  [35] = {"TQ2_0", 0, 0},   [39] = {"MXFP4", 32, 17},
    [40] = {"NVFP4", 0, 0},   [41] = {"Q1_0", 0, 0},
};

const char *mx_gguf_type_name(uint32_t type) {
    return type < sizeof types / sizeof *types ? types[type].name : NULL;
}

/* Fills `bytes` from type and shape. */
static mx_status measure(const cursor *c, mx_gguf_tensor *t) {
    int64_t elements = 1;
    uint64_t block = mx_gguf_type_name(t->type) ? types[t->type].block : 0;
    for (int d = 0; d < 4; d++)
        if (__builtin_mul_overflow(elements, t->ne[d], &elements))
            return BAD(
                c, "%s: %s: its shape [%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64 "] has more than 2^63 elements",
                path_of(c), name_of("tensor", t->name, 0).text, t->ne[0], t->ne[1], t->ne[2], t->ne[3]);
    if (!block) return MX_OK;
    if ((uint64_t)t->ne[0] % block)
        return BAD(c, "%s: %s: rows of %" PRId64 " elements, expected a multiple of %s's block of %" PRIu64, path_of(c),
                   name_of("tensor", t->name, 0).text, t->ne[0], types[t->type].name, block);
    if (__builtin_mul_overflow((uint64_t)elements / block, types[t->type].bytes, &t->bytes))
        return BAD(c, "%s: %s: %" PRId64 " elements of %s have more than 2^64 bytes", path_of(c),
                   name_of("tensor", t->name, 0).text, elements, types[t->type].name);
    return MX_OK;
}

/* `offset` counts from the start of the tensors' bytes; it is checked when that is known. */
static mx_status take_tensor(cursor *c, uint64_t index, mx_gguf_tensor *t, uint64_t *offset) {
    const uint8_t *p;
    mx_status status = take_name(c, "tensor", index, LONGEST_TENSOR, &t->name);
    if (status != MX_OK) return status;
    label_text label = name_of("tensor", t->name, index);
    if (!take(c, 4, &p)) return cut_off(c, label.text, 4);
    uint32_t dims = mx_load_u32(p);
    if (dims < 1 || dims > 4)
        return BAD(c, "%s: %s: %" PRIu32 " dimensions, expected 1 to 4", path_of(c), label.text, dims);
    t->dims = (int)dims;
    if (!take(c, 8 * (uint64_t)dims + 12, &p)) return cut_off(c, label.text, 8 * (uint64_t)dims + 12);
    for (int d = 0; d < 4; d++) {
        uint64_t ne = d < t->dims ? mx_load_u64(p + 8 * d) : 1;
        if (ne < 1 || ne > INT64_MAX)
            return BAD(c, "%s: %s: dimension %d is %" PRIu64 ", expected 1 or more", path_of(c), label.text, d, ne);
        t->ne[d] = (int64_t)ne;
    }
    t->type = mx_load_u32(p + 8 * dims);
    *offset = mx_load_u64(p + 8 * dims + 4);
    return measure(c, t);
}

/* Points the tensors into the file. */
static mx_status place(cursor *c, const uint64_t *offset) {
    mx_gguf *g = c->g;
    int64_t alignment = ALIGNMENT;
    const mx_gguf_value *v = mx_gguf_find(g, "general.alignment");
    if (v && (!mx_gguf_int64(v, LEAST_ALIGNMENT, MOST_ALIGNMENT, &alignment) || (alignment & (alignment - 1))))
        return BAD(c, "%s: key general.alignment: expected a power of two from %d to %d", path_of(c), LEAST_ALIGNMENT,
                   MOST_ALIGNMENT);
    uint64_t step = (uint64_t)alignment, start = (c->at + step - 1) / step * step;
    if (g->tensors && start > c->size) return cut_off(c, "the padding before the tensors", start - c->at);
    for (int i = 0; i < g->tensors; i++) {
        mx_gguf_tensor *t = &g->tensor[i];
        if (offset[i] % step)
            return BAD(c, "%s: %s: its offset %" PRIu64 " is no multiple of the alignment %" PRIu64, path_of(c),
                       name_of("tensor", t->name, 0).text, offset[i], step);
        if (offset[i] > c->size - start || t->bytes > c->size - start - offset[i])
            return BAD(c,
                       "%s: %s: %" PRIu64 " bytes at offset %" PRIu64
                       " go beyond the end of the file, which has %" PRIu64 " bytes of tensors; download it again",
                       path_of(c), name_of("tensor", t->name, 0).text, t->bytes, offset[i], c->size - start);
        if (t->bytes) t->data = c->data + start + offset[i];
    }
    return MX_OK;
}

static mx_status read_tensors(cursor *c, uint64_t count) {
    mx_gguf *g = c->g;
    mx_status status = MX_OK;
    g->tensor = calloc(count ? count : 1, sizeof *g->tensor);
    uint64_t *offset = malloc((count ? count : 1) * sizeof *offset);
    if (!g->tensor || !offset)
        status = mx_fail(c->error, MX_NO_MEMORY, "%s: no memory for %" PRIu64 " tensors", path_of(c), count);
    while (status == MX_OK && (uint64_t)g->tensors < count) {
        uint64_t i = (uint64_t)g->tensors;
        status = take_tensor(c, i, &g->tensor[i], &offset[i]);
        if (status == MX_OK) g->tensors++;
    }
    if (status == MX_OK) status = place(c, offset);
    free(offset);
    return status;
}

/* ---- each once --------------------------------------------------------------------------------------------------- */

static int compare_strings(mx_gguf_string a, mx_gguf_string b) {
    int order = memcmp(a.text, b.text, a.size < b.size ? a.size : b.size);
    return order ? order : (a.size > b.size) - (a.size < b.size);
}

static int by_key(const void *a, const void *b) {
    return compare_strings((*(const mx_gguf_value *const *)a)->key, (*(const mx_gguf_value *const *)b)->key);
}

static int by_name(const void *a, const void *b) {
    return compare_strings((*(const mx_gguf_tensor *const *)a)->name, (*(const mx_gguf_tensor *const *)b)->name);
}

static int by_place(const void *a, const void *b) {
    const mx_gguf_tensor *x = *(const mx_gguf_tensor *const *)a, *y = *(const mx_gguf_tensor *const *)b;
    return (x->data > y->data) - (x->data < y->data);
}

static mx_status twice(const cursor *c, const char *what, mx_gguf_string name) {
    return BAD(c, "%s: %s is there twice, expected once", path_of(c), name_of(what, name, 0).text);
}

static mx_status check_keys(const cursor *c, const mx_gguf_value **list) {
    const mx_gguf *g = c->g;
    for (int i = 0; i < g->values; i++) list[i] = &g->value[i];
    qsort(list, (size_t)g->values, sizeof *list, by_key);
    for (int i = 1; i < g->values; i++)
        if (compare_strings(list[i - 1]->key, list[i]->key) == 0) return twice(c, "key", list[i]->key);
    return MX_OK;
}

static mx_status check_names(const cursor *c, const mx_gguf_tensor **list) {
    const mx_gguf *g = c->g;
    for (int i = 0; i < g->tensors; i++) list[i] = &g->tensor[i];
    qsort(list, (size_t)g->tensors, sizeof *list, by_name);
    for (int i = 1; i < g->tensors; i++)
        if (compare_strings(list[i - 1]->name, list[i]->name) == 0) return twice(c, "tensor", list[i]->name);
    return MX_OK;
}

static mx_status check_overlap(const cursor *c, const mx_gguf_tensor **tensor, size_t count) {
    qsort(tensor, count, sizeof *tensor, by_place);
    for (size_t i = 1; i < count; i++)
        if (tensor[i - 1]->data + tensor[i - 1]->bytes > tensor[i]->data)
            return BAD(c, "%s: %s and %s lie over each other", path_of(c),
                       name_of("tensor", tensor[i - 1]->name, 0).text, name_of("tensor", tensor[i]->name, 0).text);
    return MX_OK;
}

/* No name twice, no byte in two tensors. */
static mx_status check_once(const cursor *c) {
    mx_gguf *g = c->g;
    size_t most = (size_t)(g->values > g->tensors ? g->values : g->tensors), placed = 0;
    const void **list = malloc((most + 1) * sizeof *list);
    g->by_name = malloc(((size_t)g->tensors + 1) * sizeof *g->by_name);
    mx_status status = MX_OK;
    if (!list || !g->by_name)
        status = mx_fail(c->error, MX_NO_MEMORY, "%s: no memory to check %zu names", path_of(c), most);
    if (status == MX_OK) status = check_keys(c, (const mx_gguf_value **)list);
    if (status == MX_OK) status = check_names(c, g->by_name);
    const mx_gguf_tensor **tensor = (const mx_gguf_tensor **)list;
    for (int i = 0; status == MX_OK && i < g->tensors; i++)
        if (g->tensor[i].data) tensor[placed++] = &g->tensor[i];
    if (status == MX_OK) status = check_overlap(c, tensor, placed);
    free(list);
    return status;
}

/* ---- open -------------------------------------------------------------------------------------------------------- */

static mx_status check_version(const cursor *c) {
    uint32_t version = c->g->version;
    if (memcmp(c->data, "GGUF", 4) != 0)
        return BAD(c, "%s: begins with %02x %02x %02x %02x, expected \"GGUF\"; not a GGUF file", path_of(c), c->data[0],
                   c->data[1], c->data[2], c->data[3]);
    if (version == 2 || version == 3) return MX_OK;
    if ((version & 0xFFFF) == 0 && version)
        return mx_fail(c->error, MX_UNSUPPORTED, "%s: a big-endian GGUF file; take the little-endian one", path_of(c));
    return mx_fail(c->error, MX_UNSUPPORTED, "%s: GGUF version %" PRIu32 ", expected 2 or 3", path_of(c), version);
}

static mx_status check_counts(const cursor *c, uint64_t tensors, uint64_t keys) {
    uint64_t left = c->size - c->at;
    if (keys > MOST_KEYS || keys > left / LEAST_KEY)
        return BAD(c, "%s: %" PRIu64 " keys; its %zu bytes have room for %" PRIu64 ", and at most %d are read",
                   path_of(c), keys, c->g->file.size, left / LEAST_KEY, MOST_KEYS);
    if (tensors > MOST_TENSORS || tensors > left / LEAST_TENSOR)
        return BAD(c, "%s: %" PRIu64 " tensors; its %zu bytes have room for %" PRIu64 ", and at most %d are read",
                   path_of(c), tensors, c->g->file.size, left / LEAST_TENSOR, MOST_TENSORS);
    return MX_OK;
}

mx_status mx_gguf_open(const char *path, mx_gguf *out, mx_error *error) {
    *out = (mx_gguf){0};
    mx_status status = mx_mapped_open(path, HEADER, &out->file, error);
    if (status == MX_OK && !memcmp(out->file.data, "version ", 8))
        status = mx_fail(error, MX_INVALID_FILE,
                         "%s: a Git LFS pointer, not the file itself: fetch it with git lfs pull", path);
    if (status != MX_OK) return status;
    cursor c = {.g = out, .data = out->file.data, .at = HEADER, .size = out->file.size, .error = error};
    out->version = mx_load_u32(c.data + 4);
    uint64_t tensors = mx_load_u64(c.data + 8), keys = mx_load_u64(c.data + 16);
    status = check_version(&c);
    if (status == MX_OK) status = check_counts(&c, tensors, keys);
    if (status == MX_OK) status = read_keys(&c, keys);
    if (status == MX_OK) status = read_tensors(&c, tensors);
    return status == MX_OK ? check_once(&c) : status;
}

void mx_gguf_close(mx_gguf *g) {
    mx_mapped_close(&g->file);
    free(g->value);
    free(g->tensor);
    free(g->by_name);
    *g = (mx_gguf){0};
}

/* ---- look-ups ---------------------------------------------------------------------------------------------------- */

static bool equals(mx_gguf_string s, const char *text, size_t size) {
    return s.size == size && memcmp(s.text, text, size) == 0;
}

const mx_gguf_value *mx_gguf_find(const mx_gguf *g, const char *key) {
    size_t size = strlen(key);
    for (int i = 0; i < g->values; i++)
        if (equals(g->value[i].key, key, size)) return &g->value[i];
    return NULL;
}

const mx_gguf_tensor *mx_gguf_find_tensor(const mx_gguf *g, const char *name) {
    const mx_gguf_tensor wanted = {.name = {name, strlen(name)}}, *key = &wanted;
    const mx_gguf_tensor **found =
        g->tensors ? bsearch(&key, g->by_name, (size_t)g->tensors, sizeof *g->by_name, by_name) : NULL;
    return found ? *found : NULL;
}

static bool is_unsigned(mx_gguf_kind kind) {
    return kind == MX_GGUF_U8 || kind == MX_GGUF_U16 || kind == MX_GGUF_U32 || kind == MX_GGUF_U64;
}

static bool is_signed(mx_gguf_kind kind) {
    return kind == MX_GGUF_I8 || kind == MX_GGUF_I16 || kind == MX_GGUF_I32 || kind == MX_GGUF_I64;
}

static bool is_float(mx_gguf_kind kind) {
    return kind == MX_GGUF_F32 || kind == MX_GGUF_F64;
}

bool mx_gguf_int64(const mx_gguf_value *v, int64_t low, int64_t high, int64_t *out) {
    int64_t i;
    if (v && is_unsigned(v->kind) && v->as.u <= INT64_MAX)
        i = (int64_t)v->as.u;
    else if (v && is_signed(v->kind))
        i = v->as.i;
    else if (v && is_float(v->kind) && fabs(v->as.f) <= 0x1p53 && v->as.f == trunc(v->as.f))
        i = (int64_t)v->as.f;
    else
        return false;
    if (i < low || i > high) return false;
    *out = i;
    return true;
}

bool mx_gguf_double(const mx_gguf_value *v, double *out) {
    double f;
    if (v && is_unsigned(v->kind))
        f = (double)v->as.u;
    else if (v && is_signed(v->kind))
        f = (double)v->as.i;
    else if (v && is_float(v->kind) && isfinite(v->as.f))
        f = v->as.f;
    else
        return false;
    *out = f;
    return true;
}

bool mx_gguf_is_string(const mx_gguf_value *v, const char *text) {
    return v && v->kind == MX_GGUF_STRING && equals(v->as.string, text, strlen(text));
}

bool mx_gguf_next_string(const mx_gguf_value *v, uint64_t *at, mx_gguf_string *out) {
    if (!v || v->kind != MX_GGUF_ARRAY || v->as.array.kind != MX_GGUF_STRING || *at >= v->as.array.bytes) return false;
    const uint8_t *p = v->as.array.data + *at;
    *out = (mx_gguf_string){.text = (const char *)p + 8, .size = mx_load_u64(p)};
    *at += 8 + out->size;
    return true;
}

bool mx_gguf_is_further_part(const char *name) {
    const size_t n = strlen(name), tail = strlen("-00002-of-00003.gguf");
    unsigned part, of;
    return n > tail && mx_ends_with(name, ".gguf") && sscanf(name + n - tail, "-%5u-of-%5u", &part, &of) == 2 &&
           part > 1;
}
