/* mxrun tokenize and mxrun detokenize: text to ids and back. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/json.h"
#include "commands/common.h"
#include "tokenizer/tokenizer.h"

/* Plain input is held in memory as a whole. */
#define MAX_TEXT ((size_t)1 << 32)

typedef struct job {
    const mx_command *command;
    mx_tokenizer *tokenizer;
    bool jsonl, special, skip_special;
} job;

/* Parses the options and opens the tokenizer. Returns false with *exit_code set when the command is over. */
static bool start(const mx_command *self, int argc, const char **argv, job *j, int *exit_code) {
    static char *model, *file;
    static int jsonl, special, skip_special;
    bool back = strcmp(self->name, "detokenize") == 0;
    const struct poptOption tokenize_table[] = {
        {"special", '\0', POPT_ARG_NONE, &special, 0, "Special tokens spelled out in the text become their ids", NULL},
        POPT_TABLEEND,
    };
    const struct poptOption detokenize_table[] = {
        {"special", '\0', POPT_ARG_NONE, &special, 0, "Special tokens come out by name (the default)", NULL},
        {"skip-special", '\0', POPT_ARG_NONE, &skip_special, 0, "Special tokens are left out", NULL},
        POPT_TABLEEND,
    };
    const struct poptOption table[] = {
        {"model", 'm', POPT_ARG_STRING, &model, 0, "The model: a name (\"mxrun list\"), a path, or ORG/NAME of the hub",
         "MODEL"},
        {"tokenizer", '\0', POPT_ARG_STRING, &file, 0,
         "A tokenizer.json, .gguf or model.bin, or a folder that holds one", "FILE"},
        {"jsonl", '\0', POPT_ARG_NONE, &jsonl, 0, "One JSON object a line, in and out", NULL},
        {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)(back ? detokenize_table : tokenize_table), 0, NULL, NULL},
        POPT_TABLEEND,
    };
    const char *const *rest;
    if (!mx_command_parse(self, table, argc, argv, &rest, exit_code)) return false;
    if (rest && rest[0]) {
        *exit_code = mx_command_usage(self, "unexpected argument \"%s\"; the input comes from stdin", rest[0]);
        return false;
    }
    if (special && skip_special) {
        *exit_code = mx_command_usage(self, "give --special or --skip-special, not both");
        return false;
    }
    if (!mx_open_tokenizer(self, model, file, &j->tokenizer, exit_code)) return false;
    j->command = self;
    j->jsonl = jsonl;
    j->special = special;
    j->skip_special = skip_special;
    return true;
}

static mx_status encode(const job *j, const char *text, size_t size, mx_ids *ids, mx_error *error) {
    ids->count = 0;
    return (j->special ? mx_encode_special : mx_encode)(j->tokenizer, text, size, ids, error);
}

static bool add_ids(mx_bytes *out, const mx_ids *ids, char separator) {
    char text[16];
    for (int64_t i = 0; i < ids->count; i++) {
        int n = snprintf(text, sizeof text, "%d", (int)ids->data[i]);
        if (i && !mx_bytes_add(out, &separator, 1)) return false;
        if (!mx_bytes_add(out, text, (size_t)n)) return false;
    }
    return true;
}

/* `text`: the id as it was given; `id` < 0: it is out of every range. */
static mx_status add_token(const job *j, int64_t id, const char *text, mx_bytes *out, mx_error *error) {
    size_t size = 0;
    const char *bytes = id >= 0 && id <= INT32_MAX ? mx_token_bytes(j->tokenizer, (int32_t)id, &size) : NULL;
    if (!bytes)
        return mx_fail(error, MX_INVALID_FILE, "%s is no token; ids go from 0 to %d", text,
                       (int)mx_tokenizer_size(j->tokenizer) - 1);
    if (j->skip_special && mx_is_special(j->tokenizer, (int32_t)id)) return MX_OK;
    return mx_bytes_add(out, bytes, size) ? MX_OK : mx_out_of_memory(error);
}

/* ---- one JSON line ----------------------------------------------------------------------------------------------- */

typedef struct line_buffers {
    mx_ids ids;
    mx_bytes bytes, out;
} line_buffers;

static mx_status tokenize_line(const job *j, const mx_json *line, line_buffers *b, mx_error *error) {
    const mx_json *text = mx_json_get(line, "text");
    if (!text || text->type != MX_JSON_STRING)
        return mx_fail(error, MX_INVALID_FILE, "expected an object with a string \"text\"");
    mx_status status = encode(j, text->text, text->size, &b->ids, error);
    if (status != MX_OK) return status;
    bool ok = mx_bytes_add_string(&b->out, "{\"ids\":[") && add_ids(&b->out, &b->ids, ',') &&
              mx_bytes_add_string(&b->out, "]}\n");
    return ok ? MX_OK : mx_out_of_memory(error);
}

static mx_status detokenize_line(const job *j, const mx_json *line, line_buffers *b, mx_error *error) {
    const mx_json *ids = mx_json_get(line, "ids");
    if (!ids || ids->type != MX_JSON_ARRAY)
        return mx_fail(error, MX_INVALID_FILE, "expected an object with a list \"ids\"");
    mx_bytes_clear(&b->bytes);
    for (const mx_json *v = ids->child; v; v = v->next) {
        int64_t id;
        if (v->type != MX_JSON_NUMBER) return mx_fail(error, MX_INVALID_FILE, "an element of \"ids\" is no number");
        if (!mx_json_int64(v, &id)) id = -1;
        mx_status status = add_token(j, id, v->text, &b->bytes, error);
        if (status != MX_OK) return status;
    }
    bool ok = mx_bytes_add_string(&b->out, "{\"bytes_b64\":\"") &&
              mx_bytes_add_base64(&b->out, b->bytes.data, b->bytes.size) && mx_bytes_add_string(&b->out, "\"}\n");
    return ok ? MX_OK : mx_out_of_memory(error);
}

static mx_status run_lines(const job *j, mx_status (*work)(const job *, const mx_json *, line_buffers *, mx_error *),
                           mx_error *error) {
    char *line = NULL;
    size_t capacity = 0;
    ssize_t size;
    line_buffers b = {0};
    mx_status status = MX_OK;
    for (long long number = 1; status == MX_OK && (size = getline(&line, &capacity, stdin)) >= 0; number++) {
        mx_json_document *document = NULL;
        mx_bytes_clear(&b.out);
        status = mx_json_parse("the line", line, (size_t)size, &document, error);
        if (status == MX_OK) status = work(j, mx_json_root(document), &b, error);
        mx_json_free(document);
        if (status != MX_OK)
            mx_fail_within(error, status, "line %lld", number);
        else
            status = mx_write_stdout(&b.out, error);
    }
    if (status == MX_OK && ferror(stdin)) status = mx_fail(error, MX_IO, "cannot read stdin: %s", strerror(errno));
    free(line);
    mx_ids_free(&b.ids);
    mx_bytes_free(&b.bytes);
    mx_bytes_free(&b.out);
    return status;
}

/* ---- plain ------------------------------------------------------------------------------------------------------- */

static mx_status tokenize_plain(const job *j, mx_error *error) {
    mx_bytes text = {0}, out = {0};
    mx_ids ids = {0};
    mx_status status = mx_read_file("-", MAX_TEXT, &text, error);
    if (status == MX_OK) status = encode(j, text.data, text.size, &ids, error);
    if (status == MX_OK && (!add_ids(&out, &ids, ' ') || !mx_bytes_add(&out, "\n", 1)))
        status = mx_out_of_memory(error);
    if (status == MX_OK) status = mx_write_stdout(&out, error);
    mx_bytes_free(&text);
    mx_bytes_free(&out);
    mx_ids_free(&ids);
    return status;
}

/* Ids between white space, of any number in a line. Text goes out in chunks and at the end of each line. */
static mx_status detokenize_plain(const job *j, mx_error *error) {
    enum { CHUNK = 1 << 16 };
    mx_bytes out = {0};
    mx_status status = MX_OK;
    long long line = 1;
    char digits[32] = ""; /* of the id that is being read; longer ones are shown cut */
    size_t count = 0;
    while (status == MX_OK) {
        int c = getc(stdin);
        if (c >= '0' && c <= '9') {
            if (count < sizeof digits - 1) digits[count++] = (char)c;
            digits[count] = 0;
            continue;
        }
        if (c != EOF && !strchr(" \t\r\n\v\f", c ? c : 'x')) {
            status = mx_fail(error, MX_INVALID_FILE,
                             "expected ids, whole numbers between white space, found byte 0x%02X", c);
            break;
        }
        if (count) status = add_token(j, strtoll(digits, NULL, 10), digits, &out, error);
        count = 0;
        if (status != MX_OK || c == EOF) break;
        if (c == '\n') line++;
        if (c == '\n' || out.size >= CHUNK) {
            status = mx_write_stdout(&out, error);
            mx_bytes_clear(&out);
        }
    }
    if (status == MX_INVALID_FILE) mx_fail_within(error, status, "line %lld", line);
    if (status == MX_OK && ferror(stdin)) status = mx_fail(error, MX_IO, "cannot read stdin: %s", strerror(errno));
    if (status == MX_OK) status = mx_write_stdout(&out, error);
    mx_bytes_free(&out);
    return status;
}

/* ------------------------------------------------------------------------------------------------------------------ */

static int finish(const mx_command *self, job *j, mx_status status, mx_error *error) {
    mx_tokenizer_close(j->tokenizer);
    return status == MX_OK ? MX_EXIT_OK : mx_command_fail(self, error);
}

static int run_tokenize(const mx_command *self, int argc, const char **argv) {
    job j = {0};
    int exit_code;
    mx_error error = {0};
    if (!start(self, argc, argv, &j, &exit_code)) return exit_code;
    mx_status status = j.jsonl ? run_lines(&j, tokenize_line, &error) : tokenize_plain(&j, &error);
    return finish(self, &j, status, &error);
}

static int run_detokenize(const mx_command *self, int argc, const char **argv) {
    job j = {0};
    int exit_code;
    mx_error error = {0};
    if (!start(self, argc, argv, &j, &exit_code)) return exit_code;
    mx_status status = j.jsonl ? run_lines(&j, detokenize_line, &error) : detokenize_plain(&j, &error);
    return finish(self, &j, status, &error);
}

const mx_command mx_command_tokenize = {
    .name = "tokenize",
    .arguments = "-m MODEL|--tokenizer FILE [--jsonl] [--special]",
    .summary = "Turn text into token ids",
    .description = "Reads text from stdin and prints its token ids, separated by spaces, on one line.\n"
                   "Special tokens that are spelled out in the text are plain text unless --special\n"
                   "is given. Bytes that are no UTF-8 become U+FFFD.\n"
                   "\n"
                   "With --jsonl each line is an object {\"text\": \"...\"} (other members are ignored)\n"
                   "and gives a line {\"ids\":[...]}.\n"
                   "\n"
                   "Examples:\n"
                   "  $ echo -n \"Hello, world\" | mxrun tokenize -m stories\n"
                   "  $ mxrun tokenize --tokenizer tokenizer.json --jsonl < texts.jsonl > ids.jsonl",
    .run = run_tokenize,
};

const mx_command mx_command_detokenize = {
    .name = "detokenize",
    .arguments = "-m MODEL|--tokenizer FILE [--jsonl] [--skip-special]",
    .summary = "Turn token ids into text",
    .description = "Reads token ids from stdin, separated by white space, and writes their bytes to\n"
                   "stdout, exactly: nothing is added, and bytes that are no UTF-8 stay as they are.\n"
                   "Special tokens come out by name, such as <|end|>.\n"
                   "\n"
                   "With --jsonl each line is an object {\"ids\": [...]} (other members are ignored)\n"
                   "and gives a line {\"bytes_b64\":\"...\"}.\n"
                   "\n"
                   "Example:\n"
                   "  $ echo -n \"Hello, world\" | mxrun tokenize -m stories | mxrun detokenize -m stories",
    .run = run_detokenize,
};
