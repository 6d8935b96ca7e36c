/* libmicrohttpd on one side, exchanges on the other. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#include "base/cpu.h"
#include "base/log.h"
#include "server/private.h"

enum {
    POOL = 32 << 10,      /* of a connection beside its headers */
    WHOLE = 64 << 10,     /* replies up to so much are handed over as they are */
    LARGE = 64 << 10,     /* bodies from so much on are the pool's */
    SMALL_BODY = 1 << 20, /* of a request that is refused: is read, so that the connection can stay */
    BLOCK = 16 << 10,     /* of longer ones; a client has write_seconds for each */
    ALL_BODIES = 8,       /* all requests' bodies together: so many of the largest */
};

/* ---- replies ----------------------------------------------------------------------------------------------------- */
static ssize_t read_reply(void *exchange, uint64_t position, char *to, size_t most) {
    (void)position;
    mx_exchange *x = exchange;
    ssize_t result = MHD_CONTENT_READER_END_WITH_ERROR;
    pthread_mutex_lock(&x->lock);
    const size_t left = x->out.size - x->taken, block = most < BLOCK ? most : BLOCK, n = left < block ? left : block;
    x->moved = mx_seconds();
    if (x->gone) {
    } else if (n) {
        memcpy(to, x->out.data + x->taken, n);
        x->taken += n;
        if (x->taken == x->out.size) {
            mx_bytes_clear(&x->out);
            x->taken = 0;
        }
        result = (ssize_t)n;
    } else if (x->state == MX_STATE_ENDED) {
        result = MHD_CONTENT_READER_END_OF_STREAM;
    } else {
        x->suspended = true;
        MHD_suspend_connection(x->connection);
        result = 0;
    }
    pthread_mutex_unlock(&x->lock);
    return result;
}

static void drop(void *exchange) {
    mx_exchange_drop(exchange);
}

static struct MHD_Response *make_response(mx_exchange *x) {
    struct MHD_Response *response;
    if (x->state == MX_STATE_ENDED && x->taken == 0 && x->out.size <= WHOLE) {
        response = MHD_create_response_from_buffer(x->out.size, x->out.data,
                                                   x->out.data ? MHD_RESPMEM_MUST_FREE : MHD_RESPMEM_PERSISTENT);
        if (response) x->out = (mx_bytes){0};
        return response;
    }
    const uint64_t size = x->state == MX_STATE_ENDED ? x->out.size - x->taken : MHD_SIZE_UNKNOWN;
    mx_exchange_keep(x);
    response = MHD_create_response_from_callback(size, BLOCK, read_reply, x, drop);
    if (!response) mx_exchange_drop(x);
    return response;
}

static void add_headers(mx_exchange *x, struct MHD_Response *response) {
    MHD_add_response_header(response, "x-request-id", x->id);
    if (x->status != 204) MHD_add_response_header(response, "x-content-type-options", "nosniff");
    if (x->type) MHD_add_response_header(response, "content-type", x->type);
    if (x->streams) {
        MHD_add_response_header(response, "cache-control", "no-cache");
        MHD_add_response_header(response, "x-accel-buffering", "no"); /* nginx passes events on at once then */
    }
    if (atomic_load(&x->server->stopping)) MHD_add_response_header(response, "connection", "close");
    for (int i = 0; i < x->header_count; i++)
        MHD_add_response_header(response, x->headers[i].name, x->headers[i].value);
    mx_gate_add_headers(x, x->connection, response, strcmp(x->method, "OPTIONS") == 0);
}

/* With the lock held. NULL: there is none yet, or no memory. */
static struct MHD_Response *begin_reply(mx_exchange *x) {
    if (x->state == MX_STATE_OPEN) {
        x->suspended = true;
        MHD_suspend_connection(x->connection);
        return NULL;
    }
    struct MHD_Response *response = make_response(x);
    if (!response) return NULL;
    add_headers(x, response);
    x->queued = true;
    x->moved = mx_seconds();
    return response;
}

/* Queues the reply, or waits until there is one. */
static enum MHD_Result reply(mx_exchange *x) {
    struct MHD_Response *response = NULL;
    pthread_mutex_lock(&x->lock);
    if (!x->gone) response = begin_reply(x);
    const bool waits = x->suspended;
    const int status = x->status;
    pthread_mutex_unlock(&x->lock);
    if (!response) return waits ? MHD_YES : MHD_NO;
    /* Without the lock, which read_reply takes while libmicrohttpd has the response locked. */
    const enum MHD_Result result = MHD_queue_response(x->connection, (unsigned)status, response);
    MHD_destroy_response(response); /* libmicrohttpd has a reference of its own */
    return result;
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */
/* The request gets this reply, whatever else comes of it. */
static void refuse(mx_exchange *x, const mx_api_problem *problem) {
    mx_exchange_refuse(x, problem);
    mx_exchange_forget_request(x);
    x->discard = true;
}

/* The body's length; -1: not told; LLONG_MAX: as long as the connection is open (a coding that nobody knows). */
static long long told_length(mx_exchange *x) {
    const char *text = mx_exchange_header(x, "content-length"), *coding = mx_exchange_header(x, "transfer-encoding");
    char *end;
    if (coding) return strcasecmp(coding, "chunked") == 0 ? -1 : LLONG_MAX;
    if (!text) return -1;
    const long long n = strtoll(text, &end, 10);
    return *end || n < 0 ? -1 : n;
}

static size_t header_size(struct MHD_Connection *connection) {
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    return info ? info->header_size : 0;
}

static void too_large(mx_exchange *x) {
    mx_api_problem problem;
    refuse(x, mx_problem_set(&problem, 413, "request_too_large", "the body is larger than %zu bytes (--max-body)",
                             x->server->options.body_bytes));
}

/* The head is there: what can be said by now is. */
static void check_head(mx_exchange *x, struct MHD_Connection *connection, const char *method) {
    mx_api_problem problem;
    char allow[64];
    const size_t most = x->server->options.header_bytes;
    if (header_size(connection) > most) {
        refuse(x, mx_problem_set(&problem, 431, "header_too_large", "the request's header is larger than %zu bytes",
                                 most));
    } else if (!mx_gate_check_head(connection, &problem)) {
        mx_api_problem unused;
        mx_route(x, method, &unused, allow); /* whose form the refusal has */
        if (problem.http_status == 400) mx_exchange_add_header(x, "Connection", "close");
        refuse(x, &problem);
    } else if (!mx_route(x, method, &problem, allow)) {
        if (*allow) mx_exchange_add_header(x, "Allow", allow);
        refuse(x, &problem);
    } else if (!mx_gate_check(x, connection, &problem)) {
        if (problem.http_status == 401) mx_exchange_add_header(x, "WWW-Authenticate", "Bearer");
        refuse(x, &problem);
    } else if (told_length(x) > (long long)x->server->options.body_bytes) {
        too_large(x);
    }
}

static enum MHD_Result take_head(mx_exchange *x, struct MHD_Connection *connection, const char *url,
                                 const char *method) {
    x->path = strdup(mx_route_path(url));
    if (!x->path) return MHD_NO;
    check_head(x, connection, method);
    if (!x->discard || told_length(x) <= SMALL_BODY) return MHD_YES;
    return reply(x); /* without the body: the connection ends with it */
}

static enum MHD_Result take_body(mx_exchange *x, const char *data, size_t size) {
    mx_server *s = x->server;
    mx_api_problem problem;
    if (x->discard) return MHD_YES;
    if (size > s->options.body_bytes - x->body.size) {
        too_large(x);
        return MHD_YES;
    }
    const size_t all = atomic_fetch_add(&s->bodies, size) + size;
    if (all > ALL_BODIES * s->options.body_bytes || !mx_bytes_add(&x->body, data, size)) {
        atomic_fetch_sub(&s->bodies, size);
        refuse(x, mx_problem_set(&problem, 503, "server_busy", "no memory for the body now; try again later"));
    }
    return MHD_YES;
}

static void set_phase(mx_exchange *x, mx_phase phase) {
    pthread_mutex_lock(&x->server->lock);
    x->slot->phase = phase;
    x->slot->since = mx_seconds();
    pthread_mutex_unlock(&x->server->lock);
}

/* handle() is over; what did not reply and does not work never will. */
static void check_answered(mx_exchange *x) {
    mx_api_problem problem;
    pthread_mutex_lock(&x->lock);
    if (x->state == MX_STATE_OPEN && !x->job)
        mx_exchange_set_problem(
            x, mx_problem_set(&problem, 500, "server_error", "%s %s gave no reply", x->method, x->endpoint->path));
    pthread_mutex_unlock(&x->lock);
}

void mx_exchange_handle(mx_exchange *x) {
    x->endpoint->handle(x);
    mx_exchange_forget_request(x);
    check_answered(x);
}

/* Returns whether the reply can be looked for; else the pool has the request. */
static bool answer(mx_exchange *x) {
    mx_api_problem problem;
    x->begun = true;
    atomic_fetch_add(&x->server->busy, 1);
    set_phase(x, MX_PHASE_BUSY);
    if (x->discard) return true;
    if (strcmp(x->method, "OPTIONS") == 0) {
        mx_bytes nothing = {0};
        mx_exchange_reply(x, 204, NULL, &nothing);
    } else if (x->body.size < LARGE) {
        mx_exchange_handle(x);
    } else if (mx_pool_add(x)) {
        return false;
    } else {
        refuse(x, mx_problem_set(&problem, 429, "queue_full",
                                 "the server is busy: %d large requests wait to be read; try again later",
                                 x->server->options.queue));
    }
    return true;
}

static enum MHD_Result on_request(void *server, struct MHD_Connection *connection, const char *url, const char *method,
                                  const char *version, const char *data, size_t *size, void **context) {
    (void)server;
    (void)version;
    mx_exchange *x = *context;
    if (!x) return MHD_NO;
    if (!x->path) return take_head(x, connection, url, method);
    if (*size) {
        const enum MHD_Result result = take_body(x, data, *size);
        *size = 0;
        return result;
    }
    if (!x->begun && !answer(x)) return MHD_YES;
    return reply(x);
}

/* ---- connections ------------------------------------------------------------------------------------------------- */
static mx_slot *slot_of(struct MHD_Connection *connection) {
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info ? info->socket_context : NULL;
}

static mx_slot *take_slot(mx_worker *w, int fd) {
    mx_server *s = w->server;
    if (s->free_slot < 0) return NULL;
    mx_slot *slot = &s->slots[s->free_slot];
    s->free_slot = slot->next_free;
    *slot = (mx_slot){.used = true, .worker = w, .fd = fd, .generation = slot->generation + 1, .since = mx_seconds()};
    mx_watch_slot(s, slot);
    return slot;
}

static void on_connection(void *worker, struct MHD_Connection *connection, void **context,
                          enum MHD_ConnectionNotificationCode what) {
    mx_worker *w = worker;
    mx_server *s = w->server;
    pthread_mutex_lock(&s->lock);
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
        *context = info ? take_slot(w, info->connect_fd) : NULL;
    } else {
        mx_slot *slot = *context;
        w->connections--;
        atomic_fetch_sub(&s->connected, 1);
        if (slot) {
            slot->used = false;
            slot->next_free = s->free_slot;
            s->free_slot = (int)(slot - s->slots);
        }
        *context = NULL;
    }
    pthread_mutex_unlock(&s->lock);
    if (what == MHD_CONNECTION_NOTIFY_CLOSED && atomic_load(&s->full)) mx_watch_wake(s);
}

void mx_http_add(mx_server *s, int fd, const struct sockaddr *address, socklen_t size) {
    mx_worker *w = s->workers;
    pthread_mutex_lock(&s->lock);
    for (int i = 1; i < MX_WORKERS; i++)
        if (s->workers[i].connections < w->connections) w = &s->workers[i];
    w->connections++;
    atomic_fetch_add(&s->connected, 1);
    pthread_mutex_unlock(&s->lock);
    if (MHD_add_connection(w->daemon, fd, address, size) == MHD_YES) return;
    pthread_mutex_lock(&s->lock);
    w->connections--;
    atomic_fetch_sub(&s->connected, 1);
    pthread_mutex_unlock(&s->lock);
}

/* The request line is there. */
static void *on_request_line(void *server, const char *uri, struct MHD_Connection *connection) {
    mx_server *s = server;
    mx_slot *slot = slot_of(connection);
    mx_exchange *x = slot ? mx_exchange_create(s) : NULL;
    if (!x) return NULL;
    x->zero = mx_route_has_zero(uri);
    x->connection = connection;
    x->slot = slot;
    pthread_mutex_lock(&s->lock);
    slot->exchange = x;
    slot->phase = MX_PHASE_READING;
    slot->since = x->started;
    pthread_mutex_unlock(&s->lock);
    return x;
}

/* What is told of it: 499 where the client did not get all of the reply. */
static int final_status(const mx_exchange *x, enum MHD_RequestTerminationCode why) {
    if (x->gone || why != MHD_REQUEST_TERMINATED_COMPLETED_OK) return 499;
    return x->status ? x->status : 400;
}

static void on_completed(void *server, struct MHD_Connection *connection, void **context,
                         enum MHD_RequestTerminationCode why) {
    (void)connection;
    mx_server *s = server;
    mx_exchange *x = *context;
    if (!x) return;
    *context = NULL;
    pthread_mutex_lock(&s->lock);
    x->slot->exchange = NULL;
    x->slot->phase = MX_PHASE_IDLE;
    x->slot->since = mx_seconds();
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_lock(&x->lock);
    if (x->job && x->state != MX_STATE_ENDED && !x->gone) {
        x->gone = true;
        mx_metrics_count_cut(s->metrics);
        mx_job_cancel(x->job);
    }
    x->connection = NULL;
    const int status = final_status(x, why);
    pthread_mutex_unlock(&x->lock);
    const double seconds = mx_seconds() - x->started;
    const char *path = x->routed ? x->endpoint->path : NULL;
    mx_metrics_count_request(s->metrics, x->method, path, status);
    mx_metrics_observe(s->metrics, MX_MEASURE_REQUEST, seconds);
    mx_log(MX_LOG_DEBUG, "%s %s %d %.3f s %s", x->method, path ? path : "-", status, seconds, x->id);
    if (x->begun) atomic_fetch_sub(&s->busy, 1);
    mx_exchange_drop(x);
}

/* ---- start ------------------------------------------------------------------------------------------------------- */
__attribute__((format(printf, 2, 0))) static void on_log(void *nothing, const char *format, va_list list) {
    (void)nothing;
    char line[500];
    if (!mx_log_wanted(MX_LOG_DEBUG)) return;
    vsnprintf(line, sizeof line, format, list);
    line[strcspn(line, "\n")] = 0;
    mx_log(MX_LOG_DEBUG, "http: %s", line);
}

static struct MHD_Daemon *start(mx_worker *w) {
    mx_server *s = w->server;
    unsigned flags =
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_NO_LISTEN_SOCKET | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG;
    struct MHD_OptionItem options[10];
    int n = 0;
#define OPTION(name, number, pointer) options[n++] = (struct MHD_OptionItem){name, (intptr_t)(number), pointer}
    OPTION(MHD_OPTION_CONNECTION_LIMIT, s->slot_count, NULL);
    OPTION(MHD_OPTION_CONNECTION_MEMORY_LIMIT, s->options.header_bytes + POOL, NULL);
    OPTION(MHD_OPTION_NOTIFY_COMPLETED, (intptr_t)on_completed, s);
    OPTION(MHD_OPTION_NOTIFY_CONNECTION, (intptr_t)on_connection, w);
    OPTION(MHD_OPTION_URI_LOG_CALLBACK, (intptr_t)on_request_line, s);
    if (s->certificate.size) {
        flags |= MHD_USE_TLS;
        OPTION(MHD_OPTION_HTTPS_MEM_CERT, 0, s->certificate.data);
        OPTION(MHD_OPTION_HTTPS_MEM_KEY, 0, s->key.data);
    }
    OPTION(MHD_OPTION_END, 0, NULL);
#undef OPTION
    return MHD_start_daemon(flags, 0, NULL, NULL, on_request, s, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
                            MHD_OPTION_ARRAY, options, MHD_OPTION_END);
}

mx_status mx_http_start(mx_server *s, mx_error *error) {
    const mx_status status = mx_pool_start(s, error);
    if (status) return status;
    for (int i = 0; i < MX_WORKERS; i++) {
        s->workers[i].server = s;
        s->workers[i].daemon = start(&s->workers[i]);
        if (!s->workers[i].daemon)
            return mx_fail(error, MX_IO, "%s: the HTTP server does not start (MXRUN_LOG=debug tells more)", s->address);
    }
    return MX_OK;
}

void mx_http_stop(mx_server *s) {
    mx_pool_stop(s); /* libmicrohttpd ends the program where it stops with connections suspended */
    for (int i = 0; i < MX_WORKERS; i++) {
        if (s->workers[i].daemon) MHD_stop_daemon(s->workers[i].daemon);
        s->workers[i].daemon = NULL;
    }
    mx_pool_free(s);
}
