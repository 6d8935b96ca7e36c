#ifndef MX_MODEL_DEVICE_H
#define MX_MODEL_DEVICE_H

#include <signal.h>

#include "model/cuda_plugin.h"

/* Where a model is computed: on the CPU, or on a GPU through the plugin libmxrun_cuda.so. */

enum {
    MX_GPU_BATCH_TOKENS = 2048, /* rows of a step on a GPU where nobody says otherwise */
    MX_GPU_LEAST_TOKENS = 1024, /* of keys and values, without room for which a model is of little use there */
};
/* Bytes that CUDA takes for itself once kernels run: their code, stacks, graphs. Counted with what a model needs. */
#define MX_CUDA_RESERVE ((uint64_t)512 << 20)

/* "auto", "cpu", "cuda" (the GPU with most free memory) or "cuda:N". */
typedef struct mx_device_choice {
    bool automatic, cuda; /* both false: the CPU */
    int index;            /* -1: any */
} mx_device_choice;
mx_status mx_device_parse(const char *text, mx_device_choice *out, mx_error *error);

/* The plugin, opened once for the process: what MXRUN_CUDA_PLUGIN names, or libmxrun_cuda.so beside the program, in the
 * build folder or where it was installed. MX_UNSUPPORTED with the reason where there is none or it is of another
 * version. Any thread. */
mx_status mx_cuda_plugin_find(const mx_cuda_plugin **out, mx_error *error);

typedef struct mx_device {
    const mx_cuda_plugin *plugin; /* NULL: the CPU */
    int index;
    bool automatic;           /* nobody asked for it: where it fails the CPU can take over */
    mx_gpu_info info;         /* as it was when the device was chosen */
    uint64_t budget;          /* bytes that may be taken of it: free then, or the user's bound if that is less */
    mx_cuda_weights *weights; /* owned; NULL until mx_device_load */
    mx_cuda_loaded loaded;
} mx_device;

/* Automatic: the GPU that holds `w` with most memory to spare, else the CPU, with a warning that tells why where
 * there are GPUs. A GPU that was asked for and cannot be used, or does not hold the weights and a
 * few pages, is an error with the reason. `most`: bytes of its memory at most, 0: all that is free. `w` needs no
 * numbers in memory; `options` as the backend will get them, but for their pages. */
mx_status mx_device_open(const mx_device_choice *choice, uint64_t most, const mx_weights *w,
                         const mx_backend_options *options, mx_device *out, mx_error *error);
/* Is there a GPU that automatic choice would look at? Says nothing. */
bool mx_device_any(void);
/* Is a GPU asked for, or automatic and there? Where automatic finds a plugin that cannot be used (a driver too old,
 * MXRUN_CUDA_PLUGIN names a missing file) one line in the log says so, once. */
bool mx_device_wanted(const mx_device_choice *choice);

/* `status` came from using the device, *why with it: if it was chosen automatically and the reason is its own
 * (MX_UNSUPPORTED, MX_NO_MEMORY, MX_INVALID_STATE) this closes it, warns and returns true: *d is the CPU now. Its
 * backends are destroyed before. */
bool mx_device_fall_back(mx_device *d, mx_status status, const mx_error *why);

/* Bytes for keys and values beside weights, scratch and MX_CUDA_RESERVE, before anything is loaded. */
uint64_t mx_device_room(const mx_device *d, const mx_cuda_memory *m);
/* One line of all that will be taken: "NVIDIA ... (cuda:0): weights 65.25 GB, KV 4.84 GB for a context of 131,072
 * tokens, ...". `kv`: bytes; `of`: what they are for; `free_now`: of the device, as if nothing were loaded. */
void mx_device_tell(const mx_device *d, uint64_t free_now, const mx_cuda_memory *m, uint64_t kv, const char *of);

/* Brings the weights to the GPU; on the CPU, or a second time, it does nothing. `o->device` is filled in. */
mx_status mx_device_load(mx_device *d, const mx_weights *w, mx_cuda_load_options o, mx_error *error);

/* A backend for the model, on the CPU with `pool`. */
mx_status mx_device_backend(mx_device *d, const mx_weights *w, mx_pool *pool, const mx_backend_options *options,
                            mx_backend **out, mx_error *error);
mx_precisions mx_device_precision(const mx_device *d, const mx_backend *b); /* in force */
/* Of this device when nobody asks for another. */
mx_precisions mx_device_default_precision(const mx_device *d, const mx_kernels *kernels);
/* What computes, for reports and for what outlives the program: a CPU's tier, or "cuda9.0". */
void mx_device_tier(const mx_device *d, const mx_kernels *kernels, char out[static 24]);

void mx_device_close(mx_device *d); /* after its backends; all zeros allowed */

#endif
