#include "commands/scoring.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands/common.h"
#include "commands/terminal.h"

enum {
    WINDOW = 2048,
    LLAMA_CPP_WINDOW = 512,
    RUNNING = 32,      /* windows at once: enough rows for a step, and not more keys and values */
    SCORED_ROWS = 256, /* of a step: half of it, as half of a window is scored */
};
static const size_t FILE_MOST = (size_t)16 << 30;

/* ---- options ----------------------------------------------------------------------------------------------------- */

static char *protocol, *separator, *base_top;
static mx_number window = {"--window", NULL, 0, 2, 1 << 30, true, false};
static mx_number stride = {"--stride", NULL, 0, 1, 1 << 30, true, false};
static mx_number most = {"--tokens", NULL, 0, 1, 1e15, true, false};

const struct poptOption mx_scoring_options[] = {
    {"protocol", 'p', POPT_ARG_STRING, &protocol, 0,
     "What is scored, with which past: strided (default), llama.cpp, documents or harmony", "NAME"},
    {"window", 'w', POPT_ARG_STRING, &window.text, 0,
     "Tokens that are computed together (default 2048, or what the context allows, when comparing that of all models; "
     "llama.cpp: 512)",
     "N"},
    {"stride", 's', POPT_ARG_STRING, &stride.text, 0,
     "Tokens from the beginning of one window to that of the next (default: half of the window)", "N"},
    {"separator", '\0', POPT_ARG_STRING, &separator, 0,
     "Text between two documents of a file; \\n is a new line (default: a file is one document)", "TEXT"},
    {"tokens", 'n', POPT_ARG_STRING, &most.text, 0, "Score only the first N tokens", "N"},
    {"base-top", '\0', POPT_ARG_STRING, &base_top, 0,
     "Of distributions that others are compared with, keep the N likeliest tokens, or all (default: all of a "
     "vocabulary "
     "of up to 8192, else 1024)",
     "N"},
    POPT_TABLEEND,
};

/* A whole number, or all: more than any vocabulary has. */
static bool check_top(const mx_command *command, int *out) {
    mx_number number = {"--base-top", base_top, 0, 1, INT_MAX, true, false};
    const bool all = base_top && !strcmp(base_top, "all");
    if (!all && !mx_number_check(command, &number)) return false;
    *out = all ? INT_MAX : (int)number.value;
    return true;
}

bool mx_scoring_check(const mx_command *command, mx_evaluate_options *out) {
    mx_number *const numbers[] = {&window, &stride, &most};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!mx_number_check(command, numbers[i])) return false;
    out->protocol = MX_PROTOCOL_STRIDED;
    if (protocol && !mx_protocol_parse(protocol, &out->protocol)) {
        mx_command_usage(command, "--protocol %s: expected strided, llama.cpp, documents or harmony", protocol);
        return false;
    }
    if (separator &&
        (!*separator || (out->protocol != MX_PROTOCOL_DOCUMENTS && out->protocol != MX_PROTOCOL_HARMONY))) {
        mx_command_usage(command, "--separator is a text, for --protocol documents or harmony");
        return false;
    }
    if (out->protocol == MX_PROTOCOL_LLAMA_CPP && stride.text) {
        mx_command_usage(command, "--stride: the windows of protocol llama.cpp lie side by side");
        return false;
    }
    out->window = (int64_t)window.value;
    out->stride = (int64_t)stride.value;
    out->most_tokens = (int64_t)most.value;
    return check_top(command, &out->base_top);
}

void mx_scoring_window(int positions, mx_evaluate_options *options) {
    if (options->window || options->protocol == MX_PROTOCOL_LLAMA_CPP) return;
    options->window = positions < WINDOW - 1 ? (int64_t)positions + 1 : WINDOW; /* the last token has no row */
}

mx_status mx_scoring_engine(const char *path, const mx_evaluate_options *options, mx_engine_options *out,
                            mx_error *error) {
    mx_config config;
    mx_status status = mx_config_read(path, &config, error);
    if (status) return status;
    int64_t context = options->window;
    if (!context) context = options->protocol == MX_PROTOCOL_LLAMA_CPP ? LLAMA_CPP_WINDOW : WINDOW;
    if (context > config.max_positions && !options->window) context = config.max_positions;
    if (options->window == (int64_t)config.max_positions + 1) context--; /* the last token has no row */
    out->context = context;
    out->max_running = RUNNING;
    out->scored_rows = SCORED_ROWS;
    out->step_seconds = 1e6;
    return MX_OK;
}

/* ---- texts ------------------------------------------------------------------------------------------------------- */

void mx_corpus_free(mx_corpus *c) {
    for (int i = 0; i < c->file_count; i++) mx_bytes_free(&c->files[i]);
    for (int i = 0; i < c->count; i++) {
        mx_json_free(c->documents[i]);
        free(c->names[i]);
    }
    free(c->files);
    free(c->documents);
    free(c->texts);
    free(c->names);
}

/* Takes `document` and `name`, which may be NULL, also when this fails. */
static bool add_text(mx_corpus *c, mx_evaluate_text text, mx_json_document *document, char *name) {
    if (c->count == c->capacity && c->capacity < 1 << 29) {
        const int capacity = c->capacity ? 2 * c->capacity : 16;
        mx_evaluate_text *texts = realloc(c->texts, sizeof *texts * (size_t)capacity);
        if (texts) c->texts = texts;
        mx_json_document **documents = realloc(c->documents, sizeof(mx_json_document *) * (size_t)capacity);
        if (documents) c->documents = documents;
        char **names = realloc(c->names, sizeof(char *) * (size_t)capacity);
        if (names) c->names = names;
        if (texts && documents && names) c->capacity = capacity;
    }
    if (c->count == c->capacity) {
        mx_json_free(document);
        free(name);
        return false;
    }
    c->documents[c->count] = document;
    c->names[c->count] = name;
    c->texts[c->count++] = text;
    return true;
}

/* A line of a .jsonl: a string, an object with "text", or, for harmony, one with "messages", which stays JSON. */
static mx_status add_line(mx_corpus *c, bool harmony, char *name, const char *line, size_t size, mx_error *error) {
    mx_json_document *document;
    mx_status status = mx_json_parse(name, line, size, &document, error);
    if (status) {
        free(name);
        return status;
    }
    const mx_json *root = mx_json_root(document),
                  *text = root->type == MX_JSON_STRING ? root : mx_json_get(root, "text");
    const bool conversation = harmony && mx_json_get(root, "messages");
    if (!conversation && (!text || text->type != MX_JSON_STRING)) {
        status =
            mx_fail(error, MX_INVALID_FILE, "%s: expected a string, {\"text\": \"...\"}%s", name,
                    harmony ? " or {\"messages\": [...]}" : ", or, with --protocol harmony, {\"messages\": [...]}");
        mx_json_free(document);
        free(name);
        return status;
    }
    const mx_evaluate_text found = {name, conversation ? line : text->text, conversation ? size : text->size};
    return add_text(c, found, document, name) ? MX_OK : mx_out_of_memory(error);
}

static mx_status add_lines(mx_corpus *c, bool harmony, const char *path, const mx_bytes *file, mx_error *error) {
    mx_status status = MX_OK;
    size_t end;
    int number = 0;
    for (size_t at = 0; at < file->size && !status; at = end + 1) {
        const char *line = file->data + at, *newline = memchr(line, '\n', file->size - at);
        end = newline ? (size_t)(newline - file->data) : file->size;
        number++;
        if (strspn(line, " \t\r") >= end - at) continue;
        char *name = malloc(strlen(path) + 40);
        if (!name) return mx_out_of_memory(error);
        sprintf(name, "%s: line %d", path, number);
        status = add_line(c, harmony, name, line, end - at, error);
    }
    return status;
}

/* The parts between separators that are not empty. */
static mx_status add_parts(mx_corpus *c, const char *path, const mx_bytes *file, const mx_bytes *between,
                           mx_error *error) {
    const char *at = file->data, *end = file->data + file->size;
    for (const char *next; at && at < end; at = next ? next + between->size : NULL) {
        next = between->size ? memmem(at, (size_t)(end - at), between->data, between->size) : NULL;
        const size_t size = (size_t)((next ? next : end) - at);
        if (size && !add_text(c, (mx_evaluate_text){path, at, size}, NULL, NULL)) return mx_out_of_memory(error);
    }
    return MX_OK;
}

/* --separator with \n, \t and \\ as what they stand for. */
static bool unescape(const char *text, mx_bytes *out) {
    static const char letters[] = "nt\\", meant[] = "\n\t\\";
    for (bool ok = true; *text && ok; text++) {
        const char *letter = *text == '\\' && text[1] ? strchr(letters, text[1]) : NULL;
        ok = mx_bytes_add(out, letter ? &meant[letter - letters] : text, 1);
        text += letter != NULL;
        if (!ok) return false;
    }
    return true;
}

mx_status mx_corpus_read(const mx_command *command, const char *const *paths, mx_protocol of, mx_corpus *out,
                         mx_error *error) {
    mx_bytes between = {0};
    const bool harmony = of == MX_PROTOCOL_HARMONY;
    int count = 0, stdins = 0;
    *out = (mx_corpus){0};
    for (; paths[count]; count++) stdins += !strcmp(paths[count], "-");
    if (stdins > 1) return mx_fail(error, MX_INVALID_ARGUMENT, "- is named twice, and stdin can be read only once");
    out->files = calloc((size_t)count, sizeof *out->files);
    mx_status status = !out->files || (separator && !unescape(separator, &between)) ? mx_out_of_memory(error) : MX_OK;
    for (int i = 0; i < count && !status; i++) {
        mx_bytes *file = &out->files[out->file_count++];
        status = mx_read_file(paths[i], FILE_MOST, file, error);
        if (!status && mx_ends_with(paths[i], ".jsonl"))
            status = add_lines(out, harmony, paths[i], file, error);
        else if (!status)
            status = add_parts(out, paths[i], file, &between, error);
        if (!status) mx_warn_invalid_utf8(command, paths[i], file);
    }
    mx_bytes_free(&between);
    return status;
}
