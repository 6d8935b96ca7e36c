#ifndef MX_HEAP_H
#define MX_HEAP_H

#include <stdbool.h>

/* A pairing heap of things that bear its links (Fredman, Sedgewick, Sleator and Tarjan, 1986). Adding one takes a
 * comparison, taking any out takes the logarithm of their number, averaged over many. Allocates nothing. */

typedef struct mx_heap_link {
    struct mx_heap_link *child, *next;
    struct mx_heap_link
        *before; /* the one whose `next` or, of a first child, `child` this is; NULL: the first of all */
} mx_heap_link;

typedef struct mx_heap {
    mx_heap_link *first;                                               /* NULL: it is empty */
    bool (*goes_before)(const mx_heap_link *a, const mx_heap_link *b); /* set by the owner */
} mx_heap;

void mx_heap_add(mx_heap *heap, mx_heap_link *link);
void mx_heap_remove(mx_heap *heap, mx_heap_link *link); /* is in it */

#endif
