/* A server around `stories` with endpoints of its own, for test_server.py: a form that is simple, replies of any size,
 * and an engine that is slow or fails when it is told to. Options are NAME=VALUE. Says its address on stdout. */
#include <netdb.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "api/write.h"
#include "engine/model_parts.h"
#include "server/exchange.h"
#include "server/server.h"
#include "turn/turn.h"

/* ---- the engine -------------------------------------------------------------------------------------------------- */
static atomic_int step_milliseconds;
static atomic_bool broken, released;
static atomic_int held; /* threads that /test/wait holds up */

mx_status __real_mx_step(mx_engine *engine, mx_error *error);
mx_status __wrap_mx_step(mx_engine *engine, mx_error *error);
mx_status __wrap_mx_step(mx_engine *engine, mx_error *error) {
    const int wait = atomic_load(&step_milliseconds);
    if (wait) nanosleep(&(struct timespec){.tv_sec = wait / 1000, .tv_nsec = wait % 1000 * 1000000L}, NULL);
    return atomic_load(&broken) ? mx_fail(error, MX_IO, "the engine is broken") : __real_mx_step(engine, error);
}

/* ---- names --------------------------------------------------------------------------------------------------------
 */
int __real_getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **list);
int __wrap_getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **list);
/* "two.test" has two addresses, one of them twice. */
int __wrap_getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **list) {
    static const char *const two[] = {"127.0.0.1", "127.0.0.2", "127.0.0.1"};
    if (!node || strcmp(node, "two.test") != 0) return __real_getaddrinfo(node, service, hints, list);
    for (int i = 0; i < 3; i++) {
        const int failed = __real_getaddrinfo(two[i], service, hints, list);
        if (failed) return failed;
        list = &(*list)->ai_next;
    }
    return 0;
}

/* ---- the form ---------------------------------------------------------------------------------------------------- */
static bool form_begin(mx_work *w, mx_bytes *out) {
    return mx_bytes_addf(out, "data: {\"begin\":\"%s\"}\n\n", w->id);
}

static bool form_piece(mx_work *w, mx_api_answer *a, const mx_piece *piece, mx_bytes *out) {
    const int tokens = w->request.logprobs >= 0 ? a->tokens.count : -1;
    return mx_bytes_addf(out, "data: {\"index\":%d,\"tokens\":%d,\"text\":", a->index, tokens) &&
           mx_bytes_add_json(out, piece->text, piece->size) && mx_bytes_add_string(out, "}\n\n");
}

static bool form_ended(mx_work *w, mx_api_answer *a, mx_bytes *out) {
    (void)w;
    return mx_bytes_addf(out, "data: {\"index\":%d,\"finish\":\"%s\"}\n\n", a->index, mx_api_answer_finish(a, true));
}

static bool form_finish(mx_work *w, mx_bytes *out) {
    if (w->stream) return mx_bytes_add_string(out, "data: [DONE]\n\n");
    bool ok = mx_bytes_add_string(out, "[");
    for (int i = 0; i < w->count; i++) {
        const mx_turn_result *r = mx_turn_get_result(w->answers[i].turn);
        ok = ok && mx_bytes_add_string(out, i ? "," : "") && mx_bytes_add_json(out, r->text.data, r->text.size);
    }
    return ok && mx_bytes_add_string(out, "]");
}

static bool form_broken(mx_work *w, const mx_api_problem *problem, mx_bytes *out) {
    (void)w;
    return mx_bytes_add_string(out, "event: error\ndata: ") && mx_openai_problem(out, problem) &&
           mx_bytes_add_string(out, "\n\n");
}

static const mx_form form = {.stream_type = "text/event-stream",
                             .keep_alive = ": keep-alive\n\n",
                             .begin = form_begin,
                             .piece = form_piece,
                             .ended = form_ended,
                             .finish = form_finish,
                             .broken = form_broken,
                             .free = free};

/* ---- endpoints --------------------------------------------------------------------------------------------------- */
static int64_t number(const mx_json *fields, const char *name, int64_t otherwise) {
    int64_t value = otherwise;
    mx_json_int64(mx_json_get(fields, name), &value);
    return value;
}

/* {"prompt", "repeat", "max_tokens" (and no fewer), "n", "logprobs", "stream"} */
static void answer(mx_exchange *x) {
    const mx_json *fields = mx_exchange_json(x);
    if (!fields) return;
    const mx_server_parts *parts = mx_exchange_parts(x);
    const mx_json *prompt = mx_json_get(fields, "prompt");
    mx_api_request r = {.prompts_field = "prompt",
                        .sampling = parts->settings.sampling,
                        .max_tokens = number(fields, "max_tokens", 8),
                        .n = (int)number(fields, "n", 1),
                        .logprobs = (int)number(fields, "logprobs", -1),
                        .priority = (int)number(fields, "priority", 0)};
    bool stream = false;
    mx_json_bool(mx_json_get(fields, "stream"), &stream);
    r.best_of = r.n;
    r.min_tokens = r.max_tokens;
    r.sampling.temperature = 1;
    r.sampling.seed = 1;
    r.prompts = calloc(1, sizeof *r.prompts);
    r.prompt_count = 1;
    for (int64_t i = number(fields, "repeat", 1); i > 0 && prompt; i--)
        mx_encode(parts->tokenizer, prompt->text, prompt->size, &r.prompts[0], NULL);
    mx_exchange_work(x, &r, stream, &form, malloc(8));
}

/* What came. */
static void echo(mx_exchange *x) {
    mx_bytes out = {0};
    const char *variable = mx_exchange_variable(x), *query = mx_exchange_query(x, "q");
    mx_bytes_addf(&out, "{\"size\":%zu,\"variable\":\"%s\",\"query\":\"%s\"}", mx_exchange_body(x)->size,
                  variable ? variable : "", query ? query : "");
    mx_exchange_reply(x, 200, "application/json", &out);
}

/* {"bytes"} of it */
static void big(mx_exchange *x) {
    const mx_json *fields = mx_exchange_json(x);
    if (!fields) return;
    mx_bytes out = {0};
    char line[1024];
    memset(line, 'x', sizeof line);
    for (int64_t i = number(fields, "bytes", 0); i > 0; i -= 1024)
        mx_bytes_add(&out, line, i < 1024 ? (size_t)i : 1024);
    mx_exchange_reply(x, 200, "text/plain", &out);
}

static void nothing(mx_exchange *x) {
    (void)x;
}

/* Holds its thread up for {"wait"} seconds, or until /test/engine is told to {"release"}. */
static void wait_for(mx_exchange *x) {
    const mx_json *fields = mx_exchange_json(x);
    double seconds = 0;
    mx_bytes out = {0};
    if (!fields) return;
    mx_json_double(mx_json_get(fields, "wait"), &seconds);
    atomic_fetch_add(&held, 1);
    for (; seconds > 0 && !atomic_load(&released); seconds -= 0.01)
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    atomic_fetch_sub(&held, 1);
    if (!mx_exchange_header(x, "host")) abort(); /* the connection is still there */
    mx_exchange_reply(x, 200, "text/plain", &out);
}

/* {"step_milliseconds", "broken", "release"}; tells {"held"} */
static void set_engine(mx_exchange *x) {
    const mx_json *fields = mx_exchange_json(x);
    mx_bytes out = {0};
    if (!fields) return;
    atomic_store(&step_milliseconds, (int)number(fields, "step_milliseconds", 0));
    atomic_store(&broken, number(fields, "broken", 0) != 0);
    atomic_store(&released, number(fields, "release", 0) != 0);
    mx_bytes_addf(&out, "{\"held\":%d}", atomic_load(&held));
    mx_exchange_reply(x, 200, "application/json", &out);
}

static bool own_problem(mx_bytes *out, const mx_api_problem *problem) {
    return mx_bytes_addf(out, "{\"own\":%d}", problem->http_status);
}

static const mx_endpoint endpoints[] = {
    {"POST", "/test/answer", answer, mx_openai_problem, false},
    {"POST", "/test/echo", echo, mx_openai_problem, false},
    {"GET", "/test/echo/{what}", echo, own_problem, false},
    {"GET", "/test/path/{what...}", echo, own_problem, false},
    {"DELETE", "/test/echo/{what}", echo, own_problem, false},
    {"POST", "/test/big", big, mx_openai_problem, false},
    {"POST", "/test/nothing", nothing, mx_openai_problem, false},
    {"POST", "/test/wait", wait_for, mx_openai_problem, false},
    {"POST", "/test/engine", set_engine, mx_openai_problem, true},
    {0},
};

/* ---- the program ------------------------------------------------------------------------------------------------- */
static volatile sig_atomic_t stop;

static void on_signal(int signal) {
    (void)signal;
    if (stop < 2) stop++;
}

static const char *option(char **argv, const char *name, const char *otherwise) {
    const size_t n = strlen(name);
    for (; *argv; argv++)
        if (!strncmp(*argv, name, n) && (*argv)[n] == '=') return *argv + n + 1;
    return otherwise;
}

static double value(char **argv, const char *name) {
    return atof(option(argv, name, "0"));
}

static mx_status serve(char **argv, mx_engine *engine, const mx_api_settings *settings, mx_error *error) {
    mx_server *server;
    const char *key = option(argv, "key", NULL), *cors[] = {option(argv, "cors", NULL), option(argv, "cors2", NULL)};
    const char *host = option(argv, "allow_host", NULL);
    mx_server_options o = {.host = option(argv, "host", NULL),
                           .port = (int)value(argv, "port"),
                           .unix_socket = option(argv, "unix", NULL),
                           .inherited_socket = -1,
                           .tls_certificate = option(argv, "certificate", NULL),
                           .tls_key = option(argv, "tls_key", NULL),
                           .api_keys = &key,
                           .api_key_count = key != NULL,
                           .no_auth = value(argv, "no_auth") != 0,
                           .cors_origins = cors,
                           .cors_origin_count = (cors[0] != NULL) + (cors[1] != NULL),
                           .allowed_hosts = &host,
                           .allowed_host_count = host != NULL,
                           .header_bytes = (size_t)value(argv, "header"),
                           .body_bytes = (size_t)value(argv, "body"),
                           .connections = (int)value(argv, "connections"),
                           .queue = (int)value(argv, "queue"),
                           .read_seconds = value(argv, "read"),
                           .write_seconds = value(argv, "write"),
                           .idle_seconds = value(argv, "idle"),
                           .keep_alive_seconds = value(argv, "keep_alive"),
                           .backlog_bytes = (size_t)value(argv, "backlog"),
                           .stop_seconds = value(argv, "stop"),
                           .allow_priority = value(argv, "allow_priority") != 0,
                           .more = endpoints};
    mx_status status = mx_server_inherited(&o.inherited_socket, error);
    if (!status) status = mx_server_create(&o, engine, settings, "/", false, &server, error);
    if (status) return status;
    printf("%s\n", mx_server_address(server));
    fflush(stdout);
    status = mx_server_run(server, &stop, error);
    mx_server_free(server);
    return status;
}

int main(int argc, char **argv) {
    (void)argc;
    char path[4096];
    mx_error error = {0};
    mx_model *model = NULL;
    mx_engine *engine = NULL;
    mx_tokenizer *tokenizer = NULL;
    mx_ids stop_tokens = {0};
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, on_signal);
    snprintf(path, sizeof path, "%s/tools/stories/checkpoint", getenv("MXRUN_SOURCE"));
    const mx_engine_options options = {
        .threads = 1, .context = 4096, .kv_memory = 64 << 20, .max_running = (int)value(argv, "running")};
    mx_status status = mx_tokenizer_open(path, &tokenizer, &error);
    if (!status) status = mx_model_open(path, NULL, &model, &error);
    if (!status && !mx_turn_stop_tokens(tokenizer, mx_model_config(model), &stop_tokens)) status = MX_NO_MEMORY;
    if (!status) status = mx_engine_create(model, &options, &engine, &error);
    if (!status) {
        const mx_api_settings settings = {.tokenizer = tokenizer,
                                          .model = "stories",
                                          .sampling = MX_SAMPLING_DEFAULT,
                                          .stop_tokens = &stop_tokens,
                                          .vocab = mx_engine_get_info(engine).vocab};
        status = serve(argv, engine, &settings, &error);
    }
    if (status) fprintf(stderr, "%s\n", error.text);
    mx_engine_destroy(engine);
    mx_model_close(model);
    mx_tokenizer_close(tokenizer);
    mx_ids_free(&stop_tokens);
    return status ? 1 : 0;
}
