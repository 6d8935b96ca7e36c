/* A JSON schema (up to a zero byte) and a text: compiled in both ways of spaces, matched at once and byte by byte. */
#include <stdlib.h>
#include <string.h>

#include "grammar/schema.h"
#include "input.h"

static void check(bool right) {
    if (!right) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    mx_error error;
    mx_json_document *document;
    if (size < 2) return 0;
    const uint8_t *zero = memchr(data + 1, 0, size - 1);
    const size_t length = (zero ? (size_t)(zero - data) : size) - 1;
    if (mx_json_parse("schema", data + 1, length, &document, &error) != MX_OK) return 0;
    const mx_schema_options options = {.spaces = data[0] & 1 ? MX_SPACES_FEW : MX_SPACES_NONE,
                                       .openai_strict = data[0] & 2};
    mx_grammar *g = NULL;
    const mx_status status = mx_schema_compile(mx_json_root(document), "schema", &options, &g, &error);
    check(status == MX_OK || status == MX_UNSUPPORTED || status == MX_INVALID_ARGUMENT);
    check((status == MX_OK) == (g != NULL) && (status == MX_OK || error.text[0]));
    if (g && zero) {
        const char *text = (const char *)zero + 1;
        const size_t text_size = size - (size_t)(zero + 1 - data);
        if (mx_grammar_match(g, text, text_size)) { /* what it takes is JSON */
            mx_json_document *value;
            check(mx_json_parse("value", text, text_size, &value, &error) == MX_OK);
            mx_json_free(value);
        }
    }
    mx_grammar_free(g);
    mx_json_free(document);
    return 0;
}
