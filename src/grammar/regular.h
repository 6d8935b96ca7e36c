#ifndef MX_GRAMMAR_REGULAR_H
#define MX_GRAMMAR_REGULAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"

/* Regular languages over bytes, as minimal deterministic automata. The bytes of every word are valid UTF-8 (a language
 * is one of texts). Immutable; reference-counted by their users with mx_regular_keep. */
typedef struct mx_regular mx_regular;

/* The automaton, for who walks or copies it. State 0 is the start; every state but a lone start can still reach an
 * accepting one. */
typedef struct mx_regular_view {
    int states;
    int classes;             /* bytes fall into so many classes, which no state tells apart */
    const uint8_t *class_of; /* [256] */
    const int32_t *next;     /* [states][classes]; -1: no word goes on so */
    const bool *accepting;   /* [states] */
} mx_regular_view;
mx_regular_view mx_regular_look(const mx_regular *r);

/* From here on the calling thread may take so many steps, in all operations together; what goes beyond is
 * MX_UNSUPPORTED. Steps are counted, not timed (about 200 million a second), so that the same work always has the same
 * end. < 0: no limit but each operation's own. Returns what was left of the limit before. */
int64_t mx_regular_allow(int64_t steps);

mx_regular *mx_regular_keep(mx_regular *r); /* one more owner; NULL allowed */
void mx_regular_free(mx_regular *r);        /* one less; NULL allowed */

/* A regular expression of ECMA-262 with its flag u, as JSON Schema's "pattern" has it: literals, escapes, classes,
 * \d \D \w \W \s \S, \p{...} of general categories and scripts (Unicode's, from PCRE2 or tables made of it), groups
 * (capturing or not), | ? * + {m,n} and their lazy forms (the same language), ^ and $ (also inside groups), \b and \B
 * where that can be decided. What no automaton has (backreferences) and what is not built (lookaround) is
 * MX_UNSUPPORTED by name; what is wrong MX_INVALID_ARGUMENT with the byte. `whole`: the expression is of the whole
 * text; else a text that holds a match belongs to the language, as JSON Schema says. */
mx_status mx_regular_parse(const char *pattern, size_t size, bool whole, mx_regular **out, mx_error *error);

/* One text. */
mx_status mx_regular_text(const void *text, size_t size, mx_regular **out, mx_error *error);
/* Every text of `least` to `most` characters (code points); most < 0: no limit. */
mx_status mx_regular_length(int64_t least, int64_t most, mx_regular **out, mx_error *error);

/* Every operation refuses an automaton of more than MX_REGULAR_STATES states with MX_UNSUPPORTED. */
enum { MX_REGULAR_STATES = 100000 };
mx_status mx_regular_union(const mx_regular *a, const mx_regular *b, mx_regular **out, mx_error *error);
mx_status mx_regular_intersect(const mx_regular *a, const mx_regular *b, mx_regular **out, mx_error *error);
/* All texts that are not in it. */
mx_status mx_regular_complement(const mx_regular *a, mx_regular **out, mx_error *error);
mx_status mx_regular_concat(const mx_regular *a, const mx_regular *b, mx_regular **out, mx_error *error);
/* `most` < 0: no limit. */
mx_status mx_regular_repeat(const mx_regular *a, int64_t least, int64_t most, mx_regular **out, mx_error *error);

/* How the texts are written as JSON strings, without the quotes, each in one way: \" \\ \b \f \n \r \t, \u00xx (lower
 * case) for other characters below U+0020, all else as it is. */
mx_status mx_regular_quote(const mx_regular *a, mx_regular **out, mx_error *error);

bool mx_regular_is_empty(const mx_regular *r); /* no text at all */
bool mx_regular_match(const mx_regular *r, const void *text, size_t size);
uint64_t mx_regular_hash(const mx_regular *r); /* of the language: equal languages have equal ones */

#endif
