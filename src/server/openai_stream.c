/* How OpenAI says answers: one JSON object, or server-sent events with chunks of it. */
#include <stdlib.h>
#include <string.h>

#include "api/write.h"
#include "server/openai.h"
#include "server/protocol.h"

/* How much of one answer was told. */
typedef struct told {
    bool text, thinking; /* any of it */
    bool echoed;         /* the prompt was */
    int64_t delivered;   /* bytes of the TEXT message that is being told */
    int tokens;          /* of answer->tokens, in logprobs */
    int64_t characters;  /* of a completion: where its next token begins */
    int calls;           /* of tools, the one being told included */
    bool flowing;        /* its arguments are told as they come; else they wait in `held` */
    mx_bytes held;
} told;

typedef struct state {
    char fingerprint[20];
    mx_bytes prefix; /* of every chunk, up to the choices */
    int count;
    told told[]; /* [count], as work->answers */
} state;

/* ---- life -------------------------------------------------------------------------------------------------------- */
static void free_state(void *data) {
    state *s = data;
    for (int i = 0; i < s->count; i++) mx_bytes_free(&s->told[i].held);
    mx_bytes_free(&s->prefix);
    free(s);
}

void *mx_openai_state(const mx_server_parts *parts, const mx_api_request *r, const char *id, int64_t created) {
    const int count = r->prompt_count * r->best_of;
    state *s = calloc(1, sizeof *s + (size_t)count * sizeof *s->told);
    if (!s) return NULL;
    s->count = count;
    mx_api_fingerprint(&parts->settings, s->fingerprint);
    mx_api_writer w = {.out = &s->prefix};
    mx_api_putf(&w,
                "data: {\"id\":\"%s-%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", r->chat ? "chatcmpl" : "cmpl",
                id, r->chat ? "chat.completion.chunk" : "text_completion", (long long)created);
    mx_api_put_string(&w, parts->settings.model, strlen(parts->settings.model));
    mx_api_putf(&w, ",\"system_fingerprint\":\"%s\",\"choices\":[", s->fingerprint);
    if (!w.failed) return s;
    free_state(s);
    return NULL;
}

static mx_api_writer writer(const mx_work *work, mx_bytes *out) {
    const state *s = work->state;
    mx_api_writer w = mx_work_writer(work, out);
    w.fingerprint = s->fingerprint;
    return w;
}

static told *told_of(const mx_work *work, const mx_api_answer *a) {
    state *s = work->state;
    return &s->told[a - work->answers];
}

/* ---- chunks ------------------------------------------------------------------------------------------------------ */
/* Up to `"delta":{` or, of a completion, `"text":`. */
static void begin_chunk(mx_api_writer *w, const mx_work *work, const mx_api_answer *a) {
    const state *s = work->state;
    w->failed |= !mx_bytes_add(w->out, s->prefix.data, s->prefix.size);
    mx_api_putf(w, "{\"index\":%d,%s", a->prompt * work->request.n + a->index,
                work->request.chat ? "\"delta\":{" : "\"text\":");
}

/* Tokens whose text has been told by now, or, `all`, that are left. */
static mx_api_tokens next_tokens(told *t, const mx_api_answer *a, bool all) {
    const mx_api_tokens *tokens = &a->tokens;
    const int message = tokens->count ? tokens->item[tokens->count - 1].message : 0;
    int end = t->tokens;
    while (end < tokens->count) {
        const mx_api_token *token = &tokens->item[end];
        if (!all && token->shown && token->message == message && token->offset >= t->delivered) break;
        end++;
    }
    const mx_api_tokens next = {
        .item = tokens->item ? tokens->item + t->tokens : NULL, .count = end - t->tokens, .top = tokens->top};
    t->tokens = end;
    return next;
}

static bool any_shown(const mx_api_tokens *tokens) {
    for (int i = 0; i < tokens->count; i++)
        if (tokens->item[i].shown) return true;
    return false;
}

static void put_logprobs(mx_api_writer *w, const mx_work *work, const mx_api_answer *a, bool text, bool echo,
                         bool all) {
    told *t = told_of(work, a);
    const mx_api_tokens none = {0}, next = text && work->request.logprobs >= 0 ? next_tokens(t, a, all) : none;
    if (!echo && !any_shown(&next)) {
        mx_api_put(w, "null");
    } else if (work->request.chat) {
        mx_api_put(w, "{\"content\":");
        mx_api_put_chat_tokens(w, &next);
        mx_api_put(w, ",\"refusal\":null}");
    } else {
        mx_api_put_completion_tokens(w, echo ? &a->prompt_tokens : NULL, &next, &t->characters);
    }
}

/* Behind the logprobs. `finish` NULL: the answer goes on. */
static void close_chunk(mx_api_writer *w, const mx_work *work, const char *finish) {
    mx_api_putf(w, finish ? ",\"finish_reason\":\"%s\"}]" : ",\"finish_reason\":null}]", finish ? finish : "");
    mx_api_put(w, work->request.include_usage ? ",\"usage\":null}\n\n" : "}\n\n");
}

/* `text`: the chunk tells some, so that the logprobs of its tokens belong to it. */
static void end_chunk(mx_api_writer *w, const mx_work *work, const mx_api_answer *a, bool text, const char *finish) {
    mx_api_put(w, work->request.chat ? "},\"logprobs\":" : ",\"logprobs\":");
    put_logprobs(w, work, a, text || finish, false, finish != NULL);
    close_chunk(w, work, finish);
}

/* {"content": "..."} or {"reasoning_content": "..."}, of a completion the text. */
static void put_text(mx_api_writer *w, const mx_work *work, const mx_api_answer *a, mx_piece_kind kind,
                     const char *text, size_t size) {
    begin_chunk(w, work, a);
    if (work->request.chat) mx_api_put(w, kind == MX_PIECE_TEXT ? "\"content\":" : "\"reasoning_content\":");
    mx_api_put_string(w, text, size);
    end_chunk(w, work, a, kind == MX_PIECE_TEXT, NULL);
}

/* The prompt of a completion, before all else. */
static void put_echo(mx_api_writer *w, const mx_work *work, const mx_api_answer *a) {
    told *t = told_of(work, a);
    mx_bytes prompt = {0};
    if (!work->request.echo || t->echoed) return;
    t->echoed = true;
    w->failed |= !mx_api_add_prompt(w, a->prompt, &prompt);
    begin_chunk(w, work, a);
    mx_api_put_string(w, prompt.data, prompt.size);
    mx_bytes_free(&prompt);
    mx_api_put(w, ",\"logprobs\":");
    put_logprobs(w, work, a, false, work->request.logprobs >= 0, false);
    close_chunk(w, work, NULL);
}

/* ---- calls of tools ---------------------------------------------------------------------------------------------- */
static void put_call(mx_api_writer *w, const mx_work *work, const mx_api_answer *a, const mx_piece *piece) {
    const int index = told_of(work, a)->calls++;
    const char *name = mx_api_client_name(&work->request, piece->name);
    char id[80];
    mx_api_call_id(w, a, index, id);
    begin_chunk(w, work, a);
    mx_api_putf(w, "\"tool_calls\":[{\"index\":%d,\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":", index,
                id);
    mx_api_put_string(w, name, strlen(name));
    mx_api_put(w, ",\"arguments\":\"\"}}]");
    end_chunk(w, work, a, false, NULL);
}

static void put_arguments(mx_api_writer *w, const mx_work *work, const mx_api_answer *a, const char *text,
                          size_t size) {
    if (!size) return;
    begin_chunk(w, work, a);
    mx_api_putf(w, "\"tool_calls\":[{\"index\":%d,\"function\":{\"arguments\":", told_of(work, a)->calls - 1);
    mx_api_put_string(w, text, size);
    mx_api_put(w, "}}]");
    end_chunk(w, work, a, false, NULL);
}

/* Arguments go on as they come, unless they begin as a JSON string: that may hold the object (mx_api_add_arguments). */
static void take_arguments(mx_api_writer *w, const mx_work *work, const mx_api_answer *a, const mx_piece *piece) {
    told *t = told_of(work, a);
    if (piece->first) {
        put_call(w, work, a, piece);
        mx_bytes_clear(&t->held);
        t->flowing = false;
    }
    if (t->flowing) {
        put_arguments(w, work, a, piece->text, piece->size);
        return;
    }
    w->failed |= !mx_bytes_add(&t->held, piece->text, piece->size);
    const size_t spaces = strspn(t->held.data, " \t\r\n");
    if (spaces < t->held.size && t->held.data[spaces] != '"') {
        t->flowing = true;
        put_arguments(w, work, a, t->held.data, t->held.size);
    } else if (piece->last) {
        mx_bytes whole = {0};
        w->failed |= !(piece->cut ? mx_bytes_add(&whole, t->held.data, t->held.size)
                                  : mx_api_add_arguments(&whole, t->held.data, t->held.size));
        put_arguments(w, work, a, whole.data, whole.size);
        mx_bytes_free(&whole);
    }
}

/* ---- form -------------------------------------------------------------------------------------------------------- */
static bool begin(mx_work *work, mx_bytes *out) {
    mx_api_writer w = writer(work, out);
    for (int i = 0; i < work->count && work->request.chat; i++) {
        /* The engine may have said nothing of it yet. */
        const mx_api_answer a = {.prompt = i / work->request.best_of, .index = i % work->request.best_of};
        begin_chunk(&w, work, &a);
        mx_api_put(&w, "\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null");
        close_chunk(&w, work, NULL);
    }
    return !w.failed;
}

static bool take_piece(mx_work *work, mx_api_answer *a, const mx_piece *piece, mx_bytes *out) {
    mx_api_writer w = writer(work, out);
    told *t = told_of(work, a);
    put_echo(&w, work, a);
    if (piece->kind == MX_PIECE_TOOL_CALL) {
        take_arguments(&w, work, a, piece);
        return !w.failed;
    }
    const bool text = piece->kind == MX_PIECE_TEXT;
    bool *any = text ? &t->text : &t->thinking;
    if (piece->first && *any) put_text(&w, work, a, piece->kind, "\n\n", 2); /* between messages of a kind */
    if (piece->first && text) t->delivered = 0;
    if (text) t->delivered += (int64_t)piece->size;
    if (piece->size) put_text(&w, work, a, piece->kind, piece->text, piece->size);
    *any |= piece->size > 0;
    return !w.failed;
}

static bool end_answer(mx_work *work, mx_api_answer *a, mx_bytes *out) {
    mx_api_writer w = writer(work, out);
    put_echo(&w, work, a);
    begin_chunk(&w, work, a);
    if (!work->request.chat) mx_api_put(&w, "\"\"");
    end_chunk(&w, work, a, false, mx_api_answer_finish(a, true));
    return !w.failed;
}

static bool finish_stream(mx_work *work, mx_bytes *out) {
    const state *s = work->state;
    mx_api_writer w = writer(work, out);
    if (work->request.include_usage) {
        w.failed |= !mx_bytes_add(out, s->prefix.data, s->prefix.size);
        mx_api_put(&w, "],");
        mx_api_put_usage(&w, work->answers);
        mx_api_put(&w, "}\n\n");
    }
    mx_api_put(&w, "data: [DONE]\n\n");
    return !w.failed;
}

static bool finish(mx_work *work, mx_bytes *out) {
    if (work->stream) return finish_stream(work, out);
    mx_api_writer w = writer(work, out);
    const mx_api_answer **chosen = mx_api_choose(&work->request, work->answers);
    if (!chosen) return false;
    mx_api_put_body(&w, work->answers, chosen);
    free(chosen);
    return !w.failed;
}

static bool broken(mx_work *work, const mx_api_problem *problem, mx_bytes *out) {
    (void)work;
    return mx_bytes_add_string(out, "data: ") && mx_openai_problem(out, problem) && mx_bytes_add_string(out, "\n\n");
}

const mx_form mx_openai_form = {
    .stream_type = "text/event-stream",
    .keep_alive = ": keep-alive\n\n",
    .begin = begin,
    .piece = take_piece,
    .ended = end_answer,
    .finish = finish,
    .broken = broken,
    .free = free_state,
};
