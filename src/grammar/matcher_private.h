#ifndef MX_MATCHER_PRIVATE_H
#define MX_MATCHER_PRIVATE_H

#include "grammar/grammar_private.h"
#include "grammar/vocabulary_private.h"

/* Where one may be in a grammar. A grammar that is not recursive in a harmful way is in one or two places at once;
 * an ambiguous one in several, which share their stacks (a graph-structured stack, as in GLR parsers): a frame stands
 * for a machine that was called behind some byte, whoever called it, and knows all that called it there. So there is
 * never more than one frame of a machine for each byte, however many readings there are. */
typedef struct mx_place {
    uint32_t state, count, frame; /* count: rounds that a counted machine has done */
} mx_place;

/* Only places that can go on by a byte; what they complete and call has been followed. */
typedef struct mx_places {
    mx_place *place;
    uint32_t count;
    uint32_t room;
    bool ends; /* frame 0 was completed: the text is whole */
} mx_places;

typedef struct mx_frame {
    uint32_t machine;
    uint32_t callers; /* index of the first + 1 */
} mx_frame;
typedef struct mx_caller {
    mx_place behind; /* where the machine's end leads */
    uint32_t next;   /* index + 1 */
} mx_caller;

typedef struct mx_stack {
    const mx_grammar *g;
    mx_frame *frame; /* frame 0: what was begun with; nobody called it */
    mx_caller *caller;
    size_t frames, callers, frame_room, caller_room;
    uint32_t *latest; /* [machines]; the latest frame of each, if it is one of it at all */
    mx_place *todo;   /* places of the step that is being made, those with calls only too */
    size_t todos, todo_room;
    uint32_t *table; /* of hashes of places to their number in todo + 1 */
    size_t table_size, table_room;
    uint64_t work, most_work; /* looks at places, calls and callers; how many there may be */
    bool failed;              /* no memory: the result is not complete */
    bool crowded;             /* nor is it here: more than MX_PLACES places, or too much work */
} mx_stack;
/* A grammar that can be read in many ways at once costs time at each byte, of all whose texts are written at the same
 * time. Beyond these bounds it is given up. They depend on grammar, text and vocabulary alone, not on what the caches
 * have. */
enum {
    MX_PLACES = 10000,      /* at once */
    MX_WORK = 1000000,      /* of a mask, or of accepting up to 16 bytes: some milliseconds */
    MX_MASK_LOOKS = 8000000 /* at nodes, to make all masks that a mask is put together of, if none were cached */
};

bool mx_stack_create(mx_stack *s, const mx_grammar *g);
void mx_stack_free(mx_stack *s);
bool mx_places_copy(mx_places *to, const mx_places *from);

/* The places at the beginning of the grammar, or those that follow from one or from many. */
void mx_stack_begin(mx_stack *s, mx_places *out);
void mx_stack_follow(mx_stack *s, const mx_place *from, size_t count, mx_places *out);
/* The places behind one more byte; false: there are none, and the text is not whole either. `out` may not be `in`. */
bool mx_stack_step(mx_stack *s, const mx_places *in, uint8_t byte, mx_places *out);

/* A text so far, and the ones it was before the last accepts. */
typedef struct mx_moment {
    uint32_t first, count; /* of matcher's `log` */
    bool ends;
} mx_moment;

struct mx_matcher {
    mx_grammar *g;
    mx_vocabulary *v; /* NULL: texts only */
    mx_stack stack;
    mx_place *log; /* places of all moments, one behind the other */
    size_t logs, log_room;
    mx_moment *moment; /* [2 * MX_MATCHER_HISTORY + 2]; the last one is now */
    int moments;
    mx_places work[2];
    size_t collect_at;  /* frames from which on it is worth while to look for those that nothing needs */
    bool lost;          /* given up: nothing may come, and the text is not whole */
    mx_state_key *seen; /* [seen_size] of masks that this mask has by now, by their hashes; NULL: there was none */
    uint32_t seen_size;
    uint64_t looks;   /* at nodes, to make them */
    mx_places *level; /* [longest token + 3] of the vocabulary; of walks for masks; NULL: there was none */
    uint32_t *bits;   /* of the mask that is being made; borrowed */
};

/* Gives the text up, and says so. */
void mx_matcher_lose(mx_matcher *m);
/* The places of now; borrowed until the next change. */
mx_places mx_matcher_now(const mx_matcher *m);

#endif
