#ifndef MX_HUB_HTTP_H
#define MX_HUB_HTTP_H

#include <stdbool.h>
#include <stdint.h>

#include <curl/curl.h>

#include "hub/download.h"

/* HTTP as a hub needs it, on top of libcurl. Redirects are followed by ourselves, one by one: the token must go to the
 * host that was asked and to no other, and what the hub says before the first redirect must be seen. */

enum { MX_REDIRECTS = 10 }; /* followed at most */

/* The headers of one answer. */
typedef struct mx_answer {
    long code;
    int64_t length;             /* Content-Length; -1: not said */
    int64_t first, last, total; /* Content-Range; first = -1: none that can be read; total = -1: not said */
    bool encoded;               /* some Content-Encoding other than identity */
    bool weak;                  /* W/ stood before the ETag */
    char etag[MX_ETAG_TEXT];    /* "": none, or none that can be kept */
    char linked_etag[MX_ETAG_TEXT];
    int64_t linked_size; /* -1: not said */
    char commit[MX_COMMIT_TEXT];
    char message[200]; /* X-Error-Message, printable; "": none */
} mx_answer;

/* CURLOPT_HEADERFUNCTION, with an mx_answer as CURLOPT_HEADERDATA. Begins anew at every status line. */
size_t mx_answer_header(char *data, size_t size, size_t count, void *answer);

/* A handle with everything set that does not depend on the request: protocols, certificates, time limits. Owned by the
 * caller. */
mx_status mx_http_new(const mx_http_options *options, CURL **out, mx_error *error);

/* What is asked next: `url`, with the token if that is of the same origin as `asked`. `header` (may be NULL) is one
 * more line. *list is freed and replaced; it must live as long as the request. */
mx_status mx_http_set(CURL *easy, const char *url, const char *asked, const mx_http_options *options,
                      const char *header, struct curl_slist **list, mx_error *error);

/* Have both the same scheme, host and port? */
bool mx_same_origin(const char *a, const char *b);
/* The URL for messages: without its query, in which a signature may stand, and without a name and password before the
 * host. Also of something that is no URL. */
void mx_url_shown(const char *url, char out[static 300]);

static inline bool mx_is_redirect(long code) {
    return code == 301 || code == 302 || code == 303 || code == 307 || code == 308;
}
/* The URL to which the answer in `easy` leads from `url`, owned by the caller. From https to http is refused. */
mx_status mx_http_redirect(CURL *easy, const char *url, char **out, mx_error *error);

/* 64 lower-case hexadecimal digits? */
bool mx_is_sha256(const char *text);

/* Would asking again help? */
bool mx_curl_transient(CURLcode code);
static inline bool mx_http_transient(long code) {
    return code == 408 || code == 425 || code == 429 || code >= 500;
}

/* The error that an answer with such a code is, for good: MX_DENIED, MX_NOT_FOUND, else MX_IO. */
mx_status mx_http_fail(const mx_answer *answer, const char *name, const char *url, bool token, mx_error *error);

/* Seconds to wait before the try after `failures` failures (1, 2, ...): exponential, with jitter, and not less than the
 * server asks for (Retry-After; 0: it does not). */
double mx_http_delay(const mx_http_options *options, int failures, double retry_after);

static inline bool mx_has_token(const mx_http_options *options) {
    return options->token && *options->token;
}
/* How often something is tried again that failed with `code`: few times where there seems to be no network. */
static inline int mx_http_retries(const mx_http_options *options, CURLcode code) {
    const int most = options->retries > 0 ? options->retries : 8;
    return code == CURLE_COULDNT_RESOLVE_HOST && most > 3 ? 3 : most;
}
static inline double mx_http_patience(const mx_http_options *options) {
    return options->patience > 0 ? options->patience : 30;
}
/* Longer than this nobody waits because a server asks for it; seconds. */
static const double MX_LONGEST_WAIT = 900;

#endif
