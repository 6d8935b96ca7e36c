#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "batch/batch_private.h"
#include "batch/response.h"

/* ---- opening ----------------------------------------------------------------------------------------------------- */
static bool is_ours(const mx_batch *b, int64_t line) {
    return !b->files.shards || (line - 1) % b->files.shards == b->files.shard - 1;
}

/* *found: its record, NULL: there is none. */
static mx_status find_record(const mx_batch *b, const mx_line *line, const mx_done **out, mx_error *error) {
    const mx_done *found = *out = mx_journal_find(&b->journal, line->number);
    if (!found || found->hash == line->hash) return MX_OK;
    return mx_fail(error, MX_INVALID_FILE,
                   "%s has a record of line %lld that was made from another line, with another model or with other "
                   "options: go on with the same, or choose another output",
                   b->journal.path, (long long)line->number);
}

/* In the order of the input nothing can be put before what is there. */
static mx_status check_order(const mx_batch *b, int64_t missing, mx_error *error) {
    const mx_journal *j = &b->journal;
    if (!b->files.ordered || (j->ascending && (!j->count || j->done[j->count - 1].line < missing))) return MX_OK;
    return mx_fail(error, MX_INVALID_FILE,
                   "%s: its records are not in the order of the input, line %lld is missing before others: go on "
                   "without --ordered, or choose another output",
                   j->path, (long long)missing);
}

/* Reads all of the input once: what is to do, and whether the output belongs to it. */
static mx_status compare(mx_batch *b, mx_error *error) {
    mx_line line;
    mx_next next;
    int64_t last = 0, missing = 0, found = 0;
    for (;;) {
        const mx_done *record = NULL;
        mx_status status = mx_lines_next(&b->lines, true, &line, &next, error);
        if (!status && next == MX_NEXT_LINE) status = find_record(b, &line, &record, error);
        if (status) return status;
        if (next == MX_NEXT_END) break;
        if (next == MX_NEXT_LATER) continue;
        last = line.number;
        found += record != NULL;
        if (!is_ours(b, line.number)) continue;
        const bool done = record && !record->failed;
        b->total++;
        b->before += done;
        if (!done && !missing) missing = line.number;
    }
    if (found < b->journal.count)
        return mx_fail(error, MX_INVALID_FILE,
                       "%s has records of %lld lines that are not in %s, which ends with line %lld: it belongs to "
                       "another input",
                       b->journal.path, (long long)(b->journal.count - found), b->lines.path, (long long)last);
    mx_status status = missing ? check_order(b, missing, error) : MX_OK;
    return status ? status : mx_lines_rewind(&b->lines, error);
}

mx_status mx_batch_open(const mx_batch_files *files, mx_batch **out, mx_error *error) {
    *out = NULL;
    mx_batch *b = calloc(1, sizeof *b);
    if (!b) return mx_fail(error, MX_NO_MEMORY, "no memory for a batch");
    b->files = *files;
    b->lines.fd = b->journal.fd = -1;
    b->total = -1;
    mx_status status = mx_lines_open(&b->lines, files->input, files->fingerprint, error);
    if (!status) status = mx_journal_open(&b->journal, files->output, b->lines.fd, files->look, files->ordered, error);
    if (!status && b->lines.regular) {
        b->total = 0;
        status = compare(b, error);
    }
    if (status) {
        mx_batch_close(b);
        return status;
    }
    *out = b;
    return MX_OK;
}

void mx_batch_close(mx_batch *b) {
    if (!b) return;
    mx_lines_close(&b->lines);
    mx_journal_close(&b->journal);
    free(b);
}

const mx_api_setup *mx_batch_begun(const mx_batch *b) {
    return b->journal.setup.context ? &b->journal.setup : NULL;
}

mx_status mx_batch_check(const mx_batch *b, const mx_api_setup *setup, mx_error *error) {
    const mx_api_setup *begun = mx_batch_begun(b);
    if (!begun || mx_batch_same_setup(begun, setup)) return MX_OK;
    if (begun->context != setup->context)
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "%s was begun with a context of %lld, this run has %lld, where answers may end elsewhere: go on "
                       "with -c %lld, or choose another output",
                       b->journal.path, (long long)begun->context, (long long)setup->context,
                       (long long)begun->context);
    if (strcmp(begun->tier, setup->tier) != 0)
        return mx_fail(
            error, MX_INVALID_ARGUMENT,
            "%s was begun with the kernels for %s, this run has those for %s, which round differently: go on "
            "with MXRUN_CPU=%s where the processor can, or choose another output",
            b->journal.path, begun->tier, setup->tier, begun->tier);
    return mx_fail(error, MX_INVALID_ARGUMENT,
                   "%s was begun with --precision %s, this run has %s: go on with --precision %s, or choose another "
                   "output",
                   b->journal.path, begun->precision, setup->precision, begun->precision);
}

bool mx_batch_resumable(const mx_batch *b) {
    return b->journal.regular;
}

bool mx_batch_complete(const mx_batch *b) {
    return b->total >= 0 && b->before == b->total;
}

/* Lines that the engine failed have no record any more, or one that stays. */
static void take_out_failed(mx_batch *b) {
    int64_t failed = 0;
    for (int64_t i = 0; i < b->journal.count; i++)
        failed += b->journal.done[i].failed && is_ours(b, b->journal.done[i].line);
    if (!mx_journal_take_out(&b->journal) && b->total >= 0) b->before += failed;
}

/* The next line that is to be answered. Before the first of them nothing in the output is changed: of a pipe, too, at
 * least that one belongs to it. */
mx_status mx_batch_next(mx_batch *b, bool wait, mx_line *line, mx_next *next, mx_error *error) {
    for (;;) {
        const mx_done *record = NULL;
        mx_status status = mx_lines_next(&b->lines, wait, line, next, error);
        if (status || *next != MX_NEXT_LINE) return status;
        if (!is_ours(b, line->number)) continue;
        status = find_record(b, line, &record, error);
        if (status) return status;
        if ((!record || record->failed) && !b->files.look && b->journal.failed_count) take_out_failed(b);
        if (!record || record->failed) return check_order(b, line->number, error);
        if (b->total < 0) b->before++;
    }
}

mx_status mx_batch_read_line(const mx_api_reader *reader, const mx_line *line, mx_api_request *out, mx_error *error) {
    if (!line->too_long) return mx_api_read(reader, line->number, line->text, line->size, out, error);
    *out = (mx_api_request){0};
    mx_api_wrong(&out->problem, NULL, "invalid_value", "the line is longer than %d MiB", MX_LINE_LIMIT >> 20);
    return MX_OK;
}

/* ---- one line at work -------------------------------------------------------------------------------------------- */
typedef struct mx_batch_job mx_batch_job;
struct mx_batch_job {
    int64_t number;
    uint64_t hash;
    double started; /* mx_seconds(): its deadline is counted from then */
    mx_api_request request;
    mx_api_answer *answers;  /* [count] */
    int count, begun, ended; /* begun: submitted, or never to be; ended: of those */
    mx_bytes record;         /* it is finished and waits for those before it */
    bool finished;
    mx_batch_job *next; /* in the order of the input */
};

typedef struct runner {
    mx_batch *batch;
    const mx_api_settings *settings;
    const mx_batch_work *work;
    mx_api_reader reader;
    mx_batch_state *state;
    mx_batch_job *first, *last;
    int64_t listed, running; /* jobs in the list; those of them that are not finished */
    int64_t at_work;         /* answers that the engine has */
    mx_batch_job *waiting;   /* not all of its answers are submitted; no line is begun meanwhile */
    bool input_ended;
    mx_bytes record; /* scratch */
} runner;

static void free_job(mx_batch_job *job) {
    for (int i = 0; job->answers && i < job->count; i++) mx_api_answer_free(&job->answers[i]);
    free(job->answers);
    mx_api_request_free(&job->request);
    mx_bytes_free(&job->record);
    free(job);
}

static void unlist(runner *r, mx_batch_job *job) {
    mx_batch_job **link = &r->first, *before = NULL;
    while (*link != job) {
        before = *link;
        link = &before->next;
    }
    *link = job->next;
    if (r->last == job) r->last = before;
    r->listed--;
    free_job(job);
}

static mx_status write_record(runner *r, const mx_batch_job *job, const mx_bytes *record, mx_error *error) {
    mx_status status = mx_journal_write(&r->batch->journal, record, error);
    if (status) return status;
    r->state->done++;
    r->state->wrong += job->request.problem.http_status != 0;
    r->state->failed += job->request.problem.http_status >= 500;
    return MX_OK;
}

/* In the order of the input a record waits for those before it. */
static mx_status write_in_order(runner *r, mx_batch_job *job, mx_error *error) {
    job->record = r->record;
    r->record = (mx_bytes){0};
    mx_status status = MX_OK;
    while (!status && r->first && r->first->finished) {
        status = write_record(r, r->first, &r->first->record, error);
        if (!status) unlist(r, r->first);
    }
    return status;
}

static mx_status finish(runner *r, mx_batch_job *job, mx_error *error) {
    job->finished = true;
    r->running--;
    mx_bytes_clear(&r->record);
    const bool written =
        job->request.problem.http_status
            ? mx_batch_write_problem(&r->record, r->settings, &job->request, job->number, job->hash)
            : mx_batch_write_answers(&r->record, r->settings, &job->request, job->answers, job->number, job->hash);
    if (!written) return mx_fail(error, MX_NO_MEMORY, "no memory for the record of line %lld", (long long)job->number);
    if (r->batch->files.ordered) return write_in_order(r, job, error);
    mx_status status = write_record(r, job, &r->record, error);
    if (!status) unlist(r, job);
    return status;
}

/* The others of its line are not wanted any more. */
static void fail_job(runner *r, mx_batch_job *job, int http_status, const char *code, const mx_error *why) {
    if (job->request.problem.http_status) return;
    const char *param = http_status == 500 ? NULL : job->request.prompts_field;
    mx_api_wrong(&job->request.problem, param, code, "%s", why->text);
    job->request.problem.http_status = http_status;
    for (int i = 0; i < job->count; i++)
        if (job->answers[i].handle && !job->answers[i].ended) mx_cancel(r->work->engine, job->answers[i].handle);
    job->ended += job->count - job->begun;
    job->begun = job->count;
}

static mx_status submit_one(runner *r, mx_batch_job *job, mx_error *error) {
    const mx_api_request *request = &job->request;
    mx_api_answer *a = &job->answers[job->begun];
    *a = (mx_api_answer){.owner = job, .prompt = job->begun / request->best_of, .index = job->begun % request->best_of};
    mx_status status = mx_api_answer_init(a, r->settings, request, NULL, error);
    if (status) return status;
    mx_request asked = mx_api_answer_request(a, r->settings, request);
    if (asked.deadline > 0) {
        const double left = asked.deadline - (mx_seconds() - job->started);
        asked.deadline = left > 1e-6 ? left : 1e-6;
    }
    status = mx_submit(r->work->engine, &asked, &a->handle, error);
    if (!status) return MX_OK;
    mx_api_answer_free(a);
    *a = (mx_api_answer){0};
    return status;
}

/* Submits answers until all are at work, or as many as may be, or as memory holds: then the rest waits for others to
 * end. Where the engine says no for another reason, it is the request's fault. */
static mx_status submit(runner *r, mx_batch_job *job, mx_error *error) {
    r->waiting = NULL;
    while (job->begun < job->count && r->at_work < r->work->max_in_flight) {
        mx_error why;
        const mx_status status = submit_one(r, job, &why);
        if (status == MX_NO_MEMORY && r->at_work > 0) break;
        if (status == MX_NO_MEMORY) return mx_fail(error, status, "line %lld: %s", (long long)job->number, why.text);
        if (status) {
            fail_job(r, job, 400, status == MX_CONTEXT_FULL ? "context_length_exceeded" : "invalid_value", &why);
        } else {
            job->begun++;
            r->at_work++;
        }
    }
    if (job->begun < job->count) r->waiting = job;
    return job->ended == job->count ? finish(r, job, error) : MX_OK;
}

static mx_status make_answers(mx_batch_job *job, mx_error *error) {
    job->count = job->request.prompt_count * job->request.best_of;
    job->answers = calloc((size_t)job->count, sizeof *job->answers);
    return job->answers ? MX_OK : mx_fail(error, MX_NO_MEMORY, "no memory for a request");
}

static mx_status start(runner *r, const mx_line *line, mx_error *error) {
    mx_batch_job *job = calloc(1, sizeof *job);
    if (!job) return mx_fail(error, MX_NO_MEMORY, "no memory for a request");
    job->number = line->number;
    job->hash = line->hash;
    job->started = mx_seconds();
    if (r->last)
        r->last->next = job;
    else
        r->first = job;
    r->last = job;
    r->listed++;
    r->running++;
    mx_status status = mx_batch_read_line(&r->reader, line, &job->request, error);
    if (!status && !job->request.problem.http_status) status = make_answers(job, error);
    return status ? status : submit(r, job, error);
}

/* ---- the loop ---------------------------------------------------------------------------------------------------- */
/* In the order of the input a slow line holds up those behind it; so many may wait. */
static bool has_room(const runner *r) {
    enum { WAITING = 1024 };
    return !r->waiting && r->at_work < r->work->max_in_flight &&
           r->listed < (int64_t)r->work->max_in_flight * 16 + WAITING;
}

static bool interrupted(const runner *r) {
    return r->work->interrupted && *r->work->interrupted;
}

static mx_status fill(runner *r, mx_error *error) {
    if (r->waiting) {
        mx_status status = submit(r, r->waiting, error);
        if (status) return status;
    }
    while (!r->input_ended && has_room(r) && !interrupted(r)) {
        mx_line line;
        mx_next next;
        mx_status status = mx_batch_next(r->batch, r->running == 0, &line, &next, error);
        if (!status && next == MX_NEXT_LINE) status = start(r, &line, error);
        if (status) return status;
        r->input_ended = next == MX_NEXT_END;
        if (next == MX_NEXT_LATER) break;
    }
    return MX_OK;
}

static mx_status take(runner *r, const mx_event *e, mx_error *error) {
    mx_api_answer *a = e->user;
    mx_batch_job *job = a->owner;
    mx_status status = MX_OK;
    if (e->type == MX_EVENT_FAILED) {
        a->ended = true;
        fail_job(r, job, 500, "server_error", &e->error);
        if (r->waiting == job) r->waiting = NULL;
    } else {
        status = mx_api_answer_take(a, r->settings, &job->request, e, error);
    }
    if (status) return status;
    r->state->generated_tokens += e->type == MX_EVENT_TOKEN;
    if (e->type == MX_EVENT_FINISHED) {
        r->state->prompt_tokens += e->usage.prompt_tokens;
        r->state->cached_tokens += e->usage.cached_tokens;
        r->state->drafted_tokens += e->usage.drafted_tokens;
        r->state->accepted_tokens += e->usage.accepted_tokens;
    }
    if (!a->ended && !a->cancelled && mx_turn_over(a->turn)) {
        a->cancelled = true;
        mx_cancel(r->work->engine, a->handle);
    }
    job->ended += a->ended;
    r->at_work -= a->ended;
    return job->ended == job->count ? finish(r, job, error) : MX_OK;
}

static mx_status step(runner *r, mx_error *error) {
    mx_event events[64];
    int count;
    mx_status status = mx_step(r->work->engine, error);
    while (!status && (count = mx_poll(r->work->engine, events, 64)) > 0)
        for (int i = 0; i < count && !status; i++) status = take(r, &events[i], error);
    return status;
}

static void show(runner *r, double started) {
    mx_batch_state *s = r->state;
    s->total = r->batch->total;
    if (s->total < 0 && r->input_ended) s->total = r->batch->before + s->done + r->listed;
    s->before = r->batch->before;
    s->running = r->running;
    s->seconds = mx_seconds() - started;
    s->ending = interrupted(r);
    if (r->work->progress) r->work->progress(r->work->user, s);
}

static mx_status loop(runner *r, mx_error *error) {
    const double started = mx_seconds();
    for (double before = started, now;; before = now) {
        mx_status status = fill(r, error);
        if (!status && r->running) status = step(r, error);
        now = mx_seconds();
        if (!status) status = mx_journal_sync(&r->batch->journal, now - before, error); /* the next may take as long */
        show(r, started);
        if (status) return status;
        if (!r->running && interrupted(r)) return mx_fail(error, MX_CANCELLED, "interrupted");
        if (!r->running && r->input_ended) return MX_OK;
    }
}

mx_status mx_batch_run(mx_batch *b, const mx_api_settings *settings, const mx_batch_work *work, mx_batch_state *state,
                       mx_error *error) {
    *state = (mx_batch_state){0};
    runner r = {.batch = b, .settings = settings, .work = work, .reader = {.settings = settings}, .state = state};
    mx_status status = mx_batch_check(b, &settings->setup, error);
    if (!status) status = loop(&r, error);
    /* What is written is kept, however it ended; the first error is the one that is told. */
    mx_error later;
    mx_status synced = mx_journal_sync(&b->journal, INFINITY, &later);
    if (synced && !status) status = mx_fail(error, synced, "%s", later.text);
    for (mx_batch_job *job = r.first, *next; job; job = next) {
        next = job->next;
        for (int i = 0; i < job->count; i++)
            if (job->answers && job->answers[i].handle && !job->answers[i].ended)
                mx_cancel(work->engine, job->answers[i].handle);
        free_job(job);
    }
    mx_bytes_free(&r.record);
    return status;
}
