#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/progress.h"

static void bytes_have_rate_and_time(void **state) {
    (void)state;
    mx_progress p = {.label = "writing", .total = 13.8e9, .bytes = true};
    char line[300];
    mx_progress_line(&p, 6.9e9, 10, 200, line);
    assert_string_equal(line, "writing  [############            ]  6.9 of 13.8 GB  690 MB/s  10 s left");
    p.total = 50e6;
    mx_progress_line(&p, 50e6, 1, 200, line);
    assert_string_equal(line, "writing  [########################]  50 of 50 MB  50 MB/s  ");
}

static void steps_have_per_cent(void **state) {
    (void)state;
    mx_progress p = {.label = "decode", .total = 8};
    char line[300];
    mx_progress_line(&p, 2, 100, 200, line);
    assert_string_equal(line, "decode  [######                  ]   25 %  5 min left");
    mx_progress_line(&p, 0.02, 1, 200, line);
    assert_null(strstr(line, "left")); /* too early to tell */
}

static void line_fits_and_values_are_bounded(void **state) {
    (void)state;
    mx_progress p = {.label = "writing", .total = 13.8e9, .bytes = true};
    char line[300];
    mx_progress_line(&p, 99e9, 10, 40, line);
    assert_int_equal(strlen(line), 39);
    mx_progress_line(&p, 6.9e9, 10, 60, line); /* the bar gives way */
    assert_string_equal(line, "writing  [#####      ]  6.9 of 13.8 GB  690 MB/s  10 s left");
    mx_progress_line(&p, -5, 10, 0, line);
    assert_non_null(strstr(line, "0.0 of 13.8 GB"));
    p.total = 0;
    mx_progress_line(&p, 0, 0, 0, line); /* no division by zero */
}

static void silent_without_a_terminal(void **state) {
    (void)state;
    mx_progress p;
    mx_progress_start(&p, "writing", 10, false); /* stderr of a test is a pipe or a file */
    if (p.terminal) skip();
    p.started -= 10;
    mx_progress_update(&p, 5);
    assert_false(p.shown);
    mx_progress_clear(&p);
}

static void whole_numbers_get_commas(void **state) {
    (void)state;
    char text[32];
    assert_string_equal(mx_with_commas(0, text), "0");
    assert_string_equal(mx_with_commas(999, text), "999");
    assert_string_equal(mx_with_commas(1000, text), "1,000");
    assert_string_equal(mx_with_commas(-999, text), "-999");
    assert_string_equal(mx_with_commas(-131072, text), "-131,072");
    assert_string_equal(mx_with_commas(INT64_MIN, text), "-9,223,372,036,854,775,808");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_have_rate_and_time),         cmocka_unit_test(steps_have_per_cent),
        cmocka_unit_test(line_fits_and_values_are_bounded), cmocka_unit_test(silent_without_a_terminal),
        cmocka_unit_test(whole_numbers_get_commas),
    };
    return cmocka_run_group_tests_name("progress", tests, NULL, NULL);
}
