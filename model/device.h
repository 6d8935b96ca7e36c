#ifndef MX_MODEL_DEVICE_H
#define MX_MODEL_DEVICE_H

#include <signal.h>

#include "model/cuda_plugin.h"

/* Where a model is computed: on the CPU, or on a GPU through the plugin libmxrun_cuda.so. */

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
    mx_gpu_info info;         /* as it was when the device was chosen */
    uint64_t budget;          /* bytes that may be taken of it: free then, or the user's bound if that is less */
    mx_cuda_weights *weights; /* owned; NULL until mx_device_load */
    mx_cuda_loaded loaded;
} mx_device;

/* Automatic: the GPU that holds `w` with most memory to spare, else the CPU; *why (may be NULL) tells why no GPU was
 * taken, "" when there is none at all. A GPU that was asked for and cannot be used, or does not hold the weights and a
 * few pages, is an error with the reason. `most`: bytes of its memory at most, 0: all that is free. `w` needs no
 * numbers in memory; `options` as the backend will get them, but for their pages. */
mx_status mx_device_open(const mx_device_choice *choice, uint64_t most, const mx_weights *w,
                         const mx_backend_options *options, mx_device *out, char why[static 300], mx_error *error);
/* Is there a GPU that automatic choice would look at? Says nothing. */
bool mx_device_any(void);

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
