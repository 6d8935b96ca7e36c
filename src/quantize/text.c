#include "quantize/text.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "turn/conversation.h"

enum {
    TOKEN_BYTES = 12,          /* of text for each token that a window wants: more than it takes */
    TEXT_LIMIT = (1 << 30) - 1 /* bytes of a calibration text */
};

static mx_status no_memory(const char *path, mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "%s: no memory for the calibration text", path);
}

/* Ids from `begin` on are cut into windows; a rest of one token, which predicts nothing, is dropped. */
static bool cut(mx_passages *w, int64_t begin, int64_t window) {
    while (w->ids.count - begin >= 2) {
        int64_t end = w->ids.count - begin > window ? begin + window : w->ids.count;
        int64_t *first = realloc(w->first, ((size_t)w->count + 2) * sizeof *first);
        if (!first) return false;
        w->first = first;
        first[w->count] = begin;
        first[++w->count] = begin = end;
    }
    w->ids.count = begin;
    return true;
}

/* ---- plain text ---- */

/* The first byte at or behind `at` at which a line begins, else a character. */
static size_t line_start(const mx_bytes *text, size_t at) {
    if (!at) return 0;
    const char *newline = memchr(text->data + at, '\n', text->size - at);
    if (newline && newline + 1 < text->data + text->size && newline - text->data - at < 2000)
        return (size_t)(newline - text->data) + 1;
    while (at < text->size && ((unsigned char)text->data[at] & 0xC0) == 0x80) at++;
    return at;
}

/* Whole characters of text[from ...) that take at most `size` bytes. */
static size_t piece_size(const mx_bytes *text, size_t from, size_t size) {
    if (text->size - from <= size) return text->size - from;
    while (size && ((unsigned char)text->data[from + size] & 0xC0) == 0x80) size--;
    return size;
}

/* Appends the first `window` ids of the text from a byte on. */
static mx_status add_piece(const mx_tokenizer *t, const mx_bytes *text, size_t from, int64_t window, mx_passages *out,
                           mx_error *error) {
    const int64_t begin = out->ids.count;
    mx_status status =
        mx_encode(t, text->data + from, piece_size(text, from, (size_t)window * TOKEN_BYTES), &out->ids, error);
    if (out->ids.count - begin > window) out->ids.count = begin + window;
    return status;
}

static mx_status read_plain(const mx_bytes *text, const char *path, const mx_tokenizer *t, int64_t tokens,
                            int64_t window, mx_passages *out, mx_error *error) {
    const int64_t pieces = (tokens + window - 1) / window;
    if (text->size <= (size_t)tokens * TOKEN_BYTES) { /* perhaps all of it is wanted */
        mx_status status = mx_encode(t, text->data ? text->data : "", text->size, &out->ids, error);
        if (status) return status;
        if (out->ids.count <= tokens) return cut(out, 0, window) ? MX_OK : no_memory(path, error);
        out->ids.count = 0;
    }
    for (int64_t i = 0; i < pieces; i++) {
        const int64_t begin = out->ids.count, rest = tokens - begin;
        if (rest < 2) break;
        const size_t from = line_start(text, (size_t)((double)text->size * (double)i / (double)pieces));
        mx_status status = add_piece(t, text, from, rest < window ? rest : window, out, error);
        if (status) return status;
        if (!cut(out, begin, window)) return no_memory(path, error);
    }
    return MX_OK;
}

/* ---- lines of JSON ---- */

typedef struct reader {
    const char *path;
    const mx_tokenizer *tokenizer;
    mx_conversation *conversation; /* NULL until one is needed */
    int64_t line;
    mx_error *error;
} reader;

static mx_status wrong(const reader *r, const char *what) {
    return mx_fail(r->error, MX_INVALID_FILE, "%s: line %lld: %s", r->path, (long long)r->line, what);
}

static bool is_string(const mx_json *v) {
    return v && v->type == MX_JSON_STRING;
}

/* The conversation, empty, without a date: the text is to be the same tomorrow. */
static mx_status begin_conversation(reader *r) {
    mx_status status = r->conversation ? MX_OK : mx_conversation_create(r->tokenizer, &r->conversation, r->error);
    if (status) return status;
    mx_conversation_truncate(r->conversation, 0);
    mx_conversation_keep_thinking(r->conversation, true);
    status = mx_conversation_set(r->conversation, MX_SETTING_DATE, "", r->error);
    return status ? status : mx_conversation_set(r->conversation, MX_SETTING_DEVELOPER, "", r->error);
}

static mx_status add_message(reader *r, const mx_json *m) {
    const mx_json *role = mx_json_get(m, "role"), *content = mx_json_get(m, "content");
    mx_conversation *c = r->conversation;
    if (!is_string(content)) return wrong(r, "a message has no \"content\" that is a string");
    if (mx_json_is_string(role, "user")) return mx_conversation_add_user(c, content->text, content->size, r->error);
    if (mx_json_is_string(role, "assistant")) {
        const mx_json *thinking = mx_json_get(m, "reasoning_content");
        if (!is_string(thinking)) thinking = mx_json_get(m, "thinking");
        mx_status status = MX_OK;
        if (is_string(thinking) && thinking->size)
            status = mx_conversation_add_assistant(c, "analysis", thinking->text, thinking->size, r->error);
        return status ? status : mx_conversation_add_assistant(c, "final", content->text, content->size, r->error);
    }
    if (!mx_json_is_string(role, "system") && !mx_json_is_string(role, "developer"))
        return wrong(r, "a message's \"role\" is none of system, developer, user and assistant");
    if (mx_conversation_count(c)) return mx_conversation_add_developer(c, content->text, content->size, r->error);
    if (memchr(content->text, 0, content->size)) return wrong(r, "instructions hold U+0000");
    return mx_conversation_set(c, MX_SETTING_DEVELOPER, content->text, r->error);
}

static mx_status add_line(reader *r, const char *text, size_t size, mx_ids *ids) {
    mx_json_document *document;
    mx_error why = {0};
    mx_status status = mx_json_parse("JSON", text, size, &document, &why);
    if (status) return status == MX_NO_MEMORY ? no_memory(r->path, r->error) : wrong(r, why.text);
    const mx_json *root = mx_json_root(document), *plain = mx_json_get(root, "text"),
                  *messages = mx_json_get(root, "messages");
    if (is_string(plain))
        status = mx_encode(r->tokenizer, plain->text, plain->size, ids, r->error);
    else if (messages && messages->type == MX_JSON_ARRAY) {
        status = begin_conversation(r);
        for (const mx_json *m = messages->child; m && !status; m = m->next) status = add_message(r, m);
        if (!status) status = mx_conversation_prompt(r->conversation, ids, r->error);
    } else
        status = wrong(r, "expected an object with \"text\", a string, or \"messages\", an array");
    mx_json_free(document);
    return status;
}

static mx_status read_lines(const mx_bytes *text, const char *path, const mx_tokenizer *t, int64_t tokens,
                            int64_t window, mx_passages *out, mx_error *error) {
    reader r = {.path = path, .tokenizer = t, .error = error};
    mx_status status = MX_OK;
    const char *at = text->data, *end = text->data + text->size;
    for (size_t size; at < end && !status && out->ids.count + 2 <= tokens; at += size + 1) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        size = (size_t)((newline ? newline : end) - at);
        r.line++;
        if (strspn(at, " \t\r") >= size) continue;
        const int64_t begin = out->ids.count;
        status = add_line(&r, at, size, &out->ids);
        if (out->ids.count > tokens) out->ids.count = tokens;
        if (!status && !cut(out, begin, window)) status = no_memory(path, error);
    }
    mx_conversation_free(r.conversation);
    return status;
}

/* ---- all ---- */

mx_status mx_passages_read(const char *path, const mx_tokenizer *tokenizer, int64_t tokens, int64_t window,
                           mx_passages *out, mx_error *error) {
    mx_bytes text = {0};
    *out = (mx_passages){0};
    if (tokens < 2 || window < 2 || tokens > INT32_MAX)
        return mx_fail(error, MX_INVALID_ARGUMENT, "calibration: %lld tokens in windows of %lld: expected 2 or more",
                       (long long)tokens, (long long)window);
    mx_status status = mx_read_regular_file(path, TEXT_LIMIT, &text, error);
    if (!status && text.size && !mx_is_utf8(text.data, text.size))
        status =
            mx_fail(error, MX_INVALID_FILE,
                    "%s: is no UTF-8 text to calibrate with (what is packed, as .xz, must be unpacked first)", path);
    if (!status && text.size)
        status = (mx_ends_with(path, ".jsonl") ? read_lines : read_plain)(&text, path, tokenizer, tokens, window, out,
                                                                          error);
    if (!status && !out->count)
        status = mx_fail(error, MX_INVALID_FILE, "%s: no text to calibrate with: expected at least two tokens", path);
    mx_bytes_free(&text);
    if (status) mx_passages_free(out);
    return status;
}

void mx_passages_free(mx_passages *w) {
    mx_ids_free(&w->ids);
    free(w->first);
    *w = (mx_passages){0};
}
