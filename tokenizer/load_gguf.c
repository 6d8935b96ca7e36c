/* The tokenizer in the keys of a GGUF file, as llama.cpp's converter writes it: tokens and merges in the byte alphabet,
 * a type for each token. The keys name the split pattern only; it is o200k's exact one here. */
#include <inttypes.h>

#include "tokenizer/source.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#define TOKENS "tokenizer.ggml.tokens"
#define TYPES  "tokenizer.ggml.token_type"
#define MERGES "tokenizer.ggml.merges"
#define MODEL  "tokenizer.ggml.model"
#define PRE    "tokenizer.ggml.pre"

/* llama.cpp's numbers. A token that is unused is there to fill the embedding's rows. */
enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER_DEFINED = 4, UNUSED = 5, BYTE = 6 };

typedef struct reader {
    const mx_gguf *g;
    const mx_gguf_value *tokens, *types, *merges;
    mx_source source;
    mx_error *error;
} reader;

static mx_status lacks(const reader *r, const char *key) {
    return mx_fail(r->error, MX_INVALID_FILE, "%s: lacks the key %s; --tokenizer takes a tokenizer.json",
                   r->g->file.path, key);
}

static mx_status need_array(const reader *r, const char *key, mx_gguf_kind kind, const char *name,
                            const mx_gguf_value **out) {
    *out = mx_gguf_find(r->g, key);
    if (!*out) return lacks(r, key);
    if ((*out)->kind == MX_GGUF_ARRAY && (*out)->as.array.kind == kind) return MX_OK;
    return mx_fail(r->error, MX_INVALID_FILE, "%s: key %s: expected an array of %s", r->g->file.path, key, name);
}

/* For messages: the string that a key holds. */
static mx_gguf_string word_of(const mx_gguf *g, const char *key) {
    const mx_gguf_value *v = mx_gguf_find(g, key);
    mx_gguf_string s = v && v->kind == MX_GGUF_STRING ? v->as.string : (mx_gguf_string){"no string", 9};
    if (s.size > 60) s.size = 60;
    for (uint64_t i = 0; i < s.size; i++)
        if ((unsigned char)s.text[i] < 0x20 || s.text[i] == 0x7F) s.size = i;
    return s;
}

static mx_status check_kind(const reader *r) {
    static const char *const splits[] = {"gpt-4o", "gpt-oss", "o200k"};
    if (!mx_gguf_find(r->g, MODEL) && !mx_gguf_find(r->g, TOKENS))
        return mx_fail(r->error, MX_IO,
                       "%s: holds no vocabulary: give the first file if it is one of several; --tokenizer takes a "
                       "tokenizer.json",
                       r->g->file.path);
    if (!mx_gguf_find(r->g, MODEL)) return lacks(r, MODEL);
    if (!mx_gguf_is_string(mx_gguf_find(r->g, MODEL), "gpt2")) {
        mx_gguf_string s = word_of(r->g, MODEL);
        return mx_fail(r->error, MX_UNSUPPORTED,
                       "%s: key " MODEL ": %.*s, expected gpt2; only byte-level BPE is supported, --tokenizer takes "
                       "another one",
                       r->g->file.path, (int)s.size, s.text);
    }
    for (size_t i = 0; i < sizeof splits / sizeof *splits; i++)
        if (mx_gguf_is_string(mx_gguf_find(r->g, PRE), splits[i])) return MX_OK;
    mx_gguf_string s = word_of(r->g, PRE);
    return mx_fail(r->error, MX_UNSUPPORTED,
                   "%s: key " PRE ": %.*s, expected gpt-4o; how this tokenizer splits a text is not known, --tokenizer "
                   "takes another one",
                   r->g->file.path, (int)s.size, s.text);
}

static mx_status check_arrays(reader *r) {
    mx_status status = need_array(r, TOKENS, MX_GGUF_STRING, "strings", &r->tokens);
    if (status == MX_OK) status = need_array(r, TYPES, MX_GGUF_I32, "int32", &r->types);
    if (status == MX_OK) status = need_array(r, MERGES, MX_GGUF_STRING, "strings", &r->merges);
    if (status != MX_OK) return status;
    if (r->tokens->as.array.count != r->types->as.array.count)
        return mx_fail(r->error, MX_INVALID_FILE,
                       "%s: %" PRIu64 " " TOKENS " and %" PRIu64 " " TYPES ", expected one each", r->g->file.path,
                       r->tokens->as.array.count, r->types->as.array.count);
    if (r->tokens->as.array.count > MX_HIGHEST_ID + 1 || r->tokens->as.array.bytes > INT32_MAX / 2 ||
        r->merges->as.array.bytes > INT32_MAX / 2)
        return mx_fail(r->error, MX_UNSUPPORTED, "%s: " TOKENS " and " MERGES " have more than %d tokens or 1 GB",
                       r->g->file.path, MX_HIGHEST_ID + 1);
    return MX_OK;
}

static mx_status add_normal(reader *r, uint32_t id, mx_gguf_string s) {
    mx_source *to = &r->source;
    size_t offset = to->text.size;
    bool mapped = mx_source_add_mapped(to, s.text, s.size);
    if (!mapped && !mx_bytes_add(&to->text, s.text, s.size))
        return mx_fail(r->error, MX_NO_MEMORY, "%s: no memory for the vocabulary", r->g->file.path);
    return mx_source_add_token(to, id, offset, mapped);
}

static mx_status add_tokens(reader *r) {
    mx_status status = MX_OK;
    mx_gguf_string s;
    uint64_t at = 0;
    for (uint32_t id = 0; status == MX_OK && mx_gguf_next_string(r->tokens, &at, &s); id++) {
        int32_t type = (int32_t)mx_load_u32(r->types->as.array.data + 4 * (size_t)id);
        if (type < NORMAL || type >= BYTE)
            return mx_fail(r->error, MX_UNSUPPORTED, "%s: " TYPES "[%" PRIu32 "] is %" PRId32 ", expected 1 to 5",
                           r->g->file.path, id, type);
        if (type == UNUSED) continue;
        if (!s.size)
            return mx_fail(r->error, MX_INVALID_FILE, "%s: " TOKENS "[%" PRIu32 "] is the empty string",
                           r->g->file.path, id);
        status = type == NORMAL ? add_normal(r, id, s)
                                : mx_source_add_special(&r->source, id, s.text, s.size,
                                                        type == USER_DEFINED ? MX_TOKEN_ADDED : MX_TOKEN_SPECIAL);
    }
    return status;
}

static mx_status add_merges(reader *r) {
    mx_status status = MX_OK;
    mx_gguf_string s;
    mx_source *to = &r->source;
    uint64_t at = 0;
    for (uint64_t i = 0; status == MX_OK && mx_gguf_next_string(r->merges, &at, &s); i++) {
        const char *space = s.size ? memchr(s.text, ' ', s.size) : NULL;
        size_t offset = to->text.size, left = space ? (size_t)(space - s.text) : 0, right = s.size - left;
        bool ok = left > 0 && right > 1 && mx_source_add_mapped(to, s.text, left);
        size_t middle = to->text.size;
        if (!ok || !mx_source_add_mapped(to, space + 1, right - 1))
            return mx_fail(r->error, MX_INVALID_FILE,
                           "%s: " MERGES "[%" PRIu64 "]: expected two sides in the byte alphabet with a space between",
                           r->g->file.path, i);
        status = mx_source_add_merge(to, offset, middle - offset);
    }
    return status;
}

mx_status mx_vocabulary_from_gguf(const mx_gguf *g, mx_vocabulary *out, mx_error *error) {
    *out = (mx_vocabulary){0};
    reader r = {.g = g, .error = error};
    mx_source_begin(&r.source, g->file.path, TOKENS, MERGES, error);
    r.source.ignore_merges = true; /* tiktoken's way; the keys have no word for it */
    mx_status status = check_kind(&r);
    if (status == MX_OK) status = check_arrays(&r);
    if (status == MX_OK) status = add_tokens(&r);
    if (status == MX_OK) status = add_merges(&r);
    if (status == MX_OK && !mx_bytes_add_string(&r.source.pattern, mx_o200k_pattern()))
        status = mx_fail(error, MX_NO_MEMORY, "%s: no memory for the split pattern", g->file.path);
    if (status == MX_OK) status = mx_vocabulary_build(&r.source, out);
    mx_source_free(&r.source);
    return status;
}

mx_content mx_gguf_content(const mx_gguf *g) {
    static const char *const keys[] = {MODEL, PRE, TOKENS, TYPES, MERGES};
    XXH3_state_t state;
    mx_content out = {0};
    XXH3_128bits_reset(&state);
    XXH3_128bits_update(&state, "GGUF", 4);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const mx_gguf_value *v = mx_gguf_find(g, keys[i]);
        mx_gguf_string s = {0};
        if (v && v->kind == MX_GGUF_STRING) s = v->as.string;
        if (v && v->kind == MX_GGUF_ARRAY) s = (mx_gguf_string){(const char *)v->as.array.data, v->as.array.bytes};
        XXH3_128bits_update(&state, &s.size, sizeof s.size);
        if (s.size) XXH3_128bits_update(&state, s.text, s.size);
        out.size += s.size;
    }
    XXH128_hash_t hash = XXH3_128bits_digest(&state);
    out.hash[0] = hash.low64;
    out.hash[1] = hash.high64;
    return out;
}
