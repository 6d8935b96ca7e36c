/* Real steps on the real clock: while requests decode and prompts wait, steps end in time and prompts get their part.
 * (test_scheduler.c has the rules to the letter, on a clock of its own.)
 *
 * Other programs may slow the machine, so the bounds are wide, and one try of four within them is enough; steps that
 * know no limit are far outside in every try, and so are prompts that get next to nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/cpu.h"
#include "engine/mxrun.h"
#include "model/sampler.h"

enum { BATCH = 4096, CONTEXT = 4200, PROMPT = 3000, WAITING = 3, MOST_STEPS = 400, MOST_PROMPTS = 20000, TRIES = 4 };
static const double MOST_SECONDS = 20; /* of one try */
static const double WIDE = 2;          /* times what a step may take */
static const double PART = 0.3;        /* of the time is the prompts' */

typedef struct bench {
    mx_engine *engine;
    int32_t vocab;
    int prompts, began, ended; /* that were submitted, had their first token, ended */
    bool decodes[MOST_PROMPTS];
} bench;

static mx_model *model;

static void begin(bench *b, int decoders, double step_seconds) {
    const mx_engine_options o = {.threads = 1,
                                 .context = CONTEXT,
                                 .kv_memory = (uint64_t)400 << 20,
                                 .batch_tokens = BATCH,
                                 .max_running = decoders + WAITING,
                                 .step_seconds = step_seconds,
                                 .speculation = MX_SPECULATE_OFF};
    mx_error error;
    *b = (bench){0};
    if (mx_engine_create(model, &o, &b->engine, &error)) fail_msg("%s", error.text);
    b->vocab = mx_engine_get_info(b->engine).vocab;
}

/* Tokens that nobody else has: no prompt is cached. */
static void submit(bench *b, int count, int64_t answer) {
    int32_t prompt[BATCH];
    for (int t = 0; t < count; t++) prompt[t] = (int32_t)(mx_sample_uniform((uint64_t)b->prompts, t) * b->vocab);
    mx_request r = {.prompt = prompt, .prompt_count = count, .max_tokens = answer, .sampling = MX_SAMPLING_DEFAULT};
    mx_handle handle;
    mx_error error;
    assert_true(b->prompts < MOST_PROMPTS);
    r.user = &b->decodes[b->prompts];
    r.sampling.seed = (uint64_t)b->prompts++;
    if (mx_submit(b->engine, &r, &handle, &error)) fail_msg("%s", error.text);
}

/* Returns its seconds; *rows: that it computed. */
static double step(bench *b, int64_t *rows) {
    const int64_t before = mx_engine_get_stats(b->engine).computed_rows;
    mx_error error;
    const double start = mx_seconds();
    if (mx_step(b->engine, &error)) fail_msg("%s", error.text);
    const double seconds = mx_seconds() - start;
    for (mx_event event; mx_poll(b->engine, &event, 1) > 0;) {
        bool *decodes = event.user;
        b->began += event.type == MX_EVENT_TOKEN && !*decodes;
        b->ended += event.type == MX_EVENT_FINISHED;
        *decodes = true;
    }
    *rows = mx_engine_get_stats(b->engine).computed_rows - before;
    return seconds;
}

/* Of a step that is full of prompt rows. */
static double full_step(void) {
    bench b;
    int64_t rows;
    double best = 1e9;
    begin(&b, 1, 0);
    for (int i = 0; i < 3; i++) {
        submit(&b, BATCH, 1);
        const double seconds = step(&b, &rows);
        assert_int_equal(rows, BATCH);
        if (seconds < best) best = seconds;
    }
    mx_engine_destroy(b.engine);
    return best;
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double rank(double *values, int count, double part) {
    qsort(values, (size_t)count, sizeof *values, ascending);
    return values[(int)(part * count)];
}

typedef struct figures {
    double decode; /* median step without prompts */
    double late;   /* 99th percentile of all steps */
    double part;   /* of the time that steps with prompts took, beyond what they had taken without */
    int steps;
} figures;

/* `decoders` all the time, beside prompts of which some always wait. */
static figures measure(int decoders, double step_seconds) {
    static double all[MOST_STEPS], pure[MOST_STEPS], mixed[MOST_STEPS];
    int count = 0, pures = 0, mixes = 0;
    int64_t rows;
    bench b;
    begin(&b, decoders, step_seconds);
    for (int i = 0; i < decoders; i++) submit(&b, 4, 4000);
    while (b.began < decoders) step(&b, &rows);
    for (int i = 0; i < 10; i++) {
        pure[pures++] = step(&b, &rows);
        assert_int_equal(rows, decoders);
    }
    const double start = mx_seconds();
    while (count < MOST_STEPS && (count < 100 || mx_seconds() < start + MOST_SECONDS)) {
        while (b.prompts - decoders - b.ended < WAITING) submit(&b, PROMPT, 1);
        all[count] = step(&b, &rows);
        assert_true(rows >= decoders);
        if (rows > decoders)
            mixed[mixes++] = all[count];
        else if (pures < MOST_STEPS)
            pure[pures++] = all[count];
        count++;
    }
    mx_engine_destroy(b.engine);
    figures f = {.decode = rank(pure, pures, 0.5), .late = rank(all, count, 0.99), .steps = count};
    double total = 0, own = 0;
    for (int i = 0; i < mixes; i++) {
        total += mixed[i];
        own += mixed[i] > f.decode ? mixed[i] - f.decode : 0;
    }
    for (int i = 10; i < pures; i++) total += pure[i];
    f.part = own / total;
    return f;
}

/* limit_part > 0: step_seconds is that part of a step full of prompt rows. Such a step must be far outside the bounds,
 * or they would say nothing. */
static void check(int decoders, double limit_part) {
    for (int i = 1;; i++) {
        const double full = full_step(), limit = limit_part > 0 ? limit_part * full : 1e-6;
        const figures f = measure(decoders, limit);
        const double may = 3 * f.decode > limit ? 3 * f.decode : limit;
        print_message("%d decoders: %d steps, without prompts %.1f ms, 99th %.1f ms, may take %.1f ms (full: %.1f ms); "
                      "prompts get %.0f %%\n",
                      decoders, f.steps, 1e3 * f.decode, 1e3 * f.late, 1e3 * may, 1e3 * full, 100 * f.part);
        if (full > 1.5 * WIDE * may && f.late <= WIDE * may && f.part >= PART) return;
        if (i == TRIES) fail_msg("%d decoders: not once in %d tries within the bounds", decoders, TRIES);
    }
}

/* Where decoding is quick, the engine's own limit holds. */
static void within_the_limit(void **state) {
    (void)state;
    check(4, 1.0 / 6);
}

/* Where it is slow, three times what it takes. */
static void within_three_decode_steps(void **state) {
    (void)state;
    check(128, 0);
}

static int open_model(void **state) {
    (void)state;
    const char *source = getenv("MXRUN_SOURCE");
    char path[4096];
    mx_error error;
    snprintf(path, sizeof path, "%s/tools/stories/checkpoint", source ? source : ".");
    if (mx_model_open(path, NULL, &model, &error)) fail_msg("%s", error.text);
    return 0;
}

static int close_model(void **state) {
    (void)state;
    mx_model_close(model);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(within_the_limit), cmocka_unit_test(within_three_decode_steps)};
    return cmocka_run_group_tests_name("step time", tests, open_model, close_model);
}
