#include "batch/response.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "api/write.h"

typedef struct record {
    mx_api_writer w;
    int64_t number; /* of the line */
    uint64_t hash;
    char id[40]; /* the writer's */
} record;

static void begin(record *r, mx_bytes *out, const mx_api_settings *settings, const mx_api_request *request,
                  int64_t number, uint64_t hash) {
    *r = (record){.number = number, .hash = hash};
    snprintf(r->id, sizeof r->id, "%lld_%016llx", (long long)number, (unsigned long long)hash);
    r->w = (mx_api_writer){.out = out, .settings = settings, .request = request, .id = r->id, .created = time(NULL)};
}

/* The short form's {"text", "thinking", "tool_calls", "finish_reason", "seed"[, "logprobs"]}, without braces. */
static void put_short(mx_api_writer *w, const mx_api_answer *a, const mx_api_answer *learned) {
    const mx_turn_result *r = mx_turn_get_result(a->turn);
    mx_api_put(w, "\"text\":");
    mx_api_put_text(w, a);
    if (w->request->chat) {
        mx_api_put(w, ",\"thinking\":");
        mx_api_put_string(w, r->thinking.data, r->thinking.size);
        mx_api_put(w, ",\"tool_calls\":");
        mx_api_put_tool_calls(w, a);
    }
    mx_api_putf(w, ",\"finish_reason\":\"%s\",\"seed\":%llu", mx_api_answer_finish(a, false),
                (unsigned long long)mx_api_seed(w->request, a->prompt, a->index));
    if (w->request->logprobs < 0) return;
    mx_api_put(w, ",\"logprobs\":");
    if (w->request->chat)
        mx_api_put_chat_tokens(w, &a->tokens);
    else
        mx_api_put_logprobs(w, a, learned);
}

/* "req_12_HASH_CONTEXT-TIER-PRECISION", as journal.h has it */
static void put_key(record *r) {
    const mx_api_setup *s = &r->w.settings->setup;
    mx_api_putf(&r->w, "req_%s_%lld-%s-%s", r->id, (long long)s->context, s->tier, s->precision);
}

static void begin_openai(record *r) {
    mx_api_put(&r->w, "{\"id\":\"batch_");
    put_key(r);
    mx_api_putf(&r->w, "\",\"custom_id\":%s,", r->w.request->id.size ? r->w.request->id.data : "null");
}

static void begin_short(record *r) {
    mx_api_put(&r->w, "{\"request_id\":\"");
    put_key(r);
    mx_api_put(&r->w, "\",\"id\":");
    if (r->w.request->id.size)
        mx_api_put(&r->w, r->w.request->id.data);
    else
        mx_api_putf(&r->w, "%lld", (long long)r->number);
}

static void begin_response(record *r, int status) {
    mx_api_putf(&r->w, "\"response\":{\"status_code\":%d,\"request_id\":\"req_%s\",\"body\":", status, r->id);
}

bool mx_batch_write_answers(mx_bytes *out, const mx_api_settings *settings, const mx_api_request *request,
                            const mx_api_answer *answers, int64_t number, uint64_t hash) {
    record r;
    begin(&r, out, settings, request, number, hash);
    const mx_api_answer **chosen = mx_api_choose(request, answers);
    if (!chosen) return false;
    const int count = request->prompt_count * request->n;
    if (request->form == MX_FORM_OPENAI) {
        begin_openai(&r);
        begin_response(&r, 200);
        mx_api_put_body(&r.w, answers, chosen);
        mx_api_put(&r.w, "},\"error\":null}\n");
    } else {
        begin_short(&r);
        mx_api_put(&r.w, ",");
        if (count > 1) mx_api_put(&r.w, "\"choices\":[");
        for (int i = 0; i < count; i++) {
            if (count > 1) mx_api_put(&r.w, i ? ",{" : "{");
            put_short(&r.w, chosen[i], &answers[(size_t)chosen[i]->prompt * (size_t)request->best_of]);
            if (count > 1) mx_api_put(&r.w, "}");
        }
        mx_api_put(&r.w, count > 1 ? "]," : ",");
        mx_api_put_usage(&r.w, answers);
        mx_api_put(&r.w, "}\n");
    }
    free(chosen);
    return !r.w.failed;
}

bool mx_batch_write_problem(mx_bytes *out, const mx_api_settings *settings, const mx_api_request *request,
                            int64_t number, uint64_t hash) {
    record r;
    begin(&r, out, settings, request, number, hash);
    if (request->form == MX_FORM_SHORT) {
        begin_short(&r);
        mx_api_put(&r.w, ",\"error\":");
        mx_api_put_problem(&r.w, &request->problem);
    } else if (request->form == MX_FORM_OPENAI) {
        begin_openai(&r);
        begin_response(&r, request->problem.http_status);
        mx_api_put(&r.w, "{\"error\":");
        mx_api_put_problem(&r.w, &request->problem);
        mx_api_put(&r.w, "}},\"error\":null");
    } else { /* it has no form: what both know */
        begin_openai(&r);
        mx_api_put(&r.w, "\"response\":null,\"error\":");
        mx_api_put_problem(&r.w, &request->problem);
    }
    mx_api_put(&r.w, "}\n");
    return !r.w.failed;
}
