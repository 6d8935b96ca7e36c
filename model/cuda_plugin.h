#ifndef MX_MODEL_CUDA_PLUGIN_H
#define MX_MODEL_CUDA_PLUGIN_H

#include "base/log.h"
#include "kernels/cuda/gpu.h"
#include "model/model.h"

/* What libmxrun_cuda.so is to mxrun. It is opened at run time (model/device.c), so that one binary serves machines with
 * CUDA and without; it holds code of its own for everything it calls but what is in mx_cuda_host. Its one exported
 * symbol is mx_cuda_plugin_open. */

enum { MX_CUDA_ABI = 3 }; /* grows with every change of what is below or of what it refers to */

/* What mxrun lends the plugin. */
typedef struct mx_cuda_host {
    int abi;
    void (*log)(void *user, mx_log_level level, const char *line); /* a sink for base/log.h */
    void *user;
    mx_log_level level;
} mx_cuda_host;

/* Bytes on the device, exactly as they will be asked for. */
typedef struct mx_cuda_memory {
    uint64_t weights;
    uint64_t scratch; /* activations, logits, page tables, what sampling needs */
    uint64_t page;    /* one KV page */
} mx_cuda_memory;

/* A model's weights on a device; several backends may work with them. */
typedef struct mx_cuda_weights mx_cuda_weights;

typedef struct mx_cuda_load_options {
    int device;
    int readers; /* threads that read the mapped files; 0: a few */
    /* Called now and then by the calling thread, with bytes; NULL: nobody wants to know. */
    void (*progress)(void *user, uint64_t done, uint64_t total);
    void *user;
    const volatile sig_atomic_t *stop; /* once it is not 0, loading ends with MX_CANCELLED */
    bool synthetic;                    /* `weights` is a shape alone (config, no tensors): the numbers of */
    uint64_t seed;                     /* model/synthetic.h are made on the device */
} mx_cuda_load_options;

typedef struct mx_cuda_loaded { /* how loading went */
    double seconds;
    uint64_t bytes;   /* read from the files, or made */
    double copy_rate; /* bytes a second from pinned memory to the device, measured on the way; 0: not measured */
} mx_cuda_loaded;

typedef struct mx_cuda_rates { /* what the device can do at most, now, by the instructions that the kernels use */
    double read;               /* bytes a second out of its memory */
    double multiply;           /* BF16 multiplications and additions a second by mma.sync, which the kernels use. Since
                                  Hopper (wgmma) and Blackwell (tcgen05) a device has faster ones */
} mx_cuda_rates;

typedef struct mx_cuda_plugin {
    int abi;
    const char *numerics; /* MX_NUMERICS of its build: mxrun and its plugin are of one source, compiled alike */
    mx_status (*count)(int *out, mx_error *error);                    /* of devices; why there is none */
    mx_status (*info)(int device, mx_gpu_info *out, mx_error *error); /* mx_gpu_get_info */
    /* MX_UNSUPPORTED, by layer and name, where the model has something that there are no kernels for. `w` needs no
     * tensors in memory: configuration, formats and shapes count. options->pages does not matter. */
    mx_status (*memory)(const mx_weights *w, const mx_backend_options *options, mx_cuda_memory *out, mx_error *error);
    /* `w` is borrowed while loading only; of it the configuration is copied. */
    mx_status (*load)(const mx_weights *w, const mx_cuda_load_options *options, mx_cuda_weights **out,
                      mx_cuda_loaded *loaded, mx_error *error);
    void (*unload)(mx_cuda_weights *w); /* after its backends; NULL allowed */
    mx_status (*create)(mx_cuda_weights *w, const mx_backend_options *options, mx_backend **out, mx_error *error);
    mx_precisions (*precision)(const mx_backend *b); /* in force */
    /* In about 20 ms, with the weights as what is read. Nothing else may be queued on the device by this process. */
    mx_status (*measure)(const mx_cuda_weights *w, mx_cuda_rates *out, mx_error *error);
} mx_cuda_plugin;

/* NULL where `host->abi` is another than its own. */
typedef const mx_cuda_plugin *mx_cuda_plugin_open_fn(const mx_cuda_host *host);

#endif
