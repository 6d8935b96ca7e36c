#include "kernels/kernels.h"

#include <string.h>

#include "base/cpu.h"
#include "kernels/tiers.h"

/* Best first; `needs` are the MX_CPU bits that must all be there. */
static const struct tier {
    const mx_kernels *table;
    unsigned needs;
} tiers[] = {
#if defined(__x86_64__)
    {&mx_kernels_amx, MX_CPU_AVX2 | MX_CPU_AVX512 | MX_CPU_AVX512_BF16 | MX_CPU_AMX},
    {&mx_kernels_avx512bf16, MX_CPU_AVX2 | MX_CPU_AVX512 | MX_CPU_AVX512_BF16},
    {&mx_kernels_avx512, MX_CPU_AVX2 | MX_CPU_AVX512},
    {&mx_kernels_avx2, MX_CPU_AVX2},
#elif defined(__aarch64__)
    {&mx_kernels_neonbf16, MX_CPU_NEON | MX_CPU_NEON_DOT | MX_CPU_NEON_BF16},
    {&mx_kernels_neondot, MX_CPU_NEON | MX_CPU_NEON_DOT},
    {&mx_kernels_neon, MX_CPU_NEON},
#endif
    {&mx_kernels_scalar, 0},
};

mx_status mx_kernels_get(const char *name, const mx_kernels **out, mx_error *error) {
    unsigned cpu = mx_cpu_detect();
    if (!name) {
        mx_status status = mx_cpu_allowed(&cpu, error);
        if (status != MX_OK) return status;
    }
    for (size_t i = 0; i < sizeof tiers / sizeof *tiers; i++) {
        if (name && strcmp(name, tiers[i].table->name) != 0) continue;
        if ((cpu & tiers[i].needs) == tiers[i].needs) {
            *out = tiers[i].table;
            return MX_OK;
        }
    }
    return mx_fail(error, MX_UNSUPPORTED,
                   "kernels: this build on this machine has no tier \"%s\"; leave the tier out to get the best one",
                   name);
}
