#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/anthropic.h"
#include "server/protocol.h"

/* System and messages to a chat. Text blocks of a message are joined by an empty line, as an answer's are. */
typedef struct place {
    mx_api_chat *chat;
    mx_api_problem *problem;
    mx_error *error;
    int message, block; /* block -1: the content is a string */
} place;

typedef struct block_path {
    char text[80];
} block_path;

static block_path path(const place *p, const char *member) {
    block_path out;
    if (p->message < 0)
        snprintf(out.text, sizeof out.text, "system");
    else if (p->block < 0)
        snprintf(out.text, sizeof out.text, "messages.%d.%s", p->message, member);
    else
        snprintf(out.text, sizeof out.text, "messages.%d.content.%d%s%s", p->message, p->block, *member ? "." : "",
                 member);
    return out;
}

static mx_status wrong(const place *p, const char *member, const char *what) {
    const block_path at = path(p, member);
    mx_api_wrong(p->problem, at.text, "invalid_value", "%s: %s", at.text, what);
    return MX_OK;
}

static bool ok(const place *p, mx_status status) {
    return !status && !p->problem->http_status;
}

static mx_status no_memory(const place *p) {
    return mx_fail(p->error, MX_NO_MEMORY, "no memory for a message");
}

static mx_status blame(const place *p, mx_status status, const mx_error *found, const char *member) {
    return mx_blame(status, found, path(p, member).text, p->problem, p->error);
}

static bool is_type(const mx_json *block, const char *type) {
    return mx_json_is_string(mx_field(block, "type"), type);
}

/* ---- texts ------------------------------------------------------------------------------------------------------- */
static mx_status add_text(const place *p, const mx_json *text, const char *member, mx_bytes *out) {
    if (!text || text->type != MX_JSON_STRING) return wrong(p, member, "expected a string");
    if (out->size && !mx_bytes_add_string(out, "\n\n")) return no_memory(p);
    return mx_bytes_add(out, text->text, text->size) ? MX_OK : no_memory(p);
}

static mx_status unknown_block(const place *p, const mx_json *block) {
    const mx_json *type = mx_field(block, "type");
    char what[160];
    if (!type || type->type != MX_JSON_STRING) return wrong(p, "type", "expected the type of a block");
    snprintf(what, sizeof what, "\"%.40s\" blocks are not supported: the model reads text only", type->text);
    return wrong(p, "type", what);
}

/* {"type": "document", "source": {"type": "text", "data"}}: its title, what it is about, and the text. */
static mx_status add_document(const place *p, const mx_json *block, mx_bytes *out) {
    static const char *const about[] = {"title", "context"};
    const mx_json *source = mx_field(block, "source");
    if (!is_type(source, "text"))
        return wrong(p, "source", "expected {\"type\": \"text\", \"data\": \"...\"}: the model reads text only");
    mx_status status = MX_OK;
    for (int i = 0; i < 2 && ok(p, status); i++)
        if (mx_field(block, about[i])) status = add_text(p, mx_field(block, about[i]), about[i], out);
    return ok(p, status) ? add_text(p, mx_field(source, "data"), "source.data", out) : status;
}

/* What is text in a block. */
static mx_status add_block(const place *p, const mx_json *block, const char *member, mx_bytes *out) {
    if (is_type(block, "text")) return add_text(p, mx_json_get(block, "text"), member, out);
    return is_type(block, "document") ? add_document(p, block, out) : unknown_block(p, block);
}

/* A string or text blocks; NULL is no text. Appended to `out`. */
static mx_status add_texts(const place *p, const mx_json *content, const char *member, mx_bytes *out) {
    if (!content) return MX_OK;
    if (content->type == MX_JSON_STRING) return add_text(p, content, member, out);
    if (content->type != MX_JSON_ARRAY) return wrong(p, member, "expected a string or an array of blocks");
    mx_status status = MX_OK;
    for (const mx_json *block = content->child; block && ok(p, status); block = block->next)
        status = add_block(p, block, member, out);
    return status;
}

static const char *data(const mx_bytes *text) {
    return text->data ? text->data : "";
}

/* ---- the user ---------------------------------------------------------------------------------------------------- */
static mx_status tell_user(const place *p, mx_bytes *text) {
    mx_error found;
    if (!text->size) return MX_OK;
    mx_status status = mx_api_chat_add_user(p->chat, data(text), text->size, &found);
    mx_bytes_clear(text);
    return blame(p, status, &found, "content");
}

/* Harmony knows no failed call: what went wrong is told in words. */
static mx_status add_result(const place *p, const mx_json *block, mx_bytes *text) {
    const mx_json *failed = mx_field(block, "is_error");
    const char *id = mx_field_word(block, "tool_use_id");
    mx_error found;
    mx_status status = tell_user(p, text);
    if (!ok(p, status)) return status;
    if (!id) return wrong(p, "tool_use_id", "expected the id of a tool_use block");
    mx_bytes result = {0};
    status = add_texts(p, mx_field(block, "content"), "content", &result);
    mx_bytes all = {0};
    if (ok(p, status)) {
        const bool fits = (!failed || !failed->boolean || mx_bytes_add_string(&all, "Error: ")) &&
                          mx_bytes_add(&all, data(&result), result.size);
        status = fits ? mx_api_chat_add_result(p->chat, id, NULL, data(&all), all.size, &found) : no_memory(p);
        if (status == MX_NOT_FOUND)
            status = wrong(p, "tool_use_id", "no tool_use block before has this id");
        else if (fits)
            status = blame(p, status, &found, "content");
    }
    mx_bytes_free(&result);
    mx_bytes_free(&all);
    return status;
}

static mx_status add_user(place *p, const mx_json *content) {
    mx_bytes text = {0};
    mx_status status = MX_OK;
    if (content->type == MX_JSON_STRING) {
        mx_error found;
        return blame(p, mx_api_chat_add_user(p->chat, content->text, content->size, &found), &found, "content");
    }
    for (const mx_json *block = content->child; block && ok(p, status); block = block->next) {
        p->block++;
        status = is_type(block, "tool_result") ? add_result(p, block, &text) : add_block(p, block, "text", &text);
    }
    if (ok(p, status)) status = tell_user(p, &text);
    mx_bytes_free(&text);
    return status;
}

/* ---- the assistant ----------------------------------------------------------------------------------------------- */
typedef struct said {
    char answer[33]; /* whose thinking it was; empty: not known */
    bool has_text;
    mx_bytes thinking, text;
    mx_api_call *calls;  /* [count] */
    mx_bytes *arguments; /* [count]: theirs */
    int count;
} said;

static void free_said(said *s) {
    mx_bytes_free(&s->thinking);
    mx_bytes_free(&s->text);
    for (int i = 0; i < s->count; i++) mx_bytes_free(&s->arguments[i]);
    free(s->arguments);
    free(s->calls);
}

static mx_status add_thinking(const place *p, const mx_json *block, said *s) {
    const char *signature = mx_field_word(block, "signature");
    const size_t prefix = sizeof MX_ANTHROPIC_SIGNATURE - 1;
    if (signature && strncmp(signature, MX_ANTHROPIC_SIGNATURE, prefix) == 0)
        snprintf(s->answer, sizeof s->answer, "%s", signature + prefix);
    return add_text(p, mx_json_get(block, "thinking"), "thinking", &s->thinking);
}

static mx_status add_use(const place *p, const mx_json *block, said *s) {
    const char *id = mx_field_word(block, "id"), *name = mx_field_word(block, "name");
    const mx_json *input = mx_field(block, "input");
    if (!id) return wrong(p, "id", "expected a string that is not empty");
    if (!name) return wrong(p, "name", "expected the name of a tool");
    if (!input || input->type != MX_JSON_OBJECT) return wrong(p, "input", "expected an object");
    mx_bytes *arguments = &s->arguments[s->count++];
    if (!mx_json_write(arguments, input)) return no_memory(p);
    s->calls[s->count - 1] = (mx_api_call){id, name, arguments->data, arguments->size};
    return MX_OK;
}

static mx_status add_assistant_block(const place *p, const mx_json *block, said *s) {
    if (is_type(block, "text")) {
        s->has_text = true;
        return add_text(p, mx_json_get(block, "text"), "text", &s->text);
    }
    if (is_type(block, "thinking")) return add_thinking(p, block, s);
    if (is_type(block, "tool_use")) return add_use(p, block, s);
    return is_type(block, "redacted_thinking") ? MX_OK : unknown_block(p, block);
}

static mx_status read_said(place *p, const mx_json *content, said *s) {
    mx_status status = MX_OK;
    if (content->type == MX_JSON_STRING) {
        s->has_text = true;
        return add_text(p, content, "content", &s->text);
    }
    s->calls = calloc((size_t)content->count + 1, sizeof *s->calls);
    s->arguments = calloc((size_t)content->count + 1, sizeof *s->arguments);
    if (!s->calls || !s->arguments) return no_memory(p);
    for (const mx_json *block = content->child; block && ok(p, status); block = block->next) {
        p->block++;
        status = add_assistant_block(p, block, s);
    }
    return status;
}

static mx_status add_assistant(place *p, const mx_json *content) {
    said s = {0};
    mx_error found;
    mx_status status = read_said(p, content, &s);
    const mx_api_said all = {.id = *s.answer ? s.answer : NULL,
                             .thinking = data(&s.thinking),
                             .thinking_size = s.thinking.size,
                             .text = data(&s.text),
                             .text_size = s.text.size,
                             .has_text = s.has_text,
                             .calls = s.calls,
                             .call_count = s.count};
    if (ok(p, status) && (s.has_text || s.count || s.thinking.size))
        status = blame(p, mx_api_chat_add_said(p->chat, &all, &found), &found, "content");
    free_said(&s);
    return status;
}

/* ---- all of it --------------------------------------------------------------------------------------------------- */
static mx_status add_instructions(const place *p, const mx_json *content) {
    mx_bytes text = {0};
    mx_error found;
    mx_status status = add_texts(p, content, "content", &text);
    if (ok(p, status) && text.size)
        status = blame(p, mx_api_chat_add_instructions(p->chat, text.data, text.size, &found), &found, "content");
    mx_bytes_free(&text);
    return status;
}

static mx_status add_message(place *p, const mx_json *message, bool last) {
    const mx_json *role = mx_field(message, "role"), *content = mx_field(message, "content");
    const bool assistant = mx_json_is_string(role, "assistant");
    p->block = -1;
    if (!content || (content->type != MX_JSON_STRING && content->type != MX_JSON_ARRAY))
        return wrong(p, "content", "expected a string or an array of blocks");
    if (mx_json_is_string(role, "user")) return add_user(p, content);
    if (mx_json_is_string(role, "system")) return add_instructions(p, content);
    if (!assistant) return wrong(p, "role", "expected \"user\" or \"assistant\"");
    if (last)
        return wrong(p, "role",
                     "the last message is the assistant's: answers that go on from given text are not "
                     "supported, end with a message of the user");
    return add_assistant(p, content);
}

mx_status mx_anthropic_add_messages(const mx_json *body, mx_api_chat *chat, mx_api_problem *problem, mx_error *error) {
    place p = {chat, problem, error, -1, -1};
    const mx_fields f = {body, "", problem};
    const mx_json *messages;
    mx_status status = add_instructions(&p, mx_field(body, "system"));
    if (!ok(&p, status) || !mx_read_typed(&f, "messages", MX_JSON_ARRAY, &messages)) return status;
    if (!messages || !messages->count) {
        mx_api_wrong(problem, "messages", "invalid_value", "messages: at least one message is required");
        return MX_OK;
    }
    for (const mx_json *m = messages->child; m && ok(&p, status); m = m->next) {
        p.message++;
        status = add_message(&p, m, !m->next);
    }
    return status;
}
