#ifndef MX_BENCH_NVML_H
#define MX_BENCH_NVML_H

#include <stdbool.h>

/* Energy that NVIDIA GPUs have taken, as NVML tells it: a library that comes with their driver and is opened at run
 * time. GPUs older than Volta have no such counter and are left out, the others stand in NVML's order. Runs on the
 * processor use none of them: bench says how many counters there are, and counts nothing. */
enum { MX_NVML_MOST = 64 };
typedef struct mx_nvml {
    int devices;
    void *device[MX_NVML_MOST];
    unsigned long long first[MX_NVML_MOST]; /* millijoules since the driver was loaded, at mx_nvml_open */
    void *library;
    int (*energy)(void *device, unsigned long long *millijoules);
    int (*shut_down)(void);
} mx_nvml;

/* `library`: NULL for the driver's, or the path of a made-up one in tests. false, and nothing to be closed: there is no
 * driver, or no device with a counter that may be read. */
bool mx_nvml_open(mx_nvml *n, const char *library);

/* Joules that one of the devices has taken since the opening; 0 when it does not answer any more. */
double mx_nvml_joules(const mx_nvml *n, int device);

void mx_nvml_close(mx_nvml *n); /* all zeros is allowed */

#endif
