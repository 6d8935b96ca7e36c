#ifndef MX_ENGINE_INTERNAL_H
#define MX_ENGINE_INTERNAL_H

#include "base/threads.h"
#include "engine/kv.h"
#include "engine/mxrun.h"
#include "model/model.h"

/* What an engine stands on, whoever made it: mx_engine_create makes it from a model, tests from a backend of their
 * own. */
typedef struct mx_engine_parts {
    const mx_config *config; /* borrowed */
    mx_backend *backend;     /* owned from success on */
    mx_pool *pool;           /* owned from success on; may be NULL */
    mx_kv_plan plan;
    int batch_tokens; /* at least 1, at most the backend's max_rows */
    int max_running;  /* at least 1 */
    int max_wanted;   /* the backend's: at least batch_tokens or max_running, whichever is less */
    double step_seconds;
    mx_speculation speculation;
    int draft_tokens;
    const int32_t *boundary; /* [boundary_count], copied */
    int boundary_count;
    const uint32_t *tokens; /* as mx_engine_options has it; copied */
    struct mx_prefix_store *store; /* owned from success on; NULL: prefixes are not kept */
    mx_engine_info info;           /* context, vocab, kv_bytes and kv_bytes_used are filled in */
} mx_engine_parts;

mx_status mx_engine_assemble(const mx_engine_parts *parts, mx_engine **out, mx_error *error);

#endif
