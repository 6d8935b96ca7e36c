/* Regular languages of texts: what they are and what is done with them. */
#include "grammar/regular.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "grammar/regular_private.h"

mx_regular_view mx_regular_look(const mx_regular *r) {
    return (mx_regular_view){.states = r->states,
                             .classes = r->classes,
                             .class_of = r->class_of,
                             .next = r->next,
                             .accepting = r->accepting};
}

mx_regular *mx_regular_keep(mx_regular *r) {
    if (r) atomic_fetch_add(&r->references, 1);
    return r;
}

void mx_regular_free(mx_regular *r) {
    if (!r || atomic_fetch_sub(&r->references, 1) > 1) return;
    free(r->next);
    free(r->accepting);
    free(r);
}

bool mx_regular_is_empty(const mx_regular *r) {
    if (r->accepting[0]) return false;
    for (int c = 0; c < r->classes; c++)
        if (r->next[c] >= 0) return false;
    return true;
}

bool mx_regular_match(const mx_regular *r, const void *text, size_t size) {
    const uint8_t *p = text;
    int32_t s = 0;
    for (size_t i = 0; i < size && s >= 0; i++) s = r->next[(size_t)s * (size_t)r->classes + r->class_of[p[i]]];
    return s >= 0 && r->accepting[s];
}

uint64_t mx_regular_hash(const mx_regular *r) {
    return r->hash;
}

/* ---- the limit of work ------------------------------------------------------------------------------------------- */
static _Thread_local int64_t allowed = -1, spent;

int64_t mx_regular_allow(int64_t steps) {
    const int64_t left = allowed < 0 ? -1 : spent < allowed ? allowed - spent : 0;
    allowed = steps;
    spent = 0;
    return left;
}

mx_status mx_regular_spend(int64_t steps, mx_error *error) {
    spent += steps;
    if (allowed < 0 || spent <= allowed) return MX_OK;
    return mx_fail(error, MX_UNSUPPORTED, "too complicated: automata of more than %lld steps of work together",
                   (long long)allowed);
}

/* ---- simple ones ------------------------------------------------------------------------------------------------- */

mx_status mx_regular_text(const void *text, size_t size, mx_regular **out, mx_error *error) {
    const uint8_t *p = text;
    if (!mx_is_utf8(size ? text : "", size))
        return mx_fail(error, MX_INVALID_ARGUMENT, "a text of a language is not UTF-8");
    mx_raw raw = {.classes = 1};
    bool used[256] = {0};
    for (size_t i = 0; i < size; i++) used[p[i]] = true;
    for (int b = 0; b < 256; b++)
        if (used[b]) raw.class_of[b] = (uint8_t)raw.classes++;
    mx_status status = mx_raw_add(&raw, size == 0, error);
    for (size_t i = 0; !status && i < size; i++) {
        raw.next[(size_t)(raw.states - 1) * (size_t)raw.classes + raw.class_of[p[i]]] = raw.states;
        status = mx_raw_add(&raw, i == size - 1, error);
    }
    if (!status) status = mx_raw_minimal(&raw, out, error);
    mx_raw_free(&raw);
    return status;
}

mx_status mx_regular_length(int64_t least, int64_t most, mx_regular **out, mx_error *error) {
    const mx_regular *character;
    const mx_status status = mx_regular_any_character(&character, error);
    return status ? status : mx_regular_repeat(character, least, most, out, error);
}

/* ---- two at once ------------------------------------------------------------------------------------------------- */

typedef enum combination { UNION, INTERSECTION, DIFFERENCE /* of b without a */ } combination;

typedef struct product {
    const mx_regular *a, *b;
    combination how;
    mx_raw raw;
    mx_sets pairs;
} product;

/* The state of a pair, -1 where no word can go on; rows of new ones are added. */
static mx_status product_state(product *p, int32_t a, int32_t b, int *id, mx_error *error) {
    *id = -1;
    if (b < 0 && (p->how != UNION || a < 0)) return MX_OK;
    if (a < 0 && p->how == INTERSECTION) return MX_OK;
    const int64_t key = (int64_t)(a + 1) << 32 | (uint32_t)(b + 1);
    mx_status status = mx_sets_intern(&p->pairs, &key, 1, id, error);
    if (status || *id < p->raw.states) return status;
    const bool in_a = a >= 0 && p->a->accepting[a], in_b = b >= 0 && p->b->accepting[b];
    const bool accepting = p->how == UNION ? in_a || in_b : p->how == INTERSECTION ? in_a && in_b : in_b && !in_a;
    return mx_raw_add(&p->raw, accepting, error);
}

static int32_t follow(const mx_regular *r, int32_t s, int byte) {
    return s < 0 ? -1 : r->next[(size_t)s * (size_t)r->classes + r->class_of[byte]];
}

static mx_status combine(const mx_regular *a, const mx_regular *b, combination how, mx_regular **out, mx_error *error) {
    product p = {.a = a, .b = b, .how = how, .raw = {.classes = 1}};
    uint16_t *scratch = calloc(65536, sizeof *scratch);
    if (!scratch) return mx_fail(error, MX_NO_MEMORY, "no memory for an automaton");
    mx_refine(p.raw.class_of, &p.raw.classes, a->class_of, scratch);
    mx_refine(p.raw.class_of, &p.raw.classes, b->class_of, scratch);
    free(scratch);
    int byte_of[256], to = 0;
    for (int byte = 255; byte >= 0; byte--) byte_of[p.raw.class_of[byte]] = byte;
    mx_status status = product_state(&p, 0, 0, &to, error);
    for (int s = 0; !status && s < p.raw.states; s++) {
        const int64_t key = p.pairs.items[s];
        for (int c = 0; !status && c < p.raw.classes; c++) {
            const int32_t in_a = follow(a, (int32_t)(key >> 32) - 1, byte_of[c]);
            status = product_state(&p, in_a, follow(b, (int32_t)(uint32_t)key - 1, byte_of[c]), &to, error);
            if (!status) p.raw.next[(size_t)s * (size_t)p.raw.classes + (size_t)c] = to;
        }
    }
    if (!status) status = mx_raw_minimal(&p.raw, out, error);
    mx_raw_free(&p.raw);
    mx_sets_free(&p.pairs);
    return status;
}

mx_status mx_regular_union(const mx_regular *a, const mx_regular *b, mx_regular **out, mx_error *error) {
    return combine(a, b, UNION, out, error);
}

mx_status mx_regular_intersect(const mx_regular *a, const mx_regular *b, mx_regular **out, mx_error *error) {
    return combine(a, b, INTERSECTION, out, error);
}

mx_status mx_regular_complement(const mx_regular *a, mx_regular **out, mx_error *error) {
    const mx_regular *any;
    const mx_status status = mx_regular_any(&any, error);
    return status ? status : combine(a, any, DIFFERENCE, out, error);
}

/* ---- one behind the other ---------------------------------------------------------------------------------------- */

mx_status mx_regular_concat(const mx_regular *a, const mx_regular *b, mx_regular **out, mx_error *error) {
    mx_nfa nfa;
    mx_nfa_init(&nfa);
    int node = 0;
    mx_status status = mx_nfa_add(&nfa, MX_NODE_ACCEPT, 0, 0, 0, &node, error);
    if (!status) status = mx_nfa_add_machine(&nfa, b, node, &node, error);
    if (!status) status = mx_nfa_add_machine(&nfa, a, node, &node, error);
    if (!status) status = mx_nfa_minimal(&nfa, node, MX_BEFORE_OTHER, out, error);
    mx_nfa_free(&nfa);
    return status;
}

mx_status mx_regular_repeat(const mx_regular *a, int64_t least, int64_t most, mx_regular **out, mx_error *error) {
    if (least < 0 || (most >= 0 && most < least))
        return mx_fail(error, MX_INVALID_ARGUMENT, "%lld to %lld times is no range", (long long)least, (long long)most);
    mx_nfa nfa;
    mx_nfa_init(&nfa);
    int node = 0, loop = 0;
    mx_status status = mx_nfa_add(&nfa, MX_NODE_ACCEPT, 0, 0, 0, &node, error);
    if (!status && most < 0) {
        status = mx_nfa_add(&nfa, MX_NODE_SPLIT, -1, node, 0, &loop, error);
        if (!status) status = mx_nfa_add_machine(&nfa, a, loop, &node, error);
        if (!status) nfa.nodes[loop] = (mx_node){MX_NODE_SPLIT, node, nfa.nodes[loop].y, 0}, node = loop;
    }
    const int accept = 0;
    for (int64_t i = least; !status && i < most; i++) {
        status = mx_nfa_add_machine(&nfa, a, node, &node, error);
        if (!status) status = mx_nfa_add(&nfa, MX_NODE_SPLIT, node, accept, 0, &node, error);
    }
    for (int64_t i = 0; !status && i < least; i++) status = mx_nfa_add_machine(&nfa, a, node, &node, error);
    if (!status) status = mx_nfa_minimal(&nfa, node, MX_BEFORE_OTHER, out, error);
    mx_nfa_free(&nfa);
    return status;
}

/* ---- as JSON strings --------------------------------------------------------------------------------------------- */

/* Where a state stands inside an escape. */
enum { ESCAPE_BEGUN = 1, ESCAPE_U, ESCAPE_U0, ESCAPE_U00, ESCAPE_U000, ESCAPE_U001 };

static const struct short_escape {
    char letter, byte;
} short_escapes[] = {{'"', '"'}, {'\\', '\\'}, {'b', '\b'}, {'f', '\f'}, {'n', '\n'}, {'r', '\r'}, {'t', '\t'}};

typedef struct quoting {
    const mx_regular *a;
    mx_raw raw;
    mx_sets states;   /* state of a << 8 | place in an escape */
    int byte_of[256]; /* [classes] one of each */
} quoting;

static mx_status quoting_go(quoting *q, int from, int byte, int32_t state, int place, mx_error *error) {
    if (state < 0) return MX_OK;
    const int64_t key = (int64_t)state << 8 | place;
    int to = 0;
    mx_status status = mx_sets_intern(&q->states, &key, 1, &to, error);
    if (!status && to == q->raw.states) status = mx_raw_add(&q->raw, !place && q->a->accepting[state], error);
    if (!status) q->raw.next[(size_t)from * (size_t)q->raw.classes + q->raw.class_of[byte]] = to;
    return status;
}

static bool needs_long_escape(int byte) {
    return byte < 0x20 && byte != '\b' && byte != '\f' && byte != '\n' && byte != '\r' && byte != '\t';
}

/* Control characters whose first hexadecimal digit is 0 (`row` 0) or 1, or any that are escaped: does one go on? */
static bool escapes_of(const mx_regular *a, int32_t state, int first, int last, bool long_ones) {
    for (int b = first; b <= last; b++)
        if ((!long_ones || needs_long_escape(b)) && follow(a, state, b) >= 0) return true;
    return false;
}

static mx_status quoting_plain(quoting *q, int from, int32_t state, mx_error *error) {
    mx_status status = MX_OK;
    for (int c = 0; !status && c < q->raw.classes; c++) {
        const int b = q->byte_of[c];
        if (b >= 0x20 && b != '"' && b != '\\') status = quoting_go(q, from, b, follow(q->a, state, b), 0, error);
    }
    if (!status &&
        (follow(q->a, state, '"') >= 0 || follow(q->a, state, '\\') >= 0 || escapes_of(q->a, state, 0, 0x1F, false)))
        status = quoting_go(q, from, '\\', state, ESCAPE_BEGUN, error);
    return status;
}

static mx_status quoting_escape(quoting *q, int from, int32_t state, int place, mx_error *error) {
    const mx_regular *a = q->a;
    mx_status status = MX_OK;
    switch (place) {
    case ESCAPE_BEGUN:
        for (size_t i = 0; !status && i < sizeof short_escapes / sizeof *short_escapes; i++)
            status = quoting_go(q, from, short_escapes[i].letter, follow(a, state, short_escapes[i].byte), 0, error);
        return status || !escapes_of(a, state, 0, 0x1F, true) ? status
                                                              : quoting_go(q, from, 'u', state, ESCAPE_U, error);
    case ESCAPE_U:
        return quoting_go(q, from, '0', state, ESCAPE_U0, error);
    case ESCAPE_U0:
        return quoting_go(q, from, '0', state, ESCAPE_U00, error);
    case ESCAPE_U00:
        if (escapes_of(a, state, 0, 0xF, true)) status = quoting_go(q, from, '0', state, ESCAPE_U000, error);
        return status || !escapes_of(a, state, 0x10, 0x1F, true) ? status
                                                                 : quoting_go(q, from, '1', state, ESCAPE_U001, error);
    default:
        for (int digit = 0; !status && digit < 16; digit++) {
            const int byte = (place == ESCAPE_U001 ? 0x10 : 0) + digit;
            if (needs_long_escape(byte))
                status = quoting_go(q, from, "0123456789abcdef"[digit], follow(a, state, byte), 0, error);
        }
        return status;
    }
}

mx_status mx_regular_quote(const mx_regular *a, mx_regular **out, mx_error *error) {
    quoting q = {.a = a, .raw = {.classes = a->classes}};
    uint16_t *scratch = calloc(65536, sizeof *scratch);
    if (!scratch) return mx_fail(error, MX_NO_MEMORY, "no memory for an automaton");
    /* Bytes that escapes are written with, and those that are escaped, stand alone. */
    uint8_t alone[256] = {0};
    for (const char *c = "\"\\bfnrtu0123456789acde"; *c; c++) alone[(uint8_t)*c] = (uint8_t)*c;
    for (int b = 0; b < 0x20; b++) alone[b] = 1;
    memcpy(q.raw.class_of, a->class_of, sizeof q.raw.class_of);
    mx_refine(q.raw.class_of, &q.raw.classes, alone, scratch);
    free(scratch);
    for (int b = 0; b < 256; b++) q.byte_of[q.raw.class_of[b]] = b;
    int64_t key = 0;
    int id = 0;
    mx_status status = mx_sets_intern(&q.states, &key, 1, &id, error);
    if (!status) status = mx_raw_add(&q.raw, a->accepting[0], error);
    for (int s = 0; !status && s < q.raw.states; s++) {
        key = q.states.items[s];
        const int32_t state = (int32_t)(key >> 8);
        status =
            key & 0xFF ? quoting_escape(&q, s, state, (int)(key & 0xFF), error) : quoting_plain(&q, s, state, error);
    }
    if (!status) status = mx_raw_minimal(&q.raw, out, error);
    mx_raw_free(&q.raw);
    mx_sets_free(&q.states);
    return status;
}
