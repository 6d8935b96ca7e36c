#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/log.h"
#include "server/protocol.h"
#include "server/responses.h"

static mx_status no_memory(mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "no memory for the input");
}

/* ---- what is told of a wrong item -------------------------------------------------------------------------------- */
typedef struct place {
    mx_api_problem *problem;
    mx_error *error;
    int index; /* as mx_responses_item has it */
} place;

typedef struct item_path {
    char text[80];
} item_path;

static item_path path(const place *p, const char *member) {
    item_path out;
    if (p->index < 0)
        snprintf(out.text, sizeof out.text, "previous_response_id");
    else
        snprintf(out.text, sizeof out.text, "input[%d]%s%s", p->index, *member ? "." : "", member);
    return out;
}

static mx_status wrong(const place *p, const char *member, const char *code, const char *what) {
    const item_path at = path(p, member);
    mx_api_wrong(p->problem, at.text, code, "%s: %s", at.text, what);
    return MX_OK;
}

static bool ok(const place *p, mx_status status) {
    return !status && !p->problem->http_status;
}

/* ---- the request's items, as they are kept ----------------------------------------------------------------------- */
/* The type of an item; messages need not say it. */
static const char *type_of(const mx_json *item) {
    const mx_json *type = mx_field(item, "type");
    if (type) return type->type == MX_JSON_STRING ? type->text : "";
    return mx_field(item, "role") ? "message" : "";
}

static const char *id_prefix(const char *type) {
    return strcmp(type, "function_call") == 0          ? "fc"
           : strcmp(type, "function_call_output") == 0 ? "fco"
           : strcmp(type, "reasoning") == 0            ? "rs"
                                                       : "msg";
}

/* A message's content, always as parts. */
static bool keep_content(mx_bytes *out, const mx_json *item, const mx_json *content) {
    if (content->type != MX_JSON_STRING) return mx_json_write(out, content);
    const bool assistant = mx_json_is_string(mx_json_get(item, "role"), "assistant");
    return mx_bytes_addf(out, "[{\"type\":\"%s_text\",\"text\":", assistant ? "output" : "input") &&
           mx_bytes_add_json(out, content->text, content->size) && mx_bytes_add_string(out, "}]");
}

/* The item with type and id. */
static bool keep_item(mx_bytes *out, const mx_json *item, const char *id, int index) {
    const char *type = type_of(item);
    const mx_json *own = mx_field(item, "id");
    bool fits = mx_bytes_add_string(out, "{\"id\":");
    fits = fits && (own ? mx_json_write(out, own) : mx_bytes_addf(out, "\"%s_in_%s_%d\"", id_prefix(type), id, index));
    fits = fits && mx_bytes_addf(out, ",\"type\":") && mx_bytes_add_json(out, type, strlen(type));
    for (const mx_json *v = item->child; v && fits; v = v->next) {
        if (strcmp(v->key, "id") == 0 || strcmp(v->key, "type") == 0) continue;
        fits = mx_bytes_add_string(out, ",") && mx_bytes_add_json(out, v->key, v->key_size) &&
               mx_bytes_add_string(out, ":");
        const bool content = strcmp(v->key, "content") == 0 && strcmp(type, "message") == 0;
        fits = fits && (content ? keep_content(out, item, v) : mx_json_write(out, v));
    }
    return fits && mx_bytes_add_string(out, "}");
}

/* The 32 digits of the answer that an item of ours is of; NULL: it is nobody's. */
static const char *answer_of(const mx_json *item, char out[static 33]) {
    enum { DIGITS = 32 };
    const mx_json *id = mx_field(item, "id");
    const char *digits = id && id->type == MX_JSON_STRING ? strchr(id->text, '_') : NULL;
    if (!digits || strspn(++digits, "0123456789abcdef") != DIGITS || digits[DIGITS] != '_') return NULL;
    memcpy(out, digits, DIGITS);
    out[DIGITS] = 0;
    return out;
}

/* {"type": "item_reference", "id"}: an item of a response that is kept. */
static mx_status keep_reference(const place *p, mx_responses_state *state, const mx_json *item) {
    char answer[33], name[48];
    const mx_json *id = mx_field(item, "id");
    mx_stored_response *r = NULL;
    mx_json_document *document = NULL;
    mx_status status = MX_OK;
    bool found = false;
    if (answer_of(item, answer)) {
        snprintf(name, sizeof name, "resp_%s", answer);
        r = mx_response_store_find(state->responses, name);
    }
    if (r) status = mx_json_parse("a response", r->body.data, r->body.size, &document, p->error);
    const mx_json *output = document ? mx_json_get(mx_json_root(document), "output") : NULL;
    for (const mx_json *v = output ? output->child : NULL; v && !found; v = v->next) {
        found = mx_json_is_string(mx_json_get(v, "id"), id->text);
        if (found && !mx_json_write(&state->input, v)) status = no_memory(p->error);
    }
    mx_json_free(document);
    mx_stored_response_release(state->responses, r);
    if (status || found) return status;
    return wrong(p, "id", "item_not_found",
                 "there is no such item, or it is no longer kept: send the item itself instead of a reference");
}

static mx_status keep_text(mx_bytes *out, const mx_json *text, const char *id, mx_error *error) {
    return mx_bytes_addf(out,
                         "[{\"id\":\"msg_in_%s_0\",\"type\":\"message\",\"role\":\"user\",\"content\":"
                         "[{\"type\":\"input_text\",\"text\":",
                         id) &&
                   mx_bytes_add_json(out, text->text, text->size) && mx_bytes_add_string(out, "}]}]")
               ? MX_OK
               : no_memory(error);
}

static mx_status keep_input(const mx_json *input, const char *id, mx_responses_state *state, mx_api_problem *problem,
                            mx_error *error) {
    place p = {problem, error, 0};
    if (!input) return mx_bytes_add_string(&state->input, "[]") ? MX_OK : no_memory(error);
    if (input->type == MX_JSON_STRING) return keep_text(&state->input, input, id, error);
    if (input->type != MX_JSON_ARRAY) {
        mx_api_wrong(problem, "input", "invalid_type", "input: expected a string or an array of items");
        return MX_OK;
    }
    mx_status status = mx_bytes_add_string(&state->input, "[") ? MX_OK : no_memory(error);
    for (const mx_json *v = input->child; v && ok(&p, status); v = v->next, p.index++) {
        if (p.index && !mx_bytes_add_string(&state->input, ",")) return no_memory(error);
        if (v->type != MX_JSON_OBJECT) return wrong(&p, "", "invalid_type", "expected an object");
        if (strcmp(type_of(v), "item_reference") == 0)
            status = keep_reference(&p, state, v);
        else if (!keep_item(&state->input, v, id, p.index))
            status = no_memory(error);
    }
    return status || mx_bytes_add_string(&state->input, "]") ? status : no_memory(error);
}

/* ---- all items --------------------------------------------------------------------------------------------------- */
void mx_responses_items_free(mx_responses_items *items) {
    for (int i = 0; i < items->document_count; i++) mx_json_free(items->documents[i]);
    free(items->documents);
    free(items->item);
    *items = (mx_responses_items){0};
}

/* Parses `text` and adds the items of the array it is, or of its member "output". */
static mx_status add_items(mx_responses_items *items, const mx_bytes *text, bool output, bool numbered,
                           mx_error *error) {
    mx_json_document **documents =
        realloc(items->documents, (size_t)(items->document_count + 1) * sizeof *items->documents);
    if (!documents) return no_memory(error);
    items->documents = documents;
    mx_status status = mx_json_parse("input", text->data, text->size, &documents[items->document_count], error);
    if (status) return status;
    const mx_json *array = mx_json_root(documents[items->document_count++]);
    if (output) array = mx_json_get(array, "output");
    if (!array) return MX_OK;
    const int wanted = items->count + (int)array->count;
    if (wanted > items->capacity) {
        mx_responses_item *more = realloc(items->item, (size_t)wanted * 2 * sizeof *more);
        if (!more) return no_memory(error);
        items->item = more;
        items->capacity = 2 * wanted;
    }
    int index = 0;
    for (const mx_json *v = array->child; v; v = v->next, index++)
        items->item[items->count++] = (mx_responses_item){v, numbered ? index : -1};
    return MX_OK;
}

/* Of the responses that led here, the first one first. */
static mx_status add_previous(mx_responses_items *items, const mx_stored_response *last, mx_error *error) {
    int count = 0;
    for (const mx_stored_response *r = last; r; r = r->previous) count++;
    if (count == 0) return MX_OK;
    const mx_stored_response **line = calloc((size_t)count, sizeof *line);
    if (!line) return no_memory(error);
    int i = count;
    for (const mx_stored_response *r = last; r; r = r->previous) line[--i] = r;
    mx_status status = MX_OK;
    for (i = 0; i < count && !status; i++) {
        status = add_items(items, &line[i]->input, false, false, error);
        if (!status) status = add_items(items, &line[i]->body, true, false, error);
    }
    free(line);
    return status;
}

mx_status mx_responses_read_input(const mx_json *input, const char *id, mx_responses_state *state,
                                  mx_responses_items *items, mx_api_problem *problem, mx_error *error) {
    mx_status status = keep_input(input, id, state, problem, error);
    if (status || problem->http_status) return status;
    status = add_previous(items, state->previous, error);
    return status ? status : add_items(items, &state->input, false, true, error);
}

/* ---- texts ------------------------------------------------------------------------------------------------------- */
/* The text of one part, or NULL. */
static const mx_json *part_text(const mx_json *part) {
    static const char *const types[] = {"input_text", "output_text", "text", "reasoning_text", "summary_text"};
    const mx_json *type = mx_json_get(part, "type"), *text = mx_json_get(part, "text");
    if (mx_json_is_string(type, "refusal")) return mx_json_get(part, "refusal");
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (mx_json_is_string(type, types[i])) return text;
    return NULL;
}

static mx_status wrong_part(const place *p, const char *member, int index, const mx_json *part) {
    const mx_json *type = mx_json_get(part, "type");
    char what[160], at[40];
    snprintf(at, sizeof at, "%.20s[%d]", member, index);
    if (type && type->type == MX_JSON_STRING)
        snprintf(what, sizeof what,
                 "\"%.40s\" is not supported: the model reads text only, as {\"type\": "
                 "\"input_text\", \"text\": ...}",
                 type->text);
    else
        snprintf(what, sizeof what, "expected {\"type\": \"input_text\", \"text\": ...}");
    return wrong(p, at, "unsupported_value", what);
}

/* A string or parts one behind the other; appended to `out`. */
static mx_status add_text(const place *p, const mx_json *item, const char *member, mx_bytes *out) {
    const mx_json *content = mx_field(item, member);
    if (!content) return wrong(p, member, "missing_required_parameter", "missing");
    if (content->type == MX_JSON_STRING)
        return mx_bytes_add(out, content->text, content->size) ? MX_OK : no_memory(p->error);
    if (content->type != MX_JSON_ARRAY)
        return wrong(p, member, "invalid_type", "expected a string or an array of parts");
    int index = 0;
    for (const mx_json *part = content->child; part; part = part->next, index++) {
        const mx_json *text = part_text(part);
        if (!text || text->type != MX_JSON_STRING) return wrong_part(p, member, index, part);
        if (!mx_bytes_add(out, text->text, text->size)) return no_memory(p->error);
    }
    return MX_OK;
}

/* ---- what the assistant said ------------------------------------------------------------------------------------- */
/* Items that belong together: an answer's reasoning, texts and calls. */
typedef struct said {
    char answer[33]; /* whose they are; empty: not known */
    bool any, has_text;
    mx_bytes thinking, text;
    mx_api_call *calls;
    int count, capacity;
} said;

static void free_said(said *s) {
    mx_bytes_free(&s->thinking);
    mx_bytes_free(&s->text);
    free(s->calls);
}

static mx_status tell_said(const place *p, said *s, mx_api_chat *chat) {
    if (!s->any) return MX_OK;
    const mx_api_said all = {.id = *s->answer ? s->answer : NULL,
                             .thinking = s->thinking.data ? s->thinking.data : "",
                             .thinking_size = s->thinking.size,
                             .text = s->text.data ? s->text.data : "",
                             .text_size = s->text.size,
                             .has_text = s->has_text,
                             .calls = s->calls,
                             .call_count = s->count};
    mx_error found;
    mx_status status = mx_api_chat_add_said(chat, &all, &found);
    status = mx_blame(status, &found, "input", p->problem, p->error);
    s->any = s->has_text = false;
    s->count = 0;
    *s->answer = 0;
    mx_bytes_clear(&s->thinking);
    mx_bytes_clear(&s->text);
    return status;
}

/* Makes room for one more item; what it cannot belong to is told before. `begins`: within one answer of unknown name
 * such an item comes before all that is there. */
static mx_status join_said(const place *p, const mx_json *item, said *s, bool begins, mx_api_chat *chat) {
    char answer[33] = "";
    mx_status status = MX_OK;
    answer_of(item, answer);
    const bool same = *answer && strcmp(answer, s->answer) == 0;
    const bool other = *answer && *s->answer && !same;
    if (other || (begins && !same)) status = tell_said(p, s, chat);
    s->any = true;
    if (*answer) memcpy(s->answer, answer, sizeof answer);
    return status;
}

static mx_status begin_part(const place *p, mx_bytes *text) {
    return !text->size || mx_bytes_add_string(text, "\n\n") ? MX_OK : no_memory(p->error);
}

static mx_status add_reasoning(const place *p, const mx_json *item, said *s, mx_api_chat *chat) {
    if (!mx_field(item, "content")) return MX_OK; /* encrypted, or a summary: it is not the model's own thinking */
    mx_status status = join_said(p, item, s, s->has_text || s->count, chat);
    if (ok(p, status)) status = begin_part(p, &s->thinking);
    return ok(p, status) ? add_text(p, item, "content", &s->thinking) : status;
}

static mx_status add_answer(const place *p, const mx_json *item, said *s, mx_api_chat *chat) {
    mx_status status = join_said(p, item, s, s->count, chat);
    if (ok(p, status)) status = begin_part(p, &s->text);
    s->has_text = true;
    return ok(p, status) ? add_text(p, item, "content", &s->text) : status;
}

static mx_status add_call(const place *p, const mx_json *item, said *s, mx_api_chat *chat) {
    const char *call = mx_field_word(item, "call_id"), *name = mx_field_word(item, "name");
    const mx_json *arguments = mx_field(item, "arguments");
    if (!name) return wrong(p, "name", "invalid_value", "expected the name of a function");
    if (!call) return wrong(p, "call_id", "invalid_value", "expected the id of the call");
    if (!arguments || arguments->type != MX_JSON_STRING)
        return wrong(p, "arguments", "invalid_type", "expected JSON in a string");
    if (mx_json_is_string(mx_field(item, "status"), "incomplete")) return MX_OK; /* it was cut off and never made */
    mx_status status = join_said(p, item, s, false, chat);
    if (!ok(p, status)) return status;
    if (s->count == s->capacity) {
        mx_api_call *more = realloc(s->calls, (size_t)(2 * s->capacity + 4) * sizeof *more);
        if (!more) return no_memory(p->error);
        s->calls = more;
        s->capacity = 2 * s->capacity + 4;
    }
    s->calls[s->count++] = (mx_api_call){call, name, arguments->text, arguments->size};
    return MX_OK;
}

/* ---- items of others --------------------------------------------------------------------------------------------- */
static mx_status add_output(const place *p, const mx_json *item, mx_api_chat *chat, mx_bytes *text) {
    const char *call = mx_field_word(item, "call_id");
    mx_error found;
    if (!call) return wrong(p, "call_id", "invalid_value", "expected the id of a call");
    mx_status status = add_text(p, item, "output", text);
    if (!ok(p, status)) return status;
    status = mx_api_chat_add_result(chat, call, NULL, text->data ? text->data : "", text->size, &found);
    if (status == MX_NOT_FOUND) return wrong(p, "call_id", "invalid_value", "no call before has this id");
    return mx_blame(status, &found, path(p, "output").text, p->problem, p->error);
}

static mx_status add_message(const place *p, const mx_json *item, mx_api_chat *chat, mx_bytes *text) {
    const mx_json *role = mx_field(item, "role");
    const bool user = mx_json_is_string(role, "user");
    mx_error found;
    if (!user && !mx_json_is_string(role, "system") && !mx_json_is_string(role, "developer"))
        return wrong(p, "role", "invalid_value", "expected user, assistant, system or developer");
    mx_status status = add_text(p, item, "content", text);
    if (!ok(p, status)) return status;
    const char *data = text->data ? text->data : "";
    status = user ? mx_api_chat_add_user(chat, data, text->size, &found)
                  : mx_api_chat_add_instructions(chat, data, text->size, &found);
    return mx_blame(status, &found, path(p, "content").text, p->problem, p->error);
}

/* ---- tools of others --------------------------------------------------------------------------------------------- */
/* Calls of tools that are no functions, by hash of their call_id: what they returned goes with them. */
typedef struct left_out {
    uint64_t *hash; /* [size], a power of two; 0: nobody's */
    size_t size, count;
} left_out;

static uint64_t *slot(const left_out *l, uint64_t hash) {
    size_t i = hash & (l->size - 1);
    while (l->hash[i] && l->hash[i] != hash) i = (i + 1) & (l->size - 1);
    return &l->hash[i];
}

static uint64_t hash_of(const mx_json *item) {
    const mx_json *id = mx_field(item, "call_id");
    return id && id->type == MX_JSON_STRING ? XXH3_64bits(id->text, id->size) | 1 : 0;
}

static bool is_left_out(const left_out *l, const mx_json *item) {
    const uint64_t hash = hash_of(item);
    return hash && l->size && *slot(l, hash);
}

static mx_status leave_out(const place *p, const mx_json *item, const char *type, left_out *l) {
    static atomic_bool warned;
    const uint64_t hash = hash_of(item);
    if (!atomic_exchange(&warned, true))
        mx_log(MX_LOG_WARNING,
               "items of the type \"%.40s\" are left out of conversations: there are no tools here but functions (this "
               "is said once)",
               type);
    if (!hash) return MX_OK;
    if (2 * l->count >= l->size) {
        const left_out old = *l;
        const size_t size = old.size ? 2 * old.size : 64;
        uint64_t *wider = calloc(size, sizeof *wider);
        if (!wider) return no_memory(p->error);
        *l = (left_out){wider, size, old.count};
        for (size_t i = 0; i < old.size; i++)
            if (old.hash[i]) *slot(l, old.hash[i]) = old.hash[i];
        free(old.hash);
    }
    uint64_t *at = slot(l, hash);
    l->count += !*at;
    *at = hash;
    return MX_OK;
}

/* "web_search_call", "custom_tool_call_output", "mcp_list_tools" ... */
static bool is_of_tool(const char *type) {
    static const char *const ends[] = {"_call", "_call_output"};
    const size_t size = strlen(type);
    if (strcmp(type, "function_call_output") == 0) return false;
    for (int i = 0; i < 2; i++) {
        const size_t n = strlen(ends[i]);
        if (size > n && strcmp(type + size - n, ends[i]) == 0) return true;
    }
    return strncmp(type, "mcp_", 4) == 0;
}

static mx_status unknown_item(const place *p, const char *type) {
    char what[200];
    snprintf(what, sizeof what,
             "\"%.40s\" is not supported: expected message, function_call, function_call_output, reasoning or "
             "item_reference",
             type);
    return wrong(p, "type", "unsupported_value", what);
}

static mx_status add_item(const place *p, const mx_json *item, mx_api_chat *chat, said *s, left_out *l,
                          mx_bytes *text) {
    const char *type = type_of(item);
    const bool message = strcmp(type, "message") == 0, result = strcmp(type, "function_call_output") == 0;
    if (strcmp(type, "reasoning") == 0) return add_reasoning(p, item, s, chat);
    if (strcmp(type, "function_call") == 0) return add_call(p, item, s, chat);
    if (message && mx_json_is_string(mx_field(item, "role"), "assistant")) return add_answer(p, item, s, chat);
    if (is_of_tool(type)) return leave_out(p, item, type, l);
    if (result && is_left_out(l, item)) return MX_OK;
    mx_status status = tell_said(p, s, chat);
    if (!ok(p, status)) return status;
    mx_bytes_clear(text);
    if (message) return add_message(p, item, chat, text);
    return result ? add_output(p, item, chat, text) : unknown_item(p, type);
}

mx_status mx_responses_add_items(const mx_responses_items *items, int first, mx_api_chat *chat, mx_api_problem *problem,
                                 mx_error *error) {
    place p = {problem, error, -1};
    said s = {0};
    left_out l = {0};
    mx_bytes text = {0};
    mx_status status = MX_OK;
    for (int i = first; i < items->count && ok(&p, status); i++) {
        p.index = items->item[i].index;
        status = add_item(&p, items->item[i].json, chat, &s, &l, &text);
    }
    if (ok(&p, status)) status = tell_said(&p, &s, chat);
    free_said(&s);
    free(l.hash);
    mx_bytes_free(&text);
    return status;
}

bool mx_responses_is_user(const mx_responses_item *item) {
    return strcmp(type_of(item->json), "message") == 0 && mx_json_is_string(mx_field(item->json, "role"), "user");
}
