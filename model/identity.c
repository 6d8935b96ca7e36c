/* A short name for a model by its content, for what outlives the process that computed it. */
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "model/model.h"

enum {
    WHOLE = 65536,
    PIECES = 8,
    PIECE = 4096
}; /* bytes of a tensor up to which all of it counts; samples of others */

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

static void add_tensor(XXH3_state_t *hash, const mx_tensor *t) {
    XXH3_128bits_update(hash, t->name, strlen(t->name) + 1);
    XXH3_128bits_update(hash, t->dtype_name, strlen(t->dtype_name) + 1);
    XXH3_128bits_update(hash, t->shape, sizeof *t->shape * (size_t)t->dims);
    if (t->bytes <= WHOLE) {
        XXH3_128bits_update(hash, t->data, t->bytes);
        return;
    }
    for (uint64_t i = 0; i < PIECES; i++)
        XXH3_128bits_update(hash, t->data + (t->bytes - PIECE) / (PIECES - 1) * i, PIECE);
}

static mx_status identify(const mx_config *config, const mx_checkpoint *checkpoint, char out[MX_IDENTITY],
                          mx_error *error) {
    XXH3_state_t *hash = XXH3_createState();
    if (!hash) return mx_fail(error, MX_NO_MEMORY, "no memory for a hash");
    XXH3_128bits_reset(hash);
    if (config) add_config(hash, config);
    for (int i = 0; i < mx_checkpoint_count(checkpoint); i++) add_tensor(hash, mx_checkpoint_at(checkpoint, i));
    const XXH128_hash_t h = XXH3_128bits_digest(hash);
    XXH3_freeState(hash);
    snprintf(out, MX_IDENTITY, "%016llx%016llx", (unsigned long long)h.high64, (unsigned long long)h.low64);
    return MX_OK;
}

mx_status mx_weights_identity(const mx_weights *w, char out[MX_IDENTITY], mx_error *error) {
    return identify(&w->config, w->checkpoint, out, error);
}

mx_status mx_checkpoint_identity(const mx_checkpoint *checkpoint, char out[MX_IDENTITY], mx_error *error) {
    return identify(NULL, checkpoint, out, error);
}
