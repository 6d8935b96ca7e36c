#include "model/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "model/show.h"

static const uint64_t HEADER_LIMIT =
    16 << 20; /* gpt-oss-120b's largest is 10 KB; JSON takes many times its size as a tree */

static const struct {
    const char *name;
    int bits;
    mx_dtype dtype;
} dtypes[] = {
    {"U8", 8, MX_DTYPE_U8},
    {"BF16", 16, MX_DTYPE_BF16},
    {"F16", 16, MX_DTYPE_F16},
    {"F32", 32, MX_DTYPE_F32},
    {"I32", 32, MX_DTYPE_I32},
    {"I64", 64, MX_DTYPE_I64},
    {"F8_E8M0", 8, MX_DTYPE_F8_E8M0},
    {"F8_E4M3", 8, MX_DTYPE_F8_E4M3},
    {"F8_E5M2", 8, MX_DTYPE_F8_E5M2},
    {"I8", 8, MX_DTYPE_I8},
    {"BOOL", 8, MX_DTYPE_OTHER},
    {"I16", 16, MX_DTYPE_OTHER},
    {"U16", 16, MX_DTYPE_OTHER},
    {"U32", 32, MX_DTYPE_OTHER},
    {"U64", 64, MX_DTYPE_OTHER},
    {"F64", 64, MX_DTYPE_OTHER},
    {"C64", 64, MX_DTYPE_OTHER},
    {"F8_E4M3FNUZ", 8, MX_DTYPE_OTHER},
    {"F8_E5M2FNUZ", 8, MX_DTYPE_OTHER},
    {"F4", 4, MX_DTYPE_OTHER},
    {"F6_E2M3", 6, MX_DTYPE_OTHER},
    {"F6_E3M2", 6, MX_DTYPE_OTHER},
};

/* Files that are often taken for a checkpoint. `head`: the first 8 bytes. */
static mx_status not_safetensors(const char *path, const uint8_t *head, mx_error *error) {
    if (!memcmp(head, "GGUF", 4))
        return mx_fail(error, MX_UNSUPPORTED, "%s: a GGUF file by the name of another kind: call it .gguf", path);
    if (!memcmp(head, "version ", 8))
        return mx_fail(error, MX_INVALID_FILE, "%s: a Git LFS pointer, not the file itself: fetch it with git lfs pull",
                       path);
    return MX_OK;
}

static mx_status bad(const mx_safetensors *st, const char *tensor, const char *field, const mx_json *found,
                     const char *expected, mx_error *error) {
    char text[80];
    return mx_fail(error, MX_INVALID_FILE, "%s: %s: %s is %s, expected %s", st->file.path, tensor, field,
                   found ? mx_show_json(text, sizeof text, found) : "missing", expected);
}

/* The entry's shape into `t`; *elements (1 before) becomes their product. */
static mx_status read_shape(const mx_safetensors *st, const mx_json *entry, mx_tensor *t, uint64_t *elements,
                            mx_error *error) {
    const mx_json *shape = mx_json_get(entry, "shape");
    int most = (int)(sizeof t->shape / sizeof *t->shape);
    if (!shape || shape->type != MX_JSON_ARRAY) return bad(st, t->name, "shape", shape, "an array of sizes", error);
    if (shape->count > (uint32_t)most) return bad(st, t->name, "shape", shape, "at most 8 dimensions", error);
    for (const mx_json *v = shape->child; v; v = v->next) {
        int64_t n;
        if (!mx_json_int64(v, &n) || n < 0) return bad(st, t->name, "shape", shape, "whole numbers from 0", error);
        if (__builtin_mul_overflow(*elements, (uint64_t)n, elements) || *elements > UINT64_MAX / 64)
            return bad(st, t->name, "shape", shape, "a product that fits the file", error);
        t->shape[t->dims++] = n;
    }
    return MX_OK;
}

/* One entry of the header into `t`. `begin` gets its offset. */
static mx_status read_entry(const mx_safetensors *st, const mx_json *entry, const uint8_t *data, uint64_t data_size,
                            mx_tensor *t, mx_error *error) {
    if (entry->key_size == 0 || !mx_is_one_line(entry->key, entry->key_size))
        return mx_fail(error, MX_INVALID_FILE, "%s: header: a tensor's name is empty or holds a control character",
                       st->file.path);
    *t = (mx_tensor){.name = entry->key, .file = st->file.path};
    if (entry->type != MX_JSON_OBJECT) return bad(st, t->name, "its entry in the header", entry, "an object", error);

    const mx_json *dtype = mx_json_get(entry, "dtype");
    int bits = 0;
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (mx_json_is_string(dtype, dtypes[i].name)) {
            t->dtype = dtypes[i].dtype;
            t->dtype_name = dtypes[i].name;
            bits = dtypes[i].bits;
        }
    if (!bits) return bad(st, t->name, "dtype", dtype, "a type of the safetensors format such as \"BF16\"", error);

    uint64_t elements = 1;
    mx_status status = read_shape(st, entry, t, &elements, error);
    if (status) return status;

    const mx_json *offsets = mx_json_get(entry, "data_offsets");
    int64_t begin, end;
    if (!offsets || offsets->type != MX_JSON_ARRAY || offsets->count != 2 || !mx_json_int64(offsets->child, &begin) ||
        !mx_json_int64(offsets->child->next, &end) || begin < 0 || end < begin)
        return bad(st, t->name, "data_offsets", offsets, "[begin, end] with 0 <= begin <= end", error);
    if ((uint64_t)end > data_size)
        return mx_fail(error, MX_INVALID_FILE,
                       "%s: %s: data_offsets end at %lld, but the file holds %llu bytes of tensors: it is cut off, "
                       "download it again",
                       st->file.path, t->name, (long long)end, (unsigned long long)data_size);
    t->bytes = (uint64_t)(end - begin);
    if (elements * (uint64_t)bits % 8 || t->bytes != elements * (uint64_t)bits / 8) {
        char shape[120];
        return mx_fail(error, MX_INVALID_FILE, "%s: %s: data_offsets span %llu bytes, but %s %s takes %llu",
                       st->file.path, t->name, (unsigned long long)t->bytes, t->dtype_name,
                       mx_show_shape(shape, sizeof shape, t->shape, t->dims),
                       (unsigned long long)((elements * (uint64_t)bits + 7) / 8));
    }
    t->data = data + begin;
    t->slice_stride = mx_tensor_slice_bytes(t);
    return MX_OK;
}

static int by_bytes(const void *a, const void *b) {
    const mx_tensor *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* empty tensors first */
}

/* The tensors, in the order of their bytes, lie one behind the other from the first to the last byte. */
static mx_status check_cover(const mx_safetensors *st, const uint8_t *data, uint64_t size, mx_error *error) {
    uint64_t at = 0;
    const char *before = "the header";
    for (int i = 0; i < st->count; i++) {
        const mx_tensor *t = &st->tensor[i];
        uint64_t begin = (uint64_t)(t->data - data);
        if (begin != at)
            return mx_fail(error, MX_INVALID_FILE, "%s: %s: data_offsets begin at %llu, %s %s, which ends at %llu",
                           st->file.path, t->name, (unsigned long long)begin,
                           begin < at ? "overlapping" : "leaving a hole after", before, (unsigned long long)at);
        at += t->bytes;
        before = t->name;
    }
    if (at != size)
        return mx_fail(error, MX_INVALID_FILE,
                       "%s: %llu bytes follow the last tensor: the header does not belong to this file", st->file.path,
                       (unsigned long long)(size - at));
    return MX_OK;
}

static mx_status read_metadata(const mx_safetensors *st, const mx_json *metadata, mx_error *error) {
    bool ok = metadata->type == MX_JSON_OBJECT;
    for (const mx_json *v = metadata->child; ok && v; v = v->next) ok = v->type == MX_JSON_STRING;
    return ok ? MX_OK : bad(st, "header", "__metadata__", metadata, "an object of strings", error);
}

static mx_status read_header(mx_safetensors *st, mx_error *error) {
    const uint8_t *map = st->file.data;
    mx_status status = not_safetensors(st->file.path, map, error);
    if (status) return status;
    uint64_t length = mx_load_u64(map), room = st->file.size - 8;
    if (length > HEADER_LIMIT)
        return mx_fail(error, MX_INVALID_FILE,
                       "%s: header length is %llu, more than %llu: no safetensors file, or a damaged one",
                       st->file.path, (unsigned long long)length, (unsigned long long)HEADER_LIMIT);
    if (length > room)
        return mx_fail(error, MX_INVALID_FILE,
                       "%s: header length is %llu, but only %llu bytes follow: the file is cut off, download it again",
                       st->file.path, (unsigned long long)length, (unsigned long long)room);
    char name[4200];
    snprintf(name, sizeof name, "%s: header", st->file.path);
    status = mx_json_parse(name, map + 8, (size_t)length, &st->header, error);
    if (status) return status;
    const mx_json *root = mx_json_root(st->header);
    if (root->type != MX_JSON_OBJECT) return mx_fail(error, MX_INVALID_FILE, "%s is no JSON object", name);
    st->tensor = calloc(root->count ? root->count : 1, sizeof *st->tensor);
    if (!st->tensor) return mx_fail(error, MX_NO_MEMORY, "%s: no memory for %u tensors", st->file.path, root->count);

    const uint8_t *data = map + 8 + length;
    uint64_t size = room - length;
    for (const mx_json *v = root->child; v && !status; v = v->next) {
        if (v->key_size == 12 && !memcmp(v->key, "__metadata__", 12))
            status = read_metadata(st, v, error);
        else
            status = read_entry(st, v, data, size, &st->tensor[st->count++], error);
    }
    if (status) return status;
    qsort(st->tensor, (size_t)st->count, sizeof *st->tensor, by_bytes);
    return check_cover(st, data, size, error);
}

mx_status mx_safetensors_open(const char *path, mx_safetensors *out, mx_error *error) {
    *out = (mx_safetensors){0};
    mx_status status = mx_mapped_open(path, 8, &out->file, error);
    return status ? status : read_header(out, error);
}

void mx_safetensors_close(mx_safetensors *st) {
    mx_mapped_close(&st->file);
    mx_json_free(st->header);
    free(st->tensor);
    *st = (mx_safetensors){0};
}
