#include "commands/compare_measure.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cpu.h"
#include "commands/bench_report.h"
#include "commands/scoring.h"
#include "commands/terminal.h"

enum { BATCH = 512, ROOM_BEHIND = 2, SEED = 1 };

/* The model has failed; the user is told at once. */
static void give_up(const mx_compare_work *w, mx_compare_model *m, const mx_error *error) {
    snprintf(m->failed, sizeof m->failed, "%s", error->text);
    fprintf(stderr, "mxrun %s: %s: %s\n", w->command->name, m->label, m->failed);
}

static bool is_wanted(const mx_compare_work *w, int index) {
    return !*w->result->model[index].failed;
}

/* Of all models that are wanted. */
static int fewest_positions(const mx_compare_work *w) {
    int positions = INT32_MAX;
    for (int i = 0; i < w->result->models; i++)
        if (is_wanted(w, i) && w->config[i].max_positions < positions) positions = w->config[i].max_positions;
    return positions;
}

/* ---- looking ----------------------------------------------------------------------------------------------------- */

/* Bytes of the files that hold its tensors, each once: files are few, tensors may be tens of thousands. 0: not known.
 */
static double disk_bytes(const mx_checkpoint *ck) {
    const int count = mx_checkpoint_count(ck);
    const char **seen = calloc((size_t)count + 1, sizeof *seen);
    double sum = 0;
    int files = 0;
    for (int i = 0; i < count && seen; i++) {
        const char *file = mx_checkpoint_at(ck, i)->file;
        struct stat info;
        int k = files; /* most often it is the last one's */
        while (k > 0 && seen[k - 1] != file) k--;
        if (k || !file) continue;
        seen[files++] = file;
        if (stat(file, &info) == 0) sum += (double)info.st_size;
    }
    free(seen);
    return sum;
}

static mx_status look(mx_compare_work *w, int index, mx_error *error) {
    mx_compare_model *m = &w->result->model[index];
    mx_checkpoint *ck = NULL;
    mx_tokenizer *tokenizer = NULL;
    mx_status status = mx_checkpoint_open_model(m->path, MX_EXPERTS_IN_PLACE, &w->config[index], &ck, error);
    if (!status) {
        m->disk = disk_bytes(ck);
        for (int i = 0; i < mx_checkpoint_count(ck); i++) m->bytes += (double)mx_checkpoint_at(ck, i)->bytes;
        m->parameters = mx_compare_parameters(&w->config[index]);
        status = mx_tokenizer_open(m->path, &tokenizer, error);
    }
    if (!status) w->tokenizer[index] = mx_tokenizer_vocabulary_hash(tokenizer);
    mx_tokenizer_close(tokenizer);
    mx_checkpoint_close(ck);
    return status;
}

/* What is wrong with the text is said once, and not of each model. */
static mx_status check_text(const mx_compare_work *w, mx_error *error) {
    mx_tokenizer *tokenizer = NULL;
    int first = 0;
    while (first < w->result->models && !is_wanted(w, first)) first++;
    if (first == w->result->models) return MX_OK;
    mx_status status = mx_tokenizer_open(w->result->model[first].path, &tokenizer, error);
    if (!status) status = mx_evaluate_check(tokenizer, w->text, w->texts, &w->evaluate, error);
    mx_tokenizer_close(tokenizer);
    return status;
}

mx_status mx_compare_look(mx_compare_work *w, mx_error *error) {
    for (int i = 0; i < w->result->models; i++)
        if (is_wanted(w, i) && look(w, i, error)) give_up(w, &w->result->model[i], error);
    mx_scoring_window(fewest_positions(w), &w->evaluate);
    return check_text(w, error);
}

/* ---- perplexity -------------------------------------------------------------------------------------------------- */

typedef struct shown {
    mx_progress bar;
    bool started;
    char label[80];
} shown;

static void show(void *user, int64_t done, int64_t total) {
    shown *s = user;
    if (!s->started) mx_progress_start(&s->bar, s->label, (double)total, false);
    s->started = true;
    mx_progress_update(&s->bar, (double)done);
}

/* The first model's distributions lie here while the others are held against them. */
typedef struct base {
    char folder[MX_PATH], file[MX_PATH + 8];
    bool there;
} base;

static mx_status make_base(base *b, mx_error *error) {
    const char *temporary = getenv("TMPDIR");
    *b = (base){0};
    const int size =
        snprintf(b->folder, sizeof b->folder, "%s/mxrun-compare-XXXXXX", temporary && *temporary ? temporary : "/tmp");
    if (size >= (int)sizeof b->folder) {
        *b->folder = 0;
        return mx_fail(error, MX_INVALID_ARGUMENT, "TMPDIR: the path is too long");
    }
    if (!mkdtemp(b->folder)) {
        const mx_status status =
            mx_fail(error, MX_IO,
                    "%s: no folder for the first model's distributions can be made: %s; set TMPDIR to a folder for it",
                    b->folder, strerror(errno));
        *b->folder = 0;
        return status;
    }
    snprintf(b->file, sizeof b->file, "%s/base", b->folder);
    return MX_OK;
}

static void remove_base(const base *b) {
    if (!*b->folder) return;
    unlink(b->file);
    rmdir(b->folder);
}

static mx_status open_engine(const mx_compare_work *w, const char *path, mx_model **model, mx_engine **engine,
                             mx_error *error) {
    mx_loading loading = {0};
    const mx_load_options load = {.threads = w->threads,
                                  .device = w->device,
                                  .progress = mx_loading_shown,
                                  .user = &loading,
                                  .stop = &mx_interrupted};
    mx_engine_options options = {
        .threads = w->threads, .kv_type = w->kv->type, .precision = w->precision, .stop = &mx_interrupted};
    mx_status status = mx_scoring_engine(path, &w->evaluate, &options, error);
    if (!status) status = mx_model_open(path, &load, model, error);
    mx_loading_end(&loading);
    return status ? status : mx_engine_create(*model, &options, engine, error);
}

/* Is it held against the first model's distributions? */
static bool is_compared(const mx_compare_work *w, int index, const base *b) {
    return index && b->there && w->tokenizer[index] == w->tokenizer[0];
}

static mx_status evaluate(const mx_compare_work *w, int index, const base *b, mx_error *error) {
    static const char more[] = ", --tokens scores less of the text, and TMPDIR may name a folder with more room";
    mx_compare_model *m = &w->result->model[index];
    mx_model *model = NULL;
    mx_engine *engine = NULL;
    mx_tokenizer *tokenizer = NULL;
    shown s = {0};
    snprintf(s.label, sizeof s.label, "%.60s: text", m->label);
    mx_status status = mx_tokenizer_open(m->path, &tokenizer, error);
    if (!status) status = open_engine(w, m->path, &model, &engine, error);
    if (!status) {
        mx_evaluate_options o = w->evaluate;
        if (!index && w->result->models > 1) o.save_base = b->file;
        o.temporary = true;
        if (is_compared(w, index, b)) o.base = b->file;
        o.model = m->label;
        o.progress = show;
        o.user = &s;
        o.stop = &mx_interrupted;
        status = mx_evaluate(engine, tokenizer, w->text, w->texts, &o, &m->evaluation, error);
        if (s.started) mx_progress_clear(&s.bar);
        if (status == MX_NO_SPACE && error && strlen(error->text) + sizeof more < sizeof error->text)
            strcat(error->text, more);
    }
    m->evaluated = !status;
    mx_engine_destroy(engine);
    mx_model_close(model);
    mx_tokenizer_close(tokenizer);
    return status;
}

/* Why this model, which was evaluated, was not held against the first. */
static void set_apart(const mx_compare_work *w, int index, const base *b) {
    const mx_compare_model *first = &w->result->model[0];
    mx_compare_model *m = &w->result->model[index];
    if (!index || is_compared(w, index, b)) return;
    if (!b->there)
        snprintf(m->apart, sizeof m->apart, "not held against %.100s, which failed", first->label);
    else
        snprintf(m->apart, sizeof m->apart,
                 "not held against %.100s: its tokenizer is another, so that perplexities of the two do not compare, "
                 "only bits per byte do: %.4f here, %.4f there",
                 first->label, m->evaluation.bits_per_byte, first->evaluation.bits_per_byte);
}

mx_status mx_compare_evaluate(mx_compare_work *w, mx_error *error) {
    base b;
    mx_status status = make_base(&b, error);
    for (int i = 0; i < w->result->models && !status; i++) {
        mx_compare_model *m = &w->result->model[i];
        if (*m->failed) continue;
        status = evaluate(w, i, &b, error);
        if (!i) b.there = !status;
        if (!status) set_apart(w, i, &b);
        if (status == MX_CANCELLED) break;
        if (status) give_up(w, m, error);
        status = MX_OK;
    }
    remove_base(&b);
    return status;
}

/* ---- speed ------------------------------------------------------------------------------------------------------- */

enum { TESTS = 2 };

typedef struct speeds {
    mx_compare_work *w;
    mx_pool *pool;
    mx_precisions precision;
    mx_bandwidth bandwidth;
    mx_energy energy;
    bool has_energy;  /* of the CPU */
    mx_device device; /* the GPU with the weights that are loaded */
    mx_nvml nvml;
    mx_bench_test test[TESTS]; /* decode, prompt; those that there are */
    int tests;
    mx_weights *weights[MX_COMPARE_MOST];
} speeds;

/* The same for all models: what the one with the fewest positions holds. */
static mx_status make_tests(speeds *s, mx_error *error) {
    mx_compare *c = s->w->result;
    const int most = fewest_positions(s->w) - ROOM_BEHIND;
    if (c->decode_tokens > most) c->decode_tokens = most > 0 ? most : 0;
    if (c->prompt_tokens > most) c->prompt_tokens = most > 0 ? most : 0;
    if (c->decode_tokens) s->test[s->tests++] = (mx_bench_test){false, 0, 1, c->decode_tokens};
    if (c->prompt_tokens) s->test[s->tests++] = (mx_bench_test){true, 0, 1, c->prompt_tokens};
    return s->tests ? MX_OK : mx_fail(error, MX_INVALID_ARGUMENT, "no speed is left to measure: -p and -n are 0");
}

/* What computes, for the notes. The strings are static: there is one comparison in a process. */
static mx_status describe(speeds *s, mx_error *error) {
    static char precision[MX_PRECISION_NAME], tier[24], machine[200];
    mx_compare *c = s->w->result;
    const mx_kernels *kernels;
    mx_status status = mx_kernels_get(NULL, &kernels, error);
    if (status) return status;
    s->precision = mx_device_default_precision(&s->device, kernels);
    if (s->w->precision) status = mx_precisions_parse(s->w->precision, &s->precision, error);
    if (status) return status;
    mx_precisions_name(precision, &s->precision);
    mx_device_tier(&s->device, kernels, tier);
    if (c->gpu)
        snprintf(machine, sizeof machine, "%s", s->device.info.name);
    else
        mx_cpu_name(machine);
    c->precision = precision;
    c->tier = tier;
    c->machine = machine;
    return MX_OK;
}

static mx_backend_options backend_of(const speeds *s) {
    return (mx_backend_options){.kv_format = s->w->kv->format,
                                .pages = 1,
                                .max_rows = s->w->result->gpu ? MX_GPU_BATCH_TOKENS : 1,
                                .max_wanted = 1,
                                .precision = s->w->precision ? &s->precision : NULL};
}

/* To the GPU, straight from the files. */
static mx_status load_gpu(speeds *s, int index, mx_error *error) {
    mx_loading loading = {0};
    const mx_load_options lazy = {.way = MX_LOAD_LAZY};
    const mx_cuda_load_options load = {.progress = mx_loading_shown, .user = &loading, .stop = &mx_interrupted};
    const mx_backend_options shape = backend_of(s);
    mx_status status = mx_weights_load(s->w->result->model[index].path, &lazy, s->pool, &s->weights[index], error);
    if (!status) status = mx_device_open(&s->w->on, 0, s->weights[index], &shape, &s->device, error);
    if (!status) status = mx_device_load(&s->device, s->weights[index], load, error);
    mx_loading_end(&loading);
    return status ? status : describe(s, error);
}

/* Weights in memory, and kernels that take them at this precision. */
static mx_status load(speeds *s, int index, mx_error *error) {
    mx_loading loading = {0};
    mx_backend *backend = NULL;
    const mx_load_options load = {.progress = mx_loading_shown, .user = &loading, .stop = &mx_interrupted};
    if (s->w->result->gpu) return load_gpu(s, index, error);
    mx_status status = mx_weights_load(s->w->result->model[index].path, &load, s->pool, &s->weights[index], error);
    mx_loading_end(&loading);
    const mx_backend_options options = backend_of(s);
    if (!status) status = mx_cpu_backend_create(s->weights[index], s->pool, &options, &backend, error);
    if (backend) backend->ops->destroy(backend);
    return status;
}

static void unload(speeds *s, int index) {
    if (s->weights[index]) mx_device_close(&s->device);
    mx_weights_close(s->weights[index]);
    s->weights[index] = NULL;
}

static mx_bench_options options_of(const speeds *s, const mx_weights *weights) {
    return (mx_bench_options){.weights = weights,
                              .kv = s->w->kv->format,
                              .device = s->device.plugin ? (mx_device *)&s->device : NULL,
                              .nvml = s->device.plugin && s->nvml.devices == 1 ? (mx_nvml *)&s->nvml : NULL,
                              .batch = s->device.plugin ? MX_GPU_BATCH_TOKENS : BATCH,
                              .test = s->test,
                              .tests = s->tests,
                              .repetitions = s->w->result->rounds,
                              .seed = SEED,
                              .bandwidth = (mx_bandwidth *)&s->bandwidth,
                              .energy = s->has_energy ? (mx_energy *)&s->energy : NULL,
                              .stop = &mx_interrupted};
}

/* Do all weights, keys and values and the buffer fit into the memory that is free? */
static bool fit_together(const speeds *s) {
    double sum = (double)mx_bandwidth_bytes() + (256 << 20); /* activations, and what grows meanwhile */
    for (int i = 0; i < s->w->result->models; i++) {
        if (!is_wanted(s->w, i)) continue;
        const mx_weights shape = {.config = s->w->config[i]};
        const mx_bench_options o = options_of(s, &shape);
        sum += s->w->result->model[i].bytes + (double)mx_bench_memory(&o);
    }
    return sum <= (double)mx_memory_available();
}

static void take(mx_compare_model *m, const mx_bench_result *result, int tests) {
    for (int i = 0; i < tests; i++) {
        const mx_bench_result *r = &result[i];
        if (!r->windows) continue;
        m->unsteady |= r->unsteady;
        if (r->test.prompt) {
            m->prompt = r->speed;
        } else {
            m->decode = r->speed;
            m->joules = r->joules;
            m->token_bytes = r->bytes;
        }
    }
}

/* The models of `of` [runs], round by round in turn. *failed: which of them has failed; -1: what all of them need. */
static mx_status measure_these(speeds *s, const int *of, int runs, int *failed, mx_error *error) {
    mx_bench_run run[MX_COMPARE_MOST];
    mx_bench_result result[MX_COMPARE_MOST][TESTS];
    mx_bench_machine machine[MX_COMPARE_MOST] = {0};
    mx_progress progress;
    *failed = -1;
    for (int k = 0; k < runs; k++)
        run[k] = (mx_bench_run){s->weights[of[k]], s->pool, s->precision, &machine[k], result[k]};
    mx_bench_options o = options_of(s, s->weights[of[0]]);
    o.progress = &progress;
    mx_progress_start(&progress, "measuring", 1, false);
    const mx_status status = mx_bench_measure(&o, run, runs, error);
    mx_progress_clear(&progress);
    for (int k = 0; k < runs && (!status || status == MX_CANCELLED); k++)
        take(&s->w->result->model[of[k]], result[k], s->tests);
    for (int k = 0; k < runs && status; k++)
        if (machine[k].failed) *failed = of[k];
    return status;
}

/* Models first ... last - 1 that are loaded. One that fails is given up, and the rest measured again without it. */
static mx_status measure(speeds *s, int first, int last, mx_error *error) {
    for (;;) {
        int of[MX_COMPARE_MOST], runs = 0, failed;
        for (int i = first; i < last; i++)
            if (s->weights[i] && is_wanted(s->w, i)) of[runs++] = i;
        if (!runs) return MX_OK;
        const mx_status status = measure_these(s, of, runs, &failed, error);
        if (!status || status == MX_CANCELLED) return status;
        if (failed >= 0) {
            give_up(s->w, &s->w->result->model[failed], error);
            continue;
        }
        for (int k = 0; k < runs; k++) give_up(s->w, &s->w->result->model[of[k]], error);
        return MX_OK;
    }
}

static mx_status measure_all(speeds *s, mx_error *error) {
    mx_compare *c = s->w->result;
    mx_status status = MX_OK;
    c->together = !c->gpu && fit_together(s);
    for (int i = 0; i < c->models && !status; i++) {
        if (!is_wanted(s->w, i)) continue;
        status = load(s, i, error);
        if (status && status != MX_CANCELLED) {
            give_up(s->w, &c->model[i], error);
            unload(s, i);
            status = MX_OK;
        }
        if (c->together) continue;
        if (!status) status = measure(s, i, i + 1, error);
        unload(s, i);
    }
    if (!status && c->together) status = measure(s, 0, c->models, error);
    for (int i = 0; i < c->models; i++) unload(s, i);
    return status;
}

/* What is measured with, and whose energy. */
static mx_status prepare(speeds *s, mx_error *error) {
    mx_compare *c = s->w->result;
    c->gpu = s->w->on.cuda;
    c->kv = s->w->kv->name;
    c->threads = mx_pool_threads(s->pool);
    c->precision = c->tier = c->machine = "";
    c->speed = true;
    if (c->gpu) {
        /* With several GPUs it is not known which of their counters is this one's. */
        if (mx_nvml_open(&s->nvml, NULL) && s->nvml.devices == 1) c->energy = MX_COMPARE_NVML;
        return MX_OK;
    }
    s->has_energy = mx_energy_open(&s->energy, "");
    if (s->has_energy) c->energy = MX_COMPARE_RAPL;
    const mx_status status = describe(s, error);
    return status ? status : mx_bandwidth_open(s->pool, &s->bandwidth, error);
}

mx_status mx_compare_measure(mx_compare_work *w, mx_error *error) {
    int wanted = 0;
    for (int i = 0; i < w->result->models; i++) wanted += is_wanted(w, i);
    if (!wanted) return MX_OK;
    speeds *s = calloc(1, sizeof *s);
    if (!s) return mx_out_of_memory(error);
    s->w = w;
    mx_status status = make_tests(s, error);
    if (!status) status = mx_pool_create(w->threads, &s->pool, error);
    if (!status) status = prepare(s, error);
    if (!status) status = measure_all(s, error);
    mx_bandwidth_close(&s->bandwidth);
    mx_nvml_close(&s->nvml);
    mx_pool_destroy(s->pool);
    free(s);
    return status;
}
