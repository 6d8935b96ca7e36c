#include "turn/conversation_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"

/* {"format": "mxrun-chat", "version": 1,
 *  "settings": {"system", "developer", "reasoning", "date", "tools"},
 *  "messages": [{"role": "user", "text"},
 *               {"role": "assistant", "channel", ["recipient", "content_type",] "text"},
 *               {"role": "tool", "name", "text"},
 *               {"role": "developer", "text"}]} */
static const char *const setting_names[MX_SETTINGS] = {"system", "developer", "reasoning", "date"};

/* ---- save -------------------------------------------------------------------------------------------------------- */
static bool write_member(mx_bytes *out, const char *name, const char *value) {
    return !value || (mx_bytes_addf(out, ", \"%s\": ", name) && mx_bytes_add_json(out, value, strlen(value)));
}

static bool write_conversation(const mx_conversation *c, mx_bytes *out) {
    bool ok = mx_bytes_add_string(out, "{\"format\": \"mxrun-chat\", \"version\": 1,\n \"settings\": {");
    for (int i = 0; i < MX_SETTINGS && ok; i++) {
        ok = mx_bytes_addf(out, "%s\"%s\": ", i ? ", " : "", setting_names[i]) &&
             mx_bytes_add_json(out, c->setting[i], strlen(c->setting[i]));
    }
    if (ok && c->tools.size) {
        ok = mx_bytes_add_string(out, ", \"tools\": ") && mx_bytes_add(out, c->tools.data, c->tools.size);
    }
    ok = ok && mx_bytes_add_string(out, "},\n \"messages\": [");
    for (int i = 0; i < c->count && ok; i++) {
        const mx_message *m = &c->messages[i];
        ok = mx_bytes_addf(out, "%s\n  {\"role\": \"%s\"", i ? "," : "", mx_role_names[m->role]) &&
             write_member(out, "name", m->name) && write_member(out, "channel", m->channel) &&
             write_member(out, "recipient", m->recipient) && write_member(out, "content_type", m->content_type) &&
             mx_bytes_add_string(out, ", \"text\": ") && mx_bytes_add_json(out, m->text.data, m->text.size) &&
             mx_bytes_add_string(out, "}");
    }
    return ok && mx_bytes_add_string(out, "]}\n");
}

mx_status mx_conversation_save(const mx_conversation *c, const char *path, mx_error *error) {
    mx_bytes text = {0};
    mx_status status = MX_OK;
    if (!write_conversation(c, &text))
        status = mx_fail(error, MX_NO_MEMORY, "no memory to save %s", path);
    else if (!mx_replace_file(path, text.data, text.size, true))
        status = mx_fail(error, MX_IO, "cannot save %s: %s", path, strerror(errno));
    mx_bytes_free(&text);
    return status;
}

/* ---- load -------------------------------------------------------------------------------------------------------- */
static mx_status copy_member(const char *path, int index, const mx_json *from, const char *name, char **out,
                             mx_error *error) {
    const mx_json *value = mx_json_get(from, name);
    if (!value) return MX_OK;
    if (value->type != MX_JSON_STRING || strlen(value->text) != value->size) {
        return mx_fail(error, MX_INVALID_FILE, "%s: message %d: \"%s\" is not a string", path, index, name);
    }
    *out = strdup(value->text);
    return *out ? MX_OK : mx_fail(error, MX_NO_MEMORY, "%s: no memory", path);
}

static mx_status load_message(mx_conversation *c, const char *path, int index, const mx_json *from, mx_error *error) {
    const mx_json *role = mx_json_get(from, "role"), *text = mx_json_get(from, "text");
    mx_message m = {0};
    int found = 0;
    while (found < MX_ROLES && !mx_json_is_string(role, mx_role_names[found])) found++;
    if (found == MX_ROLES) {
        return mx_fail(error, MX_INVALID_FILE, "%s: message %d: \"role\" is not user, assistant, tool or developer",
                       path, index);
    }
    if (!text || text->type != MX_JSON_STRING) {
        return mx_fail(error, MX_INVALID_FILE, "%s: message %d: \"text\" is not a string", path, index);
    }
    m.role = (mx_role)found;
    mx_status status = copy_member(path, index, from, "name", &m.name, error);
    if (!status) status = copy_member(path, index, from, "channel", &m.channel, error);
    if (!status) status = copy_member(path, index, from, "recipient", &m.recipient, error);
    if (!status) status = copy_member(path, index, from, "content_type", &m.content_type, error);
    if (!status && m.role == MX_ROLE_TOOL && !m.name) {
        status = mx_fail(error, MX_INVALID_FILE, "%s: message %d: a tool's message has no \"name\"", path, index);
    }
    if (!status && !mx_bytes_add(&m.text, text->text, text->size)) {
        status = mx_fail(error, MX_NO_MEMORY, "%s: no memory", path);
    }
    if (status) {
        mx_message_free(&m);
        return status;
    }
    status = mx_conversation_take(c, &m, error);
    return status ? mx_fail_within(error, status, "%s: message %d", path, index) : MX_OK;
}

static mx_status load_settings(mx_conversation *c, const char *path, const mx_json *settings, mx_error *error) {
    for (int i = 0; i < MX_SETTINGS; i++) {
        const mx_json *value = mx_json_get(settings, setting_names[i]);
        if (!value) continue;
        if (value->type != MX_JSON_STRING) {
            return mx_fail(error, MX_INVALID_FILE, "%s: setting \"%s\" is not a string", path, setting_names[i]);
        }
        mx_status status = mx_conversation_set(c, (mx_setting)i, value->text, error);
        if (status) return mx_fail_within(error, status, "%s", path);
    }
    const mx_json *tools = mx_json_get(settings, "tools");
    return tools ? mx_conversation_set_tools(c, path, tools, error) : MX_OK;
}

static mx_status load_all(mx_conversation *c, const char *path, const mx_json *root, mx_error *error) {
    int64_t version;
    if (!mx_json_is_string(mx_json_get(root, "format"), "mxrun-chat")) {
        return mx_fail(error, MX_INVALID_FILE, "%s: not a saved chat: \"format\" is not \"mxrun-chat\"", path);
    }
    if (!mx_json_int64(mx_json_get(root, "version"), &version) || version != 1) {
        return mx_fail(error, MX_INVALID_FILE, "%s: \"version\" is not 1: saved by another version of mxrun", path);
    }
    const mx_json *messages = mx_json_get(root, "messages");
    if (!messages || messages->type != MX_JSON_ARRAY) {
        return mx_fail(error, MX_INVALID_FILE, "%s: \"messages\" is not an array", path);
    }
    mx_status status = load_settings(c, path, mx_json_get(root, "settings"), error);
    int index = 0;
    for (const mx_json *m = messages->child; m && !status; m = m->next) {
        status = load_message(c, path, index++, m, error);
    }
    return status;
}

mx_status mx_conversation_load(mx_conversation *c, const char *path, mx_error *error) {
    mx_bytes text = {0};
    mx_json_document *document = NULL;
    mx_conversation *fresh = NULL;
    mx_status status = mx_read_file(path, (size_t)1 << 30, &text, error);
    if (!status) status = mx_json_parse(path, text.data ? text.data : "", text.size, &document, error);
    if (!status) status = mx_conversation_create(c->tokenizer, &fresh, error);
    if (!status) status = load_all(fresh, path, mx_json_root(document), error);
    if (!status) {
        fresh->keep_thinking = c->keep_thinking;
        mx_conversation old = *c;
        *c = *fresh;
        *fresh = old;
    }
    mx_conversation_free(fresh);
    mx_json_free(document);
    mx_bytes_free(&text);
    return status;
}
