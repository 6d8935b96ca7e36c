#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cpu.h"
#include "server/ollama.h"
#include "server/protocol.h"

/* Answers in Ollama's form: a stream of JSON objects, one a line, or all of it as one. */

void mx_ollama_put_time(mx_api_writer *w, int64_t seconds, long nanoseconds) {
    const time_t t = (time_t)seconds;
    char text[32] = "1970-01-01T00:00:00";
    struct tm tm;
    if (gmtime_r(&t, &tm)) strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm);
    mx_api_putf(w, "\"%s.%09ldZ\"", text, nanoseconds);
}

void mx_ollama_put_head(mx_api_writer *w) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    mx_api_put(w, "\"model\":");
    mx_api_put_string(w, w->settings->model, strlen(w->settings->model));
    mx_api_put(w, ",\"created_at\":");
    mx_ollama_put_time(w, now.tv_sec, now.tv_nsec);
}

/* ---- tool calls -------------------------------------------------------------------------------------------------- */
/* Ollama's arguments are an object, not a text of one. What the model wrote and is none, which only happens where no
 * grammar holds it to it, is kept as {"arguments": "text"}. */
static void put_arguments(mx_api_writer *w, const char *text, size_t size) {
    mx_json_document *document = NULL;
    mx_bytes plain = {0};
    mx_error wrong;
    w->failed |= !mx_api_add_arguments(&plain, text, size);
    if (!w->failed && !mx_json_parse("arguments", plain.data, plain.size, &document, &wrong) &&
        mx_json_root(document)->type == MX_JSON_OBJECT) {
        w->failed |= !mx_json_write(w->out, mx_json_root(document));
    } else {
        mx_api_put(w, "{\"arguments\":");
        mx_api_put_string(w, text, size);
        mx_api_put(w, "}");
    }
    mx_json_free(document);
    mx_bytes_free(&plain);
}

static void put_call(mx_api_writer *w, const mx_api_answer *a, int index, const char *name, const mx_bytes *arguments) {
    char id[80];
    mx_api_call_id(w, a, index, id);
    name = mx_api_client_name(w->request, name);
    mx_api_putf(w, "{\"id\":\"%s\",\"function\":{\"index\":%d,\"name\":", id, index);
    mx_api_put_string(w, name, strlen(name));
    mx_api_put(w, ",\"arguments\":");
    put_arguments(w, arguments->data, arguments->size);
    mx_api_put(w, "}}");
}

/* ---- logprobs ---------------------------------------------------------------------------------------------------- */
/* ,"logprobs":[...] of what was not sent yet and is content. */
static void put_logprobs(mx_api_writer *w, mx_ollama_answer *state, const mx_api_answer *a) {
    if (w->request->logprobs < 0) return;
    mx_api_tokens fresh = a->tokens;
    fresh.item += fresh.item ? state->tokens : 0;
    fresh.count -= state->tokens;
    state->tokens = a->tokens.count;
    bool any = false;
    for (int i = 0; i < fresh.count && !any; i++) any = fresh.item[i].shown;
    if (!any) return;
    mx_api_put(w, ",\"logprobs\":");
    mx_api_put_chat_tokens(w, &fresh);
}

/* ---- records ----------------------------------------------------------------------------------------------------- */
static void begin_record(mx_api_writer *w) {
    mx_api_put(w, "{");
    mx_ollama_put_head(w);
}

/* {"model", "created_at", "message": {"role", "content", "thinking"}, "done": false} up to the message's last brace,
 * so that a record may say more of it. Thinking NULL: none. */
static void put_said(mx_api_writer *w, bool chat, const char *text, size_t size, const char *thinking,
                     size_t thinking_size) {
    mx_api_put(w, chat ? ",\"message\":{\"role\":\"assistant\",\"content\":" : ",\"response\":");
    mx_api_put_string(w, text, size);
    if (!thinking) return;
    mx_api_put(w, ",\"thinking\":");
    mx_api_put_string(w, thinking, thinking_size);
}

static bool put_text(mx_work *work, mx_api_answer *a, const mx_piece *piece, mx_bytes *out) {
    mx_ollama_answer *state = work->state;
    mx_api_writer w = mx_work_writer(work, out);
    const bool thinking = piece->kind == MX_PIECE_THINKING;
    bool *any = thinking ? &state->any_thinking : &state->any_text;
    mx_bytes joined = {0}; /* several messages of a kind are parted as mx_turn_result parts them */
    if (thinking && state->hide_thinking) return true;
    if (piece->first && *any) w.failed |= !mx_bytes_add_string(&joined, "\n\n");
    w.failed |= !mx_bytes_add(&joined, piece->text, piece->size);
    if (!joined.size) { /* most messages begin with nothing */
        mx_bytes_free(&joined);
        return !w.failed;
    }
    *any = true;
    begin_record(&w);
    put_said(&w, state->chat, thinking ? "" : joined.data, thinking ? 0 : joined.size, thinking ? joined.data : NULL,
             thinking ? joined.size : 0);
    if (state->chat) mx_api_put(&w, "}");
    mx_api_put(&w, ",\"done\":false");
    put_logprobs(&w, state, a);
    mx_api_put(&w, "}\n");
    mx_bytes_free(&joined);
    return !w.failed;
}

/* A call goes out once it is there as a whole. One that was cut is none. */
static bool put_call_piece(mx_work *work, mx_api_answer *a, const mx_piece *piece, mx_bytes *out) {
    mx_ollama_answer *state = work->state;
    mx_api_writer w = mx_work_writer(work, out);
    if (piece->first) mx_bytes_clear(&state->call);
    if (!mx_bytes_add(&state->call, piece->text, piece->size)) return false;
    if (!piece->last) return true;
    const int index = state->calls++;
    if (piece->cut || !state->chat) return true;
    begin_record(&w);
    put_said(&w, true, "", 0, NULL, 0);
    mx_api_put(&w, ",\"tool_calls\":[");
    put_call(&w, a, index, piece->name, &state->call);
    mx_api_put(&w, "]},\"done\":false}\n");
    return !w.failed;
}

static bool put_piece(mx_work *work, mx_api_answer *a, const mx_piece *piece, mx_bytes *out) {
    return (piece->kind == MX_PIECE_TOOL_CALL ? put_call_piece : put_text)(work, a, piece, out);
}

static long long nanoseconds(double seconds) {
    return seconds > 0 ? (long long)(seconds * 1e9) : 0;
}

/* Nothing is loaded for a request: what Ollama calls load_duration is the time in the queue. */
static void put_end(mx_api_writer *w, const mx_work *work, const mx_api_answer *a) {
    const char *finish = mx_api_answer_finish(a, true);
    mx_api_putf(w, ",\"done\":true,\"done_reason\":\"%s\"", strcmp(finish, "length") ? "stop" : "length");
    mx_api_putf(w,
                ",\"total_duration\":%lld,\"load_duration\":%lld,\"prompt_eval_count\":%lld,"
                "\"prompt_eval_duration\":%lld,\"eval_count\":%lld,\"eval_duration\":%lld}\n",
                nanoseconds(mx_seconds() - work->started), nanoseconds(a->usage.queue_seconds),
                (long long)a->usage.prompt_tokens, nanoseconds(a->usage.prompt_seconds),
                (long long)mx_api_answer_count(a), nanoseconds(a->usage.generate_seconds));
}

/* ,"tool_calls":[...] of a whole answer */
static void put_calls(mx_api_writer *w, const mx_api_answer *a, const mx_turn_result *r) {
    int count = 0;
    for (int i = 0; i < r->tool_call_count; i++) {
        if (r->tool_calls[i].incomplete) continue;
        mx_api_put(w, count++ ? "," : ",\"tool_calls\":[");
        put_call(w, a, i, r->tool_calls[i].name, &r->tool_calls[i].arguments);
    }
    if (count) mx_api_put(w, "]");
}

static bool put_last(mx_work *work, mx_bytes *out) {
    mx_ollama_answer *state = work->state;
    const mx_api_answer *a = &work->answers[0];
    const mx_turn_result *r = mx_turn_get_result(a->turn);
    mx_api_writer w = mx_work_writer(work, out);
    begin_record(&w);
    if (work->stream) {
        put_said(&w, state->chat, "", 0, NULL, 0);
    } else {
        const bool thinking = r->thinking.size && !state->hide_thinking;
        put_said(&w, state->chat, r->text.data, r->text.size, thinking ? r->thinking.data : NULL,
                 thinking ? r->thinking.size : 0);
        if (state->chat) put_calls(&w, a, r);
    }
    if (state->chat) mx_api_put(&w, "}");
    put_logprobs(&w, state, a);
    put_end(&w, work, a);
    return !w.failed;
}

static bool put_broken(mx_work *work, const mx_api_problem *problem, mx_bytes *out) {
    mx_api_writer w = mx_work_writer(work, out);
    mx_api_put(&w, "{\"error\":");
    mx_api_put_string(&w, problem->text, strlen(problem->text));
    mx_api_put(&w, "}\n");
    return !w.failed;
}

static void free_state(void *state) {
    mx_ollama_answer *s = state;
    if (s) mx_bytes_free(&s->call);
    free(s);
}

/* Ollama's streams know no comments, and its clients stumble over empty lines. A space is the beginning of the next
 * line. */
const mx_form mx_ollama_form = {
    .stream_type = "application/x-ndjson",
    .keep_alive = " ",
    .piece = put_piece,
    .finish = put_last,
    .broken = put_broken,
    .free = free_state,
};
