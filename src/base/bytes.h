#ifndef MX_BASE_BYTES_H
#define MX_BASE_BYTES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/status.h"

/* A growing byte string, always NUL-terminated behind its last byte. All zeros is the empty string. */
typedef struct mx_bytes {
    char *data; /* owned; NULL while nothing was ever added */
    size_t size, capacity;
} mx_bytes;

/* Each returns false when memory is out and leaves the content as it was. */
_Bool mx_bytes_add(mx_bytes *b, const void *data, size_t size);
_Bool mx_bytes_add_string(mx_bytes *b, const char *text);
_Bool mx_bytes_addf(mx_bytes *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
_Bool mx_bytes_add_utf8(mx_bytes *b, uint32_t code_point);
/* Appends data as a JSON string with its quotes. Bytes that are not UTF-8 become U+FFFD, one per maximal invalid
 * part (WHATWG). U+0000 and other controls are escaped. */
_Bool mx_bytes_add_json(mx_bytes *b, const void *data, size_t size);
_Bool mx_bytes_add_base64(mx_bytes *b, const void *data, size_t size);
void mx_bytes_clear(mx_bytes *b); /* keeps the memory */
void mx_bytes_free(mx_bytes *b);

/* The whole of a file. `limit` bounds what is read (MX_INVALID_FILE beyond it). "-" is stdin. The caller frees `out`.
 */
mx_status mx_read_file(const char *path, size_t limit, mx_bytes *out, mx_error *error);

/* The same for a path that must be a regular file: a named pipe or a device is MX_INVALID_FILE and never waited for. */
mx_status mx_read_regular_file(const char *path, size_t limit, mx_bytes *out, mx_error *error);

/* Length of the valid UTF-8 character at the start of data[0..size), 0 when it is invalid, or the negative number of
 * bytes present when they are the beginning of a character that is cut off by the end. */
int mx_utf8_length(const void *data, size_t size);

/* Length of the longest prefix of data[0..size) that is valid UTF-8: `size` when all of it is. */
size_t mx_utf8_prefix(const void *data, size_t size);

/* Is all of it valid UTF-8? ASCII goes eight bytes at a time. */
_Bool mx_is_utf8(const void *data, size_t size);

/* Appends data with every maximal invalid part replaced by U+FFFD (the WHATWG rule, as String::from_utf8_lossy). */
_Bool mx_bytes_add_lossy(mx_bytes *b, const void *data, size_t size);

/* Does the text end in `end`? */
static inline _Bool mx_ends_with(const char *text, const char *end) {
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && memcmp(text + n - m, end, m) == 0;
}

/* Unaligned little-endian loads. */
static inline uint16_t mx_load_u16(const void *p) {
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline uint32_t mx_load_u32(const void *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline uint64_t mx_load_u64(const void *p) {
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

#endif
