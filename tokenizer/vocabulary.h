#ifndef MX_VOCABULARY_H
#define MX_VOCABULARY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/gguf.h"
#include "base/status.h"

/* Everything that a tokenizer's file says, as one flat block of memory that is the same in RAM and in the cache file:
 * header, then the sections that mx_vocabulary_sections places one after another. */

enum { MX_TOKEN_ORDINARY = 0, MX_TOKEN_ADDED = 1, MX_TOKEN_SPECIAL = 2 };

#define MX_NO_ID UINT32_MAX

typedef struct mx_token_slot {
    uint64_t digest; /* mx_digest of the text: all of it, up to 8 bytes */
    uint32_t size;   /* bytes of the text */
    uint32_t id;     /* MX_NO_ID: empty */
} mx_token_slot;

typedef struct mx_merge_slot {
    uint32_t left, right; /* ids; left MX_NO_ID: empty */
    uint32_t rank;        /* lower merges first */
    uint32_t result;      /* id */
} mx_merge_slot;

typedef struct mx_vocabulary_header {
    char magic[8];
    uint32_t version;
    uint32_t header_size;
    uint64_t checksum; /* XXH3-64 of all that follows this field, to the end of the block */
    uint64_t size;     /* bytes of the block */
    uint64_t source_size, source_hash[2];
    uint32_t token_count; /* ids are 0 .. token_count-1 */
    uint32_t token_slots; /* a power of two */
    uint32_t merge_slots;
    uint32_t text_size;     /* bytes of all tokens together */
    uint32_t pattern_size;  /* bytes of the split pattern, as the file has it */
    uint32_t ignore_merges; /* a piece that is a token is not merged */
    uint32_t byte_id[256];  /* the token of each single byte */
} mx_vocabulary_header;

typedef struct mx_vocabulary {
    void *block; /* from mmap; owned */
    size_t size;
    const mx_vocabulary_header *header;
    const mx_merge_slot *merges; /* [merge_slots], open addressing */
    const mx_token_slot *tokens; /* [token_slots], open addressing; ordinary tokens only */
    const uint32_t *offset;      /* [token_count + 1]: token i is text[offset[i] .. offset[i+1]); empty: no token */
    const uint8_t *kind;         /* [token_count]: MX_TOKEN_... */
    const char *pattern;         /* [pattern_size] */
    const char *text;            /* [text_size] */
} mx_vocabulary;

/* Points the sections into `v->block` by the counts in its header; returns the bytes they need all together. With a
 * NULL block only the size is computed, from the counts in `header`. */
size_t mx_vocabulary_sections(mx_vocabulary *v, const mx_vocabulary_header *header);
void mx_vocabulary_release(mx_vocabulary *v);

/* Each reads one kind of file; `path` is for messages. (load.c, load_gguf.c, load_metal.c) */
mx_status mx_vocabulary_parse(const char *path, const char *json, size_t size, mx_vocabulary *out, mx_error *error);
mx_status mx_vocabulary_from_gguf(const mx_gguf *g, mx_vocabulary *out, mx_error *error);
mx_status mx_vocabulary_from_metal(const char *path, const uint8_t *data, size_t size, mx_vocabulary *out,
                                   mx_error *error);

/* Any of these files, told by its first bytes, through the cache where that is worth it. (open.c) */
mx_status mx_vocabulary_open(const char *path, mx_vocabulary *out, mx_error *error);

/* What a vocabulary was made from. */
typedef struct mx_content {
    uint64_t size, hash[2];
} mx_content;
mx_content mx_content_of(const void *data, size_t size);
mx_content mx_gguf_content(const mx_gguf *g); /* the tokenizer's keys alone */
/* The part of a model.bin that is the tokenizer; returns its bytes, 0 where it is none. */
size_t mx_metal_tokenizer(const uint8_t *data, size_t size, const uint8_t **out);

/* The cache of parsed files (cache.c). Loading says false when there is none that is whole; storing is best effort: no
 * cache is no error. */
bool mx_vocabulary_cache_load(const mx_content *content, mx_vocabulary *out);
void mx_vocabulary_cache_store(const mx_content *content, mx_vocabulary *v);

/* The first 8 bytes of a text, or all of a shorter one: equal sizes up to 8 and equal digests are equal texts. */
static inline uint64_t mx_digest(const char *text, size_t size) {
    if (size >= 8) return mx_load_u64(text);
    if (size >= 4) return (uint64_t)mx_load_u32(text + size - 4) << 32 | mx_load_u32(text);
    if (size == 0) return 0;
    const unsigned char *b = (const unsigned char *)text;
    return (uint64_t)b[0] | (uint64_t)b[size / 2] << 8 | (uint64_t)b[size - 1] << 16;
}

uint64_t mx_long_hash(const char *text, size_t size);

static inline uint64_t mx_token_hash(const char *text, size_t size) {
    if (size > 8) return mx_long_hash(text, size);
    uint64_t h = (mx_digest(text, size) ^ size << 56) * 0x9E3779B97F4A7C15u;
    h = (h ^ h >> 32) * 0xD6E8FEB86659FD93u;
    return h ^ h >> 32;
}

/* The ordinary token with exactly this text, or MX_NO_ID. */
static inline uint32_t mx_vocabulary_find(const mx_vocabulary *v, uint64_t hash, const char *text, size_t size) {
    uint64_t digest = mx_digest(text, size);
    uint32_t mask = v->header->token_slots - 1;
    for (uint32_t i = (uint32_t)hash & mask; v->tokens[i].id != MX_NO_ID; i = (i + 1) & mask) {
        const mx_token_slot *slot = &v->tokens[i];
        if (slot->digest == digest && slot->size == size &&
            (size <= 8 || memcmp(v->text + v->offset[slot->id] + 8, text + 8, size - 8) == 0))
            return slot->id;
    }
    return MX_NO_ID;
}

static inline uint32_t mx_merge_home(uint32_t left, uint32_t right, uint32_t slots) {
    uint64_t h = ((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15u;
    h = (h ^ h >> 32) * 0xD6E8FEB86659FD93u;
    return (uint32_t)((h >> 32) * slots >> 32);
}

/* The merge of two neighbours, or NULL. */
static inline const mx_merge_slot *mx_vocabulary_merge(const mx_vocabulary *v, uint32_t left, uint32_t right) {
    uint32_t slots = v->header->merge_slots;
    for (uint32_t i = mx_merge_home(left, right, slots); v->merges[i].left != MX_NO_ID; i = i + 1 == slots ? 0 : i + 1)
        if (v->merges[i].left == left && v->merges[i].right == right) return &v->merges[i];
    return NULL;
}

#endif
