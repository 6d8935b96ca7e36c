#include "hub/download.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "hub/http.h"
#include "hub/incoming.h"
#include "hub/transfer.h"

/* Connections are opened one after the other, as long as those there are bring less than FAST bytes/s, which is about
 * what one core hashes: more would only bring the bytes in another order than they are hashed in. */
static const double TELL_SECONDS = 0.2, RAMP_SECONDS = 0.05, FAST = 500e6;
enum {
    CONNECTIONS = 8,
    STREAMS = 2 /* of one connection, over HTTP/2 */,
    WAIT_MS = 100,
    OTHERS = 3 /* answers of another version in a row, which rarely goes away */
};

typedef struct session {
    mx_incoming *file; /* [count] */
    int count;
    const mx_http_options *options;
    CURLM *multi;
    mx_transfer *transfer; /* [connections] */
    int connections, allowed;
    mx_keeper *keeper;
    void (*event)(void *user, const mx_download_event *event);
    void *user;
    double started, told, hold_until; /* mx_seconds() */
    bool freed;                       /* a transfer has ended: perhaps another can begin at once */
    double ramped;
    int64_t ramp_bytes;
} session;

static void wake(void *multi) {
    curl_multi_wakeup(multi);
}

static void tell(const session *s, mx_download_event_type type, const mx_download *file, const char *text) {
    const mx_download_event event = {type, file, text, mx_seconds() - s->started};
    if (s->event) s->event(s->user, &event);
}

static bool stopped(const session *s) {
    return s->options->stop && *s->options->stop;
}

/* ---- transfers --------------------------------------------------------------------------------------------------- */
static mx_piece_task *task_of(const mx_transfer *t) {
    return t->file->begun ? &t->file->task[t->piece] : &t->file->probe;
}

static mx_status add(session *s, mx_transfer *t, mx_error *error) {
    t->running = curl_multi_add_handle(s->multi, t->easy) == CURLM_OK;
    return t->running ? MX_OK : mx_fail(error, MX_NO_MEMORY, "%s: no memory for a request", t->file->d->name);
}

static void take_off(session *s, mx_transfer *t) {
    if (t->running) curl_multi_remove_handle(s->multi, t->easy);
    t->running = false;
}

/* The transfer has no file any more. */
static void settle(session *s, mx_transfer *t) {
    mx_incoming *f = t->file;
    task_of(t)->busy = false;
    if (t->whole) f->whole = false;
    f->active--;
    t->file = NULL;
    s->freed = true;
}

static void abort_all(session *s, const mx_incoming *f) {
    for (int i = 0; i < s->connections; i++) {
        mx_transfer *t = &s->transfer[i];
        if (!t->file || (f && t->file != f)) continue;
        take_off(s, t);
        settle(s, t);
    }
}

static mx_status restart(session *s, mx_incoming *f, const char *etag, const char *why, mx_error *error) {
    abort_all(s, f);
    tell(s, MX_DOWNLOAD_RETRY, f->d, why);
    return mx_incoming_restart(f, etag, error);
}

static mx_status again(session *s, mx_transfer *t, mx_error *error) {
    mx_piece_task *task = task_of(t);
    mx_incoming *f = t->file;
    const double now = mx_seconds();
    if (t->stored) task->failures = 0;
    task->others = t->error.status == MX_INVALID_FILE ? task->others + 1 : 0;
    if (++task->failures > mx_http_retries(s->options, t->code) || task->others > OTHERS) {
        *error = t->error;
        return mx_fail_within(error, t->error.status, "given up after %d tries", task->failures);
    }
    const double delay = mx_http_delay(s->options, task->failures, t->retry_after);
    task->not_before = now + delay;
    if (t->retry_after > 0 && s->hold_until < now + delay) s->hold_until = now + delay;
    char text[sizeof t->error.text + 40];
    snprintf(text, sizeof text, "%s; again in %.1f s", t->error.text, delay);
    settle(s, t);
    tell(s, MX_DOWNLOAD_RETRY, f->d, text);
    return MX_OK;
}

/* What becomes of a transfer that has ended with `verdict`. */
static mx_status act(session *s, mx_transfer *t, mx_verdict verdict, mx_error *error) {
    mx_incoming *f = t->file;
    switch (verdict) {
    case MX_HOP:
        t->verdict = MX_UNJUDGED;
        return add(s, t, error);
    case MX_GOT:
        if (f->begun) *task_of(t) = (mx_piece_task){0};
        settle(s, t);
        return MX_OK;
    case MX_ANEW:
        settle(s, t);
        return MX_OK;
    case MX_AGAIN:
        return again(s, t, error);
    case MX_RESTART: {
        char why[sizeof t->error.text];
        memcpy(why, t->error.text, sizeof why);
        return restart(s, f, f->other, why, error);
    }
    default:
        *error = t->error;
        return t->error.status ? t->error.status : mx_fail(error, MX_IO, "%s: failed", f->d->name);
    }
}

static mx_status take_results(session *s, mx_error *error) {
    int left;
    for (CURLMsg *m; (m = curl_multi_info_read(s->multi, &left));) {
        mx_transfer *t;
        if (m->msg != CURLMSG_DONE || curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&t)) continue;
        const CURLcode code = m->data.result;
        take_off(s, t);
        const mx_status status = act(s, t, mx_transfer_end(t, code), error);
        if (status) return status;
    }
    return MX_OK;
}

static mx_status end_stalled(session *s, double now, mx_error *error) {
    for (int i = 0; i < s->connections; i++) {
        mx_transfer *t = &s->transfer[i];
        if (!t->running || !mx_transfer_stalls(t, now)) continue;
        take_off(s, t);
        t->code = CURLE_OPERATION_TIMEDOUT;
        const mx_status status = again(s, t, error);
        if (status) return status;
    }
    return MX_OK;
}

/* ---- what to ask for next ---------------------------------------------------------------------------------------- */
/* The first piece that is missing, not on its way and may be asked for now; -1: none. */
static int64_t next_piece(mx_incoming *f, double now) {
    const mx_pieces *p = &f->pieces;
    while (f->cursor < p->count && mx_piece_have(p, f->cursor) == mx_piece_length(p, f->cursor)) f->cursor++;
    for (int64_t i = f->cursor; i < p->count; i++)
        if (!f->task[i].busy && f->task[i].not_before <= now && mx_piece_have(p, i) < mx_piece_length(p, i)) return i;
    return -1;
}

/* Until the server has shown which version it has, one request of a file is enough. *whole: all of it. -1: none now. */
static int64_t choose(mx_incoming *f, double now, bool *whole) {
    *whole = f->unversioned || f->ignored > 1;
    if (f->phase != MX_COMING || f->whole) return -1;
    if (!f->begun) return f->active == 0 && f->probe.not_before <= now ? 0 : -1;
    if (f->d->done == f->pieces.size) return -1;
    if (!*whole) return f->answered || f->active == 0 ? next_piece(f, now) : -1;
    return f->active == 0 && f->task[0].not_before <= now ? 0 : -1;
}

static mx_status start(session *s, mx_transfer *t, mx_incoming *f, int64_t piece, bool whole, mx_error *error) {
    if (f->unversioned && f->begun) { /* what came before may be of another version */
        const mx_piece_task task = f->task[0];
        const mx_status status = mx_incoming_restart(f, "", error);
        if (status) return status;
        f->probe = task;
    }
    mx_status status = mx_transfer_prepare(t, f, piece, whole, error);
    if (status) {
        t->file = NULL;
        return status;
    }
    task_of(t)->busy = true;
    f->active++;
    f->whole = whole;
    return add(s, t, error);
}

/* How many transfers may run. */
static void ramp(session *s, double now, int64_t done) {
    if (s->allowed >= s->connections || now - s->ramped < RAMP_SECONDS) return;
    if ((double)(done - s->ramp_bytes) < FAST * (now - s->ramped)) s->allowed++;
    s->ramped = now;
    s->ramp_bytes = done;
}

static int running(const session *s) {
    int n = 0;
    for (int i = 0; i < s->connections; i++) n += s->transfer[i].file != NULL;
    return n;
}

static mx_transfer *free_transfer(const session *s) {
    for (int i = 0; i < s->connections; i++)
        if (!s->transfer[i].file) return &s->transfer[i];
    return NULL;
}

static mx_status open_file(session *s, mx_incoming *f, mx_error *error) {
    const mx_status status = mx_incoming_open(f, error);
    if (status) return status;
    if (f->d->had > 0 && f->phase == MX_COMING) {
        char text[400];
        const bool large = f->pieces.size >= (int64_t)1e9;
        const double unit = large ? 1e9 : 1e6;
        snprintf(text, sizeof text, "%s: %.2f of %.2f %s are there from an earlier run; their hash is computed again",
                 f->d->name, (double)f->d->had / unit, (double)f->pieces.size / unit, large ? "GB" : "MB");
        tell(s, MX_DOWNLOAD_PROGRESS, NULL, text);
    }
    return MX_OK;
}

static mx_status start_transfers(session *s, double now, mx_error *error) {
    int active = running(s), open = 0;
    if (now < s->hold_until) return MX_OK;
    for (int i = 0; i < s->count && active < s->allowed && open < s->connections; i++) {
        mx_incoming *f = &s->file[i];
        if (f->phase == MX_WAITING) {
            const mx_status status = open_file(s, f, error);
            if (status) return status;
        }
        open += f->phase == MX_COMING;
        bool whole;
        for (int64_t piece; active < s->allowed && (piece = choose(f, now, &whole)) >= 0; active++) {
            const mx_status status = start(s, free_transfer(s), f, piece, whole, error);
            if (status) return status;
        }
    }
    return MX_OK;
}

/* ---- files ------------------------------------------------------------------------------------------------------- */
static mx_status look_at_file(session *s, mx_incoming *f, mx_error *error) {
    bool published = false, wrong = false;
    mx_error why;
    mx_status status = f->begun ? mx_keeper_look(s->keeper, f, &published, error) : MX_OK;
    if (status) return status;
    if (f->phase == MX_COMING && f->begun && f->d->done == f->pieces.size) {
        status = mx_incoming_check(f, &wrong, &why);
        if (status) *error = why;
        if (status || !wrong) return status;
        return restart(s, f, f->etag, why.text, error);
    }
    if (f->phase == MX_PUBLISHING && published) {
        f->phase = MX_THERE;
        f->d->finished = true;
        mx_incoming_close(f);
    }
    return MX_OK;
}

/* *left: files that are not finished. */
static mx_status look_at_files(session *s, int *left, mx_error *error) {
    *left = 0;
    for (int i = 0; i < s->count; i++) {
        mx_incoming *f = &s->file[i];
        if (f->told) continue;
        const mx_status status = look_at_file(s, f, error);
        if (status) return status;
        if (f->phase == MX_THERE) {
            if (f->active) abort_all(s, f);
            mx_incoming_close(f);
            f->told = true;
            tell(s, MX_DOWNLOAD_FINISHED, f->d, NULL);
        } else
            ++*left;
    }
    return MX_OK;
}

/* ---- all of it --------------------------------------------------------------------------------------------------- */
static mx_status run(session *s, mx_error *error) {
    mx_status status = MX_OK;
    for (int left = 1, handles; !status;) {
        if (stopped(s)) return mx_fail(error, MX_CANCELLED, "stopped; what has come is kept");
        const double now = mx_seconds();
        int64_t done = 0;
        for (int i = 0; i < s->count; i++) done += s->file[i].d->done;
        ramp(s, now, done);
        status = start_transfers(s, now, error);
        if (!status && curl_multi_perform(s->multi, &handles))
            status = mx_fail(error, MX_NO_MEMORY, "libcurl cannot go on: no memory");
        if (!status) status = take_results(s, error);
        if (!status) status = end_stalled(s, now, error);
        if (!status) status = look_at_files(s, &left, error);
        if (status) break;
        if (now - s->told >= TELL_SECONDS || !left) {
            s->told = now;
            tell(s, MX_DOWNLOAD_PROGRESS, NULL, NULL);
        }
        if (!left) break;
        if (s->freed) {
            s->freed = false;
            continue;
        }
        curl_multi_poll(s->multi, NULL, 0, s->allowed < s->connections ? WAIT_MS / 4 : WAIT_MS, NULL);
    }
    return status;
}

static mx_status check_arguments(const mx_download *file, int count, mx_error *error) {
    for (int i = 0; i < count; i++) {
        const mx_download *d = &file[i];
        if (!d->url || !d->name || !d->incomplete || !d->complete)
            return mx_fail(error, MX_INVALID_ARGUMENT, "file %d of a download lacks its address, name or path", i);
        if (*d->sha256 && !mx_is_sha256(d->sha256))
            return mx_fail(error, MX_INVALID_ARGUMENT, "%s: \"%s\" is no SHA-256: 64 digits 0-9a-f are", d->name,
                           d->sha256);
        if (strpbrk(d->etag, "\" \r\n"))
            return mx_fail(error, MX_INVALID_ARGUMENT, "%s: an ETag is expected without quotes and spaces", d->name);
    }
    return MX_OK;
}

static mx_status set_up(session *s, mx_download *file, mx_error *error) {
    s->file = calloc((size_t)s->count + 1, sizeof *s->file);
    s->transfer = calloc((size_t)s->connections, sizeof *s->transfer);
    s->multi = NULL;
    if (!s->file || !s->transfer) return mx_fail(error, MX_NO_MEMORY, "no memory for a download");
    for (int i = 0; i < s->count; i++) {
        mx_incoming *f = &s->file[i];
        *f = (mx_incoming){.d = &file[i], .options = s->options, .fd = -1, .given_size = file[i].size, .wake = wake};
        f->resume.fd = -1;
        f->d->had = f->d->done = 0;
        f->d->finished = false;
    }
    for (int i = 0; i < s->connections; i++) s->transfer[i].options = s->options;
    CURL *first; /* starts libcurl before anything else of it is used */
    mx_status status = mx_http_new(s->options, &first, error);
    if (status) return status;
    s->transfer[0].easy = NULL;
    curl_easy_cleanup(first);
    s->multi = curl_multi_init();
    if (!s->multi) return mx_fail(error, MX_NO_MEMORY, "no memory for connections");
    curl_multi_setopt(s->multi, CURLMOPT_MAX_CONCURRENT_STREAMS, (long)STREAMS);
    status = mx_keeper_start(s->count, &s->keeper, error);
    for (int i = 0; i < s->count && !status; i++) {
        s->file[i].keeper = s->keeper;
        s->file[i].wake_user = s->multi;
    }
    return status ? status : mx_download_room(file, s->count, error);
}

static void clean_up(session *s) {
    if (s->transfer) abort_all(s, NULL);
    mx_keeper_stop(s->keeper);
    for (int i = 0; s->file && i < s->count; i++) {
        s->file[i].keeper = NULL;
        mx_incoming_close(&s->file[i]);
    }
    for (int i = 0; s->transfer && i < s->connections; i++) mx_transfer_free(&s->transfer[i]);
    if (s->multi) curl_multi_cleanup(s->multi);
    free(s->transfer);
    free(s->file);
}

mx_status mx_download_files(mx_download *file, int count, const mx_http_options *options,
                            void (*event)(void *user, const mx_download_event *event), void *user, mx_error *error) {
    mx_error own;
    mx_error *e = error ? error : &own;
    const double now = mx_seconds();
    session s = {.count = count, .options = options, .event = event, .user = user, .started = now, .ramped = now};
    s.connections = options->connections > 0 ? options->connections : CONNECTIONS;
    s.allowed = 1;
    mx_status status = check_arguments(file, count, e);
    if (!status) status = set_up(&s, file, e);
    if (!status) status = run(&s, e);
    clean_up(&s);
    return status;
}
