/* Downloads, for tests and measurements, through the interface that mxrun itself uses:
 *
 *     fetch stat URL                       size, etag, sha256 and commit, a line each
 *     fetch get URL LIMIT                  the answer, on stdout
 *     fetch sha256 PATH
 *     fetch files (URL TO SIZE SHA256 ETAG)...    "-": not known; TO.incomplete on the way
 *
 * Options are variables: TOKEN, CONNECTIONS, RETRIES, PATIENCE, BACKOFF, PIECE. Events go to stderr where EVENTS is
 * set. The exit status is 10 + the mx_status of a failure, whose text goes to stderr. SIGINT and SIGTERM stop it. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hub/download.h"

static volatile sig_atomic_t stop;

static void on_signal(int number) {
    (void)number;
    stop = 1;
}

static double number(const char *name) {
    const char *text = getenv(name);
    return text ? atof(text) : 0;
}

static void on_event(void *user, const mx_download_event *event) {
    static const char *const names[] = {"progress", "retry", "finished"};
    (void)user;
    if (event->type == MX_DOWNLOAD_PROGRESS && !event->text) return;
    fprintf(stderr, "%.3f %s %s %s\n", event->seconds, names[event->type], event->file ? event->file->name : "-",
            event->text ? event->text : "");
}

static const char *known(const char *text) {
    return strcmp(text, "-") ? text : "";
}

static mx_status files(int count, char **args, const mx_http_options *options, mx_error *error) {
    mx_download *d = calloc((size_t)count, sizeof *d);
    char **incomplete = calloc((size_t)count, sizeof *incomplete);
    if (!d || !incomplete) abort();
    for (int i = 0; i < count; i++) {
        char **a = args + (ptrdiff_t)i * 5;
        const char *slash = strrchr(a[1], '/');
        if (asprintf(&incomplete[i], "%s.incomplete", a[1]) < 0) abort();
        d[i] =
            (mx_download){.url = a[0], .name = slash ? slash + 1 : a[1], .incomplete = incomplete[i], .complete = a[1]};
        d[i].size = *known(a[2]) ? atoll(a[2]) : -1;
        snprintf(d[i].sha256, sizeof d[i].sha256, "%s", known(a[3]));
        snprintf(d[i].etag, sizeof d[i].etag, "%s", known(a[4]));
    }
    const mx_status status = mx_download_files(d, count, options, getenv("EVENTS") ? on_event : NULL, NULL, error);
    for (int i = 0; i < count; i++) {
        printf("%s %lld %lld %lld %s\n", d[i].finished ? "finished" : "unfinished", (long long)d[i].size,
               (long long)d[i].had, (long long)d[i].done, d[i].sha256);
        free(incomplete[i]);
    }
    free(incomplete);
    free(d);
    return status;
}

int main(int argc, char **argv) {
    const mx_http_options options = {.token = getenv("TOKEN"),
                                     .connections = (int)number("CONNECTIONS"),
                                     .retries = (int)number("RETRIES"),
                                     .patience = number("PATIENCE"),
                                     .backoff = number("BACKOFF"),
                                     .piece = (int64_t)number("PIECE"),
                                     .stop = &stop};
    mx_error error = {0};
    mx_status status = MX_INVALID_ARGUMENT;
    const char *word = argc > 2 ? argv[1] : "";
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    if (!strcmp(word, "stat")) {
        mx_remote r;
        status = mx_remote_stat(argv[2], &options, &r, &error);
        if (!status) printf("%lld\n%s\n%s\n%s\n", (long long)r.size, r.etag, r.sha256, r.commit);
    } else if (!strcmp(word, "get") && argc == 4) {
        mx_bytes text = {0};
        status = mx_remote_get(argv[2], &options, atoll(argv[3]), &text, &error);
        if (!status) fwrite(text.data, 1, text.size, stdout);
        mx_bytes_free(&text);
    } else if (!strcmp(word, "sha256")) {
        char hash[MX_SHA256_TEXT];
        status = mx_sha256_file(argv[2], hash, NULL, NULL, &stop, &error);
        if (!status) puts(hash);
    } else if (!strcmp(word, "files") && argc % 5 == 2)
        status = files((argc - 2) / 5, argv + 2, &options, &error);
    else
        mx_fail(&error, status, "usage: see the beginning of fetch.c");
    if (status) fprintf(stderr, "fetch: %s\n", error.text);
    return status ? 10 + (int)status : 0;
}
