#include <stdlib.h>
#include <string.h>

#include "grammar/regular_private.h"
#include "grammar/schema_parts.h"

/* What keywords say of strings. */

enum { MOST_COUNTED = 8000 }; /* states of a language, times lengths */

/* ---- formats ----------------------------------------------------------------------------------------------------- */
/* RFC 3339 without leap seconds; up to 9 digits of a second. The year 0000 is left out: few programs know it. */
#define YEAR      "([0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
#define LEAP_YEAR "([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
#define DATE                                                                                                           \
    "(" YEAR "-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|"                          \
    "02-(0[1-9]|1[0-9]|2[0-8]))|" LEAP_YEAR "-02-29)"
#define HOUR_MINUTE "([01][0-9]|2[0-3]):[0-5][0-9]"
#define TIME        HOUR_MINUTE ":[0-5][0-9](\\.[0-9]{1,9})?([Zz]|[+-]" HOUR_MINUTE ")"
/* RFC 3339, appendix A */
#define N             "[0-9]{1,9}"
#define DURATION_TIME "T(" N "H(" N "M(" N "S)?)?|" N "M(" N "S)?|" N "S)"
#define DURATION      "P(" N "W|(" N "D|" N "M(" N "D)?|" N "Y(" N "M(" N "D)?)?)(" DURATION_TIME ")?|" DURATION_TIME ")"
/* RFC 1123, at most 63 characters in all, so that no label has more. */
#define LABEL    "[A-Za-z0-9]+(-+[A-Za-z0-9]+)*"
#define HOSTNAME "(?=.{1,63}$)" LABEL "(\\." LABEL ")*"
#define ATOM     "[A-Za-z0-9!#$%&'*+/=?^_`{|}~\\-]"
#define EMAIL    "(?=[^@]{1,64}@)" ATOM "+(\\." ATOM "+)*@" HOSTNAME
#define OCTET    "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
#define IPV4     OCTET "(\\." OCTET "){3}"
/* RFC 4291 */
#define H16  "[0-9a-fA-F]{1,4}"
#define LS32 "(" H16 ":" H16 "|" IPV4 ")"
#define IPV6                                                                                                           \
    "((" H16 ":){6}" LS32 "|::(" H16 ":){5}" LS32 "|(" H16 ")?::(" H16 ":){4}" LS32 "|((" H16 ":){0,1}" H16            \
    ")?::(" H16 ":){3}" LS32 "|((" H16 ":){0,2}" H16 ")?::(" H16 ":){2}" LS32 "|((" H16 ":){0,3}" H16 ")?::" H16       \
    ":" LS32 "|((" H16 ":){0,4}" H16 ")?::" LS32 "|((" H16 ":){0,5}" H16 ")?::" H16 "|((" H16 ":){0,6}" H16 ")?::)"
#define UUID "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
/* RFC 3986 */
#define UNRESERVED "A-Za-z0-9._~!$&'()*+,;=\\-" /* and sub-delims */
#define PERCENT    "%[0-9A-Fa-f]{2}"
#define PCHAR      "([" UNRESERVED ":@]|" PERCENT ")"
/* Of addresses in brackets those like [2001:db8::7]: all of them are ten times as many states. */
#define AUTHORITY                                                                                                      \
    "(([" UNRESERVED ":]|" PERCENT ")*@)?(\\[((" H16 ":){1,3}:" H16 "|::(" H16 ")?)\\]|([" UNRESERVED "]|" PERCENT     \
    ")*)(:[0-9]*)?"
#define PATHS(first)  "(//" AUTHORITY "(/" PCHAR "*)*|/(" PCHAR "+(/" PCHAR "*)*)?|" first "(/" PCHAR "*)*)?"
#define QUERY         "(\\?([" UNRESERVED ":@/?]|" PERCENT ")*)?(#([" UNRESERVED ":@/?]|" PERCENT ")*)?"
#define URI           "[A-Za-z][A-Za-z0-9+.\\-]*:" PATHS(PCHAR "+") QUERY
#define URI_REFERENCE URI "|" PATHS("([" UNRESERVED "@]|" PERCENT ")+") QUERY
/* RFC 6901 */
#define JSON_POINTER "(/([^~/]|~[01])*)*"

static const struct {
    const char *name, *pattern; /* NULL: says nothing about texts */
} formats[] = {
    {"date", DATE},
    {"time", TIME},
    {"date-time", DATE "[Tt]" TIME},
    {"duration", DURATION},
    {"email", EMAIL},
    {"hostname", HOSTNAME},
    {"ipv4", IPV4},
    {"ipv6", IPV6},
    {"uuid", UUID},
    {"uri", URI},
    {"uri-reference", URI_REFERENCE},
    {"json-pointer", JSON_POINTER},
    {"relative-json-pointer", "(0|[1-9][0-9]{0,8})(#|" JSON_POINTER ")"},
    /* what pydantic, zod and OpenAPI write */
    {"uuid4", "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"},
    {"e164", "\\+[1-9][0-9]{6,14}"},
    {"base64", "([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"},
    {"base64url", "[A-Za-z0-9_\\-]*"},
    {"path", NULL},
    {"file-path", NULL},
    {"directory-path", NULL},
    {"byte", "([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"},
    {"binary", NULL},
    {"password", NULL},
    {"int32", NULL},
    {"int64", NULL},
    {"float", NULL},
    {"double", NULL},
};

static mx_regular *format_language(mx_schema_compiler *c, const mx_json *node, const mx_json *format) {
    if (format->type != MX_JSON_STRING) {
        mx_schema_fail(c, MX_INVALID_ARGUMENT, node, "\"format\" must be a string");
        return NULL;
    }
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (mx_json_is_string(format, formats[i].name))
            return formats[i].pattern ? mx_schema_regex(c, formats[i].pattern) : c->all_text;
    mx_schema_fail(c, MX_UNSUPPORTED, node,
                   "\"format\": \"%.60s\" is not supported (date, time, date-time, duration, email, hostname, ipv4, "
                   "ipv6, uuid, uri, uri-reference, json-pointer, relative-json-pointer are); %s",
                   format->text,
                   mx_json_get(node, "pattern") ? "leave it out: \"pattern\", which stands beside it, is enough"
                                                : "\"pattern\" may do");
    return NULL;
}

/* ---- lengths, patterns ------------------------------------------------------------------------------------------- */
bool mx_schema_count(mx_schema_compiler *c, const mx_json *node, const char *keyword, int64_t *out) {
    const mx_json *v = mx_json_get(node, keyword);
    if (!v || c->status) return false;
    int64_t n;
    double d;
    if (mx_json_int64(v, &n) && n >= 0) {
        *out = n < INT32_MAX ? n : INT32_MAX;
        return true;
    }
    if (mx_json_double(v, &d) && d >= INT32_MAX) { /* more than anything has */
        *out = INT32_MAX;
        return true;
    }
    mx_schema_fail(c, MX_INVALID_ARGUMENT, node, "\"%s\" must be a whole number of at least 0", keyword);
    return false;
}

mx_regular *mx_schema_lengths(mx_schema_compiler *c, const mx_json *node, int64_t least, int64_t most) {
    if (c->status) return NULL;
    mx_regular *r = NULL;
    mx_error error;
    mx_status status = mx_regular_length(least, most, &r, &error);
    return mx_schema_own(c, node, status, r, &error);
}

static mx_regular *pattern_language(mx_schema_compiler *c, const mx_json *node, const mx_json *pattern) {
    if (pattern->type != MX_JSON_STRING) {
        mx_schema_fail(c, MX_INVALID_ARGUMENT, node, "\"pattern\" must be a string");
        return NULL;
    }
    mx_regular *r = NULL;
    mx_error error;
    mx_status status = mx_regular_parse(pattern->text, pattern->size, false, &r, &error);
    if (status) {
        mx_schema_fail(c, status, node, "\"pattern\": %s", error.text);
        return NULL;
    }
    return mx_schema_own(c, node, status, r, &error);
}

const mx_string_part *mx_schema_string_part(mx_schema_compiler *c, const mx_json *node) {
    const mx_json *pattern = mx_json_get(node, "pattern"), *format = mx_json_get(node, "format");
    mx_string_part lengths = {.language = c->all_text, .most = -1};
    mx_string_part text = {.language = c->all_text, .most = -1};
    bool any = mx_schema_count(c, node, "minLength", &lengths.least);
    any |= mx_schema_count(c, node, "maxLength", &lengths.most);
    if (!any && !pattern && !format) return NULL;
    if (pattern) text.language = pattern_language(c, node, pattern);
    if (format) text.language = mx_schema_and(c, text.language, format_language(c, node, format));
    if (c->status) return NULL;
    mx_string_part *out = mx_schema_take(c, 2 * sizeof *out);
    if (!out) return NULL;
    out[0] = lengths;
    out[1] = text;
    if (text.language == c->all_text) return &out[0]; /* perhaps of no text, which callers ask */
    const mx_string_part *both = mx_string_and(c, &out[0], &out[1]);
    if (both || c->status) return both;
    out[1] = (mx_string_part){.language = mx_schema_words(c, NULL, 0), .most = -1}; /* no text */
    return c->status ? NULL : &out[1];
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */
mx_regular *mx_schema_string_language(mx_schema_compiler *c, const mx_parts *strings) {
    mx_regular *all = NULL;
    for (int i = 0; i < strings->count; i++) {
        const mx_string_part *s = strings->at[i];
        mx_regular *one = s->language;
        if (s->least > 0 || s->most >= 0) one = mx_schema_and(c, one, mx_schema_lengths(c, NULL, s->least, s->most));
        all = all ? mx_schema_or(c, all, one) : one;
        if (!all) return NULL;
    }
    return all ? all : mx_schema_words(c, NULL, 0);
}

/* Large languages are rules, each once, wherever they are used. */
mx_expr mx_schema_write_texts(mx_schema_compiler *c, mx_regular *language) {
    enum { SMALL = 16 };
    if (c->status) return 0;
    if (language == c->all_text) return c->free_string;
    const uint64_t key = mx_schema_mix(mx_regular_hash(language), 12);
    const int64_t before = mx_schema_recall(c, key);
    if (before >= 0) return (mx_expr)before;
    mx_regular *r = NULL;
    mx_error error;
    const mx_status status = mx_regular_quote(language, &r, &error);
    if (status) mx_schema_fail(c, status, NULL, "its texts (\"pattern\", \"format\", lengths): %s", error.text);
    r = mx_schema_own(c, NULL, status, r, &error);
    if (!r) return 0;
    mx_schema_count_written(c, r);
    mx_expr e = mx_expr_sequence(c->builder, (const mx_expr[]){c->quote, mx_expr_regular(c->builder, r), c->quote}, 3);
    if (mx_regular_look(r).states > SMALL) {
        mx_rule rule = mx_rule_add(c->builder, "text");
        mx_rule_set(c->builder, rule, e);
        e = mx_expr_rule(c->builder, rule);
    }
    mx_schema_remember(c, key, e);
    return e;
}

/* The texts of a language of these lengths: pairs of a state and a number of characters, up to `top`, which is as good
 * as more where `most` < 0. */
static mx_status count_characters(mx_regular_view v, int64_t least, int64_t most, mx_regular **out, mx_error *error) {
    const int64_t top = most < 0 ? least : most;
    mx_raw raw = {.classes = v.classes};
    memcpy(raw.class_of, v.class_of, sizeof raw.class_of);
    bool begins[256] = {0}; /* classes: is it the first byte of a character? */
    for (int byte = 0; byte < 256; byte++)
        if ((byte & 0xC0) != 0x80) begins[v.class_of[byte]] = true;
    const size_t pairs = (size_t)v.states * (size_t)(top + 1);
    int32_t *number = malloc(pairs * sizeof *number), *pair = malloc(pairs * sizeof *pair);
    mx_status status = number && pair ? mx_raw_add(&raw, false, error) : mx_fail(error, MX_NO_MEMORY, "no memory");
    for (size_t i = 0; number && i < pairs; i++) number[i] = -1;
    if (!status) number[0] = pair[0] = 0;
    for (int at = 0; !status && at < raw.states; at++) {
        const int state = pair[at] / (int)(top + 1);
        const int64_t n = pair[at] % (top + 1);
        raw.accepting[at] = v.accepting[state] && n >= least;
        for (int class = 0; !status && class < v.classes; class ++) {
            const int next = v.next[(size_t)state * (size_t)v.classes + (size_t) class];
            const int64_t now = n + begins[class];
            if (next < 0 || (now > top && most >= 0)) continue;
            const size_t to = (size_t)next * (size_t)(top + 1) + (size_t)(now < top ? now : top);
            if (number[to] < 0) {
                status = mx_raw_add(&raw, false, error);
                if (status) break;
                number[to] = raw.states - 1;
                pair[raw.states - 1] = (int32_t)to;
            }
            raw.next[(size_t)at * (size_t)raw.classes + (size_t) class] = number[to];
        }
    }
    if (!status) status = mx_raw_minimal(&raw, out, error);
    mx_raw_free(&raw);
    free(number);
    free(pair);
    return status;
}

/* What is written may be less than what is valid: texts of a pattern and a large maxLength are shorter, so that the
 * automaton stays small. */
static mx_regular *of_lengths(mx_schema_compiler *c, mx_regular *language, int64_t least, int64_t most) {
    if (c->status) return NULL;
    const mx_regular_view v = mx_regular_look(language);
    const int64_t room = MOST_COUNTED / v.states;
    if (least > room) {
        mx_schema_fail(c, MX_UNSUPPORTED, NULL,
                       "\"minLength\" %lld beside a \"pattern\" or \"format\" of %d states is too much: at most %lld",
                       (long long)least, v.states, (long long)room);
        return NULL;
    }
    if (most > room) most = room;
    mx_regular *r = NULL;
    mx_error error;
    const mx_status status = count_characters(v, least, most, &r, &error);
    if (status)
        mx_schema_fail(c, status, NULL, "\"minLength\" or \"maxLength\" beside \"pattern\" or \"format\": %s",
                       error.text);
    return mx_schema_own(c, NULL, status, r, &error);
}

mx_expr mx_schema_write_string(mx_schema_compiler *c, const mx_string_part *a) {
    if (a->least == 0 && a->most < 0) return mx_schema_write_texts(c, a->language);
    if (a->language != c->all_text) {
        mx_regular *some = of_lengths(c, a->language, a->least, a->most);
        if (some && mx_regular_is_empty(some)) return mx_expr_never(c->builder);
        return some ? mx_schema_write_texts(c, some) : 0;
    }
    const mx_expr characters = mx_expr_repeat(c->builder, c->character, a->least, a->most);
    return mx_expr_sequence(c->builder, (const mx_expr[]){c->quote, characters, c->quote}, 3);
}
