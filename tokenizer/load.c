/* Reads tokenizer.json. The vocabulary and the merges, 27 MB in the published file, go straight from YAJL's callbacks
 * into flat lists; the small parts are kept as stretches of the file and read as trees. */
#include <stdio.h>
#include <stdlib.h>
#include <yajl/yajl_parse.h>

#include "base/bytes.h"
#include "base/json.h"
#include "tokenizer/source.h"

typedef enum root_key { ROOT_OTHER, ROOT_MODEL, ROOT_ADDED, ROOT_PRE, ROOT_NORMALIZER, ROOT_KEYS } root_key;
typedef enum model_key {
    MODEL_OTHER,
    MODEL_VOCAB,
    MODEL_MERGES,
    MODEL_TYPE,
    MODEL_REFUSED,
    MODEL_IGNORE,
    MODEL_KEYS
} model_key;

static const char *const root_names[ROOT_KEYS] = {"", "model", "added_tokens", "pre_tokenizer", "normalizer"};

typedef struct reader {
    const char *path, *json;
    mx_error *error;
    yajl_handle yajl;
    int depth;
    root_key root;
    model_key model;
    char model_name[64]; /* the member of model being read */
    struct {
        size_t begin, end; /* begin == end: absent or null */
    } span[ROOT_KEYS];
    bool has_vocab, has_merges, is_bpe;

    mx_source source;
    size_t key_offset; /* of the vocabulary entry whose id comes next */
    bool key_mapped;
    int merge_sides;                  /* read of the current [left, right] */
    size_t merge_offset, merge_right; /* where its sides begin */
} reader;

/* Callbacks return 0 to stop; the error is set then. */
static int stop(reader *r, mx_status status, const char *what) {
    mx_fail(r->error, status, "%s: %s (byte %zu)", r->path, what, yajl_get_bytes_consumed(r->yajl));
    return 0;
}

static int add_entry(reader *r, const char *digits, size_t size) {
    int64_t id = 0;
    for (size_t i = 0; i < size; i++) {
        if (digits[i] < '0' || digits[i] > '9' || (id = id * 10 + digits[i] - '0') > MX_HIGHEST_ID)
            return stop(r, MX_INVALID_FILE, "model.vocab: an id is not a whole number from 0 to 16777215");
    }
    return mx_source_add_token(&r->source, (uint32_t)id, r->key_offset, r->key_mapped) == MX_OK;
}

static int add_entry_text(reader *r, const unsigned char *s, size_t size) {
    mx_source *to = &r->source;
    r->key_offset = to->text.size;
    r->key_mapped = mx_source_add_mapped(to, (const char *)s, size);
    if (!r->key_mapped && !mx_bytes_add(&to->text, s, size))
        return stop(r, MX_NO_MEMORY, "no memory for the vocabulary");
    if (size == 0) return stop(r, MX_INVALID_FILE, "model.vocab: a token is the empty string");
    return 1;
}

static int add_merge_side(reader *r, const unsigned char *s, size_t size) {
    size_t start = r->source.text.size;
    if (size == 0 || !mx_source_add_mapped(&r->source, (const char *)s, size))
        return stop(r, MX_INVALID_FILE, "model.merges: a side is empty or not written in the byte alphabet");
    if (r->merge_sides == 0) r->merge_offset = start;
    if (r->merge_sides == 1) r->merge_right = start;
    if (r->merge_sides == 2) return stop(r, MX_INVALID_FILE, "model.merges: a merge has more than two sides");
    r->merge_sides++;
    return 1;
}

static int end_merge(reader *r) {
    if (r->merge_sides != 2) return stop(r, MX_INVALID_FILE, "model.merges: a merge has not two sides");
    r->merge_sides = 0;
    return mx_source_add_merge(&r->source, r->merge_offset, r->merge_right - r->merge_offset) == MX_OK;
}

static int add_merge_string(reader *r, const unsigned char *s, size_t size) {
    const unsigned char *space = memchr(s, ' ', size);
    if (!space) return stop(r, MX_INVALID_FILE, "model.merges: a merge is not \"left right\"");
    size_t left = (size_t)(space - s);
    return add_merge_side(r, s, left) && add_merge_side(r, space + 1, size - left - 1) && end_merge(r);
}

static bool in_model(const reader *r) {
    return r->root == ROOT_MODEL;
}

/* A scalar of any kind: `text` is its source text, or the content of a string. */
static int scalar(reader *r, bool is_string, bool is_null, const char *text, size_t size) {
    if (r->depth == 0) return stop(r, MX_INVALID_FILE, "the file is not a JSON object");
    if (r->depth == 1 && r->root == ROOT_MODEL) return stop(r, MX_INVALID_FILE, "model is not an object");
    if (r->depth == 1) {
        r->span[r->root].begin = r->span[r->root].end = 0;
        if (is_null || r->root == ROOT_OTHER) return 1;
        return stop(r, MX_INVALID_FILE, "a plain value where null, an object or a list is expected");
    }
    if (!in_model(r)) return 1;
    if (r->depth == 2) {
        bool is_true = !is_string && size == 4 && memcmp(text, "true", 4) == 0;
        if (r->model == MODEL_VOCAB || r->model == MODEL_MERGES)
            return stop(r, MX_INVALID_FILE, "model.vocab must be an object and model.merges a list");
        if (r->model == MODEL_TYPE) r->is_bpe = is_string && size == 3 && memcmp(text, "BPE", 3) == 0;
        if (r->model == MODEL_TYPE && !r->is_bpe)
            return stop(r, MX_UNSUPPORTED, "model.type is not BPE; only byte-level BPE tokenizers are supported");
        if (r->model == MODEL_IGNORE) r->source.ignore_merges = is_true;
        if (r->model == MODEL_REFUSED && !is_null && size > 0 && !(size == 5 && memcmp(text, "false", 5) == 0)) {
            mx_fail(r->error, MX_UNSUPPORTED, "%s: model.%s is set; only byte-level BPE without it is supported",
                    r->path, r->model_name);
            return 0;
        }
        return 1;
    }
    if (r->model == MODEL_MERGES) {
        if (!is_string) return stop(r, MX_INVALID_FILE, "model.merges: a side is not a string");
        return r->depth == 3 ? add_merge_string(r, (const unsigned char *)text, size)
                             : add_merge_side(r, (const unsigned char *)text, size);
    }
    if (r->model == MODEL_VOCAB) return stop(r, MX_INVALID_FILE, "model.vocab: an id is not a number");
    return 1;
}

static int on_null(void *ctx) {
    return scalar(ctx, false, true, "null", 4);
}
static int on_boolean(void *ctx, int value) {
    return scalar(ctx, false, false, value ? "true" : "false", value ? 4 : 5);
}
static int on_string(void *ctx, const unsigned char *s, size_t size) {
    return scalar(ctx, true, false, (const char *)s, size);
}
static int on_number(void *ctx, const char *s, size_t size) {
    reader *r = ctx;
    if (r->depth == 3 && in_model(r) && r->model == MODEL_VOCAB) return add_entry(r, s, size);
    return scalar(r, false, false, s, size);
}

static int open_value(reader *r, bool is_object) {
    int depth = r->depth++;
    if (depth == 0) return is_object ? 1 : stop(r, MX_INVALID_FILE, "the file is not a JSON object");
    if (depth == 1) r->span[r->root].begin = yajl_get_bytes_consumed(r->yajl) - 1;
    if (!in_model(r)) return 1;
    if (depth == 1 && !is_object) return stop(r, MX_INVALID_FILE, "model is not an object");
    if (r->model == MODEL_VOCAB && depth >= 2 && (depth > 2 || !is_object || r->has_vocab))
        return stop(r, MX_INVALID_FILE, "model.vocab must be one object of token: id");
    if (r->model == MODEL_MERGES && (depth > 3 || is_object || (depth == 2 && r->has_merges)))
        return stop(r, MX_INVALID_FILE, "model.merges must be one list of [left, right] or \"left right\"");
    if (depth == 2 && r->model == MODEL_VOCAB) r->has_vocab = true;
    if (depth == 2 && r->model == MODEL_MERGES) r->has_merges = true;
    if (depth == 2 && (r->model == MODEL_TYPE || r->model == MODEL_REFUSED || r->model == MODEL_IGNORE))
        return stop(r, MX_INVALID_FILE, "a member of model is a list or object where a plain value is expected");
    return 1;
}

static int close_value(reader *r) {
    int depth = --r->depth;
    if (depth == 1) r->span[r->root].end = yajl_get_bytes_consumed(r->yajl);
    if (depth == 3 && in_model(r) && r->model == MODEL_MERGES) return end_merge(r);
    return 1;
}

static int on_start_map(void *ctx) {
    return open_value(ctx, true);
}
static int on_start_array(void *ctx) {
    return open_value(ctx, false);
}
static int on_end(void *ctx) {
    return close_value(ctx);
}

static bool is_name(const char *name, const unsigned char *s, size_t size) {
    return strlen(name) == size && memcmp(name, s, size) == 0;
}

static int on_key(void *ctx, const unsigned char *s, size_t size) {
    static const char *const refused[] = {"dropout", "continuing_subword_prefix", "end_of_word_suffix",
                                          "byte_fallback"};
    reader *r = ctx;
    if (r->depth == 1) {
        r->root = ROOT_OTHER;
        r->model = MODEL_OTHER;
        for (int i = 1; i < ROOT_KEYS; i++)
            if (is_name(root_names[i], s, size)) r->root = (root_key)i;
        return 1;
    }
    if (!in_model(r)) return 1;
    if (r->depth == 3 && r->model == MODEL_VOCAB) return add_entry_text(r, s, size);
    if (r->depth != 2) return 1;
    snprintf(r->model_name, sizeof r->model_name, "%.*s", (int)(size < 60 ? size : 60), (const char *)s);
    r->model = is_name("vocab", s, size)           ? MODEL_VOCAB
               : is_name("merges", s, size)        ? MODEL_MERGES
               : is_name("type", s, size)          ? MODEL_TYPE
               : is_name("ignore_merges", s, size) ? MODEL_IGNORE
                                                   : MODEL_OTHER;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (is_name(refused[i], s, size)) r->model = MODEL_REFUSED;
    return 1;
}

static mx_status read_json(reader *r, size_t size) {
    static const yajl_callbacks callbacks = {.yajl_null = on_null,
                                             .yajl_boolean = on_boolean,
                                             .yajl_number = on_number,
                                             .yajl_string = on_string,
                                             .yajl_start_map = on_start_map,
                                             .yajl_map_key = on_key,
                                             .yajl_end_map = on_end,
                                             .yajl_start_array = on_start_array,
                                             .yajl_end_array = on_end};
    mx_error own = {0};
    mx_error *callers = r->error;
    r->error = r->source.error = &own;
    r->yajl = yajl_alloc(&callbacks, NULL, r);
    if (!r->yajl) return mx_fail(callers, MX_NO_MEMORY, "%s: no memory to read it", r->path);
    /* tokens are held against the byte alphabet, the small parts are parsed once more: both are stricter */
    yajl_config(r->yajl, yajl_dont_validate_strings, 1);
    yajl_status rc = yajl_parse(r->yajl, (const unsigned char *)r->json, size);
    size_t at = yajl_get_bytes_consumed(r->yajl);
    if (rc == yajl_status_ok) rc = yajl_complete_parse(r->yajl);
    yajl_free(r->yajl);
    r->error = r->source.error = callers;
    if (own.status != MX_OK) return mx_fail(callers, own.status, "%s", own.text);
    if (rc != yajl_status_ok)
        return mx_fail(callers, MX_INVALID_FILE, "%s: not valid JSON, or cut off, at byte %zu; fetch the file again",
                       r->path, at);
    return MX_OK;
}

/* ---- the small parts ------------------------------------------------------------------------------------------- */

static mx_status span_tree(reader *r, root_key key, mx_json_document **out, const mx_json **root) {
    *out = NULL;
    *root = NULL;
    if (r->span[key].begin >= r->span[key].end) return MX_OK;
    mx_status status =
        mx_json_parse(r->path, r->json + r->span[key].begin, r->span[key].end - r->span[key].begin, out, r->error);
    if (status == MX_OK) *root = mx_json_root(*out);
    return status;
}

static bool is_false(const mx_json *v) {
    return !v || v->type == MX_JSON_NULL || (v->type == MX_JSON_BOOL && !v->boolean);
}

/* Takes one Split over a regular expression and one ByteLevel that does not split by itself. */
static mx_status read_pre_tokenizer(reader *r) {
    mx_json_document *document;
    const mx_json *root;
    mx_status status = span_tree(r, ROOT_PRE, &document, &root);
    if (status != MX_OK) return status;
    const mx_json *list = mx_json_get(root, "pretokenizers");
    const mx_json *first = list && list->type == MX_JSON_ARRAY && list->count == 2 ? list->child : NULL;
    const mx_json *second = first ? first->next : NULL;
    const mx_json *regex = mx_json_get(mx_json_get(first, "pattern"), "Regex");
    if (!mx_json_is_string(mx_json_get(root, "type"), "Sequence") ||
        !mx_json_is_string(mx_json_get(first, "type"), "Split") ||
        !mx_json_is_string(mx_json_get(first, "behavior"), "Isolated") || !is_false(mx_json_get(first, "invert")) ||
        !mx_json_is_string(mx_json_get(second, "type"), "ByteLevel") ||
        !is_false(mx_json_get(second, "add_prefix_space")) || !is_false(mx_json_get(second, "use_regex")) || !regex ||
        regex->type != MX_JSON_STRING || regex->size == 0)
        status = mx_fail(
            r->error, MX_UNSUPPORTED,
            "%s: pre_tokenizer is not a Sequence of one Split (Regex, Isolated, not inverted) and one ByteLevel "
            "(no prefix space, no regex); only byte-level BPE of this form is supported",
            r->path);
    else if (!mx_bytes_add(&r->source.pattern, regex->text, regex->size))
        status = mx_fail(r->error, MX_NO_MEMORY, "%s: no memory for the split pattern", r->path);
    mx_json_free(document);
    return status;
}

static mx_status add_token(reader *r, const mx_json *token) {
    const mx_json *content = mx_json_get(token, "content");
    int64_t id;
    if (!content || content->type != MX_JSON_STRING || content->size == 0 ||
        !mx_json_int64(mx_json_get(token, "id"), &id) || id < 0 || id > MX_HIGHEST_ID)
        return mx_fail(r->error, MX_INVALID_FILE, "%s: added_tokens: an entry lacks its content or an id from 0 to %d",
                       r->path, MX_HIGHEST_ID);
    if (!is_false(mx_json_get(token, "lstrip")) || !is_false(mx_json_get(token, "rstrip")) ||
        !is_false(mx_json_get(token, "single_word")))
        return mx_fail(r->error, MX_UNSUPPORTED,
                       "%s: added token %.100s: lstrip, rstrip and single_word are not supported", r->path,
                       content->text);
    return mx_source_add_special(&r->source, (uint32_t)id, content->text, content->size,
                                 is_false(mx_json_get(token, "special")) ? MX_TOKEN_ADDED : MX_TOKEN_SPECIAL);
}

static mx_status read_added_tokens(reader *r) {
    mx_json_document *document;
    const mx_json *added;
    mx_status status = span_tree(r, ROOT_ADDED, &document, &added);
    if (status == MX_OK && added && added->type != MX_JSON_ARRAY)
        status = mx_fail(r->error, MX_INVALID_FILE, "%s: added_tokens is not a list", r->path);
    for (const mx_json *a = added ? added->child : NULL; a && status == MX_OK; a = a->next) status = add_token(r, a);
    mx_json_free(document);
    return status;
}

static mx_status build(reader *r, mx_vocabulary *out) {
    if (!r->is_bpe || !r->has_vocab || !r->has_merges)
        return mx_fail(r->error, MX_INVALID_FILE,
                       "%s: model lacks its type, vocab or merges; is this a tokenizer.json?", r->path);
    if (r->span[ROOT_NORMALIZER].begin < r->span[ROOT_NORMALIZER].end)
        return mx_fail(r->error, MX_UNSUPPORTED, "%s: normalizer is set; only tokenizers without one are supported",
                       r->path);
    mx_status status = read_pre_tokenizer(r);
    if (status == MX_OK) status = read_added_tokens(r);
    return status == MX_OK ? mx_vocabulary_build(&r->source, out) : status;
}

mx_status mx_vocabulary_parse(const char *path, const char *json, size_t size, mx_vocabulary *out, mx_error *error) {
    *out = (mx_vocabulary){0};
    if (size > INT32_MAX)
        return mx_fail(error, MX_INVALID_FILE, "%s: %zu bytes; a tokenizer.json has less than 2 GB", path, size);
    reader *r = calloc(1, sizeof *r);
    if (!r) return mx_fail(error, MX_NO_MEMORY, "%s: no memory to read it", path);
    r->path = path;
    r->json = json;
    r->error = error;
    mx_source_begin(&r->source, path, "model.vocab", "model.merges", error);
    mx_status status = read_json(r, size);
    if (status == MX_OK) status = build(r, out);
    mx_source_free(&r->source);
    free(r);
    return status;
}
