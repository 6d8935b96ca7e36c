/* A short name for a model by its content, for what outlives the process that computed it. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "model/load.h"

enum { PIECE = 4 << 20 }; /* bytes that are hashed as one; part of what the identity is */

static void add_config(XXH3_state_t *hash, const mx_config *c) {
    char text[1000];
    int n =
        snprintf(text, sizeof text, "%d %d %d %d %d %d %d %d %d %d %a %a %a %a %d %a %a %a %d %d %a %d %d", c->layers,
                 c->hidden, c->intermediate, c->heads, c->kv_heads, c->head_dim, c->experts, c->top_k, c->vocab,
                 c->window, (double)c->rms_eps, (double)c->swiglu_limit, (double)c->swiglu_alpha, c->rope_theta,
                 c->yarn, c->yarn_factor, c->yarn_beta_fast, c->yarn_beta_slow, c->yarn_original_positions,
                 c->yarn_truncate, c->yarn_attention_factor, c->attention_bias, c->tied_embeddings);
    XXH3_128bits_update(hash, text, (size_t)n);
    XXH3_128bits_update(hash, c->sliding, sizeof *c->sliding * (size_t)c->layers);
}

/* ---- content -----------------------------------------------------------------------------------------------------
 */
typedef struct pieces {
    const mx_checkpoint *checkpoint;
    int64_t *first;      /* [tensors + 1]: of each tensor */
    XXH128_hash_t *hash; /* [first[tensors]] */
    uint64_t total;
    atomic_ullong done; /* bytes */
    uint64_t slice;     /* the largest that is a piece */
    atomic_bool failed; /* no memory for one */
    void (*progress)(void *user, uint64_t done, uint64_t total);
    void *user;
} pieces;

/* Of tensors that are made, or have gaps, a slice is a piece. */
static bool by_slices(const mx_tensor *t) {
    return t->recipe || t->slice_stride != mx_tensor_slice_bytes(t);
}

static int64_t pieces_of(const mx_tensor *t) {
    return by_slices(t) ? t->shape[0] : (int64_t)((t->bytes + PIECE - 1) / PIECE);
}

static void free_pieces(pieces *p) {
    free(p->first);
    free(p->hash);
}

static bool make_pieces(pieces *p) {
    const int count = mx_checkpoint_count(p->checkpoint);
    p->first = malloc(sizeof *p->first * ((size_t)count + 1));
    if (!p->first) return false;
    p->first[0] = 0;
    for (int i = 0; i < count; i++) {
        const mx_tensor *t = mx_checkpoint_at(p->checkpoint, i);
        p->first[i + 1] = p->first[i] + pieces_of(t);
        p->total += t->bytes;
        if (by_slices(t) && mx_tensor_slice_bytes(t) > p->slice) p->slice = mx_tensor_slice_bytes(t);
    }
    p->hash = malloc(sizeof *p->hash * (size_t)p->first[count] + 1);
    return p->hash != NULL;
}

/* The tensor that piece `i` is of: the last one that begins at or before it and has any. */
static int tensor_of(const pieces *p, int64_t i) {
    int low = 0, high = mx_checkpoint_count(p->checkpoint);
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        *(p->first[middle] <= i ? &low : &high) = middle;
    }
    return low;
}

static void hash_pieces(void *arg, int64_t begin, int64_t end, int thread) {
    pieces *p = arg;
    uint8_t *made = p->slice ? malloc(p->slice) : NULL;
    if (p->slice && !made) atomic_store(&p->failed, true);
    for (int64_t i = begin; i < end && !atomic_load(&p->failed); i++) {
        const int tensor = tensor_of(p, i);
        const mx_tensor *t = mx_checkpoint_at(p->checkpoint, tensor);
        size_t size;
        if (by_slices(t)) {
            size = mx_tensor_slice_bytes(t);
            mx_tensor_slices(t, i - p->first[tensor], 1, made);
            p->hash[i] = XXH3_128bits(made, size);
        } else {
            const uint64_t at = (uint64_t)(i - p->first[tensor]) * PIECE, left = t->bytes - at;
            size = left < PIECE ? (size_t)left : PIECE;
            p->hash[i] = XXH3_128bits(t->data + at, size);
        }
        const uint64_t done = atomic_fetch_add(&p->done, size) + size;
        if (thread == 0 && p->progress) p->progress(p->user, done, p->total);
    }
    free(made);
}

/* ---- all of it ---------------------------------------------------------------------------------------------------
 */
static void add_tensor(XXH3_state_t *hash, const mx_tensor *t, const XXH128_hash_t *piece) {
    XXH3_128bits_update(hash, t->name, strlen(t->name) + 1);
    XXH3_128bits_update(hash, t->dtype_name, strlen(t->dtype_name) + 1);
    XXH3_128bits_update(hash, &t->dims, sizeof t->dims);
    XXH3_128bits_update(hash, t->shape, sizeof *t->shape * (size_t)t->dims);
    XXH3_128bits_update(hash, piece, sizeof *piece * (size_t)pieces_of(t));
}

/* Files that are a whole model hold its configuration and vocabulary, too. */
static void add_headers(XXH3_state_t *hash, const mx_checkpoint *ck) {
    const mx_layout layout = mx_checkpoint_layout(ck);
    if (layout != MX_LAYOUT_GGUF && layout != MX_LAYOUT_METAL) return;
    for (int i = 0; i < mx_checkpoint_files(ck); i++) {
        const mx_mapped *f = mx_checkpoint_file((mx_checkpoint *)(uintptr_t)ck, i);
        XXH3_128bits_update(hash, f->data, mx_checkpoint_header(ck, i));
    }
}

static mx_status identify(const mx_config *config, const mx_checkpoint *checkpoint, const mx_identity_options *o,
                          char out[MX_IDENTITY], mx_error *error) {
    pieces p = {.checkpoint = checkpoint, .progress = o->progress, .user = o->user};
    XXH3_state_t *hash = XXH3_createState();
    if (!hash || !make_pieces(&p)) {
        XXH3_freeState(hash);
        free_pieces(&p);
        return mx_fail(error, MX_NO_MEMORY, "no memory for the hash of a model");
    }
    const int count = mx_checkpoint_count(checkpoint);
    mx_parallel_for(o->pool, p.first[count], 1, hash_pieces, &p);
    if (atomic_load(&p.failed)) {
        XXH3_freeState(hash);
        free_pieces(&p);
        return mx_fail(error, MX_NO_MEMORY, "no memory for the hash of a model");
    }
    XXH3_128bits_reset(hash);
    if (config) add_config(hash, config);
    for (int i = 0; i < count; i++) add_tensor(hash, mx_checkpoint_at(checkpoint, i), p.hash + p.first[i]);
    add_headers(hash, checkpoint);
    const XXH128_hash_t h = XXH3_128bits_digest(hash);
    XXH3_freeState(hash);
    free_pieces(&p);
    snprintf(out, MX_IDENTITY, "%016llx%016llx", (unsigned long long)h.high64, (unsigned long long)h.low64);
    return MX_OK;
}

mx_status mx_weights_identity(const mx_weights *w, const mx_identity_options *options, char out[MX_IDENTITY],
                              mx_error *error) {
    return identify(&w->config, w->checkpoint, options, out, error);
}

mx_status mx_checkpoint_identity(const mx_checkpoint *checkpoint, const mx_identity_options *options,
                                 char out[MX_IDENTITY], mx_error *error) {
    return identify(NULL, checkpoint, options, out, error);
}
