/* GGUF files: keys and tensors, and the tokenizer that the keys may be. */
#include "base/gguf.h"
#include "input.h"
#include "tokenizer/vocabulary.h"

static void walk(const mx_gguf *g) {
    int64_t whole;
    double number;
    mx_gguf_string s;
    for (int i = 0; i < g->values; i++) {
        const mx_gguf_value *v = &g->value[i];
        mx_gguf_int64(v, INT64_MIN, INT64_MAX, &whole);
        mx_gguf_double(v, &number);
        if (v->kind == MX_GGUF_STRING && v->as.string.size)
            fuzz_touch((const uint8_t *)v->as.string.text, v->as.string.size);
        if (v->kind == MX_GGUF_ARRAY && v->as.array.bytes) fuzz_touch(v->as.array.data, v->as.array.bytes);
        for (uint64_t at = 0; mx_gguf_next_string(v, &at, &s);)
            if (s.size) fuzz_touch((const uint8_t *)s.text, s.size);
    }
    for (int i = 0; i < g->tensors; i++)
        if (g->tensor[i].data) fuzz_touch(g->tensor[i].data, g->tensor[i].bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    mx_gguf g;
    mx_vocabulary v;
    mx_error error;
    if (mx_gguf_open(fuzz_file(data, size), &g, &error) == MX_OK) {
        walk(&g);
        if (mx_vocabulary_from_gguf(&g, &v, &error) == MX_OK) mx_vocabulary_release(&v);
    }
    mx_gguf_close(&g);
    return 0;
}
