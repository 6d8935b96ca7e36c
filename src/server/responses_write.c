#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "server/protocol.h"
#include "server/responses.h"

/* Answers as response objects, and as the events of a stream. */
void mx_responses_free(void *state) {
    mx_responses_state *s = state;
    if (!s) return;
    mx_stored_response_release(s->responses, s->previous);
    mx_bytes_free(&s->input);
    mx_bytes_free(&s->echo);
    mx_bytes_free(&s->text);
    free(s);
}

/* ---- items ------------------------------------------------------------------------------------------------------- */
/* One item of the output, or as much of it as is there. */
typedef struct output {
    mx_piece_kind kind;
    int index;     /* in the output */
    int message;   /* of the turn */
    bool preamble; /* as mx_piece has it */
    const char *status;
    const char *text; /* NULL: nothing yet */
    size_t size;
    int call; /* as mx_turn_message has it, and its */
    const char *name;
} output;

static void put_item_id(mx_api_writer *w, mx_piece_kind kind, int index) {
    static const char *const prefixes[] = {"rs", "msg", "fc"};
    mx_api_putf(w, "\"%s_%s_%d\"", prefixes[kind], w->id, index);
}

/* The logprobs of a message's tokens, of those that begin within its first `size` bytes, from the token `first` of the
 * answer on. Returns the token behind. */
static int put_logprobs(mx_api_writer *w, const mx_api_answer *a, int message, int first, size_t size) {
    const mx_api_tokens *t = &a->tokens;
    while (first < t->count && t->item[first].message != message) first++;
    int end = first;
    while (end < t->count && t->item[end].message == message && t->item[end].offset < (int64_t)size) end++;
    if (end == first) {
        mx_api_put(w, "[]");
        return first;
    }
    const mx_api_tokens some = {.item = t->item + first, .count = end - first, .top = t->top};
    mx_api_put_chat_tokens(w, &some);
    return end;
}

static void put_part(mx_api_writer *w, const mx_api_answer *a, const output *o) {
    if (o->kind == MX_PIECE_THINKING) {
        mx_api_put(w, "{\"type\":\"reasoning_text\",\"text\":");
    } else {
        mx_api_put(w, "{\"type\":\"output_text\",\"annotations\":[],\"logprobs\":");
        if (o->text)
            put_logprobs(w, a, o->message, 0, o->size);
        else
            mx_api_put(w, "[]");
        mx_api_put(w, ",\"text\":");
    }
    mx_api_put_string(w, o->text, o->size);
    mx_api_put(w, "}");
}

/* Arguments of a call: what was cut off stays as it is. */
static bool add_arguments(mx_bytes *out, const char *text, size_t size, bool cut) {
    return cut ? mx_bytes_add(out, text, size) : mx_api_add_arguments(out, text, size);
}

static void put_call(mx_api_writer *w, const mx_api_answer *a, const output *o) {
    const char *name = mx_api_client_name(w->request, o->name);
    char id[80];
    mx_bytes arguments = {0};
    mx_api_call_id(w, a, o->call, id);
    mx_api_putf(w, ",\"type\":\"function_call\",\"status\":\"%s\",\"call_id\":\"%s\",\"name\":", o->status, id);
    mx_api_put_string(w, name, strlen(name));
    if (o->text) w->failed |= !add_arguments(&arguments, o->text, o->size, strcmp(o->status, "completed") != 0);
    mx_api_put(w, ",\"arguments\":");
    mx_api_put_string(w, arguments.data, arguments.size);
    mx_bytes_free(&arguments);
}

static void put_item(mx_api_writer *w, const mx_api_answer *a, const output *o) {
    mx_api_put(w, "{\"id\":");
    put_item_id(w, o->kind, o->index);
    if (o->kind == MX_PIECE_TOOL_CALL) {
        put_call(w, a, o);
    } else {
        if (o->kind == MX_PIECE_THINKING)
            mx_api_putf(w, ",\"type\":\"reasoning\",\"status\":\"%s\",\"summary\":[],\"content\":[", o->status);
        else
            mx_api_putf(w,
                        ",\"type\":\"message\",\"status\":\"%s\",\"role\":\"assistant\",\"phase\":\"%s\",\"content\":[",
                        o->status, o->preamble ? "commentary" : "final_answer");
        if (o->text) put_part(w, a, o);
        mx_api_put(w, "]");
    }
    mx_api_put(w, "}");
}

/* The output: what the model wrote, one item for each message that is not empty. */
static void put_output(mx_api_writer *w, const mx_api_answer *a) {
    const mx_turn_result *r = mx_turn_get_result(a->turn);
    int index = 0;
    mx_api_put(w, "[");
    for (int i = 0; i < mx_turn_message_count(a->turn); i++) {
        const mx_turn_message m = mx_turn_message_at(a->turn, i);
        const bool call = m.kind == MX_PIECE_TOOL_CALL;
        if (!m.size && !call) continue;
        const output o = {.kind = m.kind,
                          .index = index++,
                          .message = i,
                          .preamble = m.preamble,
                          .status = m.cut ? "incomplete" : "completed",
                          .text = m.text,
                          .size = m.size,
                          .call = m.call,
                          .name = call ? r->tool_calls[m.call].name : NULL};
        if (o.index) mx_api_put(w, ",");
        put_item(w, a, &o);
    }
    mx_api_put(w, "]");
}

/* ---- the response ------------------------------------------------------------------------------------------------ */
static void put_usage(mx_api_writer *w, const mx_api_answer *a) {
    const int64_t in = w->request->prompts[0].count, out = mx_api_answer_count(a);
    mx_api_putf(w,
                ",\"usage\":{\"input_tokens\":%lld,\"input_tokens_details\":{\"cached_tokens\":%lld,"
                "\"cache_write_tokens\":0},\"output_tokens\":%lld,\"output_tokens_details\":{\"reasoning_tokens\":%lld}"
                ",\"total_tokens\":%lld}",
                (long long)in, (long long)a->usage.cached_tokens, (long long)out, (long long)a->thinking_tokens,
                (long long)(in + out));
}

/* "completed", or "incomplete" where the tokens were used up or the time was. */
static const char *status_of(const mx_api_answer *a) {
    const mx_turn_finish finish = mx_turn_get_result(a->turn)->finish;
    return finish == MX_TURN_STOP || finish == MX_TURN_TOOL_CALLS ? "completed" : "incomplete";
}

/* `problem`: of a response that failed, NULL otherwise. */
static void put_response(mx_api_writer *w, const mx_work *work, const char *status, const mx_api_problem *problem) {
    const mx_responses_state *s = work->state;
    const mx_api_answer *a = &work->answers[0];
    const bool begun = strcmp(status, "in_progress") == 0, done = strcmp(status, "completed") == 0;
    mx_api_putf(w, "{\"id\":\"resp_%s\",\"object\":\"response\",\"created_at\":%lld,\"status\":\"%s\",", work->id,
                (long long)work->created, status);
    w->failed |= !mx_bytes_add(w->out, s->echo.data, s->echo.size);
    if (done)
        mx_api_putf(w, "\"completed_at\":%lld,", (long long)time(NULL));
    else
        mx_api_put(w, "\"completed_at\":null,");
    mx_api_put(w, "\"error\":");
    if (problem) {
        mx_api_put(w, "{\"code\":\"server_error\",\"message\":");
        mx_api_put_string(w, problem->text, strlen(problem->text));
        mx_api_put(w, "}");
    } else {
        mx_api_put(w, "null");
    }
    mx_api_put(w, strcmp(status, "incomplete") == 0 ? ",\"incomplete_details\":{\"reason\":\"max_output_tokens\"}"
                                                    : ",\"incomplete_details\":null");
    mx_api_put(w, ",\"model\":");
    mx_api_put_string(w, work->parts->model, strlen(work->parts->model));
    mx_api_put(w, ",\"output\":");
    if (begun)
        mx_api_put(w, "[],\"usage\":null");
    else
        put_output(w, a);
    if (!begun && !problem) put_usage(w, a);
    if (problem) mx_api_put(w, ",\"usage\":null");
    mx_api_put(w, "}");
}

/* ---- streams ----------------------------------------------------------------------------------------------------- */
static void begin_event(mx_api_writer *w, mx_responses_state *s, const char *type) {
    mx_api_putf(w, "event: response.%s\ndata: {\"type\":\"response.%s\",\"sequence_number\":%lld", type, type,
                (long long)s->sequence++);
}

static void end_event(mx_api_writer *w) {
    mx_api_put(w, "}\n\n");
}

static void response_event(mx_api_writer *w, mx_work *work, const char *type, const char *status,
                           const mx_api_problem *problem) {
    begin_event(w, work->state, type);
    mx_api_put(w, ",\"response\":");
    put_response(w, work, status, problem);
    end_event(w);
}

static bool begin(mx_work *work, mx_bytes *out) {
    mx_api_writer w = mx_work_writer(work, out);
    response_event(&w, work, "created", "in_progress", NULL);
    response_event(&w, work, "in_progress", "in_progress", NULL);
    return !w.failed;
}

static void item_event(mx_api_writer *w, mx_responses_state *s, const char *type, const mx_api_answer *a,
                       const output *o) {
    begin_event(w, s, type);
    mx_api_putf(w, ",\"output_index\":%d,\"item\":", o->index);
    put_item(w, a, o);
    end_event(w);
}

/* The beginning of an event about an item's content. */
static void begin_content(mx_api_writer *w, mx_responses_state *s, const char *type, const output *o) {
    begin_event(w, s, type);
    mx_api_put(w, ",\"item_id\":");
    put_item_id(w, o->kind, o->index);
    mx_api_putf(w, ",\"output_index\":%d", o->index);
    if (o->kind != MX_PIECE_TOOL_CALL) mx_api_put(w, ",\"content_index\":0");
}

static void part_event(mx_api_writer *w, mx_responses_state *s, const char *type, const mx_api_answer *a,
                       const output *o) {
    begin_content(w, s, type, o);
    mx_api_put(w, ",\"part\":");
    put_part(w, a, o);
    end_event(w);
}

static const char *const deltas[] = {"reasoning_text.delta", "output_text.delta", "function_call_arguments.delta"};
static const char *const dones[] = {"reasoning_text.done", "output_text.done", "function_call_arguments.done"};

static void open_item(mx_api_writer *w, mx_responses_state *s, const mx_api_answer *a, output o) {
    o.status = "in_progress";
    o.text = NULL;
    o.size = 0;
    item_event(w, s, "output_item.added", a, &o);
    if (o.kind != MX_PIECE_TOOL_CALL) part_event(w, s, "content_part.added", a, &o);
    s->open = true;
}

static void delta_event(mx_api_writer *w, mx_responses_state *s, const mx_api_answer *a, const output *o,
                        const char *text, size_t size) {
    if (size == 0) return;
    begin_content(w, s, deltas[o->kind], o);
    mx_api_put(w, ",\"delta\":");
    mx_api_put_string(w, text, size);
    if (o->kind == MX_PIECE_TEXT) {
        mx_api_put(w, ",\"logprobs\":");
        s->tokens = put_logprobs(w, a, o->message, s->tokens, o->size);
    }
    end_event(w);
}

static void close_item(mx_api_writer *w, mx_responses_state *s, const mx_api_answer *a, const output *o) {
    begin_content(w, s, dones[o->kind], o);
    if (o->kind == MX_PIECE_TOOL_CALL) {
        const char *name = mx_api_client_name(w->request, o->name);
        mx_api_put(w, ",\"name\":");
        mx_api_put_string(w, name, strlen(name));
        mx_api_put(w, ",\"arguments\":");
    } else {
        mx_api_put(w, ",\"text\":");
    }
    mx_api_put_string(w, o->text, o->size);
    if (o->kind == MX_PIECE_TEXT) {
        mx_api_put(w, ",\"logprobs\":");
        put_logprobs(w, a, o->message, 0, o->size);
    }
    end_event(w);
    if (o->kind != MX_PIECE_TOOL_CALL) part_event(w, s, "content_part.done", a, o);
    item_event(w, s, "output_item.done", a, o);
}

/* Of arguments that the model put into a JSON string nothing is told until they are complete and can be taken out of
 * it. */
static bool is_held(const mx_bytes *text) {
    const size_t space = text->size ? strspn(text->data, " \t\r\n") : 0;
    return space == text->size || text->data[space] == '"';
}

/* s->text becomes what is told. false: no memory. */
static bool finish_arguments(mx_responses_state *s, bool cut) {
    mx_bytes all = {0};
    if (!add_arguments(&all, s->text.data ? s->text.data : "", s->text.size, cut)) return false;
    mx_bytes_free(&s->text);
    s->text = all;
    return true;
}

static bool piece(mx_work *work, mx_api_answer *a, const mx_piece *p, mx_bytes *out) {
    mx_responses_state *s = work->state;
    mx_api_writer w = mx_work_writer(work, out);
    const bool call = p->kind == MX_PIECE_TOOL_CALL;
    if (!mx_bytes_add(&s->text, p->text, p->size) || (call && p->last && !finish_arguments(s, p->cut))) return false;
    const output o = {.kind = p->kind,
                      .index = s->items,
                      .message = s->messages,
                      .preamble = p->preamble,
                      .status = p->cut ? "incomplete" : "completed",
                      .text = s->text.data ? s->text.data : "",
                      .size = s->text.size,
                      .call = s->calls,
                      .name = p->name};
    if (!s->open && (s->text.size || call)) open_item(&w, s, a, o);
    const bool held = call && !p->last && is_held(&s->text);
    if (s->open && !held) {
        delta_event(&w, s, a, &o, o.text + s->sent, o.size - s->sent);
        s->sent = o.size;
    }
    if (!p->last) return !w.failed;
    if (s->open) {
        close_item(&w, s, a, &o);
        s->items++;
    }
    s->messages++;
    s->calls += call;
    s->open = false;
    s->sent = 0;
    mx_bytes_clear(&s->text);
    return !w.failed;
}

static bool finish(mx_work *work, mx_bytes *out) {
    mx_responses_state *s = work->state;
    mx_bytes body = {0};
    mx_api_writer w = mx_work_writer(work, &body);
    const char *status = status_of(&work->answers[0]);
    put_response(&w, work, status, NULL);
    w.out = out;
    if (work->stream) {
        begin_event(&w, s, status);
        mx_api_put(&w, ",\"response\":");
    }
    w.failed |= !mx_bytes_add(out, body.data ? body.data : "", body.size);
    if (work->stream) end_event(&w);
    char id[48];
    snprintf(id, sizeof id, "resp_%s", work->id);
    if (!w.failed && s->store) mx_response_store_put(s->responses, id, s->previous, &s->input, &body);
    mx_bytes_free(&body);
    return !w.failed;
}

static bool broken(mx_work *work, const mx_api_problem *problem, mx_bytes *out) {
    mx_api_writer w = mx_work_writer(work, out);
    response_event(&w, work, "failed", "failed", problem);
    return !w.failed;
}

const mx_form mx_responses_form = {.stream_type = "text/event-stream",
                                   .keep_alive = ": keep-alive\n\n",
                                   .begin = begin,
                                   .piece = piece,
                                   .finish = finish,
                                   .broken = broken,
                                   .free = mx_responses_free};
