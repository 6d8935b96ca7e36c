/* Reads tokenizer.json. The vocabulary and the merges, 27 MB in the published file, go straight from YAJL's callbacks
 * into flat lists; the small parts are kept as stretches of the file and read as trees. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <yajl/yajl_parse.h>

#include "base/bytes.h"
#include "base/json.h"
#include "tokenizer/vocabulary.h"

#define MAX_ID ((1 << 24) - 1)

/* gpt-oss: where <|start|> has this id, the ids in this range that nothing else names are <|reserved_ID|>. The last
 * one is not in the model's embedding, but harmony decodes it. */
enum { HARMONY_START = 200006, RESERVED_FIRST = 200019, RESERVED_LAST = 201088 };

typedef struct entry {
    uint32_t id, offset, size; /* text[offset .. offset + size) */
    bool mapped;               /* text is bytes; else it is the source text, which is not in the byte alphabet */
    bool added;                /* named by added_tokens */
} entry;

typedef struct merge {
    uint32_t offset, left, right; /* both sides one behind the other in text */
} merge;

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
    bool has_vocab, has_merges, is_bpe, ignore_merges;

    entry *entries;
    size_t entry_count, entry_capacity;
    merge *merges;
    size_t merge_count, merge_capacity;
    mx_bytes text;
    size_t key_offset, key_size; /* of the vocabulary entry whose id comes next */
    bool key_mapped;
    int merge_sides;      /* read of the current [left, right] */
    int16_t byte_of[324]; /* the byte that a character of the byte alphabet stands for, or -1 */
} reader;

/* The alphabet of GPT-2: visible Latin-1 characters are their own byte, the 68 others follow from U+0100 on. */
static void fill_alphabet(int16_t byte_of[324]) {
    int next = 256;
    for (int c = 0; c < 324; c++) byte_of[c] = -1;
    for (int b = 0; b < 256; b++) {
        bool visible = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        byte_of[visible ? b : next++] = (int16_t)b;
    }
}

/* Appends the bytes that `s` spells in the byte alphabet; false with nothing appended when a character is not in it. */
static bool add_mapped(reader *r, const unsigned char *s, size_t size) {
    char bytes[1024];
    size_t start = r->text.size, n = 0;
    for (size_t i = 0; i < size;) {
        unsigned c = s[i++];
        if (c >= 0x80) {
            if ((c & 0xE0) != 0xC0 || i == size) goto not_in_alphabet;
            c = (c & 0x1F) << 6 | (s[i++] & 0x3F);
        }
        if (c >= 324 || r->byte_of[c] < 0) goto not_in_alphabet;
        bytes[n++] = (char)r->byte_of[c];
        if (n == sizeof bytes) {
            if (!mx_bytes_add(&r->text, bytes, n)) goto not_in_alphabet;
            n = 0;
        }
    }
    if (mx_bytes_add(&r->text, bytes, n)) return true;
not_in_alphabet:
    r->text.size = start;
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

/* Callbacks return 0 to stop; the error is set then. */
static int stop(reader *r, mx_status status, const char *what) {
    mx_fail(r->error, status, "%s: %s (byte %zu)", r->path, what, yajl_get_bytes_consumed(r->yajl));
    return 0;
}

static int add_entry(reader *r, const char *digits, size_t size) {
    int64_t id = 0;
    for (size_t i = 0; i < size; i++) {
        if (digits[i] < '0' || digits[i] > '9' || (id = id * 10 + digits[i] - '0') > MAX_ID)
            return stop(r, MX_INVALID_FILE, "model.vocab: an id is not a whole number from 0 to 16777215");
    }
    if (!grow((void **)&r->entries, &r->entry_capacity, r->entry_count, sizeof *r->entries))
        return stop(r, MX_NO_MEMORY, "no memory for the vocabulary");
    r->entries[r->entry_count++] = (entry){
        .id = (uint32_t)id, .offset = (uint32_t)r->key_offset, .size = (uint32_t)r->key_size, .mapped = r->key_mapped};
    return 1;
}

static int add_entry_text(reader *r, const unsigned char *s, size_t size) {
    r->key_offset = r->text.size;
    r->key_mapped = add_mapped(r, s, size);
    if (!r->key_mapped && !mx_bytes_add(&r->text, s, size))
        return stop(r, MX_NO_MEMORY, "no memory for the vocabulary");
    r->key_size = r->text.size - r->key_offset;
    if (size == 0) return stop(r, MX_INVALID_FILE, "model.vocab: a token is the empty string");
    return 1;
}

static int add_merge_side(reader *r, const unsigned char *s, size_t size) {
    size_t start = r->text.size;
    if (size == 0 || !add_mapped(r, s, size))
        return stop(r, MX_INVALID_FILE, "model.merges: a side is empty or not written in the byte alphabet");
    if (r->merge_sides == 0) {
        if (!grow((void **)&r->merges, &r->merge_capacity, r->merge_count, sizeof *r->merges))
            return stop(r, MX_NO_MEMORY, "no memory for the merges");
        r->merges[r->merge_count] = (merge){.offset = (uint32_t)start, .left = (uint32_t)(r->text.size - start)};
    } else if (r->merge_sides == 1) {
        r->merges[r->merge_count].right = (uint32_t)(r->text.size - start);
    } else {
        return stop(r, MX_INVALID_FILE, "model.merges: a merge has more than two sides");
    }
    r->merge_sides++;
    return 1;
}

static int end_merge(reader *r) {
    if (r->merge_sides != 2) return stop(r, MX_INVALID_FILE, "model.merges: a merge has not two sides");
    r->merge_count++;
    r->merge_sides = 0;
    return 1;
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
        if (r->model == MODEL_IGNORE) r->ignore_merges = is_true;
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
    r->error = &own;
    r->yajl = yajl_alloc(&callbacks, NULL, r);
    if (!r->yajl) return mx_fail(callers, MX_NO_MEMORY, "%s: no memory to read it", r->path);
    /* tokens are held against the byte alphabet, the small parts are parsed once more: both are stricter */
    yajl_config(r->yajl, yajl_dont_validate_strings, 1);
    yajl_status rc = yajl_parse(r->yajl, (const unsigned char *)r->json, size);
    size_t at = yajl_get_bytes_consumed(r->yajl);
    if (rc == yajl_status_ok) rc = yajl_complete_parse(r->yajl);
    yajl_free(r->yajl);
    r->error = callers;
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
static mx_status read_pre_tokenizer(reader *r, mx_bytes *pattern) {
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
    else if (!mx_bytes_add(pattern, regex->text, regex->size))
        status = mx_fail(r->error, MX_NO_MEMORY, "%s: no memory for the split pattern", r->path);
    mx_json_free(document);
    return status;
}

/* What the ids in [0, count) are. */
typedef struct table {
    entry *of; /* [count]; size 0: no token */
    uint8_t *kind;
    uint32_t count;
} table;

static mx_status add_token(reader *r, const mx_json *token, table *t) {
    const mx_json *content = mx_json_get(token, "content");
    int64_t id;
    if (!content || content->type != MX_JSON_STRING || content->size == 0 ||
        !mx_json_int64(mx_json_get(token, "id"), &id) || id < 0 || id > MAX_ID)
        return mx_fail(r->error, MX_INVALID_FILE, "%s: added_tokens: an entry lacks its content or an id from 0 to %d",
                       r->path, MAX_ID);
    if (!is_false(mx_json_get(token, "lstrip")) || !is_false(mx_json_get(token, "rstrip")) ||
        !is_false(mx_json_get(token, "single_word")))
        return mx_fail(r->error, MX_UNSUPPORTED,
                       "%s: added token %.100s: lstrip, rstrip and single_word are not supported", r->path,
                       content->text);
    entry *e = &t->of[id];
    if (e->size &&
        (e->added || e->size != content->size || memcmp(r->text.data + e->offset, content->text, e->size) != 0))
        return mx_fail(r->error, MX_INVALID_FILE, "%s: added token %.100s: id %d belongs to another token already",
                       r->path, content->text, (int)id);
    *e = (entry){.id = (uint32_t)id,
                 .offset = (uint32_t)r->text.size,
                 .size = (uint32_t)content->size,
                 .mapped = true,
                 .added = true};
    t->kind[id] = is_false(mx_json_get(token, "special")) ? MX_TOKEN_ADDED : MX_TOKEN_SPECIAL;
    if (!mx_bytes_add(&r->text, content->text, content->size))
        return mx_fail(r->error, MX_NO_MEMORY, "%s: no memory for the vocabulary", r->path);
    return MX_OK;
}

static mx_status add_reserved(reader *r, table *t) {
    for (uint32_t id = RESERVED_FIRST; id <= RESERVED_LAST; id++) {
        if (t->of[id].size) continue;
        size_t start = r->text.size;
        if (!mx_bytes_addf(&r->text, "<|reserved_%u|>", (unsigned)id))
            return mx_fail(r->error, MX_NO_MEMORY, "%s: no memory for the vocabulary", r->path);
        t->of[id] = (entry){id, (uint32_t)start, (uint32_t)(r->text.size - start), true, true};
        t->kind[id] = MX_TOKEN_SPECIAL;
    }
    return MX_OK;
}

static uint32_t highest_id(const reader *r, const mx_json *added) {
    int64_t highest = -1, id;
    for (size_t i = 0; i < r->entry_count; i++)
        if (r->entries[i].id > highest) highest = r->entries[i].id;
    bool harmony = false;
    for (const mx_json *a = added ? added->child : NULL; a; a = a->next) {
        if (!mx_json_int64(mx_json_get(a, "id"), &id) || id < 0 || id > MAX_ID) continue;
        if (id > highest) highest = id;
        if (id == HARMONY_START && mx_json_is_string(mx_json_get(a, "content"), "<|start|>")) harmony = true;
    }
    if (harmony && highest < RESERVED_LAST) highest = RESERVED_LAST;
    return (uint32_t)(highest + 1);
}

/* Sorts vocabulary and added tokens into a table by id. */
static mx_status tabulate(reader *r, table *t) {
    mx_json_document *document;
    const mx_json *added;
    mx_status status = span_tree(r, ROOT_ADDED, &document, &added);
    if (status != MX_OK) return status;
    if (added && added->type != MX_JSON_ARRAY) {
        mx_json_free(document);
        return mx_fail(r->error, MX_INVALID_FILE, "%s: added_tokens is not a list", r->path);
    }
    t->count = highest_id(r, added);
    t->of = calloc(t->count ? t->count : 1, sizeof *t->of);
    t->kind = calloc(t->count ? t->count : 1, 1);
    if (!t->of || !t->kind) status = mx_fail(r->error, MX_NO_MEMORY, "%s: no memory for %u tokens", r->path, t->count);
    for (size_t i = 0; i < r->entry_count && status == MX_OK; i++) {
        entry *e = &t->of[r->entries[i].id];
        if (e->size)
            status = mx_fail(r->error, MX_INVALID_FILE, "%s: model.vocab: two tokens have the id %u", r->path, e->id);
        *e = r->entries[i];
    }
    for (const mx_json *a = added ? added->child : NULL; a && status == MX_OK; a = a->next) status = add_token(r, a, t);
    bool harmony = t->count > RESERVED_LAST && status == MX_OK && t->of[HARMONY_START].added &&
                   t->of[HARMONY_START].size == 9 &&
                   memcmp(r->text.data + t->of[HARMONY_START].offset, "<|start|>", 9) == 0;
    if (harmony) status = add_reserved(r, t);
    for (uint32_t id = 0; id < t->count && status == MX_OK; id++)
        if (t->of[id].size && !t->of[id].mapped)
            status =
                mx_fail(r->error, MX_UNSUPPORTED,
                        "%s: model.vocab: token %u (\"%.*s\") is not written in the byte alphabet; only byte-level BPE "
                        "is supported",
                        r->path, id, (int)(t->of[id].size < 60 ? t->of[id].size : 60), r->text.data + t->of[id].offset);
    mx_json_free(document);
    return status;
}

/* ---- the block --------------------------------------------------------------------------------------------------- */

static uint32_t power_of_two(uint64_t atleast) {
    uint32_t n = 16;
    while (n < atleast) n *= 2;
    return n;
}

static mx_status create_block(reader *r, const table *t, const mx_bytes *pattern, mx_vocabulary *v) {
    uint64_t text_size = 0;
    for (uint32_t id = 0; id < t->count; id++) text_size += t->of[id].size;
    if (text_size > INT32_MAX || r->merge_count > INT32_MAX)
        return mx_fail(r->error, MX_UNSUPPORTED, "%s: the vocabulary is larger than 2 GB", r->path);
    mx_vocabulary_header header = {.header_size = sizeof header,
                                   .token_count = t->count,
                                   .token_slots = power_of_two(2 * (uint64_t)r->entry_count),
                                   .merge_slots = (uint32_t)(r->merge_count * 8 / 5 + 16),
                                   .text_size = (uint32_t)text_size,
                                   .pattern_size = (uint32_t)pattern->size,
                                   .ignore_merges = r->ignore_merges};
    header.size = mx_vocabulary_sections(v, &header);
    void *block = mmap(NULL, header.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED)
        return mx_fail(r->error, MX_NO_MEMORY, "%s: no memory for a tokenizer of %zu bytes", r->path,
                       (size_t)header.size);
    v->block = block;
    v->size = header.size;
    memcpy(block, &header, sizeof header);
    mx_vocabulary_sections(v, &header);
    return MX_OK;
}

/* The block is ours to write until mx_vocabulary_parse returns. */
#define WRITABLE(type, pointer) ((type *)(uintptr_t)(pointer))

static mx_status fill_tokens(reader *r, const table *t, const mx_bytes *pattern, mx_vocabulary *v) {
    mx_vocabulary_header *header = v->block;
    uint32_t *offset = WRITABLE(uint32_t, v->offset), at = 0, mask = header->token_slots - 1;
    mx_token_slot *slots = WRITABLE(mx_token_slot, v->tokens);
    char *text = WRITABLE(char, v->text);
    memcpy(WRITABLE(char, v->pattern), pattern->data, pattern->size);
    memcpy(WRITABLE(uint8_t, v->kind), t->kind, t->count);
    memset(slots, 0xFF, header->token_slots * sizeof *slots);
    memset(header->byte_id, 0xFF, sizeof header->byte_id);
    for (uint32_t id = 0; id < t->count; id++) {
        enum { AHEAD = 16 }; /* the slots are spread over more memory than the caches hold */
        const entry *e = &t->of[id], *later = &t->of[id + AHEAD < t->count ? id + AHEAD : id];
        if (later->size)
            __builtin_prefetch(&slots[(uint32_t)mx_token_hash(r->text.data + later->offset, later->size) & mask], 1);
        offset[id] = at;
        if (e->size) memcpy(text + at, r->text.data + e->offset, e->size);
        at += e->size;
        offset[id + 1] = at;
        if (!e->size || e->added) continue;
        uint64_t hash = mx_token_hash(text + offset[id], e->size);
        if (mx_vocabulary_find(v, hash, text + offset[id], e->size) != MX_NO_ID)
            return mx_fail(r->error, MX_INVALID_FILE, "%s: model.vocab: token %u is spelled like another one", r->path,
                           id);
        uint32_t i = (uint32_t)hash & mask;
        while (slots[i].id != MX_NO_ID) i = (i + 1) & mask;
        slots[i] = (mx_token_slot){mx_digest(text + offset[id], e->size), e->size, id};
        if (e->size == 1) header->byte_id[(unsigned char)text[offset[id]]] = id;
    }
    for (int b = 0; b < 256; b++)
        if (header->byte_id[b] == MX_NO_ID)
            return mx_fail(r->error, MX_INVALID_FILE,
                           "%s: model.vocab: byte 0x%02X has no token; a byte-level vocabulary has all 256", r->path,
                           b);
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
static mx_status resolve_merge(reader *r, const mx_vocabulary *v, size_t m, uint32_t last, resolved_merge *out) {
    const char *text = r->text.data + r->merges[m].offset;
    size_t left_size = r->merges[m].left, size = left_size + r->merges[m].right;
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
    return mx_fail(r->error, MX_INVALID_FILE, "%s: model.merges[%zu]: %s is not in model.vocab", r->path, m, missing);
}

/* A rank is the merge's place in the list. Merges in a row that make the same token share a rank: such lists come from
 * tiktoken's ranks, where only the result counts and the leftmost pair goes first.
 * Works in batches so that the slots, spread over more memory than the caches hold, can be fetched ahead. */
static mx_status fill_merges(reader *r, mx_vocabulary *v) {
    enum { BATCH = 32 };
    resolved_merge batch[BATCH];
    uint32_t count = v->header->merge_slots, mask = v->header->token_slots - 1, rank = 0, last = MX_NO_ID;
    mx_merge_slot *slots = WRITABLE(mx_merge_slot, v->merges);
    memset(slots, 0xFF, count * sizeof *slots);
    for (size_t begin = 0; begin < r->merge_count; begin += BATCH) {
        size_t n = r->merge_count - begin < BATCH ? r->merge_count - begin : BATCH;
        for (size_t k = 0; k < n; k++) {
            const merge *m = &r->merges[begin + k];
            const char *text = r->text.data + m->offset;
            __builtin_prefetch(&v->tokens[(uint32_t)mx_token_hash(text, m->left) & mask]);
            __builtin_prefetch(&v->tokens[(uint32_t)mx_token_hash(text + m->left, m->right) & mask]);
        }
        for (size_t k = 0; k < n; k++) {
            mx_status status = resolve_merge(r, v, begin + k, k ? batch[k - 1].result : last, &batch[k]);
            if (status != MX_OK) return status;
            __builtin_prefetch(&slots[mx_merge_home(batch[k].left, batch[k].right, count)], 1);
        }
        for (size_t k = 0; k < n; k++) {
            if (mx_vocabulary_merge(v, batch[k].left, batch[k].right))
                return mx_fail(r->error, MX_INVALID_FILE, "%s: model.merges[%zu] repeats an earlier merge", r->path,
                               begin + k);
            if (batch[k].result != last) rank = (uint32_t)(begin + k);
            last = batch[k].result;
            uint32_t i = mx_merge_home(batch[k].left, batch[k].right, count);
            while (slots[i].left != MX_NO_ID) i = i + 1 == count ? 0 : i + 1;
            slots[i] = (mx_merge_slot){batch[k].left, batch[k].right, rank, last};
        }
    }
    return MX_OK;
}

static mx_status build(reader *r, mx_vocabulary *out) {
    table t = {0};
    mx_bytes pattern = {0};
    mx_status status = MX_OK;
    if (!r->is_bpe || !r->has_vocab || !r->has_merges)
        status = mx_fail(r->error, MX_INVALID_FILE,
                         "%s: model lacks its type, vocab or merges; is this a tokenizer.json?", r->path);
    else if (r->span[ROOT_NORMALIZER].begin < r->span[ROOT_NORMALIZER].end)
        status = mx_fail(r->error, MX_UNSUPPORTED, "%s: normalizer is set; only tokenizers without one are supported",
                         r->path);
    if (status == MX_OK) status = read_pre_tokenizer(r, &pattern);
    if (status == MX_OK) status = tabulate(r, &t);
    if (status == MX_OK) status = create_block(r, &t, &pattern, out);
    if (status == MX_OK) status = fill_tokens(r, &t, &pattern, out);
    if (status == MX_OK) status = fill_merges(r, out);
    if (status != MX_OK) mx_vocabulary_free(out);
    mx_bytes_free(&pattern);
    free(t.of);
    free(t.kind);
    return status;
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
    fill_alphabet(r->byte_of);
    mx_status status = read_json(r, size);
    if (status == MX_OK) status = build(r, out);
    free(r->entries);
    free(r->merges);
    mx_bytes_free(&r->text);
    free(r);
    return status;
}
