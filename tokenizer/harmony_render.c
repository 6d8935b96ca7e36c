/* Conversations to ids. Every header piece and every content part is encoded on its own, as the library does, so the
 * ids are not always those of the whole text. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer/harmony.h"
#include "tokenizer/harmony_private.h"

typedef struct renderer {
    const mx_tokenizer *tokenizer;
    mx_harmony_ids format;
    bool has_functions; /* a developer message of the conversation defines tools in the namespace "functions" */
    mx_ids *out;
    mx_error *error;
    char place[64]; /* "messages[3].content[0]", for errors */
} renderer;

static mx_status no_memory(renderer *r) {
    return mx_fail(r->error, MX_NO_MEMORY, "%s: out of memory", r->place);
}

static mx_status add_id(renderer *r, int32_t id) {
    return mx_ids_add(r->out, id) ? MX_OK : no_memory(r);
}

static mx_status add_text(renderer *r, const void *text, size_t size) {
    return size ? mx_encode(r->tokenizer, text, size, r->out, r->error) : MX_OK;
}

/* `before` and the string as one piece of text. */
static mx_status add_piece(renderer *r, const char *before, const mx_json *text) {
    mx_text t = {0};
    mx_text_puts(&t, before);
    mx_text_add_string(&t, text);
    mx_status s = t.failed ? no_memory(r) : add_text(r, t.bytes.data, t.bytes.size);
    mx_bytes_free(&t.bytes);
    return s;
}

/* The member, or NULL where it is absent or null; any other type than `type` is an error. */
static mx_status optional(renderer *r, const mx_json *object, const char *key, mx_json_type type, const mx_json **out) {
    static const char *const names[] = {"null", "true or false", "a number", "a string", "an array", "an object"};
    const mx_json *v = mx_json_get(object, key);
    *out = v && v->type == type ? v : NULL;
    if (!v || v->type == type || v->type == MX_JSON_NULL) return MX_OK;
    return mx_fail(r->error, MX_INVALID_ARGUMENT, "%s: \"%s\" is not %s", r->place, key, names[type]);
}

/* ---- tools ------------------------------------------------------------------------------------------------------- */
/* Each line of the text on a line of its own behind `before`. Lines end in \n or \r\n. */
static void add_lines(mx_text *t, const char *before, const mx_json *text) {
    if (!text) return;
    for (const char *p = text->text, *end = p + text->size; p < end;) {
        const char *newline = memchr(p, '\n', (size_t)(end - p)), *stop = newline ? newline : end;
        mx_text_puts(t, "\n");
        mx_text_puts(t, before);
        mx_text_add(t, p, (size_t)(stop - p) - (newline && stop > p && stop[-1] == '\r'));
        p = newline ? newline + 1 : end;
    }
}

static mx_status add_function(renderer *r, mx_text *t, const mx_json *function) {
    const mx_json *name = mx_json_string(function, "name"), *parameters = mx_json_get(function, "parameters");
    const mx_json *description;
    if (!name) return mx_fail(r->error, MX_INVALID_ARGUMENT, "%s: a tool has no \"name\" string", r->place);
    mx_status s = optional(r, function, "description", MX_JSON_STRING, &description);
    if (s != MX_OK) return s;
    add_lines(t, "// ", description);
    mx_text_puts(t, "\ntype ");
    mx_text_add_string(t, name);
    if (parameters && parameters->type != MX_JSON_NULL) {
        mx_text_puts(t, " = (_: ");
        mx_text_add_typescript(t, parameters);
        mx_text_puts(t, ") => any;\n");
    } else {
        mx_text_puts(t, " = () => any;\n");
    }
    return MX_OK;
}

static mx_status add_namespace(renderer *r, mx_text *t, const mx_json *space) {
    const mx_json *name = mx_json_string(space, "name"), *description, *tools;
    if (!name) return mx_fail(r->error, MX_INVALID_ARGUMENT, "%s: a tool namespace has no \"name\" string", r->place);
    mx_status s = optional(r, space, "description", MX_JSON_STRING, &description);
    if (s == MX_OK) s = optional(r, space, "tools", MX_JSON_ARRAY, &tools);
    if (s != MX_OK) return s;
    bool any = tools && tools->count;
    mx_text_puts(t, "\n\n## ");
    mx_text_add_string(t, name);
    mx_text_puts(t, "\n");
    add_lines(t, any ? "// " : "", description);
    if (!any) return MX_OK;
    mx_text_puts(t, "\nnamespace ");
    mx_text_add_string(t, name);
    mx_text_puts(t, " {\n");
    for (const mx_json *f = tools->child; f && s == MX_OK; f = f->next) s = add_function(r, t, f);
    mx_text_puts(t, "\n} // namespace ");
    mx_text_add_string(t, name);
    return s;
}

/* ---- system and developer content: sections with an empty line between ------------------------------------------- */
static void begin_section(mx_text *t, bool *any) {
    if (*any) mx_text_puts(t, "\n\n");
    *any = true;
}

static mx_status add_tools(renderer *r, mx_text *t, bool *any, const mx_json *content) {
    const mx_json *tools;
    mx_member *spaces;
    uint32_t count;
    mx_status s = optional(r, content, "tools", MX_JSON_OBJECT, &tools);
    if (s != MX_OK || !tools || !tools->count) return s;
    if (!mx_json_members(tools, MX_KEY_ORDER, &spaces, &count)) return no_memory(r);
    begin_section(t, any);
    mx_text_puts(t, "# Tools");
    for (uint32_t i = 0; i < count && s == MX_OK; i++) s = add_namespace(r, t, spaces[i].value);
    free(spaces);
    return s;
}

/* Identity, knowledge cutoff and date: one section of up to three lines. */
static mx_status add_identity(renderer *r, mx_text *t, bool *any, const mx_json *content) {
    static const char *const keys[] = {"model_identity", "knowledge_cutoff", "conversation_start_date"};
    static const char *const before[] = {"", "Knowledge cutoff: ", "Current date: "};
    bool first = true;
    for (int i = 0; i < 3; i++) {
        const mx_json *v;
        mx_status s = optional(r, content, keys[i], MX_JSON_STRING, &v);
        if (s != MX_OK) return s;
        if (!v) continue;
        if (first)
            begin_section(t, any);
        else
            mx_text_puts(t, "\n");
        first = false;
        mx_text_puts(t, before[i]);
        mx_text_add_string(t, v);
    }
    return MX_OK;
}

static mx_status add_reasoning(renderer *r, mx_text *t, bool *any, const mx_json *content) {
    static const char *const accepted[][2] = {{"Low", "low"}, {"Medium", "medium"}, {"High", "high"}};
    const mx_json *effort;
    mx_status s = optional(r, content, "reasoning_effort", MX_JSON_STRING, &effort);
    if (s != MX_OK || !effort) return s;
    for (int i = 0; i < 3; i++) {
        if (!mx_json_is_string(effort, accepted[i][0]) && !mx_json_is_string(effort, accepted[i][1])) continue;
        begin_section(t, any);
        mx_text_puts(t, "Reasoning: ");
        mx_text_puts(t, accepted[i][1]);
        return MX_OK;
    }
    return mx_fail(r->error, MX_INVALID_ARGUMENT,
                   "%s: reasoning_effort is \"%.40s\", not \"Low\", \"Medium\" or \"High\"", r->place, effort->text);
}

static mx_status add_channels(renderer *r, mx_text *t, bool *any, const mx_json *content) {
    const mx_json *config, *channels;
    bool required = false;
    mx_status s = optional(r, content, "channel_config", MX_JSON_OBJECT, &config);
    if (s == MX_OK) s = optional(r, config, "valid_channels", MX_JSON_ARRAY, &channels);
    if (s != MX_OK || !channels || !channels->count) return s;
    begin_section(t, any);
    mx_text_puts(t, "# Valid channels: ");
    for (const mx_json *c = channels->child; c; c = c->next) {
        if (c->type != MX_JSON_STRING)
            return mx_fail(r->error, MX_INVALID_ARGUMENT, "%s: a valid channel is not a string", r->place);
        if (c != channels->child) mx_text_puts(t, ", ");
        mx_text_add_string(t, c);
    }
    mx_text_puts(t, ".");
    mx_json_bool(mx_json_get(config, "channel_required"), &required);
    if (required) mx_text_puts(t, " Channel must be included for every message.");
    if (r->has_functions) mx_text_puts(t, "\nCalls to these tools must go to the commentary channel: 'functions'.");
    return MX_OK;
}

static mx_status build_system(renderer *r, mx_text *t, const mx_json *content) {
    bool any = false;
    mx_status s = add_identity(r, t, &any, content);
    if (s == MX_OK) s = add_reasoning(r, t, &any, content);
    if (s == MX_OK) s = add_tools(r, t, &any, content);
    if (s == MX_OK) s = add_channels(r, t, &any, content);
    return s;
}

static mx_status build_developer(renderer *r, mx_text *t, const mx_json *content) {
    const mx_json *instructions;
    bool any = false;
    mx_status s = optional(r, content, "instructions", MX_JSON_STRING, &instructions);
    if (s != MX_OK) return s;
    if (instructions) {
        begin_section(t, &any);
        mx_text_puts(t, "# Instructions\n\n");
        mx_text_add_string(t, instructions);
    }
    return add_tools(r, t, &any, content);
}

/* ---- messages ---------------------------------------------------------------------------------------------------- */
static mx_status render_part(renderer *r, const mx_json *role, const mx_json *part) {
    const mx_json *type = mx_json_string(part, "type"), *text = mx_json_string(part, "text");
    if (mx_json_is_string(type, "text")) {
        if (!text) return mx_fail(r->error, MX_INVALID_ARGUMENT, "%s: no \"text\" string", r->place);
        return add_text(r, text->text, text->size);
    }
    bool system = mx_json_is_string(type, "system_content");
    if (!system && !mx_json_is_string(type, "developer_content"))
        return mx_fail(r->error, MX_INVALID_ARGUMENT,
                       "%s: \"type\" is \"%.40s\", expected \"text\", \"system_content\" or \"developer_content\"",
                       r->place, type ? type->text : "");
    if (!mx_json_is_string(role, system ? "system" : "developer"))
        return mx_fail(r->error, MX_INVALID_ARGUMENT, "%s: %s may only stand in a %s message, not in one of role %s",
                       r->place, type->text, system ? "system" : "developer", role->text);
    mx_text t = {0};
    mx_status s = system ? build_system(r, &t, part) : build_developer(r, &t, part);
    if (s == MX_OK) s = t.failed ? no_memory(r) : add_text(r, t.bytes.data, t.bytes.size);
    mx_bytes_free(&t.bytes);
    return s;
}

static mx_status render_content_type(renderer *r, const mx_json *content_type) {
    static const char constrain[] = "<|constrain|>";
    size_t n = sizeof constrain - 1;
    if (content_type->size < n || memcmp(content_type->text, constrain, n) != 0) return add_piece(r, " ", content_type);
    mx_status s = add_text(r, " ", 1);
    if (s == MX_OK) s = add_id(r, r->format.constrain);
    if (s == MX_OK) s = add_text(r, content_type->text + n, content_type->size - n);
    return s;
}

/* role[:name] or the tool's name, then " to=recipient", the channel and the content type, as far as they are there. */
static mx_status render_header(renderer *r, const mx_json *message, const mx_json *role, bool *has_recipient) {
    const mx_json *name, *recipient, *channel, *content_type;
    mx_status s = optional(r, message, "name", MX_JSON_STRING, &name);
    if (s == MX_OK) s = optional(r, message, "recipient", MX_JSON_STRING, &recipient);
    if (s == MX_OK) s = optional(r, message, "channel", MX_JSON_STRING, &channel);
    if (s == MX_OK) s = optional(r, message, "content_type", MX_JSON_STRING, &content_type);
    if (s != MX_OK) return s;
    *has_recipient = recipient != NULL;
    if (mx_json_is_string(role, "tool")) {
        if (!name) return mx_fail(r->error, MX_INVALID_ARGUMENT, "%s: a tool message needs a \"name\"", r->place);
        s = add_piece(r, "", name);
    } else {
        s = add_piece(r, "", role);
        if (s == MX_OK && name) s = add_piece(r, ":", name);
    }
    if (s == MX_OK && recipient && !mx_json_is_string(recipient, "all")) s = add_piece(r, " to=", recipient);
    if (s == MX_OK && channel) {
        s = add_id(r, r->format.channel);
        if (s == MX_OK) s = add_piece(r, "", channel);
    }
    if (s == MX_OK && content_type) s = render_content_type(r, content_type);
    return s;
}

static mx_status render_message(renderer *r, const mx_json *message, uint32_t index) {
    const mx_json *role = mx_json_string(message, "role"), *content = mx_json_get(message, "content");
    bool has_recipient;
    snprintf(r->place, sizeof r->place, "messages[%u]", index);
    if (!role || !mx_harmony_role(role->text, role->size, false))
        return mx_fail(r->error, MX_INVALID_ARGUMENT,
                       "%s: \"role\" is \"%.40s\", expected system, developer, user, assistant or tool", r->place,
                       role ? role->text : "");
    mx_status s = add_id(r, r->format.start);
    if (s == MX_OK) s = render_header(r, message, role, &has_recipient);
    if (s == MX_OK) s = add_id(r, r->format.message);
    if (s != MX_OK) return s;
    if (content && content->type == MX_JSON_STRING) {
        s = add_text(r, content->text, content->size);
    } else if (content && content->type == MX_JSON_ARRAY) {
        uint32_t i = 0;
        for (const mx_json *part = content->child; part && s == MX_OK; part = part->next) {
            snprintf(r->place, sizeof r->place, "messages[%u].content[%u]", index, i++);
            s = render_part(r, role, part);
        }
    } else {
        s = mx_fail(r->error, MX_INVALID_ARGUMENT, "%s: \"content\" is no string and no array of parts", r->place);
    }
    if (s != MX_OK) return s;
    return add_id(r, mx_json_is_string(role, "assistant") && has_recipient ? r->format.call : r->format.end);
}

/* ---- conversations ----------------------------------------------------------------------------------------------- */
static bool defines_functions(const mx_json *message) {
    const mx_json *parts = mx_json_array(message, "content");
    for (const mx_json *p = parts ? parts->child : NULL; p; p = p->next) {
        if (!mx_json_is_string(mx_json_get(p, "type"), "developer_content")) continue;
        const mx_json *tools = mx_json_array(mx_json_get(mx_json_get(p, "tools"), "functions"), "tools");
        if (tools && tools->count) return true;
    }
    return false;
}

static bool on_channel(const mx_json *message, const char *channel) {
    return mx_json_is_string(mx_json_get(message, "channel"), channel);
}

/* The analysis of messages with a smaller index than this is left out. */
static uint32_t analysis_begins(const mx_json *messages, const mx_render_options *options) {
    uint32_t index = 0, first_final = 0, last_final = 0;
    bool any_final = false, answered = false;
    for (const mx_json *m = messages->child; m; m = m->next, index++) {
        bool final = on_channel(m, "final");
        if (mx_json_is_string(mx_json_get(m, "role"), "assistant")) answered = final;
        if (!final) continue;
        if (!any_final) first_final = index;
        any_final = true;
        last_final = index;
    }
    if (options->drop_all_analysis) return last_final;
    return options->auto_drop_analysis && answered ? first_final : 0;
}

static mx_status render_messages(renderer *r, const mx_json *messages, const mx_render_options *options) {
    uint32_t index = 0, kept_from = analysis_begins(messages, options);
    const mx_json *last = NULL;
    for (const mx_json *m = messages->child; m; m = m->next)
        if (defines_functions(m)) r->has_functions = true;
    for (const mx_json *m = messages->child; m; m = m->next, index++) {
        last = m;
        if (index < kept_from && on_channel(m, "analysis")) continue;
        mx_status s = render_message(r, m, index);
        if (s != MX_OK) return s;
    }
    if (options->training && last && on_channel(last, "final") &&
        mx_json_is_string(mx_json_get(last, "role"), "assistant"))
        r->out->data[r->out->count - 1] = r->format.return_;
    return MX_OK;
}

mx_status mx_harmony_render(const mx_tokenizer *t, const mx_json *conversation, const mx_render_options *options,
                            mx_ids *out, mx_error *error) {
    renderer r = {.tokenizer = t, .format = mx_tokenizer_harmony_ids(t), .out = out, .error = error, .place = "render"};
    const mx_json *messages = mx_json_array(conversation, "messages");
    if (!messages) return mx_fail(error, MX_INVALID_ARGUMENT, "the conversation has no \"messages\" array");
    if (options->next_role && !mx_harmony_role(options->next_role, strlen(options->next_role), false))
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "next_role is \"%.40s\", expected system, developer, user, assistant or tool",
                       options->next_role);
    mx_status s = mx_harmony_check_ids(&r.format, error);
    if (s != MX_OK) return s;
    int64_t before = out->count;
    s = render_messages(&r, messages, options);
    if (s == MX_OK && options->next_role) {
        s = add_id(&r, r.format.start);
        if (s == MX_OK) s = add_text(&r, options->next_role, strlen(options->next_role));
    }
    if (s != MX_OK) out->count = before;
    return s;
}
