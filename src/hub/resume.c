#include "hub/resume.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <xxhash.h>

#include "base/bytes.h"
#include "base/files.h"

enum { MOST_BYTES = 64 << 20 };

static void read_boot(char out[64]) {
    mx_bytes text = {0};
    *out = 0;
    if (!mx_read_file("/proc/sys/kernel/random/boot_id", 4096, &text, NULL))
        snprintf(out, 64, "%.*s", (int)strcspn(text.data, "\n "), text.data);
    mx_bytes_free(&text);
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */
/* " 3:100 4:200"; false: not that, or not of these pieces */
static bool read_claims(const char *p, const mx_pieces *pieces, int64_t *have) {
    while (*p == ' ') {
        char *end;
        if (!isdigit((unsigned char)p[1])) return false;
        const long long i = strtoll(p + 1, &end, 10);
        if (*end != ':' || i < 0 || i >= pieces->count || !isdigit((unsigned char)end[1])) return false;
        const long long bytes = strtoll(end + 1, &end, 10);
        if (bytes < 0 || bytes > mx_piece_length(pieces, i)) return false;
        if (bytes > have[i]) have[i] = bytes;
        p = end;
    }
    return !*p;
}

static bool read_head(const char *line, mx_pieces *pieces, char etag[MX_ETAG_TEXT], char source[MX_ETAG_TEXT]) {
    long long size, each;
    char a[MX_ETAG_TEXT], b[MX_ETAG_TEXT];
    int end = 0;
    _Static_assert(MX_ETAG_TEXT == 256, "the widths below");
    if (sscanf(line, "mxrun-download 1 %lld %lld %255s %255s%n", &size, &each, a, b, &end) != 4) return false;
    if (line[end] || !mx_pieces_make(pieces, size, each)) return false;
    snprintf(etag, MX_ETAG_TEXT, "%s", strcmp(a, "-") ? a : "");
    snprintf(source, MX_ETAG_TEXT, "%s", strcmp(b, "-") ? b : "");
    return true;
}

/* The text of the next line, without the hash before it, or NULL where it is torn or damaged. */
static char *next_line(char **at, const char *end) {
    char *line = *at, *newline = memchr(line, '\n', (size_t)(end - line));
    *at = newline ? newline + 1 : (char *)end;
    if (!newline || newline - line < 18 || line[16] != ' ') return NULL;
    *newline = 0;
    char *text = line + 17, *stop;
    const unsigned long long hash = strtoull(line, &stop, 16);
    return stop == line + 16 && strlen(text) == (size_t)(newline - text) &&
                   hash == XXH3_64bits(text, (size_t)(newline - text))
               ? text
               : NULL;
}

/* The lines behind the head. */
static bool read_lines(char *at, const char *end, const mx_pieces *pieces, int64_t *has, int64_t *safe) {
    char boot[64];
    bool same_boot = false;
    read_boot(boot);
    while (at < end) {
        const char *text = next_line(&at, end);
        if (!text) return at == end;
        if (!strncmp(text, "boot ", 5))
            same_boot = *boot && !strcmp(text + 5, boot);
        else if (!strncmp(text, "has ", 4)) {
            if (same_boot && !read_claims(text + 3, pieces, has)) return false;
        } else if (strncmp(text, "safe ", 5) != 0 || !read_claims(text + 4, pieces, safe))
            return false;
    }
    return true;
}

bool mx_resume_read(const char *path, mx_pieces *pieces, int64_t **safe, char etag[MX_ETAG_TEXT],
                    char source[MX_ETAG_TEXT]) {
    mx_bytes text = {0};
    *pieces = (mx_pieces){0};
    *safe = NULL;
    if (mx_read_regular_file(path, MOST_BYTES, &text, NULL) || !text.size) {
        mx_bytes_free(&text);
        return false;
    }
    char *at = text.data;
    const char *end = text.data + text.size, *head = next_line(&at, end);
    int64_t *has = NULL;
    bool good = head && read_head(head, pieces, etag, source);
    if (good) {
        has = calloc((size_t)pieces->count + 1, sizeof *has);
        *safe = calloc((size_t)pieces->count + 1, sizeof **safe);
        good = has && *safe && read_lines(at, end, pieces, has, *safe);
    }
    for (int64_t i = 0; good && i < pieces->count; i++)
        mx_piece_set(pieces, i, has[i] > (*safe)[i] ? has[i] : (*safe)[i]);
    if (!good) {
        mx_pieces_free(pieces);
        free(*safe);
        *safe = NULL;
    }
    free(has);
    mx_bytes_free(&text);
    return good;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */
static bool add_line(mx_bytes *out, const mx_bytes *text) {
    return mx_bytes_addf(out, "%016" PRIx64 " ", (uint64_t)XXH3_64bits(text->data, text->size)) &&
           mx_bytes_add(out, text->data, text->size) && mx_bytes_add_string(out, "\n");
}

/* "has 3:100" for all that is more than `told`, which becomes the same; nothing where nothing is. */
static bool add_claims(mx_bytes *out, const char *word, const int64_t *have, int64_t *told, int64_t count) {
    mx_bytes text = {0};
    bool done = mx_bytes_add_string(&text, word), any = false;
    for (int64_t i = 0; i < count && done; i++) {
        if (have[i] <= told[i]) continue;
        any = true;
        done = mx_bytes_addf(&text, " %" PRId64 ":%" PRId64, i, have[i]);
        told[i] = have[i];
    }
    if (any) done = done && add_line(out, &text);
    mx_bytes_free(&text);
    return done;
}

static mx_status no_memory(const char *path, mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "%s: no memory for the state of a download", path);
}

static mx_status cannot_write(const char *path, int problem, mx_error *error) {
    return mx_fail(error, problem == ENOSPC || problem == EDQUOT ? MX_NO_SPACE : MX_IO,
                   "%s: cannot be written: %s; what has come is kept", path, strerror(problem));
}

/* All of a new file; `has` and `safe` of *r become what it says. */
static bool compose(mx_resume *r, mx_bytes *out, const mx_pieces *pieces, const char *etag, const char *source) {
    mx_bytes head = {0}, boot = {0};
    char id[64];
    const int64_t count = pieces->count;
    int64_t *have = malloc((size_t)(count + 1) * sizeof *have), *old = r->safe;
    r->safe = calloc((size_t)count + 1, sizeof *r->safe);
    free(r->has);
    r->has = calloc((size_t)count + 1, sizeof *r->has);
    bool done = have && r->safe && r->has;
    for (int64_t i = 0; i < count && done; i++) have[i] = mx_piece_have(pieces, i);
    read_boot(id);
    done = done &&
           mx_bytes_addf(&head, "mxrun-download 1 %" PRId64 " %" PRId64 " %s %s", pieces->size, pieces->each,
                         *etag ? etag : "-", *source ? source : "-") &&
           mx_bytes_addf(&boot, "boot %s", *id ? id : "unknown") && add_line(out, &head) && add_line(out, &boot);
    if (old) done = done && add_claims(out, "safe", old, r->safe, count);
    done = done && add_claims(out, "has", have, r->has, count);
    mx_bytes_free(&head);
    mx_bytes_free(&boot);
    free(have);
    free(old);
    return done;
}

mx_status mx_resume_write(mx_resume *r, const char *path, const mx_pieces *pieces, const char *etag, const char *source,
                          mx_error *error) {
    mx_bytes text = {0};
    mx_status status = MX_OK;
    if (r->fd >= 0) close(r->fd);
    r->fd = -1;
    if (!r->path) r->path = strdup(path);
    if (!r->path || !compose(r, &text, pieces, etag, source))
        status = no_memory(path, error);
    else if (!mx_replace_file(r->path, text.data, text.size, false))
        status = cannot_write(r->path, errno, error);
    r->bytes = (int64_t)text.size;
    r->settled = false;
    mx_bytes_free(&text);
    if (status) return status;
    r->fd = open(r->path, O_WRONLY | O_APPEND | O_CLOEXEC);
    return r->fd < 0 ? cannot_write(r->path, errno, error) : MX_OK;
}

mx_status mx_resume_tell(mx_resume *r, const int64_t *have, int64_t count, bool safe, mx_error *error) {
    mx_bytes text = {0};
    bool done = add_claims(&text, "has", have, r->has, count);
    if (safe) done = done && add_claims(&text, "safe", have, r->safe, count);
    mx_status status = done ? MX_OK : no_memory(r->path, error);
    for (size_t at = 0; !status && at < text.size;) {
        const ssize_t n = write(r->fd, text.data + at, text.size - at);
        if (n >= 0)
            at += (size_t)n;
        else if (errno != EINTR)
            status = cannot_write(r->path, errno, error);
    }
    if (!status && safe && (fdatasync(r->fd) || (!r->settled && !mx_sync_folder(r->path))))
        status = cannot_write(r->path, errno, error);
    r->settled = r->settled || safe;
    r->bytes += (int64_t)text.size;
    mx_bytes_free(&text);
    return status;
}

void mx_resume_close(mx_resume *r, bool remove) {
    if (r->fd >= 0) close(r->fd);
    if (remove && r->path) unlink(r->path);
    free(r->path);
    free(r->has);
    free(r->safe);
    *r = (mx_resume){.fd = -1};
}
