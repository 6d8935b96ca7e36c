#ifndef TESTS_TOKENIZER_CONVERT_H
#define TESTS_TOKENIZER_CONVERT_H

#include "support.h"

/* A tokenizer.json's content as llama.cpp's converter puts it into GGUF keys, ids padded to `count` with unused tokens,
 * and no tensors. Appends to `out`. */
void tokenizer_gguf(const mx_json *tokenizer, uint32_t count, mx_bytes *out);
/* The same with some keys changed: to `value`, the bytes of type and value; NULL leaves the key out. */
typedef struct gguf_change {
    const char *key;
    const void *value;
    size_t size;
} gguf_change;
void tokenizer_gguf_changed(const mx_json *tokenizer, uint32_t count, const gguf_change *changes, int change_count,
                            mx_bytes *out);

/* The tokens of `t` as openai/gpt-oss's create-local-model.py writes them to model.bin, up to id `count`; text tokens
 * are those before the first special one. */
void tokenizer_metal(const mx_tokenizer *t, uint32_t count, const char *pattern, mx_bytes *out);

/* Paths of such files, made of the tokenizer.json at `path`; valid until the next call. */
const char *gguf_file(const char *path, uint32_t count);
const char *metal_file(const char *path, uint32_t count);

#endif
