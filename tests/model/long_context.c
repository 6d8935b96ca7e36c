/* Attention over more positions than one segment: rows decoded alone, where the step cuts walks into segments that
 * threads share, must have the bits that they have in a prompt. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"

enum { TOKENS = 2 * MX_SEGMENT + 300, ALONE = 3, MAX_ROWS = 512, TILES = (TOKENS + MX_TILE - 1) / MX_TILE };

static int32_t token_at(const mx_config *c, int stream, int i) {
    return (int32_t)(((uint32_t)i * 2654435761u + (uint32_t)stream * 40503u) >> 8) % c->vocab;
}

/* Positions begin .. end - 1 of `streams` sequences in one step; all rows of the last ALONE positions are wanted. */
static void step(mx_backend *b, const mx_config *c, int streams, int begin, int end) {
    static mx_row row[4 * MAX_ROWS];
    static int32_t table[4][MX_MAX_LAYERS * TILES];
    mx_sequence_view view[4];
    mx_error error;
    int rows = 0;
    for (int s = 0; s < streams; s++) {
        for (int i = 0; i < c->layers * TILES; i++) table[s][i] = s * c->layers * TILES + i;
        view[s] = (mx_sequence_view){table[s], TILES};
        for (int p = begin; p < end; p++)
            row[rows++] =
                (mx_row){.token = token_at(c, s, p), .position = p, .sequence = s, .wanted = p >= TOKENS - ALONE};
    }
    mx_batch batch = {.row = row, .rows = rows, .sequence = view, .sequences = streams};
    if (b->ops->step(b, &batch, &error)) fail_msg("%s", error.text);
}

/* Logits of the last ALONE positions of each stream, [streams, ALONE, vocab]: by one prompt when `whole`, else the last
 * positions in steps of one position of every stream. */
static float *run(mx_weights *w, const char *tier, int threads, int streams, bool whole) {
    const mx_config *c = &w->config;
    mx_pool *pool;
    mx_backend *b;
    mx_error error;
    mx_backend_options options = {.kv_format = MX_F16,
                                  .pages = (int64_t)streams * TILES * c->layers,
                                  .max_rows = streams * MAX_ROWS,
                                  .max_wanted = streams * ALONE,
                                  .tier = tier};
    if (mx_pool_create(threads, &pool, &error)) fail_msg("%s", error.text);
    if (mx_cpu_backend_create(w, pool, &options, &b, &error)) fail_msg("%s", error.text);
    for (int32_t page = 0; page < options.pages; page++) b->ops->page_clear(b, page);
    size_t vocab = (size_t)c->vocab;
    float *out = malloc((size_t)streams * ALONE * vocab * sizeof *out);
    assert_non_null(out);
    int at = 0, prompt = whole ? TOKENS : TOKENS - ALONE;
    while (at < TOKENS) {
        int end = at < prompt ? at + MAX_ROWS : at + 1;
        if (at < prompt && end > prompt) end = prompt;
        if (whole && end < TOKENS && end > TOKENS - ALONE) end = TOKENS - ALONE; /* wanted rows in one step */
        step(b, c, streams, at, end);
        for (int s = 0, i = 0; s < streams; s++)
            for (int p = at; p < end; p++) {
                if (p < TOKENS - ALONE) continue;
                memcpy(out + (size_t)(s * ALONE + p - (TOKENS - ALONE)) * vocab, b->ops->logits(b, i++),
                       vocab * sizeof *out);
            }
        at = end;
    }
    b->ops->destroy(b);
    mx_pool_destroy(pool);
    return out;
}

static void test_tier(void **state) {
    const char *tier = *state;
    const mx_kernels *kernels;
    mx_weights *w;
    mx_error error;
    char folder[600];
    if (mx_kernels_get(tier, &kernels, &error)) {
        print_message("skipped: %s\n", error.text);
        skip();
    }
    const char *source = getenv("MXRUN_SOURCE");
    snprintf(folder, sizeof folder, "%s/tests/data/mqa", source ? source : ".");
    if (mx_weights_open(folder, NULL, &w, &error)) fail_msg("%s", error.text);
    size_t row = (size_t)w->config.vocab * ALONE * sizeof(float);
    float *whole = run(w, tier, 1, 1, true);
    for (int threads = 1; threads <= 3; threads++) {
        for (int streams = 1; streams <= 3; streams += 2) {
            float *alone = run(w, tier, threads, streams, false); /* stream 0 has the same tokens */
            if (memcmp(whole, alone, row))
                fail_msg("%s: decoded on %d threads beside %d others, bits differ from the prompt's", tier, threads,
                         streams - 1);
            free(alone);
        }
    }
    free(whole);
    mx_weights_close(w);
}

int main(int argc, char **argv) {
    (void)argc;
    struct CMUnitTest tests[] = {{argv[1], test_tier, NULL, NULL, argv[1]}};
    return argc == 2 ? cmocka_run_group_tests_name("long context", tests, NULL, NULL) : 2;
}
