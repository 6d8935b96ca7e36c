#include "batch/lines.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum { PIECE = 1 << 20, WAIT = 200 /* milliseconds */ };

mx_status mx_lines_open(mx_lines *lines, const char *path, uint64_t seed, mx_error *error) {
    const bool from_stdin = !strcmp(path, "-");
    *lines = (mx_lines){.path = from_stdin ? "stdin" : path, .fd = -1, .seed = seed};
    lines->fd = from_stdin ? dup(STDIN_FILENO) : open(path, O_RDONLY | O_CLOEXEC);
    if (lines->fd < 0) return mx_fail(error, MX_IO, "%s: %s", lines->path, strerror(errno));
    struct stat info;
    if (fstat(lines->fd, &info)) return mx_fail(error, MX_IO, "%s: %s", lines->path, strerror(errno));
    if (S_ISDIR(info.st_mode)) return mx_fail(error, MX_IO, "%s: this is a folder, expected a file", lines->path);
    lines->start = lseek(lines->fd, 0, SEEK_CUR);
    lines->regular = S_ISREG(info.st_mode) && lines->start >= 0;
    return MX_OK;
}

void mx_lines_close(mx_lines *lines) {
    if (lines->fd >= 0) close(lines->fd);
    mx_bytes_free(&lines->buffer);
    *lines = (mx_lines){.fd = -1};
}

mx_status mx_lines_rewind(mx_lines *lines, mx_error *error) {
    if (lseek(lines->fd, lines->start, SEEK_SET) < 0)
        return mx_fail(error, MX_IO, "%s: cannot be read again: %s", lines->path, strerror(errno));
    mx_bytes_clear(&lines->buffer);
    lines->begin = lines->scanned = 0;
    lines->number = 0;
    lines->ended = false;
    return MX_OK;
}

/* Moves what is left of the buffer to its front. Where a line is longer than the limit, only its beginning is kept. */
static void make_room(mx_lines *l) {
    mx_bytes *b = &l->buffer;
    if (l->begin) {
        memmove(b->data, b->data + l->begin, b->size - l->begin);
        b->size -= l->begin;
        l->scanned -= l->begin;
        l->begin = 0;
    }
    if (b->size > MX_LINE_LIMIT + 1) b->size = l->scanned = MX_LINE_LIMIT + 1;
}

/* One read behind what is there. *out is MX_NEXT_LINE when there is more now. */
static mx_status read_more(mx_lines *l, bool wait, mx_next *out, mx_error *error) {
    struct pollfd ready = {.fd = l->fd, .events = POLLIN};
    *out = MX_NEXT_LATER;
    if (!l->regular && poll(&ready, 1, wait ? WAIT : 0) <= 0) return MX_OK;
    make_room(l);
    mx_bytes *b = &l->buffer;
    if (b->capacity - b->size <= PIECE) {
        /* Grown by adding, as everything that grows here; what was added is no content yet. */
        static const char nothing[4096];
        const size_t size = b->size;
        bool grown = true;
        while (grown && b->capacity - b->size <= PIECE) grown = mx_bytes_add(b, nothing, sizeof nothing);
        b->size = size;
        if (!grown)
            return mx_fail(error, MX_NO_MEMORY, "%s: no memory for line %lld", l->path, (long long)l->number + 1);
    }
    const ssize_t n = read(l->fd, b->data + b->size, PIECE);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) return MX_OK;
    if (n < 0) return mx_fail(error, MX_IO, "%s: %s", l->path, strerror(errno));
    b->size += (size_t)n;
    l->ended = n == 0;
    *out = MX_NEXT_LINE;
    return MX_OK;
}

static bool is_blank(const char *text, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (text[i] != ' ' && text[i] != '\t' && text[i] != '\r') return false;
    return true;
}

/* The bytes up to `end` are a line. */
static void take_line(mx_lines *l, size_t end, mx_line *line) {
    const char *text = l->buffer.data + l->begin;
    size_t size = end - l->begin;
    if (size && text[size - 1] == '\r') size--;
    if (l->number++ == 0 && size >= 3 && !memcmp(text, "\xEF\xBB\xBF", 3)) {
        text += 3;
        size -= 3;
    }
    *line = (mx_line){.number = l->number, .text = text, .size = size, .too_long = size > MX_LINE_LIMIT};
    if (line->too_long) line->size = MX_LINE_LIMIT;
    line->hash = XXH3_64bits_withSeed(line->text, line->size, l->seed);
}

mx_status mx_lines_next(mx_lines *l, bool wait, mx_line *line, mx_next *out, mx_error *error) {
    for (;;) {
        const mx_bytes *b = &l->buffer;
        const char *newline = b->size > l->scanned ? memchr(b->data + l->scanned, '\n', b->size - l->scanned) : NULL;
        if (newline || (l->ended && b->size > l->begin)) {
            const size_t end = newline ? (size_t)(newline - b->data) : b->size;
            take_line(l, end, line);
            l->begin = l->scanned = newline ? end + 1 : end;
            if (is_blank(line->text, line->size)) continue;
            *out = MX_NEXT_LINE;
            return MX_OK;
        }
        l->scanned = b->size;
        if (l->ended) {
            *out = MX_NEXT_END;
            return MX_OK;
        }
        mx_status status = read_more(l, wait, out, error);
        if (status || *out == MX_NEXT_LATER) return status;
    }
}
