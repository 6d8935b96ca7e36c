#include "server/ollama.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "server/protocol.h"

/* {"error": "text"} */
static bool problem_body(mx_bytes *out, const mx_api_problem *problem) {
    mx_api_writer w = {.out = out};
    mx_api_put(&w, "{\"error\":");
    mx_api_put_string(&w, problem->text, strlen(problem->text));
    mx_api_put(&w, "}");
    return !w.failed;
}

bool mx_ollama_check_model(const mx_server_parts *parts, const mx_json *name, mx_api_problem *problem) {
    static const char latest[] = ":latest";
    static atomic_bool warned;
    if (!name || name->type != MX_JSON_STRING || !name->size)
        return mx_api_wrong(problem, "model", "missing_required_parameter", "model is required");
    const size_t size = strlen(parts->model);
    const bool same = name->size >= size && !memcmp(name->text, parts->model, size) &&
                      (!name->text[size] || !strcmp(name->text + size, latest));
    if (!same && !atomic_exchange(&warned, true))
        mx_log(MX_LOG_WARNING,
               "a client of /api asks for the model \"%.80s\" and is answered by %s (this is said once)", name->text,
               parts->model);
    return true;
}

/* 0, 0.0, "0", "0s", "0h0m": no time */
static bool is_zero(const mx_json *time) {
    double seconds;
    if (!time) return false;
    if (time->type == MX_JSON_NUMBER) return mx_json_double(time, &seconds) && seconds == 0;
    return time->size && time->text[0] == '0' && strspn(time->text, "0.hmsnu") == time->size;
}

/* The model is there already: an answer at once, without text. */
static void reply_loaded(mx_exchange *x, const mx_json *body, bool chat) {
    const mx_server_parts *parts = mx_exchange_parts(x);
    const bool unload = is_zero(mx_field(body, "keep_alive"));
    mx_bytes out = {0};
    mx_api_writer w = {.out = &out, .settings = &parts->settings};
    mx_api_put(&w, "{");
    mx_ollama_put_head(&w);
    mx_api_put(&w, chat ? ",\"message\":{\"role\":\"assistant\",\"content\":\"\"}" : ",\"response\":\"\"");
    mx_api_putf(&w, ",\"done\":true,\"done_reason\":\"%s\"}\n", unload ? "unload" : "load");
    mx_reply(x, !w.failed, &out);
}

static void answer(mx_exchange *x, bool chat) {
    const mx_server_parts *parts = mx_exchange_parts(x);
    const mx_json *body = mx_exchange_json(x);
    if (!body) return;
    mx_ollama_answer *state = calloc(1, sizeof *state);
    mx_api_request request = {0};
    mx_error error = {0};
    bool stream = true, load = false; /* streams are Ollama's default */
    const mx_fields fields = {body, "", &request.problem};
    mx_status status = state ? MX_OK : mx_fail(&error, MX_NO_MEMORY, "no memory for an answer");
    if (!status && mx_read_bool(&fields, "stream", &stream)) {
        state->chat = chat;
        status = (chat ? mx_ollama_read_chat : mx_ollama_read_generate)(parts, mx_exchange_id(x), body, &request, state,
                                                                        &load, &error);
    }
    if (!status && !request.problem.http_status && !load) {
        mx_exchange_work(x, &request, stream, &mx_ollama_form, state);
        return;
    }
    if (status)
        mx_exchange_fail(x, &error);
    else if (request.problem.http_status)
        mx_exchange_refuse(x, &request.problem);
    else
        reply_loaded(x, body, chat);
    mx_api_request_free(&request);
    free(state);
}

static void chat(mx_exchange *x) {
    answer(x, true);
}

static void generate(mx_exchange *x) {
    answer(x, false);
}

/* What changes or makes models, and embeddings: there is one model here, and it writes text. */
static void refuse(mx_exchange *x) {
    const char *path = mx_exchange_path(x);
    mx_api_problem problem;
    mx_api_wrong(&problem, NULL, "unsupported_value",
                 strncmp(path, "/api/embed", 10) ? "%s is not supported: mxrun serves the one model it was started with"
                                                 : "%s is not supported: gpt-oss models make no embeddings",
                 path);
    problem.http_status = 501;
    mx_exchange_refuse(x, &problem);
}

const mx_endpoint mx_ollama_endpoints[] = {
    {"POST", "/api/chat", chat, problem_body, false},
    {"POST", "/api/generate", generate, problem_body, false},
    {"GET", "/api/version", mx_ollama_version, problem_body, false},
    {"GET", "/api/tags", mx_ollama_tags, problem_body, false},
    {"GET", "/api/ps", mx_ollama_ps, problem_body, false},
    {"POST", "/api/show", mx_ollama_show, problem_body, false},
    {"POST", "/api/embed", refuse, problem_body, false},
    {"POST", "/api/embeddings", refuse, problem_body, false},
    {"POST", "/api/pull", refuse, problem_body, false},
    {"POST", "/api/push", refuse, problem_body, false},
    {"POST", "/api/create", refuse, problem_body, false},
    {"POST", "/api/copy", refuse, problem_body, false},
    {"DELETE", "/api/delete", refuse, problem_body, false},
    {0},
};
