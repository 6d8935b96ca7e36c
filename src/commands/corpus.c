#include "commands/corpus.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands/common.h"

static const size_t FILE_MOST = (size_t)16 << 30;

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

mx_status mx_corpus_read(const char *const *paths, int count, const char *separator, bool harmony, mx_corpus *out,
                         mx_error *error) {
    mx_bytes between = {0};
    *out = (mx_corpus){0};
    out->files = calloc((size_t)count, sizeof *out->files);
    mx_status status = !out->files || (separator && !unescape(separator, &between)) ? mx_out_of_memory(error) : MX_OK;
    for (int i = 0; i < count && !status; i++) {
        mx_bytes *file = &out->files[out->file_count++];
        status = mx_read_file(paths[i], FILE_MOST, file, error);
        if (!status && mx_ends_with(paths[i], ".jsonl"))
            status = add_lines(out, harmony, paths[i], file, error);
        else if (!status)
            status = add_parts(out, paths[i], file, &between, error);
    }
    mx_bytes_free(&between);
    return status;
}
