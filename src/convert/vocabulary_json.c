/* The vocabulary of a GGUF as tokenizer.json, tokenizer_config.json and chat_template.jinja, in the form that
 * transformers writes: what a Hugging Face folder needs beside its weights. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "convert/origin.h"
#include "tokenizer/tokenizer.h" /* the split pattern */

/* llama.cpp's numbers. */
enum { NORMAL = 1, CONTROL = 3, USER_DEFINED = 4 };

typedef struct vocabulary {
    const mx_gguf *g;
    const mx_gguf_value *tokens, *types, *merges;
} vocabulary;

static int type_of(const vocabulary *v, uint64_t id) {
    return (int)mx_load_u32(v->types->as.array.data + 4 * id);
}

/* ---- tokenizer.json -----------------------------------------------------------------------------------------------
 */

static bool add_added(const vocabulary *v, mx_bytes *out) {
    mx_gguf_string s;
    uint64_t at = 0, id = 0;
    bool ok = mx_bytes_add_string(out, "  \"added_tokens\": [\n"), first = true;
    for (; ok && mx_gguf_next_string(v->tokens, &at, &s); id++) {
        if (type_of(v, id) != CONTROL && type_of(v, id) != USER_DEFINED) continue;
        ok = mx_bytes_addf(out, "%s    {\n      \"id\": %llu,\n      \"content\": ", first ? "" : ",\n",
                           (unsigned long long)id) &&
             mx_bytes_add_json(out, s.text, s.size) &&
             mx_bytes_addf(out,
                           ",\n      \"single_word\": false,\n      \"lstrip\": false,\n      \"rstrip\": false,\n"
                           "      \"normalized\": false,\n      \"special\": %s\n    }",
                           type_of(v, id) == CONTROL ? "true" : "false");
        first = false;
    }
    return ok && mx_bytes_add_string(out, "\n  ],\n");
}

static bool add_split(mx_bytes *out) {
    return mx_bytes_add_string(out, "  \"normalizer\": null,\n  \"pre_tokenizer\": {\n    \"type\": \"Sequence\",\n"
                                    "    \"pretokenizers\": [\n      {\n        \"type\": \"Split\",\n"
                                    "        \"pattern\": {\n          \"Regex\": ") &&
           mx_bytes_add_json(out, mx_o200k_pattern(), strlen(mx_o200k_pattern())) &&
           mx_bytes_add_string(
               out, "\n        },\n        \"behavior\": \"Isolated\",\n        \"invert\": false\n      },\n"
                    "      {\n        \"type\": \"ByteLevel\",\n        \"add_prefix_space\": false,\n"
                    "        \"trim_offsets\": true,\n        \"use_regex\": false\n      }\n    ]\n  },\n"
                    "  \"post_processor\": {\n    \"type\": \"ByteLevel\",\n    \"add_prefix_space\": true,\n"
                    "    \"trim_offsets\": false,\n    \"use_regex\": true\n  },\n"
                    "  \"decoder\": {\n    \"type\": \"ByteLevel\",\n    \"add_prefix_space\": true,\n"
                    "    \"trim_offsets\": true,\n    \"use_regex\": true\n  },\n");
}

static bool add_model(const vocabulary *v, mx_bytes *out) {
    mx_gguf_string s;
    uint64_t at = 0, id = 0;
    const char *between = "\n";
    bool ok = mx_bytes_add_string(out, "  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n"
                                       "    \"unk_token\": null,\n    \"continuing_subword_prefix\": null,\n"
                                       "    \"end_of_word_suffix\": null,\n    \"fuse_unk\": false,\n"
                                       "    \"byte_fallback\": false,\n    \"ignore_merges\": true,\n    \"vocab\": {");
    for (; ok && mx_gguf_next_string(v->tokens, &at, &s); id++) {
        if (type_of(v, id) != NORMAL) continue;
        ok = mx_bytes_addf(out, "%s      ", between) && mx_bytes_add_json(out, s.text, s.size) &&
             mx_bytes_addf(out, ": %llu", (unsigned long long)id);
        between = ",\n";
    }
    ok = ok && mx_bytes_add_string(out, "\n    },\n    \"merges\": [");
    between = "\n";
    for (at = 0; ok && mx_gguf_next_string(v->merges, &at, &s); between = ",\n") {
        const char *space = s.size > 1 ? memchr(s.text + 1, ' ', s.size - 1) : NULL;
        const size_t left = space ? (size_t)(space - s.text) : s.size;
        ok = space && mx_bytes_addf(out, "%s      [\n        ", between) && mx_bytes_add_json(out, s.text, left) &&
             mx_bytes_add_string(out, ",\n        ") && mx_bytes_add_json(out, space + 1, s.size - left - 1) &&
             mx_bytes_add_string(out, "\n      ]");
    }
    return ok && mx_bytes_add_string(out, "\n    ]\n  }\n}\n");
}

static bool tokenizer_text(const vocabulary *v, mx_bytes *out) {
    return mx_bytes_add_string(out, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n") &&
           add_added(v, out) && add_split(out) && add_model(v, out);
}

/* ---- tokenizer_config.json ----------------------------------------------------------------------------------------
 */

static bool add_special(const vocabulary *v, const char *key, const char *name, mx_bytes *out) {
    int64_t id;
    uint64_t at = 0;
    mx_gguf_string s = {0};
    if (!mx_gguf_int64(mx_gguf_find(v->g, key), 0, INT32_MAX, &id)) return true;
    for (int64_t i = 0; i <= id; i++)
        if (!mx_gguf_next_string(v->tokens, &at, &s)) return true;
    return mx_bytes_addf(out, "  \"%s\": ", name) && mx_bytes_add_json(out, s.text, s.size) &&
           mx_bytes_add_string(out, ",\n");
}

static bool tokenizer_config_text(const vocabulary *v, mx_bytes *out) {
    return mx_bytes_add_string(out, "{\n") && add_special(v, "tokenizer.ggml.bos_token_id", "bos_token", out) &&
           add_special(v, "tokenizer.ggml.eos_token_id", "eos_token", out) &&
           add_special(v, "tokenizer.ggml.padding_token_id", "pad_token", out) &&
           mx_bytes_add_string(out, "  \"clean_up_tokenization_spaces\": false,\n"
                                    "  \"tokenizer_class\": \"PreTrainedTokenizerFast\"\n}\n");
}

/* ---- all of it ----------------------------------------------------------------------------------------------------
 */

/* Into the record, whose file takes the bytes. */
static bool keep(mx_record *r, const char *name, mx_bytes *text) {
    mx_record_entry *more = realloc(r->file, (size_t)(r->files + 1) * sizeof *more);
    if (more) r->file = more;
    char *own = more ? strdup(name) : NULL;
    if (!own) return false;
    r->file[r->files++] = (mx_record_entry){.name = own, .content = *text};
    *text = (mx_bytes){0};
    return true;
}

mx_status mx_origin_read_vocabulary(mx_origin *o, const mx_gguf *g) {
    const vocabulary v = {g, mx_gguf_find(g, "tokenizer.ggml.tokens"), mx_gguf_find(g, "tokenizer.ggml.token_type"),
                          mx_gguf_find(g, "tokenizer.ggml.merges")};
    const mx_gguf_value *template = mx_gguf_find(g, "tokenizer.chat_template");
    mx_bytes text = {0};
    if (!v.tokens || !v.types || !v.merges || !mx_gguf_is_string(mx_gguf_find(g, "tokenizer.ggml.pre"), "gpt-4o") ||
        v.tokens->kind != MX_GGUF_ARRAY || v.types->kind != MX_GGUF_ARRAY || v.types->as.array.kind != MX_GGUF_I32 ||
        v.tokens->as.array.count != v.types->as.array.count) {
        mx_log(MX_LOG_WARNING, "%s: has no vocabulary of o200k's kind: no tokenizer.json is written", g->file.path);
        return MX_OK;
    }
    bool ok = tokenizer_text(&v, &text) && keep(&o->record, "tokenizer.json", &text) &&
              tokenizer_config_text(&v, &text) && keep(&o->record, "tokenizer_config.json", &text);
    if (ok && template && template->kind == MX_GGUF_STRING)
        ok = (!template->as.string.size || mx_bytes_add(&text, template->as.string.text, template->as.string.size)) &&
             keep(&o->record, "chat_template.jinja", &text);
    mx_bytes_free(&text);
    return ok ? MX_OK
              : mx_fail(o->error, MX_INVALID_FILE,
                        "%s: its vocabulary cannot be made a tokenizer.json: a merge without a space, or no memory",
                        g->file.path);
}
