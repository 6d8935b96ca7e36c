#ifndef MX_CONVERT_GGUF_TEXT_H
#define MX_CONVERT_GGUF_TEXT_H

#include "base/bytes.h"
#include "base/gguf.h"
#include "convert/output.h"

/* The beginning of a GGUF file while it is put together: keys, then the descriptions of tensors. */
typedef struct mx_gguf_text {
    mx_bytes keys, tensors;
    uint64_t key_count, tensor_count, at; /* at: of the next tensor, behind the beginning */
    bool failed;                          /* no memory */
} mx_gguf_text;

void mx_gguf_put_u32(mx_gguf_text *g, const char *key, uint32_t v);
void mx_gguf_put_f32(mx_gguf_text *g, const char *key, float v);
void mx_gguf_put_bool(mx_gguf_text *g, const char *key, bool v);
void mx_gguf_put_string(mx_gguf_text *g, const char *key, const char *text);
void mx_gguf_put_bytes(mx_gguf_text *g, const char *key, const void *data, size_t size); /* a string of any bytes */
/* Arrays: `count` elements, then exactly as many of these. */
void mx_gguf_put_array(mx_gguf_text *g, const char *key, mx_gguf_kind kind, uint64_t count);
void mx_gguf_add_string(mx_gguf_text *g, const void *data, size_t size);
void mx_gguf_add_i32(mx_gguf_text *g, int32_t v);
/* The next tensor, of `bytes`; shape as in Hugging Face, the slowest first. */
void mx_gguf_put_tensor(mx_gguf_text *g, const char *name, uint32_t type, int dims, const int64_t *shape,
                        uint64_t bytes);
/* The whole beginning, filled up to where tensors begin. */
bool mx_gguf_text_end(const mx_gguf_text *g, mx_bytes *out);
void mx_gguf_text_free(mx_gguf_text *g);

enum { MX_GGUF_ALIGNMENT = 32 };

#endif
