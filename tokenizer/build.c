/* Makes a vocabulary's block of what a file said about tokens and merges. */
#include "tokenizer/source.h"

#include <limits.h>
#include <stdlib.h>
#include <sys/mman.h>

static const char o200k_pattern[] =
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|"
    "'d)?|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'"
    "m|"
    "'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

const char *mx_o200k_pattern(void) {
    return o200k_pattern;
}

/* ---- collecting -------------------------------------------------------------------------------------------------- */

void mx_byte_alphabet(int16_t byte_of[static MX_BYTE_ALPHABET]) {
    int next = 256;
    for (int c = 0; c < MX_BYTE_ALPHABET; c++) byte_of[c] = -1;
    for (int b = 0; b < 256; b++) {
        bool visible = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        byte_of[visible ? b : next++] = (int16_t)b;
    }
}

void mx_source_begin(mx_source *s, const char *path, const char *vocab_name, const char *merges_name, mx_error *error) {
    *s = (mx_source){.path = path, .vocab_name = vocab_name, .merges_name = merges_name, .error = error};
    mx_byte_alphabet(s->byte_of);
}

void mx_source_free(mx_source *s) {
    free(s->token);
    free(s->added);
    free(s->merge);
    mx_bytes_free(&s->text);
    mx_bytes_free(&s->pattern);
}

bool mx_source_add_mapped(mx_source *s, const char *text, size_t size) {
    const unsigned char *in = (const unsigned char *)text;
    char bytes[1024];
    size_t start = s->text.size, n = 0;
    for (size_t i = 0; i < size;) {
        unsigned c = in[i++];
        if (c >= 0x80) {
            if ((c & 0xE0) != 0xC0 || i == size) goto not_in_alphabet;
            c = (c & 0x1F) << 6 | (in[i++] & 0x3F);
        }
        if (c >= MX_BYTE_ALPHABET || s->byte_of[c] < 0) goto not_in_alphabet;
        bytes[n++] = (char)s->byte_of[c];
        if (n == sizeof bytes) {
            if (!mx_bytes_add(&s->text, bytes, n)) goto not_in_alphabet;
            n = 0;
        }
    }
    if (mx_bytes_add(&s->text, bytes, n)) return true;
not_in_alphabet:
    s->text.size = start;
    return false;
}

static bool grow(void **data, size_t *capacity, size_t count, size_t element) {
    if (count < *capacity) return true;
    size_t more = *capacity ? *capacity * 2 : 4096;
    void *moved = realloc(*data, more * element);
    if (!moved) return false;
    *data = moved;
    *capacity = more;
    return true;
}

static mx_status no_memory(const mx_source *s) {
    return mx_fail(s->error, MX_NO_MEMORY, "%s: no memory for the vocabulary", s->path);
}

mx_status mx_source_add_token(mx_source *s, uint32_t id, size_t offset, bool mapped) {
    if (!grow((void **)&s->token, &s->token_capacity, s->tokens, sizeof *s->token)) return no_memory(s);
    s->token[s->tokens++] = (mx_source_token){.id = id,
                                              .offset = (uint32_t)offset,
                                              .size = (uint32_t)(s->text.size - offset),
                                              .kind = MX_TOKEN_ORDINARY,
                                              .mapped = mapped};
    return MX_OK;
}

mx_status mx_source_add_special(mx_source *s, uint32_t id, const char *text, size_t size, int kind) {
    uint32_t offset = (uint32_t)s->text.size;
    if (!grow((void **)&s->added, &s->added_capacity, s->added_count, sizeof *s->added) ||
        !mx_bytes_add(&s->text, text, size))
        return no_memory(s);
    s->added[s->added_count++] =
        (mx_source_token){.id = id, .offset = offset, .size = (uint32_t)size, .kind = (uint8_t)kind, .mapped = true};
    return MX_OK;
}

mx_status mx_source_add_merge(mx_source *s, size_t offset, size_t left) {
    if (!grow((void **)&s->merge, &s->merge_capacity, s->merges, sizeof *s->merge)) return no_memory(s);
    s->merge[s->merges++] =
        (mx_source_merge){(uint32_t)offset, (uint32_t)left, (uint32_t)(s->text.size - offset - left)};
    return MX_OK;
}

/* ---- by id ------------------------------------------------------------------------------------------------------- */

/* What the ids in [0, count) are. */
typedef struct table {
    mx_source_token *of; /* [count]; size 0: no token */
    uint32_t count;
} table;

static bool is_harmony(const mx_source *s, const mx_source_token *t) {
    return t->id == MX_HARMONY_START && t->kind != MX_TOKEN_ORDINARY && t->size == 9 &&
           memcmp(s->text.data + t->offset, "<|start|>", 9) == 0;
}

static uint32_t count_ids(const mx_source *s, bool *harmony) {
    uint32_t count = 0;
    *harmony = false;
    for (size_t i = 0; i < s->tokens; i++)
        if (s->token[i].id >= count) count = s->token[i].id + 1;
    for (size_t i = 0; i < s->added_count; i++) {
        if (s->added[i].id >= count) count = s->added[i].id + 1;
        *harmony |= is_harmony(s, &s->added[i]);
    }
    return *harmony && count <= MX_RESERVED_LAST ? MX_RESERVED_LAST + 1 : count;
}

static int shown(const mx_source_token *t) {
    return (int)(t->size < 60 ? t->size : 60);
}

/* An added token may be in the vocabulary as well, with the same text. */
static mx_status place_added(const mx_source *s, const mx_source_token *t, table *out) {
    mx_source_token *e = &out->of[t->id];
    const char *text = s->text.data + t->offset;
    if (e->size &&
        (e->kind != MX_TOKEN_ORDINARY || e->size != t->size || memcmp(s->text.data + e->offset, text, e->size) != 0))
        return mx_fail(s->error, MX_INVALID_FILE, "%s: added token %.*s: id %u belongs to another token already",
                       s->path, shown(t), text, t->id);
    *e = *t;
    return MX_OK;
}

static mx_status place_reserved(mx_source *s, table *out) {
    for (uint32_t id = MX_RESERVED_FIRST; id <= MX_RESERVED_LAST; id++) {
        if (out->of[id].size) continue;
        size_t start = s->text.size;
        if (!mx_bytes_addf(&s->text, "<|reserved_%u|>", (unsigned)id)) return no_memory(s);
        out->of[id] = (mx_source_token){id, (uint32_t)start, (uint32_t)(s->text.size - start), MX_TOKEN_SPECIAL, true};
    }
    return MX_OK;
}

static mx_status tabulate(mx_source *s, table *out) {
    bool harmony;
    mx_status status = MX_OK;
    out->count = count_ids(s, &harmony);
    out->of = calloc(out->count ? out->count : 1, sizeof *out->of);
    if (!out->of) return mx_fail(s->error, MX_NO_MEMORY, "%s: no memory for %u tokens", s->path, out->count);
    for (size_t i = 0; i < s->tokens; i++) {
        mx_source_token *e = &out->of[s->token[i].id];
        if (e->size)
            return mx_fail(s->error, MX_INVALID_FILE, "%s: %s: two tokens have the id %u", s->path, s->vocab_name,
                           e->id);
        *e = s->token[i];
    }
    for (size_t i = 0; i < s->added_count && status == MX_OK; i++) status = place_added(s, &s->added[i], out);
    if (status == MX_OK && harmony) status = place_reserved(s, out);
    for (uint32_t id = 0; id < out->count && status == MX_OK; id++)
        if (out->of[id].size && !out->of[id].mapped)
            status = mx_fail(s->error, MX_UNSUPPORTED,
                             "%s: %s: token %u (\"%.*s\") is not written in the byte alphabet; only byte-level BPE is "
                             "supported",
                             s->path, s->vocab_name, id, shown(&out->of[id]), s->text.data + out->of[id].offset);
    return status;
}

/* ---- the block --------------------------------------------------------------------------------------------------- */

static uint32_t power_of_two(uint64_t atleast) {
    uint32_t n = 16;
    while (n < atleast) n *= 2;
    return n;
}

static mx_status create_block(mx_source *s, const table *t, mx_vocabulary *v) {
    uint64_t text_size = 0;
    for (uint32_t id = 0; id < t->count; id++) text_size += t->of[id].size;
    if (text_size > INT32_MAX || s->merges > INT32_MAX)
        return mx_fail(s->error, MX_UNSUPPORTED, "%s: the vocabulary is larger than 2 GB", s->path);
    mx_vocabulary_header header = {.header_size = sizeof header,
                                   .token_count = t->count,
                                   .token_slots = power_of_two(2 * (uint64_t)s->tokens),
                                   .merge_slots = (uint32_t)(s->merges * 8 / 5 + 16),
                                   .text_size = (uint32_t)text_size,
                                   .pattern_size = (uint32_t)s->pattern.size,
                                   .ignore_merges = s->ignore_merges};
    header.size = mx_vocabulary_sections(v, &header);
    void *block = mmap(NULL, header.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED)
        return mx_fail(s->error, MX_NO_MEMORY, "%s: no memory for a tokenizer of %zu bytes", s->path,
                       (size_t)header.size);
    v->block = block;
    v->size = header.size;
    memcpy(block, &header, sizeof header);
    mx_vocabulary_sections(v, &header);
    return MX_OK;
}

/* The block is ours to write until mx_vocabulary_parse returns. */
#define WRITABLE(type, pointer) ((type *)(uintptr_t)(pointer))

static mx_status fill_tokens(mx_source *s, const table *t, mx_vocabulary *v) {
    mx_vocabulary_header *header = v->block;
    uint32_t *offset = WRITABLE(uint32_t, v->offset), at = 0, mask = header->token_slots - 1;
    mx_token_slot *slots = WRITABLE(mx_token_slot, v->tokens);
    char *text = WRITABLE(char, v->text);
    if (s->pattern.size) memcpy(WRITABLE(char, v->pattern), s->pattern.data, s->pattern.size);
    memset(slots, 0xFF, header->token_slots * sizeof *slots);
    memset(header->byte_id, 0xFF, sizeof header->byte_id);
    for (uint32_t id = 0; id < t->count; id++) {
        enum { AHEAD = 16 }; /* the slots are spread over more memory than the caches hold */
        const mx_source_token *e = &t->of[id], *later = &t->of[id + AHEAD < t->count ? id + AHEAD : id];
        if (later->size)
            __builtin_prefetch(&slots[(uint32_t)mx_token_hash(s->text.data + later->offset, later->size) & mask], 1);
        offset[id] = at;
        if (e->size) memcpy(text + at, s->text.data + e->offset, e->size);
        at += e->size;
        WRITABLE(uint8_t, v->kind)[id] = e->kind;
        offset[id + 1] = at;
        if (!e->size || e->kind != MX_TOKEN_ORDINARY) continue;
        uint64_t hash = mx_token_hash(text + offset[id], e->size);
        if (mx_vocabulary_find(v, hash, text + offset[id], e->size) != MX_NO_ID)
            return mx_fail(s->error, MX_INVALID_FILE, "%s: %s: token %u is spelled like another one", s->path,
                           s->vocab_name, id);
        uint32_t i = (uint32_t)hash & mask;
        while (slots[i].id != MX_NO_ID) i = (i + 1) & mask;
        slots[i] = (mx_token_slot){mx_digest(text + offset[id], e->size), e->size, id};
        if (e->size == 1) header->byte_id[(unsigned char)text[offset[id]]] = id;
    }
    for (int b = 0; b < 256; b++)
        if (header->byte_id[b] == MX_NO_ID)
            return mx_fail(s->error, MX_INVALID_FILE,
                           "%s: %s: byte 0x%02X has no token; a byte-level vocabulary has all 256", s->path,
                           s->vocab_name, b);
    return MX_OK;
}

/* Whether token `id` is spelled `text`. */
static bool is_spelled(const mx_vocabulary *v, uint32_t id, const char *text, size_t size) {
    return id < v->header->token_count && v->kind[id] == MX_TOKEN_ORDINARY &&
           v->offset[id + 1] - v->offset[id] == size && memcmp(v->text + v->offset[id], text, size) == 0;
}

static uint32_t find(const mx_vocabulary *v, const char *text, size_t size) {
    return mx_vocabulary_find(v, mx_token_hash(text, size), text, size);
}

typedef struct resolved_merge {
    uint32_t left, right, result; /* ids */
} resolved_merge;

/* Finds the ids of merge m. `last` is the result of the merge before: most lists go through the results in the order
 * of their ids. */
static mx_status resolve_merge(mx_source *s, const mx_vocabulary *v, size_t m, uint32_t last, resolved_merge *out) {
    const char *text = s->text.data + s->merge[m].offset;
    size_t left_size = s->merge[m].left, size = left_size + s->merge[m].right;
    out->left = find(v, text, left_size);
    out->right = find(v, text + left_size, size - left_size);
    out->result = is_spelled(v, last, text, size)       ? last
                  : is_spelled(v, last + 1, text, size) ? last + 1
                                                        : find(v, text, size);
    const char *missing = out->left == MX_NO_ID     ? "the left side"
                          : out->right == MX_NO_ID  ? "the right side"
                          : out->result == MX_NO_ID ? "the result"
                                                    : NULL;
    if (!missing) return MX_OK;
    return mx_fail(s->error, MX_INVALID_FILE, "%s: %s[%zu]: %s is not in %s", s->path, s->merges_name, m, missing,
                   s->vocab_name);
}

/* A rank is the merge's place in the list. Merges in a row that make the same token share a rank: such lists come from
 * tiktoken's ranks, where only the result counts and the leftmost pair goes first.
 * Works in batches so that the slots, spread over more memory than the caches hold, can be fetched ahead. */
static mx_status fill_merges(mx_source *s, mx_vocabulary *v) {
    enum { BATCH = 32 };
    resolved_merge batch[BATCH];
    uint32_t count = v->header->merge_slots, mask = v->header->token_slots - 1, rank = 0, last = MX_NO_ID;
    mx_merge_slot *slots = WRITABLE(mx_merge_slot, v->merges);
    memset(slots, 0xFF, count * sizeof *slots);
    for (size_t begin = 0; begin < s->merges; begin += BATCH) {
        size_t n = s->merges - begin < BATCH ? s->merges - begin : BATCH;
        for (size_t k = 0; k < n; k++) {
            const mx_source_merge *m = &s->merge[begin + k];
            const char *text = s->text.data + m->offset;
            __builtin_prefetch(&v->tokens[(uint32_t)mx_token_hash(text, m->left) & mask]);
            __builtin_prefetch(&v->tokens[(uint32_t)mx_token_hash(text + m->left, m->right) & mask]);
        }
        for (size_t k = 0; k < n; k++) {
            mx_status status = resolve_merge(s, v, begin + k, k ? batch[k - 1].result : last, &batch[k]);
            if (status != MX_OK) return status;
            __builtin_prefetch(&slots[mx_merge_home(batch[k].left, batch[k].right, count)], 1);
        }
        for (size_t k = 0; k < n; k++) {
            if (mx_vocabulary_merge(v, batch[k].left, batch[k].right))
                return mx_fail(s->error, MX_INVALID_FILE, "%s: %s[%zu] repeats an earlier merge", s->path,
                               s->merges_name, begin + k);
            if (batch[k].result != last) rank = (uint32_t)(begin + k);
            last = batch[k].result;
            uint32_t i = mx_merge_home(batch[k].left, batch[k].right, count);
            while (slots[i].left != MX_NO_ID) i = i + 1 == count ? 0 : i + 1;
            slots[i] = (mx_merge_slot){batch[k].left, batch[k].right, rank, last};
        }
    }
    return MX_OK;
}

/* ---- ranks instead of merges ------------------------------------------------------------------------------------- */

/* tiktoken merges the neighbours that together are the token of lowest rank. As a list: of each token, in the order of
 * ranks, every way to make it of two others. */
static mx_status list_merges(mx_source *s, const mx_vocabulary *v, const table *t) {
    mx_status status = MX_OK;
    for (uint32_t id = 0; id < t->count && status == MX_OK; id++) {
        const mx_source_token *e = &t->of[id];
        const char *text = s->text.data + e->offset;
        for (uint32_t left = 1; left < e->size && e->kind == MX_TOKEN_ORDINARY && status == MX_OK; left++) {
            if (find(v, text, left) == MX_NO_ID || find(v, text + left, e->size - left) == MX_NO_ID) continue;
            if (!grow((void **)&s->merge, &s->merge_capacity, s->merges, sizeof *s->merge))
                status = no_memory(s);
            else
                s->merge[s->merges++] = (mx_source_merge){e->offset, left, e->size - left};
        }
    }
    return status;
}

static mx_status derive_merges(mx_source *s, const table *t) {
    mx_vocabulary v = {0};
    mx_status status = create_block(s, t, &v);
    if (status == MX_OK) status = fill_tokens(s, t, &v);
    if (status == MX_OK) status = list_merges(s, &v, t);
    mx_vocabulary_release(&v);
    return status;
}

mx_status mx_vocabulary_build(mx_source *s, mx_vocabulary *out) {
    *out = (mx_vocabulary){0};
    table t = {0};
    mx_status status = tabulate(s, &t);
    if (status == MX_OK && !s->merges_name) status = derive_merges(s, &t);
    if (status == MX_OK) status = create_block(s, &t, out);
    if (status == MX_OK) status = fill_tokens(s, &t, out);
    if (status == MX_OK) status = fill_merges(s, out);
    if (status != MX_OK) mx_vocabulary_release(out);
    free(t.of);
    return status;
}
