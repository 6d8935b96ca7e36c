/* A tokenizer.json as model.bin has it: UUIDs of special tokens, the split pattern, the bytes of all other tokens. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "convert/origin.h"
#include "tokenizer/tokenizer.h"

enum {
    O200K_TEXTS = 199998, /* tokens of o200k before its special ones */
    O200K_SPECIALS = 16,  /* of them in model.bin: 199998 .. 200013 */
};

static const uint8_t tokenizer_uuid[16] = {0x74, 0x01, 0xad, 0xed, 0x2a, 0x95, 0x40, 0xcb,
                                           0xb7, 0x82, 0x9c, 0xce, 0xba, 0xaf, 0xe7, 0x2b};

/* `id`: in o200k's vocabulary. Those that harmony does not use have other names in tokenizer.json. */
static const struct {
    const char *name;
    int id;
    uint8_t uuid[16];
} specials[] = {
    {"<|untrusted|>",
     200000,
     {0x07, 0xd7, 0xda, 0x55, 0xb3, 0x46, 0x4c, 0xff, 0x8b, 0x37, 0x7c, 0xef, 0xac, 0xf8, 0xa3, 0xe8}},
    {"<|return|>",
     200002,
     {0xf7, 0x99, 0xff, 0x69, 0x19, 0x92, 0x43, 0xc4, 0xa3, 0xd8, 0xd8, 0x31, 0xf4, 0x75, 0xdc, 0x75}},
    {"<|constrain|>",
     200003,
     {0xc0, 0xbb, 0x14, 0xc7, 0x60, 0x22, 0x49, 0xda, 0xad, 0x08, 0x79, 0x2d, 0x67, 0xe8, 0xb4, 0x70}},
    {"<|channel|>",
     200005,
     {0xfd, 0x3d, 0xda, 0x11, 0xc8, 0xab, 0x40, 0x33, 0x87, 0x6e, 0xd9, 0x3d, 0xeb, 0x17, 0x2c, 0x93}},
    {"<|start|>",
     200006,
     {0x55, 0xa7, 0x7c, 0x2f, 0x8a, 0x01, 0x4c, 0x54, 0x8a, 0xc2, 0x31, 0x3b, 0xfc, 0x7e, 0x20, 0x8d}},
    {"<|end|>",
     200007,
     {0xfc, 0xac, 0x2f, 0x6d, 0x47, 0x05, 0x4f, 0x6b, 0xb2, 0x28, 0x64, 0x2a, 0xcc, 0xac, 0x72, 0x38}},
    {"<|message|>",
     200008,
     {0x16, 0xe4, 0x04, 0x31, 0xf4, 0x7f, 0x4b, 0x22, 0xb5, 0x9b, 0x8b, 0x27, 0x8f, 0xc3, 0x0a, 0x54}},
    {"<|call|>",
     200012,
     {0x12, 0x20, 0xf7, 0x96, 0xe3, 0x88, 0x4d, 0xe5, 0xb4, 0x87, 0xfe, 0x2e, 0xb5, 0xfe, 0x03, 0xc0}},
    {"<|refusal|>",
     200013,
     {0xe1, 0x5b, 0xa7, 0x02, 0x28, 0xc4, 0x42, 0x92, 0xab, 0x8f, 0xff, 0xa4, 0x34, 0x70, 0x91, 0x28}},
};

static mx_status bad(const mx_origin *o, const char *what) {
    return mx_fail(o->error, MX_UNSUPPORTED, "%s: tokenizer.json: %s, which a model.bin cannot hold", o->place.path,
                   what);
}

/* ---- text tokens --------------------------------------------------------------------------------------------------
 */

/* Characters of the byte alphabet as bytes. 0: others are among them, or there is no room. */
static size_t token_bytes(const mx_json *t, const int16_t of[MX_BYTE_ALPHABET], uint8_t *out, size_t room) {
    size_t n = 0;
    for (size_t i = 0; i < t->key_size; n++) {
        const unsigned char c = (unsigned char)t->key[i++];
        int code = c < 0x80 ? c : -1;
        if (c >= 0xC2 && c < 0xC8 && i < t->key_size) code = (c & 0x1F) << 6 | ((unsigned char)t->key[i++] & 0x3F);
        if (n == room || code < 0 || code >= MX_BYTE_ALPHABET || of[code] < 0) return 0;
        out[n] = (uint8_t)of[code];
    }
    return n;
}

static mx_status put_texts(const mx_origin *o, mx_bytes *out, const mx_json *const *token, int texts) {
    int16_t of[MX_BYTE_ALPHABET];
    uint8_t bytes[512];
    mx_byte_alphabet(of);
    for (int i = 0; i < texts; i++) {
        const size_t n = token[i] ? token_bytes(token[i], of, bytes, sizeof bytes) : 0;
        const uint16_t size = (uint16_t)n;
        if (!n) return bad(o, "a token is missing, or not of 1 to 512 bytes in the byte-level alphabet");
        if (!mx_bytes_add(out, &size, 2) || !mx_bytes_add(out, bytes, n)) return mx_origin_no_memory(o);
    }
    return MX_OK;
}

/* ---- special tokens -----------------------------------------------------------------------------------------------
 */

/* Of token texts + index. All zeros: none. */
static void uuid_of(const mx_json *added, int texts, int index, uint8_t out[16]) {
    memset(out, 0, 16);
    for (size_t i = 0; i < sizeof specials / sizeof *specials; i++) {
        if (texts == O200K_TEXTS && specials[i].id == texts + index) memcpy(out, specials[i].uuid, 16);
        for (const mx_json *t = texts == O200K_TEXTS ? NULL : added->child; t; t = t->next) {
            int64_t id;
            if (mx_json_int64(mx_json_get(t, "id"), &id) && id == texts + index &&
                mx_json_is_string(mx_json_get(t, "content"), specials[i].name))
                memcpy(out, specials[i].uuid, 16);
        }
    }
}

/* Special tokens follow the others without a gap. *specials: how many have a place. */
static mx_status count_tokens(const mx_origin *o, const mx_json *root, const mx_json **token, int *texts, int *count) {
    const mx_json *vocabulary = mx_json_get(mx_json_get(root, "model"), "vocab"),
                  *added = mx_json_get(root, "added_tokens");
    int64_t id, last = -1;
    *texts = 0;
    if (!vocabulary || vocabulary->type != MX_JSON_OBJECT || !added || added->type != MX_JSON_ARRAY)
        return bad(o, "model.vocab or added_tokens is missing");
    for (const mx_json *t = vocabulary->child; t; t = t->next) {
        if (!mx_json_int64(t, &id) || id < 0 || id >= o->config.vocab) return bad(o, "a token's id is out of range");
        token[id] = t;
    }
    for (const mx_json *t = added->child; t; t = t->next) {
        if (!mx_json_int64(mx_json_get(t, "id"), &id) || id < 0 || id >= o->config.vocab)
            return bad(o, "an added token's id is out of range");
        if (token[id] && !mx_json_is_string(mx_json_get(t, "content"), token[id]->key))
            return bad(o, "an id has two tokens");
        token[id] = NULL;
        if (id > last) last = id;
    }
    while (*texts < o->config.vocab && token[*texts]) ++*texts;
    for (int i = *texts; i < o->config.vocab; i++)
        if (token[i]) return bad(o, "an ordinary token follows a special one");
    *count = *texts == O200K_TEXTS ? O200K_SPECIALS : last < *texts ? 0 : (int)(last + 1 - *texts);
    return *texts + *count <= o->config.vocab ? MX_OK : bad(o, "it has more tokens than the embedding has rows");
}

/* ---- merges -------------------------------------------------------------------------------------------------------
 */

/* Text tokens by their text, open addressing. */
typedef struct finder {
    const mx_json *const *token; /* by id */
    int32_t *slot;               /* [mask + 1]: ids; -1: empty */
    uint32_t mask;
} finder;

static uint32_t place_of(const finder *f, const char *text, size_t size) {
    uint64_t hash = 0xCBF29CE484222325; /* FNV-1a */
    for (size_t i = 0; i < size; i++) hash = (hash ^ (unsigned char)text[i]) * 0x100000001B3;
    uint32_t i = (uint32_t)(hash >> 32) & f->mask;
    for (; f->slot[i] >= 0; i = (i + 1) & f->mask) {
        const mx_json *t = f->token[f->slot[i]];
        if (t->key_size == size && !memcmp(t->key, text, size)) break;
    }
    return i;
}

static bool is_token(const finder *f, const char *text, size_t size) {
    return f->slot[place_of(f, text, size)] >= 0;
}

/* Both sides one behind the other in `out`, of `room` bytes; the size, and *left that of the first. 0: none such. */
static size_t read_merge(const mx_json *m, char *out, size_t room, size_t *left) {
    const char *a = m->text, *b = NULL;
    size_t n = 0;
    *left = 0;
    if (m->type == MX_JSON_STRING && (b = memchr(a, ' ', m->size))) {
        *left = (size_t)(b++ - a);
        n = m->size - *left - 1;
    } else if (m->type == MX_JSON_ARRAY && m->count == 2 && m->child->type == MX_JSON_STRING &&
               m->child->next->type == MX_JSON_STRING) {
        a = m->child->text;
        *left = m->child->size;
        b = m->child->next->text;
        n = m->child->next->size;
    }
    if (!b || *left >= room || n > room - *left) return 0;
    memcpy(out, a, *left);
    memcpy(out + *left, b, n);
    return *left + n;
}

/* Are the next merges all the ways to make token `id` of two others? *m: behind them. */
static bool all_ways(const finder *f, int id, const mx_json **m) {
    const mx_json *t = f->token[id];
    char made[1024];
    bool way[1024] = {false};
    size_t left;
    int ways = 0;
    if (t->key_size > sizeof made) return false;
    for (size_t i = 1; i < t->key_size; i++) {
        way[i] = ((unsigned char)t->key[i] & 0xC0) != 0x80 && is_token(f, t->key, i) &&
                 is_token(f, t->key + i, t->key_size - i);
        ways += way[i];
    }
    for (; ways; ways--, *m = (*m)->next) {
        const size_t n = *m ? read_merge(*m, made, sizeof made, &left) : 0;
        if (!n || n != t->key_size || memcmp(made, t->key, n) || !left || left >= n || !way[left]) return false;
        way[left] = false;
    }
    return true;
}

/* tiktoken joins the neighbours that together are the token of the lowest id, and takes a piece that is a token whole.
 * In tokenizer.json that is ignore_merges, and every way to make a token in the order of ids. NULL, or what is not so.
 */
static const char *no_ranks(const finder *f, const mx_json *model, int texts) {
    const mx_json *merges = mx_json_get(model, "merges");
    const mx_json *m = merges && merges->type == MX_JSON_ARRAY ? merges->child : NULL;
    bool whole = false;
    if (!mx_json_bool(mx_json_get(model, "ignore_merges"), &whole) || !whole) return "ignore_merges is not true";
    for (int id = 0; id < texts; id++)
        if (!all_ways(f, id, &m)) return "its merges are not every way to make a token, in the order of ids";
    return m ? "it has merges that make no token" : NULL;
}

/* A model.bin has no merges: its ids are ranks. */
static mx_status check_ranks(const mx_origin *o, const mx_json *model, const mx_json *const *token, int texts) {
    finder f = {.token = token, .mask = 15};
    while (f.mask / 2 < (uint32_t)texts) f.mask = 2 * f.mask + 1;
    f.slot = malloc(((size_t)f.mask + 1) * sizeof *f.slot);
    if (!f.slot) return mx_origin_no_memory(o);
    memset(f.slot, 0xFF, ((size_t)f.mask + 1) * sizeof *f.slot);
    for (int id = 0; id < texts; id++) f.slot[place_of(&f, token[id]->key, token[id]->key_size)] = id;
    const char *problem = no_ranks(&f, model, texts);
    free(f.slot);
    if (!problem) return MX_OK;
    if (!o->options->allow_loss)
        return mx_fail(o->error, MX_INVALID_ARGUMENT,
                       "%s: tokenizer.json: a model.bin can only hold a vocabulary whose ids are ranks, as tiktoken's, "
                       "and %s; --allow-loss converts it all the same",
                       o->place.path, problem);
    mx_log(MX_LOG_WARNING,
           "%s: tokenizer.json: %s: readers of model.bin take the ids as ranks, and may split a text otherwise",
           o->place.path, problem);
    return MX_OK;
}

/* ---- all of it ----------------------------------------------------------------------------------------------------
 */

static mx_status put_all(const mx_origin *o, const mx_json *root, const mx_json **token, mx_bytes *out, int *rows) {
    const mx_json *first = mx_json_get(mx_json_get(root, "pre_tokenizer"), "pretokenizers");
    const mx_json *regex = mx_json_get(mx_json_get(first ? first->child : NULL, "pattern"), "Regex");
    mx_bytes texts = {0};
    int text_count = 0, special_count = 0;
    uint8_t uuid[16];
    if (!regex || regex->type != MX_JSON_STRING || memchr(regex->text, 0, regex->size))
        return bad(o, "it splits a text by something else than a pattern");
    mx_status status = count_tokens(o, root, token, &text_count, &special_count);
    if (!status) status = put_texts(o, &texts, token, text_count);
    if (!status) status = check_ranks(o, mx_json_get(root, "model"), token, text_count);
    const uint32_t sizes[] = {(uint32_t)special_count, (uint32_t)text_count, (uint32_t)regex->size + 1,
                              (uint32_t)texts.size};
    bool ok = !status && mx_bytes_add(out, tokenizer_uuid, 16) && mx_bytes_add(out, sizes, sizeof sizes);
    for (int i = 0; i < special_count && ok; i++) {
        uuid_of(mx_json_get(root, "added_tokens"), text_count, i, uuid);
        ok = mx_bytes_add(out, uuid, 16);
    }
    ok = ok && mx_bytes_add(out, regex->text, regex->size) && mx_bytes_add(out, "", 1) &&
         (!texts.size || mx_bytes_add(out, texts.data, texts.size));
    mx_bytes_free(&texts);
    *rows = text_count + special_count;
    return status || ok ? status : mx_origin_no_memory(o);
}

mx_status mx_metal_put_vocabulary(const mx_origin *o, mx_bytes *out, int *rows) {
    const mx_bytes *text = mx_record_file(&o->record, "tokenizer.json");
    mx_json_document *document = NULL;
    if (!text)
        return mx_fail(o->error, MX_INVALID_ARGUMENT,
                       "%s: no tokenizer.json, and a model.bin holds the vocabulary: put it beside the model",
                       o->place.path);
    const mx_json **token = calloc((size_t)o->config.vocab + 1, sizeof *token);
    mx_status status = token ? MX_OK : mx_origin_no_memory(o);
    if (!status)
        status = mx_json_parse("tokenizer.json", text->data ? text->data : "", text->size, &document, o->error);
    if (!status) status = put_all(o, mx_json_root(document), token, out, rows);
    mx_json_free(document);
    free(token);
    return status;
}
