#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/rules.h"
#include "server/protocol.h"
#include "server/responses.h"

/* The body of POST /v1/responses to a request. */
typedef struct reader {
    const mx_server_parts *parts;
    const mx_json *body;
    mx_api_request *out;
    mx_responses_state *state;
    mx_error *error;
    mx_responses_items items;
    const mx_json *tools, *format, *effort; /* NULL: nothing is said */
    const char *verbosity;
    bool parallel, truncate;
    int64_t max_output_tokens;
} reader;

static mx_fields fields_of(reader *r, const mx_json *object, const char *prefix) {
    return (mx_fields){object, prefix, &r->out->problem};
}

static bool ok(const reader *r, mx_status status) {
    return !status && !r->out->problem.http_status;
}

static mx_status blame(reader *r, mx_status status, const mx_error *found, const char *param) {
    return mx_blame(status, found, param, &r->out->problem, r->error);
}

/* ---- plain fields ------------------------------------------------------------------------------------------------ */
/* What changes the answer and is not there must not be passed over. */
static bool read_unsupported(reader *r) {
    static const char *const refused[][2] = {{"conversation", "input, instructions and previous_response_id"},
                                             {"prompt", "input, instructions and previous_response_id"},
                                             {"response_format", "text.format"}};
    const mx_fields f = fields_of(r, r->body, "");
    bool background = false;
    const char *truncation = "disabled";
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (mx_field(r->body, refused[i][0]))
            return mx_api_wrong(f.problem, refused[i][0], "unsupported_value", "%s is not supported: use %s",
                                refused[i][0], refused[i][1]);
    if (!mx_read_bool(&f, "background", &background) || !mx_read_word(&f, "truncation", &truncation)) return false;
    if (background)
        return mx_api_wrong(f.problem, "background", "unsupported_value",
                            "background: true is not supported: use \"stream\": true");
    r->truncate = strcmp(truncation, "auto") == 0;
    return r->truncate || strcmp(truncation, "disabled") == 0 ||
           mx_api_wrong(f.problem, "truncation", "invalid_value",
                        "truncation: expected \"disabled\" or \"auto\", found \"%.40s\"", truncation);
}

static bool read_sampling(reader *r) {
    const mx_fields f = fields_of(r, r->body, "");
    mx_sampling *s = &r->out->sampling;
    int64_t seed = -1;
    if (!mx_read_float(&f, "temperature", 0, 10, &s->temperature) || !mx_read_float(&f, "top_p", 0, 1, &s->top_p) ||
        !mx_read_float(&f, "min_p", 0, 1, &s->min_p) || !mx_read_int(&f, "top_k", 0, INT32_MAX, &s->top_k) ||
        !mx_read_float(&f, "repetition_penalty", 0.01, 10, &s->repetition_penalty) ||
        !mx_read_float(&f, "presence_penalty", -10, 10, &s->presence_penalty) ||
        !mx_read_float(&f, "frequency_penalty", -10, 10, &s->frequency_penalty) ||
        !mx_read_whole(&f, "seed", 0, INT64_MAX, &seed))
        return false;
    if (seed >= 0) s->seed = (uint64_t)seed;
    if (!mx_read_whole(&f, "max_output_tokens", 1, INT32_MAX, &r->max_output_tokens)) return false;
    if (r->max_output_tokens) r->out->max_tokens = r->max_output_tokens;
    return true;
}

/* "include": what is known of it is logprobs; reasoning is told in the open, not encrypted. */
static bool read_logprobs(reader *r) {
    const mx_fields f = fields_of(r, r->body, "");
    const mx_json *include;
    int top = -1;
    if (!mx_read_typed(&f, "include", MX_JSON_ARRAY, &include) ||
        !mx_read_int(&f, "top_logprobs", 0, MX_TOP_LOGPROBS, &top))
        return false;
    bool wanted = top > 0;
    for (const mx_json *v = include ? include->child : NULL; v; v = v->next)
        wanted |= mx_json_is_string(v, "message.output_text.logprobs");
    if (wanted) r->out->logprobs = top < 0 ? 0 : top;
    return true;
}

static size_t characters(const char *text, size_t size) {
    size_t count = 0;
    for (size_t i = 0; i < size; i++) count += ((unsigned char)text[i] & 0xC0) != 0x80;
    return count;
}

/* As many and as long as OpenAI has them, in characters. */
static bool read_metadata(reader *r) {
    enum { PAIRS = 16, KEY = 64, VALUE = 512 };
    const mx_fields f = fields_of(r, r->body, "");
    const mx_json *metadata;
    if (!mx_read_typed(&f, "metadata", MX_JSON_OBJECT, &metadata)) return false;
    bool good = !metadata || metadata->count <= PAIRS;
    for (const mx_json *v = metadata ? metadata->child : NULL; v && good; v = v->next)
        good = characters(v->key, v->key_size) <= KEY && v->type == MX_JSON_STRING &&
               characters(v->text, v->size) <= VALUE;
    return good || mx_api_wrong(f.problem, "metadata", "invalid_value",
                                "metadata: expected at most %d pairs of a key of at most %d characters and a string of "
                                "at most %d",
                                PAIRS, KEY, VALUE);
}

/* Names that a client gives, which are only repeated. */
static bool read_names(reader *r) {
    enum { MOST = 512 };
    static const char *const names[] = {"user", "prompt_cache_key", "safety_identifier"};
    const mx_fields f = fields_of(r, r->body, "");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const mx_json *v;
        if (!mx_read_typed(&f, names[i], MX_JSON_STRING, &v)) return false;
        if (v && characters(v->text, v->size) > MOST)
            return mx_api_wrong(f.problem, names[i], "invalid_value", "%s: expected at most %d characters", names[i],
                                MOST);
    }
    int64_t calls = 0;
    return mx_read_whole(&f, "max_tool_calls", 1, INT32_MAX, &calls);
}

/* "reasoning": {"effort"}, or a chat's "reasoning_effort", which goes before it. */
static bool read_effort(reader *r) {
    static const char *const names[] = {"reasoning.effort", "reasoning_effort"};
    const mx_fields f = fields_of(r, r->body, "");
    const mx_json *reasoning;
    if (!mx_read_typed(&f, "reasoning", MX_JSON_OBJECT, &reasoning)) return false;
    const mx_json *said[] = {mx_field(reasoning, "effort"), mx_field(r->body, "reasoning_effort")};
    for (int i = 0; i < 2; i++) {
        if (!said[i]) continue;
        r->effort = said[i];
        if (!mx_api_effort(r->effort))
            return mx_api_wrong(f.problem, names[i], "invalid_value", "%s: expected \"low\", \"medium\" or \"high\"",
                                names[i]);
    }
    return true;
}

/* "text": {"format", "verbosity"} */
static bool read_text(reader *r) {
    const mx_fields f = fields_of(r, r->body, "");
    const mx_json *text;
    r->verbosity = "medium";
    if (!mx_read_typed(&f, "text", MX_JSON_OBJECT, &text)) return false;
    const mx_fields within = fields_of(r, text, "text.");
    if (!mx_read_typed(&within, "format", MX_JSON_OBJECT, &r->format) ||
        !mx_read_word(&within, "verbosity", &r->verbosity))
        return false;
    static const char *const known[] = {"low", "medium", "high"};
    for (int i = 0; i < 3; i++)
        if (strcmp(r->verbosity, known[i]) == 0) return true;
    return mx_api_wrong(f.problem, "text.verbosity", "invalid_value",
                        "text.verbosity: expected \"low\", \"medium\" or \"high\"");
}

static bool read_plain(reader *r) {
    const mx_fields f = fields_of(r, r->body, "");
    r->state->store = r->parallel = true;
    return mx_read_bool(&f, "stream", &r->out->stream) && mx_read_bool(&f, "store", &r->state->store) &&
           mx_read_bool(&f, "parallel_tool_calls", &r->parallel) && read_metadata(r) && read_names(r) &&
           read_effort(r) && read_text(r) && mx_read_typed(&f, "tools", MX_JSON_ARRAY, &r->tools);
}

/* ---- rules ------------------------------------------------------------------------------------------------------- */
static mx_status read_schema(reader *r) {
    const mx_json *schema = mx_field(r->format, "schema");
    const mx_fields f = fields_of(r, r->format, "text.format.");
    bool strict = false;
    if (!schema || !mx_read_bool(&f, "strict", &strict)) {
        if (!schema)
            mx_api_wrong(f.problem, "text.format.schema", "missing_required_parameter", "text.format.schema: missing");
        return MX_OK;
    }
    return mx_api_rules_schema(r->out->rules, schema, strict, "text.format.schema", f.problem, r->error);
}

/* {"type": "grammar", "syntax": "regex", "definition": "..."}, the two perhaps within "grammar", or {"type": "regex",
 * "pattern": "..."} */
static mx_status read_regex(reader *r, bool grammar) {
    const mx_json *within = mx_field(r->format, "grammar");
    if (!within || within->type != MX_JSON_OBJECT) within = r->format;
    const mx_json *pattern = mx_field(within, grammar ? "definition" : "pattern");
    if (!pattern || pattern->type != MX_JSON_STRING ||
        (grammar && !mx_json_is_string(mx_field(within, "syntax"), "regex"))) {
        mx_api_wrong(&r->out->problem, "text.format", "invalid_value",
                     "text.format: expected {\"type\": \"grammar\", \"syntax\": \"regex\", \"definition\": \"...\"}");
        return MX_OK;
    }
    return mx_api_rules_regex(r->out->rules, pattern->text, pattern->size, "text.format", &r->out->problem, r->error);
}

static mx_status read_format(reader *r) {
    const mx_json *type = mx_field(r->format, "type");
    if (!r->format || mx_json_is_string(type, "text")) return MX_OK;
    mx_status status = mx_need_rules(r->out, r->error);
    if (status) return status;
    if (mx_json_is_string(type, "json_schema")) return read_schema(r);
    if (mx_json_is_string(type, "json_object")) return mx_api_rules_json(r->out->rules, r->error);
    if (mx_json_is_string(type, "grammar")) return read_regex(r, true);
    if (mx_json_is_string(type, "regex")) return read_regex(r, false);
    mx_api_wrong(&r->out->problem, "text.format.type", "unsupported_value",
                 "text.format.type: expected \"text\", \"json_object\", \"json_schema\" or \"grammar\"");
    return MX_OK;
}

/* The tools of the settings; *out NULL: the client brings its own, or there are none. */
static mx_status read_own_tools(const reader *r, mx_json_document **out) {
    const mx_bytes *own = mx_conversation_tools(r->parts->settings.conversation);
    *out = NULL;
    return own->size && !r->tools ? mx_json_parse("tools", own->data, own->size, out, r->error) : MX_OK;
}

static mx_status read_rules(reader *r) {
    mx_json_document *own;
    mx_status status = read_own_tools(r, &own);
    if (status) return status;
    const mx_json *tools = own ? mx_json_root(own) : NULL;
    status = mx_api_read_rules(r->body, tools, true, &r->out->rules, &r->out->problem, r->error);
    const bool no_tools = !r->out->rules;
    if (ok(r, status)) status = read_format(r);
    if (ok(r, status) && no_tools && r->out->rules) r->out->rules->choice = MX_TOOLS_NONE;
    mx_json_free(own);
    return status;
}

/* ---- the chat ---------------------------------------------------------------------------------------------------- */
static mx_status add_instructions(reader *r, mx_api_chat *chat) {
    const mx_json *instructions;
    const mx_fields f = fields_of(r, r->body, "");
    mx_error found;
    if (!mx_read_typed(&f, "instructions", MX_JSON_STRING, &instructions) || !instructions) return MX_OK;
    return blame(r, mx_api_chat_add_instructions(chat, instructions->text, instructions->size, &found), &found,
                 "instructions");
}

/* The prompt of the items from `first` on. */
static mx_status make_prompt(reader *r, int first) {
    const mx_api_reader api = {.settings = &r->parts->settings, .replay = r->parts->replay, .dated = r->parts->dates};
    mx_api_chat *chat = NULL;
    mx_error found;
    mx_status status = mx_api_begin_chat(&api, r->body, &chat, &r->out->problem, r->error);
    if (ok(r, status)) status = add_instructions(r, chat);
    if (ok(r, status)) status = mx_responses_add_items(&r->items, first, chat, &r->out->problem, r->error);
    if (ok(r, status)) status = blame(r, mx_api_chat_finish(chat, r->out, &found), &found, "input");
    mx_api_chat_free(chat);
    return status;
}

static void forget_prompt(mx_api_request *out) {
    for (int i = 0; i < out->prompt_count; i++) mx_ids_free(&out->prompts[i]);
    free(out->prompts);
    for (int i = 0; i < out->name_count; i++) {
        free(out->names[i].harmony);
        free(out->names[i].client);
    }
    free(out->names);
    out->prompts = NULL;
    out->names = NULL;
    out->prompt_count = out->name_count = 0;
}

/* "truncation": "auto": the conversation begins with the earliest message of the user with which prompt and answer fit
 * into the context; with the last one where none does. */
static mx_status drop_oldest(reader *r) {
    const int64_t context = r->parts->info.context;
    int64_t answer = r->out->max_tokens ? r->out->max_tokens : 1024;
    if (answer > context / 4) answer = context / 4;
    if (r->out->prompts->count + answer <= context) return MX_OK;
    int *begins = calloc((size_t)r->items.count + 1, sizeof *begins), count = 0;
    if (!begins) return mx_fail(r->error, MX_NO_MEMORY, "no memory for the input");
    for (int i = 1; i < r->items.count; i++)
        if (mx_responses_is_user(&r->items.item[i])) begins[count++] = i;
    mx_status status = MX_OK;
    int low = 0, high = count - 1, made = -1; /* begins[high] fits, or is the last one */
    while (count && ok(r, status) && (low < high || made != high)) {
        made = low < high ? (low + high) / 2 : high;
        forget_prompt(r->out);
        status = make_prompt(r, begins[made]);
        if (!ok(r, status) || made == high) break;
        if (r->out->prompts->count + answer <= context)
            high = made;
        else
            low = made + 1;
    }
    free(begins);
    return status;
}

/* ---- what the response repeats ----------------------------------------------------------------------------------- */
/* A stream has it three times, and is cut off where so much waits for its client that it seems to read no more. */
enum { ECHO_BYTES = 1 << 20 };

/* A member of the body as it stands, or what is said where it is not there. */
static void echo(mx_api_writer *w, const mx_json *body, const char *name, const char *otherwise) {
    const mx_json *v = mx_field(body, name);
    mx_api_putf(w, "\"%s\":", name);
    if (v)
        w->failed |= !mx_json_write(w->out, v);
    else
        mx_api_put(w, otherwise);
    mx_api_put(w, ",");
}

static void echo_tools(mx_api_writer *w, const mx_json *tools) {
    bool any = false;
    mx_api_put(w, "\"tools\":[");
    for (const mx_json *tool = tools ? tools->child : NULL; tool; tool = tool->next) {
        if (!mx_json_is_string(mx_field(tool, "type"), "function")) continue;
        if (any) mx_api_put(w, ",");
        any = true;
        w->failed |= !mx_json_write(w->out, tool);
    }
    mx_api_put(w, "],");
}

static void echo_text(mx_api_writer *w, const reader *r) {
    mx_api_put(w, "\"text\":{\"format\":");
    if (r->format)
        w->failed |= !mx_json_write(w->out, r->format);
    else
        mx_api_put(w, "{\"type\":\"text\"}");
    mx_api_putf(w, ",\"verbosity\":\"%s\"},", r->verbosity);
}

static mx_status write_echo(reader *r) {
    static const struct {
        const char *name, *otherwise;
    } members[] = {{"instructions", "null"},         {"max_output_tokens", "null"},
                   {"max_tool_calls", "null"},       {"metadata", "{}"},
                   {"previous_response_id", "null"}, {"prompt_cache_key", "null"},
                   {"safety_identifier", "null"},    {"tool_choice", "\"auto\""},
                   {"truncation", "\"disabled\""},   {"user", "null"}};
    mx_api_writer w = {.out = &r->state->echo};
    const char *effort =
        r->effort ? r->effort->text : mx_conversation_get(r->parts->settings.conversation, MX_SETTING_REASONING);
    for (size_t i = 0; i < sizeof members / sizeof *members; i++)
        echo(&w, r->body, members[i].name, members[i].otherwise);
    echo_tools(&w, r->tools);
    echo_text(&w, r);
    mx_api_put(&w, "\"reasoning\":{\"effort\":");
    mx_api_put_string(&w, effort, strlen(effort));
    mx_api_put(&w, ",\"summary\":null},\"background\":false,");
    mx_api_putf(&w, "\"parallel_tool_calls\":%s,\"store\":%s,", r->parallel ? "true" : "false",
                r->state->store ? "true" : "false");
    mx_api_putf(&w, "\"service_tier\":\"default\",\"temperature\":%.6g,\"top_p\":%.6g,\"top_logprobs\":%d,",
                (double)r->out->sampling.temperature, (double)r->out->sampling.top_p,
                r->out->logprobs > 0 ? r->out->logprobs : 0);
    if (w.failed) return mx_fail(r->error, MX_NO_MEMORY, "no memory for a response");
    if (w.out->size > ECHO_BYTES)
        mx_api_wrong(&r->out->problem, NULL, "invalid_value",
                     "the response would repeat %zu bytes of the request (instructions, tools, tool_choice, "
                     "text.format): at most %d are possible",
                     w.out->size, ECHO_BYTES);
    return MX_OK;
}

/* ---- all of it --------------------------------------------------------------------------------------------------- */
static bool find_previous(reader *r) {
    const mx_fields f = fields_of(r, r->body, "");
    const char *id = NULL;
    if (!mx_read_word(&f, "previous_response_id", &id)) return false;
    if (!id) return true;
    r->state->previous = mx_response_store_find(r->parts->responses, id);
    if (r->state->previous) return true;
    mx_api_wrong(f.problem, "previous_response_id", "previous_response_not_found",
                 "Previous response with id '%.80s' not found: it was not stored, or is no longer kept. Send the "
                 "conversation as input instead",
                 id);
    f.problem->http_status = 404;
    return false;
}

static mx_status read_all(reader *r, const char *id) {
    const mx_json *input = mx_field(r->body, "input");
    if (!read_unsupported(r) || !read_plain(r) || !read_sampling(r) || !read_logprobs(r) || !find_previous(r))
        return MX_OK;
    if (!input && !r->state->previous) {
        mx_api_wrong(&r->out->problem, "input", "missing_required_parameter", "input: missing");
        return MX_OK;
    }
    mx_status status = mx_responses_read_input(input, id, r->state, &r->items, &r->out->problem, r->error);
    if (ok(r, status)) status = make_prompt(r, 0);
    if (ok(r, status) && r->truncate) status = drop_oldest(r);
    if (ok(r, status)) status = read_rules(r);
    return ok(r, status) ? write_echo(r) : status;
}

mx_status mx_responses_read(const mx_server_parts *parts, const char *id, const mx_json *body, mx_api_request *out,
                            mx_responses_state *state, mx_error *error) {
    reader r = {.parts = parts, .body = body, .out = out, .state = state, .error = error};
    state->responses = parts->responses;
    mx_status status = mx_begin_request(parts, id, out, error);
    out->prompts_field = "input";
    if (!status) status = read_all(&r, id);
    mx_responses_items_free(&r.items);
    return status;
}
