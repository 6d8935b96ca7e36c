/* What masks of constraints cost a step, for each way of making them.
 *
 *     mask_bench MODEL REQUESTS MICROSECONDS [STEPS [THREADS]]
 *
 * REQUESTS at once, each with a constraint whose mask takes MICROSECONDS to make and forbids nothing: the quarter, half
 * and 99 % of steps that took no longer. Without constraints, then with masks of that price. MODEL is a folder or,
 * "gpt-oss-20b:2", so many layers of random weights. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "engine/model_parts.h"
#include "engine/mxrun.h"
#include "model/synthetic.h"

enum { MOST_STEPS = 100000 };

static uint64_t rounds; /* of work that make up a mask's price: a thread that does not run does none of it */

static uint64_t work(uint64_t count) {
    uint64_t x = 1;
    for (uint64_t i = 0; i < count; i++) x = x * 0x5851f42d4c957f2du + i;
    return x;
}

static double price_of(uint64_t count) {
    double best = 1;
    for (int i = 0; i < 20; i++) {
        const double start = mx_seconds();
        volatile uint64_t sink = work(count);
        (void)sink;
        const double took = mx_seconds() - start;
        best = took < best ? took : best;
    }
    return best;
}

static bool mask(void *user, uint32_t *bits, int32_t vocab) {
    (void)user, (void)vocab;
    bits[0] |= (work(rounds) & 1) << 5; /* something that no compiler can leave out, of a bit that is set */
    return true;
}

static mx_verdict accept(void *user, int32_t token) {
    (void)user, (void)token;
    return MX_CONTINUE;
}

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static uint64_t run(mx_engine *engine, int requests, int steps, bool constrained, const char *name) {
    static double took[MOST_STEPS];
    static const int32_t prompt[] = {1, 2, 3, 4, 5};
    uint64_t hash = 0;
    for (int i = 0; i < requests; i++) {
        mx_request r = {.prompt = prompt, .prompt_count = 5, .max_tokens = steps + 16, .sampling = MX_SAMPLING_DEFAULT};
        mx_handle handle;
        mx_error error;
        r.sampling.seed = (uint64_t)i;
        if (constrained) r.constraint = (mx_constraint){.mask = mask, .accept = accept};
        if (mx_submit(engine, &r, &handle, &error)) {
            fprintf(stderr, "mask_bench: %s\n", error.text);
            exit(1);
        }
    }
    int count = 0;
    for (int left = requests, step = 0; left;) {
        mx_event events[64];
        const double start = mx_seconds();
        mx_error error;
        if (mx_step(engine, &error)) exit(1);
        if (++step > 8 && left == requests && count < MOST_STEPS) took[count++] = mx_seconds() - start;
        for (int n; (n = mx_poll(engine, events, 64)) > 0;)
            for (int i = 0; i < n; i++) {
                left -= events[i].type == MX_EVENT_FINISHED || events[i].type == MX_EVENT_FAILED;
                if (events[i].type == MX_EVENT_TOKEN)
                    hash += (uint64_t)events[i].token * events[i].request * 0x9e3779b97f4a7c15u;
            }
    }
    qsort(took, (size_t)count, sizeof *took, compare);
    printf("%-12s %3d requests: %.3f %.3f %.3f ms of %d steps\n", name, requests, took[count / 4] * 1e3,
           took[count / 2] * 1e3, took[count * 99 / 100] * 1e3, count);
    return hash;
}

static mx_status open_model(char *name, mx_model **out, mx_error *error) {
    char *colon = strchr(name, ':');
    mx_config config;
    if (!colon) return mx_model_open(name, NULL, out, error);
    *colon = 0;
    mx_status status = mx_synthetic_config(name, atoi(colon + 1), &config, error);
    return status ? status : mx_model_make(&config, 1, &(mx_load_options){0}, NULL, out, error);
}

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "mask_bench MODEL REQUESTS MICROSECONDS [STEPS [THREADS]]\n");
        return 2;
    }
    mx_model *model;
    mx_engine *engine;
    mx_error error;
    const int requests = atoi(argv[2]), steps = argc > 4 ? atoi(argv[4]) : 300;
    rounds = (uint64_t)(atof(argv[3]) * 1e-6 / price_of(1000000) * 1e6);
    const mx_engine_options options = {.threads = argc > 5 ? atoi(argv[5]) : 0,
                                       .max_running = requests,
                                       .context = 4096,
                                       .speculation = MX_SPECULATE_OFF};
    if (open_model(argv[1], &model, &error) || mx_engine_create(model, &options, &engine, &error)) {
        fprintf(stderr, "mask_bench: %s\n", error.text);
        return 1;
    }
    run(engine, requests, steps, false, "without");
    run(engine, requests, steps, true, "with masks");
    mx_engine_destroy(engine);
    mx_model_close(model);
    return 0;
}
