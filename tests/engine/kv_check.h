#ifndef KV_CHECK_H
#define KV_CHECK_H

#include "engine/kv_private.h"
#include "fake_model.h"

/* Sequences on a KV cache beside the same ones on pages of their own that nothing shares, moves or drops. */

enum { KV_MOST = 1024 }; /* tokens of a sequence */

typedef struct kv_fixture {
    mx_config config;
    fake_backend *backend, *plain_backend;
    mx_kv *kv;
    mx_kv_options options;
    int32_t boundary;
    int32_t *plain_table; /* of the one that is computed again */
} kv_fixture;

/* `pattern`: fake_config; `boundary` tokens end messages, -1: none. */
void kv_set_up(kv_fixture *f, const char *pattern, int window, int64_t pages, int32_t boundary);
/* A store for such a model, which queues so many bytes. */
mx_prefix_store *kv_open_store(const kv_fixture *f, const char *folder, uint64_t queue);

/* Another cache in place of this one, in front of a store (NULL: none), which becomes its own. */
void kv_renew(kv_fixture *f, mx_prefix_store *store);
void kv_tear_down(kv_fixture *f);

/* Computes rows of the sequence at its end, from tokens, as a step does; they are reserved already. */
void kv_compute(kv_fixture *f, const mx_sequence *s, const int32_t *tokens, int64_t rows);

/* Reserve, compute and advance in steps of at most `batch` up to `count` positions. */
void kv_grow(kv_fixture *f, mx_sequence *s, const int32_t *tokens, int64_t count, int64_t batch);

/* A new sequence goes through tokens [count] and ends, kept. Returns what it resumed. */
int64_t kv_talk(kv_fixture *f, const int32_t *tokens, int64_t count);

/* Whatever the next row of the sequence would see holds what a cold run of its tokens would have written. */
void kv_check_content(kv_fixture *f, const mx_sequence *s, const int32_t *tokens);

/* Counts, lists and the index of pool and tree against what the nodes and these sequences say. */
void kv_check_structure(const kv_fixture *f, mx_sequence *const *sequence, int sequences);

/* The longest prefix that could be resumed, by looking at every node. */
int64_t kv_best_prefix(const kv_fixture *f, const int32_t *tokens, int64_t limit);

#endif
