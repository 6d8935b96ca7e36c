#include "tokenizer/split.h"

#include <stdint.h>
#include <stdlib.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/bytes.h"

struct mx_splitter {
    pcre2_code *code;
    bool jit;
};

/* The White_Space property. PCRE2's own \s also matches U+180E, which is none since Unicode 6.3. */
#define SPACE "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define NOT_SPACE                                                                                                      \
    "\\x00-\\x08\\x0e-\\x1f\\x21-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}"        \
    "\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"

/* The pattern in PCRE2's words: \s and \S replaced by what they mean in Unicode. */
static bool translate(const char *p, size_t size, mx_bytes *out) {
    bool in_class = false, ok = true;
    for (size_t i = 0; i < size && ok; i++) {
        if (p[i] == '\\' && i + 1 < size) {
            char c = p[++i];
            if (c == 's' || c == 'S') {
                ok = (in_class || mx_bytes_add(out, "[", 1)) &&
                     mx_bytes_add_string(out, c == 's' ? SPACE : NOT_SPACE) && (in_class || mx_bytes_add(out, "]", 1));
            } else {
                ok = mx_bytes_add(out, p + i - 1, 2);
            }
            continue;
        }
        if (!in_class && p[i] == '[') {
            in_class = true;
            ok = mx_bytes_add(out, "[", 1);
            if (i + 1 < size && p[i + 1] == '^') ok = ok && mx_bytes_add(out, p + ++i, 1);
            if (i + 1 < size && p[i + 1] == ']') ok = ok && mx_bytes_add(out, p + ++i, 1);
            continue;
        }
        if (in_class && p[i] == ']') in_class = false;
        ok = mx_bytes_add(out, p + i, 1);
    }
    return ok;
}

mx_status mx_splitter_create(const char *pattern, size_t size, mx_splitter **out, mx_error *error) {
    *out = NULL;
    mx_splitter *s = calloc(1, sizeof *s);
    mx_bytes translated = {0};
    if (!s || !translate(pattern, size, &translated)) {
        free(s);
        mx_bytes_free(&translated);
        return mx_fail(error, MX_NO_MEMORY, "no memory for the split pattern");
    }
    int code;
    PCRE2_SIZE where;
    uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | PCRE2_DOLLAR_ENDONLY;
    s->code = pcre2_compile((PCRE2_SPTR)(translated.data ? translated.data : ""), translated.size, options, &code,
                            &where, NULL);
    mx_bytes_free(&translated);
    if (!s->code) {
        char text[200];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)text, sizeof text);
        free(s);
        return mx_fail(error, MX_INVALID_FILE, "the split pattern is no regular expression that PCRE2 accepts: %s",
                       text);
    }
    /* where the system forbids new code at run time, the interpreter does the same, slower */
    s->jit = pcre2_jit_compile(s->code, PCRE2_JIT_COMPLETE) == 0;
    *out = s;
    return MX_OK;
}

void mx_splitter_free(mx_splitter *s) {
    if (!s) return;
    pcre2_code_free(s->code);
    free(s);
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
    pcre2_set_depth_limit(state->match_context, UINT32_MAX);
}

mx_status mx_split_next(mx_split_state *state, const char **piece, size_t *size, mx_error *error) {
    size_t begin = state->at, end = state->match_end;
    if (begin == end && begin < state->size) {
        PCRE2_SPTR text = (PCRE2_SPTR)state->text;
        const uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
        int rc = PCRE2_ERROR_JIT_STACKLIMIT;
        if (state->splitter->jit)
            rc = pcre2_jit_match(state->splitter->code, text, state->size, begin, options, state->match_data,
                                 state->match_context);
        if (rc == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter keeps its stack on the heap */
            rc = pcre2_match(state->splitter->code, text, state->size, begin, options | PCRE2_NO_JIT, state->match_data,
                             state->match_context);
        if (rc == PCRE2_ERROR_NOMEMORY) return mx_fail(error, MX_NO_MEMORY, "no memory to split text");
        if (rc < 0 && rc != PCRE2_ERROR_NOMATCH) {
            char reason[200];
            pcre2_get_error_message(rc, (PCRE2_UCHAR *)reason, sizeof reason);
            return mx_fail(error, MX_UNSUPPORTED,
                           "the split pattern of tokenizer.json fails at byte %zu of the text: %s", begin, reason);
        }
        const PCRE2_SIZE *match = pcre2_get_ovector_pointer(state->match_data);
        if (rc >= 0 && (match[0] < begin || match[1] <= match[0])) /* \K inside a lookaround can do that */
            return mx_fail(error, MX_UNSUPPORTED, "the split pattern of tokenizer.json goes backwards at byte %zu",
                           begin);
        state->match_begin = rc == PCRE2_ERROR_NOMATCH ? state->size : match[0];
        state->match_end = rc == PCRE2_ERROR_NOMATCH ? state->size : match[1];
    }
    /* what the pattern skips is a piece of its own */
    state->at = begin < state->match_begin ? state->match_begin : state->match_end;
    *piece = state->text + begin;
    *size = state->at - begin;
    return MX_OK;
}
