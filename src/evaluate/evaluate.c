/* Windows through the engine, and what comes of them. */
#include "evaluate/evaluate.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "evaluate/base_file.h"
#include "evaluate/run.h"

enum {
    SLOTS = 256,            /* windows at work at most */
    TOKENS_AT_WORK = 16384, /* more windows are not begun while there are so many tokens in them, ... */
    WHOLE_UP_TO = 8192,     /* of such vocabularies all is kept: at most 64 KiB a token */
    BASE_TOP = 1024,        /* of others so much: 8 KiB a token */
    EVENTS = 64
};
static const int64_t BYTES_AT_WORK = 256 << 20; /* ... or so many bytes in their distributions */

struct run;
typedef struct slot {
    struct run *run;
    const mx_window *window;
    mx_handle handle;
    bool done;
    uint8_t *save, *base; /* records of its scored tokens; NULL: not wanted */
} slot;

typedef struct run {
    mx_engine *engine;
    const mx_windows *windows;
    const mx_evaluate_options *options;
    mx_measured *measured;
    mx_base_writer *writer; /* NULL: not wanted, both */
    mx_base_reader *reader;
    int32_t vocab, save_top, base_top;
    slot slot[SLOTS];           /* a ring: window i is in slot i % SLOTS */
    int64_t first, next, ended; /* windows first .. next - 1 were begun and not taken; windows that ended, of all */
    int64_t tokens, bytes;      /* in them */
    _Atomic int64_t observed;   /* scored tokens */
    atomic_bool damaged;        /* a record of the reference is none */
} run;

/* ---- in the engine's threads --------------------------------------------------------------------------------------
 */
static int64_t save_bytes(const run *r) {
    return r->writer ? mx_base_record_bytes(r->save_top) : 0;
}
static int64_t base_bytes(const run *r) {
    return r->reader ? mx_base_record_bytes(r->base_top) : 0;
}

/* Token i of those scored in a slot's window, against the reference. */
static void compare(run *r, const slot *s, int64_t i, const float *logits, mx_distribution *q) {
    const int64_t all = s->window->scored + i;
    mx_base_record p;
    if (!mx_base_record_get(s->base + i * base_bytes(r), r->vocab, r->base_top, &p)) {
        atomic_store(&r->damaged, true);
        return;
    }
    mx_distribution_sum(logits, r->vocab, p.kept, r->base_top, q);
    r->measured->kl[all] = mx_distribution_kl(&p.distribution, p.kept, r->base_top, q, logits);
    r->measured->same[all] = p.distribution.best == q->best;
    r->measured->base_nats[all] = p.distribution.log_sum - (double)p.logit;
}

static void observe(void *user, int64_t position, const float *logits, int32_t vocab) {
    slot *s = user;
    run *r = s->run;
    const int64_t at = s->window->begin + position + 1, i = at - s->window->first;
    const float logit = logits[r->windows->ids.data[at]];
    mx_distribution d = {.log_sum = NAN};
    if (r->reader) compare(r, s, i, logits, &d);
    if (r->writer) {
        uint8_t *record = s->save + i * save_bytes(r);
        mx_distribution_select(logits, vocab, mx_base_record_kept(record), r->save_top);
        mx_distribution_sum(logits, vocab, mx_base_record_kept(record), r->save_top, &d);
        mx_base_record_put(record, &d, logit);
    } else if (!r->reader) {
        mx_distribution_sum(logits, vocab, NULL, 0, &d);
    }
    r->measured->nats[s->window->scored + i] = d.log_sum - (double)logit;
    atomic_fetch_add_explicit(&r->observed, 1, memory_order_relaxed);
}

/* ---- windows ------------------------------------------------------------------------------------------------------
 */
static int64_t record_bytes(const run *r, const mx_window *w) {
    return (w->end - w->first) * (save_bytes(r) + base_bytes(r));
}

static bool may_begin(const run *r) {
    if (r->next == r->windows->count || r->next - r->first == SLOTS) return false;
    const mx_window *w = &r->windows->window_at[r->next];
    return r->next == r->first ||
           (r->tokens + w->end - w->begin <= TOKENS_AT_WORK && r->bytes + record_bytes(r, w) <= BYTES_AT_WORK);
}

static void release(slot *s) {
    free(s->save);
    free(s->base);
    s->save = s->base = NULL;
}

static mx_status begin(run *r, mx_error *error) {
    slot *s = &r->slot[r->next % SLOTS];
    const mx_window *w = &r->windows->window_at[r->next];
    const int64_t scored = w->end - w->first;
    *s = (slot){.run = r, .window = w};
    if (r->writer) s->save = malloc((size_t)(scored * save_bytes(r)));
    if (r->reader) s->base = malloc((size_t)(scored * base_bytes(r)));
    mx_status status = MX_OK;
    if ((r->writer && !s->save) || (r->reader && !s->base))
        status = mx_fail(error, MX_NO_MEMORY, "no memory for the distributions of %lld tokens", (long long)scored);
    if (!status && r->reader) status = mx_base_reader_next(r->reader, s->base, scored, error);
    const mx_request request = {.prompt = r->windows->ids.data + w->begin,
                                .prompt_count = w->end - 1 - w->begin,
                                .prompt_logits = observe,
                                .logits_from = w->first - 1 - w->begin,
                                .prompt_only = true,
                                .sampling = MX_SAMPLING_DEFAULT,
                                .user = s};
    if (!status) status = mx_submit(r->engine, &request, &s->handle, error);
    if (status) {
        release(s);
        return status;
    }
    r->next++;
    r->tokens += w->end - w->begin;
    r->bytes += record_bytes(r, w);
    return MX_OK;
}

/* All of the window's tokens are there. */
static mx_status check(const run *r, const mx_window *w, mx_error *error) {
    if (atomic_load(&r->damaged))
        return mx_fail(error, MX_INVALID_FILE,
                       "%s: damaged: it holds a distribution that is none: make it anew with "
                       "--save-base",
                       r->options->base);
    for (int64_t t = w->first; t < w->end; t++)
        if (!isfinite(r->measured->nats[w->scored + t - w->first]))
            return mx_fail(error, MX_INVALID_FILE,
                           "the model gives token %lld of the text no probability: a logit is no number, or infinite",
                           (long long)t);
    return MX_OK;
}

/* The first windows that were begun, as far as they are done, in the order of the text. */
static mx_status take(run *r, mx_error *error) {
    mx_status status = MX_OK;
    for (; r->first < r->next && r->slot[r->first % SLOTS].done && !status; r->first++) {
        slot *s = &r->slot[r->first % SLOTS];
        const mx_window *w = s->window;
        status = check(r, w, error);
        if (!status && r->writer) status = mx_base_writer_add(r->writer, s->save, w->end - w->first, error);
        r->tokens -= w->end - w->begin;
        r->bytes -= record_bytes(r, w);
        release(s);
    }
    return status;
}

static mx_status poll_events(run *r, mx_error *error) {
    mx_event event[EVENTS];
    mx_status status = MX_OK;
    for (int n; (n = mx_poll(r->engine, event, EVENTS)) > 0;) {
        for (int i = 0; i < n; i++) {
            slot *s = event[i].user;
            if (event[i].type == MX_EVENT_TOKEN || event[i].type == MX_EVENT_PROMPT) continue;
            s->done = true;
            r->ended++;
            if (event[i].type == MX_EVENT_FAILED && !status) {
                if (error) *error = event[i].error;
                status = mx_fail_within(error, event[i].error.status, "tokens %lld to %lld of the text",
                                        (long long)s->window->begin, (long long)s->window->end - 1);
            }
        }
    }
    return status;
}

/* The engine must not know the slots any more when they go. */
static void drain(run *r) {
    mx_error ignored;
    for (int64_t i = r->first; i < r->next; i++)
        if (!r->slot[i % SLOTS].done) mx_cancel(r->engine, r->slot[i % SLOTS].handle);
    while (r->ended < r->next) {
        if (mx_step(r->engine, &ignored)) break;
        poll_events(r, &ignored);
    }
    for (int i = 0; i < SLOTS; i++) release(&r->slot[i]);
}

static mx_status run_windows(run *r, mx_error *error) {
    const mx_evaluate_options *o = r->options;
    mx_status status = MX_OK;
    while (!status && r->first < r->windows->count) {
        while (!status && may_begin(r)) status = begin(r, error);
        if (!status && o->stop && *o->stop) status = mx_fail(error, MX_CANCELLED, "interrupted");
        if (!status) status = mx_step(r->engine, error);
        if (!status) status = poll_events(r, error);
        if (!status) status = take(r, error);
        if (!status && o->progress) o->progress(o->user, atomic_load(&r->observed), r->windows->scored);
    }
    drain(r);
    return status;
}

/* ---- reference ----------------------------------------------------------------------------------------------------
 */
static mx_status check_base(const mx_base_header *h, const mx_base_header *own, const char *path, mx_error *error) {
    if (h->vocab != own->vocab || h->tokenizer != own->tokenizer)
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "%s: distributions over another vocabulary: %d tokens (tokenizer %016llx), this model has %d "
                       "(%016llx)",
                       path, h->vocab, (unsigned long long)h->tokenizer, own->vocab,
                       (unsigned long long)own->tokenizer);
    if (strcmp(h->protocol, own->protocol) != 0)
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "%s: made with another protocol: \"%s\", this run's is \"%s\": take the same options, or make "
                       "it anew with --save-base",
                       path, h->protocol, own->protocol);
    if (h->text != own->text || h->tokens != own->tokens)
        return mx_fail(
            error, MX_INVALID_ARGUMENT,
            "%s: made of another text: %lld tokens were scored, this run scores %lld%s: take the same files, "
            "or make it anew with --save-base",
            path, (long long)h->tokens, (long long)own->tokens, h->tokens == own->tokens ? " others" : "");
    return MX_OK;
}

int mx_base_top_default(int32_t vocab) {
    return vocab <= WHOLE_UP_TO ? vocab : BASE_TOP;
}

static mx_status open_files(run *r, const mx_base_header *own, mx_evaluation *out, mx_error *error) {
    const mx_evaluate_options *o = r->options;
    mx_status status = MX_OK;
    if (o->base) {
        status = mx_base_reader_open(o->base, &r->reader, error);
        const mx_base_header *h = r->reader ? mx_base_reader_header(r->reader) : NULL;
        if (!status) status = check_base(h, own, o->base, error);
        if (status) return status;
        r->base_top = out->base_top = h->top;
        out->base_whole = h->top == h->vocab;
        snprintf(out->base_model, sizeof out->base_model, "%s", h->model);
        out->same_model = *h->identity && !strcmp(h->identity, own->identity);
    }
    r->save_top = own->top;
    if (o->save_base) status = mx_base_writer_open(o->save_base, own, &r->writer, error);
    return status;
}

static mx_status make_room(mx_measured *m, int64_t tokens, bool base, mx_error *error) {
    m->tokens = tokens;
    m->nats = malloc(sizeof *m->nats * (size_t)tokens);
    if (base) {
        m->kl = malloc(sizeof *m->kl * (size_t)tokens);
        m->base_nats = malloc(sizeof *m->base_nats * (size_t)tokens);
        m->same = malloc((size_t)tokens);
    }
    if (m->nats && (!base || (m->kl && m->base_nats && m->same))) return MX_OK;
    return mx_fail(error, MX_NO_MEMORY, "no memory for %lld tokens", (long long)tokens);
}

/* ---- all of it ----------------------------------------------------------------------------------------------------
 */
void mx_measured_free(mx_measured *m) {
    free(m->nats);
    free(m->kl);
    free(m->base_nats);
    free(m->same);
    *m = (mx_measured){0};
}

mx_status mx_evaluate_windows(mx_engine *engine, const mx_windows *windows, uint64_t tokenizer,
                              const mx_evaluate_options *options, mx_measured *measured, mx_evaluation *out,
                              mx_error *error) {
    const double start = mx_seconds();
    *out = (mx_evaluation){.bytes = windows->bytes};
    *measured = (mx_measured){0};
    mx_windows_describe(windows, out->protocol, sizeof out->protocol);
    const int32_t vocab = mx_engine_get_info(engine).vocab;
    const int top = options->base_top ? options->base_top : mx_base_top_default(vocab);
    if (top < 1) return mx_fail(error, MX_INVALID_ARGUMENT, "base_top %d: expected 1 or more", top);
    mx_base_header own = {.tokenizer = tokenizer,
                          .text = windows->hash,
                          .tokens = windows->scored,
                          .vocab = vocab,
                          .top = top < vocab ? top : vocab};
    snprintf(own.model, sizeof own.model, "%s", options->model ? options->model : "");
    snprintf(own.identity, sizeof own.identity, "%s", options->identity ? options->identity : "");
    snprintf(own.protocol, sizeof own.protocol, "%s", out->protocol);
    run *r = calloc(1, sizeof *r);
    if (!r) return mx_fail(error, MX_NO_MEMORY, "no memory to evaluate");
    r->engine = engine;
    r->windows = windows;
    r->options = options;
    r->measured = measured;
    r->vocab = vocab;
    mx_status status = open_files(r, &own, out, error);
    if (!status) status = make_room(measured, windows->scored, r->reader != NULL, error);
    if (!status) status = run_windows(r, error);
    if (!status && r->reader) status = mx_base_reader_finish(r->reader, error);
    if (!status && r->writer) status = mx_base_writer_finish(r->writer, !options->temporary, error);
    if (!status) mx_measured_summarise(measured, out);
    out->seconds = mx_seconds() - start;
    mx_base_reader_close(r->reader);
    mx_base_writer_close(r->writer);
    free(r);
    return status;
}

mx_status mx_evaluate_check_files(const char *save_base, const char *base, mx_error *error) {
    mx_base_reader *reader = NULL;
    mx_status status = base ? mx_base_reader_open(base, &reader, error) : MX_OK;
    mx_base_reader_close(reader);
    return status || !save_base ? status : mx_base_writer_check(save_base, error);
}

mx_status mx_evaluate_check(const mx_tokenizer *tokenizer, const mx_evaluate_text *texts, int count,
                            const mx_evaluate_options *options, mx_error *error) {
    mx_windows windows = {0};
    mx_evaluate_options one = *options;
    one.most_tokens = 1;
    const mx_status status = mx_windows_make(tokenizer, texts, count, &one, INT32_MAX, INT32_MAX, &windows, error);
    mx_windows_free(&windows);
    return status;
}

mx_status mx_evaluate(mx_engine *engine, const mx_tokenizer *tokenizer, const mx_evaluate_text *texts, int count,
                      const mx_evaluate_options *options, mx_evaluation *out, mx_error *error) {
    const mx_engine_info info = mx_engine_get_info(engine);
    mx_windows windows = {0};
    mx_measured measured = {0};
    mx_status status = mx_windows_make(tokenizer, texts, count, options, info.context + 1, info.vocab, &windows, error);
    if (!status)
        status = mx_evaluate_windows(engine, &windows, mx_tokenizer_vocabulary_hash(tokenizer), options, &measured, out,
                                     error);
    mx_measured_free(&measured);
    mx_windows_free(&windows);
    return status;
}
