#include "fake_engine.h"

#include <assert.h>

mx_engine *fake_engine(const mx_config *config, int64_t context, int64_t pages, int batch, fake_backend **backend) {
    mx_engine_parts parts = {
        .config = config, .batch_tokens = batch, .max_running = 16, .max_wanted = 64, .speculation = MX_SPECULATE_OFF};
    mx_error error;
    if (!pages) pages = 6 * mx_kv_pages_needed(config, context ? context : config->max_positions, batch);
    const uint64_t page = MX_TILE * sizeof(uint64_t);
    mx_status status =
        mx_kv_plan_make(config, (int64_t)page, (uint64_t)pages * page, context, batch, &parts.plan, &error);
    assert(status == MX_OK);
    *backend = fake_backend_create(config, parts.plan.pages);
    parts.backend = &(*backend)->base;
    mx_engine *engine;
    status = mx_engine_assemble(&parts, &engine, &error);
    assert(status == MX_OK);
    (void)status;
    return engine;
}
