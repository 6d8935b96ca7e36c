#include <stdio.h>
#include <string.h>

#include "api/rules.h"
#include "base/log.h"
#include "server/anthropic.h"
#include "server/fields.h"

/* The body of POST /v1/messages to a request. */
typedef struct reader {
    const mx_server_parts *parts;
    const mx_json *body;
    mx_api_request *out;
    mx_anthropic_state *state;
    mx_error *error;
    const char *effort;          /* NULL: as the server has it */
    const mx_json *tools;        /* as the client has them; NULL: none */
    mx_json_document *functions; /* those of them that are functions, as mx_api_chat_set_tools wants them */
} reader;

static mx_fields fields_of(const reader *r, const mx_json *object, const char *prefix) {
    return (mx_fields){object, prefix, &r->out->problem};
}

static bool ok(const reader *r, mx_status status) {
    return !status && !r->out->problem.http_status;
}

static mx_status blame(const reader *r, mx_status status, const mx_error *found, const char *param) {
    return mx_blame(status, found, param, &r->out->problem, r->error);
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
static bool is_function(const mx_json *tool) {
    const mx_json *type = mx_field(tool, "type");
    return !type || mx_json_is_string(type, "custom");
}

/* {"type": "function", "name", "description", "parameters"} */
static bool write_function(mx_bytes *out, const mx_json *tool) {
    static const char *const members[][2] = {
        {"name", "name"}, {"description", "description"}, {"input_schema", "parameters"}};
    bool fits = mx_bytes_add_string(out, "{\"type\":\"function\"");
    for (size_t i = 0; i < sizeof members / sizeof *members && fits; i++) {
        const mx_json *v = mx_field(tool, members[i][0]);
        if (v) fits = mx_bytes_addf(out, ",\"%s\":", members[i][1]) && mx_json_write(out, v);
    }
    return fits && mx_bytes_add_string(out, "}");
}

/* Tools that the server would run itself (web search ...) are left out with a warning. */
static mx_status read_functions(reader *r) {
    mx_bytes text = {0};
    bool fits = mx_bytes_add_string(&text, "["), any = false;
    for (const mx_json *tool = r->tools->child; tool && fits; tool = tool->next) {
        const mx_json *type = mx_field(tool, "type");
        if (!is_function(tool)) {
            mx_log(MX_LOG_WARNING,
                   "a client of /v1/messages offers a tool of type \"%.40s\": it is left out, only "
                   "functions are supported",
                   type->type == MX_JSON_STRING ? type->text : "?");
            continue;
        }
        fits = (!any || mx_bytes_add_string(&text, ",")) && write_function(&text, tool);
        any = true;
    }
    fits = fits && mx_bytes_add_string(&text, "]");
    mx_status status = fits ? mx_json_parse("tools", text.data, text.size, &r->functions, r->error)
                            : mx_fail(r->error, MX_NO_MEMORY, "no memory for tools");
    mx_bytes_free(&text);
    return status;
}

/* Inputs are objects, so that arguments of every tool are held to that, those of strict ones to their schema. */
static mx_status add_tool_rule(reader *r, const mx_json *tool, int index, const mx_json *any_object) {
    char prefix[40], param[80], name[65];
    snprintf(prefix, sizeof prefix, "tools.%d.", index);
    const mx_fields f = fields_of(r, tool, prefix);
    const mx_json *text, *schema;
    bool strict = false;
    if (!mx_read_typed(&f, "name", MX_JSON_STRING, &text) ||
        !mx_read_typed(&f, "input_schema", MX_JSON_OBJECT, &schema) || !mx_read_bool(&f, "strict", &strict))
        return MX_OK;
    if (!text || !mx_api_tool_name(text->text, text->size, name)) {
        snprintf(param, sizeof param, "%sname", prefix);
        mx_api_wrong(f.problem, param, "invalid_value", "%s: expected a name of 1 to 64 characters", param);
        return MX_OK;
    }
    snprintf(param, sizeof param, "%sinput_schema", prefix);
    if (strict && schema) return mx_api_rules_tool(r->out->rules, name, schema, true, param, f.problem, r->error);
    return mx_api_rules_tool(r->out->rules, name, any_object, r->parts->vocabulary != NULL, param, f.problem, r->error);
}

static mx_status add_tool_rules(reader *r) {
    static const char text[] = "{\"type\":\"object\",\"additionalProperties\":true}";
    mx_json_document *any_object;
    int index = 0;
    mx_status status = mx_json_parse("arguments", text, sizeof text - 1, &any_object, r->error);
    if (status) return status;
    for (const mx_json *tool = r->tools ? r->tools->child : NULL; tool && ok(r, status); tool = tool->next, index++)
        if (is_function(tool)) status = add_tool_rule(r, tool, index, mx_json_root(any_object));
    mx_json_free(any_object);
    return status;
}

/* {"type": "auto" | "any" | "tool" | "none", "name", "disable_parallel_tool_use"} */
static bool read_choice(reader *r, mx_tool_choice *choice, char named[static 65], bool *parallel) {
    static const char *const words[] = {"auto", "none", "any", "tool"}; /* as mx_tool_choice */
    const mx_fields f = fields_of(r, r->body, "");
    const mx_json *v;
    bool alone = false;
    *choice = MX_TOOLS_AUTO;
    *named = 0;
    *parallel = true;
    if (!mx_read_typed(&f, "tool_choice", MX_JSON_OBJECT, &v)) return false;
    if (!v) return true;
    const mx_fields within = fields_of(r, v, "tool_choice.");
    if (!mx_read_bool(&within, "disable_parallel_tool_use", &alone)) return false;
    *parallel = !alone;
    const mx_json *type = mx_field(v, "type"), *name = mx_field(v, "name");
    int i = 0;
    while (i < 4 && !mx_json_is_string(type, words[i])) i++;
    if (i == 4)
        return mx_api_wrong(f.problem, "tool_choice.type", "invalid_value",
                            "tool_choice.type: expected \"auto\", \"any\", \"tool\" or \"none\"");
    *choice = (mx_tool_choice)i;
    if (*choice != MX_TOOLS_NAMED) return true;
    return (name && name->type == MX_JSON_STRING && mx_api_tool_name(name->text, name->size, named)) ||
           mx_api_wrong(f.problem, "tool_choice.name", "invalid_value",
                        "tool_choice.name: expected the name of a tool");
}

static mx_status read_tools(reader *r, mx_tool_choice choice, const char *named, bool parallel) {
    if (choice == MX_TOOLS_AUTO && (!r->tools || !r->tools->count)) return MX_OK;
    mx_status status = mx_need_rules(r->out, r->error);
    if (status) return status;
    r->out->rules->parallel = parallel;
    status = add_tool_rules(r);
    if (!ok(r, status)) return status;
    return mx_api_rules_choose(r->out->rules, choice, *named ? named : NULL, "tool_choice", &r->out->problem, r->error);
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
static mx_status make_prompt(reader *r, bool no_tools) {
    mx_api_chat *chat = NULL;
    mx_error found;
    mx_status status = mx_api_chat_create(&r->parts->settings, r->parts->replay, r->parts->dates, &chat, &found);
    status = blame(r, status, &found, NULL);
    if (ok(r, status) && r->effort)
        status = blame(r, mx_api_chat_set_reasoning(chat, r->effort, &found), &found, "thinking");
    if (ok(r, status) && r->tools && !no_tools) status = read_functions(r);
    if (ok(r, status) && (r->functions || no_tools))
        status =
            blame(r, mx_api_chat_set_tools(chat, "tools", r->functions ? mx_json_root(r->functions) : NULL, &found),
                  &found, "tools");
    if (ok(r, status)) status = mx_anthropic_add_messages(r->body, chat, &r->out->problem, r->error);
    if (ok(r, status)) status = blame(r, mx_api_chat_finish(chat, r->out, &found), &found, "messages");
    mx_api_chat_free(chat);
    return status;
}

static mx_status read_all(reader *r, bool counted) {
    const mx_fields f = fields_of(r, r->body, "");
    mx_tool_choice choice;
    char named[65];
    bool parallel;
    if (!read_plain(r, counted) || !read_thinking(r) || !read_effort(r) ||
        !mx_read_typed(&f, "tools", MX_JSON_ARRAY, &r->tools) || !read_choice(r, &choice, named, &parallel))
        return MX_OK;
    mx_status status = mx_read_stop_strings(&f, "stop_sequences", r->out, r->error);
    if (ok(r, status)) status = make_prompt(r, choice == MX_TOOLS_NONE);
    if (counted) return status;
    if (ok(r, status)) status = read_format(r);
    return ok(r, status) ? read_tools(r, choice, named, parallel) : status;
}

mx_status mx_anthropic_read(const mx_server_parts *parts, const char *id, const mx_json *body, bool counted,
                            mx_api_request *out, mx_anthropic_state *state, mx_error *error) {
    reader r = {.parts = parts, .body = body, .out = out, .state = state, .error = error};
    mx_status status = mx_begin_request(parts, id, out, error);
    out->prompts_field = "messages";
    if (!status) status = read_all(&r, counted);
    mx_json_free(r.functions);
    return status;
}
