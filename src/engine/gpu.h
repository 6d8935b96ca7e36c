#ifndef MX_ENGINE_GPU_H
#define MX_ENGINE_GPU_H

#include "engine/engine_internal.h"
#include "model/device.h"

/* A GPU's memory: what an engine takes of it, to the byte, said before anything is loaded. */

/* Plans keys and values on the device of `d` into `plan`: o->kv_memory, or what is left beside weights and scratch, but
 * not more than all requests together can use; `tell`: says it in one line (mx_device_tell). MX_NO_MEMORY with the
 * numbers where they do not fit, or not even a small context does. */
mx_status mx_gpu_plan(const mx_device *d, const mx_weights *w, const mx_engine_options *o,
                      const mx_backend_options *backend, int batch_tokens, int max_running, bool tell, mx_kv_plan *plan,
                      mx_error *error);

#endif
