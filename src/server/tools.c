#include <stdlib.h>
#include <string.h>

#include "api/write.h"
#include "server/embedded.h"
#include "server/exchange.h"
#include "server/protocol.h"

/* /v1/tokenize, /v1/detokenize, and the description of all endpoints. */

/* A status that is the request's fault becomes a problem. */
static void refuse(mx_exchange *x, mx_status status, const mx_error *error, const char *param) {
    mx_api_problem problem;
    if (status != MX_INVALID_ARGUMENT && status != MX_UNSUPPORTED && status != MX_NOT_FOUND) {
        mx_exchange_fail(x, error);
        return;
    }
    mx_api_wrong(&problem, param, "invalid_value", "%s", error->text);
    mx_exchange_refuse(x, &problem);
}

/* ---- tokenize ---------------------------------------------------------------------------------------------------- */
/* The text under any of the names that servers have for it. */
static const mx_json *find_text(const mx_json *body, const char **name) {
    static const char *const names[] = {"input", "text", "prompt", "content"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const mx_json *v = mx_field(body, names[i]);
        *name = names[i];
        if (v) return v;
    }
    return NULL;
}

/* "add_special": false, names of special tokens are text. What is wrong goes to `problem`. */
static mx_status encode_text(const mx_server_parts *parts, const mx_json *body, mx_ids *ids, mx_api_problem *problem,
                             mx_error *error) {
    const char *name;
    const mx_json *text = find_text(body, &name), *special = mx_field(body, "add_special");
    bool add_special = true;
    if (!text) {
        mx_api_wrong(problem, "input", "missing_required_parameter", "input: missing (or \"messages\")");
        return MX_OK;
    }
    if (text->type != MX_JSON_STRING) {
        mx_api_wrong(problem, name, "invalid_type", "%s: expected a string", name);
        return MX_OK;
    }
    if (special && !mx_json_bool(special, &add_special)) {
        mx_api_wrong(problem, "add_special", "invalid_type", "add_special: expected true or false");
        return MX_OK;
    }
    return (add_special ? mx_encode_special : mx_encode)(parts->tokenizer, text->text, text->size, ids, error);
}

/* The prompt that /v1/chat/completions would make of it. */
static mx_status encode_chat(const mx_server_parts *parts, const mx_json *body, mx_ids *ids, mx_api_problem *problem,
                             mx_error *error) {
    const mx_api_reader reader = {
        .settings = &parts->settings, .replay = parts->replay, .dated = parts->dates, .streams = true};
    mx_api_request request;
    mx_status status = mx_api_read_body(&reader, true, 0, body, &request, error);
    if (!status && request.problem.http_status) {
        *problem = request.problem;
    } else if (!status) {
        *ids = request.prompts[0];
        request.prompts[0] = (mx_ids){0};
    }
    mx_api_request_free(&request);
    return status;
}

static void tokenize(mx_exchange *x) {
    const mx_server_parts *parts = mx_exchange_parts(x);
    const mx_json *body = mx_exchange_json(x);
    if (!body) return;
    mx_ids ids = {0};
    mx_api_problem problem = {0};
    mx_error error = {0};
    mx_bytes out = {0};
    mx_api_writer w = {.out = &out};
    mx_status status = (mx_field(body, "messages") ? encode_chat : encode_text)(parts, body, &ids, &problem, &error);
    if (status || problem.http_status) {
        mx_ids_free(&ids);
        if (status)
            refuse(x, status, &error, NULL);
        else
            mx_exchange_refuse(x, &problem);
        return;
    }
    mx_api_put(&w, "{\"tokens\":[");
    for (int64_t i = 0; i < ids.count; i++) mx_api_putf(&w, i ? ",%d" : "%d", (int)ids.data[i]);
    mx_api_putf(&w, "],\"count\":%lld,\"max_model_len\":%lld}", (long long)ids.count, (long long)parts->info.context);
    mx_ids_free(&ids);
    mx_reply(x, !w.failed, &out);
}

/* ---- detokenize -------------------------------------------------------------------------------------------------- */
/* False: this is no token, and the problem says so. */
static bool add_token(const mx_tokenizer *t, const mx_json *v, mx_bytes *text, mx_api_problem *problem, bool *memory) {
    int64_t id;
    size_t size = 0;
    const char *bytes = NULL;
    if (mx_json_int64(v, &id) && id >= 0 && id <= INT32_MAX) bytes = mx_token_bytes(t, (int32_t)id, &size);
    if (!bytes)
        return mx_api_wrong(problem, "tokens", "invalid_value", "tokens: %s is no token; ids go from 0 to %d",
                            v->type == MX_JSON_NUMBER ? v->text : "what is no number", mx_tokenizer_size(t) - 1);
    *memory &= mx_bytes_add(text, bytes, size);
    return *memory;
}

static void detokenize(mx_exchange *x) {
    const mx_server_parts *parts = mx_exchange_parts(x);
    const mx_json *body = mx_exchange_json(x);
    if (!body) return;
    const mx_json *tokens = mx_field(body, "tokens");
    mx_api_problem problem = {0};
    mx_bytes text = {0}, out = {0};
    mx_api_writer w = {.out = &out};
    bool memory = true;
    if (!tokens || tokens->type != MX_JSON_ARRAY)
        mx_api_wrong(&problem, "tokens", tokens ? "invalid_type" : "missing_required_parameter",
                     "tokens: expected an array of token ids");
    for (const mx_json *v = problem.http_status ? NULL : tokens->child; v; v = v->next)
        if (!add_token(parts->tokenizer, v, &text, &problem, &memory)) break;
    if (problem.http_status) {
        mx_bytes_free(&text);
        mx_exchange_refuse(x, &problem);
        return;
    }
    w.failed = !memory;
    mx_api_put(&w, "{\"text\":");
    mx_api_put_string(&w, text.data, text.size); /* bytes that are no text become U+FFFD */
    mx_api_put(&w, "}");
    mx_bytes_free(&text);
    mx_reply(x, !w.failed, &out);
}

/* ---- description ------------------------------------------------------------------------------------------------- */
static void describe(mx_exchange *x) {
    mx_bytes out = {0};
    mx_api_writer w = {.out = &out};
    const mx_embedded *file = mx_embedded_find("openapi.json");
    w.failed = !file || !mx_bytes_add(&out, file->data, file->size);
    mx_reply(x, !w.failed, &out);
}

const mx_endpoint mx_tool_endpoints[] = {
    {"POST", "/v1/tokenize", tokenize, mx_openai_problem, false},
    {"POST", "/v1/detokenize", detokenize, mx_openai_problem, false},
    {"GET", "/openapi.json", describe, mx_openai_problem, true},
    {0},
};
