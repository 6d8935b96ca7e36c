#include "tokenizer/vocabulary.h"

#include <sys/mman.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

static size_t place(size_t *at, size_t count, size_t element) {
    size_t start = (*at + 63) & ~(size_t)63;
    *at = start + count * element;
    return start;
}

size_t mx_vocabulary_sections(mx_vocabulary *v, const mx_vocabulary_header *header) {
    size_t at = sizeof *header;
    size_t merges = place(&at, header->merge_slots, sizeof *v->merges);
    size_t tokens = place(&at, header->token_slots, sizeof *v->tokens);
    size_t offset = place(&at, (size_t)header->token_count + 1, sizeof *v->offset);
    size_t kind = place(&at, header->token_count, 1);
    size_t pattern = place(&at, header->pattern_size, 1);
    size_t text = place(&at, header->text_size, 1);
    if (v->block) {
        const char *base = v->block;
        v->header = (const void *)base;
        v->merges = (const void *)(base + merges);
        v->tokens = (const void *)(base + tokens);
        v->offset = (const void *)(base + offset);
        v->kind = (const void *)(base + kind);
        v->pattern = base + pattern;
        v->text = base + text;
    }
    return at;
}

void mx_vocabulary_release(mx_vocabulary *v) {
    if (v->block) munmap(v->block, v->size);
    *v = (mx_vocabulary){0};
}

uint64_t mx_long_hash(const char *text, size_t size) {
    return XXH3_64bits(text, size);
}
