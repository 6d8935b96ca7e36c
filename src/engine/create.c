/* Models and engines out of files: weights, threads, memory for keys and values, the backend of CPU or GPU. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/log.h"
#include "engine/engine_internal.h"
#include "engine/gpu.h"
#include "engine/model_parts.h"
#include "engine/prefix_store.h"
#include "model/numerics.h"
#include "model/synthetic.h"

_Static_assert(sizeof((mx_engine_info *)0)->precision == MX_PRECISION_NAME, "a precision's name fits");

enum {
    BATCH_TOKENS = 512,
    BATCH_MOST = 65536,
    RUNNING = 64,
    RUNNING_MOST = 4096,
    SCORED = 64, /* rows in one step whose logits are kept beyond one for each request: of drafts, of scored prompts */
    DRAFT_TOKENS = 4,
    DRAFT_MOST = 64,
};

static const uint64_t PREFIX_CACHE_BYTES = 10000000000;
static const double LONG = 3; /* seconds after which somebody wants to know what took them */

struct mx_model {
    mx_weights *weights;
    uint64_t weight_bytes;
    uint64_t mapped_bytes; /* of them, in the page cache */
    mx_numa numa;
    bool made;     /* of random weights; on a GPU there */
    uint64_t seed; /* of them */
    bool told;     /* of what may not fit */
    mx_device device;
    pthread_mutex_t creating; /* of one engine at a time: the first loads the weights to a GPU, or goes to the CPU */
    bool settled;             /* there was an engine: the device stays what it is */
};

void mx_model_close(mx_model *model) {
    if (!model) return;
    mx_device_close(&model->device);
    mx_weights_close(model->weights);
    pthread_mutex_destroy(&model->creating);
    free(model);
}

const mx_config *mx_model_config(const mx_model *model) {
    return &model->weights->config;
}

const mx_weights *mx_model_weights(const mx_model *model) {
    return model->weights;
}

mx_sampling mx_model_sampling(const mx_model *model) {
    const mx_config *c = mx_model_config(model);
    mx_sampling sampling = MX_SAMPLING_DEFAULT;
    sampling.temperature = c->temperature;
    sampling.top_p = c->top_p;
    sampling.top_k = c->sample_top_k;
    return sampling;
}

static uint64_t less(uint64_t a, uint64_t b) {
    return a > b ? a - b : 0;
}

/* Most of what is free once the weights and what steps compute in (`scratch`) are in memory, but not more than all
 * requests together can use; where they do not even fit, an eighth. Mapped weights count as free memory, whether or not
 * they have been read yet, for the kernel can drop them: keys and values must not make it do so. */
static uint64_t default_memory(const mx_model *model, uint64_t scratch, uint64_t useful) {
    const uint64_t available = mx_memory_available(), beside = less(mx_memory_beside(model->mapped_bytes), scratch);
    const uint64_t least = (uint64_t)256 << 20, reserve = available / 10 > least ? available / 10 : least;
    const uint64_t eighth = (scratch < available ? available - scratch : available) / 8;
    const uint64_t memory = beside > reserve + eighth ? beside - reserve : eighth;
    return memory < useful ? memory : useful;
}

/* A context that the user chose is not held to that guess: it may take what is free, with a warning where the weights
 * will then be read from the disk again and again. */
static mx_status memory_for(const mx_model *model, uint64_t page_bytes, int64_t context, const mx_engine_parts *parts,
                            uint64_t scratch, uint64_t *out, mx_error *error) {
    const mx_config *config = mx_model_config(model);
    const bool chosen = context > 0 && context <= config->max_positions; /* more is refused by the plan */
    const int64_t most = chosen ? context : config->max_positions;
    const uint64_t needed = (uint64_t)mx_kv_pages_needed(config, most, parts->batch_tokens) * page_bytes;
    *out = default_memory(model, scratch, needed * (uint64_t)parts->max_running);
    if (!chosen) return MX_OK;
    if (needed <= *out) return MX_OK;
    const uint64_t available = mx_memory_available(), beside = less(mx_memory_beside(model->mapped_bytes), scratch);
    const double mib = 0x1p-20;
    if (needed > available)
        return mx_fail(
            error, MX_NO_MEMORY,
            "a context of %lld tokens needs %.1f MiB for its KV cache; %.1f MiB of memory is free now, and the "
            "weights want %.1f MiB of it: choose a smaller context or, with an F32 cache, a 16-bit one, or "
            "end other programs",
            (long long)context, (double)needed * mib, (double)available * mib, (double)model->weight_bytes * mib);
    if (needed > beside && !model->told)
        mx_log(
            MX_LOG_WARNING,
            "a context of %lld tokens takes %.1f MiB: of the %.1f MiB of memory that is free now it leaves less than "
            "the weights' %.1f MiB, which makes every token slow; a smaller context is faster",
            (long long)context, (double)needed * mib, (double)available * mib, (double)model->weight_bytes * mib);
    *out = needed;
    return MX_OK;
}

static mx_status check_options(const mx_engine_options *o, mx_error *error) {
    if (o->threads < 0) return mx_fail(error, MX_INVALID_ARGUMENT, "%d threads: expected 0 (all) or more", o->threads);
    if (o->batch_tokens < 0 || o->batch_tokens > BATCH_MOST)
        return mx_fail(error, MX_INVALID_ARGUMENT, "batch_tokens %d: expected 1 to %d", o->batch_tokens, BATCH_MOST);
    if (o->max_running < 0 || o->max_running > RUNNING_MOST)
        return mx_fail(error, MX_INVALID_ARGUMENT, "max_running %d: expected 1 to %d", o->max_running, RUNNING_MOST);
    if (o->scored_rows < 0 || o->scored_rows > BATCH_MOST)
        return mx_fail(error, MX_INVALID_ARGUMENT, "scored_rows %d: expected 1 to %d", o->scored_rows, BATCH_MOST);
    if (!(o->step_seconds >= 0))
        return mx_fail(error, MX_INVALID_ARGUMENT, "step_seconds %g: expected 0 or more", o->step_seconds);
    if (o->speculation != MX_SPECULATE_AUTO && o->speculation != MX_SPECULATE_OFF && o->speculation != MX_SPECULATE_ON)
        return mx_fail(error, MX_INVALID_ARGUMENT, "speculation %d: expected AUTO, OFF or ON", (int)o->speculation);
    if (o->draft_tokens < 0 || o->draft_tokens > DRAFT_MOST)
        return mx_fail(error, MX_INVALID_ARGUMENT, "draft_tokens %d: expected 1 to %d", o->draft_tokens, DRAFT_MOST);
    if (o->boundary_count < 0 || (o->boundary_count > 0 && !o->boundary))
        return mx_fail(error, MX_INVALID_ARGUMENT, "boundary_count %d without tokens", o->boundary_count);
    if (o->kv_type != MX_KV_F16 && o->kv_type != MX_KV_F32 && o->kv_type != MX_KV_BF16)
        return mx_fail(error, MX_INVALID_ARGUMENT, "KV type %d: expected F16, F32 or BF16", (int)o->kv_type);
    return MX_OK;
}

static const mx_format formats[] = {[MX_KV_F16] = MX_F16, [MX_KV_F32] = MX_F32, [MX_KV_BF16] = MX_BF16};

/* Steps and backend of an engine with options `o`. `precision`: in force, NULL: the backend's default. */
static void shape_of(const mx_engine_options *o, bool gpu, const mx_precisions *precision, mx_engine_parts *parts,
                     mx_backend_options *backend) {
    parts->batch_tokens = o->batch_tokens ? o->batch_tokens : gpu ? MX_GPU_BATCH_TOKENS : BATCH_TOKENS;
    parts->max_running = o->max_running ? o->max_running : RUNNING;
    /* Every wanted row is a row: no step has more of them than tokens. */
    parts->max_wanted = parts->max_running + (o->scored_rows ? o->scored_rows : SCORED);
    if (parts->max_wanted > parts->batch_tokens) parts->max_wanted = parts->batch_tokens;
    *backend = (mx_backend_options){.kv_format = formats[o->kv_type],
                                    .max_rows = parts->batch_tokens,
                                    .max_wanted = parts->max_wanted,
                                    .precision = precision,
                                    .openblas = o->openblas};
}

/* ---- models ------------------------------------------------------------------------------------------------------ */

/* Takes the device if the choice is one that holds the model and, chosen automatically, has room for the engine that
 * options->engine describes. */
static mx_status choose_gpu(mx_model *model, const mx_device_choice *choice, const mx_load_options *options,
                            mx_error *error) {
    const mx_engine_options none = {0}, *o = options->engine ? options->engine : &none;
    mx_precisions precision;
    mx_engine_parts parts = {0};
    mx_backend_options backend;
    mx_error no_room = {0};
    mx_status status = check_options(o, error);
    if (!status && o->precision) status = mx_precisions_parse(o->precision, &precision, error);
    if (status) return status;
    shape_of(o, true, o->precision ? &precision : NULL, &parts, &backend);
    status = mx_device_open(choice, options->gpu_memory, model->weights, &backend, &model->device, error);
    if (status || !model->device.plugin || !choice->automatic) return status;
    status = mx_gpu_plan(&model->device, model->weights, o, &backend, parts.batch_tokens, parts.max_running, false,
                         &parts.plan, &no_room);
    if (status) mx_device_fall_back(&model->device, status, &no_room); /* other errors come back with the engine */
    return MX_OK;
}

/* Opens the weights where the device is a GPU, as it may be: read when they are used, by the GPU's loader. The CPU, or
 * no GPU that holds them: *out stays NULL. */
static mx_status open_for_gpu(mx_model *model, const char *path, const mx_load_options *options, mx_pool *pool,
                              mx_error *error) {
    mx_device_choice choice;
    mx_status status = mx_device_parse(options->device, &choice, error);
    if (status) return mx_fail_within(error, status, "device");
    if (!mx_device_wanted(&choice)) return MX_OK;
    mx_load_options lazy = *options;
    lazy.way = MX_LOAD_LAZY;
    status = mx_weights_load(path, &lazy, pool, &model->weights, error);
    if (status) return status;
    status = choose_gpu(model, &choice, options, error);
    if (!status && model->device.plugin) return MX_OK;
    mx_weights_close(model->weights);
    model->weights = NULL;
    return status;
}

static mx_status open_weights(mx_model *model, const char *path, const mx_load_options *options, mx_error *error) {
    mx_pool *pool;
    mx_status status = mx_pool_create(options ? options->threads : 0, &pool, error);
    if (status) return status;
    if (options && options->device && options->way != MX_LOAD_LOOK)
        status = open_for_gpu(model, path, options, pool, error);
    if (!status && !model->weights) status = mx_weights_load(path, options, pool, &model->weights, error);
    mx_pool_destroy(pool);
    return status;
}

static mx_status make_weights(mx_model *model, const mx_config *config, const mx_load_options *options,
                              mx_progress *progress, mx_error *error) {
    mx_pool *pool;
    mx_device_choice choice = {0};
    mx_status status = options->device ? mx_device_parse(options->device, &choice, error) : MX_OK;
    if (status) return mx_fail_within(error, status, "device");
    if (options->device && mx_device_wanted(&choice) && !choice.automatic) {
        status = mx_synthetic_shape(config, &model->weights, error);
        return status ? status : choose_gpu(model, &choice, options, error);
    }
    status = mx_pool_create_on(options->threads, options->numa, &pool, error);
    if (status) return status;
    status =
        mx_synthetic_weights(config, model->seed, pool, options->numa, progress, options->stop, &model->weights, error);
    mx_pool_destroy(pool);
    return status;
}

static mx_model *create_model(mx_error *error) {
    mx_model *model = calloc(1, sizeof *model);
    if (model)
        pthread_mutex_init(&model->creating, NULL);
    else
        mx_fail(error, MX_NO_MEMORY, "no memory for a model");
    return model;
}

mx_status mx_model_make(const mx_config *config, uint64_t seed, const mx_load_options *options, mx_progress *progress,
                        mx_model **out, mx_error *error) {
    mx_model *model = create_model(error);
    if (!model) return MX_NO_MEMORY;
    model->made = true;
    model->seed = seed;
    model->numa = options->numa;
    mx_status status = make_weights(model, config, options, progress, error);
    if (status) {
        mx_model_close(model);
        return status;
    }
    model->weight_bytes = mx_synthetic_bytes(config);
    *out = model;
    return MX_OK;
}

mx_status mx_model_open(const char *path, const mx_load_options *options, mx_model **out, mx_error *error) {
    mx_model *model = create_model(error);
    if (!model) return MX_NO_MEMORY;
    mx_status status = open_weights(model, path, options, error);
    if (status) {
        mx_model_close(model);
        return status;
    }
    const mx_checkpoint *checkpoint = model->weights->checkpoint;
    for (int i = 0; i < mx_checkpoint_count(checkpoint); i++)
        model->weight_bytes += mx_checkpoint_at(checkpoint, i)->bytes;
    model->numa = options ? options->numa : MX_NUMA_AUTO;
    model->told = options && options->told;
    if (!options || options->way != MX_LOAD_READ)
        model->mapped_bytes = model->weight_bytes - mx_checkpoint_made(checkpoint);
    *out = model;
    return MX_OK;
}

uint64_t mx_kv_memory(const mx_model *model, mx_kv_type type, int64_t context) {
    const mx_config *config = mx_model_config(model);
    return (uint64_t)mx_kv_pages_needed(config, context, BATCH_TOKENS) * (uint64_t)mx_page_bytes(config, formats[type]);
}

/* Opens the folder of prefixes. What it holds may be read by every engine that would compute the same bits. */
static mx_status open_store(const mx_model *model, const mx_engine_options *o, mx_engine_parts *parts,
                            mx_error *error) {
    if (!o->prefix_cache) return MX_OK;
    char weights[MX_IDENTITY], identity[600], gpu[200] = "";
    const mx_gpu_info *device = &model->device.info;
    const double start = mx_seconds();
    const mx_identity_options all = {.pool = parts->pool};
    mx_status status = mx_weights_identity(model->weights, &all, weights, error);
    if (status) return status;
    const double seconds = mx_seconds() - start;
    mx_log(seconds > LONG ? MX_LOG_INFO : MX_LOG_DEBUG, "prefix cache: all %.1f GB of weights were hashed in %.1f s",
           (double)model->weight_bytes * 1e-9, seconds);
    if (model->device.plugin) snprintf(gpu, sizeof gpu, ", %s, %s", device->compiler, device->name);
    snprintf(identity, sizeof identity, "code %s, model %s, KV type %d, kernels %s, precision %s%s%s", MX_NUMERICS,
             weights, (int)o->kv_type, parts->info.tier, parts->info.precision, o->openblas ? ", openblas" : "", gpu);
    const mx_prefix_store_options options = {.folder = o->prefix_cache,
                                             .most = o->prefix_cache_bytes ? o->prefix_cache_bytes : PREFIX_CACHE_BYTES,
                                             .config = parts->config,
                                             .page_bytes = mx_page_bytes(parts->config, formats[o->kv_type]),
                                             .identity = identity};
    return mx_prefix_store_open(&options, &parts->store, error);
}

/* How much memory keys and values have, and for what. */
static mx_status plan(const mx_model *model, const mx_engine_options *o, mx_backend_options *backend,
                      mx_engine_parts *parts, mx_error *error) {
    const int64_t page_bytes = mx_page_bytes(parts->config, backend->kv_format);
    uint64_t memory = o->kv_memory, scratch;
    mx_status status = mx_cpu_backend_memory(model->weights, parts->pool, backend, &scratch, error);
    if (!status && !memory)
        status = memory_for(model, (uint64_t)page_bytes, o->context, parts, scratch, &memory, error);
    if (!status)
        status =
            mx_kv_plan_make(parts->config, page_bytes, memory, o->context, parts->batch_tokens, &parts->plan, error);
    if (status) return status;
    backend->pages = parts->plan.pages;
    mx_log(MX_LOG_DEBUG,
           "KV memory: %.1f MiB in %lld pages, a context of %lld tokens, %d requests at once; steps: %.1f MiB at most",
           (double)parts->plan.pages * (double)page_bytes * 0x1p-20, (long long)parts->plan.pages,
           (long long)parts->plan.context, parts->max_running, (double)scratch * 0x1p-20);
    return MX_OK;
}

/* What the backend computes with: numbers, rows, and on which device how much memory. */
static mx_status plan_backend(mx_model *model, const mx_engine_options *o, const mx_kernels *kernels,
                              mx_backend_options *backend, mx_engine_parts *parts, mx_error *error) {
    const bool gpu = model->device.plugin != NULL;
    mx_status status;
    if (gpu) {
        status = mx_gpu_plan(&model->device, model->weights, o, backend, parts->batch_tokens, parts->max_running, true,
                             &parts->plan, error);
        backend->pages = parts->plan.pages;
    } else {
        status = plan(model, o, backend, parts, error);
        if (!status && !strcmp(kernels->name, "scalar") && !mx_cpu_detect() && !o->openblas)
            mx_log(MX_LOG_WARNING, "no fast kernels for this processor: --dense openblas multiplies attention faster");
    }
    return status;
}

/* The weights are where the backend wants them, and it works. */
static mx_status make_backend(mx_model *model, const mx_engine_options *o, const mx_backend_options *backend,
                              mx_engine_parts *parts, mx_error *error) {
    const mx_cuda_load_options load = {.synthetic = model->made,
                                       .seed = model->seed,
                                       .progress = o->progress,
                                       .user = o->progress_user,
                                       .stop = o->stop};
    mx_status status = mx_device_load(&model->device, model->weights, load, error);
    if (!status)
        status = mx_device_backend(&model->device, model->weights, parts->pool, backend, &parts->backend, error);
    if (status) return status;
    const mx_precisions precision = mx_device_precision(&model->device, parts->backend);
    mx_precisions_name(parts->info.precision, &precision);
    status = open_store(model, o, parts, error);
    return status;
}

/* On the model's device as it is now. */
static mx_status create(mx_model *model, const mx_engine_options *o, mx_engine **out, mx_error *error) {
    const mx_kernels *kernels;
    mx_precisions precision;
    mx_status status = mx_kernels_get(NULL, &kernels, error);
    if (status) return status;
    precision = mx_device_default_precision(&model->device, kernels);
    if (o->precision) status = mx_precisions_parse(o->precision, &precision, error);
    if (status) return status;

    mx_backend_options backend;
    mx_engine_parts parts = {.config = mx_model_config(model),
                             .step_seconds = o->step_seconds,
                             .speculation = o->speculation,
                             .draft_tokens = o->draft_tokens ? o->draft_tokens : DRAFT_TOKENS,
                             .boundary = o->boundary,
                             .boundary_count = o->boundary_count,
                             .tokens = o->tokens};
    shape_of(o, model->device.plugin != NULL, &precision, &parts, &backend);
    status = mx_pool_create_on(o->threads, model->numa, &parts.pool, error);
    if (status) return status;
    parts.info = (mx_engine_info){
        .threads = mx_pool_threads(parts.pool), .weight_bytes = model->weight_bytes, .kv_type = o->kv_type};
    mx_device_tier(&model->device, kernels, parts.info.tier);
    memcpy(parts.info.device, model->device.info.name, sizeof parts.info.device);
    status = plan_backend(model, o, kernels, &backend, &parts, error);
    if (!status) status = make_backend(model, o, &backend, &parts, error);
    if (!status) status = mx_engine_assemble(&parts, out, error);
    if (!status) return MX_OK;
    mx_prefix_store_close(parts.store);
    if (parts.backend) parts.backend->ops->destroy(parts.backend);
    mx_pool_destroy(parts.pool);
    return status;
}

mx_status mx_engine_create(mx_model *model, const mx_engine_options *options, mx_engine **out, mx_error *error) {
    const mx_engine_options o = options ? *options : (mx_engine_options){0};
    mx_error why = {0};
    mx_status status = check_options(&o, error);
    if (status) return status;
    pthread_mutex_lock(&model->creating);
    status = create(model, &o, out, &why);
    /* What the choice could not know: numbers that are none of BF16, memory that another program took meanwhile. */
    if (status && !model->settled && mx_device_fall_back(&model->device, status, &why))
        status = create(model, &o, out, &why);
    model->settled |= !status;
    pthread_mutex_unlock(&model->creating);
    if (status && error) *error = why;
    return status;
}
