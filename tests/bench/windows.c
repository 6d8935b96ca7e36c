/* What becomes of measured windows: which are dropped, and the medians of the others. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "bench/windows.h"

static bool near(double a, double b) {
    return fabs(a - b) <= 1e-9 * fabs(b);
}

static void medians_and_ranges(void **state) {
    (void)state;
    double odd[] = {5, 1, 4, 2, 30}, even[] = {4, 1, 3, 2}, one[] = {7};
    assert_true(mx_median(odd, 5) == 4 && mx_median(even, 4) == 2.5 && mx_median(one, 1) == 7 &&
                mx_median(odd, 0) == 0);
    mx_bench_range r = mx_window_range((double[]){5, 1, 4, 2, 30}, 5);
    assert_true(r.median == 4 && r.low == 1 && r.high == 30);
    r = mx_window_range(NULL, 0);
    assert_true(r.median == 0 && r.low == 0 && r.high == 0);
}

static void a_window_has_a_speed_and_a_floor(void **state) {
    (void)state;
    /* 10 tokens in 2 s; 60 GB at 40 and 20 GB/s, mean 30, take 2 s at least */
    mx_window w = mx_window_make(10, 2, 60e9, 8e9, 0.5, 40e9, 20e9);
    assert_true(near(w.speed, 5) && near(w.floor, 5) && near(w.matrix, 4e9) && w.by_memory);
    w = mx_window_make(10, 2, 60e9, 8e9, 2.5, 40e9, 20e9); /* the multiplications take longer */
    assert_true(near(w.floor, 4) && !w.by_memory);
}

/* Ten per cent of the larger sample, whichever comes first. */
static void samples_apart_make_a_window_unsteady(void **state) {
    (void)state;
    static const struct {
        double before, after;
        bool steady;
    } cases[] = {{100, 100, true},   {100, 90.1, true}, {90.1, 100, true}, {100, 89.9, false},
                 {89.9, 100, false}, {100, 108, true},  {100, 112, false}, {20e9, 60e9, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(mx_window_make(5, 1, 1, 1, 0, cases[i].before, cases[i].after).steady, cases[i].steady);
}

/* Windows of speed 10, 20 ... and floor 100, 101 ...; "-" is an unsteady one. */
static mx_bench_result sum_of(const char *steady, bool prompt) {
    mx_window w[20];
    double room[20];
    const int count = (int)strlen(steady);
    mx_bench_result r = {.test = {.prompt = prompt}, .dropped = 77, .windows = 77};
    for (int i = 0; i < count; i++)
        w[i] = (mx_window){.speed = 10 * (i + 1),
                           .floor = 100 + i,
                           .matrix = 1e9 * (i + 1),
                           .steady = steady[i] == '+',
                           .by_memory = i % 2 == 0};
    mx_windows_sum_up(w, count, 1e10, room, &r);
    assert_int_equal(r.windows, count);
    return r;
}

static void unsteady_windows_are_dropped(void **state) {
    (void)state;
    mx_bench_result r = sum_of("+-++-", false);
    assert_int_equal(r.dropped, 2);
    assert_false(r.unsteady);
    assert_true(r.speed.median == 30 && r.speed.low == 10 && r.speed.high == 40);
    assert_true(r.floor == 102 && near(r.percent, 100 * 30. / 102) && near(r.matrix_percent, 30));
    r = sum_of("+++++", false);
    assert_true(!r.dropped && !r.unsteady && r.speed.median == 30 && r.speed.high == 50);
    r = sum_of("--+-", false);
    assert_true(r.dropped == 3 && r.speed.median == 30 && r.speed.low == 30 && r.speed.high == 30);
}

/* Something must be told: with a question mark. */
static void where_all_are_unsteady_all_count(void **state) {
    (void)state;
    mx_bench_result r = sum_of("---", false);
    assert_true(r.unsteady && !r.dropped && r.speed.median == 20 && r.speed.low == 10 && r.speed.high == 30);
}

static void prompts_drop_nothing(void **state) {
    (void)state;
    mx_bench_result r = sum_of("+-++-", true);
    assert_true(!r.dropped && r.speed.median == 30 && r.speed.high == 50);
    r = sum_of("--", true);
    assert_false(r.unsteady);
}

static void of_nothing_there_is_nothing(void **state) {
    (void)state;
    mx_bench_result r = sum_of("", false);
    assert_true(!r.dropped && !r.unsteady && r.speed.median == 0 && r.floor == 0 && r.percent == 0);
}

/* Half of the windows are enough. */
static void the_floor_is_named_after_most_windows(void **state) {
    (void)state;
    assert_true(sum_of("++", false).by_memory);
    assert_true(sum_of("+++", false).by_memory);
    mx_window w[3] = {{.speed = 1, .floor = 1, .steady = true, .by_memory = true},
                      {.speed = 1, .floor = 1, .steady = true},
                      {.speed = 1, .floor = 1, .steady = true}};
    double room[3];
    mx_bench_result r = {.matrix_percent = -1};
    mx_windows_sum_up(w, 3, 0, room, &r);
    assert_false(r.by_memory);
    assert_true(r.matrix_percent == -1); /* no peak is known */
    w[0].steady = w[1].steady = false;
    w[1].by_memory = true; /* what is dropped has no vote */
    mx_windows_sum_up(w, 3, 0, room, &r);
    assert_false(r.by_memory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(medians_and_ranges),
        cmocka_unit_test(a_window_has_a_speed_and_a_floor),
        cmocka_unit_test(samples_apart_make_a_window_unsteady),
        cmocka_unit_test(unsteady_windows_are_dropped),
        cmocka_unit_test(where_all_are_unsteady_all_count),
        cmocka_unit_test(prompts_drop_nothing),
        cmocka_unit_test(of_nothing_there_is_nothing),
        cmocka_unit_test(the_floor_is_named_after_most_windows),
    };
    return cmocka_run_group_tests_name("windows", tests, NULL, NULL);
}
