#include "convert/gguf_text.h"

#include <string.h>

static void add(mx_gguf_text *g, mx_bytes *to, const void *data, size_t size) {
    if (!g->failed && size && !mx_bytes_add(to, data, size)) g->failed = true;
}

static void add_u32(mx_gguf_text *g, mx_bytes *to, uint32_t v) {
    add(g, to, &v, 4);
}

static void add_u64(mx_gguf_text *g, mx_bytes *to, uint64_t v) {
    add(g, to, &v, 8);
}

static void add_string(mx_gguf_text *g, mx_bytes *to, const void *data, size_t size) {
    add_u64(g, to, size);
    add(g, to, data, size);
}

static void key(mx_gguf_text *g, const char *name, mx_gguf_kind kind) {
    add_string(g, &g->keys, name, strlen(name));
    add_u32(g, &g->keys, (uint32_t)kind); /* the enum has the file's numbers */
    g->key_count++;
}

void mx_gguf_put_u32(mx_gguf_text *g, const char *name, uint32_t v) {
    key(g, name, MX_GGUF_U32);
    add_u32(g, &g->keys, v);
}

void mx_gguf_put_f32(mx_gguf_text *g, const char *name, float v) {
    key(g, name, MX_GGUF_F32);
    add(g, &g->keys, &v, 4);
}

void mx_gguf_put_bool(mx_gguf_text *g, const char *name, bool v) {
    const uint8_t byte = v;
    key(g, name, MX_GGUF_BOOL);
    add(g, &g->keys, &byte, 1);
}

void mx_gguf_put_string(mx_gguf_text *g, const char *name, const char *text) {
    mx_gguf_put_bytes(g, name, text, strlen(text));
}

void mx_gguf_put_bytes(mx_gguf_text *g, const char *name, const void *data, size_t size) {
    key(g, name, MX_GGUF_STRING);
    add_string(g, &g->keys, data, size);
}

void mx_gguf_put_array(mx_gguf_text *g, const char *name, mx_gguf_kind kind, uint64_t count) {
    key(g, name, MX_GGUF_ARRAY);
    add_u32(g, &g->keys, (uint32_t)kind);
    add_u64(g, &g->keys, count);
}

void mx_gguf_add_string(mx_gguf_text *g, const void *data, size_t size) {
    add_string(g, &g->keys, data, size);
}

void mx_gguf_add_i32(mx_gguf_text *g, int32_t v) {
    add(g, &g->keys, &v, 4);
}

void mx_gguf_put_tensor(mx_gguf_text *g, const char *name, uint32_t type, int dims, const int64_t *shape,
                        uint64_t bytes) {
    add_string(g, &g->tensors, name, strlen(name));
    add_u32(g, &g->tensors, (uint32_t)dims);
    for (int i = dims - 1; i >= 0; i--) add_u64(g, &g->tensors, (uint64_t)shape[i]);
    add_u32(g, &g->tensors, type);
    add_u64(g, &g->tensors, g->at);
    g->at += (bytes + MX_GGUF_ALIGNMENT - 1) / MX_GGUF_ALIGNMENT * MX_GGUF_ALIGNMENT;
    g->tensor_count++;
}

bool mx_gguf_text_end(const mx_gguf_text *g, mx_bytes *out) {
    const uint32_t version = 3;
    const char zero = 0;
    bool ok = !g->failed && mx_bytes_add(out, "GGUF", 4) && mx_bytes_add(out, &version, 4) &&
              mx_bytes_add(out, &g->tensor_count, 8) && mx_bytes_add(out, &g->key_count, 8);
    if (ok && g->keys.size) ok = mx_bytes_add(out, g->keys.data, g->keys.size);
    if (ok && g->tensors.size) ok = mx_bytes_add(out, g->tensors.data, g->tensors.size);
    while (ok && out->size % MX_GGUF_ALIGNMENT) ok = mx_bytes_add(out, &zero, 1);
    return ok;
}

void mx_gguf_text_free(mx_gguf_text *g) {
    mx_bytes_free(&g->keys);
    mx_bytes_free(&g->tensors);
}
