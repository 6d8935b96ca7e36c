#ifndef MX_TOKENIZER_H
#define MX_TOKENIZER_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"

/* Byte-level BPE, of a Hugging Face tokenizer.json, a GGUF model or OpenAI's model.bin (metal). Immutable once opened;
 * any number of threads may use one. */
typedef struct mx_tokenizer mx_tokenizer;

/* A growing list of token ids. All zeros is the empty list. */
typedef struct mx_ids {
    int32_t *data; /* owned */
    int64_t count, capacity;
} mx_ids;
bool mx_ids_add(mx_ids *ids, int32_t id); /* false when memory is out */
bool mx_ids_add_all(mx_ids *ids, const int32_t *more, int64_t count);
void mx_ids_free(mx_ids *ids);

/* `path` is such a file (of a GGUF model in several files the first), or a folder. Free with mx_tokenizer_close. */
mx_status mx_tokenizer_open(const char *path, mx_tokenizer **out, mx_error *error);
void mx_tokenizer_close(mx_tokenizer *t); /* NULL allowed */

/* The file that mx_tokenizer_open reads: `path` itself, or in a folder the first that is there of tokenizer.json, the
 * one .gguf model (several: MX_INVALID_ARGUMENT), model.bin, metal/model.bin, the tokenizer.json of the folder above
 * (for original/), original/tokenizer.json. MX_IO, naming tokenizer.json: there is none. */
mx_status mx_tokenizer_find(const char *path, char *out, size_t size, mx_error *error);

/* The regular expression that GPT-4o's encoding o200k_base splits a text by, and with it gpt-oss. */
const char *mx_o200k_pattern(void);

/* GPT-2's byte alphabet, in which tokens are written in files: visible Latin-1 characters are their own byte, the 68
 * others follow from U+0100 on. byte_of[c]: the byte that character c stands for, or -1. */
enum { MX_BYTE_ALPHABET = 324 };
void mx_byte_alphabet(int16_t byte_of[static MX_BYTE_ALPHABET]);

/* A hash of all that it does: tokens, merges, kinds, split pattern. */
uint64_t mx_tokenizer_hash(const mx_tokenizer *t);
/* The same but for ignore_merges, whether a piece of text that is a token is merged all the same: a GGUF has no word
 * for it, so that the copy of a model in one may differ in that alone. Distributions of two models over one vocabulary
 * compare; that their texts have the same tokens is to be seen by the tokens. */
uint64_t mx_tokenizer_vocabulary_hash(const mx_tokenizer *t);

/* One more than the highest id that decodes. */
int32_t mx_tokenizer_size(const mx_tokenizer *t);

/* Text as ordinary tokens: special strings in it are plain text (tiktoken's encode_ordinary). Invalid UTF-8 becomes
 * U+FFFD by the WHATWG rule first. Appends to `out`. */
mx_status mx_encode(const mx_tokenizer *t, const void *text, size_t size, mx_ids *out, mx_error *error);

/* The same, until `most` tokens or a few more were appended, which costs no more than they do; MX_CANCELLED soon after
 * *stop is not 0 (NULL: never). Those that come are the first that mx_encode would give. */
mx_status mx_encode_some(const mx_tokenizer *t, const void *text, size_t size, int64_t most,
                         const volatile sig_atomic_t *stop, mx_ids *out, mx_error *error);

/* As mx_encode, but special tokens spelled out in the text become their ids. */
mx_status mx_encode_special(const mx_tokenizer *t, const void *text, size_t size, mx_ids *out, mx_error *error);

/* The id of a special token's exact text such as "<|start|>", or -1. */
int32_t mx_special_id(const mx_tokenizer *t, const char *text);
bool mx_is_special(const mx_tokenizer *t, int32_t id);

/* The bytes of one token (not necessarily whole UTF-8 characters; for specials their name). Valid as long as the
 * tokenizer; NULL with *size 0 for an id that has none. */
const char *mx_token_bytes(const mx_tokenizer *t, int32_t id, size_t *size);

/* Is there such a token? Of gpt-oss some thousand ids have a name, <|reserved_200019|> and on, and no token. */
bool mx_is_token(const mx_tokenizer *t, int32_t id);

/* The format tokens of harmony; -1 where the vocabulary lacks one. */
typedef struct mx_harmony_ids {
    int32_t startoftext, endoftext, return_, constrain, channel, start, end, message, call;
} mx_harmony_ids;
mx_harmony_ids mx_tokenizer_harmony_ids(const mx_tokenizer *t);

/* Streaming decode: whole UTF-8 characters as soon as they are complete. All zeros is the start. */
typedef struct mx_utf8_stream {
    char pending[4]; /* the beginning of a character */
    int count;
} mx_utf8_stream;
/* Appends what can be shown after `size` more bytes; invalid bytes become U+FFFD. */
bool mx_utf8_stream_add(mx_utf8_stream *s, const char *data, size_t size, mx_bytes *out);
/* At the end of the text: what is still pending becomes one U+FFFD. */
bool mx_utf8_stream_end(mx_utf8_stream *s, mx_bytes *out);

#endif
