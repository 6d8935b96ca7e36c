#include "plan/machine.h"

#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/machine.h"
#include "base/numa.h"
#include "bench/measure.h"
#include "model/device.h"

/* ---- small files ------------------------------------------------------------------------------------------------- */

enum { PATH_ROOM = 400 };

static bool read_line(const char *root, const char *name, char *out, int size) {
    char path[PATH_ROOM];
    snprintf(path, sizeof path, "%s%s", root, name);
    FILE *f = fopen(path, "re");
    if (!f) return false;
    const bool ok = fgets(out, size, f) != NULL;
    fclose(f);
    if (ok) out[strcspn(out, "\n")] = 0;
    return ok;
}

/* ---- the processor ----------------------------------------------------------------------------------------------- */

/* Words of /proc/cpuinfo's "flags" (x86) or "Features" (aarch64), and what people call them. */
static const struct {
    const char *flag, *name;
} features[] = {
    {"avx2", "AVX2"},
    {"fma", "FMA"},
    {"f16c", "F16C"},
    {"avx_vnni", "AVX-VNNI"},
    {"avx512f", "AVX-512"},
    {"avx512_vnni", "AVX-512-VNNI"},
    {"avx512_bf16", "AVX-512-BF16"},
    {"avx512vbmi", "AVX-512-VBMI"},
    {"avx512_fp16", "AVX-512-FP16"},
    {"amx_bf16", "AMX-BF16"},
    {"amx_int8", "AMX-INT8"},
    {"amx_fp16", "AMX-FP16"},
    {"asimd", "NEON"},
    {"asimddp", "DotProd"},
    {"i8mm", "I8MM"},
    {"bf16", "BF16"},
    {"sve", "SVE"},
    {"sve2", "SVE2"},
    {"sme", "SME"},
};

static bool has_word(const char *list, const char *word) {
    const size_t n = strlen(word);
    for (const char *at = list; (at = strstr(at, word)); at += n)
        if ((at == list || at[-1] == ' ') && (!at[n] || at[n] == ' ' || at[n] == '\n')) return true;
    return false;
}

/* The first processor's name and flags. */
static void read_cpuinfo(const char *root, mx_plan_machine *out) {
    char path[PATH_ROOM], line[8000];
    bool named = false, flagged = false;
    struct utsname system;
    snprintf(out->cpu, sizeof out->cpu, "%s", uname(&system) == 0 ? system.machine : "unknown");
    *out->features = 0;
    snprintf(path, sizeof path, "%s/proc/cpuinfo", root);
    FILE *f = fopen(path, "re");
    while (f && !(named && flagged) && fgets(line, sizeof line, f)) {
        const char *value = strchr(line, ':');
        if (!value) continue;
        value += 1 + strspn(value + 1, " \t");
        if (!named && !strncmp(line, "model name", 10)) {
            snprintf(out->cpu, sizeof out->cpu, "%.*s", (int)strcspn(value, "\n"), value);
            named = true;
        }
        if (!flagged && (!strncmp(line, "flags", 5) || !strncmp(line, "Features", 8))) {
            for (size_t i = 0; i < sizeof features / sizeof *features; i++) {
                const size_t at = strlen(out->features);
                if (has_word(value, features[i].flag))
                    snprintf(out->features + at, sizeof out->features - at, "%s%s", at ? " " : "", features[i].name);
            }
            flagged = true;
        }
    }
    if (f) fclose(f);
}

/* Bytes of the data caches of cpu0: index0 .. in the order of their levels. */
static void read_caches(const char *root, mx_plan_machine *out) {
    out->l1d = out->l2 = out->l3 = 0;
    for (int i = 0; i < 8; i++) {
        char name[120], type[30], size[30];
        char level[10], unit = 0;
        double bytes;
        snprintf(name, sizeof name, "/sys/devices/system/cpu/cpu0/cache/index%d/type", i);
        if (!read_line(root, name, type, sizeof type)) return;
        snprintf(name, sizeof name, "/sys/devices/system/cpu/cpu0/cache/index%d/level", i);
        if (!read_line(root, name, level, sizeof level)) continue;
        snprintf(name, sizeof name, "/sys/devices/system/cpu/cpu0/cache/index%d/size", i);
        if (!read_line(root, name, size, sizeof size) || sscanf(size, "%lf%c", &bytes, &unit) < 1) continue;
        bytes *= unit == 'K' ? 1024 : unit == 'M' ? 1024 * 1024 : 1;
        if (!strcmp(type, "Instruction")) continue;
        if (*level == '1') out->l1d = bytes;
        if (*level == '2') out->l2 = bytes;
        if (*level == '3') out->l3 = bytes;
    }
}

/* The bracketed word of "always [madvise] never". */
static void read_huge_pages(const char *root, mx_plan_machine *out) {
    char line[100];
    *out->huge_pages = 0;
    if (!read_line(root, "/sys/kernel/mm/transparent_hugepage/enabled", line, sizeof line)) return;
    const char *from = strchr(line, '['), *to = from ? strchr(from, ']') : NULL;
    if (to) snprintf(out->huge_pages, sizeof out->huge_pages, "%.*s", (int)(to - from - 1), from + 1);
}

/* The first (long term) limit of each package; 0: none may be read. */
static double read_power_limit(const char *root) {
    double sum = 0;
    for (int i = 0; i < 64; i++) {
        char name[120], text[60];
        double microwatts;
        snprintf(name, sizeof name, "/sys/class/powercap/intel-rapl:%d/name", i);
        if (!read_line(root, name, text, sizeof text)) break;
        if (strncmp(text, "package", 7) != 0) continue;
        snprintf(name, sizeof name, "/sys/class/powercap/intel-rapl:%d/constraint_0_power_limit_uw", i);
        if (read_line(root, name, text, sizeof text) && sscanf(text, "%lf", &microwatts) == 1) sum += microwatts / 1e6;
    }
    return sum;
}

void mx_plan_look_at_processor(const char *root, mx_plan_machine *out) {
    read_cpuinfo(root, out);
    read_caches(root, out);
    read_huge_pages(root, out);
    out->watts = read_power_limit(root);
    const long there = sysconf(_SC_NPROCESSORS_ONLN);
    int cpu[CPU_SETSIZE];
    out->processors = there > 0 ? (int)there : 0;
    out->allowed = mx_cpu_list(cpu, CPU_SETSIZE);
    out->nodes = mx_numa_nodes();
    out->memory_total = (double)mx_machine_memory_total(root);
    out->memory_free = *root ? (double)mx_machine_memory(root) : (double)mx_memory_available();
}

/* ---- measuring --------------------------------------------------------------------------------------------------- */

enum { MOST_SAMPLES = 200, PEAK_RUNS = 3, PEAK_ROUNDS = 3 };
static const double CHOOSING = 0.3, SAMPLING = 1.0, SAMPLE = 0.03; /* seconds */

static void touch(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    memset((char *)arg + begin, 1, (size_t)(end - begin));
}

/* Less than bench takes: bringing the memory in is what takes time here. */
static size_t buffer_bytes(const mx_plan_machine *m) {
    const double least = 256 << 20, most = 8.0 * (1 << 30);
    return (size_t)fmin(most, fmax(least, 8 * m->l3));
}

static void measure_bandwidth(mx_pool *pool, mx_plan_machine *out) {
    const size_t size = buffer_bytes(out);
    mx_bandwidth b = {.at = 0};
    mx_bandwidth_ways ways;
    double sample[MOST_SAMPLES];
    int samples = 0;
    if ((double)size > out->memory_free / 2 || mx_arena_create(size, &b.buffer, NULL)) {
        snprintf(out->not_measured, sizeof out->not_measured, "not measured: that takes %.1f GB of memory for a moment",
                 (double)size / 1e9);
        return;
    }
    mx_parallel_for(pool, (int64_t)b.buffer.size, 8 << 20, touch, b.buffer.base);
    mx_bandwidth_choose(&b, pool, CHOOSING, &ways);
    for (const double end = mx_seconds() + SAMPLING; samples < MOST_SAMPLES && (samples < 3 || mx_seconds() < end);)
        sample[samples++] = mx_bandwidth_sample(&b, &ways, pool, SAMPLE);
    mx_bandwidth_close(&b);
    const double median = mx_median(sample, samples);
    out->bandwidth = (mx_plan_range){sample[0], median, sample[samples - 1]};
}

/* Something else on the machine makes a sample too low, nothing makes it too high. */
static void measure_peaks(mx_pool *pool, mx_peaks *out) {
    for (int loop = 0; loop < MX_PEAK_LOOPS; loop++)
        for (int i = 0; i < PEAK_ROUNDS && mx_peak_here((mx_peak_loop)loop); i++)
            out->of[loop] = fmax(out->of[loop], mx_peak_pool(pool, (mx_peak_loop)loop, PEAK_RUNS));
}

static mx_status measure(const mx_plan_look *look, mx_plan_machine *out, mx_error *error) {
    mx_pool *pool;
    out->given = look->bandwidth > 0 || look->peaks;
    if (look->bandwidth > 0) out->bandwidth = (mx_plan_range){look->bandwidth, look->bandwidth, look->bandwidth};
    if (look->peaks) out->peaks = *look->peaks;
    if (look->bandwidth > 0 && look->peaks) return MX_OK;
    mx_status status = mx_pool_create_on(0, MX_NUMA_AUTO, &pool, error);
    if (status) return status;
    mx_pool_enter(pool);
    if (!look->peaks) measure_peaks(pool, &out->peaks);
    if (!(look->bandwidth > 0)) measure_bandwidth(pool, out);
    mx_pool_leave(pool);
    mx_pool_destroy(pool);
    return MX_OK;
}

mx_status mx_plan_machine_look(const mx_plan_look *look, mx_plan_machine *out, mx_error *error) {
    const mx_kernels *kernels;
    *out = (mx_plan_machine){0};
    mx_status status = mx_kernels_get(NULL, &kernels, error);
    if (status) return status;
    snprintf(out->tier, sizeof out->tier, "%s", kernels->name);
    out->precision = mx_precisions_default(kernels);
    mx_plan_look_at_processor(look->root, out);
    out->cores = mx_cpu_count();
    mx_plan_look_at_gpus(look->nvml, out);
    out->cuda = out->gpus && mx_device_any();
    mx_plan_look_at_disk(look->model, look->cache, out);
    return measure(look, out, error);
}
