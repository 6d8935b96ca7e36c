/* The page at /: a chat in the browser, of files that are in the program. It asks for nothing else than this server,
 * and what a model writes can never run: neither scripts nor styles nor pictures but from these files. */
#include <stdio.h>
#include <string.h>

#include "server/embedded.h"
#include "server/exchange.h"

static const char POLICY[] = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                             "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
                             "require-trusted-types-for 'script'; trusted-types 'none'";

/* NULL: it is no file of the page. */
static const char *type_of(const char *name) {
    static const struct {
        const char *end, *type;
    } types[] = {{".html", "text/html; charset=utf-8"},
                 {".css", "text/css; charset=utf-8"},
                 {".js", "text/javascript; charset=utf-8"}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (mx_ends_with(name, types[i].end)) return types[i].type;
    return NULL;
}

static void send_file(mx_exchange *x, const char *name) {
    const mx_embedded *file = mx_embedded_find(name);
    const char *type = type_of(name), *known = mx_exchange_header(x, "If-None-Match");
    mx_api_problem problem = {0};
    mx_bytes body = {0};
    char tag[24];
    if (!file || !type) {
        mx_api_wrong(&problem, NULL, "not_found", "there is no file \"%.60s\" of the page", name);
        problem.http_status = 404;
        mx_exchange_refuse(x, &problem);
        return;
    }
    snprintf(tag, sizeof tag, "\"%s\"", file->tag);
    mx_exchange_add_header(x, "ETag", tag);
    mx_exchange_add_header(x, "Cache-Control", "no-cache"); /* asked for again, and not sent again */
    mx_exchange_add_header(x, "Content-Security-Policy", POLICY);
    mx_exchange_add_header(x, "Referrer-Policy", "no-referrer");
    if (known && !strcmp(known, tag)) {
        mx_exchange_reply(x, 304, NULL, &body);
    } else if (mx_bytes_add(&body, file->data, file->size)) {
        mx_exchange_reply(x, 200, type, &body);
    } else {
        mx_error error;
        mx_fail(&error, MX_NO_MEMORY, "no memory for the page");
        mx_exchange_fail(x, &error);
    }
    mx_bytes_free(&body);
}

static void send_index(mx_exchange *x) {
    send_file(x, "index.html");
}

static void send_part(mx_exchange *x) {
    send_file(x, mx_exchange_variable(x));
}

const mx_endpoint mx_page_endpoints[] = {
    {"GET", "/", send_index, mx_openai_problem, true},
    {"GET", "/page/{file}", send_part, mx_openai_problem, true},
    {0},
};
