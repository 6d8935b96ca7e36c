#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/cpu.h"
#include "base/machine.h"

static const struct {
    const char *name;
    unsigned needed;
} tiers[] = {
    {"scalar", 0},
    {"avx2", MX_CPU_AVX2},
    {"avx512", MX_CPU_AVX512},
    {"avx512bf16", MX_CPU_AVX512_BF16},
    {"neon", MX_CPU_NEON},
    {"neondot", MX_CPU_NEON_DOT},
    {"neonbf16", MX_CPU_NEON_BF16},
};

static void detected_sets_include_what_they_build_on(void **state) {
    (void)state;
    unsigned found = mx_cpu_detect();
    if (found & MX_CPU_AVX512) assert_true(found & MX_CPU_AVX2);
    if (found & MX_CPU_AVX512_BF16) assert_true(found & MX_CPU_AVX512);
    if (found & MX_CPU_NEON_DOT) assert_true(found & MX_CPU_NEON);
    if (found & MX_CPU_NEON_BF16) assert_true(found & MX_CPU_NEON_DOT);
}

static void the_variable_limits_the_tier(void **state) {
    (void)state;
    unsigned found = mx_cpu_detect(), allowed, before = 0;
    mx_error error;
    unsetenv("MXRUN_CPU");
    assert_int_equal(mx_cpu_allowed(&allowed, &error), MX_OK);
    assert_int_equal(allowed, found);
    setenv("MXRUN_CPU", "", 1);
    assert_int_equal(mx_cpu_allowed(&allowed, &error), MX_OK);
    assert_int_equal(allowed, found);
    for (size_t i = 0; i < sizeof tiers / sizeof *tiers; i++) {
        setenv("MXRUN_CPU", tiers[i].name, 1);
        mx_status status = mx_cpu_allowed(&allowed, &error);
        if ((found & tiers[i].needed) != tiers[i].needed) {
            assert_int_equal(status, MX_UNSUPPORTED);
            assert_non_null(strstr(error.text, tiers[i].name));
            continue;
        }
        assert_int_equal(status, MX_OK);
        assert_int_equal(allowed & ~found, 0);
        assert_int_equal(allowed & tiers[i].needed, tiers[i].needed);
        assert_int_equal(before & ~allowed, 0); /* each tier holds the one before */
        if (i) assert_int_not_equal(before, allowed);
        before = allowed;
    }
    setenv("MXRUN_CPU", "sse9", 1);
    assert_int_equal(mx_cpu_allowed(&allowed, &error), MX_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "sse9"));
    unsetenv("MXRUN_CPU");
}

static void cores_respect_the_affinity_mask(void **state) {
    (void)state;
    cpu_set_t all, one;
    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    assert_in_range(mx_cpu_count(), 1, CPU_COUNT(&all));
    int cpu = 0;
    while (!CPU_ISSET(cpu, &all)) cpu++;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    assert_int_equal(mx_cpu_count(), 1);
    assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
}

static void memory_and_time_make_sense(void **state) {
    (void)state;
    assert_true(mx_memory_available() > 1 << 20);
    unsigned long long peak = mx_memory_peak();
    assert_true(peak > 100000);
    enum { SIZE = 64 << 20 };
    char *block = malloc(SIZE);
    assert_non_null(block);
    memset(block, 1, SIZE);
    assert_true(block[SIZE - 1] == 1 && mx_memory_peak() >= SIZE);
    free(block);
    double before = mx_seconds(), now = before;
    for (long i = 0; now == before && i < 100000000; i++) now = mx_seconds();
    assert_true(now > before && now < before + 10);
}

/* ---- a made-up /proc and /sys ------------------------------------------------------------------------------------ */
static char tree[64];

static int make_tree(void **state) {
    (void)state;
    strcpy(tree, "/tmp/mxrun-machine-XXXXXX");
    return mkdtemp(tree) ? 0 : -1;
}

static int remove_tree(void **state) {
    (void)state;
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", tree);
    return system(command);
}

static void put(const char *name, const char *content) {
    char path[300];
    snprintf(path, sizeof path, "%s%s", tree, name);
    for (char *slash = path + strlen(tree) + 1; (slash = strchr(slash, '/')); *slash++ = '/') {
        *slash = 0;
        mkdir(path, 0700);
    }
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(content, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void nothing_known_limits_nothing(void **state) {
    (void)state;
    assert_true(mx_machine_quota(tree, 8) == 8);
    assert_true(mx_machine_memory(tree) == 0);
    put("/proc/meminfo", "MemTotal:  64 kB\nMemFree: 1 kB\nMemAvailable:  9000000 kB\nCached: 5 kB\n");
    assert_true(mx_machine_memory(tree) == 9000000ull * 1024);
}

static void second_version_of_cgroups(void **state) {
    (void)state;
    put("/proc/meminfo", "MemAvailable:  9000000 kB\n");
    put("/proc/self/cgroup", "0::/a/b\n");
    put("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    put("/sys/fs/cgroup/a/cpu.max", "250000 100000\n");
    put("/sys/fs/cgroup/a/b/memory.max", "max\n");
    put("/sys/fs/cgroup/a/b/memory.current", "5\n");
    put("/sys/fs/cgroup/a/memory.max", "1000000\n");
    put("/sys/fs/cgroup/a/memory.current", "900000\n");
    assert_true(mx_machine_quota(tree, 8) == 2.5);
    assert_true(mx_machine_quota(tree, 2) == 2);
    assert_true(mx_machine_memory(tree) == 100000);
    /* page cache can be had back */
    put("/sys/fs/cgroup/a/memory.stat", "anon 7\nfile 800000\ninactive_file 500000\nactive_file 200000\nshmem 1\n");
    assert_true(mx_machine_memory(tree) == 800000);
    put("/sys/fs/cgroup/a/memory.current", "1800000\n");
    assert_true(mx_machine_memory(tree) == 0);
    put("/sys/fs/cgroup/a/memory.current", "600000\n");
    assert_true(mx_machine_memory(tree) == 1000000);
}

static void first_version_of_cgroups(void **state) {
    (void)state;
    put("/proc/meminfo", "MemAvailable:  9000000 kB\n");
    put("/proc/self/cgroup", "9:name=systemd:/\n7:cpuset:/other\n4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n0::/\n");
    put("/sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us", "-1\n");
    put("/sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us", "100000\n");
    put("/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", "9223372036854771712\n");
    put("/sys/fs/cgroup/memory/docker/x/memory.usage_in_bytes", "5\n");
    assert_true(mx_machine_quota(tree, 8) == 8);
    assert_true(mx_machine_memory(tree) == 9000000ull * 1024);
    put("/sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us", "300000\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000\n"); /* of a container without a namespace */
    put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "900000\n");
    put("/sys/fs/cgroup/memory/memory.stat",
        "inactive_file 1\nactive_file 1\ntotal_inactive_file 300000\ntotal_active_file 50000\n");
    assert_true(mx_machine_quota(tree, 8) == 3);
    assert_true(mx_machine_memory(tree) == 450000);
}

static void one_cpu_of_each_core(void **state) {
    (void)state;
    static const int package[] = {0, 0, 0, 0, 1, 1}, core[] = {0, 1, 0, 1, 0, 0};
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    for (int i = 0; i < 6; i++) {
        char name[100], value[20];
        snprintf(name, sizeof name, "/sys/devices/system/cpu/cpu%d/topology/physical_package_id", i);
        snprintf(value, sizeof value, "%d\n", package[i]);
        put(name, value);
        snprintf(name, sizeof name, "/sys/devices/system/cpu/cpu%d/topology/core_id", i);
        snprintf(value, sizeof value, "%d\n", core[i]);
        put(name, value);
        CPU_SET(i, &allowed);
    }
    int cpu[CPU_SETSIZE];
    assert_int_equal(mx_machine_cores(tree, &allowed, cpu, CPU_SETSIZE), 3);
    assert_int_equal(cpu[0], 0);
    assert_int_equal(cpu[1], 1);
    assert_int_equal(cpu[2], 4);
    assert_int_equal(mx_machine_cores(tree, &allowed, cpu, 2), 2);
    CPU_CLR(0, &allowed); /* its sibling is as good */
    CPU_CLR(4, &allowed);
    CPU_SET(100, &allowed); /* nothing is known of it */
    assert_int_equal(mx_machine_cores(tree, &allowed, cpu, CPU_SETSIZE), 4);
    assert_int_equal(cpu[0], 1);
    assert_int_equal(cpu[1], 2);
    assert_int_equal(cpu[2], 5);
    assert_int_equal(cpu[3], 100);
}

static void address_space_in_use_counts(void **state) {
    (void)state;
    const unsigned long long more = 64 << 20, all = mx_memory_available();
    unsigned long long pages = 0;
    struct rlimit old, limit;
    FILE *f = fopen("/proc/self/statm", "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%llu", &pages), 1);
    fclose(f);
    assert_int_equal(getrlimit(RLIMIT_AS, &old), 0);
    limit = (struct rlimit){pages * (unsigned long long)sysconf(_SC_PAGESIZE) + more, old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_AS, &limit), 0);
    const unsigned long long left = mx_memory_available(), beside = mx_memory_beside(more / 2);
    assert_int_equal(setrlimit(RLIMIT_AS, &old), 0);
    assert_true(left > more / 2 && left <= more);
    if (all > 4 * more) assert_true(beside > more / 2); /* mapped files have been counted */
    assert_true(mx_memory_beside(all * 2) == 0);
}

static void arenas_are_zeroed_and_aligned(void **state) {
    (void)state;
    mx_arena arena;
    assert_int_equal(mx_arena_create(3 << 20, &arena, NULL), MX_OK);
    assert_true(arena.size >= 3 << 20);
    char *last = NULL;
    size_t total = 0;
    for (size_t size = 1; total + size + 63 <= 3 << 20; size = size * 3 + 1) {
        char *p = mx_arena_take(&arena, size);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        assert_true(p > last);
        for (size_t i = 0; i < size; i++) assert_int_equal(p[i], 0);
        memset(p, 0xAA, size);
        last = p;
        total += (size + 63) / 64 * 64;
    }
    size_t left = arena.size - arena.used;
    assert_null(mx_arena_take(&arena, left + 1));
    assert_non_null(mx_arena_take(&arena, left));
    assert_null(mx_arena_take(&arena, 1));
    assert_null(mx_arena_take(&arena, SIZE_MAX));
    assert_null(mx_arena_take(&arena, SIZE_MAX - 63));
    mx_arena_destroy(&arena);
    assert_null(arena.base);
    mx_arena_destroy(&arena);
}

static void arenas_beyond_the_address_space_are_refused(void **state) {
    (void)state;
    mx_arena arena;
    mx_error error;
    assert_int_equal(mx_arena_create(SIZE_MAX, &arena, &error), MX_NO_MEMORY);
    assert_int_equal(mx_arena_create((size_t)1 << 60, &arena, &error), MX_NO_MEMORY);
    assert_null(arena.base);
    mx_arena_destroy(&arena);
    assert_int_equal(mx_arena_create(0, &arena, &error), MX_OK);
    mx_arena_destroy(&arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(detected_sets_include_what_they_build_on),
        cmocka_unit_test(the_variable_limits_the_tier),
        cmocka_unit_test(cores_respect_the_affinity_mask),
        cmocka_unit_test(memory_and_time_make_sense),
        cmocka_unit_test_setup_teardown(nothing_known_limits_nothing, make_tree, remove_tree),
        cmocka_unit_test_setup_teardown(second_version_of_cgroups, make_tree, remove_tree),
        cmocka_unit_test_setup_teardown(first_version_of_cgroups, make_tree, remove_tree),
        cmocka_unit_test_setup_teardown(one_cpu_of_each_core, make_tree, remove_tree),
        cmocka_unit_test(address_space_in_use_counts),
        cmocka_unit_test(arenas_are_zeroed_and_aligned),
        cmocka_unit_test(arenas_beyond_the_address_space_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
