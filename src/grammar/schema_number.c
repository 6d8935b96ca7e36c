#include <stdlib.h>
#include <string.h>

#include "grammar/regular_private.h"
#include "grammar/schema_parts.h"

/* Numbers are languages of their decimal texts: ranges, multiples and values are exact, whatever their size. Texts may
 * end in zeros behind the point (12.50); a language has all of a number's texts or none of them, but for "integer"
 * (no point at all), for values (the way they stand in the schema, and the shortest one) and for exponents, which
 * only numbers without any bound may have. */

enum { MOST_DIGITS = 400, MOST_REMAINDERS = 20000, FREE_DIGITS = 18, FREE_FRACTION = 17 };

/* -whole.fraction, without zeros before the first and behind the last digit; zero has no digits. */
typedef struct decimal {
    bool negative;
    char *digits; /* whole, then fraction; in the arena */
    int whole, fraction;
} decimal;

static bool parse(mx_schema_compiler *c, const mx_json *number, decimal *out) {
    const char *p = number->text;
    *out = (decimal){.negative = *p == '-'};
    if (*p == '-') p++;
    const size_t size = strlen(p);
    char *digits = mx_schema_take(c, size + 2 * MOST_DIGITS + 2);
    if (!digits) return false;
    long point = -1, count = 0;
    for (; *p && *p != 'e' && *p != 'E'; p++) {
        if (*p == '.')
            point = count;
        else
            digits[MOST_DIGITS + count++] = *p;
    }
    if (point < 0) point = count;
    const long exponent = *p ? strtol(p + 1, NULL, 10) : 0;
    char *first = digits + MOST_DIGITS;
    while (count && *first == '0') {
        first++;
        count--;
        point--;
    }
    while (count && first[count - 1] == '0') count--;
    out->digits = first;
    if (!count) {
        out->negative = false;
        return true;
    }
    if (exponent > MOST_DIGITS || exponent < -MOST_DIGITS || (point += exponent) > MOST_DIGITS ||
        count - point > MOST_DIGITS) {
        mx_schema_fail(c, MX_UNSUPPORTED, number, "%.60s: numbers of more than %d digits are not supported",
                       number->text, MOST_DIGITS);
        return false;
    }
    for (; point < 0; point++, count++) *--first = '0';
    while (count < point) first[count++] = '0';
    first[count] = 0;
    *out = (decimal){out->negative, first, (int)point, (int)(count - point)};
    return true;
}

static char *shortest_text(mx_schema_compiler *c, const decimal *d, size_t *size) {
    char *text = mx_schema_take(c, (size_t)(d->whole + d->fraction) + 4), *p = text;
    if (!text) return NULL;
    if (d->negative) *p++ = '-';
    if (!d->whole) *p++ = '0';
    if (d->whole) memcpy(p, d->digits, (size_t)d->whole);
    p += d->whole;
    if (d->fraction) {
        *p++ = '.';
        memcpy(p, d->digits + d->whole, (size_t)d->fraction);
        p += d->fraction;
    }
    *size = (size_t)(p - text);
    return text;
}

bool mx_schema_shortest(mx_schema_compiler *c, mx_schema_word number, mx_schema_word *out) {
    const mx_json v = {.type = MX_JSON_NUMBER, .text = number.text, .size = number.size}; /* ends with a 0 */
    decimal d;
    if (!parse(c, &v, &d)) return false;
    out->text = shortest_text(c, &d, &out->size);
    return out->text;
}

/* ---- automata ---------------------------------------------------------------------------------------------------- */
enum { CLASS_POINT = 11, CLASS_MINUS = 12, CLASSES = 13 }; /* 0: other bytes; 1 to 10: digits */
enum { LESS = 1, EQUAL = 2, MORE = 4 };

static void set_classes(mx_raw *raw) {
    raw->classes = CLASSES;
    for (int i = 0; i < 10; i++) raw->class_of['0' + i] = (uint8_t)(1 + i);
    raw->class_of['.'] = CLASS_POINT;
    raw->class_of['-'] = CLASS_MINUS;
}

static int32_t *row(mx_raw *raw, int state) {
    return raw->next + (size_t)state * CLASSES;
}

/* States that compare what is read with a number's digits: from the first one, `n` digits of the whole part (up to one
 * more than it has) and how they compare; then `j` digits of the fraction that are equal; then less, then more.
 * `accept`: a set of LESS, EQUAL, MORE. */
static mx_status add_comparison(mx_raw *raw, const decimal *d, int accept, mx_error *error) {
    const int base = raw->states, k = d->whole, f = d->fraction;
    const int fraction = base + 3 * (k + 2), less = fraction + f + 1, more = less + 1;
    mx_status status = MX_OK;
    for (int i = 0; !status && i < 3 * (k + 2) + f + 3; i++) status = mx_raw_add(raw, false, error);
    if (status) return status;
    for (int n = 0; n <= k + 1; n++)
        for (int sign = 0; sign < 3; sign++) { /* less, equal, more so far */
            const int state = base + 3 * n + sign;
            const int outcome = n < k ? LESS : n > k ? MORE : 1 << sign;
            raw->accepting[state] = accept & (outcome == EQUAL && f ? LESS : outcome); /* 1 is less than 1.5 */
            row(raw, state)[CLASS_POINT] = outcome == LESS ? less : outcome == MORE ? more : fraction;
            for (int digit = 0; digit < 10; digit++) {
                const int expected = n < k ? d->digits[n] - '0' : 0;
                const int now = sign != 1 ? sign : digit < expected ? 0 : digit > expected ? 2 : 1;
                const int at = n == 0 && !digit ? 0 : n < k + 1 ? n + 1 : n; /* the zero of 0.5 is no digit */
                row(raw, state)[1 + digit] = base + 3 * at + (at ? now : 1);
            }
        }
    for (int j = 0; j <= f; j++) {
        raw->accepting[fraction + j] = accept & (j < f ? LESS : EQUAL);
        for (int digit = 0; digit < 10; digit++) {
            const int expected = j < f ? d->digits[k + j] - '0' : 0;
            row(raw, fraction + j)[1 + digit] = digit < expected   ? less
                                                : digit > expected ? more
                                                : j < f            ? fraction + j + 1
                                                                   : fraction + j;
        }
    }
    raw->accepting[less] = accept & LESS;
    raw->accepting[more] = accept & MORE;
    for (int digit = 0; digit < 10; digit++) {
        row(raw, less)[1 + digit] = less;
        row(raw, more)[1 + digit] = more;
    }
    return MX_OK;
}

/* Numbers that are at least (`lower`) or at most `d`. */
static mx_regular *bound(mx_schema_compiler *c, const decimal *d, bool lower, bool exclusive) {
    const int equal = exclusive ? 0 : EQUAL, all = LESS | EQUAL | MORE;
    int positive, negative; /* magnitudes of numbers without and with a minus */
    if (!d->negative) {
        positive = lower ? MORE | equal : LESS | equal;
        negative = lower ? 0 : all;
    } else {
        positive = lower ? all : 0;
        negative = lower ? LESS | equal : MORE | equal;
    }
    mx_raw raw = {0};
    mx_error error;
    mx_regular *r = NULL;
    set_classes(&raw);
    mx_status status = mx_raw_add(&raw, false, &error);
    if (!status) status = add_comparison(&raw, d, positive, &error);
    const int minus = raw.states;
    if (!status) status = add_comparison(&raw, d, negative, &error);
    if (!status) {
        memcpy(row(&raw, 0), row(&raw, 1 + 1), CLASSES * sizeof(int32_t)); /* no digits, equal so far */
        row(&raw, 0)[CLASS_MINUS] = minus + 1;
        status = mx_raw_minimal(&raw, &r, &error);
    }
    mx_raw_free(&raw);
    return mx_schema_and(c, mx_schema_own(c, NULL, status, r, &error), c->number_plain);
}

/* Multiples of multiple / 10^scale: the remainder of what is read, in the whole part and behind each digit of the
 * fraction, of which `scale` count and the rest is zeros. */
static mx_regular *multiples(mx_schema_compiler *c, int multiple, int scale) {
    mx_raw raw = {0};
    mx_error error;
    mx_regular *r = NULL;
    set_classes(&raw);
    mx_status status = MX_OK;
    for (int i = 0; !status && i < 1 + multiple * (scale + 2); i++) status = mx_raw_add(&raw, false, &error);
    for (int phase = 0; !status && phase < scale + 2; phase++)
        for (int rest = 0; rest < multiple; rest++) {
            const int state = 1 + phase * multiple + rest;
            int64_t end = rest;
            for (int i = phase ? phase - 1 : 0; i < scale; i++) end = end * 10 % multiple;
            raw.accepting[state] = end == 0;
            if (!phase) row(&raw, state)[CLASS_POINT] = state + multiple;
            const int last = phase == scale + 1, to = phase && !last ? phase + 1 : phase;
            for (int digit = 0; digit < (last ? 1 : 10); digit++)
                row(&raw, state)[1 + digit] = 1 + to * multiple + (last ? rest : (rest * 10 + digit) % multiple);
        }
    if (!status) {
        memcpy(row(&raw, 0), row(&raw, 1), CLASSES * sizeof(int32_t));
        row(&raw, 0)[CLASS_MINUS] = 1;
        status = mx_raw_minimal(&raw, &r, &error);
    }
    mx_raw_free(&raw);
    return mx_schema_and(c, mx_schema_own(c, NULL, status, r, &error), c->number_plain);
}

/* ---- keywords ---------------------------------------------------------------------------------------------------- */
static const mx_json *number_keyword(mx_schema_compiler *c, const mx_json *node, const char *keyword, decimal *out) {
    const mx_json *v = mx_json_get(node, keyword);
    if (!v || c->status) return NULL;
    if (v->type != MX_JSON_NUMBER) {
        mx_schema_fail(c, MX_INVALID_ARGUMENT, node, "\"%s\" must be a number", keyword);
        return NULL;
    }
    return parse(c, v, out) ? v : NULL;
}

static mx_regular *multiple_language(mx_schema_compiler *c, const mx_json *node, const decimal *d) {
    if (d->negative || !(d->whole + d->fraction)) {
        mx_schema_fail(c, MX_INVALID_ARGUMENT, node, "\"multipleOf\" must be more than 0");
        return NULL;
    }
    int64_t multiple = 0;
    for (int i = 0; i < d->whole + d->fraction && multiple <= MOST_REMAINDERS; i++)
        multiple = 10 * multiple + (d->digits[i] - '0');
    if (multiple * (d->fraction + 2) > MOST_REMAINDERS) {
        mx_schema_fail(c, MX_UNSUPPORTED, node,
                       "\"multipleOf\" is supported up to %d, and with few digits behind the point",
                       MOST_REMAINDERS / 2);
        return NULL;
    }
    return multiples(c, (int)multiple, d->fraction);
}

static mx_regular *with(mx_schema_compiler *c, mx_regular *a, mx_regular *b) {
    return a ? mx_schema_and(c, a, b) : b;
}

mx_regular *mx_schema_number_language(mx_schema_compiler *c, const mx_json *node) {
    static const struct {
        const char *keyword;
        bool lower, exclusive;
    } bounds[] = {{"minimum", true, false},
                  {"exclusiveMinimum", true, true},
                  {"maximum", false, false},
                  {"exclusiveMaximum", false, true}};
    mx_regular *all = NULL;
    decimal d;
    for (int i = 0; i < 4; i++)
        if (number_keyword(c, node, bounds[i].keyword, &d))
            all = with(c, all, bound(c, &d, bounds[i].lower, bounds[i].exclusive));
    if (number_keyword(c, node, "multipleOf", &d)) all = with(c, all, multiple_language(c, node, &d));
    const mx_json *format = mx_json_get(node, "format"); /* OpenAPI's */
    if (mx_json_is_string(format, "int32"))
        all = with(c, all,
                   mx_schema_regex(c, "-?([0-9]{1,9}|1[0-9]{9}|20[0-9]{8}|21[0-3][0-9]{7}|214[0-6][0-9]{6}|2147[0-3]"
                                      "[0-9]{5}|21474[0-7][0-9]{4}|214748[0-2][0-9]{3}|2147483[0-5][0-9]{2}|21474836"
                                      "[0-3][0-9]|214748364[0-7])|-2147483648"));
    return c->status ? NULL : all;
}

/* `words`, each followed by one of `more`. */
static mx_regular *followed(mx_schema_compiler *c, mx_schema_word *words, int count, const char *more) {
    mx_regular *a = mx_schema_words(c, words, count), *b = mx_schema_regex(c, more), *all = NULL;
    if (c->status) return NULL;
    mx_error error;
    mx_status status = mx_regular_concat(a, b, &all, &error);
    return mx_schema_own(c, NULL, status, all, &error);
}

mx_regular *mx_schema_number_values(mx_schema_compiler *c, const mx_json *const *numbers, int count,
                                    bool every_spelling) {
    mx_schema_word *words = mx_schema_take(c, 2 * (size_t)count * sizeof *words);
    if (!words) return NULL;
    int first = 0, last = 2 * count; /* whole numbers and others; or shortest and own spellings */
    for (int i = 0; i < count; i++) {
        decimal d;
        if (!parse(c, numbers[i], &d)) return NULL;
        mx_schema_word shortest;
        shortest.text = shortest_text(c, &d, &shortest.size);
        if (!shortest.text) return NULL;
        words[every_spelling && d.fraction ? --last : first++] = shortest;
        if (!every_spelling && mx_regular_match(c->number_full, numbers[i]->text, numbers[i]->size))
            words[first++] = (mx_schema_word){numbers[i]->text, numbers[i]->size};
    }
    if (!every_spelling) return mx_schema_words(c, words, first);
    return mx_schema_or(c, followed(c, words, first, "(\\.0+)?"), followed(c, words + last, 2 * count - last, "0*"));
}

/* Numbers without bounds are written with up to 18 digits before and 17 behind the point, or as many as numbers in
 * the schema have: enough for what doubles and 64 bits tell apart, and no text goes on for ever. Nothing fails here:
 * numbers that are too long are said to be so where they mean something. */
static void count_digits(mx_schema_compiler *c, const mx_json *v) {
    decimal d;
    if (v->type == MX_JSON_NUMBER) {
        const char *e = strpbrk(v->text, "eE");
        if (v->size < FREE_FRACTION && !e) return;
        const long exponent = e ? strtol(e + 1, NULL, 10) : 0;
        if (v->size > MOST_DIGITS / 2 || exponent > MOST_DIGITS / 2 || exponent < -MOST_DIGITS / 2) return;
        if (!parse(c, v, &d)) return;
        if (d.whole >= c->digits) c->digits = d.whole + 1;
        if (d.fraction >= c->fraction) c->fraction = d.fraction + 1;
    }
    if (v->type == MX_JSON_ARRAY || v->type == MX_JSON_OBJECT)
        for (const mx_json *child = v->child; child; child = child->next)
            if (v->type == MX_JSON_ARRAY || !mx_schema_annotates(child)) count_digits(c, child);
}

void mx_schema_number_setup(mx_schema_compiler *c) {
#define PLAIN "(0|[1-9][0-9]*)(\\.[0-9]+)?|-([1-9][0-9]*(\\.[0-9]+)?|0\\.0*[1-9][0-9]*)"
    c->number_plain = mx_schema_regex(c, PLAIN);
    c->number_full = mx_schema_regex(c, PLAIN "|-?[1-9](\\.[0-9]+)?[eE][+-]?([0-9]{1,2}|[12][0-9]{2})");
    c->integer = mx_schema_regex(c, "0|-?[1-9][0-9]*");
    c->integer_value = mx_schema_regex(c, "(0|-?[1-9][0-9]*)(\\.0+)?");
    c->digits = FREE_DIGITS;
    c->fraction = FREE_FRACTION;
    count_digits(c, c->root);
    mx_bytes limit = {0};
    if (!mx_bytes_addf(&limit, "-?[0-9]{1,%d}(\\.[0-9]{1,%d})?([eE][+-]?[0-9]{1,3})?", c->digits, c->fraction))
        mx_schema_fail(c, MX_NO_MEMORY, NULL, "no memory to compile it");
    else
        c->number_limit = mx_schema_regex(c, limit.data);
    mx_bytes_free(&limit);
}
