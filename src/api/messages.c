#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/chat.h"
#include "api/fields.h"
#include "api/request.h"

/* A chat's messages, as OpenAI's API has them, to a neutral chat. */
typedef struct place {
    mx_api_chat *chat;
    mx_api_problem *problem;
    mx_error *error;
    int index; /* of the message */
} place;

static bool wrong(const place *p, const char *member, const char *code, const char *what) {
    char param[80];
    snprintf(param, sizeof param, "messages[%d]%s%s", p->index, *member ? "." : "", member);
    return mx_api_wrong(p->problem, param, code, "%s: %s", param, what);
}

/* What a function of the chat returned: what is not about memory is the message's fault. */
static mx_status told(const place *p, mx_status status, const char *member, const mx_error *found) {
    if (status == MX_NO_MEMORY) return mx_fail(p->error, status, "%s", found->text);
    if (status) wrong(p, member, "invalid_value", found->text);
    return MX_OK;
}

static mx_status no_memory(const place *p) {
    return mx_fail(p->error, MX_NO_MEMORY, "no memory for a chat");
}

/* ---- text -------------------------------------------------------------------------------------------------------- */
static const mx_json *text_of(const mx_json *part) {
    static const char *const types[] = {"text", "input_text", "output_text"};
    const mx_json *type = mx_json_get(part, "type"), *text = mx_json_get(part, "text");
    for (int i = 0; i < 3; i++)
        if (mx_json_is_string(type, types[i])) return text && text->type == MX_JSON_STRING ? text : NULL;
    if (!mx_json_is_string(type, "refusal")) return NULL;
    text = mx_json_get(part, "refusal");
    return text && text->type == MX_JSON_STRING ? text : NULL;
}

static void refuse_part(const place *p, const char *member, int index, const mx_json *part) {
    const mx_json *type = mx_json_get(part, "type");
    char name[40], what[160];
    snprintf(name, sizeof name, "%.20s[%d]", member, index);
    if (type && type->type == MX_JSON_STRING && !mx_json_is_string(type, "text"))
        snprintf(what, sizeof what,
                 "a part of type \"%.40s\": the model reads text only, {\"type\": \"text\", \"text\": ...}",
                 type->text);
    else
        snprintf(what, sizeof what, "only parts {\"type\": \"text\", \"text\": ...} are understood");
    wrong(p, name, "unsupported_value", what);
}

/* Text: a string, or parts of type "text" one behind the other. *found: there was any. */
static mx_status read_text(const place *p, const mx_json *message, const char *member, mx_bytes *out, bool *found) {
    const mx_json *content = mx_field(message, member);
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
        const mx_json *text = string ? v : text_of(v);
        if (!text) {
            refuse_part(p, member, index, v);
            return MX_OK;
        }
        if (!mx_bytes_add(out, text->text, text->size)) return no_memory(p);
    }
    return MX_OK;
}

/* ---- calls of tools ---------------------------------------------------------------------------------------------- */
static const char *string_of(const mx_json *v) {
    return v && v->type == MX_JSON_STRING && strlen(v->text) == v->size ? v->text : NULL;
}

/* `scratch` gets arguments that came as an object instead of its text. */
static bool read_call(const place *p, int index, const mx_json *call, mx_api_call *out, mx_bytes *scratch) {
    const mx_json *function = mx_json_get(call, "function");
    const mx_json *name = mx_json_get(function, "name"), *arguments = mx_field(function, "arguments");
    char member[40], harmony[65];
    snprintf(member, sizeof member, "tool_calls[%d].function", index);
    const bool object = arguments && arguments->type == MX_JSON_OBJECT;
    if (!string_of(name) || !mx_api_tool_name(name->text, name->size, harmony) || !arguments ||
        (arguments->type != MX_JSON_STRING && !object))
        return wrong(p, member, "invalid_value", "expected {\"name\": \"...\", \"arguments\": \"...\"}");
    *out = (mx_api_call){string_of(mx_json_get(call, "id")), name->text, arguments->text, arguments->size};
    if (object && mx_json_write(scratch, arguments)) {
        out->arguments = scratch->data;
        out->size = scratch->size;
    }
    return true;
}

static mx_status add_said(const place *p, mx_api_said *said, const mx_json *calls) {
    const bool any = calls && calls->type == MX_JSON_ARRAY && calls->count;
    if (calls && calls->type != MX_JSON_ARRAY) wrong(p, "tool_calls", "invalid_type", "expected an array");
    mx_api_call *read = any ? calloc(calls->count, sizeof *read) : NULL;
    mx_bytes *scratch = any ? calloc(calls->count, sizeof *scratch) : NULL;
    mx_status status = any && (!read || !scratch) ? no_memory(p) : MX_OK;
    const mx_json *call = any ? calls->child : NULL;
    for (; call && !status && !p->problem->http_status; call = call->next) {
        const int i = said->call_count++;
        read_call(p, i, call, &read[i], &scratch[i]);
        if (!p->problem->http_status && !read[i].arguments) status = no_memory(p);
    }
    said->calls = read;
    if (!status && !p->problem->http_status) {
        mx_error found;
        status = told(p, mx_api_chat_add_said(p->chat, said, &found), "tool_calls", &found);
    }
    for (int i = 0; scratch && i < said->call_count; i++) mx_bytes_free(&scratch[i]);
    free(scratch);
    free(read);
    return status;
}

static mx_status add_tool_result(const place *p, const mx_json *m, const mx_bytes *text) {
    const mx_json *id = mx_field(m, "tool_call_id");
    mx_error found;
    if (id && !string_of(id)) {
        wrong(p, "tool_call_id", "invalid_type", "expected a string");
        return MX_OK;
    }
    mx_status status = mx_api_chat_add_result(p->chat, id ? id->text : NULL, string_of(mx_field(m, "name")),
                                              text->data ? text->data : "", text->size, &found);
    return told(p, status, "tool_call_id", &found);
}

/* ---- messages ---------------------------------------------------------------------------------------------------- */
/* The member with the thinking, NULL: there is none. */
static const char *thinking_of(const mx_json *m) {
    return mx_field(m, "reasoning_content") ? "reasoning_content" : mx_field(m, "reasoning") ? "reasoning" : NULL;
}

static mx_status add_assistant(const place *p, const mx_json *m, const mx_bytes *text, bool has_text) {
    const char *thinking_member = thinking_of(m);
    mx_bytes thinking = {0};
    bool found = false;
    if (mx_field(m, "function_call"))
        wrong(p, "function_call", "unsupported_value", "the old form of calls; give them as \"tool_calls\"");
    mx_status status = MX_OK;
    if (!p->problem->http_status && thinking_member) status = read_text(p, m, thinking_member, &thinking, &found);
    if (!status && !p->problem->http_status) {
        mx_api_said said = {.id = string_of(mx_field(m, "id")),
                            .thinking = thinking.data,
                            .thinking_size = thinking.size,
                            .text = text->data,
                            .text_size = text->size,
                            .has_text = has_text};
        status = add_said(p, &said, mx_field(m, "tool_calls"));
    }
    mx_bytes_free(&thinking);
    return status;
}

static mx_status add_message(const place *p, const mx_json *m, mx_bytes *text) {
    const mx_json *role = mx_json_get(m, "role");
    const bool assistant = mx_json_is_string(role, "assistant"), tool = mx_json_is_string(role, "tool");
    const bool user = mx_json_is_string(role, "user");
    bool found;
    mx_error why;
    if (!assistant && !tool && !user && !mx_json_is_string(role, "system") && !mx_json_is_string(role, "developer")) {
        wrong(p, "role", "invalid_value", "expected system, developer, user, assistant or tool");
        return MX_OK;
    }
    mx_status status = read_text(p, m, "content", text, &found);
    if (!status && !p->problem->http_status && assistant && !found) status = read_text(p, m, "refusal", text, &found);
    if (status || p->problem->http_status) return status;
    if (!found && !(assistant && (mx_field(m, "tool_calls") || thinking_of(m)))) {
        wrong(p, "content", "missing_required_parameter", "missing");
        return MX_OK;
    }
    const char *data = text->data ? text->data : "";
    if (assistant) return add_assistant(p, m, text, found);
    if (tool) return add_tool_result(p, m, text);
    status = user ? mx_api_chat_add_user(p->chat, data, text->size, &why)
                  : mx_api_chat_add_instructions(p->chat, data, text->size, &why);
    return told(p, status, "content", &why);
}

/* ---- settings ---------------------------------------------------------------------------------------------------- */
/* Whatever the choice is: with "none", too, the prompt stays as it was. */
static mx_status set_tools(const place *p, const mx_json *fields) {
    const mx_json *tools = mx_field(fields, "tools");
    if (!tools) return MX_OK;
    mx_error found;
    const mx_status status = mx_api_chat_set_tools(p->chat, "tools", tools, &found);
    if (status == MX_NO_MEMORY) return mx_fail(p->error, status, "%s", found.text);
    if (status) mx_api_wrong(p->problem, "tools", "invalid_value", "%s", found.text);
    return MX_OK;
}

const char *mx_api_effort(const mx_json *effort) {
    /* Of OpenAI's efforts those that gpt-oss does not know are the nearest that it does. */
    static const char *const known[][2] = {{"low", "low"},  {"medium", "medium"}, {"high", "high"}, {"minimal", "low"},
                                           {"none", "low"}, {"xhigh", "high"},    {"max", "high"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (mx_json_is_string(effort, known[i][0])) return known[i][1];
    return NULL;
}

static mx_status set_reasoning(const place *p, const mx_json *fields) {
    const mx_json *effort = mx_field(fields, "reasoning_effort");
    const char *param = "reasoning_effort";
    if (!effort) {
        effort = mx_field(mx_field(fields, "reasoning"), "effort");
        param = "reasoning.effort";
    }
    if (!effort) return MX_OK;
    const char *value = mx_api_effort(effort);
    if (!value) {
        mx_api_wrong(p->problem, param, "invalid_value",
                     "%s: expected \"low\", \"medium\" or \"high\" (\"minimal\" and \"none\" are low, \"xhigh\" and "
                     "\"max\" high)",
                     param);
        return MX_OK;
    }
    return mx_api_chat_set_reasoning(p->chat, value, p->error);
}

mx_status mx_api_begin_chat(const mx_api_reader *reader, const mx_json *fields, mx_api_chat **out,
                            mx_api_problem *problem, mx_error *error) {
    *out = NULL;
    if (!reader->settings->conversation) {
        mx_api_wrong(problem, NULL, "unsupported_value",
                     "a chat, but the batch runs with --raw or the tokenizer has no chat format");
        return MX_OK;
    }
    place p = {NULL, problem, error, 0};
    mx_status status = mx_api_chat_create(reader->settings, reader->replay, reader->dated, &p.chat, error);
    if (!status) status = set_tools(&p, fields);
    if (!status && !problem->http_status) status = set_reasoning(&p, fields);
    if (!status && !problem->http_status)
        *out = p.chat;
    else
        mx_api_chat_free(p.chat);
    return status;
}

mx_status mx_api_add_messages(mx_api_chat *chat, const mx_json *messages, mx_api_problem *problem, mx_error *error) {
    place p = {chat, problem, error, 0};
    mx_bytes text = {0};
    if (messages->type != MX_JSON_ARRAY || !messages->count) {
        mx_api_wrong(problem, "messages", messages->type == MX_JSON_ARRAY ? "invalid_value" : "invalid_type",
                     "messages: expected an array of at least one message");
        return MX_OK;
    }
    mx_status status = MX_OK;
    for (const mx_json *m = messages->child; m && !status && !problem->http_status; m = m->next, p.index++)
        status = add_message(&p, m, &text);
    mx_bytes_free(&text);
    return status;
}

mx_status mx_api_read_chat(const mx_api_reader *reader, const mx_json *fields, const mx_json *messages, mx_ids *out,
                           mx_api_problem *problem, mx_error *error) {
    mx_api_chat *chat;
    mx_status status = mx_api_begin_chat(reader, fields, &chat, problem, error);
    if (chat) status = mx_api_add_messages(chat, messages, problem, error);
    if (chat && !status && !problem->http_status) status = mx_api_chat_prompt(chat, out, error);
    mx_api_chat_free(chat);
    return status;
}

mx_status mx_api_read_user(const mx_api_reader *reader, const char *text, size_t size, mx_ids *out,
                           mx_api_problem *problem, mx_error *error) {
    mx_api_chat *chat;
    mx_status status = mx_api_begin_chat(reader, NULL, &chat, problem, error);
    if (chat) status = mx_api_chat_add_user(chat, text, size, error);
    if (chat && !status) status = mx_api_chat_prompt(chat, out, error);
    mx_api_chat_free(chat);
    return status;
}
