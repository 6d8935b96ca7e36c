/* A made-up libnvidia-ml.so.1 for energy.c: FAKE_NVML holds what its devices show, FAKE_NVML_CLOSED how often it was
 * shut down. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int nvmlInit_v2(void);
int nvmlShutdown(void);
int nvmlDeviceGetCount_v2(unsigned *count);
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device);
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules);

enum { SUCCESS = 0, NOT_SUPPORTED = 3, DRIVER_NOT_LOADED = 9 };

int nvmlInit_v2(void) {
    return getenv("FAKE_NVML") ? SUCCESS : DRIVER_NOT_LOADED;
}

int nvmlShutdown(void) {
    const char *before = getenv("FAKE_NVML_CLOSED");
    char times[20];
    snprintf(times, sizeof times, "%d", before ? atoi(before) + 1 : 1);
    return setenv("FAKE_NVML_CLOSED", times, 1);
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = 1;
    for (const char *at = getenv("FAKE_NVML"); (at = strchr(at, ',')); at++) ++*count;
    return SUCCESS;
}

static char devices[8];

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = &devices[index];
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    const char *at = getenv("FAKE_NVML");
    for (char *i = devices; i < (char *)device; i++) at = strchr(at, ',') + 1;
    if (*at == '-') return NOT_SUPPORTED;
    *millijoules = strtoull(at, NULL, 10);
    return SUCCESS;
}
