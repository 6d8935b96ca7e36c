#include "api/write.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

void mx_api_put(mx_api_writer *w, const char *text) {
    w->failed |= !mx_bytes_add_string(w->out, text);
}

void mx_api_put_string(mx_api_writer *w, const void *text, size_t size) {
    w->failed |= !mx_bytes_add_json(w->out, text ? text : "", size);
}

/* -inf is no JSON; OpenAI writes -9999 for it. */
static void put_logprob(mx_api_writer *w, float logprob) {
    mx_api_putf(w, "%.9g", isfinite(logprob) ? (double)logprob : -9999.0);
}

/* A token as a string; what is no text of its own as OpenAI writes it, `prefix` and "\xe2\x80" for each byte. */
static void put_token(mx_api_writer *w, int32_t token, const char *prefix) {
    size_t size;
    const char *bytes = mx_token_bytes(w->settings->tokenizer, token, &size);
    if (mx_is_utf8(bytes, size)) {
        mx_api_put_string(w, bytes, size);
        return;
    }
    mx_api_putf(w, "\"%s", prefix);
    for (size_t i = 0; i < size; i++) mx_api_putf(w, "\\\\x%02x", (unsigned char)bytes[i]);
    mx_api_put(w, "\"");
}

/* ---- logprobs of chats ------------------------------------------------------------------------------------------- */
static void put_chat_token(mx_api_writer *w, int32_t token, float logprob) {
    size_t size;
    const char *bytes = mx_token_bytes(w->settings->tokenizer, token, &size);
    mx_api_put(w, "{\"token\":");
    put_token(w, token, "");
    mx_api_put(w, ",\"logprob\":");
    put_logprob(w, logprob);
    mx_api_put(w, ",\"bytes\":[");
    for (size_t i = 0; i < size; i++) mx_api_putf(w, i ? ",%d" : "%d", (unsigned char)bytes[i]);
    mx_api_put(w, "]");
}

/* [{"token", "logprob", "bytes", "top_logprobs": [...]}] of what is content. */
void mx_api_put_chat_tokens(mx_api_writer *w, const mx_api_tokens *t) {
    bool any = false;
    mx_api_put(w, "[");
    for (int i = 0; i < t->count; i++) {
        const mx_api_token *token = &t->item[i];
        if (!token->shown) continue;
        if (any) mx_api_put(w, ",");
        any = true;
        put_chat_token(w, token->token, token->logprob);
        mx_api_put(w, ",\"top_logprobs\":[");
        for (int k = 0; k < token->top_count; k++) {
            const mx_alternative *top = &t->top[token->top_first + k];
            if (k) mx_api_put(w, ",");
            put_chat_token(w, top->token, top->logprob);
            mx_api_put(w, "}");
        }
        mx_api_put(w, "]}");
    }
    mx_api_put(w, "]");
}

/* ---- logprobs of completions ------------------------------------------------------------------------------------- */
/* Characters that begin in the token's bytes. */
static int64_t characters(const mx_tokenizer *tokenizer, int32_t token) {
    size_t size;
    const char *bytes = mx_token_bytes(tokenizer, token, &size);
    int64_t count = 0;
    for (size_t i = 0; i < size; i++) count += ((unsigned char)bytes[i] & 0xC0) != 0x80;
    return count;
}

/* The tokens of the echoed prompt and of the answer, one list. */
typedef struct token_walk {
    const mx_api_tokens *lists[2];
    int list, index;
} token_walk;

static const mx_api_token *next_token(token_walk *walk, const mx_api_tokens **from, bool *first) {
    for (; walk->list < 2; walk->list++, walk->index = 0) {
        const mx_api_tokens *t = walk->lists[walk->list];
        while (t && walk->index < t->count) {
            const mx_api_token *token = &t->item[walk->index++];
            *first = walk->list == 0 && walk->index == 1; /* nothing is before it, so it has no logprob */
            *from = t;
            if (walk->list == 0 || token->shown) return token;
        }
    }
    return NULL;
}

static void put_token_map(mx_api_writer *w, const mx_api_tokens *from, const mx_api_token *token) {
    bool has_it = false;
    mx_api_put(w, "{");
    for (int k = 0; k < token->top_count; k++) {
        const mx_alternative *top = &from->top[token->top_first + k];
        has_it |= top->token == token->token;
        if (k) mx_api_put(w, ",");
        put_token(w, top->token, "bytes:");
        mx_api_put(w, ":");
        put_logprob(w, top->logprob);
    }
    if (!has_it) {
        if (token->top_count) mx_api_put(w, ",");
        put_token(w, token->token, "bytes:");
        mx_api_put(w, ":");
        put_logprob(w, token->logprob);
    }
    mx_api_put(w, "}");
}

void mx_api_put_completion_tokens(mx_api_writer *w, const mx_api_tokens *prompt, const mx_api_tokens *answer,
                                  int64_t *begin) {
    static const char *const names[] = {"{\"tokens\":[", "],\"token_logprobs\":[", "],\"top_logprobs\":[",
                                        "],\"text_offset\":["};
    for (int column = 0; column < 4; column++) {
        token_walk walk = {{prompt, answer}, 0, 0};
        const mx_api_tokens *from;
        const mx_api_token *token;
        bool first, any = false;
        int64_t offset = *begin;
        mx_api_put(w, names[column]);
        while ((token = next_token(&walk, &from, &first))) {
            if (any) mx_api_put(w, ",");
            any = true;
            if (column == 0)
                put_token(w, token->token, "bytes:");
            else if (column == 3)
                mx_api_putf(w, "%lld", (long long)offset);
            else if (first)
                mx_api_put(w, "null");
            else if (column == 1)
                put_logprob(w, token->logprob);
            else
                put_token_map(w, from, token);
            offset += characters(w->settings->tokenizer, token->token);
        }
        if (column == 3) *begin = offset;
    }
    mx_api_put(w, "]}");
}

/* ---- answers ----------------------------------------------------------------------------------------------------- */
/* The object in a JSON string, appended; false: it is none (or memory is out). */
static bool unwrap(mx_bytes *out, const char *text, size_t size) {
    mx_json_document *string, *object;
    if (!size || memchr(" \t\r\n\"", *text, 5) == NULL || mx_json_parse("arguments", text, size, &string, NULL))
        return false;
    const mx_json *v = mx_json_root(string);
    bool found = v->type == MX_JSON_STRING && !mx_json_parse("arguments", v->text, v->size, &object, NULL);
    if (found) {
        found = mx_json_root(object)->type == MX_JSON_OBJECT && mx_bytes_add(out, v->text, v->size);
        mx_json_free(object);
    }
    mx_json_free(string);
    return found;
}

bool mx_api_add_arguments(mx_bytes *out, const char *arguments, size_t size) {
    if (size == 0) return mx_bytes_add_string(out, "{}");
    return unwrap(out, arguments, size) || mx_bytes_add(out, arguments, size);
}

void mx_api_call_id(const mx_api_writer *w, const mx_api_answer *a, int index, char out[static 80]) {
    snprintf(out, 80, "call_%.28s_%d_%d", w->id, a->index, index);
}

void mx_api_put_tool_calls(mx_api_writer *w, const mx_api_answer *a) {
    const mx_turn_result *r = mx_turn_get_result(a->turn);
    mx_bytes arguments = {0};
    mx_api_put(w, "[");
    for (int i = 0; i < r->tool_call_count; i++) {
        const mx_tool_call *call = &r->tool_calls[i];
        char id[80];
        mx_api_call_id(w, a, i, id);
        mx_api_putf(w, "%s{\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":", i ? "," : "", id);
        const char *name = mx_api_client_name(w->request, call->name);
        mx_api_put_string(w, name, strlen(name));
        mx_api_put(w, ",\"arguments\":");
        mx_bytes_clear(&arguments);
        w->failed |= !(call->incomplete ? mx_bytes_add(&arguments, call->arguments.data, call->arguments.size)
                                        : mx_api_add_arguments(&arguments, call->arguments.data, call->arguments.size));
        mx_api_put_string(w, arguments.data, arguments.size);
        mx_api_put(w, call->incomplete ? "},\"incomplete\":true}" : "}}");
    }
    mx_api_put(w, "]");
    mx_bytes_free(&arguments);
}

bool mx_api_add_prompt(const mx_api_writer *w, int index, mx_bytes *out) {
    const mx_ids *prompt = &w->request->prompts[index];
    for (int64_t i = 0; i < prompt->count; i++) {
        size_t size;
        const char *bytes = mx_token_bytes(w->settings->tokenizer, prompt->data[i], &size);
        if (!mx_bytes_add(out, bytes, size)) return false;
    }
    return true;
}

/* Text behind the prompt's, where that is echoed. */
void mx_api_put_text(mx_api_writer *w, const mx_api_answer *a) {
    const mx_bytes *text = &mx_turn_get_result(a->turn)->text;
    mx_bytes all = {0};
    if (!w->request->echo) {
        mx_api_put_string(w, text->data, text->size);
        return;
    }
    w->failed |= !mx_api_add_prompt(w, a->prompt, &all) || !mx_bytes_add(&all, text->data, text->size);
    mx_api_put_string(w, all.data, all.size);
    mx_bytes_free(&all);
}

/* `learned`: the answer to the same prompt that has the prompt's logprobs. */
void mx_api_put_logprobs(mx_api_writer *w, const mx_api_answer *a, const mx_api_answer *learned) {
    if (w->request->logprobs < 0) {
        mx_api_put(w, "null");
    } else if (w->request->chat) {
        mx_api_put(w, "{\"content\":");
        mx_api_put_chat_tokens(w, &a->tokens);
        mx_api_put(w, ",\"refusal\":null}");
    } else {
        int64_t begin = 0;
        mx_api_put_completion_tokens(w, w->request->echo ? &learned->prompt_tokens : NULL, &a->tokens, &begin);
    }
}

static void put_message(mx_api_writer *w, const mx_api_answer *a) {
    const mx_turn_result *r = mx_turn_get_result(a->turn);
    mx_api_put(w, "\"message\":{\"role\":\"assistant\",\"content\":");
    if (r->text.size || !r->tool_call_count)
        mx_api_put_string(w, r->text.data, r->text.size);
    else
        mx_api_put(w, "null");
    if (r->thinking.size) {
        mx_api_put(w, ",\"reasoning_content\":");
        mx_api_put_string(w, r->thinking.data, r->thinking.size);
    }
    if (r->tool_call_count) {
        mx_api_put(w, ",\"tool_calls\":");
        mx_api_put_tool_calls(w, a);
    }
    mx_api_put(w, ",\"refusal\":null}");
}

/* {"index", "message" | "text", "logprobs", "finish_reason"} */
static void put_choice(mx_api_writer *w, int index, const mx_api_answer *a, const mx_api_answer *learned) {
    mx_api_putf(w, "{\"index\":%d,", index);
    if (w->request->chat) {
        put_message(w, a);
    } else {
        mx_api_put(w, "\"text\":");
        mx_api_put_text(w, a);
    }
    mx_api_put(w, ",\"logprobs\":");
    mx_api_put_logprobs(w, a, learned);
    mx_api_putf(w, ",\"finish_reason\":\"%s\"}", mx_api_answer_finish(a, true));
}

/* ---- best of ----------------------------------------------------------------------------------------------------- */
static int by_mean(const void *x, const void *y) {
    const mx_api_answer *a = *(const mx_api_answer *const *)x, *b = *(const mx_api_answer *const *)y;
    const double p = mx_api_answer_mean(a), q = mx_api_answer_mean(b);
    if (p != q) return p < q ? 1 : -1;
    return (a->index > b->index) - (a->index < b->index);
}

/* The answers to return: n for each prompt, all in order or the best first. NULL: no memory. */
const mx_api_answer **mx_api_choose(const mx_api_request *r, const mx_api_answer *answers) {
    const mx_api_answer **all = malloc(sizeof *all * (size_t)r->prompt_count * (size_t)r->best_of);
    if (!all) return NULL;
    for (int p = 0; p < r->prompt_count; p++) {
        const mx_api_answer **chosen = all + (size_t)p * (size_t)r->n;
        for (int k = 0; k < r->best_of; k++) chosen[k] = answers + (size_t)p * (size_t)r->best_of + k;
        if (r->best_of > r->n) qsort(chosen, (size_t)r->best_of, sizeof *chosen, by_mean);
    }
    return all;
}

/* ---- records ----------------------------------------------------------------------------------------------------- */
/* Prompts count once, however many answers they got; answers count all that were computed. */
void mx_api_put_usage(mx_api_writer *w, const mx_api_answer *answers) {
    const mx_api_request *r = w->request;
    int64_t prompt = 0, cached = 0, generated = 0, thinking = 0;
    for (int i = 0; i < r->prompt_count * r->best_of; i++) {
        const mx_api_answer *a = &answers[i];
        if (a->index == 0) {
            prompt += r->prompts[a->prompt].count;
            cached += a->usage.cached_tokens;
        }
        generated += mx_api_answer_count(a);
        thinking += a->thinking_tokens;
    }
    mx_api_putf(
        w,
        "\"usage\":{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"total_tokens\":%lld,"
        "\"prompt_tokens_details\":{\"cached_tokens\":%lld},\"completion_tokens_details\":{\"reasoning_tokens\":%lld}}",
        (long long)prompt, (long long)generated, (long long)(prompt + generated), (long long)cached,
        (long long)thinking);
}

/* {"id", "object", "created", "model", "choices", "usage"} */
void mx_api_put_body(mx_api_writer *w, const mx_api_answer *answers, const mx_api_answer **chosen) {
    const mx_api_request *r = w->request;
    mx_api_putf(w, "{\"id\":\"%s-%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", r->chat ? "chatcmpl" : "cmpl",
                w->id, r->chat ? "chat.completion" : "text_completion", (long long)w->created);
    mx_api_put_string(w, w->settings->model, strlen(w->settings->model));
    if (w->fingerprint) mx_api_putf(w, ",\"system_fingerprint\":\"%s\"", w->fingerprint);
    mx_api_put(w, ",\"choices\":[");
    for (int i = 0; i < r->prompt_count * r->n; i++) {
        if (i) mx_api_put(w, ",");
        put_choice(w, i, chosen[i], &answers[(size_t)chosen[i]->prompt * (size_t)r->best_of]);
    }
    mx_api_put(w, "],");
    mx_api_put_usage(w, answers);
    mx_api_put(w, "}");
}

void mx_api_fingerprint(const mx_api_settings *settings, char out[static 20]) {
    const mx_api_setup *setup = &settings->setup;
    uint64_t hash = XXH3_64bits(settings->model, strlen(settings->model));
    hash = XXH3_64bits_withSeed(setup->tier, strlen(setup->tier), hash);
    hash = XXH3_64bits_withSeed(setup->precision, strlen(setup->precision), hash);
    hash = XXH3_64bits_withSeed(&setup->context, sizeof setup->context, hash);
    snprintf(out, 20, "fp_%012llx", (unsigned long long)(hash >> 16));
}

/* {"message", "type", "param", "code"} */
void mx_api_put_problem(mx_api_writer *w, const mx_api_problem *p) {
    mx_api_put(w, "{\"message\":");
    mx_api_put_string(w, p->text, strlen(p->text));
    mx_api_putf(w, ",\"type\":\"%s\",\"param\":", p->http_status < 500 ? "invalid_request_error" : "server_error");
    if (*p->param)
        mx_api_put_string(w, p->param, strlen(p->param));
    else
        mx_api_put(w, "null");
    mx_api_putf(w, ",\"code\":\"%s\"}", p->code);
}
