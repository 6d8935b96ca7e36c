/* The one symbol that the plugin exports, and the table behind it (model/cuda_plugin.h). */
#include "model/cuda/cuda_private.h"
#include "model/numerics.h"

static mx_status memory(const mx_weights *w, const mx_backend_options *options, mx_cuda_memory *out, mx_error *error) {
    *out = (mx_cuda_memory){.page = (uint64_t)mx_page_bytes(&w->config, options->kv_format)};
    mx_status status = mx_cuda_weights_bytes(w, &out->weights, error);
    return status ? status : mx_cuda_backend_bytes(&w->config, options, &out->scratch, error);
}

static mx_status create(mx_cuda_weights *w, const mx_backend_options *options, mx_backend **out, mx_error *error) {
    *out = NULL;
    mx_status status = mx_gpu_use(w->device, error);
    return status ? status : mx_cuda_backend_create(w, options, out, error);
}

const mx_cuda_plugin *mx_cuda_plugin_open(const mx_cuda_host *host) {
    static const mx_cuda_plugin plugin = {.abi = MX_CUDA_ABI,
                                          .numerics = MX_NUMERICS,
                                          .count = mx_gpu_count,
                                          .info = mx_gpu_get_info,
                                          .memory = memory,
                                          .load = mx_cuda_weights_load,
                                          .unload = mx_cuda_weights_free,
                                          .create = create,
                                          .precision = mx_cuda_backend_precision,
                                          .measure = mx_cuda_measure};
    if (host->abi != MX_CUDA_ABI) return NULL;
    if (host->log) {
        mx_log_set_sink(host->log, host->user);
        mx_log_set_level(host->level);
    }
    return &plugin;
}
