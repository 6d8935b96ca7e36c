#include "base/cpu.h"

#include <limits.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/machine.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#if defined(__x86_64__)
/* CPUID leaf 1, ECX bit 29: clang 14's __builtin_cpu_supports has no name for it. */
static bool has_f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}

/* CPUID leaf 7, EDX bits 22 (AMX-BF16), 24 (AMX-TILE), 25 (AMX-INT8); the tiles' registers must be asked for. */
static bool has_amx(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    const unsigned bits = 1u << 22 | 1u << 24 | 1u << 25;
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & bits) == bits &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
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
    if ((found & MX_CPU_AVX512) && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") &&
        __builtin_cpu_supports("avx512vbmi"))
        found |= MX_CPU_AVX512_BF16;
    if ((found & MX_CPU_AVX512_BF16) && has_amx()) found |= MX_CPU_AMX;
#elif defined(__aarch64__)
    const unsigned long wanted = HWCAP2_BF16 | HWCAP2_I8MM;
    found |= MX_CPU_NEON;
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) found |= MX_CPU_NEON_DOT;
    if ((found & MX_CPU_NEON_DOT) && (getauxval(AT_HWCAP2) & wanted) == wanted) found |= MX_CPU_NEON_BF16;
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
        {"avx512bf16", MX_CPU_AVX512_BF16, MX_CPU_AVX2 | MX_CPU_AVX512 | MX_CPU_AVX512_BF16},
        {"amx", MX_CPU_AMX, MX_CPU_AVX2 | MX_CPU_AVX512 | MX_CPU_AVX512_BF16 | MX_CPU_AMX},
        {"neon", MX_CPU_NEON, MX_CPU_NEON},
        {"neondot", MX_CPU_NEON_DOT, MX_CPU_NEON | MX_CPU_NEON_DOT},
        {"neonbf16", MX_CPU_NEON_BF16, MX_CPU_NEON | MX_CPU_NEON_DOT | MX_CPU_NEON_BF16},
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
    return mx_fail(error, MX_INVALID_ARGUMENT,
                   "MXRUN_CPU=%s: scalar, avx2, avx512, avx512bf16, amx, neon, neondot or neonbf16 was expected",
                   wanted);
}

int mx_cpu_list(int *cpu, int most) {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return 0;
    return mx_machine_cores("", &allowed, cpu, most);
}

int mx_cpu_count(void) {
    int cpu[CPU_SETSIZE];
    int cores = (int)mx_machine_quota("", mx_cpu_list(cpu, CPU_SETSIZE));
    return cores > 0 ? cores : 1;
}

/* What RLIMIT_AS leaves: the address space that is mapped already counts against it. */
static unsigned long long address_space_left(void) {
    struct rlimit limit;
    unsigned long long pages = 0;
    if (getrlimit(RLIMIT_AS, &limit) || limit.rlim_cur == RLIM_INFINITY) return ULLONG_MAX;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f) {
        if (fscanf(f, "%llu", &pages) != 1) pages = 0;
        fclose(f);
    }
    const unsigned long long mapped = pages * (unsigned long long)sysconf(_SC_PAGESIZE);
    return limit.rlim_cur > mapped ? limit.rlim_cur - mapped : 0;
}

unsigned long long mx_memory_beside(unsigned long long mapped) {
    const unsigned long long memory = mx_machine_memory(""), space = address_space_left();
    const unsigned long long left = memory > mapped ? memory - mapped : 0;
    return left < space ? left : space;
}

unsigned long long mx_memory_available(void) {
    return mx_memory_beside(0);
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
