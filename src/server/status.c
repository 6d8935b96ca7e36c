/* Endpoints about the server itself. */
#include "server/private.h"

static void reply_text(mx_exchange *x, int status, const char *type, const char *text) {
    mx_bytes body = {0};
    mx_error error;
    if (mx_bytes_add_string(&body, text)) {
        mx_exchange_reply(x, status, type, &body);
    } else {
        mx_fail(&error, MX_NO_MEMORY, "no memory for a reply");
        mx_exchange_fail(x, &error);
    }
}

/* It lives. */
static void health(mx_exchange *x) {
    reply_text(x, 200, "application/json", "{\"status\":\"ok\"}");
}

/* It takes requests. */
static void ready(mx_exchange *x) {
    mx_api_problem problem;
    if (!atomic_load(&x->server->stopping)) {
        reply_text(x, 200, "application/json", "{\"status\":\"ready\"}");
        return;
    }
    mx_exchange_refuse(x, mx_problem_set(&problem, 503, "server_stopping", "the server is stopping"));
}

static void metrics(mx_exchange *x) {
    mx_server *s = x->server;
    mx_bytes body = {0};
    mx_error error;
    const mx_metrics_now now = {
        .model = s->parts.model, .connections = atomic_load(&s->connected), .busy = atomic_load(&s->busy)};
    if (mx_metrics_write(s->metrics, s->engine, &now, &body)) {
        mx_exchange_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", &body);
        return;
    }
    mx_bytes_free(&body);
    mx_fail(&error, MX_NO_MEMORY, "no memory for the metrics");
    mx_exchange_fail(x, &error);
}

const mx_endpoint mx_status_endpoints[] = {
    {"GET", "/health", health, mx_openai_problem, true},
    {"GET", "/ready", ready, mx_openai_problem, true},
    {"GET", "/metrics", metrics, mx_openai_problem, false},
    {0},
};
