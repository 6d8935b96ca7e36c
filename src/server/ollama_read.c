#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/rules.h"
#include "base/log.h"
#include "server/ollama.h"
#include "server/protocol.h"

/* Bodies of /api/chat and /api/generate to requests. */
typedef struct reader {
    const mx_server_parts *parts;
    const mx_json *body;
    mx_api_request *out;
    mx_api_problem *problem; /* out's */
    mx_error *error;
    mx_api_chat *chat;
} reader;

static mx_status no_memory(mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "no memory for a request");
}

static bool is_empty(const mx_json *v) {
    return !v || (v->type == MX_JSON_STRING && !v->size) || (v->type == MX_JSON_ARRAY && !v->count);
}

/* A chat's refusal, which is the request's fault and not ours: it becomes a problem. */
static mx_status blame(reader *r, mx_status status, const char *param) {
    const bool theirs = status == MX_INVALID_ARGUMENT || status == MX_NOT_FOUND || status == MX_UNSUPPORTED;
    if (!theirs) return status;
    char text[sizeof r->error->text];
    snprintf(text, sizeof text, "%s", r->error->text);
    const bool named = !param || strncmp(text, param, strlen(param)) == 0;
    mx_api_wrong(r->problem, param, "invalid_value", "%s%s%s", named ? "" : param, named ? "" : ": ", text);
    return MX_OK;
}

static bool ok(const reader *r, mx_status status) {
    return !status && !r->problem->http_status;
}

/* ---- options ----------------------------------------------------------------------------------------------------- */
/* Ways of sampling that mxrun does not have are refused unless they are switched off. */
static bool read_unsupported_options(reader *r, const mx_fields *options) {
    static const struct {
        const char *name;
        double off, also_off;
    } unsupported[] = {{"mirostat", 0, 0}, {"tfs_z", 1, 0}, {"typical_p", 1, 0}};
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++) {
        double value = unsupported[i].off;
        if (!mx_read_number(options, unsupported[i].name, -1e9, 1e9, &value)) return false;
        if (value != unsupported[i].off && value != unsupported[i].also_off)
            return mx_api_wrong(r->problem, unsupported[i].name, "unsupported_value",
                                "options.%s is not supported: leave it out or use top_k, top_p, min_p",
                                unsupported[i].name);
    }
    static atomic_bool warned;
    int64_t context = 0;
    if (!mx_read_whole(options, "num_ctx", INT32_MIN, INT32_MAX, &context)) return false;
    if (context > r->parts->info.context && !atomic_exchange(&warned, true))
        mx_log(MX_LOG_WARNING,
               "a client of /api wants num_ctx %lld, the context here is %lld (--ctx; this is said once)",
               (long long)context, (long long)r->parts->info.context);
    return true;
}

static mx_status read_options(reader *r) {
    const mx_fields body = {r->body, "", r->problem};
    mx_fields options = {NULL, "options.", r->problem};
    mx_sampling *s = &r->out->sampling;
    int64_t limit = 0, seed = -1;
    int top_k = s->top_k;
    if (!mx_read_typed(&body, "options", MX_JSON_OBJECT, &options.object)) return MX_OK;
    if (!mx_read_float(&options, "temperature", 0, 10, &s->temperature) ||
        !mx_read_float(&options, "top_p", 0, 1, &s->top_p) || !mx_read_float(&options, "min_p", 0, 1, &s->min_p) ||
        !mx_read_int(&options, "top_k", INT32_MIN, INT32_MAX, &top_k) ||
        !mx_read_float(&options, "repeat_penalty", 0.01, 10, &s->repetition_penalty) ||
        !mx_read_float(&options, "presence_penalty", -10, 10, &s->presence_penalty) ||
        !mx_read_float(&options, "frequency_penalty", -10, 10, &s->frequency_penalty) ||
        !mx_read_whole(&options, "seed", INT64_MIN, INT64_MAX, &seed) ||
        !mx_read_whole(&options, "num_predict", INT32_MIN, INT32_MAX, &limit) || !read_unsupported_options(r, &options))
        return MX_OK;
    s->top_k = top_k > 0 ? top_k : 0;
    if (seed >= 0) s->seed = (uint64_t)seed;   /* Ollama: -1 is any */
    if (limit > 0) r->out->max_tokens = limit; /* -1, -2: until the context is full */
    return mx_read_stop_strings(&options, "stop", r->out, r->error);
}

/* "logprobs": true, "top_logprobs": N */
static bool read_logprobs(reader *r) {
    const mx_fields body = {r->body, "", r->problem};
    bool wanted = false;
    int count = 0;
    if (!mx_read_bool(&body, "logprobs", &wanted) || !mx_read_int(&body, "top_logprobs", 0, MX_TOP_LOGPROBS, &count))
        return false;
    if (wanted) r->out->logprobs = count;
    return true;
}

/* ---- format and tools -------------------------------------------------------------------------------------------- */
/* "json" or a JSON schema */
static mx_status read_format(reader *r) {
    const mx_json *format = mx_field(r->body, "format");
    if (is_empty(format)) return MX_OK;
    if (format->type != MX_JSON_OBJECT && !mx_json_is_string(format, "json")) {
        mx_api_wrong(r->problem, "format", "invalid_value", "format: expected \"json\" or a JSON schema");
        return MX_OK;
    }
    mx_status status = mx_need_rules(r->out, r->error);
    if (status) return status;
    r->out->rules->raw = !r->out->chat;
    if (format->type != MX_JSON_OBJECT) return mx_api_rules_json(r->out->rules, r->error);
    return mx_api_rules_schema(r->out->rules, format, false, "format", r->problem, r->error);
}

/* Arguments are objects in this protocol, so a grammar holds the model to them. */
static mx_status add_tool_rule(reader *r, const mx_json *tool, int index, const mx_json *any_object) {
    const mx_json *function = mx_field(tool, "function"), *name = mx_field(function ? function : tool, "name");
    char param[80], clean[65];
    const mx_json *type = mx_field(tool, "type");
    if (type && !mx_json_is_string(type, "function")) return MX_OK; /* the model is not told of it */
    if (!name || name->type != MX_JSON_STRING) return MX_OK;        /* mx_api_chat_set_tools has said so */
    if (!mx_api_tool_name(name->text, name->size, clean)) return MX_OK;
    snprintf(param, sizeof param, "tools[%d]", index);
    return mx_api_rules_tool(r->out->rules, clean, any_object, true, param, r->problem, r->error);
}

static mx_status add_tool_rules(reader *r, const mx_json *tools) {
    static const char text[] = "{\"type\":\"object\",\"additionalProperties\":true}";
    mx_json_document *any_object;
    int index = 0;
    mx_status status = mx_need_rules(r->out, r->error);
    if (!status) status = mx_json_parse("arguments", text, sizeof text - 1, &any_object, r->error);
    if (status) return status;
    for (const mx_json *tool = tools->child; tool && ok(r, status); tool = tool->next, index++)
        status = add_tool_rule(r, tool, index, mx_json_root(any_object));
    if (ok(r, status)) status = mx_api_rules_choose(r->out->rules, MX_TOOLS_AUTO, NULL, "tools", r->problem, r->error);
    mx_json_free(any_object);
    return status;
}

static mx_status read_tools(reader *r) {
    const mx_json *tools = mx_field(r->body, "tools");
    if (tools && tools->type != MX_JSON_ARRAY) {
        mx_api_wrong(r->problem, "tools", "invalid_type", "tools: expected an array of functions");
        return MX_OK;
    }
    if (is_empty(tools)) return MX_OK;
    mx_status status = blame(r, mx_api_chat_set_tools(r->chat, "tools", tools, r->error), "tools");
    return ok(r, status) && r->parts->vocabulary ? add_tool_rules(r, tools) : status;
}

/* true, false, or how much */
static mx_status read_think(reader *r, mx_ollama_answer *answer) {
    const mx_json *think = mx_field(r->body, "think");
    bool wanted;
    if (is_empty(think)) return MX_OK;
    if (mx_json_bool(think, &wanted)) {
        answer->hide_thinking = !wanted;
        /* These models always think: low is as little as they do. */
        return wanted ? MX_OK : mx_api_chat_set_reasoning(r->chat, "low", r->error);
    }
    if (mx_json_is_string(think, "low") || mx_json_is_string(think, "medium") || mx_json_is_string(think, "high"))
        return mx_api_chat_set_reasoning(r->chat, think->text, r->error);
    mx_api_wrong(r->problem, "think", "invalid_value", "think: expected true, false, \"low\", \"medium\" or \"high\"");
    return MX_OK;
}

/* ---- messages ---------------------------------------------------------------------------------------------------- */
/* Says "messages[2].tool_calls: what". */
static mx_status wrong(reader *r, int index, const char *member, const char *what) {
    char param[80];
    snprintf(param, sizeof param, "messages[%d]%s%s", index, *member ? "." : "", member);
    mx_api_wrong(r->problem, param, "invalid_value", "%s: %s", param, what);
    return MX_OK;
}

/* The calls of a message: their arguments are JSON text of ours. */
typedef struct called {
    mx_api_call *call; /* [count]; strings within the body */
    mx_bytes *arguments;
    int count;
} called;

static void free_called(called *c) {
    for (int i = 0; c->arguments && i < c->count; i++) mx_bytes_free(&c->arguments[i]);
    free(c->arguments);
    free(c->call);
}

static mx_status read_call(reader *r, int index, const mx_json *v, mx_api_call *call, mx_bytes *text) {
    const mx_json *function = mx_field(v, "function"), *name = mx_field(function, "name"), *id = mx_field(v, "id");
    const mx_json *arguments = mx_field(function, "arguments");
    if (!name || name->type != MX_JSON_STRING || !name->size || strlen(name->text) != name->size ||
        (id && (id->type != MX_JSON_STRING || strlen(id->text) != id->size)))
        return wrong(r, index, "tool_calls", "expected [{\"function\": {\"name\": \"...\", \"arguments\": {...}}}]");
    if (arguments && arguments->type != MX_JSON_OBJECT)
        return wrong(r, index, "tool_calls", "expected \"arguments\" to be an object");
    const bool fits = arguments ? mx_json_write(text, arguments) : mx_bytes_add_string(text, "{}");
    if (!fits) return no_memory(r->error);
    *call = (mx_api_call){id && id->size ? id->text : NULL, name->text, text->data, text->size};
    return MX_OK;
}

static mx_status read_calls(reader *r, int index, const mx_json *calls, called *out) {
    if (!calls) return MX_OK;
    if (calls->type != MX_JSON_ARRAY) return wrong(r, index, "tool_calls", "expected an array");
    out->call = calloc(calls->count + 1u, sizeof *out->call);
    out->arguments = calloc(calls->count + 1u, sizeof *out->arguments);
    if (!out->call || !out->arguments) return no_memory(r->error);
    mx_status status = MX_OK;
    for (const mx_json *v = calls->child; v && ok(r, status); v = v->next) {
        status = read_call(r, index, v, &out->call[out->count], &out->arguments[out->count]);
        out->count++;
    }
    return status;
}

static mx_status add_assistant(reader *r, int index, const mx_json *m, const mx_json *content) {
    const mx_json *thinking = mx_field(m, "thinking");
    called calls = {0};
    if (thinking && thinking->type != MX_JSON_STRING) return wrong(r, index, "thinking", "expected a string");
    mx_status status = read_calls(r, index, mx_field(m, "tool_calls"), &calls);
    const mx_api_said said = {
        .thinking = thinking ? thinking->text : "",
        .thinking_size = thinking ? thinking->size : 0,
        .text = content ? content->text : "",
        .text_size = content ? content->size : 0,
        .has_text = content && (content->size || !calls.count), /* Ollama's answers always have a content */
        .calls = calls.call,
        .call_count = calls.count,
    };
    if (ok(r, status)) status = mx_api_chat_add_said(r->chat, &said, r->error);
    free_called(&calls);
    return status;
}

/* A result names its tool, or its call, or is of the call whose turn it is. */
static mx_status add_result(reader *r, int index, const mx_json *m, const mx_json *content) {
    const mx_json *tool = mx_field(m, "tool_name"), *id = mx_field(m, "tool_call_id");
    if (!tool) tool = mx_field(m, "name");
    if ((tool && (tool->type != MX_JSON_STRING || strlen(tool->text) != tool->size)) ||
        (id && (id->type != MX_JSON_STRING || strlen(id->text) != id->size)))
        return wrong(r, index, "", "expected \"tool_name\" and \"tool_call_id\" to be strings");
    return mx_api_chat_add_result(r->chat, is_empty(id) ? NULL : id->text, is_empty(tool) ? NULL : tool->text,
                                  content ? content->text : "", content ? content->size : 0, r->error);
}

static mx_status read_messages(reader *r, const mx_json *messages) {
    mx_status status = MX_OK;
    int index = 0;
    for (const mx_json *m = messages->child; m && ok(r, status); m = m->next, index++) {
        const mx_json *role = mx_field(m, "role"), *content = mx_field(m, "content");
        const char *text = content ? content->text : "";
        const size_t size = content ? content->size : 0;
        char param[80];
        snprintf(param, sizeof param, "messages[%d]", index);
        if (content && content->type != MX_JSON_STRING)
            status = wrong(r, index, "content", "expected a string");
        else if (!is_empty(mx_field(m, "images")))
            status = wrong(r, index, "images", "gpt-oss models read text only");
        else if (mx_json_is_string(role, "system") || mx_json_is_string(role, "developer"))
            status = mx_api_chat_add_instructions(r->chat, text, size, r->error);
        else if (mx_json_is_string(role, "user"))
            status = mx_api_chat_add_user(r->chat, text, size, r->error);
        else if (mx_json_is_string(role, "assistant"))
            status = add_assistant(r, index, m, content);
        else if (mx_json_is_string(role, "tool"))
            status = add_result(r, index, m, content);
        else
            status = wrong(r, index, "role", "expected \"system\", \"user\", \"assistant\" or \"tool\"");
        status = blame(r, status, param);
    }
    return status;
}

/* ---- bodies ------------------------------------------------------------------------------------------------------ */
/* The model stays, whatever it says. */
static bool check_keep_alive(reader *r) {
    const mx_json *v = mx_field(r->body, "keep_alive");
    return !v || v->type == MX_JSON_STRING || v->type == MX_JSON_NUMBER ||
           mx_api_wrong(r->problem, "keep_alive", "invalid_type", "keep_alive: expected \"5m\" or a number of seconds");
}

static mx_status begin(reader *r, const char *id) {
    mx_status status = mx_begin_request(r->parts, id, r->out, r->error);
    if (status || !mx_ollama_check_model(r->parts, mx_field(r->body, "model"), r->problem) || !read_logprobs(r) ||
        !check_keep_alive(r))
        return status;
    return read_options(r);
}

/* `add` gives the chat its messages. */
static mx_status read_chat(reader *r, mx_ollama_answer *answer, mx_status (*add)(reader *r)) {
    mx_status status =
        blame(r, mx_api_chat_create(&r->parts->settings, r->parts->replay, r->parts->dates, &r->chat, r->error), NULL);
    if (ok(r, status)) status = read_think(r, answer);
    if (ok(r, status)) status = read_tools(r);
    if (ok(r, status)) status = add(r);
    if (ok(r, status)) status = read_format(r);
    if (ok(r, status)) status = blame(r, mx_api_chat_finish(r->chat, r->out, r->error), NULL);
    mx_api_chat_free(r->chat);
    r->chat = NULL;
    return status;
}

static mx_status add_messages(reader *r) {
    return read_messages(r, mx_field(r->body, "messages"));
}

mx_status mx_ollama_read_chat(const mx_server_parts *parts, const char *id, const mx_json *body, mx_api_request *out,
                              mx_ollama_answer *answer, bool *load, mx_error *error) {
    reader r = {.parts = parts, .body = body, .out = out, .problem = &out->problem, .error = error};
    const mx_json *messages = mx_field(body, "messages");
    mx_status status = begin(&r, id);
    if (!ok(&r, status)) return status;
    if (messages && messages->type != MX_JSON_ARRAY) {
        mx_api_wrong(r.problem, "messages", "invalid_type", "messages: expected an array");
        return MX_OK;
    }
    out->prompts_field = "messages";
    *load = is_empty(messages);
    return *load ? MX_OK : read_chat(&r, answer, add_messages);
}

static mx_status add_prompt(reader *r) {
    const mx_json *system = mx_field(r->body, "system"), *prompt = mx_field(r->body, "prompt");
    mx_status status = MX_OK;
    if (!is_empty(system))
        status = blame(r, mx_api_chat_add_instructions(r->chat, system->text, system->size, r->error), "system");
    return ok(r, status) ? blame(r, mx_api_chat_add_user(r->chat, prompt->text, prompt->size, r->error), "prompt")
                         : status;
}

/* What would change the answer and is not there. */
static bool check_generate(reader *r, bool *raw) {
    static const struct {
        const char *name, *why;
    } unsupported[] = {
        {"suffix", "gpt-oss models do not fill in"},
        {"images", "gpt-oss models read text only"},
        {"template", "chats have the model's own format; use \"raw\": true for another"},
        {"context", "use /api/chat with the messages so far"},
    };
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++)
        if (!is_empty(mx_field(r->body, unsupported[i].name)))
            return mx_api_wrong(r->problem, unsupported[i].name, "unsupported_value", "%s is not supported: %s",
                                unsupported[i].name, unsupported[i].why);
    static const char *const strings[] = {"prompt", "system"};
    for (size_t i = 0; i < 2; i++) {
        const mx_json *v = mx_field(r->body, strings[i]);
        if (v && v->type != MX_JSON_STRING)
            return mx_api_wrong(r->problem, strings[i], "invalid_type", "%s: expected a string", strings[i]);
    }
    const mx_json *v = mx_field(r->body, "raw");
    *raw = false;
    return !v || mx_json_bool(v, raw) || mx_api_wrong(r->problem, "raw", "invalid_type", "raw: expected true or false");
}

mx_status mx_ollama_read_generate(const mx_server_parts *parts, const char *id, const mx_json *body,
                                  mx_api_request *out, mx_ollama_answer *answer, bool *load, mx_error *error) {
    reader r = {.parts = parts, .body = body, .out = out, .problem = &out->problem, .error = error};
    const mx_json *prompt = mx_field(body, "prompt");
    bool raw;
    mx_status status = begin(&r, id);
    out->prompts_field = "prompt";
    if (!ok(&r, status) || !check_generate(&r, &raw)) return status;
    *load = is_empty(prompt);
    if (*load) return MX_OK;
    if (!raw) return read_chat(&r, answer, add_prompt);
    out->chat = false;
    out->prompts = calloc(1, sizeof *out->prompts);
    if (!out->prompts) return no_memory(error);
    out->prompt_count = 1;
    status = read_format(&r);
    return ok(&r, status) ? mx_encode_special(parts->tokenizer, prompt->text, prompt->size, out->prompts, error)
                          : status;
}
