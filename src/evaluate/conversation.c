#include "evaluate/conversation.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "api/chat.h"

static const char FINAL[] = "<|channel|>final<|message|>";

/* The member "messages" of a text that is a JSON object and has it; NULL: it is a text. */
static const mx_json *find_messages(const mx_evaluate_text *text, mx_json_document **document) {
    size_t i = 0;
    while (i < text->size && isspace((unsigned char)text->text[i])) i++;
    if (i == text->size || text->text[i] != '{') return NULL;
    if (mx_json_parse(text->name, text->text, text->size, document, NULL)) return NULL;
    return mx_json_get(mx_json_root(*document), "messages");
}

/* All messages but the last, which is *last. `copy` [count - 1] gets their nodes. */
static mx_json all_but_last(const mx_json *messages, mx_json *copy, const mx_json **last) {
    mx_json before = *messages;
    const mx_json *m = messages->child;
    before.count--;
    before.child = before.count ? copy : NULL;
    for (uint32_t i = 0; i < before.count; i++, m = m->next) {
        copy[i] = *m;
        copy[i].next = i + 1 < before.count ? &copy[i + 1] : NULL;
    }
    *last = m;
    return before;
}

static mx_status render_messages(const mx_api_reader *reader, const mx_evaluate_text *text, const mx_json *fields,
                                 const mx_json *messages, mx_ids *out, const mx_json **answer, mx_error *error) {
    const mx_json *last = NULL;
    mx_api_problem problem = {0};
    if (messages->type != MX_JSON_ARRAY || messages->count < 2)
        return mx_fail(error, MX_INVALID_FILE, "%s: \"messages\": expected an array of two messages or more",
                       text->name);
    mx_json *copy = calloc(messages->count, sizeof *copy);
    if (!copy) return mx_fail(error, MX_NO_MEMORY, "no memory for a conversation");
    const mx_json before = all_but_last(messages, copy, &last);
    *answer = mx_json_get(last, "content");
    mx_status status = MX_OK;
    if (!mx_json_is_string(mx_json_get(last, "role"), "assistant") || !*answer || (*answer)->type != MX_JSON_STRING)
        status = mx_fail(error, MX_INVALID_FILE,
                         "%s: the last message is the one that is scored: expected role \"assistant\" and a string as "
                         "\"content\"",
                         text->name);
    if (!status) status = mx_api_read_chat(reader, fields, &before, out, &problem, error);
    if (!status && problem.http_status) status = mx_fail(error, MX_INVALID_FILE, "%s: %s", text->name, problem.text);
    free(copy);
    return status;
}

static mx_status render(const mx_api_reader *reader, const mx_evaluate_text *text, mx_ids *out, int64_t *begins,
                        mx_error *error) {
    const mx_tokenizer *t = reader->settings->tokenizer;
    mx_json_document *document = NULL;
    const mx_json *messages = find_messages(text, &document), *answer = NULL;
    mx_api_problem problem = {0};
    mx_status status;
    if (messages)
        status = render_messages(reader, text, mx_json_root(document), messages, out, &answer, error);
    else
        status = mx_api_read_user(reader, MX_HARMONY_PROMPT, strlen(MX_HARMONY_PROMPT), out, &problem, error);
    if (!status && problem.http_status) status = mx_fail(error, MX_INVALID_FILE, "%s: %s", text->name, problem.text);
    if (!status) status = mx_encode_special(t, FINAL, strlen(FINAL), out, error);
    *begins = out->count;
    if (!status)
        status = mx_encode(t, answer ? answer->text : text->text, answer ? answer->size : text->size, out, error);
    mx_json_free(document);
    return status;
}

mx_status mx_evaluate_conversation(const mx_tokenizer *tokenizer, const mx_evaluate_text *text, mx_ids *out,
                                   int64_t *answer, mx_error *error) {
    mx_conversation *conversation = NULL;
    mx_status status = mx_conversation_create(tokenizer, &conversation, error);
    if (status == MX_UNSUPPORTED)
        return mx_fail(error, status,
                       "protocol harmony: this tokenizer has no tokens for the chat format: take another protocol");
    if (!status) status = mx_conversation_set(conversation, MX_SETTING_DATE, "", error);
    const mx_api_settings settings = {.tokenizer = tokenizer, .conversation = conversation};
    const mx_api_reader reader = {.settings = &settings};
    if (!status) status = render(&reader, text, out, answer, error);
    mx_conversation_free(conversation);
    return status;
}
