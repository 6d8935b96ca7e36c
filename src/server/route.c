/* Which endpoint a request is for. */
#include <stdio.h>
#include <stdlib.h>

#include "server/private.h"

/* Errors of no endpoint have the form of the first that is nearest. */
const mx_endpoint *const mx_endpoint_tables[] = {
    mx_openai_endpoints, mx_responses_endpoints, mx_anthropic_endpoints, mx_ollama_endpoints,
    mx_tool_endpoints,   mx_status_endpoints,    mx_page_endpoints,      NULL,
};

/* Is `path` of the endpoint? *variable: what stands for its {…}; NULL: it has none. */
static bool matches(const mx_endpoint *e, const char *path, const char **variable) {
    const char *brace = strchr(e->path, '{');
    *variable = NULL;
    if (!brace) return strcmp(e->path, path) == 0;
    const size_t head = (size_t)(brace - e->path);
    if (strncmp(e->path, path, head) != 0) return false;
    const char *rest = path + head, *tail = strchr(brace, '}') + 1;
    const size_t n = strlen(rest), m = strlen(tail);
    if (n <= m || strcmp(rest + n - m, tail) != 0 || memchr(rest, '/', n - m)) return false;
    *variable = rest;
    return true;
}

static size_t common(const char *a, const char *b) {
    size_t n = 0;
    while (a[n] && a[n] == b[n]) n++;
    return n;
}

static void add_method(char allow[static 64], const char *method) {
    const size_t n = strlen(allow);
    if (!strstr(allow, method)) snprintf(allow + n, 64 - n, "%s%s", n ? ", " : "", method);
}

/* The method as a constant; "" for those that no endpoint has. */
static const char *known(const char *method) {
    static const char *const names[] = {"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(method, names[i]) == 0) return names[i];
    return "";
}

static bool set_variable(mx_exchange *x, const mx_endpoint *e, const char *variable) {
    x->endpoint = e;
    if (!variable) return true;
    const size_t tail = strlen(strchr(e->path, '}') + 1);
    x->variable = strndup(variable, strlen(variable) - tail);
    return x->variable != NULL;
}

bool mx_route(mx_exchange *x, const char *method, mx_api_problem *problem, char allow[static 64]) {
    const bool page = x->server->options.page;
    const mx_endpoint *nearest = NULL, *found = NULL;
    const char *variable;
    size_t nearness = 0;
    x->method = known(method);
    const char *wanted = strcmp(x->method, "HEAD") == 0 ? "GET" : x->method;
    const bool options = strcmp(wanted, "OPTIONS") == 0;
    *allow = 0;
    for (const mx_endpoint *const *table = mx_endpoint_tables; *table; table++) {
        if (*table == mx_page_endpoints && !page) continue;
        for (const mx_endpoint *e = *table; e->method; e++) {
            const size_t near = common(e->path, x->path);
            if (near > nearness && near > 1) nearest = e, nearness = near;
            if (!matches(e, x->path, &variable)) continue;
            /* Of "/v1/models" and "/v1/{id}" the first in the tables is taken. */
            if (!found && (options || strcmp(e->method, wanted) == 0)) {
                found = e;
                if (!set_variable(x, e, variable)) {
                    mx_problem_set(problem, 500, "server_error", "no memory for a request");
                    return false;
                }
            }
            add_method(allow, e->method);
            if (strcmp(e->method, "GET") == 0) add_method(allow, "HEAD");
            nearest = e;
            nearness = SIZE_MAX;
        }
    }
    if (*allow) add_method(allow, "OPTIONS");
    if (found) {
        if (options) mx_exchange_add_header(x, "Allow", allow);
        *allow = 0;
        return true;
    }
    x->endpoint = nearest; /* for the form of the error */
    if (*allow)
        mx_problem_set(problem, 405, "method_not_allowed", "%s takes %s, not %s", x->path, allow, method);
    else
        mx_problem_set(problem, 404, "not_found", "there is no %s %.200s here", method, x->path);
    return false;
}
