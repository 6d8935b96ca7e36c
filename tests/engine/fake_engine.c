#include "fake_engine.h"

#include <assert.h>
#include <stdlib.h>

#include "deferred.h"

static mx_backend *newest;

mx_backend *fake_engine_backend(void) {
    return newest;
}

bool fake_engine_runs_ahead(void) {
    return getenv("MXRUN_TEST_AHEAD") != NULL;
}

mx_engine *fake_engine_with(const mx_engine_parts *given, int64_t context, int64_t pages, fake_backend **backend) {
    mx_engine_parts parts = *given;
    mx_error error;
    if (!pages)
        pages =
            6 * mx_kv_pages_needed(parts.config, context ? context : parts.config->max_positions, parts.batch_tokens);
    const uint64_t page = MX_TILE * sizeof(uint64_t);
    mx_status status = mx_kv_plan_make(parts.config, (int64_t)page, (uint64_t)pages * page, context, parts.batch_tokens,
                                       &parts.plan, &error);
    assert(status == MX_OK);
    *backend = fake_backend_create(parts.config, parts.plan.pages);
    parts.backend = &(*backend)->base;
    if (fake_engine_runs_ahead()) parts.backend = deferred_create(parts.backend, parts.config);
    newest = parts.backend;
    if (!parts.max_running) parts.max_running = 16;
    if (!parts.max_wanted) parts.max_wanted = parts.max_running + 48;
    (*backend)->max_wanted = parts.max_wanted;
    mx_engine *engine;
    status = mx_engine_assemble(&parts, &engine, &error);
    assert(status == MX_OK);
    (void)status;
    return engine;
}

mx_engine *fake_engine(const mx_config *config, int64_t context, int64_t pages, int batch, fake_backend **backend) {
    const mx_engine_parts parts = {.config = config, .batch_tokens = batch, .speculation = MX_SPECULATE_OFF};
    return fake_engine_with(&parts, context, pages, backend);
}
