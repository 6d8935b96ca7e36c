#ifndef MX_BASE_GGUF_H
#define MX_BASE_GGUF_H

#include <stdbool.h>
#include <stdint.h>

#include "base/mapped.h"
#include "base/status.h"

/* One GGUF file (version 2 or 3, little endian), mapped, everything in it checked: typed keys with values, and named
 * tensors. A container: what keys and tensors mean is known further up (model/, tokenizer/).
 *
 * Layout: "GGUF", u32 version, u64 tensors, u64 keys; per key a string, u32 type, the value; per tensor a string, u32
 * dims, u64 ne[dims] (first = fastest), u32 type, u64 offset; padding to general.alignment (32 where it is not given);
 * the tensors' bytes, to which the offsets count. Strings: u64 size and bytes. */

typedef enum mx_gguf_kind {
    MX_GGUF_U8,
    MX_GGUF_I8,
    MX_GGUF_U16,
    MX_GGUF_I16,
    MX_GGUF_U32,
    MX_GGUF_I32,
    MX_GGUF_F32,
    MX_GGUF_BOOL,
    MX_GGUF_STRING,
    MX_GGUF_ARRAY,
    MX_GGUF_U64,
    MX_GGUF_I64,
    MX_GGUF_F64,
    MX_GGUF_KINDS
} mx_gguf_kind;

typedef struct mx_gguf_string {
    const char *text; /* not ended by a zero */
    uint64_t size;
} mx_gguf_string;

typedef struct mx_gguf_value {
    mx_gguf_string key;
    mx_gguf_kind kind;
    union {
        uint64_t u; /* U8 U16 U32 U64 BOOL */
        int64_t i;  /* I8 I16 I32 I64 */
        double f;   /* F32 F64 */
        mx_gguf_string string;
        struct {
            mx_gguf_kind kind; /* of the elements; never ARRAY */
            uint64_t count, bytes;
            const uint8_t *data; /* the elements as they lie in the file, any alignment; strings with their sizes */
        } array;
    } as;
} mx_gguf_value;

/* Tensor types that are known here by name and size; files may hold others, which only fail when they are used. */
enum {
    MX_GGUF_TENSOR_F32 = 0,
    MX_GGUF_TENSOR_F16 = 1,
    MX_GGUF_TENSOR_Q8_0 = 8, /* 32 elements: F16 scale, 32 int8 */
    MX_GGUF_TENSOR_BF16 = 30,
    MX_GGUF_TENSOR_MXFP4 = 39 /* 32 elements: E8M0 scale, 16 bytes: low nibbles 0..15, high nibbles 16..31 */
};

typedef struct mx_gguf_tensor {
    mx_gguf_string name;
    uint32_t type;
    int dims;            /* 1..4 */
    int64_t ne[4];       /* first = fastest; 1 beyond dims */
    uint64_t bytes;      /* 0 where the type is not known */
    const uint8_t *data; /* in the mapping; NULL where the type is not known */
} mx_gguf_tensor;

typedef struct mx_gguf {
    mx_mapped file;
    uint32_t version;
    mx_gguf_value *value;   /* [values], in the file's order */
    mx_gguf_tensor *tensor; /* [tensors], in the file's order */
    int values, tensors;
    const mx_gguf_tensor **by_name; /* [tensors]; for mx_gguf_find_tensor */
} mx_gguf;

/* Checked: every length against the file, kinds, names (one line, no control characters, each once), dims, products
 * that overflow, offsets (aligned, inside the file, without overlap), row lengths that are no multiple of a block.
 * Free with mx_gguf_close, also after a failure. */
mx_status mx_gguf_open(const char *path, mx_gguf *out, mx_error *error);
void mx_gguf_close(mx_gguf *g); /* all zeros is allowed */

const mx_gguf_value *mx_gguf_find(const mx_gguf *g, const char *key); /* NULL: not there */
const mx_gguf_tensor *mx_gguf_find_tensor(const mx_gguf *g, const char *name);
/* Numbers of any kind but BOOL that hold a whole number from `low` to `high`; false: it is none. `v` may be NULL in
 * all of these. */
bool mx_gguf_int64(const mx_gguf_value *v, int64_t low, int64_t high, int64_t *out);
bool mx_gguf_double(const mx_gguf_value *v, double *out); /* of any kind of number; finite */
bool mx_gguf_is_string(const mx_gguf_value *v, const char *text);
/* Walks an array of strings: *at is 0 at the start and moves on; false at the end, and for what is no such array. */
bool mx_gguf_next_string(const mx_gguf_value *v, uint64_t *at, mx_gguf_string *out);
/* Is NAME that of a further file of a split model, "name-00002-of-00003.gguf", which begins elsewhere? */
bool mx_gguf_is_further_part(const char *name);
/* "Q8_0", "MXFP4" ... also of types that mxrun cannot read ("Q4_K"). NULL for numbers that GGUF does not use: 4 is
 * among them, by which early Ollama files mean MXFP4. */
const char *mx_gguf_type_name(uint32_t type);

#endif
