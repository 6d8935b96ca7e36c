#include "hub/transfer.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"

enum { SKIPPED = 64 << 10, SLOWEST = 1024 /* bytes/s */, IGNORED_RANGES = 2 };

/* ---- asking ------------------------------------------------------------------------------------------------------ */
/* Starts over at t->url. */
static mx_status set_request(mx_transfer *t, mx_error *error) {
    mx_incoming *f = t->file;
    char range[64], condition[MX_ETAG_TEXT + 20];
    const bool here = *f->source && !f->source_weak;
    snprintf(range, sizeof range, "%lld-%lld", (long long)t->at, (long long)t->end - 1);
    snprintf(condition, sizeof condition, "If-Range: \"%s\"", f->source);
    t->answer = (mx_answer){.length = -1, .first = -1, .last = -1, .total = -1, .linked_size = -1};
    t->verdict = MX_UNJUDGED;
    t->last = t->window = mx_seconds();
    t->in_window = t->skipped = 0;
    const mx_status status =
        mx_http_set(t->easy, t->url, f->d->url, t->options, here && !t->whole ? condition : NULL, &t->list, error);
    if (status) return status;
    if (curl_easy_setopt(t->easy, CURLOPT_RANGE, t->whole ? NULL : range))
        return mx_fail(error, MX_NO_MEMORY, "%s: no memory for a request", f->d->name);
    return MX_OK;
}

static size_t on_body(char *data, size_t size, size_t count, void *user);

mx_status mx_transfer_prepare(mx_transfer *t, mx_incoming *f, int64_t piece, bool whole, mx_error *error) {
    const mx_pieces *p = &f->pieces;
    const int64_t first_piece = f->options->piece > 0 ? f->options->piece : MX_PIECE_BYTES;
    t->file = f;
    t->piece = piece;
    t->whole = whole;
    t->at = whole || !f->begun ? 0 : piece * p->each + mx_piece_have(p, piece);
    t->end = !f->begun ? first_piece : whole ? p->size : piece * p->each + mx_piece_length(p, piece);
    t->direct = f->direct != NULL;
    t->redirects = 0;
    t->retry_after = 0;
    t->stored = 0;
    free(t->url);
    t->url = strdup(t->direct ? f->direct : f->d->url);
    if (!t->url) return mx_fail(error, MX_NO_MEMORY, "%s: no memory for a URL", f->d->name);
    if (!t->easy) {
        const mx_status status = mx_http_new(t->options, &t->easy, error);
        if (status) return status;
        CURLcode e = curl_easy_setopt(t->easy, CURLOPT_HEADERDATA, &t->answer);
        if (!e) e = curl_easy_setopt(t->easy, CURLOPT_WRITEFUNCTION, on_body);
        if (!e) e = curl_easy_setopt(t->easy, CURLOPT_WRITEDATA, t);
        if (!e) e = curl_easy_setopt(t->easy, CURLOPT_PRIVATE, t);
        if (e) return mx_fail(error, MX_UNSUPPORTED, "libcurl lacks something: %s", curl_easy_strerror(e));
    }
    return set_request(t, error);
}

/* ---- judging an answer ------------------------------------------------------------------------------------------- */
__attribute__((format(printf, 4, 5))) static void judge_as(mx_transfer *t, mx_verdict verdict, mx_status status,
                                                           const char *format, ...) {
    char text[600];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    t->verdict = verdict;
    mx_fail(&t->error, status, "%s: %s", t->file->d->name, text);
}

static void forget_direct(mx_incoming *f) {
    free(f->direct);
    f->direct = NULL;
}

/* Another version than the one that is coming: a single such answer may come from a cache that lags behind. */
static void judge_changed(mx_transfer *t, const char *etag, bool acceptable) {
    mx_incoming *f = t->file;
    forget_direct(f);
    const bool twice = acceptable && *etag && !strcmp(f->other, etag);
    snprintf(f->other, sizeof f->other, "%s", etag);
    judge_as(t, twice ? MX_RESTART : MX_AGAIN, MX_INVALID_FILE,
             "the server's file has the ETag \"%s\", not \"%s\": it has changed%s", etag,
             *f->etag ? f->etag : f->d->sha256, twice ? ", and comes anew" : "");
}

/* `etag` says which version this is. */
static void check_version(mx_transfer *t, const char *etag) {
    mx_incoming *f = t->file;
    const bool other_hash = *f->d->sha256 && mx_is_sha256(etag) && strcmp(etag, f->d->sha256) != 0;
    if (other_hash)
        judge_changed(t, etag, false);
    else if (!*f->etag)
        snprintf(f->etag, sizeof f->etag, "%s", etag);
    else if (strcmp(f->etag, etag) != 0)
        judge_changed(t, etag, !f->etag_given);
    else
        *f->other = 0;
}

static void check_size(mx_transfer *t, int64_t size) {
    const mx_incoming *f = t->file;
    const int64_t expected = f->begun ? f->pieces.size : f->d->size;
    if (size >= 0 && expected >= 0 && size != expected)
        judge_as(t, MX_AGAIN, MX_INVALID_FILE, "the server's file has %lld bytes, expected %lld: another version",
                 (long long)size, (long long)expected);
}

/* The etag of the host that sends the bytes, where the hub has named the version already. */
static void check_source(mx_transfer *t, const char *etag) {
    mx_incoming *f = t->file;
    if (!*f->source || !strcmp(f->source, etag)) {
        if (!*f->source) {
            snprintf(f->source, sizeof f->source, "%s", etag);
            f->source_weak = t->answer.weak;
        }
        *f->other_source = 0;
        return;
    }
    const bool twice = *etag && !strcmp(f->other_source, etag);
    snprintf(f->other_source, sizeof f->other_source, "%s", etag);
    forget_direct(f);
    if (twice && mx_is_sha256(f->etag)) { /* the same content, by its hash, from another place */
        memcpy(f->source, f->other_source, sizeof f->source);
        f->source_weak = t->answer.weak;
        f->mixed = true;
        return;
    }
    judge_as(t, twice ? MX_RESTART : MX_AGAIN, MX_INVALID_FILE, "the ETag \"%s\" comes with its bytes, not \"%s\"",
             etag, f->source);
    if (twice) memcpy(f->other, f->etag, sizeof f->other);
}

/* Version and size of an answer with bytes. */
static void check_content(mx_transfer *t, int64_t size) {
    mx_incoming *f = t->file;
    const mx_answer *a = &t->answer;
    if (f->linked)
        check_source(t, a->etag);
    else {
        check_version(t, a->etag);
        if (t->verdict == MX_UNJUDGED) {
            snprintf(f->source, sizeof f->source, "%s", a->etag);
            f->source_weak = a->weak;
        }
    }
    if (t->verdict == MX_UNJUDGED) check_size(t, size);
    if (t->verdict != MX_UNJUDGED || f->begun) return;
    if (size < 0) {
        judge_as(t, MX_FATAL, MX_IO, "the server does not say how long it is");
        return;
    }
    if (mx_incoming_begin(f, size, &t->error))
        t->verdict = MX_FATAL;
    else if (f->phase == MX_THERE)
        t->verdict = MX_GOT;
    else if (t->end > size)
        t->end = size;
}

static void judge_range(mx_transfer *t) {
    mx_incoming *f = t->file;
    const mx_answer *a = &t->answer;
    const int64_t size = f->begun ? f->pieces.size : f->d->size;
    if (a->encoded || a->first != t->at || a->last >= t->end || (a->total < 0 && size < 0)) {
        judge_as(t, MX_AGAIN, MX_IO, "asked for bytes %lld-%lld, the server answers with %lld-%lld/%lld%s",
                 (long long)t->at, (long long)t->end - 1, (long long)a->first, (long long)a->last, (long long)a->total,
                 a->encoded ? ", encoded" : "");
        return;
    }
    check_content(t, a->total >= 0 ? a->total : size);
    if (t->verdict != MX_UNJUDGED) return;
    if (!*f->etag && !*f->d->sha256 && f->pieces.count > 1) {
        f->unversioned = true;
        *f->other = 0;
        judge_as(t, MX_RESTART, MX_IO,
                 "the server gives no ETag, by which ranges could be told apart: in one piece then");
        return;
    }
    if (t->end > a->last + 1) t->end = a->last + 1;
    f->ignored = 0;
    f->answered = true;
    t->verdict = MX_TAKE;
}

/* 200: all of the file, for the server knows no ranges, or has another version (If-Range). */
static void judge_whole(mx_transfer *t) {
    mx_incoming *f = t->file;
    const mx_answer *a = &t->answer;
    const int64_t size = f->begun ? f->pieces.size : f->d->size;
    if (a->encoded) {
        judge_as(t, MX_AGAIN, MX_IO, "the server sends it encoded, which was not asked for");
        return;
    }
    check_content(t, a->length >= 0 ? a->length : size);
    if (t->verdict != MX_UNJUDGED) return;
    const bool all = t->whole || (t->at == 0 && t->end == f->pieces.size);
    if (!all) f->ignored++;
    if (all || (t->at == 0 && f->active == 1)) {
        t->whole = f->whole = true;
        t->end = f->pieces.size;
        f->answered = true;
        t->verdict = MX_TAKE;
    } else if (f->ignored >= IGNORED_RANGES)
        t->verdict = MX_ANEW;
    else
        judge_as(t, MX_AGAIN, MX_IO, "asked for bytes from %lld on, the server answers with all", (long long)t->at);
}

static void judge_beyond(mx_transfer *t) {
    mx_incoming *f = t->file;
    if (!f->begun && t->answer.total == 0) { /* an empty file has no first byte */
        check_content(t, 0);
        if (t->verdict == MX_UNJUDGED) t->verdict = MX_GOT;
    } else
        judge_as(t, MX_AGAIN, MX_INVALID_FILE, "the server has no byte %lld of it, but %lld bytes", (long long)t->at,
                 (long long)t->answer.total);
}

/* By the headers, before the first byte of the body. */
static void judge(mx_transfer *t) {
    mx_incoming *f = t->file;
    const mx_answer *a = &t->answer;
    const bool hub = mx_same_origin(t->url, f->d->url);
    if (hub && (mx_is_redirect(a->code) || a->code == 200 || a->code == 206) && *a->linked_etag) {
        f->linked = true;
        check_version(t, a->linked_etag);
        if (t->verdict == MX_UNJUDGED) check_size(t, a->linked_size);
        if (t->verdict != MX_UNJUDGED) return;
    }
    if (a->code == 206 && !t->whole)
        judge_range(t);
    else if (a->code == 200)
        judge_whole(t);
    else if (a->code == 416)
        judge_beyond(t);
    else
        t->verdict = MX_SKIP;
}

static size_t on_body(char *data, size_t size, size_t count, void *user) {
    mx_transfer *t = user;
    const int64_t n = (int64_t)(size * count);
    if (t->verdict == MX_UNJUDGED) judge(t);
    t->last = mx_seconds();
    if (t->verdict == MX_SKIP) {
        t->skipped += n;
        return t->skipped > SKIPPED ? 0 : (size_t)n;
    }
    if (t->verdict != MX_TAKE) return 0;
    const int64_t left = t->end - t->at, part = n < left ? n : left, before = t->file->d->done;
    if (mx_incoming_store(t->file, t->at, data, part, &t->error)) {
        t->verdict = MX_FATAL;
        return 0;
    }
    t->at += part;
    t->in_window += part;
    t->stored += t->file->d->done - before;
    if (n > left) judge_as(t, MX_AGAIN, MX_IO, "the server sends more than was asked for");
    return n > left ? 0 : (size_t)n;
}

/* ---- the end of an answer ---------------------------------------------------------------------------------------- */
static void follow(mx_transfer *t) {
    mx_incoming *f = t->file;
    char *next;
    if (++t->redirects > MX_REDIRECTS) {
        forget_direct(f);
        judge_as(t, MX_AGAIN, MX_IO, "more than %d redirects, one after the other", MX_REDIRECTS);
        return;
    }
    if (mx_http_redirect(t->easy, t->url, &next, &t->error)) {
        mx_fail_within(&t->error, MX_IO, "%s", f->d->name);
        t->verdict = MX_FATAL;
        return;
    }
    free(t->url);
    t->url = next;
    if (!mx_same_origin(next, f->d->url)) {
        forget_direct(f);
        f->direct = strdup(next);
    }
    t->verdict = set_request(t, &t->error) ? MX_FATAL : MX_HOP;
}

/* An answer that is an error. */
static void judge_code(mx_transfer *t) {
    mx_incoming *f = t->file;
    const bool hub = mx_same_origin(t->url, f->d->url), direct = t->direct;
    char shown[300];
    mx_url_shown(t->url, shown);
    if (hub)
        mx_http_fail(&t->answer, f->d->name, t->url, mx_has_token(t->options), &t->error);
    else
        judge_as(t, MX_AGAIN, MX_IO, "%s, to which the hub leads, answers %ld", shown, t->answer.code);
    forget_direct(f);
    if (mx_http_transient(t->answer.code))
        t->verdict = MX_AGAIN;
    else if (direct)
        t->verdict = MX_ANEW; /* a signed address has come to its end: the hub gives another */
    else
        t->verdict = hub ? MX_FATAL : MX_AGAIN;
    if (t->retry_after > MX_LONGEST_WAIT) {
        judge_as(t, MX_FATAL, MX_IO, "the server answers %ld and asks to come back in %.0f minutes", t->answer.code,
                 t->retry_after / 60);
    }
}

mx_verdict mx_transfer_end(mx_transfer *t, CURLcode code) {
    curl_off_t wait = 0;
    t->code = code;
    if (!curl_easy_getinfo(t->easy, CURLINFO_RETRY_AFTER, &wait)) t->retry_after = (double)wait;
    if (t->verdict == MX_UNJUDGED && !code) judge(t);
    if (t->verdict == MX_TAKE) {
        if (t->at == t->end)
            t->verdict = MX_GOT;
        else
            judge_as(t, MX_AGAIN, MX_IO, "the connection ended after byte %lld, %lld were to come: %s",
                     (long long)t->at, (long long)(t->end - t->at),
                     code ? curl_easy_strerror(code) : "too short an answer");
    } else if (t->verdict == MX_SKIP) {
        if (mx_is_redirect(t->answer.code))
            follow(t);
        else
            judge_code(t);
    } else if (t->verdict == MX_UNJUDGED) {
        char shown[300];
        mx_url_shown(t->url, shown);
        forget_direct(t->file);
        judge_as(t, mx_curl_transient(code) ? MX_AGAIN : MX_FATAL, MX_IO, "%s: %s", shown, curl_easy_strerror(code));
    }
    return t->verdict;
}

bool mx_transfer_stalls(mx_transfer *t, double now) {
    const double patience = mx_http_patience(t->options);
    bool stalls = now - t->last > patience;
    if (!stalls && t->verdict == MX_TAKE && now - t->window > patience) {
        stalls = (double)t->in_window < SLOWEST * (now - t->window);
        t->window = now;
        t->in_window = 0;
    }
    if (!stalls) return false;
    forget_direct(t->file);
    judge_as(t, MX_AGAIN, MX_IO, "hardly anything has come for %g seconds: the connection is given up", patience);
    return true;
}

void mx_transfer_free(mx_transfer *t) {
    curl_easy_cleanup(t->easy);
    curl_slist_free_all(t->list);
    free(t->url);
    *t = (mx_transfer){0};
}
