/* A tokenizer.json as the keys of a GGUF: tokens in their byte alphabet, a type for each, merges, and which are
 * special. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "convert/origin.h"
#include "tokenizer/tokenizer.h" /* the split pattern */

/* llama.cpp's numbers. */
enum { NORMAL = 1, CONTROL = 3, USER_DEFINED = 4, UNUSED = 5 };

typedef struct vocabulary {
    const mx_json **token; /* [size] by id: a member of model.vocab or of added_tokens; NULL: none */
    int32_t *type;         /* [size] */
    int size;
} vocabulary;

static mx_status bad(const mx_origin *o, const char *what) {
    return mx_fail(o->error, MX_UNSUPPORTED, "%s: tokenizer.json: %s, which a GGUF cannot say", o->place.path, what);
}

/* ---- tokens -------------------------------------------------------------------------------------------------------
 */

static mx_status read_tokens(const mx_origin *o, const mx_json *root, vocabulary *v) {
    const mx_json *tokens = mx_json_get(mx_json_get(root, "model"), "vocab"),
                  *added = mx_json_get(root, "added_tokens");
    int64_t id;
    if (!tokens || tokens->type != MX_JSON_OBJECT) return bad(o, "model.vocab is no object");
    for (const mx_json *t = tokens->child; t; t = t->next) {
        if (!mx_json_int64(t, &id) || id < 0 || id >= v->size)
            return mx_fail(o->error, MX_INVALID_FILE,
                           "%s: tokenizer.json: a token's id is no number below vocab_size, %d", o->place.path,
                           v->size);
        v->token[id] = t;
        v->type[id] = NORMAL;
    }
    for (const mx_json *t = added && added->type == MX_JSON_ARRAY ? added->child : NULL; t; t = t->next) {
        const mx_json *content = mx_json_get(t, "content");
        bool special = false;
        if (!mx_json_int64(mx_json_get(t, "id"), &id) || id < 0 || id >= v->size || !content ||
            content->type != MX_JSON_STRING)
            return mx_fail(o->error, MX_INVALID_FILE,
                           "%s: tokenizer.json: added_tokens: expected a content and an id below vocab_size, %d, each",
                           o->place.path, v->size);
        mx_json_bool(mx_json_get(t, "special"), &special);
        v->token[id] = content;
        v->type[id] = special ? CONTROL : USER_DEFINED;
    }
    return MX_OK;
}

static void put_tokens(mx_gguf_text *g, const vocabulary *v) {
    char pad[32];
    mx_gguf_put_array(g, "tokenizer.ggml.tokens", MX_GGUF_STRING, (uint64_t)v->size);
    for (int i = 0; i < v->size; i++) {
        const mx_json *t = v->token[i];
        if (t && v->type[i] == NORMAL)
            mx_gguf_add_string(g, t->key, t->key_size);
        else if (t)
            mx_gguf_add_string(g, t->text, t->size);
        else
            mx_gguf_add_string(g, pad, (size_t)snprintf(pad, sizeof pad, "[PAD%d]", i));
    }
    mx_gguf_put_array(g, "tokenizer.ggml.token_type", MX_GGUF_I32, (uint64_t)v->size);
    for (int i = 0; i < v->size; i++) mx_gguf_add_i32(g, v->type[i]);
}

/* "left right", or ["left", "right"] in newer files; a byte-level alphabet has no space. */
static mx_status put_merges(const mx_origin *o, mx_gguf_text *g, const mx_json *model) {
    const mx_json *merges = mx_json_get(model, "merges");
    if (!merges || merges->type != MX_JSON_ARRAY) return bad(o, "model.merges is no array");
    mx_bytes pair = {0};
    mx_status status = MX_OK;
    mx_gguf_put_array(g, "tokenizer.ggml.merges", MX_GGUF_STRING, merges->count);
    for (const mx_json *m = merges->child; m && !status; m = m->next) {
        mx_bytes_clear(&pair);
        if (m->type == MX_JSON_STRING) {
            mx_gguf_add_string(g, m->text, m->size);
        } else if (m->type == MX_JSON_ARRAY && m->count == 2 && m->child->type == MX_JSON_STRING &&
                   m->child->next->type == MX_JSON_STRING) {
            if (!mx_bytes_add(&pair, m->child->text, m->child->size) || !mx_bytes_add(&pair, " ", 1) ||
                !mx_bytes_add(&pair, m->child->next->text, m->child->next->size))
                status = mx_origin_no_memory(o);
            mx_gguf_add_string(g, pair.data, pair.size);
        } else {
            status = bad(o, "a merge is no pair of texts");
        }
    }
    mx_bytes_free(&pair);
    return status;
}

/* ---- special ones -------------------------------------------------------------------------------------------------
 */

/* A carried JSON file; NULL: not there, or none. Free with mx_json_free. */
static mx_json_document *parse_carried(const mx_origin *o, const char *name) {
    const mx_bytes *text = mx_record_file(&o->record, name);
    mx_json_document *document = NULL;
    if (text && text->size) mx_json_parse(name, text->data, text->size, &document, NULL);
    return document;
}

static int64_t id_of(const vocabulary *v, const mx_json *text) {
    if (text && text->type == MX_JSON_OBJECT) text = mx_json_get(text, "content");
    for (int i = 0; text && text->type == MX_JSON_STRING && i < v->size; i++) {
        const mx_json *t = v->token[i];
        if (t && v->type[i] != NORMAL && t->size == text->size && !memcmp(t->text, text->text, t->size)) return i;
    }
    return -1;
}

/* As gguf-py's SpecialVocab finds them: by the word in tokenizer_config.json, else the number in config.json. -1: none.
 */
static int64_t special(const mx_origin *o, const vocabulary *v, const char *kind) {
    static const char *const files[] = {"config.json", "generation_config.json"};
    char key[40];
    mx_json_document *document = parse_carried(o, "tokenizer_config.json");
    snprintf(key, sizeof key, "%s_token", kind);
    int64_t id = document ? id_of(v, mx_json_get(mx_json_root(document), key)) : -1;
    mx_json_free(document);
    snprintf(key, sizeof key, "%s_token_id", kind);
    for (int i = 0; i < 2 && id < 0; i++) {
        document = parse_carried(o, files[i]);
        if (!document || !mx_json_int64(mx_json_get(mx_json_root(document), key), &id) || id < 0 ||
            id >= o->config.vocab)
            id = -1;
        mx_json_free(document);
    }
    return id;
}

/* What ends an answer must be what it was: readers take eos, eot and padding for it. */
static mx_status put_specials(const mx_origin *o, const vocabulary *v, mx_gguf_text *g) {
    const mx_config *c = &o->config;
    const int64_t bos = v ? special(o, v, "bos") : -1;
    int64_t eos = v ? special(o, v, "eos") : -1, pad = v ? special(o, v, "pad") : -1;
    if (eos < 0 && c->eos_count) eos = c->eos[0];
    if (bos >= 0) mx_gguf_put_u32(g, "tokenizer.ggml.bos_token_id", (uint32_t)bos);
    if (eos >= 0) mx_gguf_put_u32(g, "tokenizer.ggml.eos_token_id", (uint32_t)eos);
    bool eot = false;
    for (int i = 0; i < c->eos_count; i++) {
        if (c->eos[i] == eos || c->eos[i] == pad) continue;
        if (pad < 0) {
            pad = c->eos[i];
        } else if (!eot) {
            eot = true;
            mx_gguf_put_u32(g, "tokenizer.ggml.eot_token_id", (uint32_t)c->eos[i]);
        } else if (!o->options->allow_loss) {
            return mx_fail(o->error, MX_INVALID_ARGUMENT,
                           "%s: the layout GGUF cannot say: %d tokens that end an answer, eos_token_id; --allow-loss "
                           "converts it all the same",
                           o->place.path, c->eos_count);
        }
    }
    if (pad >= 0) mx_gguf_put_u32(g, "tokenizer.ggml.padding_token_id", (uint32_t)pad);
    return MX_OK;
}

static void put_template(const mx_origin *o, mx_gguf_text *g) {
    const mx_bytes *file = mx_record_file(&o->record, "chat_template.jinja");
    if (file) {
        mx_gguf_put_bytes(g, "tokenizer.chat_template", file->data, file->size);
        return;
    }
    mx_json_document *document = parse_carried(o, "tokenizer_config.json");
    const mx_json *text = document ? mx_json_get(mx_json_root(document), "chat_template") : NULL;
    if (text && text->type == MX_JSON_STRING) mx_gguf_put_bytes(g, "tokenizer.chat_template", text->text, text->size);
    mx_json_free(document);
}

/* ---- all of it ----------------------------------------------------------------------------------------------------
 */

/* A GGUF names the way a text is split; readers know o200k's by "gpt-4o". */
static mx_status check_split(const mx_origin *o, const mx_json *root) {
    const mx_json *first = mx_json_get(mx_json_get(root, "pre_tokenizer"), "pretokenizers");
    const mx_json *regex = mx_json_get(mx_json_get(first ? first->child : NULL, "pattern"), "Regex");
    if (mx_json_is_string(regex, mx_o200k_pattern())) return MX_OK;
    if (!o->options->allow_loss)
        return mx_fail(o->error, MX_INVALID_ARGUMENT,
                       "%s: the layout GGUF cannot say how tokenizer.json splits a text: its pattern is not o200k's; "
                       "--allow-loss writes that it is",
                       o->place.path);
    mx_log(MX_LOG_WARNING, "%s: tokenizer.json splits a text by another pattern than o200k's, which the GGUF names",
           o->place.path);
    return MX_OK;
}

static mx_status put_all(const mx_origin *o, const mx_json *root, vocabulary *v, mx_gguf_text *g) {
    mx_status status = check_split(o, root);
    if (!status) status = read_tokens(o, root, v);
    if (status) return status;
    mx_gguf_put_string(g, "tokenizer.ggml.model", "gpt2");
    mx_gguf_put_string(g, "tokenizer.ggml.pre", "gpt-4o");
    put_tokens(g, v);
    status = put_merges(o, g, mx_json_get(root, "model"));
    if (!status) status = put_specials(o, v, g);
    put_template(o, g);
    return status;
}

mx_status mx_gguf_put_vocabulary(const mx_origin *o, mx_gguf_text *g) {
    const mx_bytes *text = mx_record_file(&o->record, "tokenizer.json");
    if (!text) {
        mx_log(MX_LOG_WARNING, "%s: no tokenizer.json: the GGUF has no vocabulary, and llama.cpp will not run it",
               o->place.path);
        return put_specials(o, NULL, g);
    }
    mx_json_document *document = NULL;
    vocabulary v = {.size = o->config.vocab};
    v.token = calloc((size_t)v.size + 1, sizeof *v.token);
    v.type = malloc(((size_t)v.size + 1) * sizeof *v.type);
    mx_status status = v.token && v.type ? MX_OK : mx_origin_no_memory(o);
    for (int i = 0; i < v.size && !status; i++) v.type[i] = UNUSED;
    if (!status)
        status = mx_json_parse("tokenizer.json", text->data ? text->data : "", text->size, &document, o->error);
    if (!status) status = put_all(o, mx_json_root(document), &v, g);
    mx_json_free(document);
    free(v.token);
    free(v.type);
    return status;
}
