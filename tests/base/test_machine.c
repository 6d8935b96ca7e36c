#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/cpu.h"

static const struct {
    const char *name;
    unsigned needed;
} tiers[] = {
    {"scalar", 0},
    {"avx2", MX_CPU_AVX2},
    {"avx512", MX_CPU_AVX512},
    {"avx512bf16", MX_CPU_AVX512 | MX_CPU_AVX512_BF16},
};

static void detected_sets_include_what_they_build_on(void **state) {
    (void)state;
    unsigned found = mx_cpu_detect();
    if (found & MX_CPU_AVX512) assert_true(found & MX_CPU_AVX2);
    if (found & (MX_CPU_AVX512_BF16 | MX_CPU_AVX512_VNNI)) assert_true(found & MX_CPU_AVX512);
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
        cmocka_unit_test(arenas_are_zeroed_and_aligned),
        cmocka_unit_test(arenas_beyond_the_address_space_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
