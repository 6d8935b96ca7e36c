#include <stdio.h>
#include <string.h>

#include "api/rules.h"
#include "server/anthropic.h"
#include "server/protocol.h"

/* The body of POST /v1/messages to a request. */
typedef struct reader {
    const mx_server_parts *parts;
    const mx_json *body;
    mx_api_request *out;
    mx_anthropic_state *state;
    mx_error *error;
    const char *effort;       /* NULL: as the server has it */
    mx_json_document *fields; /* tools, their choice and the effort in OpenAI's form */
} reader;

static mx_fields fields_of(const reader *r, const mx_json *object, const char *prefix) {
    return (mx_fields){object, prefix, &r->out->problem};
}

static bool ok(const reader *r, mx_status status) {
    return !status && !r->out->problem.http_status;
}

/* ---- plain fields ------------------------------------------------------------------------------------------------ */
static bool read_plain(const reader *r, bool counted) {
    const mx_fields f = fields_of(r, r->body, "");
    mx_sampling *s = &r->out->sampling;
    int64_t most = 0, seed = -1;
    if (!mx_read_bool(&f, "stream", &r->out->stream) || !mx_read_whole(&f, "max_tokens", 1, INT32_MAX, &most) ||
        !mx_read_float(&f, "temperature", 0, 1, &s->temperature) || !mx_read_float(&f, "top_p", 0, 1, &s->top_p) ||
        !mx_read_int(&f, "top_k", 0, INT32_MAX, &s->top_k) || !mx_read_whole(&f, "seed", 0, INT64_MAX, &seed))
        return false;
    if (!most && !counted)
        return mx_api_wrong(f.problem, "max_tokens", "missing_required_parameter", "max_tokens: Field required");
    if (most) r->out->max_tokens = most;
    if (seed >= 0) s->seed = (uint64_t)seed;
    return true;
}

/* "thinking": how many tokens it may be says how hard the model is to think; these models always do. */
static bool read_thinking(reader *r) {
    enum { LOW = 2048, MEDIUM = 8192 };
    const mx_fields f = fields_of(r, r->body, "");
    const mx_json *thinking;
    const char *type = NULL;
    int64_t budget = 0;
    if (!mx_read_typed(&f, "thinking", MX_JSON_OBJECT, &thinking)) return false;
    if (!thinking) return true;
    const mx_fields within = fields_of(r, thinking, "thinking.");
    if (!mx_read_word(&within, "type", &type) || !mx_read_whole(&within, "budget_tokens", 1, INT32_MAX, &budget))
        return false;
    if (type && strcmp(type, "disabled") == 0) {
        r->effort = "low";
        return true;
    }
    r->state->thinking = true;
    if (type && (strcmp(type, "adaptive") == 0 || strcmp(type, "between_tools") == 0)) return true;
    if (!type || strcmp(type, "enabled") != 0)
        return mx_api_wrong(f.problem, "thinking.type", "invalid_value",
                            "thinking.type: expected \"enabled\", \"adaptive\" or \"disabled\"");
    if (!budget)
        return mx_api_wrong(f.problem, "thinking.budget_tokens", "missing_required_parameter",
                            "thinking.budget_tokens: Field required");
    r->effort = budget <= LOW ? "low" : budget <= MEDIUM ? "medium" : "high";
    return true;
}

/* "output_config": {"effort"}, and what read_format reads */
static bool read_effort(reader *r) {
    static const char *const names[][2] = {
        {"low", "low"}, {"medium", "medium"}, {"high", "high"}, {"xhigh", "high"}, {"max", "high"}};
    const mx_fields f = fields_of(r, r->body, "");
    const mx_json *config;
    const char *effort = NULL;
    if (!mx_read_typed(&f, "output_config", MX_JSON_OBJECT, &config)) return false;
    const mx_fields within = fields_of(r, config, "output_config.");
    if (!mx_read_word(&within, "effort", &effort)) return false;
    if (!effort) return true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i][0], effort) == 0) {
            r->effort = names[i][1];
            return true;
        }
    return mx_api_wrong(f.problem, "output_config.effort", "invalid_value",
                        "output_config.effort: expected \"low\", \"medium\" or \"high\", found \"%.40s\"", effort);
}

/* ---- tools ------------------------------------------------------------------------------------------------------- */
/* {"type": "function", "name", "description", "parameters", "strict"} */
static bool write_function(mx_bytes *out, const mx_json *tool) {
    static const char *const members[][2] = {
        {"name", "name"}, {"description", "description"}, {"input_schema", "parameters"}, {"strict", "strict"}};
    bool fits = mx_bytes_add_string(out, "{\"type\":\"function\"");
    for (size_t i = 0; i < sizeof members / sizeof *members && fits; i++) {
        const mx_json *v = mx_field(tool, members[i][0]);
        if (v) fits = mx_bytes_addf(out, ",\"%s\":", members[i][1]) && mx_json_write(out, v);
    }
    return fits && mx_bytes_add_string(out, "}");
}

/* Tools that the server would run itself (web search ...) keep their type, for whoever leaves them out. */
static bool write_tools(mx_bytes *out, const mx_json *tools) {
    bool fits = mx_bytes_add_string(out, "\"tools\":["), any = false;
    for (const mx_json *tool = tools->child; tool && fits; tool = tool->next, any = true) {
        const mx_json *type = mx_field(tool, "type");
        const bool function = !type || mx_json_is_string(type, "custom");
        fits = (!any || mx_bytes_add_string(out, ",")) &&
               (function ? write_function(out, tool) : mx_json_write(out, tool));
    }
    return fits && mx_bytes_add_string(out, "],");
}

/* {"type": "auto" | "any" | "tool" | "none", "name", "disable_parallel_tool_use"} */
static bool write_choice(const reader *r, const mx_json *choice, mx_bytes *out, bool *fits) {
    static const char *const words[][2] = {{"auto", "auto"}, {"any", "required"}, {"none", "none"}};
    const mx_fields within = fields_of(r, choice, "tool_choice.");
    const mx_json *type = mx_field(choice, "type"), *name = mx_field(choice, "name");
    bool alone = false;
    if (!mx_read_bool(&within, "disable_parallel_tool_use", &alone)) return false;
    if (alone) *fits = *fits && mx_bytes_add_string(out, "\"parallel_tool_calls\":false,");
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (mx_json_is_string(type, words[i][0])) {
            *fits = *fits && mx_bytes_addf(out, "\"tool_choice\":\"%s\",", words[i][1]);
            return true;
        }
    if (!mx_json_is_string(type, "tool"))
        return mx_api_wrong(within.problem, "tool_choice.type", "invalid_value",
                            "tool_choice.type: expected \"auto\", \"any\", \"tool\" or \"none\"");
    if (!name || name->type != MX_JSON_STRING)
        return mx_api_wrong(within.problem, "tool_choice.name", "invalid_value",
                            "tool_choice.name: expected the name of a tool");
    *fits = *fits && mx_bytes_add_string(out, "\"tool_choice\":{\"type\":\"function\",\"name\":") &&
            mx_json_write(out, name) && mx_bytes_add_string(out, "},");
    return true;
}

/* Tools, their choice and the effort as OpenAI's fields, which the rest is made of. */
static mx_status translate(reader *r) {
    const mx_fields f = fields_of(r, r->body, "");
    const mx_json *tools, *choice;
    mx_bytes text = {0};
    if (!mx_read_typed(&f, "tools", MX_JSON_ARRAY, &tools) ||
        !mx_read_typed(&f, "tool_choice", MX_JSON_OBJECT, &choice))
        return MX_OK;
    bool fits = mx_bytes_add_string(&text, "{");
    if (tools) fits = fits && write_tools(&text, tools);
    const bool good = !choice || write_choice(r, choice, &text, &fits);
    if (r->effort) fits = fits && mx_bytes_addf(&text, "\"reasoning_effort\":\"%s\",", r->effort);
    fits = fits && mx_bytes_add_string(&text, "\"stream\":false}");
    mx_status status = MX_OK;
    if (good)
        status = fits ? mx_json_parse("tools", text.data, text.size, &r->fields, r->error)
                      : mx_fail(r->error, MX_NO_MEMORY, "no memory for tools");
    mx_bytes_free(&text);
    return status;
}

/* Inputs are objects: the arguments of tools that are not strict are held to that. */
static mx_status need_objects(reader *r) {
    static const char text[] = "{\"type\":\"object\",\"additionalProperties\":true}";
    mx_rules *rules = r->out->rules;
    mx_json_document *any = NULL;
    mx_status status = mx_json_parse("arguments", text, sizeof text - 1, &any, r->error);
    for (int i = 0; rules && i < rules->tool_count && ok(r, status); i++)
        if (!rules->tools[i].arguments)
            status = mx_api_rules_tool(rules, rules->tools[i].name, mx_json_root(any), true, "tools", &r->out->problem,
                                       r->error);
    mx_json_free(any);
    return status;
}

/* "output_config": {"format": {"type": "json_schema", "schema"}} */
static mx_status read_format(reader *r) {
    const mx_fields f = fields_of(r, mx_field(r->body, "output_config"), "output_config.");
    const mx_json *format;
    if (!mx_read_typed(&f, "format", MX_JSON_OBJECT, &format) || !format) return MX_OK;
    const mx_json *schema = mx_field(format, "schema");
    if (!mx_json_is_string(mx_field(format, "type"), "json_schema") || !schema) {
        mx_api_wrong(f.problem, "output_config.format", "invalid_value",
                     "output_config.format: expected {\"type\": \"json_schema\", \"schema\": {...}}");
        return MX_OK;
    }
    mx_status status = mx_need_rules(r->out, r->error);
    if (status) return status;
    return mx_api_rules_schema(r->out->rules, schema, true, "output_config.format.schema", f.problem, r->error);
}

/* ---- all of it --------------------------------------------------------------------------------------------------- */
static mx_status make_prompt(reader *r) {
    const mx_api_reader api = {.settings = &r->parts->settings, .replay = r->parts->replay, .dated = r->parts->dates};
    mx_api_chat *chat = NULL;
    mx_error found;
    mx_status status = mx_api_begin_chat(&api, mx_json_root(r->fields), &chat, &r->out->problem, r->error);
    if (ok(r, status)) status = mx_anthropic_add_messages(r->body, chat, &r->out->problem, r->error);
    if (ok(r, status))
        status = mx_blame(mx_api_chat_finish(chat, r->out, &found), &found, "messages", &r->out->problem, r->error);
    mx_api_chat_free(chat);
    return status;
}

static mx_status read_rules(reader *r) {
    const mx_bytes *own = mx_conversation_tools(r->parts->settings.conversation);
    mx_json_document *tools = NULL;
    mx_status status = MX_OK;
    if (own->size && !mx_field(r->body, "tools"))
        status = mx_json_parse("tools", own->data, own->size, &tools, r->error);
    if (!status)
        status = mx_api_read_rules(mx_json_root(r->fields), tools ? mx_json_root(tools) : NULL, true,
                                        &r->out->rules, &r->out->problem, r->error);
    mx_json_free(tools);
    const bool no_tools = !r->out->rules;
    if (ok(r, status) && r->parts->vocabulary) status = need_objects(r);
    if (ok(r, status)) status = read_format(r);
    if (ok(r, status) && no_tools && r->out->rules) r->out->rules->choice = MX_TOOLS_NONE;
    return status;
}

static mx_status read_all(reader *r, bool counted) {
    const mx_fields f = fields_of(r, r->body, "");
    if (!read_plain(r, counted) || !read_thinking(r) || !read_effort(r)) return MX_OK;
    mx_status status = mx_read_stop_strings(&f, "stop_sequences", r->out, r->error);
    if (ok(r, status)) status = translate(r);
    if (ok(r, status)) status = make_prompt(r);
    return ok(r, status) && !counted ? read_rules(r) : status;
}

mx_status mx_anthropic_read(const mx_server_parts *parts, const char *id, const mx_json *body, bool counted,
                            mx_api_request *out, mx_anthropic_state *state, mx_error *error) {
    reader r = {.parts = parts, .body = body, .out = out, .state = state, .error = error};
    mx_status status = mx_begin_request(parts, id, out, error);
    out->prompts_field = "messages";
    if (!status) status = read_all(&r, counted);
    mx_json_free(r.fields);
    return status;
}
