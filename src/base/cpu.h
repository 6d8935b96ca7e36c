#ifndef MX_BASE_CPU_H
#define MX_BASE_CPU_H

#include "base/status.h"

/* Instruction sets of this machine, as bits. */
enum {
    MX_CPU_AVX2 = 1,        /* AVX2, FMA and F16C together */
    MX_CPU_AVX512 = 2,      /* F, BW, VL, DQ together */
    MX_CPU_AVX512_BF16 = 4, /* AVX-512 and BF16, VNNI and VBMI together */
    MX_CPU_AMX = 8,         /* these and AMX's tiles of BF16 and INT8, which the system lets this process use */
    MX_CPU_NEON = 16,       /* every aarch64 */
    MX_CPU_NEON_DOT = 32,   /* NEON and dot products of bytes */
    MX_CPU_NEON_BF16 = 64,  /* these and BF16 and I8MM together */
};

/* What the processor and the operating system offer. */
unsigned mx_cpu_detect(void);

/* What may be used: mx_cpu_detect() limited by MXRUN_CPU=scalar|avx2|avx512|avx512bf16|amx|neon|neondot|neonbf16. A
 * tier that is asked for and not there is MX_UNSUPPORTED, an unknown word MX_INVALID_ARGUMENT. */
mx_status mx_cpu_allowed(unsigned *out, mx_error *error);

/* One logical CPU of each physical core that the affinity mask allows, ascending; returns how many (at most `most`). */
int mx_cpu_list(int *cpu, int most);

/* Physical cores this process may use: affinity mask and cgroup quota respected; at least 1. */
int mx_cpu_count(void);

/* Bytes of memory this process may still take: the least of MemAvailable, what its cgroups leave, and what RLIMIT_AS
 * leaves. Page cache counts as free, for the kernel drops it when memory is asked for. */
unsigned long long mx_memory_available(void);

/* The same when `mapped` bytes of files shall stay in memory that this process has mapped. They are taken off once: the
 * page cache they are in, or will be in, is counted as free, but RLIMIT_AS has counted them when they were mapped. */
unsigned long long mx_memory_beside(unsigned long long mapped);

/* Peak resident bytes of this process so far. */
unsigned long long mx_memory_peak(void);

double mx_seconds(void); /* monotonic clock */

#endif
