#include "tokenizer/split.h"

#include <stdint.h>
#include <stdlib.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/bytes.h"

/* The long classes of the exact pattern cost three times the time, so it only runs on texts that need it. */
struct mx_splitter {
    pcre2_code *quick; /* with PCRE2's own properties */
    pcre2_code *exact; /* with the characters that PCRE2 does not know yet */
    pcre2_code *newer; /* matches any such character */
    bool jit;
};

/* The White_Space property. PCRE2's own \s also matches U+180E, which is none since Unicode 6.3. */
#define SPACE "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define NOT_SPACE                                                                                                      \
    "\\x00-\\x08\\x0e-\\x1f\\x21-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}"        \
    "\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"

/* Characters of Unicode 15.0, 15.1 and 16.0 by general category, as classes hold them. tiktoken knows them; PCRE2 10.42
 * stands at Unicode 14. No version changed the category of an older character in a way that these properties see. */
#define NEW_LU "\\x{1c89}\\x{a7cb}-\\x{a7cc}\\x{a7da}\\x{a7dc}\\x{10d50}-\\x{10d65}"
#define NEW_LL "\\x{1c8a}\\x{a7cd}\\x{a7db}\\x{10d70}-\\x{10d85}\\x{1df25}-\\x{1df2a}"
#define NEW_LM "\\x{10d4e}\\x{10d6f}\\x{16d40}-\\x{16d42}\\x{16d6b}-\\x{16d6c}\\x{1e030}-\\x{1e06d}\\x{1e4eb}"
#define NEW_LO                                                                                                         \
    "\\x{105c0}-\\x{105f3}\\x{10d4a}-\\x{10d4d}\\x{10d4f}\\x{10ec2}-\\x{10ec4}\\x{1123f}-\\x{11240}"                   \
    "\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}\\x{113d3}"                     \
    "\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}\\x{1342f}"                              \
    "\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}\\x{16100}-\\x{1611d}\\x{16d43}-\\x{16d6a}\\x{18cff}"                   \
    "\\x{1b132}\\x{1b155}\\x{1e4d0}-\\x{1e4ea}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}"                               \
    "\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}"
#define NEW_M                                                                                                          \
    "\\x{897}\\x{cf3}\\x{ece}\\x{10d69}-\\x{10d6d}\\x{10efc}-\\x{10eff}\\x{11241}\\x{113b8}-\\x{113c0}"                \
    "\\x{113c2}\\x{113c5}\\x{113c7}-\\x{113ca}\\x{113cc}-\\x{113d0}\\x{113d2}\\x{113e1}-\\x{113e2}"                    \
    "\\x{11f00}-\\x{11f01}\\x{11f03}\\x{11f34}-\\x{11f3a}\\x{11f3e}-\\x{11f42}\\x{11f5a}\\x{13440}"                    \
    "\\x{13447}-\\x{13455}\\x{1611e}-\\x{1612f}\\x{1e08f}\\x{1e4ec}-\\x{1e4ef}\\x{1e5ee}-\\x{1e5ef}"
#define NEW_N                                                                                                          \
    "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}"                             \
    "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1d2c0}-\\x{1d2d3}"                             \
    "\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}"

typedef struct property {
    const char *name; /* of \\p{...} */
    const char *added[4];
} property;

static const property properties[] = {
    {"L", {NEW_LU, NEW_LL, NEW_LM, NEW_LO}},
    {"Lu", {NEW_LU}},
    {"Ll", {NEW_LL}},
    {"Lm", {NEW_LM}},
    {"Lo", {NEW_LO}},
    {"M", {NEW_M}},
    {"N", {NEW_N}},
};

/* Translates the escape at p, which begins with a backslash, and says in *length how long it is. Inside a class the
 * complement of a property cannot be mended; it stays as PCRE2 knows it. */
static bool translate_escape(const char *p, size_t size, bool in_class, bool exact, mx_bytes *out, size_t *length) {
    char c = size > 1 ? p[1] : 0;
    const char *open = in_class ? "" : "[", *close = in_class ? "" : "]";
    *length = size < 2 ? size : 2;
    if (c == 's' || c == 'S')
        return mx_bytes_add_string(out, open) && mx_bytes_add_string(out, c == 's' ? SPACE : NOT_SPACE) &&
               mx_bytes_add_string(out, close);
    const char *end = (c == 'p' || c == 'P') && size > 2 && p[2] == '{' ? memchr(p, '}', size) : NULL;
    if (!end) return mx_bytes_add(out, p, *length);
    *length = (size_t)(end + 1 - p);
    for (size_t i = 0; i < sizeof properties / sizeof *properties && exact && !(in_class && c == 'P'); i++) {
        const property *known = &properties[i];
        if (strlen(known->name) != *length - 4 || memcmp(known->name, p + 3, *length - 4) != 0) continue;
        bool ok = mx_bytes_addf(out, "%s%s\\p{%s}", open, c == 'P' ? "^" : "", known->name);
        for (int k = 0; k < 4 && known->added[k]; k++) ok = ok && mx_bytes_add_string(out, known->added[k]);
        return ok && mx_bytes_add_string(out, close);
    }
    return mx_bytes_add(out, p, *length);
}

/* The pattern in PCRE2's words: escapes replaced by what they mean in the Unicode of today. */
static bool translate(const char *p, size_t size, bool exact, mx_bytes *out) {
    bool in_class = false, ok = true;
    for (size_t i = 0, length; i < size && ok; i += length) {
        length = 1;
        if (p[i] == '\\') {
            ok = translate_escape(p + i, size - i, in_class, exact, out, &length);
            continue;
        }
        if (!in_class && p[i] == '[') {
            in_class = true;
            if (i + 1 < size && p[i + 1] == '^') length++;
            if (i + length < size && p[i + length] == ']') length++; /* a first ] is no end */
        } else if (in_class && p[i] == ']') {
            in_class = false;
        }
        ok = mx_bytes_add(out, p + i, length);
    }
    return ok;
}

static mx_status compile(const mx_bytes *pattern, mx_splitter *s, pcre2_code **out, mx_error *error) {
    int code;
    PCRE2_SIZE where;
    const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | PCRE2_DOLLAR_ENDONLY;
    *out = pcre2_compile((PCRE2_SPTR)pattern->data, pattern->size, options, &code, &where, NULL);
    if (!*out) {
        char text[200];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)text, sizeof text);
        return mx_fail(error, MX_INVALID_FILE, "the split pattern is no regular expression that PCRE2 accepts: %s",
                       text);
    }
    /* where the system forbids new code at run time, the interpreter does the same, slower */
    s->jit = pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE) == 0 && s->jit;
    return MX_OK;
}

mx_status mx_splitter_create(const char *pattern, size_t size, mx_splitter **out, mx_error *error) {
    *out = NULL;
    mx_splitter *s = calloc(1, sizeof *s);
    mx_bytes quick = {0}, exact = {0}, newer = {0};
    mx_status status = MX_OK;
    if (!s || !translate(pattern, size, false, &quick) || !translate(pattern, size, true, &exact) ||
        !mx_bytes_add_string(&newer, "[" NEW_LU NEW_LL NEW_LM NEW_LO NEW_M NEW_N "]"))
        status = mx_fail(error, MX_NO_MEMORY, "no memory for the split pattern");
    if (status == MX_OK) {
        s->jit = true;
        status = compile(&quick, s, &s->quick, error);
    }
    if (status == MX_OK) status = compile(&exact, s, &s->exact, error);
    if (status == MX_OK) status = compile(&newer, s, &s->newer, error);
    mx_bytes_free(&quick);
    mx_bytes_free(&exact);
    mx_bytes_free(&newer);
    if (status == MX_OK)
        *out = s;
    else
        mx_splitter_free(s);
    return status;
}

void mx_splitter_free(mx_splitter *s) {
    if (!s) return;
    pcre2_code_free(s->quick);
    pcre2_code_free(s->exact);
    pcre2_code_free(s->newer);
    free(s);
}

/* As pcre2_match, from `at` on; the offsets are in state->match_data. */
static int match(const mx_split_state *state, const pcre2_code *code, size_t at) {
    PCRE2_SPTR text = (PCRE2_SPTR)state->text;
    const uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
    if (state->splitter->jit) {
        int rc = pcre2_jit_match(code, text, state->size, at, options, state->match_data, state->match_context);
        if (rc != PCRE2_ERROR_JIT_STACKLIMIT) return rc;
    }
    /* the interpreter keeps its stack on the heap */
    return pcre2_match(code, text, state->size, at, options | PCRE2_NO_JIT, state->match_data, state->match_context);
}

mx_status mx_split_open(mx_split_state *state, const mx_splitter *s, mx_error *error) {
    *state = (mx_split_state){.splitter = s};
    state->match_data = pcre2_match_data_create(1, NULL);
    state->match_context = pcre2_match_context_create(NULL);
    if (!state->match_data || !state->match_context) {
        mx_split_close(state);
        return mx_fail(error, MX_NO_MEMORY, "no memory to split text");
    }
    pcre2_set_heap_limit(state->match_context, UINT32_MAX);
    pcre2_set_depth_limit(state->match_context, UINT32_MAX);
    return MX_OK;
}

void mx_split_close(mx_split_state *state) {
    pcre2_match_data_free(state->match_data);
    pcre2_match_context_free(state->match_context);
    *state = (mx_split_state){0};
}

void mx_split_begin(mx_split_state *state, const char *text, size_t size) {
    state->text = text;
    state->size = size;
    state->at = state->match_begin = state->match_end = 0;
    /* far above what a pattern without nested repeats can use, yet an end for one that explodes */
    size_t limit = size < UINT32_MAX / 128 ? 10000000 + 100 * size : UINT32_MAX;
    pcre2_set_match_limit(state->match_context, (uint32_t)limit);
    state->code = match(state, state->splitter->newer, 0) == PCRE2_ERROR_NOMATCH ? state->splitter->quick
                                                                                 : state->splitter->exact;
}

mx_status mx_split_next(mx_split_state *state, const char **piece, size_t *size, mx_error *error) {
    size_t begin = state->at, end = state->match_end;
    if (begin == end && begin < state->size) {
        int rc = match(state, state->code, begin);
        if (rc == PCRE2_ERROR_NOMEMORY) return mx_fail(error, MX_NO_MEMORY, "no memory to split text");
        if (rc < 0 && rc != PCRE2_ERROR_NOMATCH) {
            char reason[200];
            pcre2_get_error_message(rc, (PCRE2_UCHAR *)reason, sizeof reason);
            return mx_fail(error, MX_UNSUPPORTED,
                           "the split pattern of the tokenizer fails at byte %zu of the text: %s", begin, reason);
        }
        const PCRE2_SIZE *found = pcre2_get_ovector_pointer(state->match_data);
        if (rc >= 0 && (found[0] < begin || found[1] <= found[0])) /* \K inside a lookaround can do that */
            return mx_fail(error, MX_UNSUPPORTED, "the split pattern of the tokenizer goes backwards at byte %zu",
                           begin);
        state->match_begin = rc == PCRE2_ERROR_NOMATCH ? state->size : found[0];
        state->match_end = rc == PCRE2_ERROR_NOMATCH ? state->size : found[1];
    }
    /* what the pattern skips is a piece of its own */
    state->at = begin < state->match_begin ? state->match_begin : state->match_end;
    *piece = state->text + begin;
    *size = state->at - begin;
    return MX_OK;
}
