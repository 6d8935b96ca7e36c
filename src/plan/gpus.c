/* NVIDIA's GPUs, as NVML tells them: a library that comes with their driver and is opened at run time. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "plan/machine.h"

/* The part of nvml.h that is used: every function returns 0 when it has done its work, a device is a pointer. */
enum { SUCCESS = 0, CLOCK_MEMORY = 2 };
typedef struct memory_info {
    unsigned long long total, free, used;
} memory_info;

typedef struct nvml {
    void *library;
    int (*start)(void);
    int (*shut_down)(void);
    int (*count)(unsigned *count);
    int (*device)(unsigned index, void **device);
    int (*name)(void *device, char *name, unsigned size);
    int (*memory)(void *device, memory_info *memory);
    /* These may be missing. */
    int (*capability)(void *device, int *major, int *minor);
    int (*power)(void *device, unsigned *milliwatts);
    int (*bus_width)(void *device, unsigned *bits);
    int (*clock)(void *device, int which, unsigned *megahertz);
    int (*driver)(char *version, unsigned size);
} nvml;

/* ISO C has no conversion from void * to a function; POSIX promises that this works. */
static bool find(void *library, const char *name, void *function) {
    void *address = dlsym(library, name);
    memcpy(function, &address, sizeof address);
    return address != NULL;
}

static bool find_all(nvml *n) {
    void *l = n->library;
    find(l, "nvmlDeviceGetCudaComputeCapability", &n->capability);
    find(l, "nvmlDeviceGetEnforcedPowerLimit", &n->power);
    find(l, "nvmlDeviceGetMemoryBusWidth", &n->bus_width);
    find(l, "nvmlDeviceGetMaxClockInfo", &n->clock);
    find(l, "nvmlSystemGetDriverVersion", &n->driver);
    return find(l, "nvmlInit_v2", &n->start) && find(l, "nvmlShutdown", &n->shut_down) &&
           find(l, "nvmlDeviceGetCount_v2", &n->count) && find(l, "nvmlDeviceGetHandleByIndex_v2", &n->device) &&
           find(l, "nvmlDeviceGetName", &n->name) && find(l, "nvmlDeviceGetMemoryInfo", &n->memory);
}

static void look_at(const nvml *n, void *device, mx_plan_gpu *g) {
    memory_info memory;
    unsigned milliwatts, bits, megahertz;
    *g = (mx_plan_gpu){0};
    if (n->name(device, g->name, sizeof g->name) != SUCCESS) snprintf(g->name, sizeof g->name, "GPU without a name");
    g->name[sizeof g->name - 1] = 0;
    if (n->memory(device, &memory) == SUCCESS) {
        g->memory = (double)memory.total;
        g->memory_free = (double)memory.free;
    }
    if (!n->capability || n->capability(device, &g->major, &g->minor) != SUCCESS) g->major = g->minor = 0;
    if (n->power && n->power(device, &milliwatts) == SUCCESS) g->watts = milliwatts / 1e3;
    /* Two bits a clock and line: 5,120 lines at 2,619 MHz are the H100's 3.35 TB/s. */
    if (n->bus_width && n->clock && n->bus_width(device, &bits) == SUCCESS &&
        n->clock(device, CLOCK_MEMORY, &megahertz) == SUCCESS)
        g->bandwidth = 2e6 * megahertz * bits / 8;
}

static void look_at_all(const nvml *n, mx_plan_machine *out) {
    unsigned count = 0;
    if (!n->driver || n->driver(out->driver, sizeof out->driver) != SUCCESS)
        snprintf(out->driver, sizeof out->driver, "unknown");
    out->driver[sizeof out->driver - 1] = 0;
    if (n->count(&count) != SUCCESS) count = 0;
    for (unsigned i = 0; i < count && out->gpus < MX_PLAN_GPUS; i++) {
        void *device;
        if (n->device(i, &device) == SUCCESS) look_at(n, device, &out->gpu[out->gpus++]);
    }
    if (!out->gpus) snprintf(out->gpu_note, sizeof out->gpu_note, "NVIDIA's driver shows none");
}

void mx_plan_look_at_gpus(const char *library, mx_plan_machine *out) {
    nvml n = {.library = dlopen(library ? library : "libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)};
    out->gpus = 0;
    *out->driver = *out->gpu_note = 0;
    if (!n.library) {
        snprintf(out->gpu_note, sizeof out->gpu_note, "NVIDIA's driver (libnvidia-ml.so.1) is not here");
        return;
    }
    if (!find_all(&n)) {
        snprintf(out->gpu_note, sizeof out->gpu_note, "libnvidia-ml.so.1 lacks functions of NVML");
    } else if (n.start() != SUCCESS) {
        snprintf(out->gpu_note, sizeof out->gpu_note, "NVIDIA's driver is not running");
    } else {
        look_at_all(&n, out);
        n.shut_down();
    }
    dlclose(n.library);
}
