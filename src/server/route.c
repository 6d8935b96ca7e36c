/* Which endpoint a request is for. */
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#include "server/private.h"

/* Errors of no endpoint have the form of the first that is nearest. */
static const mx_endpoint *const tables[] = {
    mx_openai_endpoints, mx_responses_endpoints, mx_anthropic_endpoints, mx_ollama_endpoints,
    mx_tool_endpoints,   mx_status_endpoints,    mx_page_endpoints,
};
enum { TABLES = sizeof tables / sizeof *tables };

/* Is `path` of the endpoint? *variable: what stands for its {…}; NULL: it has none. */
static bool matches(const mx_endpoint *e, const char *path, const char **variable) {
    const char *brace = strchr(e->path, '{');
    *variable = NULL;
    if (!brace) return strcmp(e->path, path) == 0;
    const size_t head = (size_t)(brace - e->path);
    if (strncmp(e->path, path, head) != 0) return false;
    const char *rest = path + head, *tail = strchr(brace, '}') + 1;
    const size_t n = strlen(rest), m = strlen(tail);
    if (n <= m || strcmp(rest + n - m, tail) != 0) return false;
    if (!strstr(brace, "...}") && memchr(rest, '/', n - m)) return false;
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

typedef struct search {
    mx_exchange *exchange;
    const char *wanted; /* method */
    bool options;
    char *allow;                /* [64], methods that the path has */
    const mx_endpoint *nearest; /* the form of its errors is taken where nothing is found */
    size_t nearness;
    const mx_endpoint *found;
    bool failed; /* no memory */
} search;

/* The first in the tables is taken. */
static void look(search *s, const mx_endpoint *e) {
    mx_exchange *x = s->exchange;
    const char *variable;
    const size_t near = common(e->path, x->path);
    if (near > s->nearness && near > 1) s->nearest = e, s->nearness = near;
    if (!matches(e, x->path, &variable)) return;
    if (!s->found && (s->options || strcmp(e->method, s->wanted) == 0)) {
        s->found = e;
        s->failed = !set_variable(x, e, variable);
    }
    add_method(s->allow, e->method);
    if (strcmp(e->method, "GET") == 0) add_method(s->allow, "HEAD");
    s->nearest = e;
    s->nearness = SIZE_MAX;
}

const char *mx_route_path(const char *url) {
    const size_t scheme = strncasecmp(url, "http://", 7) == 0 ? 7 : strncasecmp(url, "https://", 8) == 0 ? 8 : 0;
    if (!scheme) return url;
    const char *path = strchr(url + scheme, '/');
    return path ? path : "/";
}

bool mx_route_has_zero(const char *uri) {
    const char *zero = strstr(uri, "%00");
    return zero && zero < uri + strcspn(uri, "?");
}

bool mx_route(mx_exchange *x, const char *method, mx_api_problem *problem, char allow[static 64]) {
    const mx_server_options *o = &x->server->options;
    x->method = known(method);
    search s = {.exchange = x,
                .wanted = strcmp(x->method, "HEAD") == 0 ? "GET" : x->method,
                .options = strcmp(x->method, "OPTIONS") == 0,
                .allow = allow};
    *allow = 0;
    for (const mx_endpoint *e = o->more; e && e->method; e++) look(&s, e);
    for (int i = 0; i < TABLES; i++) {
        if (tables[i] == mx_page_endpoints && !o->page) continue;
        for (const mx_endpoint *e = tables[i]; e->method; e++) look(&s, e);
    }
    if (*allow) add_method(allow, "OPTIONS");
    if (s.found && !s.failed && !x->zero) {
        if (s.options) mx_exchange_add_header(x, "Allow", allow);
        *allow = 0;
        x->routed = true;
        return true;
    }
    x->endpoint = s.nearest;
    if (x->zero) *allow = 0;
    if (x->zero)
        mx_problem_set(problem, 400, "invalid_path", "the path has a zero byte (%%00) in it");
    else if (s.failed)
        mx_problem_set(problem, 500, "server_error", "no memory for a request");
    else if (*allow)
        mx_problem_set(problem, 405, "method_not_allowed", "%.200s takes %s, not %.20s", x->path, allow, method);
    else
        mx_problem_set(problem, 404, "not_found", "there is no %.20s %.200s here", method, x->path);
    return false;
}
