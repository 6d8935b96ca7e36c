#include "engine/heap.h"

#include <stddef.h>

/* Two firsts, NULL allowed: one becomes a child of the other. */
static mx_heap_link *meld(const mx_heap *heap, mx_heap_link *a, mx_heap_link *b) {
    if (!a || !b) return a ? a : b;
    if (heap->goes_before(b, a)) {
        mx_heap_link *other = a;
        a = b;
        b = other;
    }
    b->before = a;
    b->next = a->child;
    if (b->next) b->next->before = b;
    a->child = b;
    return a;
}

static mx_heap_link *alone(mx_heap_link *link) {
    if (link) link->next = link->before = NULL;
    return link;
}

/* A list of siblings: first in pairs, then all pairs from the last on. */
static mx_heap_link *meld_all(const mx_heap *heap, mx_heap_link *list) {
    mx_heap_link *pairs = NULL, *all = NULL, *after;
    for (; list; list = after) {
        mx_heap_link *second = list->next;
        after = second ? second->next : NULL;
        mx_heap_link *pair = meld(heap, alone(list), alone(second));
        pair->next = pairs;
        pairs = pair;
    }
    for (; pairs; pairs = after) {
        after = pairs->next;
        all = meld(heap, all, alone(pairs));
    }
    return all;
}

void mx_heap_add(mx_heap *heap, mx_heap_link *link) {
    *link = (mx_heap_link){0};
    heap->first = meld(heap, heap->first, link);
}

void mx_heap_remove(mx_heap *heap, mx_heap_link *link) {
    mx_heap_link *children = meld_all(heap, link->child);
    if (!link->before) {
        heap->first = children;
    } else {
        *(link->before->child == link ? &link->before->child : &link->before->next) = link->next;
        if (link->next) link->next->before = link->before;
        heap->first = meld(heap, heap->first, children);
    }
    *link = (mx_heap_link){0};
}
