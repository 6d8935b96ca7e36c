#ifndef MX_ENGINE_GPU_H
#define MX_ENGINE_GPU_H

#include "engine/engine_internal.h"
#include "model/device.h"

/* A GPU's memory: what an engine takes of it, to the byte, said before anything is loaded. */
enum { MX_GPU_BATCH_TOKENS = 2048 };

/* Plans keys and values on the device of `d` into `plan`: o->kv_memory, or what is left beside weights and scratch, but
 * not more than all requests together can use. Says it in one line: "weights 65.25 GB, KV 4.84 GB ...".
 * MX_NO_MEMORY with the numbers where they do not fit. */
mx_status mx_gpu_plan(const mx_device *d, const mx_weights *w, const mx_engine_options *o,
                      const mx_backend_options *backend, int batch_tokens, int max_running, mx_kv_plan *plan,
                      mx_error *error);

#endif
