/* A tokenizer.json as model.bin has it: UUIDs of special tokens, the split pattern, the bytes of all other tokens. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "convert/origin.h"

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

/* The byte alphabet of GPT-2: printable bytes stand for themselves, the others follow from U+0100 on. */
static void byte_alphabet(int16_t of[512]) {
    int next = 256;
    memset(of, -1, 512 * sizeof *of);
    for (int b = 0; b < 256; b++) {
        const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174);
        of[printable ? b : next++] = (int16_t)b;
    }
}

/* Characters of that alphabet, all below U+0200, as bytes. 0: others are among them, or there is no room. */
static size_t token_bytes(const mx_json *t, const int16_t of[512], uint8_t *out, size_t room) {
    size_t n = 0;
    for (size_t i = 0; i < t->key_size; n++) {
        const unsigned char c = (unsigned char)t->key[i++];
        int code = c < 0x80 ? c : -1;
        if (c >= 0xC2 && c < 0xC8 && i < t->key_size) code = (c & 0x1F) << 6 | ((unsigned char)t->key[i++] & 0x3F);
        if (n == room || code < 0 || of[code] < 0) return 0;
        out[n] = (uint8_t)of[code];
    }
    return n;
}

static mx_status put_texts(const mx_origin *o, mx_bytes *out, const mx_json *const *token, int texts) {
    int16_t of[512];
    uint8_t bytes[512];
    byte_alphabet(of);
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
