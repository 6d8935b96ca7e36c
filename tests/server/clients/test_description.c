/* Is every endpoint described in /openapi.json, and is everything there an endpoint? What the replies look like is
 * schemathesis_test.py's affair. */
#include <ctype.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "server/embedded.h"
#include "server/exchange.h"

static const mx_endpoint *const tables[] = {mx_openai_endpoints, mx_responses_endpoints, mx_anthropic_endpoints,
                                            mx_ollama_endpoints, mx_tool_endpoints,      mx_status_endpoints};
enum { TABLES = sizeof tables / sizeof *tables };

static mx_json_document *read_description(void) {
    const mx_embedded *file = mx_embedded_find("openapi.json");
    mx_json_document *document;
    mx_error error;
    assert_non_null(file);
    if (mx_json_parse("openapi.json", file->data, file->size, &document, &error)) fail_msg("%s", error.text);
    return document;
}

static void lower(char *out, size_t size, const char *method) {
    snprintf(out, size, "%s", method);
    for (; *out; out++) *out = (char)tolower(*out);
}

/* OpenAPI has no "{id...}", which may hold slashes: there it is "{id}". */
static const char *described_path(const mx_endpoint *e, char out[static 80]) {
    snprintf(out, 80, "%s", e->path);
    char *dots = strstr(out, "...}");
    if (dots) memmove(dots, dots + 3, strlen(dots + 3) + 1);
    return out;
}

static void every_endpoint_is_described(void **state) {
    (void)state;
    mx_json_document *document = read_description();
    const mx_json *paths = mx_json_get(mx_json_root(document), "paths");
    int missing = 0;
    for (int t = 0; t < TABLES; t++)
        for (const mx_endpoint *e = tables[t]; e->method; e++) {
            char method[16], name[80];
            lower(method, sizeof method, e->method);
            const mx_json *operation = mx_json_get(mx_json_get(paths, described_path(e, name)), method);
            const mx_json *security = mx_json_get(operation, "security");
            if (!operation) {
                print_error("%s %s is not in src/server/openapi.json\n", e->method, e->path);
                missing++;
            } else if (e->open != (security && !security->count)) {
                print_error("%s %s: does it ask for an API key?\n", e->method, e->path);
                missing++;
            }
        }
    mx_json_free(document);
    assert_int_equal(missing, 0);
}

static bool is_endpoint(const char *path, const char *method) {
    for (int t = 0; t < TABLES; t++)
        for (const mx_endpoint *e = tables[t]; e->method; e++) {
            char lowered[16], name[80];
            lower(lowered, sizeof lowered, e->method);
            if (!strcmp(described_path(e, name), path) && !strcmp(lowered, method)) return true;
        }
    return !strcmp(path, "/"); /* the page may be left out of a build or a server */
}

static void everything_described_is_an_endpoint(void **state) {
    (void)state;
    mx_json_document *document = read_description();
    const mx_json *paths = mx_json_get(mx_json_root(document), "paths");
    int missing = 0;
    assert_non_null(paths);
    for (const mx_json *path = paths->child; path; path = path->next)
        for (const mx_json *method = path->child; method; method = method->next)
            if (!is_endpoint(path->key, method->key)) {
                print_error("src/server/openapi.json has %s %s, which is no endpoint\n", method->key, path->key);
                missing++;
            }
    mx_json_free(document);
    assert_int_equal(missing, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_endpoint_is_described),
        cmocka_unit_test(everything_described_is_an_endpoint),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
