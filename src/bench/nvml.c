#include "bench/nvml.h"

#include <dlfcn.h>
#include <string.h>

/* The part of nvml.h that is used: every function returns 0 when it has done its work, a device is a pointer. */
enum { SUCCESS = 0 };
typedef int start_fn(void);
typedef int count_fn(unsigned *count);
typedef int device_fn(unsigned index, void **device);

/* ISO C has no conversion from void * to a function; POSIX promises that this works. */
static bool find(void *library, const char *name, void *function) {
    void *address = dlsym(library, name);
    memcpy(function, &address, sizeof address);
    return address != NULL;
}

static void find_devices(mx_nvml *n, count_fn *count_of, device_fn *device_at) {
    unsigned count;
    if (count_of(&count) != SUCCESS) return;
    for (unsigned i = 0; i < count && n->devices < MX_NVML_MOST; i++) {
        const int at = n->devices;
        if (device_at(i, &n->device[at]) == SUCCESS && n->energy(n->device[at], &n->first[at]) == SUCCESS) n->devices++;
    }
}

bool mx_nvml_open(mx_nvml *n, const char *library) {
    start_fn *start;
    count_fn *count_of;
    device_fn *device_at;
    *n = (mx_nvml){0};
    n->library = dlopen(library ? library : "libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!n->library) return false;
    if (find(n->library, "nvmlInit_v2", &start) && find(n->library, "nvmlShutdown", &n->shut_down) &&
        find(n->library, "nvmlDeviceGetCount_v2", &count_of) &&
        find(n->library, "nvmlDeviceGetHandleByIndex_v2", &device_at) &&
        find(n->library, "nvmlDeviceGetTotalEnergyConsumption", &n->energy) && start() == SUCCESS) {
        find_devices(n, count_of, device_at);
        if (n->devices) return true;
    } else {
        n->shut_down = NULL;
    }
    mx_nvml_close(n);
    return false;
}

double mx_nvml_joules(const mx_nvml *n, int device) {
    unsigned long long now;
    if (device < 0 || device >= n->devices || n->energy(n->device[device], &now) != SUCCESS) return 0;
    return now > n->first[device] ? (double)(now - n->first[device]) / 1e3 : 0;
}

void mx_nvml_close(mx_nvml *n) {
    if (n->shut_down) n->shut_down();
    if (n->library) dlclose(n->library);
    *n = (mx_nvml){0};
}
