#include "base/bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static _Bool reserve(mx_bytes *b, size_t more) {
    if (more >= SIZE_MAX - b->size) return 0;
    size_t needed = b->size + more + 1;
    if (needed <= b->capacity) return 1;
    size_t capacity = b->capacity < 64 ? 64 : b->capacity;
    while (capacity < needed) capacity = capacity > SIZE_MAX / 2 ? needed : capacity * 2;
    char *data = realloc(b->data, capacity);
    if (!data) return 0;
    data[b->size] = 0;
    b->data = data;
    b->capacity = capacity;
    return 1;
}

_Bool mx_bytes_add(mx_bytes *b, const void *data, size_t size) {
    if (!reserve(b, size)) return 0;
    if (size) memcpy(b->data + b->size, data, size);
    b->size += size;
    b->data[b->size] = 0;
    return 1;
}

_Bool mx_bytes_add_string(mx_bytes *b, const char *text) {
    return mx_bytes_add(b, text, strlen(text));
}

_Bool mx_bytes_addf(mx_bytes *b, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0 || !reserve(b, (size_t)n)) return 0;
    va_start(args, format);
    vsnprintf(b->data + b->size, (size_t)n + 1, format, args);
    va_end(args);
    b->size += (size_t)n;
    return 1;
}

_Bool mx_bytes_add_utf8(mx_bytes *b, uint32_t c) {
    if (c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF)) c = 0xFFFD;
    unsigned char out[4];
    size_t n;
    if (c < 0x80) {
        out[0] = (unsigned char)c;
        n = 1;
    } else if (c < 0x800) {
        out[0] = (unsigned char)(0xC0 | c >> 6);
        n = 2;
    } else if (c < 0x10000) {
        out[0] = (unsigned char)(0xE0 | c >> 12);
        n = 3;
    } else {
        out[0] = (unsigned char)(0xF0 | c >> 18);
        n = 4;
    }
    for (size_t i = 1; i < n; i++) out[i] = (unsigned char)(0x80 | (c >> (6 * (n - 1 - i)) & 0x3F));
    return mx_bytes_add(b, out, n);
}

/* Unicode table 3-7: how many bytes a lead byte asks for and what its second byte may be. */
static int lead(unsigned char c, unsigned char *low, unsigned char *high) {
    *low = 0x80;
    *high = 0xBF;
    if (c < 0x80) return 1;
    if (c < 0xC2) return 0;
    if (c < 0xE0) return 2;
    if (c < 0xF0) {
        if (c == 0xE0) *low = 0xA0;
        if (c == 0xED) *high = 0x9F;
        return 3;
    }
    if (c > 0xF4) return 0;
    if (c == 0xF0) *low = 0x90;
    if (c == 0xF4) *high = 0x8F;
    return 4;
}

/* The length of the valid character at the start, or 0 with *bad = length of the maximal invalid part, or < 0. */
static int decode(const unsigned char *p, size_t size, size_t *bad) {
    unsigned char low, high;
    *bad = 1;
    if (!size) return 0;
    int n = lead(p[0], &low, &high);
    if (n == 0) return 0;
    for (int i = 1; i < n; i++) {
        if ((size_t)i == size) {
            *bad = size;
            return -(int)size;
        }
        if (p[i] < low || p[i] > high) {
            *bad = (size_t)i;
            return 0;
        }
        low = 0x80;
        high = 0xBF;
    }
    return n;
}

int mx_utf8_length(const void *data, size_t size) {
    size_t bad;
    return decode(data, size, &bad);
}

/* The first part of data that is valid UTF-8; *bad is the length of the invalid part behind it. */
static size_t valid_prefix(const unsigned char *p, size_t size, size_t *bad) {
    size_t at = 0;
    *bad = 0;
    while (at < size) {
        if (size - at >= 8 && !(mx_load_u64(p + at) & 0x8080808080808080u)) {
            at += 8;
            continue;
        }
        if (p[at] < 0x80) {
            at++;
            continue;
        }
        int n = decode(p + at, size - at, bad);
        if (n <= 0) return at;
        at += (size_t)n;
        *bad = 0;
    }
    return at;
}

size_t mx_utf8_prefix(const void *data, size_t size) {
    size_t bad;
    return valid_prefix(data, size, &bad);
}

_Bool mx_is_utf8(const void *data, size_t size) {
    const char *text = data;
    for (size_t i = 0; i < size;) {
        if (size - i >= 8 && (mx_load_u64(text + i) & 0x8080808080808080u) == 0) {
            i += 8;
            continue;
        }
        int length = mx_utf8_length(text + i, size - i);
        if (length <= 0) return 0;
        i += (size_t)length;
    }
    return 1;
}

_Bool mx_bytes_add_lossy(mx_bytes *b, const void *data, size_t size) {
    const unsigned char *p = data;
    while (size) {
        size_t bad, good = valid_prefix(p, size, &bad);
        if (!mx_bytes_add(b, p, good)) return 0;
        if (bad && !mx_bytes_add(b, "\xEF\xBF\xBD", 3)) return 0;
        p += good + bad;
        size -= good + bad;
    }
    return 1;
}

static _Bool add_json_char(mx_bytes *b, unsigned char c) {
    switch (c) {
    case '"':
        return mx_bytes_add(b, "\\\"", 2);
    case '\\':
        return mx_bytes_add(b, "\\\\", 2);
    case '\n':
        return mx_bytes_add(b, "\\n", 2);
    case '\r':
        return mx_bytes_add(b, "\\r", 2);
    case '\t':
        return mx_bytes_add(b, "\\t", 2);
    case '\b':
        return mx_bytes_add(b, "\\b", 2);
    case '\f':
        return mx_bytes_add(b, "\\f", 2);
    }
    return mx_bytes_addf(b, "\\u%04x", c);
}

_Bool mx_bytes_add_json(mx_bytes *b, const void *data, size_t size) {
    const unsigned char *p = data;
    if (!mx_bytes_add(b, "\"", 1)) return 0;
    while (size) {
        size_t bad, good = valid_prefix(p, size, &bad), start = 0;
        for (size_t i = 0; i < good; i++) {
            if (p[i] >= 0x20 && p[i] != '"' && p[i] != '\\' && p[i] != 0x7F) continue;
            if (!mx_bytes_add(b, p + start, i - start) || !add_json_char(b, p[i])) return 0;
            start = i + 1;
        }
        if (!mx_bytes_add(b, p + start, good - start)) return 0;
        if (bad && !mx_bytes_add(b, "\xEF\xBF\xBD", 3)) return 0;
        p += good + bad;
        size -= good + bad;
    }
    return mx_bytes_add(b, "\"", 1);
}

_Bool mx_bytes_add_base64(mx_bytes *b, const void *data, size_t size) {
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char *p = data;
    if (size / 3 > (SIZE_MAX - 8) / 4 || !reserve(b, (size + 2) / 3 * 4)) return 0;
    for (; size; p += 3) {
        size_t n = size < 3 ? size : 3;
        unsigned v = (unsigned)p[0] << 16 | (n > 1 ? (unsigned)p[1] << 8 : 0) | (n > 2 ? p[2] : 0);
        char out[4] = {digit[v >> 18], digit[v >> 12 & 63], n > 1 ? digit[v >> 6 & 63] : '=',
                       n > 2 ? digit[v & 63] : '='};
        if (!mx_bytes_add(b, out, 4)) return 0;
        size -= n;
    }
    return 1;
}

void mx_bytes_clear(mx_bytes *b) {
    b->size = 0;
    if (b->data) b->data[0] = 0;
}

void mx_bytes_free(mx_bytes *b) {
    free(b->data);
    *b = (mx_bytes){0};
}

static mx_status read_all(int fd, const char *path, size_t limit, mx_bytes *out, mx_error *error) {
    size_t chunk = 65536;
    for (;;) {
        if (!reserve(out, chunk)) return mx_fail(error, MX_NO_MEMORY, "%s: no memory for its content", path);
        ssize_t n = read(fd, out->data + out->size, chunk);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return mx_fail(error, MX_IO, "%s: cannot be read: %s", path, strerror(errno));
        out->size += (size_t)n;
        out->data[out->size] = 0;
        if (out->size > limit)
            return mx_fail(error, MX_INVALID_FILE, "%s: longer than the %zu bytes allowed", path, limit);
        if (n == 0) return MX_OK;
        if (chunk < (size_t)1 << 24) chunk *= 2;
    }
}

mx_status mx_read_file(const char *path, size_t limit, mx_bytes *out, mx_error *error) {
    *out = (mx_bytes){0};
    _Bool from_stdin = !strcmp(path, "-");
    int fd = from_stdin ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return mx_fail(error, MX_IO, "%s: cannot be opened: %s", path, strerror(errno));
    mx_status status = read_all(fd, from_stdin ? "stdin" : path, limit, out, error);
    if (!from_stdin) close(fd);
    if (status) mx_bytes_free(out);
    return status;
}

mx_status mx_read_regular_file(const char *path, size_t limit, mx_bytes *out, mx_error *error) {
    *out = (mx_bytes){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* does not wait for a pipe's other end */
    struct stat info;
    if (fd < 0 || fstat(fd, &info) != 0) {
        int reason = errno;
        if (fd >= 0) close(fd);
        return mx_fail(error, MX_IO, "%s: cannot be opened: %s", path, strerror(reason));
    }
    mx_status status = S_ISREG(info.st_mode) ? read_all(fd, path, limit, out, error)
                                             : mx_fail(error, MX_INVALID_FILE, "%s: not a regular file", path);
    close(fd);
    if (status) mx_bytes_free(out);
    return status;
}
