#include "bench/bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "bench/windows.h"

enum { WARM_UP = 2, PEAK_RUNS = 3, KV_PAGES = 8, GPU_WINDOW = 64 };
static const double SAMPLE = 0.05;  /* seconds of a bandwidth sample */
static const double CHOOSING = 0.5; /* seconds of choosing how to read */

/* The windows of a test, and sums over them. */
typedef struct record {
    mx_window *window;
    int count, most;
    double tokens, bytes, flops, joules, experts;
    double seconds; /* of one repetition, as far as is known beforehand */
    mx_cost cost;   /* of a prompt, the same in every repetition */
} record;

typedef struct runner {
    const mx_bench_options *o; /* `own` */
    mx_bench_options own;      /* the caller's, with this run's weights */
    mx_pool *pool;
    mx_backend *backend;
    char tier[24];
    int window;              /* tokens of one */
    mx_draw *draw, *fetched; /* on a GPU: of the step before the one that is queued */
    int drawn;               /* rows of it; -1: nothing is queued */
    mx_precisions precision; /* in force */
    int streams, tiles;      /* tables: [streams][layers][tiles] */
    int32_t *table;
    mx_sequence_view *view;
    mx_row *row;
    int32_t *experts; /* [layers, rows, top_k] of the step that recorded them */
    record *record;   /* [tests] */
    mx_bandwidth_ways ways;
    double *sample; /* bandwidths of all windows */
    int samples, most_samples;
    double *peak[MX_PEAK_LOOPS];
    int peaks;
    mx_peaks now; /* what holds for the windows at hand */
    bool failed;
    double *done; /* seconds of all runs' work that are over, of those expected */
    mx_error *error;
} runner;

/* ---- KV pages ---------------------------------------------------------------------------------------------------- */

static int tiles_of(const mx_bench_options *o, int stream) {
    int most = 0;
    for (int i = 0; i < o->tests; i++) {
        const mx_bench_test *t = &o->test[i];
        const int tiles = (t->depth + t->tokens + WARM_UP + MX_TILE - 1) / MX_TILE;
        if (stream < t->streams && tiles > most) most = tiles;
    }
    return most;
}

static int streams_of(const mx_bench_options *o) {
    int most = 1;
    for (int i = 0; i < o->tests; i++) most = o->test[i].streams > most ? o->test[i].streams : most;
    return most;
}

/* Pages that a layer needs for a stream: all of its tiles, or as many as a window and a step can touch at a time, which
 * then follow each other in turn. */
static int pages_of(const mx_bench_options *o, int stream, bool sliding) {
    const int tiles = tiles_of(o, stream), rows = stream ? 1 : o->batch;
    const int ring = (o->weights->config.window + rows) / MX_TILE + 3;
    return sliding && ring < tiles ? ring : tiles;
}

static int64_t all_pages(const mx_bench_options *o) {
    const mx_config *c = &o->weights->config;
    int64_t pages = 0;
    for (int s = 0; s < streams_of(o); s++)
        for (int l = 0; l < c->layers; l++) pages += pages_of(o, s, c->sliding[l]);
    return pages;
}

static size_t table_entries(const mx_bench_options *o) {
    return (size_t)streams_of(o) * (size_t)o->weights->config.layers * (size_t)tiles_of(o, 0);
}

/* Stream 0 has the most tiles: every test has it. */
static void lay_out_tables(runner *r) {
    const mx_config *c = &r->o->weights->config;
    int32_t first = 0;
    for (int s = 0; s < r->streams; s++) {
        r->view[s] = (mx_sequence_view){r->table + (int64_t)s * c->layers * r->tiles, r->tiles};
        for (int l = 0; l < c->layers; l++) {
            const int pages = pages_of(r->o, s, c->sliding[l]);
            int32_t *at = r->table + ((int64_t)s * c->layers + l) * r->tiles;
            for (int t = 0; t < r->tiles; t++) at[t] = pages ? first + t % pages : -1;
            first += pages;
        }
    }
}

static uint64_t next_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* A random sign and mantissa, 1/8 to 2. */
static void random_number(uint64_t r, mx_format kv, uint8_t *out) {
    if (kv == MX_F32) {
        const uint32_t v = (uint32_t)((r & 0x807fffff) | (124 + (r >> 40 & 3)) << 23);
        memcpy(out, &v, 4);
    } else {
        const uint16_t v = kv == MX_F16 ? (uint16_t)((r & 0x83ff) | (12 + (r >> 40 & 3)) << 10)
                                        : (uint16_t)((r & 0x807f) | (124 + (r >> 40 & 3)) << 7);
        memcpy(out, &v, 2);
    }
}

/* Every page gets one of a few random ones: their addresses count, not their numbers. */
static mx_status fill_pages(runner *r, int64_t pages) {
    const size_t bytes = (size_t)r->backend->ops->page_bytes(r->backend), size = r->o->kv == MX_F32 ? 4 : 2;
    uint64_t state = r->o->seed;
    uint8_t *page = malloc(bytes * KV_PAGES);
    if (!page) return mx_fail(r->error, MX_NO_MEMORY, "no memory for a page of keys and values");
    for (size_t at = 0; at < bytes * KV_PAGES; at += size) random_number(next_random(&state), r->o->kv, page + at);
    mx_status status = MX_OK;
    for (int64_t i = 0; i < pages && !status; i++)
        status = r->backend->ops->page_write(r->backend, (int32_t)i, page + (size_t)(i % KV_PAGES) * bytes, r->error);
    free(page);
    return status;
}

/* ---- steps ------------------------------------------------------------------------------------------------------- */

static bool stopped(const runner *r) {
    return r->o->stop && *r->o->stop;
}

static void advance(runner *r, double seconds) {
    *r->done += seconds;
    if (r->o->progress) mx_progress_update(r->o->progress, *r->done);
}

/* The token of this place in this test: the same in every repetition, so that the same experts are chosen. */
static int32_t token_at(const runner *r, int test, int stream, int position) {
    uint64_t state = r->o->seed ^ (uint64_t)test << 56 ^ (uint64_t)stream << 32 ^ (uint64_t)position;
    return (int32_t)(next_random(&state) % (uint64_t)r->o->weights->config.vocab);
}

static bool on_gpu(const runner *r) {
    return r->o->device != NULL;
}

/* On a GPU: waits for the draws that are queued. */
static mx_status fetch(runner *r) {
    if (r->drawn < 0) return MX_OK;
    const int count = r->drawn;
    r->drawn = -1;
    return r->backend->ops->drawn(r->backend, r->fetched, count, r->error);
}

/* The step is queued: its rows' tokens are drawn, and those of the step before are fetched meanwhile. */
static mx_status draw(runner *r, const mx_batch *batch) {
    int count = 0;
    for (int i = 0; i < batch->rows; i++)
        if (batch->row[i].wanted) {
            r->draw[count] = (mx_draw){.wanted = count, .spec = {.top_p = 1, .repetition_penalty = 1}};
            count++;
        }
    mx_status status = r->backend->ops->draw(r->backend, r->draw, count, r->error);
    if (!status) status = fetch(r);
    if (!status) r->drawn = count;
    return status;
}

static mx_status step(runner *r, const mx_batch *batch, double *seconds) {
    const double start = mx_seconds();
    mx_status status = r->backend->ops->step(r->backend, batch, r->error);
    if (!status && on_gpu(r)) status = draw(r, batch);
    *seconds = mx_seconds() - start;
    return status;
}

/* What is queued is done; its time belongs to the steps before. */
static mx_status finish(runner *r, double *seconds) {
    const double start = mx_seconds();
    mx_status status = fetch(r);
    *seconds += mx_seconds() - start;
    return status;
}

static double joules(const runner *r) {
    if (on_gpu(r)) return r->o->nvml ? mx_nvml_joules(r->o->nvml, 0) : 0;
    return r->o->energy ? mx_energy_joules(r->o->energy) : 0;
}

/* The batch of token `i` of a decode test. */
static mx_batch decode_batch(runner *r, int test, int i) {
    const mx_bench_test *t = &r->o->test[test];
    for (int s = 0; s < t->streams; s++)
        r->row[s] = (mx_row){token_at(r, test, s, t->depth + i), t->depth + i, s, true};
    return (mx_batch){.row = r->row,
                      .rows = t->streams,
                      .sequence = r->view,
                      .sequences = t->streams,
                      .experts = t->streams > 1 && !on_gpu(r) ? r->experts : NULL};
}

/* On a GPU recording the experts makes a step wait: those of one step that is not measured stand for its window's. */
static mx_status record_experts(runner *r, int test, int i) {
    mx_batch batch = decode_batch(r, test, i);
    double seconds = 0;
    if (!on_gpu(r) || r->o->test[test].streams == 1) return MX_OK;
    batch.experts = r->experts;
    mx_status status = step(r, &batch, &seconds);
    return status ? status : finish(r, &seconds);
}

/* The batch of a prompt's rows `from` and on; only the prompt's last row is wanted, as the engine does it. */
static mx_batch prompt_batch(runner *r, int test, int from) {
    const mx_bench_test *t = &r->o->test[test];
    const int rows = t->tokens - from < r->o->batch ? t->tokens - from : r->o->batch;
    for (int i = 0; i < rows; i++)
        r->row[i] =
            (mx_row){token_at(r, test, 0, t->depth + from + i), t->depth + from + i, 0, from + i + 1 == t->tokens};
    return (mx_batch){.row = r->row, .rows = rows, .sequence = r->view, .sequences = 1};
}

/* ---- what the machine can do now --------------------------------------------------------------------------------- */

static mx_status gpu_rate(const runner *r, bool reading, double *out) {
    mx_cuda_rates rates = {0};
    const mx_status status = r->o->device->plugin->measure(r->o->device->weights, &rates, r->error);
    *out = reading ? rates.read : rates.multiply;
    return status;
}

static mx_status sample_bandwidth(runner *r, double *rate) {
    if (on_gpu(r)) {
        const mx_status status = gpu_rate(r, true, rate);
        if (status) return status;
    } else {
        *rate = mx_bandwidth_sample(r->o->bandwidth, &r->ways, r->pool, SAMPLE);
    }
    if (r->samples < r->most_samples) r->sample[r->samples++] = *rate;
    return MX_OK;
}

/* Something else on the machine makes a sample too low, nothing makes it too high: below the median of those so far it
 * does not count, or more than the floor would be reached. */
static mx_status sample_peaks(runner *r, int most) {
    if (r->peaks == most) return MX_OK;
    r->peaks++;
    for (int i = 0; i < MX_PEAK_LOOPS; i++) {
        if (on_gpu(r) ? i != MX_PEAK_MMA : !mx_peak_here((mx_peak_loop)i)) continue;
        double rate;
        if (on_gpu(r)) {
            const mx_status status = gpu_rate(r, false, &rate);
            if (status) return status;
        } else {
            rate = mx_peak_pool(r->pool, (mx_peak_loop)i, PEAK_RUNS);
        }
        r->peak[i][r->peaks - 1] = rate;
        r->now.of[i] = fmax(rate, mx_median(r->peak[i], r->peaks));
    }
    return MX_OK;
}

/* Puts a window on record. `cost` is that of all its tokens. */
static void keep(runner *r, record *to, const mx_cost *cost, double tokens, double seconds, double before,
                 double after) {
    const double by_flops = mx_cost_seconds(cost, r->tier, &r->precision, &r->now), flops = mx_cost_matrix_flops(cost);
    if (to->count == to->most) return;
    to->window[to->count++] = mx_window_make(tokens, seconds, cost->bytes, flops, by_flops, before, after);
    to->tokens += tokens;
    to->bytes += cost->bytes;
    to->flops += flops;
    to->experts += cost->experts;
}

/* ---- one repetition of a test ------------------------------------------------------------------------------------ */

static mx_status decode(runner *r, int test, double before) {
    const mx_bench_test *t = &r->o->test[test];
    record *to = &r->record[test];
    const double share = to->seconds / t->tokens;
    for (int i = 0; i < t->tokens && !stopped(r);) {
        mx_cost cost = {0};
        double seconds = 0;
        const int first = i;
        mx_status status = record_experts(r, test, i);
        if (status) return status;
        const double from = joules(r);
        for (; i < t->tokens && i < first + r->window; i++) {
            const mx_batch batch = decode_batch(r, test, i);
            double one;
            status = step(r, &batch, &one);
            if (status) return status;
            seconds += one;
            mx_cost_add(&cost, r->o->weights, r->o->kv, &batch, t->streams > 1 ? r->experts : NULL);
        }
        status = finish(r, &seconds);
        if (status) return status;
        to->joules += joules(r) - from;
        double after;
        status = sample_bandwidth(r, &after);
        if (status) return status;
        keep(r, to, &cost, (double)(i - first) * t->streams, seconds, before, after);
        before = after;
        advance(r, share * (i - first));
    }
    return MX_OK;
}

/* What a prompt costs. r->experts holds what its first step chose, in `recorded` rows: it stands for the later steps.
 */
static void count_prompt(runner *r, int test, int recorded) {
    const int top_k = r->o->weights->config.top_k;
    for (int from = 0; from < r->o->test[test].tokens; from += r->o->batch) {
        const mx_batch batch = prompt_batch(r, test, from);
        for (int l = 0; batch.rows < recorded && l < r->o->weights->config.layers; l++) /* the last, shorter step */
            memmove(r->experts + (int64_t)l * batch.rows * top_k, r->experts + (int64_t)l * recorded * top_k,
                    (size_t)batch.rows * (size_t)top_k * sizeof *r->experts);
        mx_cost_add(&r->record[test].cost, r->o->weights, r->o->kv, &batch, r->experts);
    }
}

static mx_status prompt(runner *r, int test, double before) {
    const mx_bench_test *t = &r->o->test[test];
    record *to = &r->record[test];
    double seconds = 0;
    const double energy = joules(r);
    for (int from = 0; from < t->tokens; from += r->o->batch) {
        const mx_batch batch = prompt_batch(r, test, from);
        double one;
        if (stopped(r)) return MX_OK;
        mx_status status = step(r, &batch, &one);
        if (status) return status;
        seconds += one;
        advance(r, to->seconds * batch.rows / t->tokens);
    }
    mx_status status = finish(r, &seconds);
    if (status) return status;
    to->joules += joules(r) - energy;
    double after;
    status = sample_bandwidth(r, &after);
    if (status) return status;
    keep(r, to, &to->cost, t->tokens, seconds, before, after);
    return MX_OK;
}

static mx_status repetition(runner *r) {
    const int most_peaks = r->o->repetitions * r->o->tests;
    for (int i = 0; i < r->o->tests && !stopped(r); i++) {
        if (r->o->progress) mx_progress_label(r->o->progress, r->o->test[i].prompt ? "prompt" : "decode");
        double before;
        mx_status status = sample_peaks(r, most_peaks);
        if (!status) status = sample_bandwidth(r, &before);
        if (!status) status = r->o->test[i].prompt ? prompt(r, i, before) : decode(r, i, before);
        if (status) return status;
    }
    return MX_OK;
}

/* ---- all runs ---------------------------------------------------------------------------------------------------- */

/* A few steps of each test that do not count: memory is touched, a prompt's experts are recorded, and how long a
 * repetition will take is seen. */
static mx_status warm_up(runner *r, int test) {
    const mx_bench_test *t = &r->o->test[test];
    record *to = &r->record[test];
    double seconds = 0;
    if (t->prompt) {
        mx_batch batch = prompt_batch(r, test, 0);
        const int rows = batch.rows;
        batch.experts = r->experts;
        mx_status status = step(r, &batch, &seconds);
        if (!status) status = finish(r, &seconds);
        to->seconds = seconds * t->tokens / rows;
        count_prompt(r, test, rows);
        return status;
    }
    for (int i = 0; i < WARM_UP && !stopped(r); i++) {
        const mx_batch batch = decode_batch(r, test, i);
        mx_status status = step(r, &batch, &seconds);
        if (!status) status = finish(r, &seconds);
        if (status) return status;
    }
    to->seconds = seconds * t->tokens + SAMPLE * ((t->tokens + r->window - 1) / r->window);
    return MX_OK;
}

static mx_status measure(const mx_bench_options *o, runner *runs, int count, mx_error *error) {
    double expected = 0, done = 0;
    for (int k = 0; k < count; k++) {
        runner *r = &runs[k];
        mx_status status = MX_OK;
        r->done = &done;
        mx_pool_enter(r->pool); /* the machine is measured with the threads where a step has them */
        if (k && r->pool == runs[0].pool)
            r->ways = runs[0].ways;
        else if (!on_gpu(r))
            mx_bandwidth_choose(o->bandwidth, r->pool, CHOOSING, &r->ways);
        for (int i = 0; i < o->tests && !stopped(r) && !status; i++) {
            status = warm_up(r, i);
            expected += r->record[i].seconds;
        }
        mx_pool_leave(r->pool);
        r->failed = status != MX_OK;
        if (status) return status;
    }
    if (o->progress) mx_progress_start(o->progress, "measuring", expected * o->repetitions, false);
    for (int i = 0; i < o->repetitions; i++)
        for (int k = 0; k < count; k++) {
            mx_pool_enter(runs[k].pool);
            mx_status status = repetition(&runs[k]);
            mx_pool_leave(runs[k].pool);
            runs[k].failed = status != MX_OK;
            if (status) return status;
        }
    return stopped(runs) ? mx_fail(error, MX_CANCELLED, "interrupted") : MX_OK;
}

/* The highest plain peak of the instructions that this engine uses for matrices. */
static mx_peak_loop plain_loop(const runner *r, const mx_peaks *peaks) {
    mx_peak_loop best = mx_cost_unit(r->tier, MX_X_FP32).loop;
    for (int i = 0; i < MX_CLASSES; i++) {
        const mx_precision p = r->precision.of[i];
        const mx_peak_loop loop = mx_cost_unit(r->tier, p == MX_X_INT8 ? MX_X_BF16 : p).loop;
        if (loop < MX_PEAK_LOOPS && (best == MX_PEAK_LOOPS || peaks->of[loop] > peaks->of[best])) best = loop;
    }
    return best;
}

static void sum_up(const runner *r, int test, const mx_peaks *peaks, double *room, mx_bench_result *out) {
    const record *from = &r->record[test];
    *out = (mx_bench_result){.test = r->o->test[test], .plain = plain_loop(r, peaks)};
    mx_windows_sum_up(from->window, from->count, out->plain < MX_PEAK_LOOPS ? peaks->of[out->plain] : 0, room, out);
    if (!from->count) return;
    out->bytes = from->bytes / from->tokens;
    out->flops = from->flops / from->tokens;
    if (!out->test.prompt)
        out->experts = from->experts / (from->tokens / out->test.streams) / r->o->weights->config.layers;
    out->joules = from->joules / from->tokens;
}

static int windows_of(const runner *r, int test) {
    const mx_bench_test *t = &r->o->test[test];
    return r->o->repetitions * (t->prompt ? 1 : (t->tokens + r->window - 1) / r->window);
}

static mx_status prepare(runner *r, const mx_precisions *precision) {
    const mx_bench_options *o = r->o;
    const mx_config *c = &o->weights->config;
    const int64_t pages = all_pages(o);
    const size_t tests = (size_t)(o->tests > 0 ? o->tests : 0);
    r->drawn = -1;
    r->window = on_gpu(r) ? GPU_WINDOW : MX_WINDOW_TOKENS;
    r->streams = streams_of(o);
    r->tiles = tiles_of(o, 0);
    const int rows = o->batch > r->streams ? o->batch : r->streams;
    r->most_samples = o->repetitions * o->tests; /* one before each test, one after each window */
    bool ok = (r->record = calloc(tests, sizeof *r->record)) != NULL;
    for (int i = 0; i < o->tests && ok; i++) {
        r->record[i].most = windows_of(r, i);
        r->most_samples += windows_of(r, i);
        ok = (r->record[i].window = calloc((size_t)r->record[i].most, sizeof(mx_window))) != NULL;
    }
    for (int i = 0; i < MX_PEAK_LOOPS; i++)
        ok = ok && (r->peak[i] = calloc((size_t)o->repetitions * tests, sizeof(double)));
    ok = ok && (r->sample = calloc((size_t)r->most_samples, sizeof *r->sample));
    ok = ok && (r->table = calloc(table_entries(o), sizeof *r->table));
    ok = ok && (r->view = calloc((size_t)r->streams, sizeof *r->view));
    ok = ok && (r->row = calloc((size_t)rows, sizeof *r->row));
    ok = ok && (r->experts = calloc((size_t)c->layers * (size_t)rows * (size_t)c->top_k, sizeof *r->experts));
    ok = ok && (r->draw = calloc((size_t)rows, sizeof *r->draw));
    ok = ok && (r->fetched = calloc((size_t)rows, sizeof *r->fetched));
    if (!ok) return mx_fail(r->error, MX_NO_MEMORY, "no memory for the measurements");
    const mx_backend_options options = {.kv_format = o->kv,
                                        .pages = pages,
                                        .max_rows = rows,
                                        .max_wanted = r->streams,
                                        .precision = precision,
                                        .openblas = o->openblas};
    mx_device cpu = {0}, *device = on_gpu(r) ? o->device : &cpu;
    mx_status status = mx_device_backend(device, o->weights, r->pool, &options, &r->backend, r->error);
    if (status) return status;
    r->precision = mx_device_precision(device, r->backend);
    lay_out_tables(r);
    return fill_pages(r, pages);
}

static void clean_up(runner *r) {
    if (r->backend) r->backend->ops->destroy(r->backend);
    for (int i = 0; i < r->o->tests && r->record; i++) free(r->record[i].window);
    for (int i = 0; i < MX_PEAK_LOOPS; i++) free(r->peak[i]);
    free(r->record);
    free(r->sample);
    free(r->table);
    free(r->view);
    free(r->row);
    free(r->experts);
    free(r->draw);
    free(r->fetched);
}

uint64_t mx_bench_memory(const mx_bench_options *o) {
    return (uint64_t)all_pages(o) * (uint64_t)mx_page_bytes(&o->weights->config, o->kv) + 4 * table_entries(o);
}

static mx_status report(const runner *r, const mx_bench_run *out) {
    int most = r->most_samples + 1;
    for (int i = 0; i < r->o->tests; i++) most = r->record[i].most > most ? r->record[i].most : most;
    double *room = calloc((size_t)most, sizeof *room);
    if (!room) return mx_fail(r->error, MX_NO_MEMORY, "no memory for the results");
    for (int i = 0; i < MX_PEAK_LOOPS; i++) out->machine->peaks.of[i] = mx_median(r->peak[i], r->peaks);
    for (int i = 0; i < r->o->tests; i++) sum_up(r, i, &out->machine->peaks, room, &out->result[i]);
    out->machine->bandwidth = mx_window_range(r->sample, r->samples);
    free(room);
    return MX_OK;
}

mx_status mx_bench_measure(const mx_bench_options *o, const mx_bench_run *run, int runs, mx_error *error) {
    const mx_kernels *kernels;
    if (o->tests < 1 || o->repetitions < 1 || runs < 1)
        return mx_fail(error, MX_INVALID_ARGUMENT, "there is nothing to measure");
    mx_status status = mx_kernels_get(NULL, &kernels, error);
    if (status) return status;
    runner *all = calloc((size_t)runs, sizeof *all);
    if (!all) return mx_fail(error, MX_NO_MEMORY, "no memory for the measurements");
    for (int k = 0; k < runs; k++) {
        const mx_device cpu = {0};
        *run[k].machine = (mx_bench_machine){0};
        all[k] = (runner){.o = &all[k].own, .own = *o, .pool = run[k].pool, .error = error};
        if (run[k].weights) all[k].own.weights = run[k].weights;
        mx_device_tier(o->device ? o->device : &cpu, kernels, all[k].tier);
        memset(run[k].result, 0, (size_t)o->tests * sizeof *run[k].result);
    }
    for (int k = 0; k < runs && !status; k++) {
        status = prepare(&all[k], &run[k].precision);
        all[k].failed = status != MX_OK;
        *run[k].machine = (mx_bench_machine){.precision = all[k].precision};
        memcpy(run[k].machine->tier, all[k].tier, sizeof run[k].machine->tier);
    }
    if (!status) status = measure(o, all, runs, error);
    for (int k = 0; k < runs && (!status || status == MX_CANCELLED); k++) {
        const mx_status reported = report(&all[k], &run[k]);
        if (reported) status = reported;
    }
    for (int k = 0; k < runs; k++) {
        run[k].machine->failed = all[k].failed && status != MX_CANCELLED;
        clean_up(&all[k]);
    }
    free(all);
    return status;
}
