#ifndef MX_BASE_JSON_H
#define MX_BASE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"

/* JSON documents as a tree, read with YAJL. Everything the project reads goes through this one reader rather than
 * cJSON, because people's text needs what cJSON loses (strings with U+0000, the source text of numbers, integers
 * beyond 2^53) and one reader is less to know than two. */
typedef enum mx_json_type {
    MX_JSON_NULL,
    MX_JSON_BOOL,
    MX_JSON_NUMBER,
    MX_JSON_STRING,
    MX_JSON_ARRAY,
    MX_JSON_OBJECT
} mx_json_type;

typedef struct mx_json mx_json;
struct mx_json {
    mx_json_type type;
    bool boolean;
    uint32_t count;   /* children of an array or object */
    const char *text; /* string: its bytes (may hold NUL); number: its source text; NUL-terminated */
    size_t size;      /* bytes of text */
    const char *key;  /* in an object: the member's name (may hold NUL), else NULL */
    size_t key_size;
    mx_json *child; /* first child, in source order */
    mx_json *next;  /* next sibling */
};

typedef struct mx_json_document mx_json_document; /* owns every node and byte of a tree */

/* Parses exactly one value (white space around it allowed). Invalid UTF-8, trailing text, nesting beyond 512 levels
 * are errors that name `name` (a file name or "request") and the byte. Free with mx_json_free. */
mx_status mx_json_parse(const char *name, const void *text, size_t size, mx_json_document **out, mx_error *error);
/* The same for text of strangers: a tree of more than `most` bytes is an error (MX_INVALID_FILE), too. One node takes
 * about 100 bytes, and two bytes of text can be one. */
mx_status mx_json_parse_limited(const char *name, const void *text, size_t size, size_t most, mx_json_document **out,
                                mx_error *error);
const mx_json *mx_json_root(const mx_json_document *document);
void mx_json_free(mx_json_document *document); /* NULL allowed */

/* The member called `key` (the last one, where it is given twice), or NULL; also NULL when `object` is NULL or no
 * object. */
const mx_json *mx_json_get(const mx_json *object, const char *key);
bool mx_json_is_string(const mx_json *v, const char *text); /* v may be NULL */

/* Exact conversions: false when v is NULL, not a number, not integral or out of range. */
bool mx_json_int64(const mx_json *v, int64_t *out);
bool mx_json_double(const mx_json *v, double *out); /* finite */
bool mx_json_bool(const mx_json *v, bool *out);

/* Appends the value as compact JSON; numbers keep their source text. */
bool mx_json_write(mx_bytes *out, const mx_json *v);

#endif
