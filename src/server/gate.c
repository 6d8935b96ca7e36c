/* Who may ask: API keys, and what browsers may do. */
#include <ctype.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#include "server/private.h"

/* ---- the head ---------------------------------------------------------------------------------------------------- */
typedef struct head {
    const char *length;          /* Content-Length */
    const char *encoding;        /* Content-Encoding other than identity */
    int hosts, codings;          /* how often there is Host, Transfer-Encoding */
    bool lengths, other_codings; /* several lengths that differ; a coding that is not chunked */
} head;

static enum MHD_Result look(void *closure, enum MHD_ValueKind kind, const char *name, const char *value) {
    head *h = closure;
    (void)kind;
    if (!value) value = "";
    if (strcasecmp(name, "content-length") == 0) {
        h->lengths |= h->length && strcmp(h->length, value) != 0;
        h->length = value;
    } else if (strcasecmp(name, "transfer-encoding") == 0) {
        h->codings++;
        h->other_codings |= strcasecmp(value, "chunked") != 0;
    } else if (strcasecmp(name, "host") == 0) {
        h->hosts++;
    } else if (strcasecmp(name, "content-encoding") == 0 && *value && strcasecmp(value, "identity") != 0) {
        h->encoding = value;
    }
    return MHD_YES;
}

/* RFC 9112, 3.2 and 6.3: two readers could take the end of the body for two places (request smuggling). */
bool mx_gate_check_head(struct MHD_Connection *connection, mx_api_problem *problem) {
    head h = {0};
    MHD_get_connection_values(connection, MHD_HEADER_KIND, look, &h);
    if (h.lengths || (h.length && h.codings) || h.codings > 1 || h.other_codings)
        mx_problem_set(problem, 400, "ambiguous_length",
                       "the request does not tell clearly how long it is: expected one Content-Length, or "
                       "Transfer-Encoding: chunked");
    else if (h.hosts > 1)
        mx_problem_set(problem, 400, "ambiguous_host", "the request has %d headers Host, expected one", h.hosts);
    else if (h.encoding)
        mx_problem_set(problem, 415, "unsupported_media_type",
                       "the body has Content-Encoding: %.60s, expected none: send it as it is", h.encoding);
    else
        return true;
    return false;
}

/* ---- keys -------------------------------------------------------------------------------------------------------- */
bool mx_gate_hash(const char *key, unsigned char out[static MX_KEY_HASH]) {
    static const char space[] = " \t\r\n";
    unsigned size = MX_KEY_HASH;
    key += strspn(key, space);
    size_t n = strlen(key);
    while (n && strchr(space, key[n - 1])) n--;
    return n && EVP_Digest(key, n, out, &size, EVP_sha256(), NULL) == 1;
}

/* Hashes are compared, so that the time tells neither how long a key is nor how far it is right. */
static bool is_key(const mx_server *s, const char *key) {
    unsigned char hash[MX_KEY_HASH];
    int right = 0;
    if (!key || !mx_gate_hash(key, hash)) return false;
    for (int i = 0; i < s->key_count; i++) right |= CRYPTO_memcmp(hash, s->keys[i], sizeof hash) == 0;
    return right;
}

/* "Authorization: Bearer KEY", or Anthropic's "x-api-key: KEY". */
static bool check_key(const mx_server *s, struct MHD_Connection *connection, mx_api_problem *problem) {
    const char *bearer = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "authorization");
    const char *key = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "x-api-key");
    if (bearer && strncasecmp(bearer, "Bearer", 6) == 0 && (bearer[6] == ' ' || bearer[6] == '\t'))
        bearer += 6 + strspn(bearer + 6, " \t");
    else
        bearer = NULL;
    if (is_key(s, bearer) || is_key(s, key)) return true;
    if (bearer || key)
        mx_problem_set(problem, 401, "invalid_api_key", "the API key is not one of this server's");
    else
        mx_problem_set(problem, 401, "missing_api_key",
                       "no API key: expected the header \"Authorization: Bearer KEY\" (or \"x-api-key: KEY\")");
    return false;
}

/* ---- browsers ---------------------------------------------------------------------------------------------------- */
/* The host of "host:port" or "[::1]:port". */
static void host_of(const char *text, char out[static 256]) {
    size_t n = *text == '[' ? strcspn(text, "]") + 1 : strcspn(text, ":/");
    if (n > 255) n = 255;
    n = strnlen(text, n);
    memcpy(out, text, n);
    out[n] = 0;
    if (n && out[n - 1] == '.') out[n - 1] = 0;
}

static bool is_address(const char *host) {
    return *host == '[' || (*host && host[strspn(host, "0123456789.")] == 0);
}

static bool ends_in(const char *text, const char *end) {
    const size_t n = strlen(text), m = strlen(end);
    return n > m && strcasecmp(text + n - m, end) == 0;
}

/* "box", "box.local" and "box.internal" of the machine "box" or "box.example.org"; and that name itself. Nobody outside
 * its network has them: .local and .internal are no public domains. */
static bool is_own_name(const char *own, const char *host) {
    const size_t n = strcspn(own, ".");
    if (!n) return false;
    if (strcasecmp(host, own) == 0) return true;
    return strncasecmp(host, own, n) == 0 &&
           (!host[n] || strcasecmp(host + n, ".local") == 0 || strcasecmp(host + n, ".internal") == 0);
}

static bool known_host(const mx_server *s, const char *host) {
    /* What containers call the machine that they run on. */
    static const char *const names[] = {"localhost", "host.docker.internal", "gateway.docker.internal",
                                        "host.containers.internal"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcasecmp(host, names[i]) == 0) return true;
    for (int i = 0; i < s->options.allowed_host_count; i++)
        if (strcasecmp(host, s->hosts[i]) == 0) return true;
    return !*host || is_address(host) || ends_in(host, ".localhost") || strcasecmp(host, s->host) == 0 ||
           is_own_name(s->own_name, host);
}

/* A page of another site, whose name its owner lets point to this machine, comes with that name. */
static bool check_host(const mx_server *s, const char *text, mx_api_problem *problem) {
    char host[256];
    if (!text) return true; /* HTTP/1.0: no browser */
    host_of(text, host);
    if (known_host(s, host)) return true;
    mx_problem_set(problem, 403, "forbidden_host",
                   "this server listens for this machine only and does not know the name \"%.100s\": use localhost, or "
                   "start it with --allow-host %.100s, or with --api-key",
                   host, host);
    return false;
}

static bool allowed_origin(const mx_server *s, const char *origin) {
    for (int i = 0; i < s->options.cors_origin_count; i++)
        if (strcasecmp(s->origins[i], origin) == 0) return true;
    return s->any_origin;
}

/* A page of another site may send some requests without asking, though it cannot read the reply. `host` is one that
 * check_host took. */
static bool check_origin(const mx_server *s, const char *origin, const char *host, mx_api_problem *problem) {
    if (!origin || allowed_origin(s, origin)) return true;
    const char *rest = strstr(origin, "://");
    if (rest && host && strcasecmp(rest + 3, host) == 0) return true; /* our own page */
    mx_problem_set(problem, 403, "forbidden_origin",
                   "pages of %.200s may not use this server: allow it with --cors %.200s", origin, origin);
    return false;
}

bool mx_gate_check(mx_exchange *x, struct MHD_Connection *connection, mx_api_problem *problem) {
    const mx_server *s = x->server;
    const bool options = strcmp(x->method, "OPTIONS") == 0; /* browsers ask without the key */
    if (s->key_count) return options || x->endpoint->open || check_key(s, connection, problem);
    if (!s->local) return true;
    if (s->any_origin) return true;
    const char *host = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "host");
    const char *origin = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "origin");
    return check_host(s, host, problem) && (options || check_origin(s, origin, host, problem));
}

void mx_gate_add_headers(mx_exchange *x, struct MHD_Connection *connection, struct MHD_Response *response,
                         bool preflight) {
    const mx_server *s = x->server;
    if (!s->options.cors_origin_count) return;
    const char *origin = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "origin");
    if (!s->any_origin) MHD_add_response_header(response, "vary", "origin");
    if (!s->any_origin && (!origin || !allowed_origin(s, origin))) return;
    MHD_add_response_header(response, "access-control-allow-origin", s->any_origin ? "*" : origin);
    MHD_add_response_header(response, "access-control-expose-headers", "x-request-id, retry-after");
    if (!preflight) return;
    const char *headers = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "access-control-request-headers");
    MHD_add_response_header(response, "access-control-allow-methods", "GET, POST, DELETE, OPTIONS");
    MHD_add_response_header(response, "access-control-allow-headers",
                            headers ? headers : "authorization, content-type, x-api-key");
    MHD_add_response_header(response, "access-control-max-age", "86400");
}
