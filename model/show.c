#include "model/show.h"

#include <stdio.h>

const char *mx_show_json(char *out, size_t size, const mx_json *v) {
    mx_bytes text = {0};
    if (!mx_json_write(&text, v) || !text.data) {
        snprintf(out, size, "a value that does not fit in memory");
    } else {
        size_t keep = text.size;
        if (keep >= size) {
            for (keep = size - 4; keep > 0 && ((unsigned char)text.data[keep] & 0xC0) == 0x80;) keep--;
        }
        snprintf(out, size, "%.*s%s", (int)keep, text.data, keep < text.size ? "..." : "");
    }
    mx_bytes_free(&text);
    return out;
}

const char *mx_show_shape(char *out, size_t size, const int64_t *shape, int dims) {
    size_t used = (size_t)snprintf(out, size, "[");
    for (int i = 0; i < dims && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%lld", i ? ", " : "", (long long)shape[i]);
    if (used < size) snprintf(out + used, size - used, "]");
    return out;
}

bool mx_is_one_line(const char *text, size_t size) {
    for (size_t i = 0; i < size; i++)
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7F) return false;
    return true;
}
