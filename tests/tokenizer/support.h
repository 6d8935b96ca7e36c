#ifndef TESTS_TOKENIZER_SUPPORT_H
#define TESTS_TOKENIZER_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/json.h"
#include "tokenizer/tokenizer.h"

/* A path in the checkout or in ../shared, valid until the next call. The latter is NULL, with a printed line, where
 * that material is not at hand. */
const char *source_path(const char *relative);
const char *shared_path(const char *relative);

mx_tokenizer *open_or_fail(const char *path);

/* Calls `use` with every line of a JSONL file; returns the number of lines. */
int for_each_line(const char *path, void (*use)(void *user, const mx_json *line), void *user);

/* A folder of this process's own in the temporary directory, made on the first call and removed at exit. */
const char *scratch_folder(void);
/* Writes a file there and returns its path, valid until the next call. */
const char *scratch_file(const char *name, const void *data, size_t size);

/* A small valid tokenizer.json: 256 bytes (ids 0..255 by value), ab 256, abc 257, " a" 258, "xyz" 259 without merges,
 * added <|start|> 300, <|end|> 301, <|end|>> 302 and, not special, <tool> 303. Ids 260..299 do not exist. */
void small_tokenizer(mx_bytes *out);
/* Replaces the first `from` in `text`, which must be there. */
void replace(mx_bytes *text, const char *from, const char *to);

/* xorshift */
uint32_t random_bits(uint64_t *state);
uint32_t random_below(uint64_t *state, uint32_t n);

/* Encodes and compares; prints both lists and fails when they differ. */
void check_ids(const mx_tokenizer *t, const void *text, size_t size, bool special, const int32_t *expected,
               int64_t count);
void decode(const mx_tokenizer *t, const mx_ids *ids, mx_bytes *out);

#endif
