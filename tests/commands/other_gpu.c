/* A plugin for tests: the emulated one ($MXRUN_EMULATED_PLUGIN) with what $OTHER_GPU names changed, so that everything
 * that can go wrong between choosing a device and using it does. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "model/cuda_plugin.h"

static const mx_cuda_plugin *emulated;

static mx_status old_driver(int *out, mx_error *error) {
    *out = 0;
    return mx_fail(error, MX_UNSUPPORTED, "the NVIDIA driver knows CUDA 12.4, and mxrun's kernels need 13.0");
}

static mx_status two(int *out, mx_error *error) {
    const mx_status status = emulated->count(out, error);
    *out = 2;
    return status;
}

/* As gpu.cu: all is said of it, and that it cannot be used. */
static mx_status no_kernels(int device, mx_gpu_info *out, mx_error *error) {
    const mx_status status = emulated->info(0, out, error);
    return status ? status
                  : mx_fail(error, MX_UNSUPPORTED, "GPU %d is sm_75, and there are kernels for others", device);
}

static mx_status second_only(int device, mx_gpu_info *out, mx_error *error) {
    return device == 1 ? emulated->info(0, out, error) : no_kernels(device, out, error);
}

static mx_status load_on_first(const mx_weights *w, const mx_cuda_load_options *options, mx_cuda_weights **out,
                               mx_cuda_loaded *loaded, mx_error *error) {
    mx_cuda_load_options o = *options;
    o.device = 0;
    return emulated->load(w, &o, out, loaded, error);
}

static mx_status no_load(const mx_weights *w, const mx_cuda_load_options *options, mx_cuda_weights **out,
                         mx_cuda_loaded *loaded, mx_error *error) {
    (void)w, (void)options, (void)loaded;
    *out = NULL;
    return mx_fail(error, MX_UNSUPPORTED, "a router has a number of F32 that is none of BF16");
}

static mx_status no_room(mx_cuda_weights *w, const mx_backend_options *options, mx_backend **out, mx_error *error) {
    (void)w, (void)options;
    *out = NULL;
    return mx_fail(error, MX_NO_MEMORY, "another program took the memory");
}

static mx_status no_measure(const mx_cuda_weights *w, mx_cuda_rates *out, mx_error *error) {
    (void)w, (void)out;
    return mx_fail(error, MX_INVALID_STATE, "nothing was measured");
}

mx_cuda_plugin_open_fn mx_cuda_plugin_open;
const mx_cuda_plugin *mx_cuda_plugin_open(const mx_cuda_host *host) {
    static mx_cuda_plugin changed;
    const char *what = getenv("OTHER_GPU"), *path = getenv("MXRUN_EMULATED_PLUGIN");
    void *library = dlopen(path ? path : "", RTLD_NOW | RTLD_LOCAL);
    void *address = library ? dlsym(library, "mx_cuda_plugin_open") : NULL;
    mx_cuda_plugin_open_fn *open;
    memcpy(&open, &address, sizeof open);
    emulated = open ? open(host) : NULL;
    if (!emulated || !what) return emulated;
    changed = *emulated;
    if (!strcmp(what, "build")) changed.numerics = "0123456789abcdef0123456789abcdef";
    if (!strcmp(what, "driver")) changed.count = old_driver;
    if (!strcmp(what, "kernels")) changed.info = no_kernels;
    if (!strcmp(what, "load")) changed.load = no_load;
    if (!strcmp(what, "room")) changed.create = no_room;
    if (!strcmp(what, "measure")) changed.measure = no_measure;
    if (!strcmp(what, "two")) {
        changed.count = two;
        changed.info = second_only;
        changed.load = load_on_first;
    }
    return &changed;
}
