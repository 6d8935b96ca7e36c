/* OpenAI's endpoints: chat completions, completions, models. */
#include "server/openai.h"

#include <stdatomic.h>
#include <string.h>
#include <xxhash.h>

#include "api/write.h"
#include "base/log.h"

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

static void reply(mx_exchange *x, mx_api_writer *w) {
    mx_error error;
    if (!w->failed) {
        mx_exchange_reply(x, 200, "application/json", w->out);
        return;
    }
    mx_bytes_free(w->out);
    mx_fail(&error, MX_NO_MEMORY, "no memory for a reply");
    mx_exchange_fail(x, &error);
}

static void list_models(mx_exchange *x) {
    mx_bytes out = {0};
    mx_api_writer w = {.out = &out};
    mx_api_put(&w, "{\"object\":\"list\",\"data\":[");
    put_model(&w, mx_exchange_parts(x));
    mx_api_put(&w, "]}");
    reply(x, &w);
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
    put_model(&w, parts);
    reply(x, &w);
}

const mx_endpoint mx_openai_endpoints[] = {
    {"POST", "/v1/chat/completions", complete_chat, mx_openai_problem, false},
    {"POST", "/v1/completions", complete_text, mx_openai_problem, false},
    {"GET", "/v1/models", list_models, mx_openai_problem, false},
    {"GET", "/v1/models/{id...}", show_model, mx_openai_problem, false},
    {0},
};
