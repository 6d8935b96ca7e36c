#include "tokenizer/tokenizer.h"

bool mx_utf8_stream_add(mx_utf8_stream *s, const char *data, size_t size, mx_bytes *out) {
    /* first, byte by byte, until the pending beginning is a character or broken */
    while (s->count && size) {
        char joined[4];
        memcpy(joined, s->pending, (size_t)s->count);
        joined[s->count] = *data;
        int length = mx_utf8_length(joined, (size_t)s->count + 1);
        if (length == 0) { /* the new byte does not continue it: it may begin something itself */
            if (!mx_bytes_add_utf8(out, 0xFFFD)) return false;
            s->count = 0;
            break;
        }
        if (length > 0) {
            if (!mx_bytes_add(out, joined, (size_t)length)) return false;
            s->count = 0;
        } else {
            s->pending[s->count++] = *data;
        }
        data++;
        size--;
    }
    /* then the whole characters, and the rest waits: an unfinished character is at most 3 bytes */
    size_t whole = size;
    for (size_t back = 1; back <= 3 && back <= size; back++) {
        if ((data[size - back] & 0xC0) == 0x80) continue;
        if (mx_utf8_length(data + size - back, back) < 0) whole = size - back;
        break;
    }
    if (!mx_bytes_add_lossy(out, data, whole)) return false;
    if (whole < size) {
        memcpy(s->pending, data + whole, size - whole);
        s->count = (int)(size - whole);
    }
    return true;
}

bool mx_utf8_stream_end(mx_utf8_stream *s, mx_bytes *out) {
    bool ok = s->count == 0 || mx_bytes_add_utf8(out, 0xFFFD);
    s->count = 0;
    return ok;
}
