#include "hub/http.h"

#include <ctype.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "base/cpu.h"

enum { DISCARDED = 64 << 10 }; /* bytes of an answer nobody reads that are taken to keep the connection */

/* ---- the headers of an answer ------------------------------------------------------------------------------------ */
static bool parse_number(const char **p, int64_t *out) {
    char *end;
    if (!isdigit((unsigned char)**p) || strspn(*p, "0123456789") > 18) return false;
    *out = strtoll(*p, &end, 10);
    *p = end;
    return true;
}

/* "bytes 0-99/1234", "bytes 0-99/" with an asterisk, "bytes " with an asterisk and "/1234" (RFC 9110, 14.4) */
static void parse_range(const char *text, mx_answer *a) {
    int64_t first = -1, last = -1, total = -1;
    a->first = a->last = a->total = -1;
    if (strncasecmp(text, "bytes", 5) != 0) return;
    text += 5;
    text += strspn(text, " \t");
    if (*text == '*')
        text++;
    else if (!parse_number(&text, &first) || *text++ != '-' || !parse_number(&text, &last) || last < first)
        return;
    if (*text++ != '/') return;
    if (*text == '*')
        text++;
    else if (!parse_number(&text, &total) || (first >= 0 && last >= total))
        return;
    if (*text) return;
    a->first = first;
    a->last = last;
    a->total = total;
}

/* Without W/ and quotes. What is longer than an etag may be, or holds what would break a line, counts as none. */
static void parse_etag(const char *text, char out[MX_ETAG_TEXT], bool *weak) {
    *weak = !strncmp(text, "W/", 2);
    if (*weak) text += 2;
    size_t size = strlen(text);
    if (size >= 2 && text[0] == '"' && text[size - 1] == '"') {
        text++;
        size -= 2;
    }
    bool fits = size < MX_ETAG_TEXT;
    for (size_t i = 0; i < size && fits; i++) fits = text[i] > ' ' && text[i] < 127 && text[i] != '"';
    memcpy(out, text, fits ? size : 0);
    out[fits ? size : 0] = 0;
}

static void parse_word(const char *text, char *out, size_t room) {
    size_t n = 0;
    for (; text[n] && n + 1 < room; n++) out[n] = (char)(text[n] >= ' ' && text[n] < 127 ? text[n] : '?');
    out[n] = 0;
}

static void parse_commit(const char *text, char out[MX_COMMIT_TEXT]) {
    const size_t size = strspn(text, "0123456789abcdef");
    const bool fits = size < MX_COMMIT_TEXT && !text[size];
    memcpy(out, text, fits ? size : 0);
    out[fits ? size : 0] = 0;
}

size_t mx_answer_header(char *data, size_t size, size_t count, void *answer) {
    mx_answer *a = answer;
    char line[2048];
    size_t n = size * count < sizeof line ? size * count : sizeof line - 1;
    memcpy(line, data, n);
    while (n && isspace((unsigned char)line[n - 1])) n--;
    line[n] = 0;
    if (!strncmp(line, "HTTP/", 5)) {
        const char *code = strchr(line, ' ');
        *a = (mx_answer){.code = code ? strtol(code, NULL, 10) : 0, .length = -1, .linked_size = -1};
        a->first = a->last = a->total = -1;
        return size * count;
    }
    char *value = strchr(line, ':');
    if (!value) return size * count;
    *value++ = 0;
    value += strspn(value, " \t");
    const char *p = value;
    bool weak;
    if (!strcasecmp(line, "Content-Length")) {
        if (!parse_number(&p, &a->length) || *p) a->length = -1;
    } else if (!strcasecmp(line, "Content-Range"))
        parse_range(value, a);
    else if (!strcasecmp(line, "Content-Encoding"))
        a->encoded = strcasecmp(value, "identity") != 0;
    else if (!strcasecmp(line, "ETag"))
        parse_etag(value, a->etag, &a->weak);
    else if (!strcasecmp(line, "X-Linked-ETag"))
        parse_etag(value, a->linked_etag, &weak);
    else if (!strcasecmp(line, "X-Linked-Size")) {
        if (!parse_number(&p, &a->linked_size) || *p) a->linked_size = -1;
    } else if (!strcasecmp(line, "X-Repo-Commit"))
        parse_commit(value, a->commit);
    else if (!strcasecmp(line, "X-Error-Message"))
        parse_word(value, a->message, sizeof a->message);
    return size * count;
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static CURLcode global;

static void init(void) {
    global = curl_global_init(CURL_GLOBAL_DEFAULT);
}

/* libcurl itself knows the variables of proxies, not those of certificates. */
static CURLcode set_certificates(CURL *easy) {
    const char *bundle = getenv("CURL_CA_BUNDLE"), *folder = getenv("SSL_CERT_DIR");
    if (!bundle || !*bundle) bundle = getenv("SSL_CERT_FILE");
    CURLcode e = CURLE_OK;
    if (bundle && *bundle) e = curl_easy_setopt(easy, CURLOPT_CAINFO, bundle);
    if (!e && folder && *folder) e = curl_easy_setopt(easy, CURLOPT_CAPATH, folder);
    return e;
}

mx_status mx_http_new(const mx_http_options *options, CURL **out, mx_error *error) {
    pthread_once(&once, init);
    *out = NULL;
    if (global) return mx_fail(error, MX_UNSUPPORTED, "libcurl does not start: %s", curl_easy_strerror(global));
    CURL *easy = curl_easy_init();
    if (!easy) return mx_fail(error, MX_NO_MEMORY, "no memory for a connection");
    CURLcode e = set_certificates(easy);
    const double patience = mx_http_patience(options);
    if (!e) e = curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    if (!e) e = curl_easy_setopt(easy, CURLOPT_USERAGENT, "mxrun/" MX_VERSION);
    if (!e) e = curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long)(1000 * patience));
    if (!e) e = curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L); /* a stop does not wait for the name server */
    if (!e) e = curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, 512L << 10);
    if (!e) e = curl_easy_setopt(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    if (!e) e = curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, mx_answer_header);
    if (!e) {
        *out = easy;
        return MX_OK;
    }
    curl_easy_cleanup(easy);
    return mx_fail(error, MX_UNSUPPORTED, "libcurl lacks something: %s", curl_easy_strerror(e));
}

static bool add_header(struct curl_slist **list, const char *line) {
    struct curl_slist *longer = curl_slist_append(*list, line);
    if (longer) *list = longer;
    return longer != NULL;
}

mx_status mx_http_set(CURL *easy, const char *url, const char *asked, const mx_http_options *options,
                      const char *header, struct curl_slist **list, mx_error *error) {
    curl_slist_free_all(*list);
    *list = NULL;
    bool done = add_header(list, "Accept-Encoding: identity");
    if (header) done = done && add_header(list, header);
    if (mx_has_token(options) && mx_same_origin(url, asked)) {
        mx_bytes line = {0};
        if (strpbrk(options->token, "\r\n"))
            return mx_fail(error, MX_INVALID_ARGUMENT, "the token holds a line break: give it without");
        done = done && mx_bytes_addf(&line, "Authorization: Bearer %s", options->token) && add_header(list, line.data);
        mx_bytes_free(&line);
    }
    CURLcode e = curl_easy_setopt(easy, CURLOPT_URL, url);
    if (!e) e = curl_easy_setopt(easy, CURLOPT_HTTPHEADER, *list);
    if (!done || e == CURLE_OUT_OF_MEMORY) return mx_fail(error, MX_NO_MEMORY, "no memory for a request");
    if (!e) return MX_OK;
    char shown[300];
    mx_url_shown(url, shown);
    return mx_fail(error, MX_INVALID_ARGUMENT, "%s: %s", shown, curl_easy_strerror(e));
}

/* One part of a URL, freed by curl_free; NULL: none, or no URL. */
static char *url_part(const char *url, CURLUPart part, unsigned flags) {
    CURLU *u = curl_url();
    char *text = NULL;
    if (!u || curl_url_set(u, CURLUPART_URL, url, CURLU_NON_SUPPORT_SCHEME) || curl_url_get(u, part, &text, flags))
        text = NULL;
    curl_url_cleanup(u);
    return text;
}

bool mx_same_origin(const char *a, const char *b) {
    static const CURLUPart parts[] = {CURLUPART_SCHEME, CURLUPART_HOST, CURLUPART_PORT};
    bool same = true;
    for (int i = 0; i < 3 && same; i++) {
        char *x = url_part(a, parts[i], CURLU_DEFAULT_PORT), *y = url_part(b, parts[i], CURLU_DEFAULT_PORT);
        same = x && y && !strcasecmp(x, y);
        curl_free(x);
        curl_free(y);
    }
    return same;
}

/* Put together of what it has besides names, passwords and questions. */
void mx_url_shown(const char *url, char out[static 300]) {
    char *scheme = url_part(url, CURLUPART_SCHEME, 0), *host = url_part(url, CURLUPART_HOST, 0);
    char *port = url_part(url, CURLUPART_PORT, 0), *path = url_part(url, CURLUPART_PATH, 0);
    if (!scheme || !host)
        snprintf(out, 300, "an address that is none");
    else
        snprintf(out, 300, "%s://%s%s%s%s", scheme, host, port ? ":" : "", port ? port : "",
                 path && strcmp(path, "/") ? path : "");
    curl_free(scheme);
    curl_free(host);
    curl_free(port);
    curl_free(path);
}

mx_status mx_http_redirect(CURL *easy, const char *url, char **out, mx_error *error) {
    char *to = NULL, from[300];
    *out = NULL;
    mx_url_shown(url, from);
    if (curl_easy_getinfo(easy, CURLINFO_REDIRECT_URL, &to) || !to)
        return mx_fail(error, MX_IO, "%s: the server leads elsewhere without saying where", from);
    char *old_scheme = url_part(url, CURLUPART_SCHEME, 0), *scheme = url_part(to, CURLUPART_SCHEME, 0);
    const bool http = scheme && !strcasecmp(scheme, "http"), https = scheme && !strcasecmp(scheme, "https");
    const bool downgrade = http && (!old_scheme || strcasecmp(old_scheme, "http") != 0);
    curl_free(old_scheme);
    curl_free(scheme);
    if (downgrade)
        return mx_fail(error, MX_IO,
                       "%s: the server leads from https to http, where anyone may change what comes: refused", from);
    if (!http && !https)
        return mx_fail(error, MX_IO, "%s: the server leads to something other than http: refused", from);
    *out = strdup(to);
    return *out ? MX_OK : mx_fail(error, MX_NO_MEMORY, "no memory for a URL");
}

bool mx_is_sha256(const char *text) {
    return strspn(text, "0123456789abcdef") == MX_SHA256_TEXT - 1 && !text[MX_SHA256_TEXT - 1];
}

/* ---- errors and waiting ------------------------------------------------------------------------------------------ */
bool mx_curl_transient(CURLcode code) {
    switch (code) {
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_URL_MALFORMAT:
    case CURLE_OUT_OF_MEMORY:
    case CURLE_BAD_FUNCTION_ARGUMENT:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CERTPROBLEM:
        return false;
    default:
        return true;
    }
}

mx_status mx_http_fail(const mx_answer *answer, const char *name, const char *url, bool token, mx_error *error) {
    char shown[300], said[220] = "", from[320] = "";
    mx_url_shown(url, shown);
    if (*answer->message) snprintf(said, sizeof said, ", \"%s\"", answer->message);
    if (strncmp(name, shown, strlen(shown)) != 0) snprintf(from, sizeof from, " for %s", shown);
    if (answer->code == 401 || answer->code == 403)
        return mx_fail(error, MX_DENIED, "%s: the server refuses (%ld%s)%s: %s, or nothing has this name", name,
                       answer->code, said, from,
                       token ? "the token is not valid here, or the licence has to be accepted on the hub's page first"
                             : "it wants a token (HF_TOKEN)");
    if (answer->code == 404 || answer->code == 410)
        return mx_fail(error, MX_NOT_FOUND, "%s: the server has no such thing (%ld%s)%s: look at the name", name,
                       answer->code, said, from);
    return mx_fail(error, MX_IO, "%s: the server answers %ld%s%s", name, answer->code, said, from);
}

double mx_http_delay(const mx_http_options *options, int failures, double retry_after) {
    static _Thread_local unsigned seed;
    if (!seed) seed = (unsigned)(mx_seconds() * 1e6) | 1;
    double delay = options->backoff > 0 ? options->backoff : 0.5;
    for (int i = 1; i < failures && delay < 60; i++) delay *= 2;
    if (delay > 60) delay = 60;
    const double jitter = (double)rand_r(&seed) / RAND_MAX;
    delay *= 0.5 + jitter;
    return retry_after > 0 ? retry_after + delay * 0.2 : delay;
}

/* ---- small answers ----------------------------------------------------------------------------------------------- */
typedef struct question {
    const char *asked;
    char shown[300]; /* of it, in messages */
    const mx_http_options *options;
    bool head;
    int64_t limit;
    CURL *easy;
    struct curl_slist *list;
    mx_bytes body;
    mx_answer answer;
    mx_remote remote; /* of all answers on the way */
    bool too_long, no_memory;
} question;

static size_t take_body(char *data, size_t size, size_t count, void *user) {
    question *q = user;
    const int64_t limit = q->answer.code == 200 ? q->limit : DISCARDED;
    const size_t n = size * count;
    if (n > (size_t)limit || q->body.size > (size_t)limit - n)
        q->too_long = true;
    else
        q->no_memory = !mx_bytes_add(&q->body, data, n);
    return q->too_long || q->no_memory ? 0 : n;
}

static bool stopped(const mx_http_options *options) {
    return options->stop && *options->stop;
}

/* One request; *code is libcurl's. */
static mx_status perform(question *q, CURLM *multi, CURLcode *code, mx_error *error) {
    int running = 1, left;
    *code = CURLE_OK;
    if (curl_multi_add_handle(multi, q->easy)) return mx_fail(error, MX_NO_MEMORY, "no memory for a request");
    while (running && !stopped(q->options)) {
        if (curl_multi_perform(multi, &running)) running = 0;
        if (running) curl_multi_poll(multi, NULL, 0, 100, NULL);
    }
    for (CURLMsg *m; (m = curl_multi_info_read(multi, &left));)
        if (m->msg == CURLMSG_DONE) *code = m->data.result;
    curl_multi_remove_handle(multi, q->easy);
    return stopped(q->options) ? mx_fail(error, MX_CANCELLED, "stopped") : MX_OK;
}

static void remember(question *q) {
    const mx_answer *a = &q->answer;
    mx_remote *r = &q->remote;
    if (*a->commit && !*r->commit) memcpy(r->commit, a->commit, sizeof r->commit);
    if (*a->linked_etag && !*r->etag) memcpy(r->etag, a->linked_etag, sizeof r->etag);
    if (a->linked_size >= 0 && r->size < 0) r->size = a->linked_size;
    if (a->code != 200) return;
    if (!*r->etag) memcpy(r->etag, a->etag, sizeof r->etag);
    if (r->size < 0 && !a->encoded) r->size = a->length;
}

/* From q->asked along the redirects. With HEAD one to another host is the end: MX_OK with its answer. */
static mx_status follow(question *q, CURLM *multi, CURLcode *code, mx_error *error) {
    char *url = strdup(q->asked), *next = NULL;
    mx_status status = url ? MX_OK : mx_fail(error, MX_NO_MEMORY, "no memory for a URL");
    for (int redirects = 0; !status; redirects++) {
        mx_bytes_clear(&q->body);
        q->answer = (mx_answer){.length = -1};
        q->too_long = q->no_memory = false;
        status = mx_http_set(q->easy, url, q->asked, q->options, NULL, &q->list, error);
        if (!status) status = perform(q, multi, code, error);
        if (status || *code) break;
        remember(q);
        if (!mx_is_redirect(q->answer.code)) break;
        if (redirects == MX_REDIRECTS) {
            status = mx_fail(error, MX_IO, "%s: more than %d redirects", q->shown, MX_REDIRECTS);
            break;
        }
        status = mx_http_redirect(q->easy, url, &next, error);
        if (status || (q->head && !mx_same_origin(next, q->asked))) break;
        free(url);
        url = next;
        next = NULL;
    }
    free(url);
    free(next);
    return status;
}

static mx_status wait_for(double seconds, const mx_http_options *options, mx_error *error) {
    const struct timespec moment = {.tv_nsec = 50000000};
    for (const double end = mx_seconds() + seconds; mx_seconds() < end && !stopped(options);) nanosleep(&moment, NULL);
    return stopped(options) ? mx_fail(error, MX_CANCELLED, "stopped") : MX_OK;
}

/* With as many tries as it takes. MX_OK: q->answer has an answer that is no error. */
static mx_status ask(question *q, mx_error *error) {
    CURLM *multi = curl_multi_init();
    mx_url_shown(q->asked, q->shown);
    mx_status status =
        multi ? mx_http_new(q->options, &q->easy, error) : mx_fail(error, MX_NO_MEMORY, "no memory for a connection");
    if (!status) {
        curl_easy_setopt(q->easy, CURLOPT_NOBODY, (long)q->head);
        curl_easy_setopt(q->easy, CURLOPT_HEADERDATA, &q->answer);
        curl_easy_setopt(q->easy, CURLOPT_WRITEFUNCTION, take_body);
        curl_easy_setopt(q->easy, CURLOPT_WRITEDATA, q);
        curl_easy_setopt(q->easy, CURLOPT_LOW_SPEED_LIMIT, 1L);
        curl_easy_setopt(q->easy, CURLOPT_LOW_SPEED_TIME, (long)(mx_http_patience(q->options) + 0.999));
    }
    for (int failures = 1; !status; failures++) {
        CURLcode code;
        curl_off_t retry_after = 0;
        q->remote = (mx_remote){.size = -1};
        status = follow(q, multi, &code, error);
        if (status) break;
        const long answer = q->answer.code;
        if (q->no_memory)
            status = mx_fail(error, MX_NO_MEMORY, "%s: no memory for the answer", q->shown);
        else if (q->too_long && answer == 200)
            status = mx_fail(error, MX_INVALID_FILE, "%s: the answer has more than %lld bytes", q->shown,
                             (long long)q->limit);
        else if (code && !(q->too_long && answer >= 300))
            status = mx_fail(error, MX_IO, "%s: %s", q->shown, curl_easy_strerror(code));
        else if (answer >= 200 && (answer < 300 || (q->head && mx_is_redirect(answer))))
            break;
        else
            status = mx_http_fail(&q->answer, q->shown, q->asked, mx_has_token(q->options), error);
        curl_easy_getinfo(q->easy, CURLINFO_RETRY_AFTER, &retry_after);
        const bool transient = code && !q->too_long ? mx_curl_transient(code) : mx_http_transient(answer);
        const int most = mx_http_retries(q->options, code);
        if (!transient || q->no_memory || failures > most || (double)retry_after > MX_LONGEST_WAIT) break;
        status = wait_for(mx_http_delay(q->options, failures, (double)retry_after), q->options, error);
    }
    curl_easy_cleanup(q->easy);
    curl_multi_cleanup(multi);
    curl_slist_free_all(q->list);
    return status;
}

mx_status mx_remote_stat(const char *url, const mx_http_options *options, mx_remote *out, mx_error *error) {
    question q = {.asked = url, .options = options, .head = true};
    const mx_status status = ask(&q, error);
    if (!status) {
        *out = q.remote;
        if (mx_is_sha256(out->etag)) memcpy(out->sha256, out->etag, MX_SHA256_TEXT);
    }
    mx_bytes_free(&q.body);
    return status;
}

mx_status mx_remote_get(const char *url, const mx_http_options *options, int64_t limit, mx_bytes *out,
                        mx_error *error) {
    question q = {.asked = url, .options = options, .limit = limit};
    mx_status status = ask(&q, error);
    if (!status && !mx_bytes_add(out, q.body.data ? q.body.data : "", q.body.size))
        status = mx_fail(error, MX_NO_MEMORY, "%s: no memory for the answer", q.shown);
    mx_bytes_free(&q.body);
    return status;
}
