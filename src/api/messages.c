#include <stdio.h>
#include <string.h>

#include "api/request.h"

/* A chat's messages, as OpenAI's API has them, to the prompt of a conversation. */
typedef struct place {
    mx_api_problem *problem;
    mx_error *error;
    int index; /* of the message */
} place;

static bool wrong(const place *p, const char *member, const char *code, const char *what) {
    char param[80];
    snprintf(param, sizeof param, "messages[%d]%s%s", p->index, *member ? "." : "", member);
    return mx_api_wrong(p->problem, param, code, "%s: %s", param, what);
}

static const mx_json *field(const mx_json *object, const char *name) {
    const mx_json *v = mx_json_get(object, name);
    return v && v->type != MX_JSON_NULL ? v : NULL;
}

/* Text: a string, or parts of type "text" one behind the other. *found: there was any. */
static mx_status read_text(const place *p, const mx_json *message, const char *member, mx_bytes *out, bool *found) {
    const mx_json *content = field(message, member);
    mx_bytes_clear(out);
    *found = content != NULL;
    if (!content) return MX_OK;
    if (content->type != MX_JSON_STRING && content->type != MX_JSON_ARRAY) {
        wrong(p, member, "invalid_type", "expected a string or an array of parts");
        return MX_OK;
    }
    const bool string = content->type == MX_JSON_STRING;
    int index = 0;
    for (const mx_json *v = string ? content : content->child; v; v = string ? NULL : v->next, index++) {
        const mx_json *text = string ? v : mx_json_get(v, "text");
        if (!text || text->type != MX_JSON_STRING || (!string && !mx_json_is_string(mx_json_get(v, "type"), "text"))) {
            char part[40];
            snprintf(part, sizeof part, "%.20s[%d]", member, index);
            wrong(p, part, "unsupported_value", "only parts {\"type\": \"text\", \"text\": ...} are understood");
            return MX_OK;
        }
        if (!mx_bytes_add(out, text->text, text->size)) return mx_fail(p->error, MX_NO_MEMORY, "no memory");
    }
    return MX_OK;
}

/* ---- tools ------------------------------------------------------------------------------------------------------- */
static bool is_name(const mx_json *v) {
    return v && v->type == MX_JSON_STRING && v->size && v->size <= 64 && strlen(v->text) == v->size &&
           strcspn(v->text, "< \t\r\n") == v->size;
}

static mx_status add_calls(const place *p, mx_conversation *c, const mx_json *calls) {
    mx_status status = MX_OK;
    if (calls && calls->type != MX_JSON_ARRAY) wrong(p, "tool_calls", "invalid_type", "expected an array");
    int index = 0;
    for (const mx_json *call = calls ? calls->child : NULL; call && !status && !p->problem->http_status;
         call = call->next, index++) {
        const mx_json *function = mx_json_get(call, "function");
        const mx_json *name = mx_json_get(function, "name"), *arguments = mx_json_get(function, "arguments");
        char member[40];
        snprintf(member, sizeof member, "tool_calls[%d].function", index);
        if (!is_name(name) || !arguments || arguments->type != MX_JSON_STRING)
            wrong(p, member, "invalid_value", "expected {\"name\": \"...\", \"arguments\": \"...\"}");
        else
            status = mx_conversation_add_call(c, name->text, arguments->text, arguments->size, p->error);
    }
    return status;
}

/* The name of the function whose call had this id, in the messages before `end`. */
static const char *called(const mx_json *messages, const mx_json *end, const mx_json *id) {
    const char *found = NULL;
    if (!id || id->type != MX_JSON_STRING) return NULL;
    for (const mx_json *m = messages->child; m != end; m = m->next) {
        const mx_json *calls = field(m, "tool_calls");
        for (const mx_json *call = calls ? calls->child : NULL; call; call = call->next) {
            const mx_json *name = mx_json_get(mx_json_get(call, "function"), "name");
            if (is_name(name) && mx_json_is_string(mx_json_get(call, "id"), id->text)) found = name->text;
        }
    }
    return found;
}

static mx_status add_tool_result(const place *p, mx_conversation *c, const mx_json *messages, const mx_json *m,
                                 const mx_bytes *text) {
    const mx_json *name = field(m, "name");
    const char *tool = called(messages, m, mx_json_get(m, "tool_call_id"));
    if (!tool && is_name(name)) tool = name->text;
    if (!tool) {
        wrong(p, "tool_call_id", "invalid_value", "no call before has this id");
        return MX_OK;
    }
    return mx_conversation_add_tool_result(c, tool, text->data, text->size, p->error);
}

/* ---- messages ---------------------------------------------------------------------------------------------------- */
static mx_status add_assistant(const place *p, mx_conversation *c, const mx_json *m, const mx_bytes *text) {
    const mx_json *calls = field(m, "tool_calls");
    const char *thinking_member = field(m, "reasoning_content") ? "reasoning_content" : "reasoning";
    mx_bytes thinking = {0};
    bool found;
    mx_status status = read_text(p, m, thinking_member, &thinking, &found);
    if (!status && !p->problem->http_status && thinking.size)
        status = mx_conversation_add_assistant(c, "analysis", thinking.data, thinking.size, p->error);
    if (!status && !p->problem->http_status && (text->size || !calls))
        status = mx_conversation_add_assistant(c, calls ? "commentary" : "final", text->data ? text->data : "",
                                               text->size, p->error);
    if (!status && !p->problem->http_status) status = add_calls(p, c, calls);
    mx_bytes_free(&thinking);
    return status;
}

static mx_status add_message(const place *p, mx_conversation *c, const mx_json *messages, const mx_json *m,
                             mx_bytes *text) {
    const mx_json *role = mx_json_get(m, "role");
    const bool assistant = mx_json_is_string(role, "assistant"), tool = mx_json_is_string(role, "tool");
    const bool user = mx_json_is_string(role, "user");
    bool found;
    if (!assistant && !tool && !user && !mx_json_is_string(role, "system") && !mx_json_is_string(role, "developer")) {
        wrong(p, "role", "invalid_value", "expected system, developer, user, assistant or tool");
        return MX_OK;
    }
    mx_status status = read_text(p, m, "content", text, &found);
    if (status || p->problem->http_status) return status;
    if (!found && !(assistant && field(m, "tool_calls"))) {
        wrong(p, "content", "missing_required_parameter", "missing");
        return MX_OK;
    }
    const char *data = text->data ? text->data : "";
    if (assistant) return add_assistant(p, c, m, text);
    if (tool) return add_tool_result(p, c, messages, m, text);
    return user ? mx_conversation_add_user(c, data, text->size, p->error)
                : mx_conversation_add_developer(c, data, text->size, p->error);
}

/* ---- settings ---------------------------------------------------------------------------------------------------- */
static mx_status set(mx_conversation *c, mx_setting setting, const char *value, mx_error *error) {
    return strcmp(mx_conversation_get(c, setting), value) ? mx_conversation_set(c, setting, value, error) : MX_OK;
}

static mx_status set_tools(mx_api_reader *reader, const mx_json *fields, mx_api_problem *problem, mx_error *error) {
    const mx_json *tools = field(fields, "tools");
    const bool none = mx_json_is_string(field(fields, "tool_choice"), "none");
    const bool own = tools || none;
    if (!own && !reader->own_tools) return MX_OK;
    reader->own_tools = own;
    if (none) tools = NULL;
    if (!own && reader->tools) tools = mx_json_root(reader->tools);
    mx_error found;
    mx_status status = mx_conversation_set_tools(reader->settings->conversation, "tools", tools, &found);
    if (status == MX_NO_MEMORY) return mx_fail(error, status, "%s", found.text);
    if (status) mx_api_wrong(problem, "tools", "invalid_value", "%s", found.text);
    return MX_OK;
}

static mx_status set_reasoning(const mx_api_reader *reader, const mx_json *fields, mx_api_problem *problem,
                               mx_error *error) {
    const mx_json *effort = field(fields, "reasoning_effort");
    const char *value = reader->reasoning;
    if (effort && (effort->type != MX_JSON_STRING || mx_setting_check(MX_SETTING_REASONING, effort->text, NULL))) {
        mx_api_wrong(problem, "reasoning_effort", "invalid_value",
                     "reasoning_effort: expected \"low\", \"medium\" or \"high\"");
        return MX_OK;
    }
    if (effort) value = effort->text;
    return set(reader->settings->conversation, MX_SETTING_REASONING, value, error);
}

/* An empty conversation with the line's settings, but for the developer message. */
static mx_status begin(mx_api_reader *reader, const mx_json *fields, mx_api_problem *problem, mx_error *error) {
    mx_conversation *c = reader->settings->conversation;
    if (!c) {
        mx_api_wrong(problem, NULL, "unsupported_value",
                     "a chat, but the batch runs with --raw or the tokenizer has no chat format");
        return MX_OK;
    }
    mx_conversation_truncate(c, 0);
    mx_status status = set_tools(reader, fields, problem, error);
    return status || problem->http_status ? status : set_reasoning(reader, fields, problem, error);
}

/* The instructions at the beginning are the developer message, several of them with empty lines between. *rest gets
 * the first message behind them. */
static mx_status set_developer(mx_api_reader *reader, const mx_json *messages, place *p, const mx_json **rest) {
    mx_bytes all = {0}, text = {0};
    mx_status status = mx_bytes_add(&all, "", 0) ? MX_OK : mx_fail(p->error, MX_NO_MEMORY, "no memory");
    const mx_json *m = messages->child;
    for (; m && !status && !p->problem->http_status; m = m->next, p->index++) {
        const mx_json *role = mx_json_get(m, "role");
        bool found;
        if (!mx_json_is_string(role, "system") && !mx_json_is_string(role, "developer")) break;
        status = read_text(p, m, "content", &text, &found);
        if (!found) wrong(p, "content", "missing_required_parameter", "missing");
        if (text.size && memchr(text.data, 0, text.size)) wrong(p, "content", "invalid_value", "holds U+0000");
        if (status || p->problem->http_status) break;
        if ((all.size && !mx_bytes_add_string(&all, "\n\n")) || !mx_bytes_add(&all, text.data, text.size))
            status = mx_fail(p->error, MX_NO_MEMORY, "no memory");
    }
    if (!status && !p->problem->http_status)
        status = set(reader->settings->conversation, MX_SETTING_DEVELOPER,
                     m == messages->child ? reader->developer : all.data, p->error);
    *rest = m;
    mx_bytes_free(&all);
    mx_bytes_free(&text);
    return status;
}

mx_status mx_api_read_chat(mx_api_reader *reader, const mx_json *fields, const mx_json *messages, mx_ids *out,
                           mx_api_problem *problem, mx_error *error) {
    mx_conversation *c = reader->settings->conversation;
    place p = {problem, error, 0};
    mx_bytes text = {0};
    const mx_json *m;
    if (messages->type != MX_JSON_ARRAY || !messages->count) {
        mx_api_wrong(problem, "messages", messages->type == MX_JSON_ARRAY ? "invalid_value" : "invalid_type",
                     "messages: expected an array of at least one message");
        return MX_OK;
    }
    mx_status status = begin(reader, fields, problem, error);
    if (status || problem->http_status) return status;
    status = set_developer(reader, messages, &p, &m);
    for (; m && !status && !problem->http_status; m = m->next, p.index++)
        status = add_message(&p, c, messages, m, &text);
    mx_bytes_free(&text);
    return status || problem->http_status ? status : mx_conversation_prompt(c, out, error);
}

mx_status mx_api_read_user(mx_api_reader *reader, const mx_json *fields, const char *text, size_t size, mx_ids *out,
                           mx_api_problem *problem, mx_error *error) {
    mx_conversation *c = reader->settings->conversation;
    mx_status status = begin(reader, fields, problem, error);
    if (status || problem->http_status) return status;
    status = set(c, MX_SETTING_DEVELOPER, reader->developer, error);
    if (!status) status = mx_conversation_add_user(c, text, size, error);
    return status ? status : mx_conversation_prompt(c, out, error);
}
