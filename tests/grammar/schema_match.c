#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/json.h"
#include "grammar/schema.h"

/* Which texts are of a schema: reads lines {"schema": ..., "texts": ["..."], "spaces": true, "strict": true} (the last
 * two may be absent) and writes for each {"matches": [true, ...], "seconds": ..., "bytes": ...} or {"status": "...",
 * "error": "..."}. What scripts are to test the compiler with. */

static void answer(const mx_json *line, mx_bytes *out) {
    const mx_json *schema = mx_json_get(line, "schema"), *texts = mx_json_get(line, "texts");
    mx_schema_options options = {0};
    bool flag;
    if (mx_json_bool(mx_json_get(line, "spaces"), &flag) && flag) options.spaces = MX_SPACES_FEW;
    if (mx_json_bool(mx_json_get(line, "strict"), &flag)) options.openai_strict = flag;
    mx_grammar *grammar = NULL;
    mx_error error = {0};
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    const mx_status status = mx_schema_compile(schema, "schema", &options, &grammar, &error);
    clock_gettime(CLOCK_MONOTONIC, &end);
    const double seconds = (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) * 1e-9;
    if (status) {
        mx_bytes_addf(out, "{\"status\": \"%s\", \"seconds\": %.6f, \"error\": ", mx_status_name(status), seconds);
        mx_bytes_add_json(out, error.text, strlen(error.text));
        mx_bytes_add_string(out, "}\n");
        return;
    }
    mx_bytes_add_string(out, "{\"matches\": [");
    for (const mx_json *t = texts ? texts->child : NULL; t; t = t->next)
        mx_bytes_addf(out, "%s%s", t == texts->child ? "" : ", ",
                      mx_grammar_match(grammar, t->text, t->size) ? "true" : "false");
    mx_bytes_addf(out, "], \"seconds\": %.6f, \"bytes\": %llu}\n", seconds,
                  (unsigned long long)mx_grammar_bytes(grammar));
    mx_grammar_free(grammar);
}

int main(void) {
    char *line = NULL;
    size_t room = 0;
    ssize_t size;
    while ((size = getline(&line, &room, stdin)) > 0) {
        mx_json_document *document = NULL;
        mx_error error;
        mx_bytes out = {0};
        if (mx_json_parse("line", line, (size_t)size, &document, &error) ||
            !mx_json_get(mx_json_root(document), "schema")) {
            fprintf(stderr, "%s\n", document ? "no \"schema\"" : error.text);
            return 2;
        }
        answer(mx_json_root(document), &out);
        fwrite(out.data, 1, out.size, stdout);
        fflush(stdout);
        mx_bytes_free(&out);
        mx_json_free(document);
    }
    free(line);
    return 0;
}
