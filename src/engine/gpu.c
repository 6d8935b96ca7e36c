#include "engine/gpu.h"

#include <stdio.h>

#include "base/progress.h"

static mx_status too_much(const mx_device *d, const mx_cuda_memory *m, int64_t context, uint64_t wanted, uint64_t room,
                          mx_error *error) {
    char tokens[32];
    return mx_fail(
        error, MX_NO_MEMORY,
        "%s: keys and values of %s tokens take %.2f GB, beside weights (%.2f GB), scratch (%.2f GB) and what "
        "CUDA itself takes (%.2f GB) there are %.2f GB: choose a smaller --ctx or --kv-memory%s",
        d->info.name, mx_with_commas(context, tokens), (double)wanted / 1e9, (double)m->weights / 1e9,
        (double)m->scratch / 1e9, (double)MX_CUDA_RESERVE / 1e9, (double)room / 1e9,
        d->budget < d->info.memory_free ? ", or a larger --gpu-memory" : "");
}

mx_status mx_gpu_plan(const mx_device *d, const mx_weights *w, const mx_engine_options *o,
                      const mx_backend_options *backend, int batch_tokens, int max_running, bool tell, mx_kv_plan *plan,
                      mx_error *error) {
    const mx_config *c = &w->config;
    mx_gpu_info now;
    mx_cuda_memory m;
    mx_status status = d->plugin->info(d->index, &now, error);
    if (!status) status = d->plugin->memory(w, backend, &m, error);
    if (status) return status;
    const uint64_t loaded = d->weights ? m.weights : 0, free_now = now.memory_free + loaded;
    mx_device as_now = *d;
    if (free_now < d->budget) as_now.budget = free_now;
    const uint64_t room = mx_device_room(&as_now, &m);
    const int64_t most = o->context > 0 && o->context < c->max_positions ? o->context : c->max_positions;
    const int64_t small = most < MX_GPU_LEAST_TOKENS ? most : MX_GPU_LEAST_TOKENS;
    const uint64_t one = (uint64_t)mx_kv_pages_needed(c, most, batch_tokens) * m.page,
                   least = (uint64_t)mx_kv_pages_needed(c, small, batch_tokens) * m.page,
                   useful = one * (uint64_t)max_running;
    uint64_t memory = o->kv_memory ? o->kv_memory : room < useful ? room : useful;
    if (o->kv_memory > room) return too_much(d, &m, most, o->kv_memory, room, error);
    if (o->context > 0 && !o->kv_memory && one > room) return too_much(d, &m, most, one, room, error);
    if (o->context == 0 && !o->kv_memory && least > room) return too_much(d, &m, small, least, room, error);
    status = mx_kv_plan_make(c, (int64_t)m.page, memory, o->context, batch_tokens, plan, error);
    if (status || !tell) return status;
    char tokens[32], of[80];
    snprintf(of, sizeof of, "a context of %s tokens", mx_with_commas(plan->context, tokens));
    mx_device_tell(d, free_now, &m, (uint64_t)plan->pages * m.page, of);
    return MX_OK;
}
