/* OpenAI's endpoints: chat completions, completions, models. */
#include "server/openai.h"

#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

#include "api/write.h"
#include "base/log.h"
#include "server/protocol.h"

bool mx_openai_problem(mx_bytes *out, const mx_api_problem *problem) {
    mx_api_writer w = {.out = out};
    mx_api_put(&w, "{\"error\":");
    mx_api_put_problem(&w, problem);
    mx_api_put(&w, "}");
    return !w.failed;
}

/* ---- completions ------------------------------------------------------------------------------------------------- */
/* There is one model, and it answers under any name: programs are full of names of OpenAI's. The answer says which it
 * was. */
static bool check_model(const mx_server_parts *parts, const mx_json *body, mx_api_problem *problem) {
    static atomic_bool warned;
    const mx_json *model = mx_json_get(body, "model");
    if (!model || model->type == MX_JSON_NULL) return true;
    if (model->type != MX_JSON_STRING)
        return mx_api_wrong(problem, "model", "invalid_type", "model: expected a string");
    if (model->size && !mx_json_is_string(model, parts->model) && !atomic_exchange(&warned, true))
        mx_log(MX_LOG_WARNING, "a client asks for the model \"%.80s\" and is answered by %s (this is said once)",
               model->text, parts->model);
    return true;
}

static void complete(mx_exchange *x, bool chat) {
    const mx_server_parts *parts = mx_exchange_parts(x);
    const mx_json *body = mx_exchange_json(x);
    if (!body) return;
    const mx_api_reader reader = {
        .settings = &parts->settings, .replay = parts->replay, .dated = parts->dates, .streams = true};
    const char *id = mx_exchange_id(x);
    mx_api_request request;
    mx_error error;
    mx_status status = mx_api_read_body(&reader, chat, XXH3_64bits(id, strlen(id)) >> 11, body, &request, &error);
    void *state = NULL;
    if (!status && !request.problem.http_status && check_model(parts, body, &request.problem)) {
        state = mx_openai_state(parts, &request, id, mx_exchange_created(x));
        if (!state) status = mx_fail(&error, MX_NO_MEMORY, "no memory for an answer");
    }
    if (status) {
        mx_api_request_free(&request);
        mx_exchange_fail(x, &error);
        return;
    }
    mx_exchange_work(x, &request, request.stream, &mx_openai_form, state);
}

static void complete_chat(mx_exchange *x) {
    complete(x, true);
}

static void complete_text(mx_exchange *x) {
    complete(x, false);
}

/* ---- models ------------------------------------------------------------------------------------------------------ */
/* "max_model_len" as vLLM has it: front ends look for it. */
static void put_model(mx_api_writer *w, const mx_server_parts *parts) {
    mx_api_put(w, "{\"id\":");
    mx_api_put_string(w, parts->model, strlen(parts->model));
    mx_api_putf(w, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"mxrun\",\"max_model_len\":%lld}",
                (long long)parts->model_created, (long long)parts->info.context);
}

/* As Anthropic's clients have it, which share the path and are known by their header. */
static bool is_anthropic(const mx_exchange *x) {
    return mx_exchange_header(x, "anthropic-version") != NULL;
}

static void put_anthropic_model(mx_api_writer *w, const mx_server_parts *parts) {
    const time_t created = (time_t)parts->model_created;
    struct tm utc;
    char when[sizeof "2026-11-27T23:12:34Z"] = "1970-01-01T00:00:00Z";
    if (gmtime_r(&created, &utc)) strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &utc);
    mx_api_put(w, "{\"type\":\"model\",\"id\":");
    mx_api_put_string(w, parts->model, strlen(parts->model));
    mx_api_put(w, ",\"display_name\":");
    mx_api_put_string(w, parts->model, strlen(parts->model));
    mx_api_putf(w, ",\"created_at\":\"%s\"}", when);
}

static void list_models(mx_exchange *x) {
    const mx_server_parts *parts = mx_exchange_parts(x);
    const bool anthropic = is_anthropic(x);
    mx_bytes out = {0};
    mx_api_writer w = {.out = &out};
    mx_api_put(&w, anthropic ? "{\"data\":[" : "{\"object\":\"list\",\"data\":[");
    (anthropic ? put_anthropic_model : put_model)(&w, parts);
    mx_api_put(&w, "]");
    for (int i = 0; anthropic && i < 2; i++) {
        mx_api_put(&w, i ? ",\"last_id\":" : ",\"has_more\":false,\"first_id\":");
        mx_api_put_string(&w, parts->model, strlen(parts->model));
    }
    mx_api_put(&w, "}");
    mx_reply(x, !w.failed, &out);
}

static void show_model(mx_exchange *x) {
    const mx_server_parts *parts = mx_exchange_parts(x);
    const char *name = mx_exchange_variable(x);
    mx_bytes out = {0};
    mx_api_writer w = {.out = &out};
    if (!name || strcmp(name, parts->model) != 0) {
        mx_api_problem problem;
        mx_api_wrong(&problem, "model", "model_not_found", "there is no model \"%.80s\" here, only \"%s\"",
                     name ? name : "", parts->model);
        problem.http_status = 404;
        mx_exchange_refuse(x, &problem);
        return;
    }
    (is_anthropic(x) ? put_anthropic_model : put_model)(&w, parts);
    mx_reply(x, !w.failed, &out);
}

const mx_endpoint mx_openai_endpoints[] = {
    {"POST", "/v1/chat/completions", complete_chat, mx_openai_problem, false},
    {"POST", "/v1/completions", complete_text, mx_openai_problem, false},
    {"GET", "/v1/models", list_models, mx_openai_problem, false},
    {"GET", "/v1/models/{id...}", show_model, mx_openai_problem, false},
    {0},
};
