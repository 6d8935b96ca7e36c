#ifndef FAKE_ENGINE_H
#define FAKE_ENGINE_H

#include "engine/engine_internal.h"
#include "fake_model.h"

/* Whether MXRUN_TEST_AHEAD is in the environment: what a step computed is then told by the next one. */
bool fake_engine_runs_ahead(void);
mx_backend *fake_engine_backend(void); /* of the newest engine, as it has it */
/* An engine on a fake backend, which may run ahead (deferred.h): 16 requests at once, without speculation. context 0:
 * the most that `pages` pages hold; pages 0: six times what one request needs. */
mx_engine *fake_engine(const mx_config *config, int64_t context, int64_t pages, int batch, fake_backend **backend);
/* The same with what `parts` says beside plan and backend; max_running and max_wanted may be 0. */
mx_engine *fake_engine_with(const mx_engine_parts *parts, int64_t context, int64_t pages, fake_backend **backend);

#endif
