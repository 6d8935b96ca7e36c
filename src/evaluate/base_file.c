#include "evaluate/base_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/bytes.h"
#include "base/files.h"
#include "base/json.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ && sizeof(mx_kept_logit) == 8, "files are little-endian");

static const char MAGIC[8] = "mxrbase\n";
enum { VERSION = 1, START = 16, HASH = 8, HEADER_MOST = 1 << 20, ALIGNMENT = 8 };

/* ---- records ------------------------------------------------------------------------------------------------------
 */
void mx_base_record_put(uint8_t *record, const mx_distribution *d, float logit) {
    memcpy(record, &d->log_sum, 8);
    memcpy(record + 8, &d->rest, 8);
    memcpy(record + 16, &logit, 4);
    memcpy(record + 20, &d->best, 4);
}

bool mx_base_record_get(const uint8_t *record, int32_t vocab, int32_t top, mx_base_record *out) {
    memcpy(&out->distribution.log_sum, record, 8);
    memcpy(&out->distribution.rest, record + 8, 8);
    memcpy(&out->logit, record + 16, 4);
    memcpy(&out->distribution.best, record + 20, 4);
    out->kept = (const mx_kept_logit *)(const void *)(record + 24);
    const mx_distribution *d = &out->distribution;
    if (!isfinite(d->log_sum) || !isfinite(out->logit) || !(d->rest >= 0 && d->rest <= 1) || d->best < 0 ||
        d->best >= vocab)
        return false;
    for (int32_t i = 0, before = -1; i < top; before = out->kept[i++].token)
        if (out->kept[i].token <= before || out->kept[i].token >= vocab || isnan(out->kept[i].logit)) return false;
    return true;
}

/* ---- headers ------------------------------------------------------------------------------------------------------
 */
static bool print_header(const mx_base_header *h, mx_bytes *out) {
    bool ok = mx_bytes_addf(out, "{\"version\":%d,\"model\":", VERSION) &&
              mx_bytes_add_json(out, h->model, strlen(h->model)) && mx_bytes_add_string(out, ",\"identity\":") &&
              mx_bytes_add_json(out, h->identity, strlen(h->identity)) && mx_bytes_add_string(out, ",\"protocol\":") &&
              mx_bytes_add_json(out, h->protocol, strlen(h->protocol)) &&
              mx_bytes_addf(out,
                            ",\"vocab\":%d,\"tokenizer\":\"%016" PRIx64 "\",\"text\":\"%016" PRIx64
                            "\",\"tokens\":%lld,\"top\":%d}",
                            h->vocab, h->tokenizer, h->text, (long long)h->tokens, h->top);
    while (ok && out->size % ALIGNMENT) ok = mx_bytes_add(out, " ", 1);
    return ok;
}

static bool read_text(const mx_json *root, const char *key, char *out, size_t size) {
    const mx_json *v = mx_json_get(root, key);
    if (!v || v->type != MX_JSON_STRING || strlen(v->text) >= size) return false;
    snprintf(out, size, "%s", v->text);
    return true;
}

static bool read_hash(const mx_json *root, const char *key, uint64_t *out) {
    char text[17];
    if (!read_text(root, key, text, sizeof text) || strlen(text) != 16 || strspn(text, "0123456789abcdef") != 16)
        return false;
    *out = strtoull(text, NULL, 16);
    return true;
}

static mx_status parse_header(const char *path, const mx_bytes *text, mx_base_header *out, mx_error *error) {
    mx_json_document *document = NULL;
    int64_t version = 0, vocab = 0, top = 0;
    mx_status status = mx_json_parse(path, text->data, text->size, &document, error);
    if (status) return status;
    const mx_json *root = mx_json_root(document);
    if (!mx_json_int64(mx_json_get(root, "version"), &version) || version != VERSION)
        status = mx_fail(error, MX_INVALID_FILE,
                         "%s: distributions in version %lld of the format, this mxrun reads %d: make them anew with "
                         "--save-base",
                         path, (long long)version, VERSION);
    else if (!read_text(root, "model", out->model, sizeof out->model) ||
             !read_text(root, "identity", out->identity, sizeof out->identity) ||
             !read_text(root, "protocol", out->protocol, sizeof out->protocol) ||
             !read_hash(root, "tokenizer", &out->tokenizer) || !read_hash(root, "text", &out->text) ||
             !mx_json_int64(mx_json_get(root, "tokens"), &out->tokens) || out->tokens < 1 ||
             !mx_json_int64(mx_json_get(root, "vocab"), &vocab) || vocab < 1 || vocab > INT32_MAX ||
             !mx_json_int64(mx_json_get(root, "top"), &top) || top < 1 || top > vocab ||
             out->tokens > INT64_MAX / 2 / mx_base_record_bytes((int32_t)top))
        status = mx_fail(error, MX_INVALID_FILE,
                         "%s: damaged: the header of the distributions lacks a field, or has a wrong one", path);
    out->vocab = (int32_t)vocab;
    out->top = (int32_t)top;
    mx_json_free(document);
    return status;
}

/* ---- writing ------------------------------------------------------------------------------------------------------
 */
struct mx_base_writer {
    char *path, *beside; /* beside: where it is written */
    FILE *file;
    int64_t record_bytes, left; /* records to come */
    XXH3_state_t *hash;
    bool finished;
};

static mx_status cannot_write(const mx_base_writer *w, mx_error *error) {
    const bool full = errno == ENOSPC || errno == EDQUOT || errno == EFBIG;
    return mx_fail(error, full ? MX_NO_SPACE : MX_IO, "%s: cannot be written: %s%s", w->path, strerror(errno),
                   full ? "; --base-top keeps fewer tokens of each distribution" : "");
}

static mx_status open_beside(mx_base_writer *w, mx_error *error) {
    struct stat there;
    if (!stat(w->path, &there) && !S_ISREG(there.st_mode))
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "%s: is no file: distributions are written to a file that is new or replaced", w->path);
    w->file = fopen(w->beside, "wb");
    return w->file ? MX_OK : cannot_write(w, error);
}

static mx_status start_file(mx_base_writer *w, const mx_base_header *header, mx_error *error) {
    mx_bytes text = {0};
    if (!print_header(header, &text)) {
        mx_bytes_free(&text);
        return mx_fail(error, MX_NO_MEMORY, "no memory for %s", w->path);
    }
    const uint64_t size = text.size;
    const bool ok = fwrite(MAGIC, sizeof MAGIC, 1, w->file) == 1 && fwrite(&size, sizeof size, 1, w->file) == 1 &&
                    fwrite(text.data, text.size, 1, w->file) == 1;
    mx_bytes_free(&text);
    return ok && fflush(w->file) == 0 ? MX_OK : cannot_write(w, error);
}

/* The file beside is open, and empty. */
static mx_status writer_create(const char *path, mx_base_writer **out, mx_error *error) {
    mx_base_writer *w = calloc(1, sizeof *w);
    if (!w) return mx_fail(error, MX_NO_MEMORY, "no memory for %s", path);
    const size_t size = strlen(path) + 40;
    w->path = strdup(path);
    w->beside = calloc(1, size);
    w->hash = XXH3_createState();
    mx_status status = MX_OK;
    if (!w->path || !w->beside || !w->hash) status = mx_fail(error, MX_NO_MEMORY, "no memory for %s", path);
    if (!status) {
        XXH3_64bits_reset(w->hash);
        snprintf(w->beside, size, "%s.%ld.part", path, (long)getpid());
        status = open_beside(w, error);
    }
    if (status) {
        mx_base_writer_close(w);
        return status;
    }
    *out = w;
    return MX_OK;
}

mx_status mx_base_writer_check(const char *path, mx_error *error) {
    mx_base_writer *w = NULL;
    const mx_status status = writer_create(path, &w, error);
    mx_base_writer_close(w);
    return status;
}

mx_status mx_base_writer_open(const char *path, const mx_base_header *header, mx_base_writer **out, mx_error *error) {
    mx_base_writer *w;
    mx_status status = writer_create(path, &w, error);
    if (status) return status;
    w->left = header->tokens;
    w->record_bytes = mx_base_record_bytes(header->top);
    status = start_file(w, header, error);
    if (status) {
        mx_base_writer_close(w);
        return status;
    }
    *out = w;
    return MX_OK;
}

mx_status mx_base_writer_add(mx_base_writer *w, const uint8_t *records, int64_t count, mx_error *error) {
    const size_t bytes = (size_t)(count * w->record_bytes);
    if (count > w->left) return mx_fail(error, MX_INVALID_STATE, "%s: more records than its header says", w->path);
    w->left -= count;
    if (!bytes) return MX_OK;
    XXH3_64bits_update(w->hash, records, bytes);
    return fwrite(records, 1, bytes, w->file) == bytes ? MX_OK : cannot_write(w, error);
}

mx_status mx_base_writer_finish(mx_base_writer *w, bool durable, mx_error *error) {
    const uint64_t hash = XXH3_64bits_digest(w->hash);
    if (w->left) return mx_fail(error, MX_INVALID_STATE, "%s: %lld records are missing", w->path, (long long)w->left);
    if (fwrite(&hash, sizeof hash, 1, w->file) != 1 || fflush(w->file) || (durable && fsync(fileno(w->file))))
        return cannot_write(w, error);
    const int closed = fclose(w->file);
    w->file = NULL;
    if (closed || rename(w->beside, w->path)) return cannot_write(w, error);
    w->finished = true;
    return !durable || mx_sync_folder(w->path) ? MX_OK : cannot_write(w, error);
}

void mx_base_writer_close(mx_base_writer *w) {
    if (!w) return;
    if (w->file) fclose(w->file);
    if (w->beside && *w->beside && !w->finished) unlink(w->beside); /* has our number in its name */
    free(w->path);
    free(w->beside);
    XXH3_freeState(w->hash);
    free(w);
}

/* ---- reading ------------------------------------------------------------------------------------------------------
 */
struct mx_base_reader {
    char *path;
    FILE *file;
    mx_base_header header;
    int64_t record_bytes, left;
    XXH3_state_t *hash;
};

static mx_status cannot_read(const mx_base_reader *r, mx_error *error) {
    if (ferror(r->file)) return mx_fail(error, MX_IO, "%s: cannot be read: %s", r->path, strerror(errno));
    return mx_fail(error, MX_INVALID_FILE, "%s: truncated: make the distributions anew with --save-base", r->path);
}

static mx_status read_header(mx_base_reader *r, mx_error *error) {
    char magic[sizeof MAGIC];
    uint64_t size;
    struct stat found;
    mx_bytes text = {0};
    if (fstat(fileno(r->file), &found) || !S_ISREG(found.st_mode))
        return mx_fail(error, MX_INVALID_FILE, "%s: is no file", r->path);
    if (fread(magic, 1, sizeof magic, r->file) != sizeof magic || memcmp(magic, MAGIC, sizeof magic) != 0)
        return mx_fail(error, MX_INVALID_FILE, "%s: holds no distributions: expected a file of perplexity --save-base",
                       r->path);
    if (fread(&size, sizeof size, 1, r->file) != 1) return cannot_read(r, error);
    if (size < 2 || size > HEADER_MOST)
        return mx_fail(error, MX_INVALID_FILE, "%s: damaged: a header of %llu bytes", r->path,
                       (unsigned long long)size);
    char *data = malloc((size_t)size);
    if (!data) return mx_fail(error, MX_NO_MEMORY, "no memory for the header of %s", r->path);
    mx_status status = fread(data, 1, (size_t)size, r->file) == size ? MX_OK : cannot_read(r, error);
    text = (mx_bytes){.data = data, .size = (size_t)size};
    if (!status) status = parse_header(r->path, &text, &r->header, error);
    free(data);
    if (status) return status;
    r->record_bytes = mx_base_record_bytes(r->header.top);
    r->left = r->header.tokens;
    const int64_t expected = START + (int64_t)size + r->left * r->record_bytes + HASH;
    if (found.st_size == expected) return MX_OK;
    return mx_fail(error, MX_INVALID_FILE,
                   "%s: %s: it has %lld bytes, and %lld tokens take %lld: make the distributions anew with --save-base",
                   r->path, found.st_size < expected ? "truncated" : "too long", (long long)found.st_size,
                   (long long)r->left, (long long)expected);
}

mx_status mx_base_reader_open(const char *path, mx_base_reader **out, mx_error *error) {
    mx_base_reader *r = calloc(1, sizeof *r);
    if (!r) return mx_fail(error, MX_NO_MEMORY, "no memory for %s", path);
    mx_status status = MX_OK;
    r->path = strdup(path);
    r->hash = XXH3_createState();
    if (!r->path || !r->hash) status = mx_fail(error, MX_NO_MEMORY, "no memory for %s", path);
    if (!status) {
        XXH3_64bits_reset(r->hash);
        const int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* a named pipe is not waited for */
        r->file = fd >= 0 ? fdopen(fd, "rb") : NULL;
        if (!r->file && fd >= 0) close(fd);
        if (!r->file) status = mx_fail(error, MX_IO, "%s: cannot be opened: %s", path, strerror(errno));
    }
    if (!status) status = read_header(r, error);
    if (status) {
        mx_base_reader_close(r);
        return status;
    }
    *out = r;
    return MX_OK;
}

const mx_base_header *mx_base_reader_header(const mx_base_reader *r) {
    return &r->header;
}

mx_status mx_base_reader_next(mx_base_reader *r, uint8_t *records, int64_t count, mx_error *error) {
    const size_t bytes = (size_t)(count * r->record_bytes);
    if (count > r->left) return mx_fail(error, MX_INVALID_STATE, "%s: it has no more records", r->path);
    r->left -= count;
    if (!bytes) return MX_OK;
    if (fread(records, 1, bytes, r->file) != bytes) return cannot_read(r, error);
    XXH3_64bits_update(r->hash, records, bytes);
    return MX_OK;
}

mx_status mx_base_reader_finish(mx_base_reader *r, mx_error *error) {
    uint64_t hash;
    if (fread(&hash, sizeof hash, 1, r->file) != 1) return cannot_read(r, error);
    if (hash == XXH3_64bits_digest(r->hash)) return MX_OK;
    return mx_fail(
        error, MX_INVALID_FILE,
        "%s: damaged: its content does not have the hash that it was written with: make the distributions anew with "
        "--save-base",
        r->path);
}

void mx_base_reader_close(mx_base_reader *r) {
    if (!r) return;
    if (r->file) fclose(r->file);
    XXH3_freeState(r->hash);
    free(r->path);
    free(r);
}
