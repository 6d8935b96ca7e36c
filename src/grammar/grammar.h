#ifndef MX_GRAMMAR_H
#define MX_GRAMMAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "grammar/regular.h"
#include "tokenizer/tokenizer.h"

/* Languages of bytes that a text may have to be of: expressions and rules that may refer to each other are compiled to
 * a pushdown automaton, which is run over the tokens of a vocabulary: which token may come next, in well under a
 * millisecond. It knows no JSON, no harmony and no engine. */

/* ---- building ---------------------------------------------------------------------------------------------------- */
/* A grammar under construction. Calls that fail for lack of memory return 0 (expressions, rules), which every call
 * takes and passes on: mx_grammar_compile tells it. */
typedef struct mx_grammar_builder mx_grammar_builder;
typedef int mx_expr; /* an expression; may be used in several places */
typedef int mx_rule; /* a named expression that may refer to itself */

mx_grammar_builder *mx_grammar_builder_create(void); /* NULL: no memory */
void mx_grammar_builder_free(mx_grammar_builder *b); /* NULL allowed */

mx_expr mx_expr_text(mx_grammar_builder *b, const void *text, size_t size); /* these bytes; size 0: nothing at all */
mx_expr mx_expr_string(mx_grammar_builder *b, const char *text);            /* the same of a C string */
mx_expr mx_expr_regular(mx_grammar_builder *b, mx_regular *language);       /* keeps it */
mx_expr mx_expr_never(mx_grammar_builder *b);                               /* no text is of it */
mx_expr mx_expr_sequence(mx_grammar_builder *b, const mx_expr *items, int count);
mx_expr mx_expr_choice(mx_grammar_builder *b, const mx_expr *items, int count); /* any of them; ambiguity is allowed */
/* `least` to `most` times, most < 0: without limit. Large numbers cost no states: they are counted. */
mx_expr mx_expr_repeat(mx_grammar_builder *b, mx_expr item, int64_t least, int64_t most);
mx_rule mx_rule_add(mx_grammar_builder *b, const char *name); /* the name is for messages */
void mx_rule_set(mx_grammar_builder *b, mx_rule rule, mx_expr expr);
mx_expr mx_expr_rule(mx_grammar_builder *b, mx_rule rule);

/* ---- grammars ---------------------------------------------------------------------------------------------------- */
/* Compiled: immutable but for caches inside, used by any number of threads; reference-counted. An ambiguous one is
 * followed in all its readings, as long as they are not too many (10,000 at once, and a bounded amount of work
 * for a mask, for which with a large vocabulary a few readings that may end anywhere suffice): then the text is given
 * up (mx_matcher_is_lost). */
typedef struct mx_grammar mx_grammar;

/* MX_UNSUPPORTED: a rule that refers to itself before it has read anything (left recursion), more states than
 * MX_GRAMMAR_STATES, or too many readings at the very beginning. MX_INVALID_ARGUMENT: a rule that was never set, or no
 * text is of the grammar. The builder stays the caller's. */
enum { MX_GRAMMAR_STATES = 1000000 };
mx_status mx_grammar_compile(mx_grammar_builder *b, mx_expr root, mx_grammar **out, mx_error *error);
mx_grammar *mx_grammar_keep(mx_grammar *g);     /* one more owner; NULL allowed */
void mx_grammar_free(mx_grammar *g);            /* one less; NULL allowed */
uint64_t mx_grammar_bytes(const mx_grammar *g); /* of memory, about, with caches */

/* Is the whole text of the grammar? */
bool mx_grammar_match(mx_grammar *g, const void *text, size_t size);

/* ---- over tokens ------------------------------------------------------------------------------------------------- */
/* All ordinary tokens of a tokenizer as a tree of their bytes, for any number of grammars. Special tokens and ids
 * without bytes are not in it, nor are tokens of more than 1000 bytes: they are never allowed. Keeps masks that were
 * made once, up to 256 MB of them; those of plain loops (a string's characters) serve all grammars that have such a
 * loop. */
typedef struct mx_vocabulary mx_vocabulary;
/* `vocab`: logits of the model: ids are below it. Borrows the tokenizer. */
mx_status mx_vocabulary_create(const mx_tokenizer *t, int32_t vocab, mx_vocabulary **out, mx_error *error);
/* The mask that allows them all, and how many logits there are. */
const uint32_t *mx_vocabulary_tokens(const mx_vocabulary *v, int32_t *vocab);
void mx_vocabulary_free(mx_vocabulary *v); /* after all matchers; NULL allowed */

/* A text that is being written under a grammar. */
typedef struct mx_matcher mx_matcher;
mx_status mx_matcher_create(mx_grammar *g, mx_vocabulary *v, mx_matcher **out, mx_error *error);
mx_matcher *mx_matcher_clone(const mx_matcher *m); /* NULL: no memory */
void mx_matcher_free(mx_matcher *m);               /* NULL allowed */

/* false: the text cannot go on with these bytes; nothing changed. */
bool mx_matcher_accept(mx_matcher *m, const void *bytes, size_t size);
bool mx_matcher_accept_token(mx_matcher *m, int32_t token);
/* Forgets the last `count` accepts, of bytes or tokens; at most MX_MATCHER_HISTORY of them are remembered. */
enum { MX_MATCHER_HISTORY = 256 };
bool mx_matcher_rollback(mx_matcher *m, int count);
/* Sets bit t of `bits` [(vocab + 31) / 32] for every token t that may come next and clears all others; padding bits
 * are 0. Exact: a token is allowed if and only if accept_token would take it. */
void mx_matcher_mask(mx_matcher *m, uint32_t *bits);
/* Was the text given up, in an accept or for a mask, because the grammar can be read in too many ways here, or for want
 * of memory? No token is allowed then, and the text is not whole, until it is rolled back. */
bool mx_matcher_is_lost(const mx_matcher *m);
bool mx_matcher_can_end(const mx_matcher *m);  /* the text is whole as it stands */
bool mx_matcher_must_end(const mx_matcher *m); /* and nothing can follow */
/* Makes what masks of this grammar need, so that the first ones do not wait: for a thread that has time, at most so
 * many seconds. */
void mx_grammar_prepare(mx_grammar *g, mx_vocabulary *v, double seconds);

#endif
