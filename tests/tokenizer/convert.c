#include "convert.h"

#include <stdio.h>
#include <stdlib.h>

#include "tokenizer/source.h"

static void add(mx_bytes *b, const void *data, size_t size) {
    assert_true(mx_bytes_add(b, data, size));
}
static void add_u32(mx_bytes *b, uint32_t v) {
    add(b, &v, 4);
}
static void add_u64(mx_bytes *b, uint64_t v) {
    add(b, &v, 8);
}
static void add_text(mx_bytes *b, const char *text, size_t size) {
    add_u64(b, size);
    add(b, text, size);
}

/* ---- GGUF -------------------------------------------------------------------------------------------------------- */

enum { KIND_I32 = 5, KIND_STRING = 8, KIND_ARRAY = 9 };

typedef struct writer {
    const gguf_change *change;
    int changes, keys;
    mx_bytes *out;
} writer;

/* `value`: type and value. */
static void add_key(writer *w, const char *key, const mx_bytes *value) {
    const void *data = value->data;
    size_t size = value->size;
    for (int i = 0; i < w->changes; i++)
        if (strcmp(w->change[i].key, key) == 0) {
            data = w->change[i].value;
            size = w->change[i].size;
        }
    if (!data) return;
    add_text(w->out, key, strlen(key));
    add(w->out, data, size);
    w->keys++;
}

static void begin_array(mx_bytes *b, uint32_t kind, uint64_t count) {
    mx_bytes_clear(b);
    add_u32(b, KIND_ARRAY);
    add_u32(b, kind);
    add_u64(b, count);
}

static void add_word(writer *w, const char *key, const char *word) {
    mx_bytes value = {0};
    add_u32(&value, KIND_STRING);
    add_text(&value, word, strlen(word));
    add_key(w, key, &value);
    mx_bytes_free(&value);
}

typedef struct token {
    const char *text;
    size_t size;
    int32_t type;
} token;

static token *list_tokens(const mx_json *tokenizer, uint32_t count) {
    token *list = calloc(count, sizeof *list);
    assert_non_null(list);
    int64_t id;
    for (const mx_json *t = mx_json_get(mx_json_get(tokenizer, "model"), "vocab")->child; t; t = t->next)
        if (mx_json_int64(t, &id) && id < count) list[id] = (token){t->key, t->key_size, 1};
    for (const mx_json *t = mx_json_get(tokenizer, "added_tokens")->child; t; t = t->next) {
        const mx_json *content = mx_json_get(t, "content");
        bool special = false;
        mx_json_bool(mx_json_get(t, "special"), &special);
        if (mx_json_int64(mx_json_get(t, "id"), &id) && id < count)
            list[id] = (token){content->text, content->size, special ? 3 : 4};
    }
    return list;
}

static void add_tokens(writer *w, const mx_json *tokenizer, uint32_t count) {
    token *list = list_tokens(tokenizer, count);
    mx_bytes tokens = {0}, types = {0};
    begin_array(&tokens, KIND_STRING, count);
    begin_array(&types, KIND_I32, count);
    for (uint32_t id = 0; id < count; id++) {
        char pad[20];
        int size = snprintf(pad, sizeof pad, "[PAD%u]", id);
        if (list[id].type)
            add_text(&tokens, list[id].text, list[id].size);
        else
            add_text(&tokens, pad, (size_t)size);
        add_u32(&types, list[id].type ? (uint32_t)list[id].type : 5);
    }
    add_key(w, "tokenizer.ggml.tokens", &tokens);
    add_key(w, "tokenizer.ggml.token_type", &types);
    mx_bytes_free(&tokens);
    mx_bytes_free(&types);
    free(list);
}

static void add_merges(writer *w, const mx_json *tokenizer) {
    const mx_json *list = mx_json_get(mx_json_get(tokenizer, "model"), "merges");
    mx_bytes merges = {0}, line = {0};
    begin_array(&merges, KIND_STRING, list->count);
    for (const mx_json *m = list->child; m; m = m->next) {
        const bool pair = m->type == MX_JSON_ARRAY;
        const mx_json *left = pair ? m->child : m;
        mx_bytes_clear(&line);
        add(&line, left->text, left->size);
        if (pair) {
            add(&line, " ", 1);
            add(&line, left->next->text, left->next->size);
        }
        add_text(&merges, line.data, line.size);
    }
    add_key(w, "tokenizer.ggml.merges", &merges);
    mx_bytes_free(&merges);
    mx_bytes_free(&line);
}

void tokenizer_gguf_changed(const mx_json *tokenizer, uint32_t count, const gguf_change *changes, int change_count,
                            mx_bytes *out) {
    writer w = {.change = changes, .changes = change_count, .out = out};
    size_t start = out->size;
    add(out, "GGUF", 4);
    add_u32(out, 3);
    add_u64(out, 0);
    add_u64(out, 0);
    add_word(&w, "general.architecture", "gpt-oss");
    add_word(&w, "tokenizer.ggml.model", "gpt2");
    add_word(&w, "tokenizer.ggml.pre", "gpt-4o");
    add_tokens(&w, tokenizer, count);
    add_merges(&w, tokenizer);
    memcpy(out->data + start + 16, &(uint64_t){(uint64_t)w.keys}, 8);
}

void tokenizer_gguf(const mx_json *tokenizer, uint32_t count, mx_bytes *out) {
    tokenizer_gguf_changed(tokenizer, count, NULL, 0, out);
}

const char *gguf_file(const char *path, uint32_t count) {
    mx_bytes json = {0}, out = {0};
    mx_json_document *document = NULL;
    mx_error error = {0};
    if (mx_read_file(path, (size_t)1 << 30, &json, &error) != MX_OK ||
        mx_json_parse(path, json.data, json.size, &document, &error) != MX_OK)
        fail_msg("%s", error.text);
    tokenizer_gguf(mx_json_root(document), count, &out);
    mx_json_free(document);
    const char *file = scratch_file("tokenizer.gguf", out.data, out.size);
    mx_bytes_free(&json);
    mx_bytes_free(&out);
    return file;
}

/* ---- metal ------------------------------------------------------------------------------------------------------- */

static void add_uuid(mx_bytes *b, const char *hex) {
    for (int i = 0; i < 16; i++) {
        unsigned byte;
        assert_int_equal(sscanf(hex + 2 * i, "%2x", &byte), 1);
        add(b, &(uint8_t){(uint8_t)byte}, 1);
    }
}

static const char *uuid_of(const char *name, size_t size) {
    static const char *const known[][2] = {
        {"<|start|>", "55a77c2f8a014c548ac2313bfc7e208d"},
        {"<|message|>", "16e40431f47f4b22b59b8b278fc30a54"},
        {"<|end|>", "fcac2f6d47054f6bb228642accac7238"},
        {"<|return|>", "f799ff69199243c4a3d8d831f475dc75"},
        {"<|constrain|>", "c0bb14c7602249daad08792d67e8b470"},
        {"<|channel|>", "fd3dda11c8ab4033876ed93deb172c93"},
        {"<|call|>", "1220f796e3884de5b487fe2eb5fe03c0"},
        {"<|reserved_200000|>", "07d7da55b3464cff8b377cefacf8a3e8"}, /* untrusted */
        {"<|reserved_200013|>", "e15ba70228c44292ab8fffa434709128"}, /* refusal */
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strlen(known[i][0]) == size && memcmp(known[i][0], name, size) == 0) return known[i][1];
    return "00000000000000000000000000000000";
}

void tokenizer_metal(const mx_tokenizer *t, uint32_t count, const char *pattern, mx_bytes *out) {
    mx_bytes texts = {0};
    uint32_t text_count = 0;
    size_t size;
    const char *bytes;
    for (; !mx_is_special(t, (int32_t)text_count); text_count++) {
        bytes = mx_token_bytes(t, (int32_t)text_count, &size);
        add(&texts, &(uint16_t){(uint16_t)size}, 2);
        add(&texts, bytes, size);
    }
    add(out, "GPT-OSS v1.0\0\0\0\0", 16);
    add_uuid(out, "df52dc8617894ed0a29566f10508145b");
    for (int i = 0; i < 17; i++) add_u32(out, 0);
    add_uuid(out, "229177a857754268bfd8d588b351c56d");
    add_uuid(out, "7401aded2a9540cbb7829ccebaafe72b");
    add_u32(out, count - text_count);
    add_u32(out, text_count);
    add_u32(out, (uint32_t)strlen(pattern) + 1);
    add_u32(out, (uint32_t)texts.size);
    for (uint32_t id = text_count; id < count; id++) {
        bytes = mx_token_bytes(t, (int32_t)id, &size);
        add_uuid(out, uuid_of(bytes, size));
    }
    add(out, pattern, strlen(pattern) + 1);
    add(out, texts.data, texts.size);
    mx_bytes_free(&texts);
}

const char *metal_file(const char *path, uint32_t count) {
    mx_tokenizer *t = open_or_fail(path);
    mx_bytes out = {0};
    tokenizer_metal(t, count, mx_o200k_pattern(), &out);
    mx_tokenizer_close(t);
    const char *file = scratch_file("model.bin", out.data, out.size);
    mx_bytes_free(&out);
    return file;
}
