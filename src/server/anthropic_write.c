#include <stdlib.h>
#include <string.h>

#include "server/anthropic.h"
#include "server/protocol.h"

/* Answers as messages, and as the events of a stream. */
void mx_anthropic_free(void *state) {
    mx_anthropic_state *s = state;
    if (!s) return;
    mx_bytes_free(&s->text);
    free(s);
}

/* ---- problems ---------------------------------------------------------------------------------------------------- */
static const char *problem_type(int http_status) {
    static const struct {
        int status;
        const char *type;
    } types[] = {{401, "authentication_error"}, {403, "permission_error"}, {404, "not_found_error"},
                 {413, "request_too_large"},    {429, "rate_limit_error"}, {503, "overloaded_error"},
                 {504, "timeout_error"}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].status == http_status) return types[i].type;
    return http_status < 500 ? "invalid_request_error" : "api_error";
}

bool mx_anthropic_problem(mx_bytes *out, const mx_api_problem *problem) {
    return mx_bytes_addf(out, "{\"type\":\"error\",\"error\":{\"type\":\"%s\",\"message\":",
                         problem_type(problem->http_status)) &&
           mx_bytes_add_json(out, problem->text, strlen(problem->text)) && mx_bytes_add_string(out, "}") &&
           (!problem->request_id || mx_bytes_addf(out, ",\"request_id\":\"req_%s\"", problem->request_id)) &&
           mx_bytes_add_string(out, "}");
}

/* ---- calls ------------------------------------------------------------------------------------------------------- */
/* A call's arguments as the JSON object that an input is; false: they are none, *out is the call as text then. */
static bool read_input(mx_api_writer *w, const char *name, const char *text, size_t size, bool cut, mx_bytes *out) {
    mx_bytes arguments = {0};
    mx_json_document *document = NULL;
    bool object = false;
    if (!cut) {
        w->failed |= !mx_api_add_arguments(&arguments, text, size);
        const mx_status status =
            mx_json_parse("arguments", arguments.data ? arguments.data : "", arguments.size, &document, NULL);
        w->failed |= status == MX_NO_MEMORY;
        object = !status && mx_json_root(document)->type == MX_JSON_OBJECT;
    }
    if (object)
        w->failed |= !mx_json_write(out, mx_json_root(document));
    else
        w->failed |= !mx_bytes_addf(out, "%s ", name) || !mx_bytes_add(out, text, size);
    mx_json_free(document);
    mx_bytes_free(&arguments);
    return object;
}

/* {"type": "tool_use", "id", "name", "input" */
static void put_use(mx_api_writer *w, const mx_api_answer *a, int call, const char *name, const char *input) {
    char id[80];
    mx_api_call_id(w, a, call, id);
    mx_api_putf(w, "{\"type\":\"tool_use\",\"id\":\"%s\",\"name\":", id);
    mx_api_put_string(w, name, strlen(name));
    mx_api_put(w, ",\"input\":");
    mx_api_put(w, input);
    mx_api_put(w, "}");
}

/* ---- messages ---------------------------------------------------------------------------------------------------- */
static void put_thinking(mx_api_writer *w, const char *text, size_t size) {
    mx_api_put(w, "{\"type\":\"thinking\",\"thinking\":");
    mx_api_put_string(w, text, size);
    mx_api_putf(w, ",\"signature\":\"" MX_ANTHROPIC_SIGNATURE "%s\"}", w->id);
}

static void put_text(mx_api_writer *w, const char *text, size_t size) {
    mx_api_put(w, "{\"type\":\"text\",\"text\":");
    mx_api_put_string(w, text, size);
    mx_api_put(w, ",\"citations\":null}");
}

static void put_call(mx_api_writer *w, const mx_api_answer *a, const mx_turn_message *m, bool *any_call) {
    const mx_tool_call *call = &mx_turn_get_result(a->turn)->tool_calls[m->call];
    const char *name = mx_api_client_name(w->request, call->name);
    mx_bytes input = {0};
    if (read_input(w, name, m->text, m->size, m->cut, &input)) {
        put_use(w, a, m->call, name, input.data ? input.data : "{}");
        *any_call = true;
    } else {
        put_text(w, input.data, input.size);
    }
    mx_bytes_free(&input);
}

/* Did the answer end before the model was done? */
static bool is_cut(const mx_turn_result *r) {
    return r->finish != MX_TURN_STOP && r->finish != MX_TURN_TOOL_CALLS;
}

static void put_content(mx_api_writer *w, const mx_api_answer *a, const mx_anthropic_state *s, bool *any_call) {
    const mx_turn_result *r = mx_turn_get_result(a->turn);
    const bool thinking = s->thinking || (is_cut(r) && !r->text.size && !r->tool_call_count);
    bool any = false;
    mx_api_put(w, "[");
    for (int i = 0; i < mx_turn_message_count(a->turn); i++) {
        const mx_turn_message m = mx_turn_message_at(a->turn, i);
        if (m.kind == MX_PIECE_TOOL_CALL ? false : !m.size || (m.kind == MX_PIECE_THINKING && !thinking)) continue;
        if (any) mx_api_put(w, ",");
        any = true;
        if (m.kind == MX_PIECE_TOOL_CALL)
            put_call(w, a, &m, any_call);
        else if (m.kind == MX_PIECE_THINKING)
            put_thinking(w, m.text, m.size);
        else
            put_text(w, m.text, m.size);
    }
    mx_api_put(w, "]");
}

/* "stop_reason":...,"stop_sequence":... */
static void put_stop(mx_api_writer *w, const mx_api_answer *a, bool any_call) {
    const mx_turn_result *r = mx_turn_get_result(a->turn);
    const char *reason = r->stop_string                 ? "stop_sequence"
                         : r->finish == MX_TURN_CONTEXT ? "model_context_window_exceeded"
                         : is_cut(r)                    ? "max_tokens"
                         : any_call                     ? "tool_use"
                                                        : "end_turn";
    mx_api_putf(w, "\"stop_reason\":\"%s\",\"stop_sequence\":", reason);
    if (r->stop_string) {
        const char *stop = w->request->stop[r->stop_index];
        mx_api_put_string(w, stop, strlen(stop));
    } else {
        mx_api_put(w, "null");
    }
}

/* Of the prompt's tokens input_tokens are those that had to be computed. */
static void put_usage(mx_api_writer *w, int64_t cached, int64_t out, int64_t thinking) {
    mx_api_putf(w,
                "\"usage\":{\"input_tokens\":%lld,\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":%lld,"
                "\"output_tokens\":%lld,\"output_tokens_details\":{\"thinking_tokens\":%lld}}",
                (long long)(w->request->prompts[0].count - cached), (long long)cached, (long long)out,
                (long long)thinking);
}

static void put_answer_usage(mx_api_writer *w, const mx_api_answer *a) {
    put_usage(w, a->usage.cached_tokens, mx_api_answer_count(a), a->thinking_tokens);
}

/* {"id", "type", "role", "model" */
static void put_head(mx_api_writer *w, const mx_work *work) {
    mx_api_putf(w, "{\"id\":\"msg_%s\",\"type\":\"message\",\"role\":\"assistant\",\"model\":", work->id);
    mx_api_put_string(w, work->parts->model, strlen(work->parts->model));
}

static void put_message(mx_api_writer *w, const mx_work *work) {
    const mx_api_answer *a = &work->answers[0];
    bool any_call = false;
    put_head(w, work);
    mx_api_put(w, ",\"content\":");
    put_content(w, a, work->state, &any_call);
    mx_api_put(w, ",");
    put_stop(w, a, any_call);
    mx_api_put(w, ",");
    put_answer_usage(w, a);
    mx_api_put(w, "}");
}

/* ---- streams ----------------------------------------------------------------------------------------------------- */
static void begin_event(mx_api_writer *w, const char *type) {
    mx_api_putf(w, "event: %s\ndata: {\"type\":\"%s\"", type, type);
}

static void end_event(mx_api_writer *w) {
    mx_api_put(w, "}\n\n");
}

static bool begin(mx_work *work, mx_bytes *out) {
    mx_api_writer w = mx_work_writer(work, out);
    begin_event(&w, "message_start");
    mx_api_put(&w, ",\"message\":");
    put_head(&w, work);
    mx_api_put(&w, ",\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,");
    put_usage(&w, 0, 0, 0);
    mx_api_put(&w, "}");
    end_event(&w);
    return !w.failed;
}

static void begin_block(mx_api_writer *w, mx_anthropic_state *s) {
    begin_event(w, "content_block_start");
    mx_api_putf(w, ",\"index\":%d,\"content_block\":", s->blocks);
    s->open = true;
}

static void end_start(mx_api_writer *w, const mx_anthropic_state *s) {
    end_event(w);
    if (s->blocks > 0) return;
    begin_event(w, "ping");
    end_event(w);
}

/* A block of text or thinking that is empty as yet. */
static void open_text(mx_api_writer *w, mx_anthropic_state *s, mx_piece_kind kind) {
    begin_block(w, s);
    mx_api_put(w, kind == MX_PIECE_THINKING ? "{\"type\":\"thinking\",\"thinking\":\"\",\"signature\":\"\"}"
                                            : "{\"type\":\"text\",\"text\":\"\",\"citations\":null}");
    end_start(w, s);
}

static void delta(mx_api_writer *w, const mx_anthropic_state *s, const char *type, const char *member, const char *text,
                  size_t size) {
    begin_event(w, "content_block_delta");
    mx_api_putf(w, ",\"index\":%d,\"delta\":{\"type\":\"%s\",\"%s\":", s->blocks, type, member);
    mx_api_put_string(w, text, size);
    mx_api_put(w, "}");
    end_event(w);
}

static void close_block(mx_api_writer *w, mx_anthropic_state *s) {
    begin_event(w, "content_block_stop");
    mx_api_putf(w, ",\"index\":%d", s->blocks++);
    end_event(w);
    s->open = false;
}

static void sign(mx_api_writer *w, const mx_anthropic_state *s) {
    begin_event(w, "content_block_delta");
    mx_api_putf(w,
                ",\"index\":%d,\"delta\":{\"type\":\"signature_delta\",\"signature\":\"" MX_ANTHROPIC_SIGNATURE "%s\"}",
                s->blocks, w->id);
    end_event(w);
}

static void text_piece(mx_api_writer *w, mx_anthropic_state *s, mx_piece_kind kind, const char *text, size_t size,
                       bool last) {
    const bool thinking = kind == MX_PIECE_THINKING;
    if (size && !s->open) open_text(w, s, kind);
    if (size) delta(w, s, thinking ? "thinking_delta" : "text_delta", thinking ? "thinking" : "text", text, size);
    if (!last || !s->open) return;
    if (thinking) sign(w, s);
    close_block(w, s);
}

/* A whole call. */
static void call_piece(mx_api_writer *w, mx_anthropic_state *s, const mx_api_answer *a, const mx_piece *p) {
    const char *name = mx_api_client_name(w->request, p->name);
    mx_bytes input = {0};
    if (read_input(w, name, s->text.data ? s->text.data : "", s->text.size, p->cut, &input)) {
        begin_block(w, s);
        put_use(w, a, s->calls, name, "{}");
        end_start(w, s);
        delta(w, s, "input_json_delta", "partial_json", input.data, input.size);
        close_block(w, s);
        s->any_call = true;
    } else {
        text_piece(w, s, MX_PIECE_TEXT, input.data, input.size, true);
    }
    mx_bytes_free(&input);
}

static bool piece(mx_work *work, mx_api_answer *a, const mx_piece *p, mx_bytes *out) {
    mx_anthropic_state *s = work->state;
    mx_api_writer w = mx_work_writer(work, out);
    const bool call = p->kind == MX_PIECE_TOOL_CALL, hidden = p->kind == MX_PIECE_THINKING && !s->thinking;
    if (hidden) return true;
    if (!call) {
        text_piece(&w, s, p->kind, p->text, p->size, p->last);
        return !w.failed;
    }
    if (!mx_bytes_add(&s->text, p->text, p->size)) return false;
    if (p->last) {
        call_piece(&w, s, a, p);
        s->calls++;
        mx_bytes_clear(&s->text);
    }
    return !w.failed;
}

static bool finish(mx_work *work, mx_bytes *out) {
    mx_anthropic_state *s = work->state;
    const mx_api_answer *a = &work->answers[0];
    mx_api_writer w = mx_work_writer(work, out);
    if (!work->stream) {
        put_message(&w, work);
        return !w.failed;
    }
    const mx_turn_result *r = mx_turn_get_result(a->turn);
    if (!s->blocks && is_cut(r) && r->thinking.size)
        text_piece(&w, s, MX_PIECE_THINKING, r->thinking.data, r->thinking.size, true);
    begin_event(&w, "message_delta");
    mx_api_put(&w, ",\"delta\":{");
    put_stop(&w, a, s->any_call);
    mx_api_put(&w, "},");
    put_answer_usage(&w, a);
    end_event(&w);
    begin_event(&w, "message_stop");
    end_event(&w);
    return !w.failed;
}

static bool broken(mx_work *work, const mx_api_problem *problem, mx_bytes *out) {
    mx_api_problem told = *problem;
    told.request_id = work->id;
    return mx_bytes_add_string(out, "event: error\ndata: ") && mx_anthropic_problem(out, &told) &&
           mx_bytes_add_string(out, "\n\n");
}

const mx_form mx_anthropic_form = {.stream_type = "text/event-stream",
                                   .keep_alive = "event: ping\ndata: {\"type\":\"ping\"}\n\n",
                                   .begin = begin,
                                   .piece = piece,
                                   .finish = finish,
                                   .broken = broken,
                                   .free = mx_anthropic_free};
