#ifndef FAKE_MODEL_H
#define FAKE_MODEL_H

#include <stdint.h>

#include "engine/mxrun.h"
#include "model/model.h"

/* A model without arithmetic that a wrong page cannot fool: like a transformer, every layer of a row mixes what the
 * pages hold for all positions that the row may see, by hashing instead of attention. One slot read from a wrong,
 * stale or cleared page changes every token that follows. */

enum { FAKE_VOCAB = 61, FAKE_MOST = 4096, FAKE_WANTED = 512 };

typedef struct fake_backend {
    mx_backend base;
    const mx_config *config;
    uint64_t *slot; /* [pages][MX_TILE] */
    int64_t pages;
    float logits[FAKE_WANTED][FAKE_VOCAB];
    int wanted;                 /* of the last step */
    int max_wanted;             /* a step that wants more fails, as a device's does; 0: FAKE_WANTED */
    int fail_in;                /* the step that fails, counted down; 0: none */
    int nan_in;                 /* the step whose logits are NaN, likewise */
    int fail_read_in;           /* the page_read from which on all fail and give garbage, likewise */
    int failed_reads;           /* of page_read */
    int fail_write_in;          /* the page_write likewise */
    int32_t fail_token;         /* a step with such a row fails; -1: none */
    int32_t nan_token;          /* logits of such a row are NaN; -1: none */
    int sleep_us;               /* time one step takes */
    int64_t rows;               /* computed so far */
    int64_t wanted_rows;        /* of them, with logits */
    int64_t largest;            /* most rows in a step */
    int64_t most_sequences;     /* in a step */
    int last_rows;              /* of the last step, or of the one that calls `during` */
    int most_wanted;            /* rows in a step */
    int empty_reads;            /* slots read that no step wrote since their page was taken */
    void (*during)(void *user); /* called in every step; may be NULL */
    void *user;
} fake_backend;

/* `pattern` names the layers: 's' sliding, 'f' full attention. */
mx_config fake_config(const char *pattern, int window, int max_positions);
fake_backend *fake_backend_create(const mx_config *config, int64_t pages);

/* The same model without pages: what it samples after `prompt`, of the sampling numbers by
 * temperature, seed and biases alone. */
void fake_answer(const mx_config *config, const int32_t *prompt, int64_t prompt_count, const mx_sampling *sampling,
                 int32_t *out, int64_t count);
/* And what it says behind each of the tokens: out [count]. */
void fake_logits(const mx_config *config, const int32_t *tokens, int64_t count, float (*out)[FAKE_VOCAB]);

#endif
