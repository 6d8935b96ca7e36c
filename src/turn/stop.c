#include "turn/stop.h"

#include <stdlib.h>

mx_status mx_stop_create(const char *const *strings, int count, mx_stop *out, mx_error *error) {
    *out = (mx_stop){0};
    if (count == 0) return MX_OK;
    out->strings = calloc((size_t)count, sizeof *out->strings);
    if (!out->strings) return mx_fail(error, MX_NO_MEMORY, "no memory for %d stop strings", count);
    for (; out->count < count; out->count++) {
        const char *string = strings[out->count];
        mx_status status = MX_OK;
        if (!*string) {
            status = mx_fail(error, MX_INVALID_ARGUMENT, "a stop string is empty");
        } else if (!mx_bytes_add_string(&out->strings[out->count], string)) {
            status = mx_fail(error, MX_NO_MEMORY, "no memory for %d stop strings", count);
        }
        if (status) {
            mx_stop_free(out);
            return status;
        }
    }
    return MX_OK;
}

void mx_stop_free(mx_stop *s) {
    for (int i = 0; i < s->count; i++) mx_bytes_free(&s->strings[i]);
    free(s->strings);
    mx_bytes_free(&s->held);
    *s = (mx_stop){0};
}

/* Where the stop string begins that is complete first at or behind byte `from`, and which it is; -1: none is. */
static ptrdiff_t find_first(mx_stop *s, const char *text, size_t size, size_t from) {
    for (size_t end = from + 1; end <= size; end++) {
        size_t longest = 0;
        for (int i = 0; i < s->count; i++) {
            size_t length = s->strings[i].size;
            if (length > longest && length <= end && memcmp(text + end - length, s->strings[i].data, length) == 0) {
                longest = length;
                s->found = i;
            }
        }
        if (longest) return (ptrdiff_t)(end - longest);
    }
    return -1;
}

/* Length of the longest end of the text that begins some stop string. */
static size_t undecided(const mx_stop *s, const char *text, size_t size) {
    size_t longest = 0;
    for (int i = 0; i < s->count; i++) {
        size_t length = s->strings[i].size - 1;
        if (length > size) length = size;
        while (length > longest && memcmp(text + size - length, s->strings[i].data, length) != 0) length--;
        if (length > longest) longest = length;
    }
    return longest;
}

bool mx_stop_add(mx_stop *s, const char *text, size_t size, mx_bytes *out, bool *found) {
    *found = false;
    if (s->count == 0) return mx_bytes_add(out, text, size);
    size_t known = s->held.size; /* no stop string ends in here */
    if (!mx_bytes_add(&s->held, text, size)) return false;
    ptrdiff_t begin = find_first(s, s->held.data, s->held.size, known);
    size_t shown = begin >= 0 ? (size_t)begin : s->held.size - undecided(s, s->held.data, s->held.size);
    if (!mx_bytes_add(out, s->held.data, shown)) return false;
    if (begin >= 0) {
        *found = true;
        mx_bytes_clear(&s->held);
        return true;
    }
    memmove(s->held.data, s->held.data + shown, s->held.size - shown + 1);
    s->held.size -= shown;
    return true;
}

bool mx_stop_end(mx_stop *s, mx_bytes *out) {
    bool added = mx_bytes_add(out, s->held.data, s->held.size);
    mx_bytes_clear(&s->held);
    return added;
}
