#include "base/cpu.h"

#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#if defined(__x86_64__)
/* CPUID leaf 1, ECX bit 29: clang 14's __builtin_cpu_supports has no name for it. */
static bool has_f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}
#endif

unsigned mx_cpu_detect(void) {
    unsigned found = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) found |= MX_CPU_AVX2;
    if ((found & MX_CPU_AVX2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        found |= MX_CPU_AVX512;
    if ((found & MX_CPU_AVX512) && __builtin_cpu_supports("avx512bf16")) found |= MX_CPU_AVX512_BF16;
    if ((found & MX_CPU_AVX512) && __builtin_cpu_supports("avx512vnni")) found |= MX_CPU_AVX512_VNNI;
#endif
    return found;
}

mx_status mx_cpu_allowed(unsigned *out, mx_error *error) {
    static const struct {
        const char *name;
        unsigned needed, allowed;
    } tier[] = {
        {"scalar", 0, 0},
        {"avx2", MX_CPU_AVX2, MX_CPU_AVX2},
        {"avx512", MX_CPU_AVX512, MX_CPU_AVX2 | MX_CPU_AVX512},
        {"avx512bf16", MX_CPU_AVX512 | MX_CPU_AVX512_BF16,
         MX_CPU_AVX2 | MX_CPU_AVX512 | MX_CPU_AVX512_BF16 | MX_CPU_AVX512_VNNI},
    };
    unsigned found = mx_cpu_detect();
    const char *wanted = getenv("MXRUN_CPU");
    *out = found;
    if (!wanted || !*wanted) return MX_OK;
    for (size_t i = 0; i < sizeof tier / sizeof *tier; i++) {
        if (strcmp(wanted, tier[i].name)) continue;
        if ((found & tier[i].needed) != tier[i].needed)
            return mx_fail(error, MX_UNSUPPORTED,
                           "MXRUN_CPU=%s: this processor does not have it; unset MXRUN_CPU to use what it has", wanted);
        *out = found & tier[i].allowed;
        return MX_OK;
    }
    return mx_fail(error, MX_INVALID_ARGUMENT, "MXRUN_CPU=%s: scalar, avx2, avx512 or avx512bf16 was expected", wanted);
}

/* One line of a small file; false when it cannot be read. */
static bool read_line(const char *path, char *out, int size) {
    FILE *f = fopen(path, "re");
    if (!f) return false;
    bool ok = fgets(out, size, f) != NULL;
    fclose(f);
    return ok;
}

/* Calls visit(path prefix of each cgroup directory from this process's own up to the root). */
static void for_each_cgroup(void (*visit)(const char *directory, void *arg), void *arg) {
    char own[3000] = "", line[3000], directory[4096];
    FILE *f = fopen("/proc/self/cgroup", "re");
    if (!f) return;
    while (fgets(line, sizeof line, f))
        if (!strncmp(line, "0::", 3)) {
            line[strcspn(line, "\n")] = 0;
            snprintf(own, sizeof own, "%s", line + 3);
        }
    fclose(f);
    for (;;) {
        snprintf(directory, sizeof directory, "/sys/fs/cgroup%s", strcmp(own, "/") ? own : "");
        visit(directory, arg);
        char *slash = strrchr(own, '/');
        if (!slash || !*own || !strcmp(own, "/")) return;
        *slash = 0;
    }
}

static void visit_cpu_max(const char *directory, void *arg) {
    char path[4200], line[100];
    double quota, period, *cores = arg;
    snprintf(path, sizeof path, "%s/cpu.max", directory);
    if (read_line(path, line, sizeof line) && sscanf(line, "%lf %lf", &quota, &period) == 2 && period > 0 &&
        quota / period < *cores)
        *cores = quota / period;
}

static void visit_memory_max(const char *directory, void *arg) {
    char path[4200], line[100];
    unsigned long long max, current, *left = arg;
    snprintf(path, sizeof path, "%s/memory.max", directory);
    if (!read_line(path, line, sizeof line) || sscanf(line, "%llu", &max) != 1) return;
    snprintf(path, sizeof path, "%s/memory.current", directory);
    if (!read_line(path, line, sizeof line) || sscanf(line, "%llu", &current) != 1) return;
    unsigned long long free_bytes = max > current ? max - current : 0;
    if (free_bytes < *left) *left = free_bytes;
}

static int topology(int cpu, const char *what) {
    char path[200], line[32];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/%s", cpu, what);
    return read_line(path, line, sizeof line) ? atoi(line) : -1;
}

int mx_cpu_count(void) {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return 1;
    static const int most = CPU_SETSIZE;
    struct {
        int package, core;
    } seen[CPU_SETSIZE];
    int cores = 0;
    for (int cpu = 0; cpu < most; cpu++) {
        if (!CPU_ISSET(cpu, &allowed)) continue;
        int package = topology(cpu, "physical_package_id"), core = topology(cpu, "core_id"), i = 0;
        if (core < 0) core = cpu; /* nothing known: a core of its own */
        while (i < cores && (seen[i].package != package || seen[i].core != core)) i++;
        if (i < cores) continue;
        seen[cores].package = package;
        seen[cores++].core = core;
    }
    double quota = cores;
    for_each_cgroup(visit_cpu_max, &quota);
    if (quota < cores) cores = (int)quota;
    return cores > 0 ? cores : 1;
}

unsigned long long mx_memory_available(void) {
    unsigned long long left = 0, kib;
    char line[200];
    FILE *f = fopen("/proc/meminfo", "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1) left = kib * 1024;
    if (f) fclose(f);
    for_each_cgroup(visit_memory_max, &left);
    struct rlimit limit;
    if (!getrlimit(RLIMIT_AS, &limit) && limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < left)
        left = limit.rlim_cur;
    return left;
}

unsigned long long mx_memory_peak(void) {
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) ? 0 : (unsigned long long)usage.ru_maxrss * 1024;
}

double mx_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
