#include "turn/turn.h"

#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "model/model.h"
#include "turn/stop.h"

struct mx_turn {
    mx_turn_options options;
    mx_harmony_parser *parser; /* NULL: raw */
    mx_utf8_stream utf8;       /* raw */
    mx_harmony_ids special;
    mx_stop stop;
    mx_turn_result result;
    bool over, ended;
    bool strayed; /* the model went on as somebody else, which is no answer: over */
    bool cut;  /* the engine broke off; what is still open is not whole */
    bool open; /* a message is being written */
    mx_piece_kind kind;
    bool preamble;
    char *name;               /* of the open tool call */
    mx_bytes text;            /* of the open message, as delivered */
    mx_bytes show;            /* scratch */
    int messages;             /* of the parser, already closed here */
    int whole;                /* of them, closed before the turn ended */
    bool content;             /* the last token was content, */
    mx_piece_kind token_kind; /* of such a message, */
    int token_message;        /* the so manyth */
};

const char *mx_turn_finish_name(mx_turn_finish finish) {
    static const char *const names[] = {"stop", "tool_calls", "length", "context", "cancelled"};
    return names[finish];
}

static mx_status no_memory(mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "no memory for the answer");
}

mx_status mx_turn_create(const mx_turn_options *options, mx_turn **out, mx_error *error) {
    *out = NULL;
    mx_turn *t = calloc(1, sizeof *t);
    if (!t) return no_memory(error);
    t->options = *options;
    t->special = mx_tokenizer_harmony_ids(options->tokenizer);
    mx_status status = mx_stop_create(options->stop, options->stop_count, &t->stop, error);
    t->options.stop = NULL;
    if (!status && !options->raw) {
        status = mx_harmony_parser_create(options->tokenizer, MX_HARMONY_LENIENT, "assistant", &t->parser, error);
    }
    if (status) {
        mx_turn_free(t);
        return status;
    }
    *out = t;
    return MX_OK;
}

void mx_turn_free(mx_turn *t) {
    if (!t) return;
    mx_harmony_parser_free(t->parser);
    mx_stop_free(&t->stop);
    for (int i = 0; i < t->result.tool_call_count; i++) {
        free(t->result.tool_calls[i].name);
        mx_bytes_free(&t->result.tool_calls[i].arguments);
    }
    free(t->result.tool_calls);
    mx_bytes_free(&t->result.text);
    mx_bytes_free(&t->result.thinking);
    mx_ids_free(&t->result.ids);
    free(t->name);
    mx_bytes_free(&t->text);
    mx_bytes_free(&t->show);
    free(t);
}

bool mx_turn_over(const mx_turn *t) {
    return t->over;
}

const mx_turn_result *mx_turn_get_result(const mx_turn *t) {
    return &t->result;
}

const mx_tokenizer *mx_turn_tokenizer(const mx_turn *t) {
    return t->options.tokenizer;
}

const mx_harmony_parser *mx_turn_parser(const mx_turn *t) {
    return t->parser;
}

const char *mx_turn_cut_text(const mx_turn *t, size_t *size) {
    *size = t->text.size;
    return t->text.data ? t->text.data : "";
}

bool mx_turn_token_kind(const mx_turn *t, mx_piece_kind *kind) {
    *kind = t->token_kind;
    return t->content;
}

int mx_turn_token_message(const mx_turn *t) {
    return t->token_message;
}

/* ---- messages ---------------------------------------------------------------------------------------------------- */
static void deliver(mx_turn *t, const char *text, size_t size, bool first, bool last) {
    if (!t->options.piece || t->over) return;
    mx_piece piece = {.kind = t->kind, .first = first, .last = last, .text = text ? text : "", .size = size};
    if (t->kind == MX_PIECE_TOOL_CALL) piece.name = t->name;
    piece.cut = last && t->cut;
    piece.preamble = t->preamble;
    if (!t->options.piece(t->options.user, &piece)) t->over = true;
}

/* "functions.get_weather" → "get_weather". Models are known to let a format token slip into the name. */
static char *tool_name(const char *recipient) {
    const char prefix[] = "functions.";
    if (strncmp(recipient, prefix, sizeof prefix - 1) == 0) recipient += sizeof prefix - 1;
    return strndup(recipient, strcspn(recipient, "< \t\r\n"));
}

static mx_piece_kind kind_of(const char *channel, const char *recipient) {
    if (recipient && *recipient && strcmp(recipient, "all") != 0 && strcmp(recipient, "user") != 0)
        return MX_PIECE_TOOL_CALL;
    return channel && strcmp(channel, "analysis") == 0 ? MX_PIECE_THINKING : MX_PIECE_TEXT;
}

static bool is_preamble(mx_piece_kind kind, const char *channel) {
    return kind == MX_PIECE_TEXT && channel && strcmp(channel, "commentary") == 0;
}

static bool begin_message(mx_turn *t, const char *channel, const char *recipient) {
    t->open = true;
    t->kind = kind_of(channel, recipient);
    t->preamble = is_preamble(t->kind, channel);
    mx_bytes_clear(&t->text);
    if (t->kind == MX_PIECE_TOOL_CALL) {
        free(t->name);
        if (!(t->name = tool_name(recipient))) return false;
    }
    mx_bytes *joined = t->kind == MX_PIECE_THINKING ? &t->result.thinking
                       : t->kind == MX_PIECE_TEXT   ? &t->result.text
                                                    : NULL;
    if (joined && joined->size && !mx_bytes_add_string(joined, "\n\n")) return false;
    deliver(t, NULL, 0, true, false);
    return true;
}

/* Text that is decided: to the result and to whoever listens. */
static bool add_shown(mx_turn *t, const char *text, size_t size) {
    if (size == 0) return true;
    if (!mx_bytes_add(&t->text, text, size)) return false;
    if (t->kind == MX_PIECE_THINKING && !mx_bytes_add(&t->result.thinking, text, size)) return false;
    if (t->kind == MX_PIECE_TEXT && !mx_bytes_add(&t->result.text, text, size)) return false;
    deliver(t, text, size, false, false);
    return true;
}

static bool add_text(mx_turn *t, const char *text, size_t size) {
    if (t->kind != MX_PIECE_TEXT || t->result.ids.count <= t->options.min_tokens) return add_shown(t, text, size);
    bool found;
    mx_bytes_clear(&t->show);
    if (!mx_stop_add(&t->stop, text, size, &t->show, &found) || !add_shown(t, t->show.data, t->show.size)) return false;
    if (found) {
        deliver(t, NULL, 0, false, true);
        t->open = false;
        t->result.stop_string = t->over = true;
        t->result.stop_index = t->stop.found;
    }
    return true;
}

static bool keep_tool_call(mx_turn *t) {
    int count = t->result.tool_call_count;
    mx_tool_call *calls = realloc(t->result.tool_calls, (size_t)(count + 1) * sizeof *calls);
    if (!calls) return false;
    t->result.tool_calls = calls;
    calls[count] = (mx_tool_call){.name = strdup(t->name), .incomplete = t->cut};
    if (!calls[count].name) return false;
    t->result.tool_call_count++;
    return mx_bytes_add(&calls[count].arguments, t->text.data, t->text.size);
}

static bool end_message(mx_turn *t) {
    if (t->kind == MX_PIECE_TEXT) {
        mx_bytes_clear(&t->show);
        if (!mx_stop_end(&t->stop, &t->show) || !add_shown(t, t->show.data, t->show.size)) return false;
    }
    if (t->kind == MX_PIECE_TOOL_CALL && !keep_tool_call(t)) return false;
    deliver(t, NULL, 0, false, true);
    t->open = false;
    return true;
}

static bool is_own(const char *role) {
    return !role || strcmp(role, "assistant") == 0;
}

/* The model invents what the user says next, or what a tool returns: nobody hears of it. */
static bool stray(mx_turn *t) {
    t->strayed = t->over = true;
    t->content = false;
    return true;
}

/* What one pushed token, or the end, did to the parser. */
static bool follow_parser(mx_turn *t, const mx_harmony_delta *delta) {
    if (!is_own(delta->role)) return stray(t);
    if (delta->text && delta->text_size) {
        if (!t->open && !begin_message(t, delta->channel, delta->recipient)) return false;
        if (!add_text(t, delta->text, delta->text_size)) return false;
    }
    for (; t->messages < mx_harmony_message_count(t->parser) && !t->over; t->messages++) {
        const mx_harmony_message *m = mx_harmony_message_at(t->parser, t->messages);
        if (!is_own(m->role)) return stray(t);
        if (!t->open && !begin_message(t, m->channel, m->recipient)) return false;
        if (!end_message(t)) return false;
    }
    return true;
}

int mx_turn_message_count(const mx_turn *t) {
    return t->parser ? t->messages + t->result.stop_string : 0;
}

mx_turn_message mx_turn_message_at(const mx_turn *t, int index) {
    if (index == t->messages) /* what a stop string cut */
        return (mx_turn_message){
            .kind = t->kind, .preamble = t->preamble, .text = t->text.data ? t->text.data : "", .size = t->text.size};
    const mx_harmony_message *m = mx_harmony_message_at(t->parser, index);
    mx_turn_message out = {.kind = kind_of(m->channel, m->recipient),
                           .text = m->content.data ? m->content.data : "",
                           .size = m->content.size};
    out.preamble = is_preamble(out.kind, m->channel);
    out.cut = t->cut && index >= t->whole;
    if (out.kind != MX_PIECE_TOOL_CALL) return out;
    for (int i = 0; i < index; i++) {
        const mx_harmony_message *before = mx_harmony_message_at(t->parser, i);
        out.call += kind_of(before->channel, before->recipient) == MX_PIECE_TOOL_CALL;
    }
    return out;
}

/* ---- tokens ------------------------------------------------------------------------------------------------------ */
static bool is_stop_token(const mx_turn *t, int32_t token) {
    const mx_ids *stop = t->options.stop_tokens;
    for (int64_t i = 0; stop && i < stop->count; i++) {
        if (stop->data[i] == token) return true;
    }
    return false;
}

static bool push_raw(mx_turn *t, int32_t token) {
    if (!t->open && !begin_message(t, NULL, NULL)) return false;
    if (is_stop_token(t, token)) return true;
    t->content = true;
    t->token_kind = MX_PIECE_TEXT;
    size_t size;
    const char *bytes = mx_token_bytes(t->options.tokenizer, token, &size);
    mx_bytes text = {0};
    bool added = mx_utf8_stream_add(&t->utf8, bytes, size, &text) && add_text(t, text.data, text.size);
    mx_bytes_free(&text);
    return added;
}

/* Header words bring neither text nor a channel; a token that ends inside a character brings only the channel. */
static void classify(mx_turn *t, int32_t token, const mx_harmony_delta *delta, int before) {
    t->content = (delta->text || delta->channel) && !mx_is_special(t->options.tokenizer, token);
    t->token_kind = kind_of(delta->channel, delta->recipient);
    t->token_message = before;
}

mx_status mx_turn_push(mx_turn *t, int32_t token, mx_error *error) {
    t->content = false;
    if (t->over || t->ended) return MX_OK;
    if (!mx_ids_add(&t->result.ids, token)) return no_memory(error);
    if (!t->parser) return push_raw(t, token) ? MX_OK : no_memory(error);
    /* An end that harmony does not know, such as <|endoftext|>. */
    if (is_stop_token(t, token) && token != t->special.return_ && token != t->special.call) return MX_OK;
    mx_harmony_delta delta = {0};
    const int before = mx_harmony_message_count(t->parser);
    mx_status status = mx_harmony_push(t->parser, token, &delta, error);
    if (status) return status;
    classify(t, token, &delta, before);
    return follow_parser(t, &delta) ? MX_OK : no_memory(error);
}

static mx_turn_finish finish_of(const mx_turn *t, mx_finish finish) {
    if (t->result.stop_string) return MX_TURN_STOP;
    switch (t->strayed ? MX_FINISH_STOP : finish) {
    case MX_FINISH_LENGTH:
        return MX_TURN_LENGTH;
    case MX_FINISH_CONTEXT:
        return MX_TURN_CONTEXT;
    case MX_FINISH_CANCELLED:
    case MX_FINISH_DEADLINE:
        return MX_TURN_CANCELLED;
    case MX_FINISH_STOP:
    case MX_FINISH_CONSTRAINT:
        break;
    }
    return t->result.tool_call_count ? MX_TURN_TOOL_CALLS : MX_TURN_STOP;
}

static bool end_raw(mx_turn *t) {
    if (!t->open && !begin_message(t, NULL, NULL)) return false;
    mx_bytes text = {0};
    bool added = mx_utf8_stream_end(&t->utf8, &text) && add_text(t, text.data, text.size);
    mx_bytes_free(&text);
    return added && (!t->open || end_message(t));
}

mx_status mx_turn_end(mx_turn *t, mx_finish finish, mx_error *error) {
    if (t->ended) return MX_OK;
    t->ended = true;
    t->cut = finish != MX_FINISH_STOP && finish != MX_FINISH_CONSTRAINT;
    t->whole = t->messages;
    mx_status status = MX_OK;
    if (t->parser) { /* also when it is over, so that the message it broke off in is complete */
        mx_harmony_delta delta = {0};
        if (!t->strayed) status = mx_harmony_end(t->parser, &delta, error);
        if (!status && !t->over && !follow_parser(t, &delta)) status = no_memory(error);
    } else if (!t->over && !end_raw(t)) {
        status = no_memory(error);
    }
    t->result.finish = finish_of(t, finish);
    return status;
}

/* ---- driving ----------------------------------------------------------------------------------------------------- */
static mx_status take_events(mx_turn *t, mx_engine *engine, mx_handle handle, double start, bool *done,
                             mx_error *error) {
    mx_event events[16];
    int count;
    while ((count = mx_poll(engine, events, 16)) > 0) {
        for (int i = 0; i < count; i++) {
            const mx_event *e = &events[i];
            mx_status status = MX_OK;
            if (e->request != handle) continue;
            switch (e->type) {
            case MX_EVENT_TOKEN:
                if (t->result.ids.count == 0) t->result.seconds_to_first = mx_seconds() - start;
                status = mx_turn_push(t, e->token, error);
                break;
            case MX_EVENT_PROMPT:
                break;
            case MX_EVENT_FINISHED:
                *done = true;
                t->result.usage = e->usage;
                status = mx_turn_end(t, e->finish, error);
                break;
            case MX_EVENT_FAILED:
                *done = true;
                if (error) *error = e->error;
                return e->error.status;
            }
            if (status) return status;
        }
    }
    return MX_OK;
}

mx_status mx_turn_run(mx_turn *t, mx_engine *engine, const mx_request *request,
                      const volatile sig_atomic_t *interrupted, mx_error *error) {
    double start = mx_seconds();
    mx_handle handle;
    mx_status status = mx_submit(engine, request, &handle, error);
    if (status) return status;
    bool done = false, cancelled = false;
    while (!status && !done) {
        if (!cancelled && (t->over || (interrupted && *interrupted))) {
            mx_cancel(engine, handle);
            cancelled = true;
        }
        status = mx_step(engine, error);
        if (!status) status = take_events(t, engine, handle, start, &done, error);
    }
    if (status && !done) mx_cancel(engine, handle);
    return status;
}

static bool add_once(mx_ids *ids, int32_t id) {
    for (int64_t i = 0; i < ids->count; i++) {
        if (ids->data[i] == id) return true;
    }
    return id < 0 || mx_ids_add(ids, id);
}

bool mx_turn_stop_tokens(const mx_tokenizer *t, const mx_config *config, mx_ids *out) {
    mx_harmony_ids special = mx_tokenizer_harmony_ids(t);
    if (!add_once(out, special.return_) || !add_once(out, special.call) || !add_once(out, special.endoftext)) {
        return false;
    }
    for (int i = 0; i < config->eos_count; i++) {
        if (config->eos[i] != special.end && !add_once(out, config->eos[i])) return false;
    }
    return true;
}
