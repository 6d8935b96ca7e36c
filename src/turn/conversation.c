#include "turn/conversation_private.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

const char *const mx_role_names[MX_ROLES] = {"user", "assistant", "tool", "developer"};

static mx_status no_memory(mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "no memory for the conversation");
}

/* ---- life -------------------------------------------------------------------------------------------------------- */
mx_status mx_conversation_create(const mx_tokenizer *tokenizer, mx_conversation **out, mx_error *error) {
    *out = NULL;
    mx_harmony_ids special = mx_tokenizer_harmony_ids(tokenizer);
    if (special.start < 0 || special.end < 0 || special.message < 0 || special.channel < 0 || special.return_ < 0) {
        return mx_fail(error, MX_UNSUPPORTED,
                       "this tokenizer has no tokens for the harmony chat format (<|start|>, <|channel|>, <|message|>, "
                       "<|end|>, <|return|>); use --raw to continue plain text");
    }
    mx_conversation *c = calloc(1, sizeof *c);
    if (!c) return no_memory(error);
    c->tokenizer = tokenizer;
    char today[11];
    time_t now = time(NULL);
    struct tm local;
    if (!localtime_r(&now, &local) || strftime(today, sizeof today, "%Y-%m-%d", &local) == 0) *today = 0;
    const char *defaults[MX_SETTINGS] = {
        [MX_SETTING_SYSTEM] = "You are ChatGPT, a large language model trained by OpenAI.",
        [MX_SETTING_DEVELOPER] = "",
        [MX_SETTING_REASONING] = "medium",
        [MX_SETTING_DATE] = today,
    };
    const char opening[] = "<|start|>assistant";
    mx_status status = mx_encode_special(tokenizer, opening, sizeof opening - 1, &c->opening, error);
    for (int i = 0; i < MX_SETTINGS && !status; i++) {
        c->setting[i] = strdup(defaults[i]);
        if (!c->setting[i]) status = no_memory(error);
    }
    if (status) {
        mx_conversation_free(c);
        return status;
    }
    *out = c;
    return MX_OK;
}

void mx_message_free(mx_message *m) {
    free(m->name);
    free(m->channel);
    free(m->recipient);
    free(m->content_type);
    mx_bytes_free(&m->text);
    mx_ids_free(&m->ids);
    *m = (mx_message){0};
}

void mx_conversation_free(mx_conversation *c) {
    if (!c) return;
    mx_conversation_truncate(c, 0);
    free(c->messages);
    for (int i = 0; i < MX_SETTINGS; i++) free(c->setting[i]);
    mx_bytes_free(&c->tools);
    mx_bytes_free(&c->functions);
    mx_ids_free(&c->opening);
    mx_ids_free(&c->head);
    free(c);
}

mx_status mx_conversation_copy_settings(const mx_conversation *from, mx_conversation **out, mx_error *error) {
    *out = NULL;
    mx_conversation *c = calloc(1, sizeof *c);
    if (!c) return no_memory(error);
    c->tokenizer = from->tokenizer;
    c->keep_thinking = from->keep_thinking;
    bool copied = mx_ids_add_all(&c->opening, from->opening.data, from->opening.count) &&
                  mx_bytes_add(&c->tools, from->tools.data, from->tools.size) &&
                  mx_bytes_add(&c->functions, from->functions.data, from->functions.size) &&
                  mx_ids_add_all(&c->head, from->head.data, from->head.count);
    for (int i = 0; i < MX_SETTINGS && copied; i++) copied = (c->setting[i] = strdup(from->setting[i])) != NULL;
    if (!copied) {
        mx_conversation_free(c);
        return no_memory(error);
    }
    *out = c;
    return MX_OK;
}

int mx_conversation_count(const mx_conversation *c) {
    return c->count;
}

size_t mx_conversation_bytes(const mx_conversation *c) {
    size_t bytes = sizeof *c + (size_t)c->capacity * sizeof *c->messages + c->tools.capacity + c->functions.capacity +
                   (size_t)(c->opening.capacity + c->head.capacity) * sizeof *c->opening.data;
    for (int i = 0; i < c->count; i++)
        bytes += c->messages[i].text.capacity + (size_t)c->messages[i].ids.capacity * sizeof *c->opening.data + 64;
    return bytes;
}

int mx_conversation_turns(const mx_conversation *c) {
    int turns = 0;
    for (int i = 0; i < c->count; i++) turns += c->messages[i].role == MX_ROLE_USER;
    return turns;
}

void mx_conversation_truncate(mx_conversation *c, int count) {
    while (c->count > count) mx_message_free(&c->messages[--c->count]);
}

/* ---- settings ---------------------------------------------------------------------------------------------------- */
static bool is_date(const char *text) {
    int year, month, day, length = 0;
    if (strlen(text) != 10 || strspn(text, "0123456789-") != 10) return false;
    if (sscanf(text, "%4d-%2d-%2d%n", &year, &month, &day, &length) != 3 || length != 10) return false;
    if (year < 1 || month < 1 || month > 12) return false;
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    return day >= 1 && day <= days[month - 1] + (month == 2 && leap);
}

mx_status mx_setting_check(mx_setting setting, const char *value, mx_error *error) {
    if (setting == MX_SETTING_REASONING && strcmp(value, "low") != 0 && strcmp(value, "medium") != 0 &&
        strcmp(value, "high") != 0) {
        return mx_fail(error, MX_INVALID_ARGUMENT, "reasoning is low, medium or high, not \"%s\"", value);
    }
    if (setting == MX_SETTING_DATE && *value && !is_date(value)) {
        return mx_fail(error, MX_INVALID_ARGUMENT, "\"%s\" is no date; one looks like 2026-11-23", value);
    }
    return MX_OK;
}

mx_status mx_conversation_set(mx_conversation *c, mx_setting setting, const char *value, mx_error *error) {
    mx_status status = mx_setting_check(setting, value, error);
    if (status) return status;
    mx_bytes copy = {0};
    /* The first one makes "" a string too. */
    if (!mx_bytes_add(&copy, "", 0) || !mx_bytes_add_lossy(&copy, value, strlen(value))) {
        mx_bytes_free(&copy);
        return no_memory(error);
    }
    free(c->setting[setting]);
    c->setting[setting] = copy.data;
    c->head.count = 0;
    return MX_OK;
}

const char *mx_conversation_get(const mx_conversation *c, mx_setting setting) {
    return c->setting[setting];
}

void mx_conversation_keep_thinking(mx_conversation *c, bool keep) {
    c->keep_thinking = keep;
}

bool mx_conversation_has_tools(const mx_conversation *c) {
    return c->functions.size > 0;
}

const mx_bytes *mx_conversation_tools(const mx_conversation *c) {
    return &c->tools;
}

/* A function's name becomes a TypeScript name and a word of the header. */
static bool is_tool_name(const mx_json *name) {
    return name && name->type == MX_JSON_STRING && name->size >= 1 && name->size <= 64 &&
           strspn(name->text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.") == name->size;
}

static mx_status add_tool(mx_bytes *out, const char *file, int index, const mx_json *tool, mx_error *error) {
    if (tool->type != MX_JSON_OBJECT) {
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s: tool %d is not an object", file, index);
    }
    const mx_json *type = mx_json_get(tool, "type");
    if (type && !mx_json_is_string(type, "function")) {
        return mx_fail(error, MX_UNSUPPORTED, "%s: tool %d: \"type\" is not \"function\", the only kind there is", file,
                       index);
    }
    const mx_json *function = mx_json_get(tool, "function");
    if (!function) function = tool;
    const mx_json *name = mx_json_get(function, "name");
    const mx_json *description = mx_json_get(function, "description");
    const mx_json *parameters = mx_json_get(function, "parameters");
    if (!is_tool_name(name)) {
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "%s: tool %d: \"name\" must be a string of 1 to 64 letters, digits, _, - or .", file, index);
    }
    if (description && description->type == MX_JSON_NULL) description = NULL;
    if (description && description->type != MX_JSON_STRING) {
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s: tool %s: \"description\" is not a string", file, name->text);
    }
    if (parameters && parameters->type == MX_JSON_NULL) parameters = NULL;
    if (parameters && parameters->type != MX_JSON_OBJECT) {
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s: tool %s: \"parameters\" is not a JSON schema (an object)", file,
                       name->text);
    }
    bool added = mx_bytes_add_string(out, index ? ",{\"name\":" : "{\"name\":") && mx_json_write(out, name) &&
                 mx_bytes_add_string(out, ",\"description\":");
    added = added && (description ? mx_json_write(out, description) : mx_bytes_add_string(out, "\"\""));
    if (added && parameters) added = mx_bytes_add_string(out, ",\"parameters\":") && mx_json_write(out, parameters);
    return added && mx_bytes_add_string(out, "}") ? MX_OK : no_memory(error);
}

mx_status mx_conversation_set_tools(mx_conversation *c, const char *name, const mx_json *tools, mx_error *error) {
    mx_bytes given = {0}, functions = {0};
    mx_status status = MX_OK;
    if (tools && tools->type != MX_JSON_ARRAY) {
        status = mx_fail(error, MX_INVALID_ARGUMENT,
                         "%s: expected an array of tools, [{\"type\": \"function\", \"function\": {...}}]", name);
    }
    if (!status && tools && tools->count) {
        int index = 0;
        if (!mx_json_write(&given, tools) || !mx_bytes_add_string(&functions, "[")) status = no_memory(error);
        for (const mx_json *tool = tools->child; tool && !status; tool = tool->next) {
            status = add_tool(&functions, name, index++, tool, error);
        }
        if (!status && !mx_bytes_add_string(&functions, "]")) status = no_memory(error);
    }
    if (status) {
        mx_bytes_free(&given);
        mx_bytes_free(&functions);
        return status;
    }
    mx_bytes_free(&c->tools);
    mx_bytes_free(&c->functions);
    c->tools = given;
    c->functions = functions;
    c->head.count = 0;
    return MX_OK;
}

/* ---- rendering --------------------------------------------------------------------------------------------------- */
static bool add_member(mx_bytes *json, const char *name, const char *value) {
    return mx_bytes_addf(json, "\"%s\":", name) && mx_bytes_add_json(json, value, strlen(value)) &&
           mx_bytes_add_string(json, ",");
}

static mx_status render(const mx_conversation *c, const mx_bytes *json, mx_ids *out, mx_error *error) {
    mx_json_document *document;
    mx_status status = mx_json_parse("conversation", json->data, json->size, &document, error);
    if (status) return status;
    const mx_render_options options = {0};
    status = mx_harmony_render(c->tokenizer, mx_json_root(document), &options, out, error);
    mx_json_free(document);
    return status;
}

/* System and developer message as the harmony library's JSON. */
static bool write_head(const mx_conversation *c, mx_bytes *json) {
    const char *reasoning = c->setting[MX_SETTING_REASONING];
    const char *effort = *reasoning == 'l' ? "Low" : *reasoning == 'h' ? "High" : "Medium";
    const char *system = c->setting[MX_SETTING_SYSTEM], *date = c->setting[MX_SETTING_DATE];
    const char *developer = c->setting[MX_SETTING_DEVELOPER];
    if (!mx_bytes_add_string(json, "{\"messages\":[{\"role\":\"system\",\"content\":[{\"type\":\"system_content\",") ||
        (*system && !add_member(json, "model_identity", system)) || !add_member(json, "knowledge_cutoff", "2024-06") ||
        (*date && !add_member(json, "conversation_start_date", date)) ||
        !add_member(json, "reasoning_effort", effort) ||
        !mx_bytes_add_string(json, "\"channel_config\":{\"valid_channels\":[\"analysis\",\"commentary\",\"final\"],"
                                   "\"channel_required\":true}}]}")) {
        return false;
    }
    if (*developer || c->functions.size) {
        if (!mx_bytes_add_string(json, ",{\"role\":\"developer\",\"content\":[{") ||
            (*developer && !add_member(json, "instructions", developer)) ||
            (c->functions.size &&
             (!mx_bytes_add_string(json, "\"tools\":{\"functions\":{\"name\":\"functions\",\"tools\":") ||
              !mx_bytes_add(json, c->functions.data, c->functions.size) || !mx_bytes_add_string(json, "}},"))) ||
            !mx_bytes_add_string(json, "\"type\":\"developer_content\"}]}")) {
            return false;
        }
    }
    return mx_bytes_add_string(json, "]}");
}

mx_status mx_conversation_update_head(mx_conversation *c, mx_error *error) {
    if (c->head.count) return MX_OK;
    mx_bytes json = {0};
    mx_ids head = {0};
    mx_status status = write_head(c, &json) ? render(c, &json, &head, error) : no_memory(error);
    mx_bytes_free(&json);
    if (status) {
        mx_ids_free(&head);
        return status;
    }
    mx_ids_free(&c->head);
    c->head = head;
    return MX_OK;
}

static mx_status render_message(mx_conversation *c, mx_message *m, mx_error *error) {
    mx_bytes json = {0};
    bool written = mx_bytes_addf(&json, "{\"messages\":[{\"role\":\"%s\",", mx_role_names[m->role]) &&
                   (!m->name || add_member(&json, "name", m->name)) &&
                   (!m->channel || add_member(&json, "channel", m->channel)) &&
                   (!m->recipient || add_member(&json, "recipient", m->recipient)) &&
                   (!m->content_type || add_member(&json, "content_type", m->content_type)) &&
                   mx_bytes_add_string(&json, m->role == MX_ROLE_DEVELOPER
                                                  ? "\"content\":[{\"type\":\"developer_content\",\"instructions\":"
                                                  : "\"content\":[{\"type\":\"text\",\"text\":") &&
                   mx_bytes_add_json(&json, m->text.data, m->text.size) && mx_bytes_add_string(&json, "}]}]}");
    mx_status status = written ? render(c, &json, &m->ids, error) : no_memory(error);
    mx_bytes_free(&json);
    return status;
}

/* ---- messages ---------------------------------------------------------------------------------------------------- */
mx_status mx_conversation_take(mx_conversation *c, mx_message *m, mx_error *error) {
    mx_status status = m->ids.count ? MX_OK : render_message(c, m, error);
    if (!status && c->count == c->capacity) {
        int capacity = c->capacity ? c->capacity * 2 : 16;
        mx_message *messages = realloc(c->messages, (size_t)capacity * sizeof *messages);
        if (messages) {
            c->messages = messages;
            c->capacity = capacity;
        } else {
            status = no_memory(error);
        }
    }
    if (status) {
        mx_message_free(m);
        return status;
    }
    c->messages[c->count++] = *m;
    *m = (mx_message){0};
    return MX_OK;
}

mx_status mx_conversation_add_user(mx_conversation *c, const char *text, size_t size, mx_error *error) {
    mx_message m = {.role = MX_ROLE_USER};
    if (!mx_bytes_add_lossy(&m.text, text, size)) return no_memory(error);
    return mx_conversation_take(c, &m, error);
}

mx_status mx_conversation_add_developer(mx_conversation *c, const char *text, size_t size, mx_error *error) {
    mx_message m = {.role = MX_ROLE_DEVELOPER};
    if (!mx_bytes_add_lossy(&m.text, text, size)) return no_memory(error);
    return mx_conversation_take(c, &m, error);
}

static mx_status add_assistant(mx_conversation *c, mx_message *m, const char *text, size_t size, mx_error *error) {
    m->role = MX_ROLE_ASSISTANT;
    if (!m->channel || !mx_bytes_add_lossy(&m->text, text, size)) {
        mx_message_free(m);
        return no_memory(error);
    }
    return mx_conversation_take(c, m, error);
}

mx_status mx_conversation_add_assistant(mx_conversation *c, const char *channel, const char *text, size_t size,
                                        mx_error *error) {
    mx_message m = {.channel = strdup(channel)};
    return add_assistant(c, &m, text, size, error);
}

mx_status mx_conversation_add_call(mx_conversation *c, const char *tool, const char *arguments, size_t size,
                                   mx_error *error) {
    mx_message m = {.content_type = strdup("<|constrain|>json")};
    if (m.content_type && asprintf(&m.recipient, "functions.%s", tool) >= 0)
        m.channel = strdup("commentary");
    else
        m.recipient = NULL;
    return add_assistant(c, &m, arguments, size, error);
}

mx_status mx_conversation_add_tool_result(mx_conversation *c, const char *tool, const char *text, size_t size,
                                          mx_error *error) {
    mx_message m = {.role = MX_ROLE_TOOL};
    m.channel = strdup("commentary");
    m.recipient = strdup("assistant");
    bool built_in = strcmp(tool, "python") == 0 || strncmp(tool, "browser.", 8) == 0;
    if (asprintf(&m.name, "%s%s", built_in ? "" : "functions.", tool) < 0) m.name = NULL;
    if (!m.name || !m.channel || !m.recipient || !mx_bytes_add_lossy(&m.text, text, size)) {
        mx_message_free(&m);
        return no_memory(error);
    }
    return mx_conversation_take(c, &m, error);
}

/* Whether ids are one message just as the format wants it, so that they can stand in later prompts:
 * [<|start|>assistant] ... [<|channel|> ...] [<|constrain|> ...] <|message|> text END. */
static bool well_formed(const mx_conversation *c, const int32_t *ids, int64_t count, bool opened) {
    mx_harmony_ids s = mx_tokenizer_harmony_ids(c->tokenizer);
    int64_t i = 0;
    if (!opened) {
        if (count < c->opening.count || memcmp(ids, c->opening.data, (size_t)c->opening.count * sizeof *ids) != 0) {
            return false;
        }
        i = c->opening.count;
    }
    int channels = 0, constrains = 0;
    for (; i < count && ids[i] != s.message; i++) {
        if (ids[i] == s.channel) {
            channels++;
        } else if (ids[i] == s.constrain) {
            constrains++;
        } else if (mx_is_special(c->tokenizer, ids[i])) {
            return false;
        }
    }
    if (i == count || channels != 1 || constrains > 1) return false;
    for (i++; i < count - 1; i++) {
        if (mx_is_special(c->tokenizer, ids[i])) return false;
    }
    return i == count - 1 && (ids[i] == s.end || ids[i] == s.return_ || ids[i] == s.call);
}

static bool is_channel(const char *channel) {
    return channel &&
           (strcmp(channel, "analysis") == 0 || strcmp(channel, "commentary") == 0 || strcmp(channel, "final") == 0);
}

/* Keeps the model's own tokens; <|return|>, which ends a turn, becomes <|end|>. */
static bool splice(const mx_conversation *c, const int32_t *ids, int64_t count, bool opened, mx_ids *out) {
    mx_harmony_ids s = mx_tokenizer_harmony_ids(c->tokenizer);
    if (opened && !mx_ids_add_all(out, c->opening.data, c->opening.count)) return false;
    if (!mx_ids_add_all(out, ids, count)) return false;
    if (out->data[out->count - 1] == s.return_) out->data[out->count - 1] = s.end;
    return true;
}

static bool copy_header(mx_message *m, const mx_harmony_message *from) {
    const char *channel = is_channel(from->channel) ? from->channel : from->recipient ? "commentary" : "final";
    if (!(m->channel = strdup(channel))) return false;
    if (from->recipient && *from->recipient) {
        if (!(m->recipient = strndup(from->recipient, strcspn(from->recipient, "< \t\r\n")))) return false;
    }
    if (from->content_type && !(m->content_type = strdup(from->content_type))) return false;
    return true;
}

static mx_status add_answer_message(mx_conversation *c, const mx_turn *turn, int index, mx_error *error) {
    const mx_harmony_parser *parser = mx_turn_parser(turn);
    const mx_turn_result *result = mx_turn_get_result(turn);
    const mx_harmony_message *from = mx_harmony_message_at(parser, index);
    if (from->role && strcmp(from->role, "assistant") != 0) return MX_OK; /* it ended the turn */
    bool is_last = index == mx_harmony_message_count(parser) - 1;
    bool whole =
        !is_last || result->finish == MX_TURN_TOOL_CALLS || (result->finish == MX_TURN_STOP && !result->stop_string);
    const char *text = from->content.data;
    size_t size = from->content.size;
    if (is_last && result->stop_string) text = mx_turn_cut_text(turn, &size);
    if (!whole && (from->recipient || (from->channel && strcmp(from->channel, "analysis") == 0) || size == 0)) {
        return MX_OK;
    }
    mx_message m = {.role = MX_ROLE_ASSISTANT};
    bool done = copy_header(&m, from) && mx_bytes_add(&m.text, text, size);
    int64_t begin = index ? mx_harmony_message_at(parser, index - 1)->last_id : 0;
    int64_t count = from->last_id - begin;
    if (done && whole && is_channel(from->channel) && begin >= 0 && count > 0 &&
        from->last_id <= result->ids.count && well_formed(c, result->ids.data + begin, count, index == 0)) {
        done = splice(c, result->ids.data + begin, count, index == 0, &m.ids);
    }
    if (!done) {
        mx_message_free(&m);
        return no_memory(error);
    }
    return mx_conversation_take(c, &m, error);
}

mx_status mx_conversation_add_answer(mx_conversation *c, const mx_turn *turn, mx_error *error) {
    const mx_harmony_parser *parser = mx_turn_parser(turn);
    int before = c->count;
    for (int i = 0; parser && i < mx_harmony_message_count(parser); i++) {
        mx_status status = add_answer_message(c, turn, i, error);
        if (status) {
            mx_conversation_truncate(c, before);
            return status;
        }
    }
    return MX_OK;
}

static bool copy_string(char **out, const char *from) {
    return !from || (*out = strdup(from)) != NULL;
}

mx_status mx_conversation_add_copies(mx_conversation *c, const mx_conversation *from, mx_error *error) {
    const int before = c->count;
    for (int i = 0; i < from->count; i++) {
        const mx_message *m = &from->messages[i];
        mx_message copy = {.role = m->role};
        mx_status status = MX_OK;
        if (copy_string(&copy.name, m->name) && copy_string(&copy.channel, m->channel) &&
            copy_string(&copy.recipient, m->recipient) && copy_string(&copy.content_type, m->content_type) &&
            mx_bytes_add(&copy.text, m->text.data, m->text.size) &&
            mx_ids_add_all(&copy.ids, m->ids.data, m->ids.count)) {
            status = mx_conversation_take(c, &copy, error);
        } else {
            mx_message_free(&copy);
            status = no_memory(error);
        }
        if (status) {
            mx_conversation_truncate(c, before);
            return status;
        }
    }
    return MX_OK;
}

/* ---- prompts ----------------------------------------------------------------------------------------------------- */
static bool is_on(const mx_message *m, const char *channel) {
    return m->role == MX_ROLE_ASSISTANT && m->channel && strcmp(m->channel, channel) == 0;
}

bool mx_message_is_thinking(const mx_message *m) {
    return is_on(m, "analysis") && !m->recipient;
}

bool mx_message_is_final(const mx_message *m) {
    return is_on(m, "final") && !m->recipient;
}

/* Index of the last final answer, -1: none. Analysis before it has done its work. */
static int last_final(const mx_conversation *c) {
    int i = c->count - 1;
    while (i >= 0 && !mx_message_is_final(&c->messages[i])) i--;
    return i;
}

mx_status mx_conversation_prompt(mx_conversation *c, mx_ids *out, mx_error *error) {
    mx_status status = mx_conversation_update_head(c, error);
    if (status) return status;
    int kept_from = c->keep_thinking ? 0 : last_final(c);
    bool added = mx_ids_add_all(out, c->head.data, c->head.count);
    for (int i = 0; i < c->count && added; i++) {
        const mx_message *m = &c->messages[i];
        if (i < kept_from && mx_message_is_thinking(m)) continue;
        added = mx_ids_add_all(out, m->ids.data, m->ids.count);
    }
    added = added && mx_ids_add_all(out, c->opening.data, c->opening.count);
    return added ? MX_OK : no_memory(error);
}

/* Index of the second message of the user, 0 when there is none. */
static int second_turn(const mx_conversation *c) {
    bool first = true;
    for (int i = 0; i < c->count; i++) {
        if (c->messages[i].role != MX_ROLE_USER) continue;
        if (!first) return i;
        first = false;
    }
    return 0;
}

int mx_conversation_compact(mx_conversation *c, int64_t tokens, mx_error *error) {
    for (int dropped = 0;; dropped++) {
        mx_ids ids = {0};
        mx_status status = mx_conversation_prompt(c, &ids, error);
        int64_t count = ids.count;
        mx_ids_free(&ids);
        int next = second_turn(c);
        if (status) return -1;
        if (count <= tokens || next == 0) return dropped;
        for (int i = 0; i < next; i++) mx_message_free(&c->messages[i]);
        memmove(c->messages, c->messages + next, (size_t)(c->count - next) * sizeof *c->messages);
        c->count -= next;
    }
}
