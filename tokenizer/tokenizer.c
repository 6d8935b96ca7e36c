#include "tokenizer/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "tokenizer/bpe.h"
#include "tokenizer/source.h"
#include "tokenizer/split.h"
#include "tokenizer/vocabulary.h"

typedef struct special_table {
    uint32_t *slot; /* [mask + 1] ids by hash, MX_NO_ID: empty */
    uint32_t mask;
    bool first[256];  /* bytes that some added token begins with */
    uint32_t *length; /* [length_count] the different lengths, longest first */
    uint32_t length_count;
} special_table;

struct mx_tokenizer {
    mx_vocabulary vocabulary;
    mx_splitter *splitter;
    special_table special;
    mx_harmony_ids harmony;
};

/* ---- ids --------------------------------------------------------------------------------------------------------- */

static bool ids_reserve(mx_ids *ids, int64_t more) {
    if (ids->capacity - ids->count >= more) return true;
    if (more > INT64_MAX / 8 - ids->count) return false;
    int64_t capacity = ids->capacity ? ids->capacity : 16;
    while (capacity < ids->count + more) capacity *= 2;
    int32_t *data = realloc(ids->data, (size_t)capacity * sizeof *data);
    if (!data) return false;
    ids->data = data;
    ids->capacity = capacity;
    return true;
}

bool mx_ids_add(mx_ids *ids, int32_t id) {
    if (ids->count == ids->capacity && !ids_reserve(ids, 1)) return false;
    ids->data[ids->count++] = id;
    return true;
}

bool mx_ids_add_all(mx_ids *ids, const int32_t *more, int64_t count) {
    if (count <= 0) return count == 0;
    if (!ids_reserve(ids, count)) return false;
    memcpy(ids->data + ids->count, more, (size_t)count * sizeof *more);
    ids->count += count;
    return true;
}

void mx_ids_free(mx_ids *ids) {
    free(ids->data);
    *ids = (mx_ids){0};
}

/* ---- added tokens ------------------------------------------------------------------------------------------------ */

static uint32_t special_find(const mx_tokenizer *t, const char *text, size_t size) {
    const mx_vocabulary *v = &t->vocabulary;
    const special_table *s = &t->special;
    for (uint32_t i = (uint32_t)mx_token_hash(text, size) & s->mask; s->slot[i] != MX_NO_ID; i = (i + 1) & s->mask) {
        uint32_t begin = v->offset[s->slot[i]];
        if (v->offset[s->slot[i] + 1] - begin == size && memcmp(v->text + begin, text, size) == 0) return s->slot[i];
    }
    return MX_NO_ID;
}

static int longest_first(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x < y) - (x > y);
}

static mx_status special_create(mx_tokenizer *t, mx_error *error) {
    const mx_vocabulary *v = &t->vocabulary;
    special_table *s = &t->special;
    uint32_t count = 0, slots = 16, lengths = 0;
    for (uint32_t id = 0; id < v->header->token_count; id++) count += v->kind[id] != MX_TOKEN_ORDINARY;
    while (slots < 2 * (uint64_t)count) slots *= 2;
    s->mask = slots - 1;
    s->slot = malloc(slots * sizeof *s->slot);
    s->length = malloc((count + 1) * sizeof *s->length);
    if (!s->slot || !s->length) return mx_fail(error, MX_NO_MEMORY, "no memory for %u added tokens", count);
    memset(s->slot, 0xFF, slots * sizeof *s->slot);
    for (uint32_t id = 0; id < v->header->token_count; id++) {
        if (v->kind[id] == MX_TOKEN_ORDINARY) continue;
        const char *text = v->text + v->offset[id];
        uint32_t size = v->offset[id + 1] - v->offset[id];
        uint32_t twin = special_find(t, text, size);
        if (twin != MX_NO_ID)
            return mx_fail(error, MX_INVALID_FILE, "added token %.*s is both %u and %u", (int)(size < 100 ? size : 100),
                           text, twin, id);
        uint32_t i = (uint32_t)mx_token_hash(text, size) & s->mask;
        while (s->slot[i] != MX_NO_ID) i = (i + 1) & s->mask;
        s->slot[i] = id;
        s->first[(unsigned char)text[0]] = true;
        s->length[lengths++] = size;
    }
    if (lengths) qsort(s->length, lengths, sizeof *s->length, longest_first);
    for (uint32_t i = 0; i < lengths; i++)
        if (i == 0 || s->length[i] != s->length[i - 1]) s->length[s->length_count++] = s->length[i];
    return MX_OK;
}

/* The longest added token at the start of text, or MX_NO_ID. */
static uint32_t special_at(const mx_tokenizer *t, const char *text, size_t size, size_t *length) {
    for (uint32_t i = 0; i < t->special.length_count; i++) {
        if (t->special.length[i] > size) continue;
        uint32_t id = special_find(t, text, t->special.length[i]);
        *length = t->special.length[i];
        if (id != MX_NO_ID) return id;
    }
    return MX_NO_ID;
}

/* ---- open -------------------------------------------------------------------------------------------------------- */

static mx_harmony_ids find_harmony_ids(const mx_tokenizer *t) {
    return (mx_harmony_ids){.startoftext = mx_special_id(t, "<|startoftext|>"),
                            .endoftext = mx_special_id(t, "<|endoftext|>"),
                            .return_ = mx_special_id(t, "<|return|>"),
                            .constrain = mx_special_id(t, "<|constrain|>"),
                            .channel = mx_special_id(t, "<|channel|>"),
                            .start = mx_special_id(t, "<|start|>"),
                            .end = mx_special_id(t, "<|end|>"),
                            .message = mx_special_id(t, "<|message|>"),
                            .call = mx_special_id(t, "<|call|>")};
}

mx_status mx_tokenizer_open(const char *path, mx_tokenizer **out, mx_error *error) {
    *out = NULL;
    char file[4096];
    mx_status status = mx_tokenizer_find(path, file, sizeof file, error);
    if (status != MX_OK) return status;
    mx_tokenizer *t = calloc(1, sizeof *t);
    if (!t) return mx_fail(error, MX_NO_MEMORY, "%s: no memory", file);
    status = mx_vocabulary_open(file, &t->vocabulary, error);
    if (status == MX_OK) {
        const mx_vocabulary *v = &t->vocabulary;
        status = special_create(t, error);
        if (status == MX_OK) status = mx_splitter_create(v->pattern, v->header->pattern_size, &t->splitter, error);
        if (status != MX_OK) mx_fail_within(error, status, "%s", file);
    }
    if (status != MX_OK) {
        mx_tokenizer_close(t);
        return status;
    }
    t->harmony = find_harmony_ids(t);
    *out = t;
    return MX_OK;
}

static uint64_t hash(const mx_vocabulary *v, uint64_t seed) {
    const char *begin = (const char *)v->merges; /* behind the header, which says where it came from */
    return XXH3_64bits_withSeed(begin, (size_t)((const char *)v->block + v->size - begin), seed);
}

uint64_t mx_tokenizer_hash(const mx_tokenizer *t) {
    return hash(&t->vocabulary, t->vocabulary.header->ignore_merges);
}

uint64_t mx_tokenizer_vocabulary_hash(const mx_tokenizer *t) {
    return hash(&t->vocabulary, 0);
}

void mx_tokenizer_close(mx_tokenizer *t) {
    if (!t) return;
    mx_splitter_free(t->splitter);
    mx_vocabulary_release(&t->vocabulary);
    free(t->special.slot);
    free(t->special.length);
    free(t);
}

/* ---- encode ------------------------------------------------------------------------------------------------------ */

/* Pieces merged earlier in this call, by hash: their ids stand in `out`. */
typedef struct recent_piece {
    const char *piece;
    int64_t first; /* out->data[first .. first + count) */
    uint32_t hash; /* the high half */
    uint16_t size, count;
} recent_piece;

enum { RECENT_PIECE = 128 /* longest piece kept */, RECENT_FROM = 1 << 12, RECENT_MOST = 1 << 16 };

typedef struct encoder {
    const mx_tokenizer *t;
    mx_split_state split;
    mx_bpe_scratch scratch;
    recent_piece *recent; /* [recent_mask + 1] or NULL */
    size_t recent_mask;
    mx_ids *out;
    int64_t most; /* of `out`: then it is enough */
    const volatile sig_atomic_t *stop;
} encoder;

static mx_status encode_piece(encoder *e, const char *piece, size_t size, mx_error *error) {
    const mx_vocabulary *v = &e->t->vocabulary;
    uint64_t hash = mx_token_hash(piece, size);
    if (v->header->ignore_merges || size == 1) {
        uint32_t id = mx_vocabulary_find(v, hash, piece, size);
        if (id != MX_NO_ID)
            return mx_ids_add(e->out, (int32_t)id) ? MX_OK : mx_fail(error, MX_NO_MEMORY, "no memory for more tokens");
    }
    recent_piece *r = e->recent && size <= RECENT_PIECE ? &e->recent[hash & e->recent_mask] : NULL;
    if (r && r->hash == hash >> 32 && r->size == size && memcmp(r->piece, piece, size) == 0) {
        /* room first: the source lies in the same list */
        if (!ids_reserve(e->out, r->count)) return mx_fail(error, MX_NO_MEMORY, "no memory for more tokens");
        memcpy(e->out->data + e->out->count, e->out->data + r->first, (size_t)r->count * sizeof *e->out->data);
        e->out->count += r->count;
        return MX_OK;
    }
    int64_t first = e->out->count;
    mx_status status = mx_bpe(v, piece, size, &e->scratch, e->out, error);
    if (r && status == MX_OK)
        *r = (recent_piece){piece, first, (uint32_t)(hash >> 32), (uint16_t)size, (uint16_t)(e->out->count - first)};
    return status;
}

static mx_status encode_plain(encoder *e, const char *text, size_t size, mx_error *error) {
    const char *piece;
    size_t length;
    mx_split_begin(&e->split, text, size);
    while (e->out->count < e->most) {
        if (e->stop && *e->stop) return mx_fail(error, MX_CANCELLED, "interrupted");
        mx_status status = mx_split_next(&e->split, &piece, &length, error);
        if (status != MX_OK || length == 0) return status;
        status = encode_piece(e, piece, length, error);
        if (status != MX_OK) return status;
    }
    return MX_OK;
}

static mx_status encode_mixed(encoder *e, const char *text, size_t size, mx_error *error) {
    size_t begin = 0, length;
    for (size_t i = 0; i < size;) {
        uint32_t id =
            e->t->special.first[(unsigned char)text[i]] ? special_at(e->t, text + i, size - i, &length) : MX_NO_ID;
        if (id == MX_NO_ID) {
            i++;
            continue;
        }
        mx_status status = encode_plain(e, text + begin, i - begin, error);
        if (status != MX_OK) return status;
        if (!mx_ids_add(e->out, (int32_t)id)) return mx_fail(error, MX_NO_MEMORY, "no memory for more tokens");
        begin = i += length;
    }
    return encode_plain(e, text + begin, size - begin, error);
}

/* Long texts repeat themselves. Without memory for it the work is slower, not wrong. */
static void create_recent(encoder *e, size_t text_size) {
    size_t count = 256;
    if (text_size < RECENT_FROM) return;
    while (count < RECENT_MOST && count < text_size / 16) count *= 2;
    e->recent = calloc(count, sizeof *e->recent);
    e->recent_mask = count - 1;
}

static mx_status encode(const mx_tokenizer *t, const void *text, size_t size, bool special, int64_t most,
                        const volatile sig_atomic_t *stop, mx_ids *out, mx_error *error) {
    if (size == 0) return MX_OK;
    encoder e = {
        .t = t, .out = out, .most = most < INT64_MAX - out->count ? out->count + most : INT64_MAX, .stop = stop};
    mx_bytes repaired = {0};
    int64_t before = out->count;
    mx_status status = mx_split_open(&e.split, t->splitter, error);
    if (status == MX_OK && !mx_is_utf8(text, size)) {
        if (mx_bytes_add_lossy(&repaired, text, size)) {
            text = repaired.data;
            size = repaired.size;
        } else {
            status = mx_fail(error, MX_NO_MEMORY, "no memory for %zu bytes of text", size);
        }
    }
    if (status == MX_OK) {
        create_recent(&e, size);
        status = (special ? encode_mixed : encode_plain)(&e, text, size, error);
    }
    if (status != MX_OK) out->count = before;
    free(e.recent);
    mx_bytes_free(&repaired);
    mx_bpe_scratch_free(&e.scratch);
    mx_split_close(&e.split);
    return status;
}

mx_status mx_encode(const mx_tokenizer *t, const void *text, size_t size, mx_ids *out, mx_error *error) {
    return encode(t, text, size, false, INT64_MAX, NULL, out, error);
}

mx_status mx_encode_some(const mx_tokenizer *t, const void *text, size_t size, int64_t most,
                         const volatile sig_atomic_t *stop, mx_ids *out, mx_error *error) {
    return encode(t, text, size, false, most, stop, out, error);
}

mx_status mx_encode_special(const mx_tokenizer *t, const void *text, size_t size, mx_ids *out, mx_error *error) {
    return encode(t, text, size, true, INT64_MAX, NULL, out, error);
}

/* ---- look-ups ---------------------------------------------------------------------------------------------------- */

int32_t mx_tokenizer_size(const mx_tokenizer *t) {
    return (int32_t)t->vocabulary.header->token_count;
}

int32_t mx_special_id(const mx_tokenizer *t, const char *text) {
    uint32_t id = special_find(t, text, strlen(text));
    return id == MX_NO_ID ? -1 : (int32_t)id;
}

bool mx_is_special(const mx_tokenizer *t, int32_t id) {
    return id >= 0 && id < mx_tokenizer_size(t) && t->vocabulary.kind[id] == MX_TOKEN_SPECIAL;
}

const char *mx_token_bytes(const mx_tokenizer *t, int32_t id, size_t *size) {
    const mx_vocabulary *v = &t->vocabulary;
    *size = id >= 0 && id < mx_tokenizer_size(t) ? v->offset[id + 1] - v->offset[id] : 0;
    return *size ? v->text + v->offset[id] : NULL;
}

bool mx_is_token(const mx_tokenizer *t, int32_t id) {
    size_t size;
    char reserved[32];
    const char *bytes = mx_token_bytes(t, id, &size);
    if (!bytes || id < MX_RESERVED_FIRST || !mx_is_special(t, id)) return bytes != NULL;
    const size_t length = (size_t)snprintf(reserved, sizeof reserved, "<|reserved_%d|>", (int)id);
    return size != length || memcmp(bytes, reserved, length) != 0;
}

mx_harmony_ids mx_tokenizer_harmony_ids(const mx_tokenizer *t) {
    return t->harmony;
}
