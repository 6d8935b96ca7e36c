/* One HTTP request and its reply: what protocols see of it, and the part that its threads share. */
#include "server/private.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>

#include "base/cpu.h"

/* ---- life -------------------------------------------------------------------------------------------------------- */
static void make_id(char out[static 33]) {
    static atomic_uint_fast64_t counter;
    uint64_t random[2];
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        random[0] = (uint64_t)now.tv_sec << 32 ^ (uint64_t)now.tv_nsec;
        random[1] = atomic_fetch_add(&counter, 1);
    }
    snprintf(out, 33, "%016llx%016llx", (unsigned long long)random[0], (unsigned long long)random[1]);
}

mx_exchange *mx_exchange_create(mx_server *s) {
    mx_exchange *x = calloc(1, sizeof *x);
    if (!x) return NULL;
    if (pthread_mutex_init(&x->lock, NULL)) {
        free(x);
        return NULL;
    }
    atomic_init(&x->references, 1);
    x->server = s;
    x->method = "";
    x->created = (int64_t)time(NULL);
    x->started = x->moved = mx_seconds();
    make_id(x->id);
    return x;
}

void mx_exchange_keep(mx_exchange *x) {
    atomic_fetch_add(&x->references, 1);
}

static void free_body(mx_exchange *x) {
    atomic_fetch_sub(&x->server->bodies, x->body.size);
    mx_bytes_free(&x->body);
}

void mx_exchange_forget_request(mx_exchange *x) {
    free_body(x);
    mx_json_free(x->json);
    x->json = NULL;
}

void mx_exchange_drop(mx_exchange *x) {
    if (atomic_fetch_sub(&x->references, 1) > 1) return;
    mx_exchange_forget_request(x);
    mx_bytes_free(&x->out);
    for (int i = 0; i < x->header_count; i++) {
        free(x->headers[i].name);
        free(x->headers[i].value);
    }
    free(x->headers);
    free(x->path);
    free(x->variable);
    pthread_mutex_destroy(&x->lock);
    free(x);
}

/* ---- with the lock held ------------------------------------------------------------------------------------------ */
void mx_exchange_wake(mx_exchange *x) {
    if (!x->suspended || x->handled) return;
    x->suspended = false;
    x->moved = mx_seconds();
    MHD_resume_connection(x->connection);
}

void mx_exchange_cut(mx_exchange *x) {
    if (!x->connection || x->gone) return;
    x->gone = true;
    mx_metrics_count_cut(x->server->metrics);
    if (x->job) mx_job_cancel(x->job);
    /* libmicrohttpd closes the socket only after it said that the request is over, which takes `connection` away. */
    shutdown(x->slot->fd, SHUT_RDWR);
    mx_exchange_wake(x);
}

/* ---- the request ------------------------------------------------------------------------------------------------- */
const mx_server_parts *mx_exchange_parts(const mx_exchange *x) {
    return &x->server->parts;
}

const char *mx_exchange_path(const mx_exchange *x) {
    return x->path;
}

const char *mx_exchange_variable(const mx_exchange *x) {
    return x->variable;
}

const char *mx_exchange_header(const mx_exchange *x, const char *name) {
    return MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, name);
}

const char *mx_exchange_query(const mx_exchange *x, const char *name) {
    return MHD_lookup_connection_value(x->connection, MHD_GET_ARGUMENT_KIND, name);
}

const mx_bytes *mx_exchange_body(const mx_exchange *x) {
    return &x->body;
}

static bool begins_with(const char *text, const char *beginning) {
    return strncasecmp(text, beginning, strlen(beginning)) == 0;
}

const mx_json *mx_exchange_json(mx_exchange *x) {
    mx_api_problem problem;
    mx_error error;
    /* curl -d says application/x-www-form-urlencoded of anything, so that the type is believed only where it names
     * what cannot be JSON. */
    const char *type = mx_exchange_header(x, "content-type");
    if (type && begins_with(type, "multipart/")) {
        mx_exchange_refuse(x,
                           mx_problem_set(&problem, 415, "unsupported_media_type",
                                          "the body is %.60s: expected JSON (content-type: application/json)", type));
        return NULL;
    }
    if (x->json) return mx_json_root(x->json);
    if (!x->body.size) {
        mx_exchange_refuse(x, mx_problem_set(&problem, 400, "invalid_json", "the body is empty: expected JSON"));
        return NULL;
    }
    enum { FREE = 16 << 20, SHARE = 8 }; /* memory of the tree: text is far below that, arrays of numbers are above */
    const size_t most = SHARE * x->body.size + FREE;
    const mx_status status = mx_json_parse_limited("request", x->body.data, x->body.size, most, &x->json, &error);
    free_body(x);
    if (status == MX_NO_MEMORY) {
        mx_exchange_fail(x, &error);
    } else if (status) {
        mx_exchange_refuse(x, mx_problem_set(&problem, 400, "invalid_json", "%s", error.text));
    } else if (mx_json_root(x->json)->type != MX_JSON_OBJECT) {
        mx_exchange_refuse(x,
                           mx_problem_set(&problem, 400, "invalid_json", "the body is no JSON object: expected one"));
    } else {
        return mx_json_root(x->json);
    }
    return NULL;
}

const char *mx_exchange_id(const mx_exchange *x) {
    return x->id;
}

int64_t mx_exchange_created(const mx_exchange *x) {
    return x->created;
}

/* ---- the reply --------------------------------------------------------------------------------------------------- */
void mx_exchange_add_header(mx_exchange *x, const char *name, const char *value) {
    mx_header *more = realloc(x->headers, sizeof *more * (size_t)(x->header_count + 1));
    if (!more) return;
    x->headers = more;
    mx_header header = {strdup(name), strdup(value)};
    if (header.name && header.value) {
        x->headers[x->header_count++] = header;
    } else {
        free(header.name);
        free(header.value);
    }
}

static void set_reply(mx_exchange *x, int http_status, const char *type, mx_bytes *body) {
    mx_bytes_free(&x->out);
    x->out = *body;
    *body = (mx_bytes){0};
    x->taken = 0;
    x->status = http_status;
    x->type = type;
    x->state = MX_STATE_ENDED;
}

void mx_exchange_reply(mx_exchange *x, int http_status, const char *content_type, mx_bytes *body) {
    pthread_mutex_lock(&x->lock);
    set_reply(x, http_status, content_type, body);
    pthread_mutex_unlock(&x->lock);
}

mx_api_problem *mx_problem_set(mx_api_problem *problem, int http_status, const char *code, const char *format, ...) {
    va_list list;
    *problem = (mx_api_problem){.http_status = http_status, .code = code};
    va_start(list, format);
    vsnprintf(problem->text, sizeof problem->text, format, list);
    va_end(list);
    return problem;
}

void mx_exchange_set_problem(mx_exchange *x, const mx_api_problem *problem) {
    mx_bytes body = {0};
    bool (*write)(mx_bytes *, const mx_api_problem *) = x->endpoint ? x->endpoint->problem : NULL;
    mx_api_problem told = *problem;
    told.request_id = x->id;
    if (!(write ? write : mx_openai_problem)(&body, &told)) mx_bytes_free(&body);
    if (problem->http_status == 429 || problem->http_status == 503) {
        char seconds[12];
        snprintf(seconds, sizeof seconds, "%d", mx_work_retry_after(x->server));
        mx_exchange_add_header(x, "Retry-After", seconds);
    }
    set_reply(x, problem->http_status, "application/json", &body);
}

void mx_exchange_refuse(mx_exchange *x, const mx_api_problem *problem) {
    pthread_mutex_lock(&x->lock);
    mx_exchange_set_problem(x, problem);
    pthread_mutex_unlock(&x->lock);
}

void mx_exchange_fail(mx_exchange *x, const mx_error *error) {
    mx_api_problem problem;
    if (error->status == MX_CONTEXT_FULL)
        mx_problem_set(&problem, 400, "context_length_exceeded", "%s", error->text);
    else if (error->status == MX_INVALID_ARGUMENT)
        mx_problem_set(&problem, 400, "invalid_value", "%s", error->text);
    else
        mx_problem_set(&problem, 500, "server_error", "%s", error->text);
    mx_exchange_refuse(x, &problem);
}
