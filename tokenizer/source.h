#ifndef MX_TOKENIZER_SOURCE_H
#define MX_TOKENIZER_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"
#include "tokenizer/tokenizer.h" /* the split pattern */
#include "tokenizer/vocabulary.h"

/* Private to tokenizer/: what a file says about its tokens, before mx_vocabulary_build makes the block of it. The
 * readers (load.c, load_gguf.c, load_metal.c) fill it. */

enum { MX_HIGHEST_ID = (1 << 24) - 1 };

/* gpt-oss: where <|start|> has this id, the ids in this range that nothing else names are <|reserved_ID|>. The last
 * one is not in the model's embedding, but harmony decodes it. */
enum { MX_HARMONY_START = 200006, MX_RESERVED_FIRST = 200019, MX_RESERVED_LAST = 201088 };

typedef struct mx_source_token {
    uint32_t id, offset, size; /* text[offset .. offset + size) */
    uint8_t kind;              /* MX_TOKEN_... */
    bool mapped;               /* text is bytes; else it is the source text, which is not in the byte alphabet */
} mx_source_token;

typedef struct mx_source_merge {
    uint32_t offset, left, right; /* both sides one behind the other in text */
} mx_source_merge;

typedef struct mx_source {
    const char *path;               /* for messages */
    const char *vocab_name;         /* what the file calls its parts: "model.vocab" ... */
    const char *merges_name;        /* NULL: it has none, a token's id is its rank (tiktoken) */
    mx_error *error;                /* where the functions below report */
    mx_source_token *token, *added; /* ordinary ones; those that mx_encode_special finds in the text */
    size_t tokens, token_capacity;  /* lists are owned, grown by the functions below */
    size_t added_count, added_capacity;
    mx_source_merge *merge;
    size_t merges, merge_capacity;
    mx_bytes text;    /* of all tokens and merges */
    mx_bytes pattern; /* that splits a text into pieces */
    bool ignore_merges;
    int16_t byte_of[MX_BYTE_ALPHABET];
} mx_source;

void mx_source_begin(mx_source *s, const char *path, const char *vocab_name, const char *merges_name, mx_error *error);
void mx_source_free(mx_source *s);

/* Appends the bytes that `text` spells in the byte alphabet (mx_byte_alphabet); false with nothing appended when a
 * character is not in it, or no memory. */
bool mx_source_add_mapped(mx_source *s, const char *text, size_t size);
/* A token whose text is what was appended since `offset`. Each is MX_NO_MEMORY or MX_OK. */
mx_status mx_source_add_token(mx_source *s, uint32_t id, size_t offset, bool mapped);
mx_status mx_source_add_special(mx_source *s, uint32_t id, const char *text, size_t size, int kind);
/* A merge whose sides are what was appended since `offset`, the first `left` bytes and the others. */
mx_status mx_source_add_merge(mx_source *s, size_t offset, size_t left);

/* Checks everything and makes the block: ids and texts each once, all 256 bytes, every merge of tokens. */
mx_status mx_vocabulary_build(mx_source *s, mx_vocabulary *out);

#endif
