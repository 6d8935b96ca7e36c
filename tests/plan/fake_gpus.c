/* A made-up libnvidia-ml.so.1 for test_machine.c: FAKE_GPUS holds how many devices it shows, FAKE_GPUS_CLOSED how often
 * it was shut down. Device 0 is an H100, device 1 answers nothing but its name. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct memory_info {
    unsigned long long total, free, used;
} memory_info;

int nvmlInit_v2(void);
int nvmlShutdown(void);
int nvmlDeviceGetCount_v2(unsigned *count);
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device);
int nvmlDeviceGetName(void *device, char *name, unsigned size);
int nvmlDeviceGetMemoryInfo(void *device, memory_info *memory);
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor);
int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *milliwatts);
int nvmlDeviceGetMemoryBusWidth(void *device, unsigned *bits);
int nvmlDeviceGetMaxClockInfo(void *device, int which, unsigned *megahertz);
int nvmlSystemGetDriverVersion(char *version, unsigned size);

enum { SUCCESS = 0, NOT_SUPPORTED = 3, DRIVER_NOT_LOADED = 9 };
static char devices[8];

static int answers(const void *device) {
    return device == &devices[0];
}

int nvmlInit_v2(void) {
    return getenv("FAKE_GPUS") ? SUCCESS : DRIVER_NOT_LOADED;
}

int nvmlShutdown(void) {
    const char *before = getenv("FAKE_GPUS_CLOSED");
    char times[20];
    snprintf(times, sizeof times, "%d", before ? atoi(before) + 1 : 1);
    return setenv("FAKE_GPUS_CLOSED", times, 1);
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = (unsigned)atoi(getenv("FAKE_GPUS"));
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = &devices[index];
    return SUCCESS;
}

int nvmlDeviceGetName(void *device, char *name, unsigned size) {
    snprintf(name, size, "%s", answers(device) ? "NVIDIA H100 80GB HBM3" : "NVIDIA \"odd\" one");
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *device, memory_info *memory) {
    if (!answers(device)) return NOT_SUPPORTED;
    *memory = (memory_info){85520809984, 84000000000, 1520809984};
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    *major = 9;
    *minor = 0;
    return answers(device) ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *milliwatts) {
    *milliwatts = 700000;
    return answers(device) ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetMemoryBusWidth(void *device, unsigned *bits) {
    *bits = 5120;
    return answers(device) ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetMaxClockInfo(void *device, int which, unsigned *megahertz) {
    *megahertz = 2619;
    return answers(device) && which == 2 ? SUCCESS : NOT_SUPPORTED;
}

int nvmlSystemGetDriverVersion(char *version, unsigned size) {
    snprintf(version, size, "570.86.10");
    return SUCCESS;
}
