#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cpu.h"
#include "bench/nvml.h"
#include "commands/bench_report.h"
#include "commands/common.h"
#include "commands/models.h"
#include "commands/terminal.h"
#include "model/device.h"
#include "model/synthetic.h"
#include "plan/advice.h"

/* mxrun bench: how fast this machine runs a model, beside what its memory and its multipliers allow. */

enum {
    MOST_IN_LIST = 16,
    MOST_TESTS = MOST_IN_LIST * (1 + MOST_IN_LIST),
    MOST_STREAMS = 256,
    ENGINE_BATCH = 512,
    ROOM_BEHIND = 2
};

/* ---- options ----------------------------------------------------------------------------------------------------- */

static struct {
    char *model, *synthetic, *save, *prompts, *depths, *streams, *threads, *kv_type, *dense, *load, *numa, *quantize,
        *compare, *device, *gpu_memory;
    char **precision;
    int json, markdown;
} given;

enum { COUNT, LAYERS, SEED, REPETITIONS, BATCH, NUMBERS };
static mx_number numbers[NUMBERS];

static const struct poptOption options[] = {
    {"model", 'm', POPT_ARG_STRING, &given.model, 0,
     "The model: a name (\"mxrun list\"), a path, or ORG/NAME of the hub", "MODEL"},
    {NULL, 0, POPT_ARG_INCLUDE_TABLE, (void *)mx_hub_options, 0, NULL, NULL},
    {"synthetic", 0, POPT_ARG_STRING, &given.synthetic, 0,
     "Random weights instead: gpt-oss-20b, gpt-oss-120b, or the path of a config.json", "NAME"},
    {"device", 'd', POPT_ARG_STRING, &given.device, 0,
     "Where it runs: auto (default: a GPU that holds model and tests, else the CPU; the CPU too where an option is the "
     "CPU's: --threads, --load, --numa, --dense openblas, int8), cpu, cuda, or cuda:N",
     "WHERE"},
    {"gpu-memory", 0, POPT_ARG_STRING, &given.gpu_memory, 0, "Of the GPU's memory at most so much: 20G", "SIZE"},
    {"layers", 0, POPT_ARG_STRING, &numbers[LAYERS].text, 0, "Only the first N layers of the synthetic model", "N"},
    {"seed", 0, POPT_ARG_STRING, &numbers[SEED].text, 0, "Of random weights, tokens, keys and values (default 1)", "N"},
    {"save", 0, POPT_ARG_STRING, &given.save, 0, "Write the synthetic model to this new folder instead of measuring it",
     "FOLDER"},
    {"prompt", 'p', POPT_ARG_STRING, &given.prompts, 0, "Tokens of prompts, 0: none (default 512)", "N,..."},
    {"tokens", 'n', POPT_ARG_STRING, &numbers[COUNT].text, 0,
     "Tokens that each stream of a decode test generates, 0: none (default 64)", "N"},
    {"depth", 0, POPT_ARG_STRING, &given.depths, 0,
     "Positions before what is decoded (default 0,4096); prompts begin at 0", "N,..."},
    {"streams", 0, POPT_ARG_STRING, &given.streams, 0, "Sequences decoded in one step (default 1)", "N,..."},
    {"threads", 't', POPT_ARG_STRING, &given.threads, 0, "Threads to compute with (default: one per core)", "N,..."},
    {"precision", 0, POPT_ARG_ARGV, &given.precision, 0,
     "Of activations in products: fp32, bf16x2, mixed, bf16 or int8; may be repeated (default: see mxrun info)",
     "NAME"},
    {"dense", 0, POPT_ARG_STRING, &given.dense, 0,
     "Who multiplies attention's matrices: own (default) or openblas, for processors without fast kernels", "WHO"},
    {"kv-type", 0, POPT_ARG_STRING, &given.kv_type, 0, "Numbers in the KV cache: f16 (default), bf16 or f32", "TYPE"},
    {"load", 0, POPT_ARG_STRING, &given.load, 0,
     "Weights of -m: map (default: page cache, the faster start), read (a copy from the disk) or lazy (mapped, read "
     "when used)",
     "WAY"},
    {"quantize-experts", 0, POPT_ARG_STRING, &given.quantize, 0,
     "Round experts of -m that are BF16 when loading: mxfp4, or mxfp4:RECIPE", "FORMAT"},
    {"numa", 0, POPT_ARG_STRING, &given.numa, 0,
     "Weights on several memory nodes: auto (default), off, interleave, or spread: each node its part", "HOW"},
    {"batch", 0, POPT_ARG_STRING, &numbers[BATCH].text, 0,
     "Rows of a prompt's step (default 512, on a GPU 2048, as everywhere in mxrun)", "N"},
    {"repetitions", 'r', POPT_ARG_STRING, &numbers[REPETITIONS].text, 0,
     "How often each test runs, in turn with the others (default 3)", "N"},
    {"markdown", 0, POPT_ARG_NONE, &given.markdown, 0, "Tables in Markdown", NULL},
    {"json", 0, POPT_ARG_NONE, &given.json, 0, "One JSON object instead of the tables", NULL},
    {"compare", 0, POPT_ARG_STRING, &given.compare, 0, "Beside each speed its ratio to this earlier --json run",
     "FILE"},
    POPT_TABLEEND,
};

static void reset_options(void) {
    memset(&given, 0, sizeof given);
    numbers[COUNT] = (mx_number){"-n", NULL, 64, 0, 100000, true, false};
    numbers[LAYERS] = (mx_number){"--layers", NULL, 0, 1, MX_MAX_LAYERS, true, false};
    numbers[SEED] = (mx_number){"--seed", NULL, 1, 0, 9007199254740992.0, true, false};
    numbers[REPETITIONS] = (mx_number){"-r", NULL, 3, 1, 1000, true, false};
    numbers[BATCH] = (mx_number){"--batch", NULL, ENGINE_BATCH, 1, 65536, true, false};
}

typedef struct list {
    int value[MOST_IN_LIST], count;
} list;

/* "1,2,8"; `text` NULL: what `out` holds already. false: the user has been told. */
static bool read_list(const mx_command *self, const char *option, const char *text, int low, int high, list *out) {
    if (!text) return true;
    out->count = 0;
    for (const char *at = text;; at++) {
        char *end;
        errno = 0;
        const long value = strtol(at, &end, 10);
        const bool number = *at >= '0' && *at <= '9' && !errno && (*end == ',' || !*end);
        if (!number || value < low || value > high || out->count == MOST_IN_LIST) {
            mx_command_usage(self, "%s %s: expected up to %d whole numbers from %d to %d with commas between them",
                             option, text, (int)MOST_IN_LIST, low, high);
            return false;
        }
        out->value[out->count++] = (int)value;
        if (!*end) return true;
        at = end;
    }
}

typedef struct plan {
    list prompts, depths, streams, threads;
    const mx_kv_name *kv;
    mx_load_way load;
    mx_rounding rounding; /* what --quantize-experts names */
    mx_numa numa;
    mx_device_choice on;
    uint64_t gpu_memory;
    int batch; /* rows of a prompt's step, on the device that is taken */
    mx_precisions precision[MOST_IN_LIST];
    int precisions;
    mx_bench_test test[MOST_TESTS];
    int tests;
} plan;

static bool read_precisions(const mx_command *self, plan *p) {
    mx_error error;
    for (; given.precision && given.precision[p->precisions]; p->precisions++) {
        if (p->precisions == MOST_IN_LIST) {
            mx_command_usage(self, "--precision: at most %d times", (int)MOST_IN_LIST);
            return false;
        }
        if (mx_precisions_parse(given.precision[p->precisions], &p->precision[p->precisions], &error)) {
            mx_command_usage(self, "--precision: %s", error.text);
            return false;
        }
    }
    return true;
}

static bool read_device(const mx_command *self, plan *p) {
    const mx_device_given device = {.device = given.device,
                                    .gpu_memory = given.gpu_memory,
                                    .load = given.load,
                                    .numa = given.numa,
                                    .dense = given.dense,
                                    .threads = given.threads,
                                    .precision = p->precision,
                                    .precisions = p->precisions};
    const char *name;
    return mx_device_find(self, &device, &p->on, &name, &p->gpu_memory);
}

static int batch_of(bool gpu) {
    return numbers[BATCH].text ? (int)numbers[BATCH].value : gpu ? MX_GPU_BATCH_TOKENS : ENGINE_BATCH;
}

/* Everything that can be said about the options before a model is opened. */
static bool check_options(const mx_command *self, plan *p) {
    *p = (plan){.prompts = {{512}, 1}, .depths = {{0, 4096}, 2}, .streams = {{1}, 1}, .threads = {{0}, 1}};
    if (!given.model == !given.synthetic) {
        mx_command_usage(self, given.model ? "give -m or --synthetic, not both" : "give -m MODEL or --synthetic NAME");
        return false;
    }
    for (int i = 0; i < NUMBERS; i++)
        if (!mx_number_check(self, &numbers[i])) return false;
    if (given.model && (given.save || numbers[LAYERS].text)) {
        mx_command_usage(self, "%s is for --synthetic models", given.save ? "--save" : "--layers");
        return false;
    }
    if (given.synthetic && given.load) {
        mx_command_usage(self, "--load is for models in files (-m)");
        return false;
    }
    if (given.load && !mx_load_find(self, given.load, &p->load)) return false;
    if (given.quantize && !mx_quantize_find(self, given.quantize, &p->rounding)) return false;
    if (given.numa && !mx_numa_find(self, given.numa, &p->numa)) return false;
    if (given.json && given.markdown) {
        mx_command_usage(self, "give --json or --markdown, not both");
        return false;
    }
    if (given.dense && strcmp(given.dense, "own") != 0 && strcmp(given.dense, "openblas") != 0) {
        mx_command_usage(self, "--dense %s: expected own or openblas", given.dense);
        return false;
    }
    if (!read_precisions(self, p) || !read_device(self, p)) return false;
    p->batch = batch_of(false);
    p->kv = given.kv_type ? mx_kv_find(self, given.kv_type) : &mx_kv_names[0];
    return p->kv && read_list(self, "-p", given.prompts, 0, 1 << 24, &p->prompts) &&
           read_list(self, "--depth", given.depths, 0, 1 << 24, &p->depths) &&
           read_list(self, "--streams", given.streams, 1, MOST_STREAMS, &p->streams) &&
           read_list(self, "--threads", given.threads, 1, MX_MOST_THREADS, &p->threads);
}

/* ---- the tests --------------------------------------------------------------------------------------------------- */

static mx_status add_test(plan *p, const mx_config *c, mx_bench_test t, bool asked_for, mx_error *error) {
    if ((int64_t)t.depth + t.tokens + ROOM_BEHIND > c->max_positions) {
        if (!asked_for) return MX_OK;
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s %d and %d tokens behind it: the model has %d positions",
                       t.prompt ? "a prompt at" : "--depth", t.depth, t.tokens, c->max_positions);
    }
    p->test[p->tests++] = t;
    return MX_OK;
}

static mx_status make_tests(plan *p, const mx_config *c, mx_error *error) {
    const int count = (int)numbers[COUNT].value;
    for (int i = 0; i < p->prompts.count; i++) {
        const mx_bench_test t = {true, 0, 1, p->prompts.value[i]};
        if (!t.tokens) continue;
        mx_status status = add_test(p, c, t, given.prompts != NULL, error);
        if (status) return status;
    }
    for (int s = 0; s < p->streams.count && count; s++)
        for (int d = 0; d < p->depths.count; d++) {
            const mx_bench_test t = {false, p->depths.value[d], p->streams.value[s], count};
            mx_status status = add_test(p, c, t, given.depths != NULL || numbers[COUNT].text != NULL, error);
            if (status) return status;
        }
    return p->tests ? MX_OK : mx_fail(error, MX_INVALID_ARGUMENT, "no test is left: -p and -n are 0");
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

/* The activations of one step, about: fp32 and packed copies. */
static double activation_bytes(const mx_config *c, int rows, int wanted) {
    const double heads = (double)c->heads * c->head_dim, widest = heads > c->hidden ? heads : c->hidden;
    const double row = 8 * widest + c->top_k * (2.0 * c->intermediate + c->hidden) + c->experts;
    return 4 * (rows * row + (double)wanted * c->vocab);
}

/* Each number of threads with each precision. */
static int runs_of(const plan *p) {
    return p->threads.count * (p->precisions ? p->precisions : 1);
}

static int most_streams(const plan *p) {
    int most = 1;
    for (int i = 0; i < p->tests; i++) most = p->test[i].streams > most ? p->test[i].streams : most;
    return most;
}

/* `weights`: bytes that will be taken for them; mapped files take none. */
static mx_status check_memory(const plan *p, const mx_config *c, double weights, mx_error *error) {
    const mx_weights shape = {.config = *c};
    const int batch = p->batch, streams = most_streams(p), runs = runs_of(p);
    const mx_bench_options o = {
        .weights = &shape, .kv = p->kv->format, .batch = batch, .test = p->test, .tests = p->tests};
    const double kv = runs * (double)mx_bench_memory(&o), buffer = (double)mx_bandwidth_bytes(),
                 rest = runs * activation_bytes(c, batch > streams ? batch : streams, streams),
                 sum = weights + kv + buffer + rest, available = (double)mx_memory_available();
    if (sum <= available) return MX_OK;
    return mx_fail(error, MX_NO_MEMORY,
                   "%.1f GB of memory are needed, %.1f GB are free: weights %.1f, keys and values %.1f, activations "
                   "%.1f, a buffer to measure the bandwidth %.1f; take less --depth or fewer --streams%s%s",
                   sum / 1e9, available / 1e9, weights / 1e9, kv / 1e9, rest / 1e9, buffer / 1e9,
                   given.synthetic ? ", or fewer --layers" : "",
                   runs > 1 ? ", or one --threads and --precision at a time" : "");
}

/* ---- the model --------------------------------------------------------------------------------------------------- */

static mx_status read_configuration(mx_config *c, char folder[4096], mx_error *error) {
    if (given.synthetic) return mx_synthetic_config(given.synthetic, (int)numbers[LAYERS].value, c, error);
    mx_status status = mx_resolve_model(given.model, folder, 4096, error);
    return status ? status : mx_config_read(folder, c, error);
}

static mx_status open_weights(const plan *p, const mx_config *c, const char *folder, bool told, mx_pool *pool,
                              mx_weights **out, mx_error *error) {
    if (!given.synthetic) {
        mx_loading loading = {0};
        const mx_load_options load = {.way = p->load,
                                      .numa = p->numa,
                                      .quantize_experts = p->rounding,
                                      .told = told,
                                      .progress = mx_loading_shown,
                                      .user = &loading,
                                      .stop = &mx_interrupted};
        mx_status status = mx_weights_load(folder, &load, pool, out, error);
        mx_loading_end(&loading);
        return status;
    }
    mx_progress progress;
    mx_progress_start(&progress, "making weights", (double)mx_synthetic_bytes(c), true);
    mx_status status =
        mx_synthetic_weights(c, (uint64_t)numbers[SEED].value, pool, p->numa, &progress, &mx_interrupted, out, error);
    mx_progress_clear(&progress);
    return status;
}

static mx_status save(const mx_config *c, mx_error *error) {
    mx_pool *pool;
    mx_progress progress;
    mx_status status = mx_pool_create(0, &pool, error);
    if (status) return status;
    const double bytes = (double)mx_synthetic_bytes(c), start = mx_seconds();
    mx_progress_start(&progress, "writing", bytes, true);
    status = mx_synthetic_save(c, (uint64_t)numbers[SEED].value, pool, &progress, &mx_interrupted, given.save, error);
    mx_progress_clear(&progress);
    mx_pool_destroy(pool);
    if (status) return status;
    const double seconds = mx_seconds() - start;
    printf("%s: %.2f GB of random weights, %d layers, in %.1f s (%.0f MB/s)\n", given.save, bytes / 1e9, c->layers,
           seconds, bytes / seconds / 1e6);
    return MX_OK;
}

static double bytes_of(const mx_checkpoint *ck) {
    double sum = 0;
    for (int i = 0; i < mx_checkpoint_count(ck); i++) sum += (double)mx_checkpoint_at(ck, i)->bytes;
    return sum;
}

/* ---- running ----------------------------------------------------------------------------------------------------- */

typedef struct bench {
    plan plan;
    mx_config config;
    char folder[4096];
    mx_weights *weights;
    mx_device device;
    mx_bandwidth bandwidth;
    mx_energy energy;
    mx_nvml nvml;
    mx_bench_report report;
    mx_bytes before_text;
    mx_json_document *before;
} bench;

static mx_status read_before(bench *b, mx_error *error) {
    if (!given.compare) return MX_OK;
    mx_status status = mx_read_file(given.compare, (size_t)64 << 20, &b->before_text, error);
    if (!status)
        status = mx_json_parse(given.compare, b->before_text.data ? b->before_text.data : "", b->before_text.size,
                               &b->before, error);
    if (!status) status = mx_bench_before_check(given.compare, mx_json_root(b->before), error);
    if (status) return status;
    b->report.before = mx_json_root(b->before);
    b->report.before_name = given.compare;
    return MX_OK;
}

static mx_status measure_runs(bench *b, const mx_bench_run *run, int runs, mx_error *error) {
    mx_progress progress;
    mx_progress_start(&progress, "measuring", 1, false);
    const bool gpu = b->device.plugin != NULL;
    const mx_bench_options o = {.weights = b->weights,
                                .device = gpu ? &b->device : NULL,
                                .nvml = gpu && b->nvml.devices == 1 ? &b->nvml : NULL,
                                .openblas = b->report.openblas,
                                .kv = b->plan.kv->format,
                                .batch = b->plan.batch,
                                .test = b->plan.test,
                                .tests = b->plan.tests,
                                .repetitions = (int)numbers[REPETITIONS].value,
                                .seed = (uint64_t)numbers[SEED].value,
                                .bandwidth = &b->bandwidth,
                                .energy = b->report.energy && !gpu ? &b->energy : NULL,
                                .progress = &progress,
                                .stop = &mx_interrupted};
    mx_status status = mx_bench_measure(&o, run, runs, error);
    mx_progress_clear(&progress);
    const double memory = (double)mx_memory_peak() - (double)b->bandwidth.buffer.size;
    if (memory > b->report.memory) b->report.memory = memory;
    return status;
}

/* Every number of threads with every precision. */
static mx_status run_all(bench *b, mx_error *error) {
    const plan *p = &b->plan;
    mx_bench_report *r = &b->report;
    mx_pool *pool[MOST_IN_LIST] = {NULL};
    mx_bench_run run[MOST_IN_LIST * MOST_IN_LIST];
    const int runs = runs_of(p);
    r->tests = p->tests;
    r->run = calloc((size_t)runs, sizeof *r->run);
    mx_status status = r->run ? MX_OK : mx_out_of_memory(error);
    for (int t = 0; t < p->threads.count && !status; t++)
        status = mx_pool_create_on(p->threads.value[t], p->numa, &pool[t], error);
    for (int k = 0; k < runs && !status; k++) {
        mx_bench_run_report *out = &r->run[r->runs++];
        out->result = calloc((size_t)p->tests, sizeof *out->result);
        if (!out->result) status = mx_out_of_memory(error);
        run[k] = (mx_bench_run){.pool = pool[k / p->precisions],
                                .precision = p->precision[k % p->precisions],
                                .machine = &out->machine,
                                .result = out->result};
        out->threads = mx_pool_threads(run[k].pool);
    }
    if (!status) status = measure_runs(b, run, runs, error);
    for (int k = 0; k < r->runs; k++) mx_precisions_name(r->run[k].precision, &r->run[k].machine.precision);
    for (int t = 0; t < p->threads.count; t++) mx_pool_destroy(pool[t]);
    return status;
}

/* Of weights in files, before they are read. */
static bool warn_of_memory(const bench *b) {
    const plan *p = &b->plan;
    const mx_weights shape = {.config = b->config};
    const mx_bench_options o = {
        .weights = &shape, .kv = p->kv->format, .batch = p->batch, .test = p->test, .tests = p->tests};
    if (given.synthetic || p->load == MX_LOAD_LAZY) return false;
    return mx_plan_warn(&(mx_plan_load){.path = b->folder,
                                        .kv_memory = runs_of(p) * (double)mx_bench_memory(&o),
                                        .kv = p->kv->format,
                                        .more = (double)mx_bandwidth_bytes(),
                                        .form = mx_experts_form(p->rounding),
                                        .copied = p->load == MX_LOAD_READ});
}

/* ---- on a GPU ---------------------------------------------------------------------------------------------------- */

static mx_bench_options shape_of(const bench *b) {
    const plan *p = &b->plan;
    return (mx_bench_options){
        .weights = b->weights, .kv = p->kv->format, .batch = p->batch, .test = p->test, .tests = p->tests};
}

/* What the backend of the k-th precision is asked for. `chosen`: by the user; else it is the GPU's default. */
static mx_backend_options backend_of(const plan *p, bool chosen, int k) {
    const int streams = most_streams(p);
    return (mx_backend_options){.kv_format = p->kv->format,
                                .max_rows = p->batch > streams ? p->batch : streams,
                                .max_wanted = streams,
                                .precision = chosen ? &p->precision[k] : NULL};
}

/* All runs have their scratch, keys and values there at once. */
static mx_status check_gpu_memory(bench *b, bool chosen, mx_error *error) {
    const mx_bench_options o = shape_of(b);
    const int runs = runs_of(&b->plan);
    mx_cuda_memory all = {0};
    for (int k = 0; k < runs; k++) {
        const mx_backend_options shape = backend_of(&b->plan, chosen, k);
        mx_cuda_memory one;
        mx_status status = b->device.plugin->memory(b->weights, &shape, &one, error);
        if (status) return status;
        all.weights = one.weights;
        all.scratch += one.scratch;
    }
    const uint64_t kv = (uint64_t)runs * mx_bench_memory(&o);
    const double own = (double)MX_CUDA_RESERVE;
    b->report.gpu_memory = (double)(all.weights + all.scratch + kv);
    mx_device_tell(&b->device, b->device.info.memory_free, &all, kv, "all tests");
    if (kv <= mx_device_room(&b->device, &all)) return MX_OK;
    return mx_fail(error, MX_NO_MEMORY,
                   "%s: %.1f GB are needed, %.1f GB are free: weights %.1f, keys and values %.1f, scratch %.1f, CUDA's "
                   "own %.1f; take less --depth or fewer --streams%s%s",
                   b->device.info.name, (b->report.gpu_memory + own) / 1e9, (double)b->device.budget / 1e9,
                   (double)all.weights / 1e9, (double)kv / 1e9, (double)all.scratch / 1e9, own / 1e9,
                   given.synthetic ? ", or fewer --layers" : "", runs > 1 ? ", or one --precision at a time" : "");
}

/* Weights on the GPU, straight from the files or made there. */
static mx_status load_gpu(bench *b, bool chosen, mx_error *error) {
    mx_loading loading = {.label = given.synthetic ? "making weights" : NULL};
    const mx_cuda_load_options load = {.synthetic = given.synthetic != NULL,
                                       .seed = (uint64_t)numbers[SEED].value,
                                       .progress = mx_loading_shown,
                                       .user = &loading,
                                       .stop = &mx_interrupted};
    mx_status status = check_gpu_memory(b, chosen, error);
    if (!status) status = mx_device_load(&b->device, b->weights, load, error);
    mx_loading_end(&loading);
    b->report.load_seconds = b->device.loaded.seconds;
    return status;
}

/* b->device.plugin stays NULL where the CPU is taken. `chosen`: the user named precisions. */
static mx_status open_gpu(bench *b, bool chosen, mx_pool *pool, mx_error *error) {
    plan *p = &b->plan;
    if (!mx_device_wanted(&p->on)) return MX_OK;
    p->batch = batch_of(true);
    const mx_backend_options shape = backend_of(p, chosen, 0);
    const mx_load_options lazy = {.way = MX_LOAD_LAZY, .quantize_experts = p->rounding};
    mx_error failed = {0};
    mx_status status = given.synthetic ? mx_synthetic_shape(&b->config, &b->weights, error)
                                       : mx_weights_load(b->folder, &lazy, pool, &b->weights, error);
    if (!status) status = mx_device_open(&p->on, p->gpu_memory, b->weights, &shape, &b->device, error);
    if (!status && b->device.plugin) {
        status = load_gpu(b, chosen, &failed);
        if (!status) return MX_OK;
        if (mx_device_fall_back(&b->device, status, &failed))
            status = MX_OK;
        else
            *error = failed;
    }
    p->batch = batch_of(false);
    mx_weights_close(b->weights);
    b->weights = NULL;
    b->report.gpu_memory = 0;
    return status;
}

/* ---- preparing --------------------------------------------------------------------------------------------------- */

/* Weights and a buffer to measure the bandwidth with, where the CPU computes. */
static mx_status open_cpu(bench *b, mx_pool *pool, mx_error *error) {
    const plan *p = &b->plan;
    const double weights = given.synthetic ? (double)mx_synthetic_bytes(&b->config) : 0;
    mx_status status = check_memory(p, &b->config, weights, error);
    const double start = mx_seconds();
    if (!status) status = open_weights(p, &b->config, b->folder, warn_of_memory(b), pool, &b->weights, error);
    b->report.load_seconds = mx_seconds() - start;
    b->report.memory = (double)mx_memory_peak();
    if (!status && p->load == MX_LOAD_READ) status = check_memory(p, &b->config, 0, error); /* the rest */
    if (!status) status = mx_bandwidth_open(pool, &b->bandwidth, error);
    return status;
}

/* Pages, buffer and weights are there; what is missing is said in one message before anything slow begins. */
static mx_status prepare(bench *b, mx_error *error) {
    const mx_kernels *kernels;
    mx_pool *pool;
    mx_status status = make_tests(&b->plan, &b->config, error);
    if (!status) status = read_before(b, error);
    if (!status) status = mx_kernels_get(NULL, &kernels, error);
    if (!status) status = mx_pool_create_on(0, b->plan.numa, &pool, error);
    if (status) return status;
    const bool precisions = b->plan.precisions > 0;
    if (!precisions) b->plan.precisions = 1;
    status = open_gpu(b, precisions, pool, error);
    if (!precisions) b->plan.precision[0] = mx_device_default_precision(&b->device, kernels);
    if (!status && !b->device.plugin) status = open_cpu(b, pool, error);
    mx_pool_destroy(pool);
    if (status) return status;
    const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    b->report.model = given.synthetic ? given.synthetic : given.model;
    b->report.synthetic = given.synthetic != NULL;
    b->report.seed = (uint64_t)numbers[SEED].value;
    b->report.layers = b->config.layers;
    b->report.weight_bytes = bytes_of(b->weights->checkpoint);
    b->report.kv = b->plan.kv->name;
    b->report.openblas = given.dense && !strcmp(given.dense, "openblas");
    b->report.device = b->device.info.name;
    b->report.in_caches = cache > 0 && !b->device.plugin ? (double)cache : 0;
    b->report.energy = mx_energy_open(&b->energy, "");
    if (mx_nvml_open(&b->nvml, NULL)) b->report.gpus = b->nvml.devices;
    if (b->device.plugin) b->report.energy = b->nvml.devices == 1;
    return MX_OK;
}

static mx_status print(const bench *b, mx_error *error) {
    mx_bytes out = {0};
    const bool ok = given.json ? mx_bench_json(&out, &b->report) : mx_bench_table(&out, &b->report, given.markdown);
    mx_status status = ok ? mx_write_stdout(&out, error) : mx_out_of_memory(error);
    mx_bytes_free(&out);
    return status;
}

static void clean_up(bench *b) {
    for (int i = 0; i < b->report.runs; i++) free(b->report.run[i].result);
    free(b->report.run);
    mx_bandwidth_close(&b->bandwidth);
    mx_nvml_close(&b->nvml);
    mx_device_close(&b->device);
    mx_weights_close(b->weights);
    mx_json_free(b->before);
    mx_bytes_free(&b->before_text);
}

/* How many layers the model has when --layers does not cut it. */
static int whole_layers(const mx_config *c) {
    mx_config whole;
    if (given.synthetic && !mx_synthetic_config(given.synthetic, 0, &whole, NULL)) return whole.layers;
    return c->layers;
}

static bool anything_measured(const mx_bench_report *r) {
    for (int run = 0; run < r->runs; run++)
        for (int i = 0; i < r->tests; i++)
            if (r->run[run].result[i].windows) return true;
    return false;
}

/* Measures and prints; what was measured before Ctrl-C is printed, too. */
static mx_status measure(bench *b, mx_error *error) {
    mx_status status = prepare(b, error);
    if (status) return status;
    b->report.all_layers = whole_layers(&b->config);
    status = run_all(b, error);
    if (status && (status != MX_CANCELLED || !anything_measured(&b->report))) return status;
    mx_error second;
    mx_status printed = print(b, &second);
    if (!printed || status) return status;
    *error = second;
    return printed;
}

static int run(const mx_command *self, int argc, const char **argv) {
    static bench b;
    const char *const *positional = NULL;
    int code = MX_EXIT_OK;
    memset(&b, 0, sizeof b);
    reset_options();
    if (!mx_command_parse(self, options, argc, argv, &positional, &code)) return code;
    if (positional && positional[0]) return mx_command_usage(self, "unexpected argument \"%s\"", positional[0]);
    if (!check_options(self, &b.plan)) return MX_EXIT_USAGE;
    mx_error error = {0};
    mx_interrupt_catch(true);
    mx_status status = read_configuration(&b.config, b.folder, &error);
    if (!status) status = given.save ? save(&b.config, &error) : measure(&b, &error);
    mx_interrupt_release();
    clean_up(&b);
    if (!status && given.save && fflush(stdout) != 0)
        status = mx_fail(&error, MX_IO, "cannot write to stdout: %s", strerror(errno));
    return status ? mx_command_fail(self, &error) : MX_EXIT_OK;
}

const mx_command mx_command_bench = {
    .name = "bench",
    .arguments = "-m MODEL | --synthetic NAME [OPTION]...",
    .summary = "Measure how fast this machine runs a model",
    .description = "Measures prompts and decoding, and beside each speed its floor: what this machine's\n"
                   "memory and multipliers allow at most, measured in the same run. A decoded token is\n"
                   "bound by the memory it reads, a prompt by its multiplications.\n"
                   "\n"
                   "Without a model at hand, --synthetic makes one of random weights with the exact\n"
                   "shapes in memory; --save writes it to a folder.\n"
                   "\n"
                   "Examples:\n"
                   "  $ mxrun bench -m stories\n"
                   "  $ mxrun bench --synthetic gpt-oss-20b --layers 4\n"
                   "  $ mxrun bench -m gpt-oss-20b -p 512,2048 -n 128 --depth 0,4096,32768 --streams 1,8\n"
                   "  $ mxrun bench -m gpt-oss-20b --json > before.json\n"
                   "  $ mxrun bench -m gpt-oss-20b --compare before.json",
    .run = run,
};
