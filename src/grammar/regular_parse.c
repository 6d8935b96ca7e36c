/* ECMA-262's regular expressions (2024, "Pattern" with flag u) as trees. Where a pattern is wrong with flag u and has
 * one meaning without it (Annex B.1.2), it is taken: \ before punctuation, ] and } alone, - behind a class like \w.
 * Patterns that people write for other engines hold these. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "grammar/regular_private.h"

typedef struct parser {
    const char *text;
    size_t size, at;
    mx_pattern *out;
    mx_error *error;
    int depth;
    char properties[MX_PATTERN_PROPERTIES][64]; /* names that were asked for */
    int property_count;
} parser;

static mx_status no_memory(parser *p) {
    return mx_fail(p->error, MX_NO_MEMORY, "no memory for a regular expression");
}

static mx_status wrong(parser *p, size_t at, const char *what) {
    return mx_fail(p->error, MX_INVALID_ARGUMENT, "regular expression, byte %zu: %s", at, what);
}

static mx_status unsupported(parser *p, size_t at, const char *what) {
    return mx_fail(p->error, MX_UNSUPPORTED, "regular expression, byte %zu: %s not supported", at, what);
}

static int peek(const parser *p) {
    return p->at < p->size ? (unsigned char)p->text[p->at] : -1;
}

static bool ahead(const parser *p, const char *text) {
    const size_t n = strlen(text);
    return p->size - p->at >= n && memcmp(p->text + p->at, text, n) == 0;
}

static bool take(parser *p, const char *text) {
    if (!ahead(p, text)) return false;
    p->at += strlen(text);
    return true;
}

/* One character of valid UTF-8. */
static uint32_t take_character(parser *p) {
    const unsigned char *s = (const unsigned char *)p->text + p->at;
    const int n = mx_utf8_length(s, p->size - p->at);
    uint32_t c = n == 1 ? s[0] : n == 2 ? s[0] & 0x1Fu : n == 3 ? s[0] & 0xFu : s[0] & 7u;
    for (int i = 1; i < n; i++) c = c << 6 | (s[i] & 0x3Fu);
    p->at += (size_t)n;
    return c;
}

/* ---- nodes ------------------------------------------------------------------------------------------------------- */

static mx_status node(parser *p, mx_tree_kind kind, mx_tree **out) {
    mx_pattern *o = p->out;
    if (o->owned_count == o->owned_capacity) {
        const int capacity = o->owned_capacity ? 2 * o->owned_capacity : 32;
        mx_tree **owned = realloc(o->owned, (size_t)capacity * sizeof *owned);
        if (!owned) return no_memory(p);
        o->owned = owned;
        o->owned_capacity = capacity;
    }
    mx_tree *t = calloc(1, sizeof *t);
    if (!t) return no_memory(p);
    t->kind = kind;
    t->context = kind == MX_TREE_BEGIN || kind == MX_TREE_WORD || kind == MX_TREE_NOT_WORD;
    o->owned[o->owned_count++] = *out = t;
    return MX_OK;
}

/* The number of a class of characters. */
static mx_status set_index(parser *p, mx_ranges *ranges, int *index) {
    mx_pattern *o = p->out;
    _Static_assert(sizeof(mx_range) == sizeof(int64_t), "a range is interned as a number");
    mx_ranges_sort(ranges);
    const size_t size = ranges->count * sizeof *ranges->data;
    int64_t *items = malloc(size + 1);
    if (!items) return no_memory(p);
    if (size) memcpy(items, ranges->data, size);
    mx_status status = mx_sets_intern(&o->ranges, items, ranges->count, index, p->error);
    free(items);
    if (status || *index < o->set_count) return status;
    if (o->ranges.used + (size_t)o->ranges.count > MX_PATTERN_RANGES)
        return mx_fail(p->error, MX_UNSUPPORTED,
                       "the classes of characters of a regular expression have more than %d ranges together",
                       MX_PATTERN_RANGES);
    if (o->set_count == o->set_capacity) {
        const int capacity = o->set_capacity ? 2 * o->set_capacity : 16;
        mx_regular **sets = realloc(o->sets, (size_t)capacity * sizeof *sets);
        if (!sets) return no_memory(p);
        o->sets = sets;
        o->set_capacity = capacity;
    }
    status = mx_regular_characters(ranges, &o->sets[o->set_count], p->error);
    if (!status) o->set_count++;
    return status;
}

/* Frees the ranges. */
static mx_status characters(parser *p, mx_ranges *ranges, mx_tree **out) {
    int index = 0;
    mx_status status = set_index(p, ranges, &index);
    mx_ranges_free(ranges);
    if (!status) status = node(p, MX_TREE_CHARACTERS, out);
    if (!status) (*out)->set = index;
    return status;
}

static mx_status one_character(parser *p, uint32_t c, mx_tree **out) {
    mx_ranges r = {0};
    if (!mx_ranges_add(&r, c, c)) return no_memory(p);
    return characters(p, &r, out);
}

/* ---- escapes ----------------------------------------------------------------------------------------------------- */

static bool add_class(char letter, mx_ranges *r) {
    /* WhiteSpace and LineTerminator */
    static const mx_range spaces[] = {{9, 13},          {' ', ' '},       {0xA0, 0xA0},     {0x1680, 0x1680},
                                      {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F},
                                      {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
    static const mx_range digits[] = {{'0', '9'}};
    static const mx_range words[] = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
    const char lower = (char)(letter | 0x20);
    const mx_range *from = lower == 's' ? spaces : lower == 'd' ? digits : words;
    const size_t count = lower == 's' ? sizeof spaces / sizeof *spaces : lower == 'd' ? 1 : 4;
    mx_ranges one = {0};
    bool ok = true;
    for (size_t i = 0; ok && i < count; i++) ok = mx_ranges_add(&one, from[i].first, from[i].last);
    if (ok && letter != lower) ok = mx_ranges_invert(&one);
    ok = ok && mx_ranges_add_all(r, &one);
    mx_ranges_free(&one);
    return ok;
}

/* p->at is behind \p or \P. */
static mx_status add_property(parser *p, bool inverted, mx_ranges *r) {
    const size_t at = p->at - 2;
    const char *begin = p->text + p->at + 1;
    const char *end = peek(p) == '{' ? memchr(begin, '}', p->size - p->at - 1) : NULL;
    if (!end) return wrong(p, at, "\\p is followed by a property in braces, as in \\p{L}");
    const size_t size = (size_t)(end - begin);
    p->at += size + 2;
    if (size >= sizeof *p->properties || memchr(begin, 0, size))
        return wrong(p, at, "there is no Unicode property with such a name");
    int known = 0;
    while (known < p->property_count &&
           (strlen(p->properties[known]) != size || memcmp(p->properties[known], begin, size) != 0))
        known++;
    if (known == MX_PATTERN_PROPERTIES)
        return mx_fail(p->error, MX_UNSUPPORTED, "a regular expression has more than %d different \\p{...}",
                       MX_PATTERN_PROPERTIES);
    if (known == p->property_count) memcpy(p->properties[p->property_count++], begin, size);
    mx_ranges one = {0};
    mx_status status = mx_property_add(begin, size, &one, p->error);
    if (status) status = mx_fail_within(p->error, status, "regular expression, byte %zu", at);
    if (!status && ((inverted && !mx_ranges_invert(&one)) || !mx_ranges_add_all(r, &one))) status = no_memory(p);
    mx_ranges_free(&one);
    return status;
}

static bool hex(parser *p, int digits, uint32_t *out) {
    uint32_t v = 0;
    if (p->size - p->at < (size_t)digits) return false;
    for (int i = 0; i < digits; i++) {
        const int c = (unsigned char)p->text[p->at + (size_t)i];
        const char *all = "0123456789abcdef", *found = c ? strchr(all, c >= 'A' && c <= 'F' ? c + 32 : c) : NULL;
        if (!found) return false;
        v = v << 4 | (uint32_t)(found - all);
    }
    p->at += (size_t)digits;
    *out = v;
    return true;
}

/* p->at is behind \u. A surrogate alone is one that no text holds. */
static mx_status unicode_escape(parser *p, uint32_t *out) {
    const size_t at = p->at - 2;
    if (take(p, "{")) {
        uint32_t v = 0, digit;
        size_t count = 0;
        for (; v <= MX_LAST_CHARACTER && hex(p, 1, &digit); count++) v = v << 4 | digit;
        if (!count || v > MX_LAST_CHARACTER || !take(p, "}"))
            return wrong(p, at, "\\u{...} holds a code point of up to 10FFFF in hexadecimal digits");
        return *out = v, MX_OK;
    }
    if (!hex(p, 4, out)) return wrong(p, at, "\\u is followed by four hexadecimal digits or by {...}");
    uint32_t low;
    const size_t behind = p->at;
    if (*out >= 0xD800 && *out < 0xDC00 && take(p, "\\u")) {
        if (hex(p, 4, &low) && low >= 0xDC00 && low < 0xE000)
            *out = 0x10000 + ((*out - 0xD800) << 10) + (low - 0xDC00);
        else
            p->at = behind;
    }
    return MX_OK;
}

/* What is behind \ where it stands for one character: p->at is at the letter. */
static mx_status character_escape(parser *p, bool in_class, uint32_t *out) {
    const size_t at = p->at - 1;
    const int c = peek(p);
    static const char letters[] = "tnvfr", bytes[] = "\t\n\v\f\r";
    if (c < 0) return wrong(p, at, "\\ at the end");
    if (c >= 0x80) return *out = take_character(p), MX_OK;
    p->at++;
    const char *letter = c ? strchr(letters, c) : NULL;
    if (letter) return *out = (uint32_t)bytes[letter - letters], MX_OK;
    if (c == 'b' && in_class) return *out = '\b', MX_OK;
    if (c == 'u') return unicode_escape(p, out);
    if (c == 'x') return hex(p, 2, out) ? MX_OK : wrong(p, at, "\\x is followed by two hexadecimal digits");
    if (c == 'c') {
        const int l = peek(p) | 0x20;
        if (l < 'a' || l > 'z') return wrong(p, at, "\\c is followed by a letter");
        p->at++;
        return *out = (uint32_t)l & 31, MX_OK;
    }
    if (c == '0') {
        if (peek(p) >= '0' && peek(p) <= '9') return wrong(p, at, "octal escapes are not ECMA-262's: write \\x00");
        return *out = 0, MX_OK;
    }
    if (c >= '1' && c <= '9')
        return in_class ? wrong(p, at, "a reference inside a class of characters")
                        : unsupported(p, at, "references (\\1) are");
    if (c == 'k' && !in_class) return unsupported(p, at, "references (\\k<name>) are");
    if (c == 'A' || c == 'Z' || c == 'z')
        return mx_fail(p->error, MX_INVALID_ARGUMENT,
                       "regular expression, byte %zu: \\%c is no escape of ECMA-262: write %s", at, c,
                       c == 'A' ? "^" : "$");
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
        return mx_fail(p->error, MX_INVALID_ARGUMENT, "regular expression, byte %zu: \\%c is no escape of ECMA-262", at,
                       c);
    return *out = (uint32_t)c, MX_OK;
}

/* Behind \: a class like \d or \p{...}? 1: added; 0: no such; -1: failed, with the status. */
static int class_escape(parser *p, mx_ranges *r, mx_status *status) {
    const int c = peek(p);
    if (c > 0 && strchr("dDsSwW", c)) {
        p->at++;
        if (add_class((char)c, r)) return 1;
        *status = no_memory(p);
        return -1;
    }
    if (c != 'p' && c != 'P') return 0;
    p->at++;
    *status = add_property(p, c == 'P', r);
    return *status ? -1 : 1;
}

/* ---- classes ----------------------------------------------------------------------------------------------------- */

/* One atom of a class: a character in *c, or a whole class, added to r, with *c = UINT32_MAX. */
static mx_status class_atom(parser *p, mx_ranges *r, uint32_t *c) {
    mx_status status = MX_OK;
    if (!take(p, "\\")) return *c = take_character(p), MX_OK;
    const int whole = class_escape(p, r, &status);
    *c = UINT32_MAX;
    return whole ? status : character_escape(p, true, c);
}

/* [:alpha:] inside a class, which ECMA-262 reads as the characters : a l p h. */
static mx_status check_posix(const parser *p) {
    const char *begin = p->text + p->at + 1;
    const size_t left = p->size - p->at;
    size_t n = 1;
    while (n < left - 1 && begin[n] >= 'a' && begin[n] <= 'z') n++;
    if (left < 5 || *begin != ':' || n < 5 || n + 1 >= left - 1 || begin[n] != ':' || begin[n + 1] != ']') return MX_OK;
    return mx_fail(p->error, MX_UNSUPPORTED,
                   "regular expression, byte %zu: [%.*s] is no class of ECMA-262: write \\p{L} for [:alpha:], \\d for "
                   "[:digit:], \\s for [:space:]",
                   p->at, (int)(n + 1), begin);
}

static mx_status class_ranges(parser *p, size_t at, mx_ranges *r) {
    mx_status status = MX_OK;
    while (!status && !ahead(p, "]")) {
        uint32_t first, last;
        if (p->at >= p->size) return wrong(p, at, "[ without ]");
        const size_t here = p->at;
        if (ahead(p, "[:")) status = check_posix(p);
        if (!status) status = class_atom(p, r, &first);
        if (status) return status;
        last = first;
        if (!status && ahead(p, "-") && p->at + 1 < p->size && p->text[p->at + 1] != ']') {
            p->at++;
            status = class_atom(p, r, &last);
            if (status) return status;
            if (first == UINT32_MAX || last == UINT32_MAX) { /* \w-x: three of them */
                if (!mx_ranges_add(r, '-', '-')) return no_memory(p);
                if (first != UINT32_MAX && !mx_ranges_add(r, first, first)) return no_memory(p);
                first = last;
            } else if (last < first) {
                return wrong(p, here, "the end of a range comes before its beginning");
            }
        }
        if (!status && first != UINT32_MAX && !mx_ranges_add(r, first, last)) status = no_memory(p);
        if (r->count > 8192) mx_ranges_sort(r);
    }
    p->at++;
    return status;
}

static mx_status parse_class(parser *p, mx_tree **out) {
    const size_t at = p->at++;
    const bool inverted = take(p, "^");
    mx_ranges r = {0};
    mx_status status = class_ranges(p, at, &r);
    if (!status && inverted && !mx_ranges_invert(&r)) status = no_memory(p);
    if (!status) return characters(p, &r, out);
    mx_ranges_free(&r);
    return status;
}

/* ---- terms ------------------------------------------------------------------------------------------------------- */

static mx_status parse_choice(parser *p, mx_tree **out);

static mx_status dot(parser *p, mx_tree **out) {
    mx_ranges r = {0};
    if (!mx_ranges_add(&r, '\n', '\n') || !mx_ranges_add(&r, '\r', '\r') || !mx_ranges_add(&r, 0x2028, 0x2029) ||
        !mx_ranges_invert(&r)) {
        mx_ranges_free(&r);
        return no_memory(p);
    }
    return characters(p, &r, out);
}

static mx_status parse_escape(parser *p, mx_tree **out) {
    p->at++;
    if (take(p, "b")) return node(p, MX_TREE_WORD, out);
    if (take(p, "B")) return node(p, MX_TREE_NOT_WORD, out);
    mx_ranges r = {0};
    mx_status status = MX_OK;
    uint32_t c = 0;
    const int whole = class_escape(p, &r, &status);
    if (whole > 0) return characters(p, &r, out);
    mx_ranges_free(&r);
    if (!whole) status = character_escape(p, false, &c);
    return status ? status : one_character(p, c, out);
}

/* Behind (? : what kind of group. */
static mx_status group_kind(parser *p, size_t at, bool *look, bool *negative) {
    *look = *negative = false;
    if (take(p, ":")) return MX_OK;
    if (take(p, "=")) return *look = true, MX_OK;
    if (take(p, "!")) return *look = *negative = true, MX_OK;
    if (ahead(p, "<=") || ahead(p, "<!")) return unsupported(p, at, "lookbehind, (?<=...) and (?<!...), is");
    if (take(p, "<")) {
        size_t size = 0;
        for (; p->at < p->size && p->text[p->at] != '>'; p->at++, size++) {
            const int c = (unsigned char)p->text[p->at];
            const bool fits = c == '_' || c == '$' || c >= 0x80 || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
                              (size && c >= '0' && c <= '9');
            if (!fits) return wrong(p, p->at, "the name of a group holds letters, digits, _ and $");
        }
        return size && take(p, ">") ? MX_OK : wrong(p, at, "the name of a group is not ended by >");
    }
    if (ahead(p, "P<")) return wrong(p, at, "(?P<name>...) is not ECMA-262's: write (?<name>...)");
    const int c = peek(p);
    if (c == 'i' || c == 'm' || c == 's' || c == '-') return unsupported(p, at, "flags in a group, as in (?i), are");
    return wrong(p, at, "(? begins no group of ECMA-262: use (?:...), (?<name>...), (?=...) or (?!...)");
}

static mx_status parse_group(parser *p, mx_tree **out, bool *assertion) {
    const size_t at = p->at++;
    bool look = false, negative = false;
    mx_status status = take(p, "?") ? group_kind(p, at, &look, &negative) : MX_OK;
    if (!status && ++p->depth > MX_PATTERN_DEPTH)
        return mx_fail(p->error, MX_UNSUPPORTED, "regular expression, byte %zu: more than %d groups inside each other",
                       at, MX_PATTERN_DEPTH);
    mx_tree *inner = NULL;
    if (!status) status = parse_choice(p, &inner);
    if (status) return status;
    p->depth--;
    if (!take(p, ")")) return wrong(p, at, "( without )");
    *assertion = look;
    if (!look) return *out = inner, MX_OK;
    status = node(p, MX_TREE_LOOK, out);
    if (status) return status;
    (*out)->child = inner;
    (*out)->negative = negative;
    (*out)->context = inner->context;
    return MX_OK;
}

/* An atom, or an assertion, which no quantifier may follow. */
static mx_status parse_atom(parser *p, mx_tree **out, bool *assertion) {
    const size_t at = p->at;
    const int c = peek(p);
    mx_status status;
    *assertion = false;
    switch (c) {
    case '^':
    case '$':
        p->at++;
        *assertion = true;
        return node(p, c == '^' ? MX_TREE_BEGIN : MX_TREE_END, out);
    case '(':
        return parse_group(p, out, assertion);
    case '[':
        return parse_class(p, out);
    case '.':
        p->at++;
        return dot(p, out);
    case '\\':
        status = parse_escape(p, out);
        *assertion = !status && (*out)->kind != MX_TREE_CHARACTERS;
        return status;
    case '*':
    case '+':
    case '?':
        return wrong(p, at, "there is nothing before it that could be repeated");
    case '{':
        return wrong(p, at, "{ repeats nothing here: write \\{ for the character");
    default:
        return one_character(p, take_character(p), out);
    }
}

static bool number(parser *p, int64_t *out) {
    const size_t at = p->at;
    *out = 0;
    for (; peek(p) >= '0' && peek(p) <= '9'; p->at++)
        if (*out < INT32_MAX) *out = 10 * *out + (peek(p) - '0');
    return p->at > at;
}

/* Is there a quantifier? */
static mx_status parse_quantifier(parser *p, bool *found, int64_t *least, int64_t *most) {
    const size_t at = p->at;
    *found = true;
    *least = 0, *most = -1;
    if (take(p, "?"))
        *most = 1;
    else if (take(p, "+"))
        *least = 1;
    else if (take(p, "{")) {
        const bool ok = number(p, least);
        *most = *least;
        if (ok && take(p, ",") && !number(p, most)) *most = -1;
        if (!ok || !take(p, "}"))
            return wrong(p, at, "{ is followed by {n}, {n,} or {n,m}; write \\{ for the character");
        if (*most >= 0 && *most < *least) return wrong(p, at, "in {n,m} m is less than n");
    } else if (!take(p, "*")) {
        *found = false;
    }
    if (*found) take(p, "?"); /* lazy: the same language */
    return MX_OK;
}

static mx_status parse_term(parser *p, mx_tree **out) {
    bool assertion, found;
    int64_t least, most;
    mx_status status = parse_atom(p, out, &assertion);
    const size_t at = p->at;
    if (!status) status = parse_quantifier(p, &found, &least, &most);
    if (status || !found) return status;
    if (assertion) return wrong(p, at, "an assertion cannot be repeated");
    mx_tree *repeat;
    status = node(p, MX_TREE_REPEAT, &repeat);
    if (status) return status;
    repeat->child = *out;
    repeat->context = (*out)->context;
    repeat->least = least, repeat->most = most;
    *out = repeat;
    return MX_OK;
}

/* Ends before | or ) or at the end. */
static mx_status parse_sequence(parser *p, mx_tree **out) {
    mx_status status = node(p, MX_TREE_SEQUENCE, out);
    mx_tree **end = status ? NULL : &(*out)->child;
    while (!status && p->at < p->size && !ahead(p, "|") && !ahead(p, ")")) {
        mx_tree *term;
        status = parse_term(p, &term);
        if (status) break;
        (*out)->context = (*out)->context || term->context;
        *end = term;
        end = &term->next;
    }
    return status;
}

static mx_status parse_choice(parser *p, mx_tree **out) {
    mx_tree *first, *choice;
    mx_status status = parse_sequence(p, &first);
    if (status || !ahead(p, "|")) return status ? status : (*out = first, MX_OK);
    status = node(p, MX_TREE_CHOICE, &choice);
    if (status) return status;
    choice->child = first;
    choice->context = first->context;
    for (mx_tree *last = first; !status && take(p, "|"); last = last->next) {
        status = parse_sequence(p, &last->next);
        if (status) break;
        choice->context = choice->context || last->next->context;
    }
    *out = choice;
    return status;
}

mx_status mx_pattern_parse(const char *pattern, size_t size, mx_pattern *out, mx_error *error) {
    parser p = {.text = size ? pattern : "", .size = size, .out = out, .error = error};
    *out = (mx_pattern){0};
    if (size > MX_PATTERN_SIZE)
        return mx_fail(error, MX_UNSUPPORTED, "a regular expression of %zu bytes; at most %d are allowed", size,
                       MX_PATTERN_SIZE);
    const size_t valid = mx_utf8_prefix(p.text, size);
    if (valid < size) return wrong(&p, valid, "not UTF-8");
    mx_status status = parse_choice(&p, &out->root);
    if (!status && p.at < size) status = wrong(&p, p.at, ") without (");
    return status;
}

void mx_pattern_free(mx_pattern *p) {
    for (int i = 0; i < p->owned_count; i++) free(p->owned[i]);
    for (int i = 0; i < p->set_count; i++) mx_regular_free(p->sets[i]);
    mx_sets_free(&p->ranges);
    free(p->owned), free(p->sets);
    *p = (mx_pattern){0};
}
