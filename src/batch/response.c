#include "batch/response.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* What everything here writes with: a failure stays, so that only the end asks. */
typedef struct writer {
    mx_bytes *out;
    const mx_batch_settings *settings;
    const mx_batch_request *request;
    int64_t number;
    uint64_t hash;
    bool failed;
} writer;

static void put(writer *w, const char *text) {
    w->failed |= !mx_bytes_add_string(w->out, text);
}
static void put_string(writer *w, const void *text, size_t size) {
    w->failed |= !mx_bytes_add_json(w->out, text ? text : "", size);
}
#define putf(w, ...) ((w)->failed |= !mx_bytes_addf((w)->out, __VA_ARGS__))

/* -inf is no JSON; OpenAI writes -9999 for it. */
static void put_logprob(writer *w, float logprob) {
    putf(w, "%.9g", isfinite(logprob) ? (double)logprob : -9999.0);
}

/* A token as a string; what is no text of its own as OpenAI writes it, `prefix` and "\xe2\x80" for each byte. */
static void put_token(writer *w, int32_t token, const char *prefix) {
    size_t size;
    const char *bytes = mx_token_bytes(w->settings->tokenizer, token, &size);
    if (mx_is_utf8(bytes, size)) {
        put_string(w, bytes, size);
        return;
    }
    putf(w, "\"%s", prefix);
    for (size_t i = 0; i < size; i++) putf(w, "\\\\x%02x", (unsigned char)bytes[i]);
    put(w, "\"");
}

/* ---- logprobs of chats ------------------------------------------------------------------------------------------- */
static void put_chat_token(writer *w, int32_t token, float logprob) {
    size_t size;
    const char *bytes = mx_token_bytes(w->settings->tokenizer, token, &size);
    put(w, "{\"token\":");
    put_token(w, token, "");
    put(w, ",\"logprob\":");
    put_logprob(w, logprob);
    put(w, ",\"bytes\":[");
    for (size_t i = 0; i < size; i++) putf(w, i ? ",%d" : "%d", (unsigned char)bytes[i]);
    put(w, "]");
}

/* [{"token", "logprob", "bytes", "top_logprobs": [...]}] of what is content. */
static void put_chat_tokens(writer *w, const mx_batch_tokens *t) {
    bool any = false;
    put(w, "[");
    for (int i = 0; i < t->count; i++) {
        const mx_batch_token *token = &t->item[i];
        if (!token->shown) continue;
        if (any) put(w, ",");
        any = true;
        put_chat_token(w, token->token, token->logprob);
        put(w, ",\"top_logprobs\":[");
        for (int k = 0; k < token->top_count; k++) {
            const mx_alternative *top = &t->top[token->top_first + k];
            if (k) put(w, ",");
            put_chat_token(w, top->token, top->logprob);
            put(w, "}");
        }
        put(w, "]}");
    }
    put(w, "]");
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
    const mx_batch_tokens *lists[2];
    int list, index;
} token_walk;

static const mx_batch_token *next_token(token_walk *walk, const mx_batch_tokens **from, bool *first) {
    for (; walk->list < 2; walk->list++, walk->index = 0) {
        const mx_batch_tokens *t = walk->lists[walk->list];
        while (t && walk->index < t->count) {
            const mx_batch_token *token = &t->item[walk->index++];
            *first = walk->list == 0 && walk->index == 1; /* nothing is before it, so it has no logprob */
            *from = t;
            if (walk->list == 0 || token->shown) return token;
        }
    }
    return NULL;
}

static void put_token_map(writer *w, const mx_batch_tokens *from, const mx_batch_token *token) {
    bool has_it = false;
    put(w, "{");
    for (int k = 0; k < token->top_count; k++) {
        const mx_alternative *top = &from->top[token->top_first + k];
        has_it |= top->token == token->token;
        if (k) put(w, ",");
        put_token(w, top->token, "bytes:");
        put(w, ":");
        put_logprob(w, top->logprob);
    }
    if (!has_it) {
        if (token->top_count) put(w, ",");
        put_token(w, token->token, "bytes:");
        put(w, ":");
        put_logprob(w, token->logprob);
    }
    put(w, "}");
}

/* {"tokens", "token_logprobs", "top_logprobs", "text_offset"}, the last in characters. */
static void put_completion_logprobs(writer *w, const mx_batch_tokens *prompt, const mx_batch_tokens *answer) {
    static const char *const names[] = {"{\"tokens\":[", "],\"token_logprobs\":[", "],\"top_logprobs\":[",
                                        "],\"text_offset\":["};
    for (int column = 0; column < 4; column++) {
        token_walk walk = {{prompt, answer}, 0, 0};
        const mx_batch_tokens *from;
        const mx_batch_token *token;
        bool first, any = false;
        int64_t offset = 0;
        put(w, names[column]);
        while ((token = next_token(&walk, &from, &first))) {
            if (any) put(w, ",");
            any = true;
            if (column == 0)
                put_token(w, token->token, "bytes:");
            else if (column == 3)
                putf(w, "%lld", (long long)offset);
            else if (first)
                put(w, "null");
            else if (column == 1)
                put_logprob(w, token->logprob);
            else
                put_token_map(w, from, token);
            offset += characters(w->settings->tokenizer, token->token);
        }
    }
    put(w, "]}");
}

/* ---- answers ----------------------------------------------------------------------------------------------------- */
static void put_tool_calls(writer *w, const mx_batch_answer *a) {
    const mx_turn_result *r = mx_turn_get_result(a->turn);
    put(w, "[");
    for (int i = 0; i < r->tool_call_count; i++) {
        const mx_tool_call *call = &r->tool_calls[i];
        putf(w, "%s{\"id\":\"call_%lld_%d_%d_%08x\",\"type\":\"function\",\"function\":{\"name\":", i ? "," : "",
             (long long)w->number, a->index, i, (unsigned)w->hash);
        put_string(w, call->name, strlen(call->name));
        put(w, ",\"arguments\":");
        put_string(w, call->arguments.data, call->arguments.size);
        put(w, call->incomplete ? "},\"incomplete\":true}" : "}}");
    }
    put(w, "]");
}

/* Text behind the prompt's, where that is echoed. */
static void put_text(writer *w, const mx_batch_answer *a) {
    const mx_bytes *text = &mx_turn_get_result(a->turn)->text;
    mx_bytes all = {0};
    if (!w->request->echo) {
        put_string(w, text->data, text->size);
        return;
    }
    const mx_ids *prompt = &w->request->prompts[a->prompt];
    for (int64_t i = 0; i < prompt->count; i++) {
        size_t size;
        const char *bytes = mx_token_bytes(w->settings->tokenizer, prompt->data[i], &size);
        w->failed |= !mx_bytes_add(&all, bytes, size);
    }
    w->failed |= !mx_bytes_add(&all, text->data, text->size);
    put_string(w, all.data, all.size);
    mx_bytes_free(&all);
}

/* `learned`: the answer to the same prompt that has the prompt's logprobs. */
static void put_logprobs(writer *w, const mx_batch_answer *a, const mx_batch_answer *learned) {
    if (w->request->logprobs < 0) {
        put(w, "null");
    } else if (w->request->chat) {
        put(w, "{\"content\":");
        put_chat_tokens(w, &a->tokens);
        put(w, ",\"refusal\":null}");
    } else {
        put_completion_logprobs(w, w->request->echo ? &learned->prompt_tokens : NULL, &a->tokens);
    }
}

static void put_message(writer *w, const mx_batch_answer *a) {
    const mx_turn_result *r = mx_turn_get_result(a->turn);
    put(w, "\"message\":{\"role\":\"assistant\",\"content\":");
    if (r->text.size || !r->tool_call_count)
        put_string(w, r->text.data, r->text.size);
    else
        put(w, "null");
    if (r->thinking.size) {
        put(w, ",\"reasoning_content\":");
        put_string(w, r->thinking.data, r->thinking.size);
    }
    if (r->tool_call_count) {
        put(w, ",\"tool_calls\":");
        put_tool_calls(w, a);
    }
    put(w, ",\"refusal\":null}");
}

/* {"index", "message" | "text", "logprobs", "finish_reason"} */
static void put_choice(writer *w, int index, const mx_batch_answer *a, const mx_batch_answer *learned) {
    putf(w, "{\"index\":%d,", index);
    if (w->request->chat) {
        put_message(w, a);
    } else {
        put(w, "\"text\":");
        put_text(w, a);
    }
    put(w, ",\"logprobs\":");
    put_logprobs(w, a, learned);
    putf(w, ",\"finish_reason\":\"%s\"}", mx_batch_answer_finish(a, true));
}

/* The short form's {"text", "thinking", "tool_calls", "finish_reason", "seed"[, "logprobs"]}, without braces. */
static void put_short(writer *w, const mx_batch_answer *a, const mx_batch_answer *learned) {
    const mx_turn_result *r = mx_turn_get_result(a->turn);
    put(w, "\"text\":");
    put_text(w, a);
    if (w->request->chat) {
        put(w, ",\"thinking\":");
        put_string(w, r->thinking.data, r->thinking.size);
        put(w, ",\"tool_calls\":");
        put_tool_calls(w, a);
    }
    putf(w, ",\"finish_reason\":\"%s\",\"seed\":%llu", mx_batch_answer_finish(a, false),
         (unsigned long long)mx_batch_seed(w->request, a->prompt, a->index));
    if (w->request->logprobs < 0) return;
    put(w, ",\"logprobs\":");
    if (w->request->chat)
        put_chat_tokens(w, &a->tokens);
    else
        put_logprobs(w, a, learned);
}

/* ---- best of ----------------------------------------------------------------------------------------------------- */
static int by_mean(const void *x, const void *y) {
    const mx_batch_answer *a = *(const mx_batch_answer *const *)x, *b = *(const mx_batch_answer *const *)y;
    const double p = mx_batch_answer_mean(a), q = mx_batch_answer_mean(b);
    if (p != q) return p < q ? 1 : -1;
    return (a->index > b->index) - (a->index < b->index);
}

/* The answers to return: n for each prompt, all in order or the best first. NULL: no memory. */
static const mx_batch_answer **choose(const mx_batch_request *r, const mx_batch_answer *answers) {
    const mx_batch_answer **all = malloc(sizeof *all * (size_t)r->prompt_count * (size_t)r->best_of);
    if (!all) return NULL;
    for (int p = 0; p < r->prompt_count; p++) {
        const mx_batch_answer **chosen = all + (size_t)p * (size_t)r->n;
        for (int k = 0; k < r->best_of; k++) chosen[k] = answers + (size_t)p * (size_t)r->best_of + k;
        if (r->best_of > r->n) qsort(chosen, (size_t)r->best_of, sizeof *chosen, by_mean);
    }
    return all;
}

/* ---- records ----------------------------------------------------------------------------------------------------- */
/* Prompts count once, however many answers they got; answers count all that were computed. */
static void put_usage(writer *w, const mx_batch_answer *answers) {
    const mx_batch_request *r = w->request;
    int64_t prompt = 0, cached = 0, generated = 0, thinking = 0;
    for (int i = 0; i < r->prompt_count * r->best_of; i++) {
        const mx_batch_answer *a = &answers[i];
        if (a->index == 0) {
            prompt += r->prompts[a->prompt].count;
            cached += a->usage.cached_tokens;
        }
        generated += mx_batch_answer_count(a);
        thinking += a->thinking_tokens;
    }
    putf(
        w,
        "\"usage\":{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"total_tokens\":%lld,"
        "\"prompt_tokens_details\":{\"cached_tokens\":%lld},\"completion_tokens_details\":{\"reasoning_tokens\":%lld}}",
        (long long)prompt, (long long)generated, (long long)(prompt + generated), (long long)cached,
        (long long)thinking);
}

/* {"id", "object", "created", "model", "choices", "usage"} */
static void put_body(writer *w, const mx_batch_answer *answers, const mx_batch_answer **chosen) {
    const mx_batch_request *r = w->request;
    putf(w, "{\"id\":\"%s-%lld_%016llx\",\"object\":\"%s\",\"created\":%lld,\"model\":", r->chat ? "chatcmpl" : "cmpl",
         (long long)w->number, (unsigned long long)w->hash, r->chat ? "chat.completion" : "text_completion",
         (long long)time(NULL));
    put_string(w, w->settings->model, strlen(w->settings->model));
    put(w, ",\"choices\":[");
    for (int i = 0; i < r->prompt_count * r->n; i++) {
        if (i) put(w, ",");
        put_choice(w, i, chosen[i], &answers[(size_t)chosen[i]->prompt * (size_t)r->best_of]);
    }
    put(w, "],");
    put_usage(w, answers);
    put(w, "}");
}

/* "req_12_HASH_CONTEXT-TIER-PRECISION", as journal.h has it */
static void put_key(writer *w) {
    const mx_batch_setup *s = &w->settings->setup;
    putf(w, "req_%lld_%016llx_%lld-%s-%s", (long long)w->number, (unsigned long long)w->hash, (long long)s->context,
         s->tier, s->precision);
}

static void begin_openai(writer *w) {
    put(w, "{\"id\":\"batch_");
    put_key(w);
    putf(w, "\",\"custom_id\":%s,", w->request->id.size ? w->request->id.data : "null");
}

static void begin_short(writer *w) {
    put(w, "{\"request_id\":\"");
    put_key(w);
    put(w, "\",\"id\":");
    if (w->request->id.size)
        put(w, w->request->id.data);
    else
        putf(w, "%lld", (long long)w->number);
}

static void begin_response(writer *w, int status) {
    putf(w, "\"response\":{\"status_code\":%d,\"request_id\":\"req_%lld_%016llx\",\"body\":", status,
         (long long)w->number, (unsigned long long)w->hash);
}

bool mx_batch_write_answers(mx_bytes *out, const mx_batch_settings *settings, const mx_batch_request *request,
                            const mx_batch_answer *answers, int64_t number, uint64_t hash) {
    writer w = {out, settings, request, number, hash, false};
    const mx_batch_answer **chosen = choose(request, answers);
    if (!chosen) return false;
    const int count = request->prompt_count * request->n;
    if (request->form == MX_FORM_OPENAI) {
        begin_openai(&w);
        begin_response(&w, 200);
        put_body(&w, answers, chosen);
        put(&w, "},\"error\":null}\n");
    } else {
        begin_short(&w);
        put(&w, ",");
        if (count > 1) put(&w, "\"choices\":[");
        for (int i = 0; i < count; i++) {
            if (count > 1) put(&w, i ? ",{" : "{");
            put_short(&w, chosen[i], &answers[(size_t)chosen[i]->prompt * (size_t)request->best_of]);
            if (count > 1) put(&w, "}");
        }
        put(&w, count > 1 ? "]," : ",");
        put_usage(&w, answers);
        put(&w, "}\n");
    }
    free(chosen);
    return !w.failed;
}

/* {"message", "type", "param", "code"} */
static void put_problem(writer *w) {
    const mx_batch_problem *p = &w->request->problem;
    put(w, "{\"message\":");
    put_string(w, p->text, strlen(p->text));
    putf(w, ",\"type\":\"%s\",\"param\":", p->http_status < 500 ? "invalid_request_error" : "server_error");
    if (*p->param)
        put_string(w, p->param, strlen(p->param));
    else
        put(w, "null");
    putf(w, ",\"code\":\"%s\"}", p->code);
}

bool mx_batch_write_problem(mx_bytes *out, const mx_batch_settings *settings, const mx_batch_request *request,
                            int64_t number, uint64_t hash) {
    writer w = {out, settings, request, number, hash, false};
    if (request->form == MX_FORM_SHORT) {
        begin_short(&w);
        put(&w, ",\"error\":");
        put_problem(&w);
    } else if (request->form == MX_FORM_OPENAI) {
        begin_openai(&w);
        begin_response(&w, request->problem.http_status);
        put(&w, "{\"error\":");
        put_problem(&w);
        put(&w, "}},\"error\":null");
    } else { /* it has no form: what both know */
        begin_openai(&w);
        put(&w, "\"response\":null,\"error\":");
        put_problem(&w);
    }
    put(&w, "}\n");
    return !w.failed;
}
