/* mxrun harmony: conversations to token ids and back, one JSON object a line. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/json.h"
#include "commands/common.h"
#include "tokenizer/harmony.h"
#include "tokenizer/tokenizer.h"

typedef struct job {
    mx_tokenizer *tokenizer;
    bool lenient;
} job;

typedef mx_status line_fn(const job *j, const mx_json *line, mx_bytes *out, mx_error *error);

static bool add_string(mx_bytes *out, const char *before, const char *text) {
    return mx_bytes_add_string(out, before) &&
           (text ? mx_bytes_add_json(out, text, strlen(text)) : mx_bytes_add_string(out, "null"));
}

/* ---- render ------------------------------------------------------------------------------------------------------ */
static mx_status read_bool(const mx_json *options, const char *key, bool *value, mx_error *error) {
    const mx_json *v = mx_json_get(options, key);
    if (!v || mx_json_bool(v, value)) return MX_OK;
    return mx_fail(error, MX_INVALID_ARGUMENT, "options: \"%s\" is not true or false", key);
}

static mx_status read_render_options(const mx_json *options, mx_render_options *out, mx_error *error) {
    const mx_json *mode = mx_json_get(options, "mode"), *role = mx_json_get(options, "next_role");
    *out = (mx_render_options){.auto_drop_analysis = true};
    mx_status s = read_bool(options, "auto_drop_analysis", &out->auto_drop_analysis, error);
    if (s == MX_OK) s = read_bool(options, "drop_all_analysis", &out->drop_all_analysis, error);
    if (s != MX_OK) return s;
    if (!mode || mx_json_is_string(mode, "completion")) {
        if (role && role->type != MX_JSON_STRING && role->type != MX_JSON_NULL)
            return mx_fail(error, MX_INVALID_ARGUMENT, "options: \"next_role\" is not a string");
        out->next_role = role && role->type == MX_JSON_STRING ? role->text : "assistant";
    } else if (mx_json_is_string(mode, "training")) {
        out->training = true;
    } else if (!mx_json_is_string(mode, "conversation")) {
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "options: \"mode\" is not \"completion\", \"conversation\" or \"training\"");
    }
    return MX_OK;
}

static bool write_rendered(const mx_tokenizer *t, const mx_ids *ids, mx_bytes *text, mx_bytes *out) {
    bool ok = mx_bytes_add_string(out, "{\"ids\":[");
    for (int64_t i = 0; ok && i < ids->count; i++) {
        size_t size;
        const char *bytes = mx_token_bytes(t, ids->data[i], &size);
        ok = mx_bytes_addf(out, i ? ",%d" : "%d", (int)ids->data[i]) && mx_bytes_add(text, bytes, size);
    }
    return ok && mx_bytes_add_string(out, "],\"text\":") && mx_bytes_add_json(out, text->data, text->size) &&
           mx_bytes_add_string(out, "}\n");
}

static mx_status render_line(const job *j, const mx_json *line, mx_bytes *out, mx_error *error) {
    const mx_json *conversation = mx_json_get(line, "conversation");
    mx_render_options options;
    mx_ids ids = {0};
    mx_bytes text = {0};
    if (!conversation) return mx_fail(error, MX_INVALID_ARGUMENT, "expected an object with a \"conversation\"");
    mx_status s = read_render_options(mx_json_get(line, "options"), &options, error);
    if (s == MX_OK) s = mx_harmony_render(j->tokenizer, conversation, &options, &ids, error);
    if (s == MX_OK && !write_rendered(j->tokenizer, &ids, &text, out)) s = mx_out_of_memory(error);
    mx_ids_free(&ids);
    mx_bytes_free(&text);
    return s;
}

/* ---- parse ------------------------------------------------------------------------------------------------------- */
static bool write_message(const mx_harmony_message *m, bool with_tokens, mx_bytes *out) {
    bool ok = add_string(out, "{\"role\":", m->role) && add_string(out, ",\"name\":", m->name) &&
              mx_bytes_add_string(out, ",\"content\":[{\"type\":\"text\",\"text\":") &&
              mx_bytes_add_json(out, m->content.data, m->content.size) && mx_bytes_add_string(out, "}]");
    if (ok && m->channel) ok = add_string(out, ",\"channel\":", m->channel);
    if (ok && m->recipient) ok = add_string(out, ",\"recipient\":", m->recipient);
    if (ok && m->content_type) ok = add_string(out, ",\"content_type\":", m->content_type);
    if (ok && with_tokens)
        ok = mx_bytes_addf(out, ",\"tokens\":[%lld,%lld]", (long long)m->first_id, (long long)m->last_id);
    return ok && mx_bytes_add_string(out, "}");
}

static bool write_messages(const mx_harmony_parser *p, bool with_tokens, mx_bytes *out) {
    bool ok = mx_bytes_add_string(out, "[");
    for (int i = 0; ok && i < mx_harmony_message_count(p); i++)
        ok = (!i || mx_bytes_add_string(out, ",")) && write_message(mx_harmony_message_at(p, i), with_tokens, out);
    return ok && mx_bytes_add_string(out, "]");
}

static bool write_delta(const mx_harmony_delta *d, mx_bytes *out) {
    bool ok = add_string(out, out->size ? ",[" : "[", d->role) && add_string(out, ",", d->channel) &&
              add_string(out, ",", d->recipient) && mx_bytes_add_string(out, ",");
    if (ok) ok = d->text ? mx_bytes_add_json(out, d->text, d->text_size) : mx_bytes_add_string(out, "null");
    return ok && mx_bytes_add_string(out, "]");
}

/* Pushes all ids; `stream` gets one entry a token (and one for the end where that completed text). *error_at is the
 * number of tokens that went well. */
static mx_status push_all(mx_harmony_parser *p, const mx_json *ids, mx_bytes *stream, int64_t *error_at,
                          mx_error *error) {
    mx_harmony_delta delta;
    *error_at = 0;
    for (const mx_json *v = ids->child; v; v = v->next, ++*error_at) {
        int64_t id;
        if (!mx_json_int64(v, &id) || id < 0 || id > INT32_MAX) id = INT32_MAX; /* no token has it */
        mx_status s = mx_harmony_push(p, (int32_t)id, &delta, error);
        if (s != MX_OK) return s;
        if (!write_delta(&delta, stream)) return mx_out_of_memory(error);
    }
    mx_status s = mx_harmony_end(p, &delta, error);
    if (s == MX_OK && delta.text && !write_delta(&delta, stream)) return mx_out_of_memory(error);
    return s;
}

static bool write_parsed(const mx_harmony_parser *p, bool lenient, mx_status s, int64_t error_at, const mx_error *error,
                         const mx_bytes *stream, mx_bytes *out) {
    bool ok;
    if (s == MX_OK) {
        ok = mx_bytes_add_string(out, "{\"messages\":");
    } else {
        ok = add_string(out, "{\"error\":", error->text) &&
             mx_bytes_addf(out, ",\"error_at\":%lld,\"partial\":", (long long)error_at);
    }
    return ok && write_messages(p, lenient, out) && mx_bytes_add_string(out, ",\"stream\":[") &&
           mx_bytes_add(out, stream->data, stream->size) && mx_bytes_add_string(out, "]}\n");
}

static mx_status parse_line(const job *j, const mx_json *line, mx_bytes *out, mx_error *error) {
    const mx_json *ids = mx_json_get(line, "ids"), *role = mx_json_get(line, "role");
    bool strict = true;
    if (!ids || ids->type != MX_JSON_ARRAY)
        return mx_fail(error, MX_INVALID_ARGUMENT, "expected an object with a list \"ids\"");
    for (const mx_json *v = ids->child; v; v = v->next)
        if (v->type != MX_JSON_NUMBER) return mx_fail(error, MX_INVALID_ARGUMENT, "an element of \"ids\" is no number");
    if (role && role->type != MX_JSON_STRING && role->type != MX_JSON_NULL)
        return mx_fail(error, MX_INVALID_ARGUMENT, "\"role\" is not a string");
    if (mx_json_get(line, "strict") && !mx_json_bool(mx_json_get(line, "strict"), &strict))
        return mx_fail(error, MX_INVALID_ARGUMENT, "\"strict\" is not true or false");
    mx_harmony_mode mode = j->lenient ? MX_HARMONY_LENIENT : strict ? MX_HARMONY_STRICT : MX_HARMONY_NOT_STRICT;
    mx_harmony_parser *p;
    mx_status s = mx_harmony_parser_create(j->tokenizer, mode, role && role->type == MX_JSON_STRING ? role->text : NULL,
                                           &p, error);
    if (s != MX_OK) return s;
    mx_bytes stream = {0};
    int64_t error_at;
    s = push_all(p, ids, &stream, &error_at, error);
    if (s != MX_NO_MEMORY)
        s = write_parsed(p, j->lenient, s, error_at, error, &stream, out) ? MX_OK : mx_out_of_memory(error);
    mx_harmony_parser_free(p);
    mx_bytes_free(&stream);
    return s;
}

/* ---- lines ------------------------------------------------------------------------------------------------------- */
/* A wrong line gives {"error"} and the next one follows; `*not_json` counts lines that were no JSON at all. */
static mx_status run_lines(const job *j, line_fn *work, long long *not_json, mx_error *error) {
    char *line = NULL;
    size_t capacity = 0;
    ssize_t size;
    mx_bytes out = {0};
    mx_status s = MX_OK;
    while (s == MX_OK && (size = getline(&line, &capacity, stdin)) >= 0) {
        mx_json_document *document = NULL;
        mx_error wrong = {0};
        mx_bytes_clear(&out);
        s = mx_json_parse("the line", line, (size_t)size, &document, &wrong);
        if (s != MX_OK && s != MX_NO_MEMORY) ++*not_json;
        if (s == MX_OK) s = work(j, mx_json_root(document), &out, &wrong);
        mx_json_free(document);
        if (s == MX_NO_MEMORY) {
            *error = wrong;
            break;
        }
        if (s != MX_OK) {
            mx_bytes_clear(&out);
            s = add_string(&out, "{\"error\":", wrong.text) && mx_bytes_add_string(&out, "}\n")
                    ? MX_OK
                    : mx_out_of_memory(error);
        }
        if (s == MX_OK) s = mx_write_stdout(&out, error);
    }
    if (s == MX_OK && ferror(stdin)) s = mx_fail(error, MX_IO, "cannot read stdin: %s", strerror(errno));
    free(line);
    mx_bytes_free(&out);
    return s;
}

static int run(const mx_command *self, int argc, const char **argv) {
    static char *model, *file;
    static int jsonl, lenient;
    const struct poptOption table[] = {
        {"model", 'm', POPT_ARG_STRING, &model, 0, "The model: a name (\"mxrun list\"), a path, or ORG/NAME of the hub",
         "MODEL"},
        {"tokenizer", '\0', POPT_ARG_STRING, &file, 0,
         "A tokenizer.json, .gguf or model.bin, or a folder that holds one", "FILE"},
        {"jsonl", '\0', POPT_ARG_NONE, &jsonl, 0, "One JSON object a line, in and out (the only form)", NULL},
        {"lenient", '\0', POPT_ARG_NONE, &lenient, 0,
         "parse: as mxrun reads models itself, where nothing fails and no text is lost", NULL},
        POPT_TABLEEND,
    };
    const char *const *rest;
    int exit_code;
    if (!mx_command_parse(self, table, argc, argv, &rest, &exit_code)) return exit_code;
    bool render = rest && rest[0] && strcmp(rest[0], "render") == 0;
    bool parse = rest && rest[0] && strcmp(rest[0], "parse") == 0;
    if ((!render && !parse) || rest[1]) return mx_command_usage(self, "say \"render\" or \"parse\"");
    if (!jsonl) return mx_command_usage(self, "give --jsonl: the input is one JSON object a line");
    if (render && lenient) return mx_command_usage(self, "--lenient belongs to \"parse\"");
    mx_error error = {0};
    job j = {.lenient = lenient};
    long long not_json = 0;
    if (!mx_open_tokenizer(self, model, file, &j.tokenizer, &exit_code)) return exit_code;
    mx_status s = run_lines(&j, render ? render_line : parse_line, &not_json, &error);
    mx_tokenizer_close(j.tokenizer);
    if (s == MX_OK && not_json) s = mx_fail(&error, MX_INVALID_FILE, "lines that are no JSON: %lld", not_json);
    return s == MX_OK ? MX_EXIT_OK : mx_command_fail(self, &error);
}

const mx_command mx_command_harmony = {
    .name = "harmony",
    .arguments = "render|parse -m MODEL|--tokenizer FILE --jsonl",
    .summary = "Turn conversations into token ids and back",
    .description = "The harmony format, exactly as the openai-harmony library 0.0.8 writes and reads\n"
                   "it. Reads JSON objects from stdin, one a line, and prints one line for each;\n"
                   "{\"error\":\"...\"} where that fails.\n"
                   "\n"
                   "render: {\"conversation\":{\"messages\":[...]},\"options\":{...}} gives\n"
                   "{\"ids\":[...],\"text\":\"...\"}. Options, all optional: \"mode\": \"completion\" (the\n"
                   "default; ends in the next message's role), \"conversation\" or \"training\";\n"
                   "\"next_role\" (\"assistant\"); \"auto_drop_analysis\" (true: the library's rule);\n"
                   "\"drop_all_analysis\" (false; true: all analysis before the last final answer, as in\n"
                   "mxrun's chat).\n"
                   "\n"
                   "parse: {\"ids\":[...],\"role\":\"assistant\",\"strict\":true} gives {\"messages\":[...],\n"
                   "\"stream\":[[role, channel, recipient, text],...]}, an entry a token, or {\"error\",\n"
                   "\"error_at\",\"partial\",\"stream\"}. \"role\" is that of the header the prompt ended\n"
                   "in, null where there was none. --lenient never fails; its messages tell the range\n"
                   "of \"tokens\" they were made of.\n"
                   "\n"
                   "Example:\n"
                   "  echo '{\"conversation\":{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}}' |\n"
                   "    mxrun harmony render -m stories --jsonl\n"
                   "\n"
                   "Exits with 1 when a line was no JSON at all.",
    .run = run,
};
