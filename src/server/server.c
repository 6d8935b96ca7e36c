/* The server as a whole: creation, the loop of the engine, the end. */
#include "server/server.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/log.h"
#include "server/private.h"
#include "server/responses_store.h"

/* ---- creation ---------------------------------------------------------------------------------------------------- */
static void set_defaults(mx_server_options *o) {
    if (!o->host) o->host = "127.0.0.1";
    if (!o->header_bytes) o->header_bytes = (size_t)64 << 10;
    if (!o->body_bytes) o->body_bytes = (size_t)16 << 20;
    if (!o->connections) o->connections = 1024;
    if (!o->queue) o->queue = 256;
    if (!(o->read_seconds > 0)) o->read_seconds = 30;
    if (!(o->write_seconds > 0)) o->write_seconds = 30;
    if (!(o->idle_seconds > 0)) o->idle_seconds = 75;
    if (!(o->keep_alive_seconds > 0)) o->keep_alive_seconds = 15;
    if (!o->backlog_bytes) o->backlog_bytes = (size_t)4 << 20;
    if (!(o->stop_seconds > 0)) o->stop_seconds = 30;
    if (!o->replay_bytes) o->replay_bytes = (uint64_t)64 << 20;
    if (!o->responses_bytes) o->responses_bytes = (uint64_t)64 << 20;
}

/* Each connection is a descriptor: as many as may be opened, less what all else needs. */
static void fit_connections(mx_server *s) {
    enum { OTHERS = 128 };
    struct rlimit limit;
    const rlim_t wanted = (rlim_t)s->options.connections + OTHERS;
    if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur >= wanted) return;
    limit.rlim_cur = limit.rlim_max == RLIM_INFINITY || limit.rlim_max > wanted ? wanted : limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit)) getrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur >= wanted) return;
    const int fits = limit.rlim_cur > 2 * OTHERS ? (int)limit.rlim_cur - OTHERS : (int)limit.rlim_cur / 2;
    mx_log(MX_LOG_WARNING, "%d connections at once instead of %d: this process may open %lld files (ulimit -n)", fits,
           s->options.connections, (long long)limit.rlim_cur);
    s->options.connections = fits;
}

/* Ends in NULL; NULL allowed. */
static void free_list(char **list) {
    for (char **item = list; item && *item; item++) free(*item);
    free(list);
}

/* NULL: no memory. */
static char **copy_list(const char *const *list, int count) {
    char **copy = calloc((size_t)count + 1, sizeof *copy);
    for (int i = 0; copy && i < count; i++) {
        copy[i] = strdup(list[i]);
        if (copy[i]) continue;
        free_list(copy);
        return NULL;
    }
    return copy;
}

static mx_status copy_strings(mx_server *s, mx_error *error) {
    const mx_server_options *o = &s->options;
    s->host = strdup(o->host);
    s->keys = calloc((size_t)o->api_key_count + 1, sizeof *s->keys);
    s->origins = copy_list(o->cors_origins, o->cors_origin_count);
    s->hosts = copy_list(o->allowed_hosts, o->allowed_host_count);
    if (!s->host || !s->keys || !s->origins || !s->hosts) return mx_fail(error, MX_NO_MEMORY, "no memory");
    for (int i = 0; i < o->cors_origin_count; i++) s->any_origin |= strcmp(s->origins[i], "*") == 0;
    if (gethostname(s->own_name, sizeof s->own_name - 1)) *s->own_name = 0;
    for (int i = 0; i < o->api_key_count; i++) {
        const char *key = o->api_keys[i];
        if (!key[strspn(key, " \t\r\n")]) return mx_fail(error, MX_INVALID_ARGUMENT, "an API key is empty");
        if (!mx_gate_hash(key, s->keys[s->key_count++]))
            return mx_fail(error, MX_UNSUPPORTED, "OpenSSL has no SHA-256 here");
    }
    s->options.host = s->host;
    s->options.api_keys = NULL;
    s->options.cors_origins = NULL;
    s->options.allowed_hosts = NULL;
    return MX_OK;
}

static int64_t modified(const char *path) {
    struct stat info;
    return path && stat(path, &info) == 0 ? (int64_t)info.st_mtime : (int64_t)time(NULL);
}

static mx_status set_parts(mx_server *s, const mx_api_settings *settings, const char *model_path, bool dated,
                           mx_error *error) {
    s->metrics = mx_metrics_create();
    if (!s->metrics) return mx_fail(error, MX_NO_MEMORY, "no memory");
    s->parts = (mx_server_parts){.engine = s->engine,
                                 .info = mx_engine_get_info(s->engine),
                                 .tokenizer = settings->tokenizer,
                                 .vocabulary = settings->vocabulary,
                                 .settings = *settings,
                                 .model = settings->model,
                                 .model_path = model_path,
                                 .model_created = modified(model_path),
                                 .metrics = s->metrics,
                                 .dates = dated};
    mx_status status = mx_replay_create(s->options.replay_bytes, &s->parts.replay, error);
    return status ? status : mx_response_store_create(s->options.responses_bytes, &s->parts.responses, error);
}

static mx_status make_slots(mx_server *s, mx_error *error) {
    s->slot_count = s->options.connections;
    s->slots = calloc((size_t)s->slot_count, sizeof *s->slots);
    if (!s->slots) return mx_fail(error, MX_NO_MEMORY, "no memory for %d connections", s->slot_count);
    for (int i = 0; i < s->slot_count; i++) s->slots[i].next_free = i + 1 < s->slot_count ? i + 1 : -1;
    s->watch_fd = epoll_create1(EPOLL_CLOEXEC);
    s->watch_wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->watch_fd < 0 || s->watch_wake < 0) return mx_fail(error, MX_IO, "epoll: %s", strerror(errno));
    return MX_OK;
}

mx_status mx_server_create(const mx_server_options *options, mx_engine *engine, const mx_api_settings *settings,
                           const char *model_path, bool dated, mx_server **out, mx_error *error) {
    *out = NULL;
    mx_server *s = calloc(1, sizeof *s);
    if (!s) return mx_fail(error, MX_NO_MEMORY, "no memory for a server");
    s->options = *options;
    s->engine = engine;
    s->watch_fd = s->watch_wake = -1;
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->jobs_lock, NULL);
    set_defaults(&s->options);
    fit_connections(s);
    mx_status status = copy_strings(s, error);
    if (!status) status = make_slots(s, error);
    if (!status) status = set_parts(s, settings, model_path, dated, error);
    if (!status && options->tls_certificate)
        status = mx_tls_read(options->tls_certificate, options->tls_key, &s->certificate, &s->key, error);
    if (!status) status = mx_listen_open(s, error);
    if (status) {
        mx_server_free(s);
        return status;
    }
    *out = s;
    return MX_OK;
}

const char *mx_server_address(const mx_server *s) {
    return s->address;
}

void mx_server_free(mx_server *s) {
    if (!s) return;
    mx_listen_close(s);
    if (s->watch_fd >= 0) close(s->watch_fd);
    if (s->watch_wake >= 0) close(s->watch_wake);
    mx_response_store_free(s->parts.responses);
    mx_replay_free(s->parts.replay);
    mx_metrics_free(s->metrics);
    mx_bytes_free(&s->certificate);
    if (s->key.data) OPENSSL_cleanse(s->key.data, s->key.size);
    mx_bytes_free(&s->key);
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->jobs_lock);
    free(s->slots);
    free(s->keys);
    free(s->host);
    free_list(s->origins);
    free_list(s->hosts);
    free(s->unix_path);
    free(s);
}

/* ---- the engine's loop ------------------------------------------------------------------------------------------- */
static const double IDLE_SECONDS = 0.1; /* after so long a signal is noticed while nothing is to do */

/* No new connections; those that are there may still ask, and are told 503. */
static void begin_stop(mx_server *s) {
    mx_log(MX_LOG_INFO, "stopping: no more requests are taken, %d are being answered", atomic_load(&s->busy));
    atomic_store(&s->stopping, true);
    mx_watch_wake(s); /* it closes the listeners */
    if (s->options.on_stop) s->options.on_stop();
}

static mx_status loop(mx_server *s, const volatile sig_atomic_t *stop, mx_error *error) {
    double deadline = 0;
    for (;;) {
        if (*stop && !deadline) {
            begin_stop(s);
            deadline = mx_seconds() + s->options.stop_seconds;
        }
        if (deadline && (*stop > 1 || !atomic_load(&s->busy) || mx_seconds() > deadline)) return MX_OK;
        if (!mx_engine_wait(s->engine, deadline ? IDLE_SECONDS / 10 : IDLE_SECONDS)) continue;
        const mx_status status = mx_step(s->engine, error);
        if (status) return status;
        mx_work_take(s);
    }
}

/* Lets cancelled answers leave the engine, and clients read their last words. */
static void drain(mx_server *s, bool engine_works, double seconds) {
    const double deadline = mx_seconds() + seconds;
    while (mx_seconds() < deadline && (atomic_load(&s->busy) || (engine_works && atomic_load(&s->at_work)))) {
        if (!engine_works || !mx_engine_wait(s->engine, 0.002)) {
            nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
            continue;
        }
        engine_works = mx_step(s->engine, NULL) == MX_OK;
        mx_work_take(s);
    }
}

static void cut_all(mx_server *s) {
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < s->slot_count; i++) {
        mx_exchange *x = s->slots[i].used ? s->slots[i].exchange : NULL;
        if (!x) continue;
        pthread_mutex_lock(&x->lock);
        mx_exchange_cut(x);
        pthread_mutex_unlock(&x->lock);
    }
    pthread_mutex_unlock(&s->lock);
}

static void end(mx_server *s, mx_status status, const mx_error *error) {
    mx_api_problem problem;
    if (status)
        mx_problem_set(&problem, 500, "server_error", "the engine failed: %s", error->text);
    else
        mx_problem_set(&problem, 503, "server_stopping", "the server is stopping");
    if (!atomic_load(&s->stopping)) begin_stop(s);
    mx_work_fail_all(s, &problem);
    drain(s, !status, 1);
    atomic_store(&s->closing, true);
    mx_watch_stop(s);
    cut_all(s); /* from here on nobody waits for libmicrohttpd's threads, nor they for us */
    mx_http_stop(s);
    mx_work_abandon(s);
}

mx_status mx_server_run(mx_server *s, const volatile sig_atomic_t *stop, mx_error *error) {
    mx_error why = {0};
    mx_status status = mx_http_start(s, error);
    if (!status) status = mx_watch_start(s, error);
    if (status) {
        atomic_store(&s->closing, true);
        mx_http_stop(s);
        return status;
    }
    status = loop(s, stop, &why);
    end(s, status, &why);
    return status ? mx_fail(error, status, "%s", why.text) : MX_OK;
}
