#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "base/status.h"

static void fail_writes_message_and_returns_status(void **state) {
    (void)state;
    mx_error error = {0};
    assert_int_equal(mx_fail(&error, MX_INVALID_FILE, "%s: %d found, %d expected", "config.json", 3, 4),
                     MX_INVALID_FILE);
    assert_int_equal(error.status, MX_INVALID_FILE);
    assert_string_equal(error.text, "config.json: 3 found, 4 expected");
    assert_int_equal(mx_fail(NULL, MX_IO, "nobody listens"), MX_IO);
}

static void long_messages_are_cut(void **state) {
    (void)state;
    char text[3000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = 0;
    mx_error error;
    mx_fail(&error, MX_IO, "%s", text);
    assert_int_equal(strlen(error.text), sizeof error.text - 1);
    assert_int_equal(mx_fail_within(&error, MX_IO, "%s", text), MX_IO);
    assert_int_equal(strlen(error.text), sizeof error.text - 1);
}

static void fail_within_puts_prefix_before(void **state) {
    (void)state;
    mx_error error;
    mx_fail(&error, MX_NO_MEMORY, "inner 100%%");
    assert_int_equal(mx_fail_within(&error, MX_IO, "outer %d", 7), MX_NO_MEMORY);
    assert_string_equal(error.text, "outer 7: inner 100%");
    assert_int_equal(mx_fail_within(NULL, MX_IO, "nobody listens"), MX_IO);
}

static void every_status_has_its_own_name(void **state) {
    (void)state;
    for (int a = MX_OK; a <= MX_NO_SPACE; a++) {
        assert_string_not_equal(mx_status_name((mx_status)a), "unknown status");
        for (int b = MX_OK; b < a; b++)
            assert_string_not_equal(mx_status_name((mx_status)a), mx_status_name((mx_status)b));
    }
    assert_string_equal(mx_status_name((mx_status)99), "unknown status");
}

struct seen {
    int lines;
    mx_log_level level;
    char line[1200];
};

static void remember(void *user, mx_log_level level, const char *line) {
    struct seen *seen = user;
    seen->lines++;
    seen->level = level;
    snprintf(seen->line, sizeof seen->line, "%s", line);
}

static void log_reaches_the_sink_from_its_level_on(void **state) {
    (void)state;
    struct seen seen = {0};
    mx_log_set_sink(remember, &seen);
    setenv("MXRUN_LOG", "warning", 1);
    mx_log(MX_LOG_INFO, "dropped");
    assert_int_equal(seen.lines, 0);
    mx_log(MX_LOG_WARNING, "%d layers", 12);
    assert_int_equal(seen.lines, 1);
    assert_int_equal(seen.level, MX_LOG_WARNING);
    assert_string_equal(seen.line, "12 layers");
    mx_log_set_level(MX_LOG_DEBUG);
    mx_log(MX_LOG_DEBUG, "all");
    assert_int_equal(seen.lines, 2);
    mx_log_set_sink(NULL, NULL);
    mx_log_set_level(MX_LOG_ERROR);
    mx_log(MX_LOG_WARNING, "dropped");
    assert_int_equal(seen.lines, 2);
}

/* In a process of its own: the variable is read once. */
static void an_unknown_level_is_named_once(void **state) {
    (void)state;
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct seen seen = {0};
        mx_log_set_sink(remember, &seen);
        setenv("MXRUN_LOG", "loud", 1);
        mx_log(MX_LOG_DEBUG, "dropped");
        bool named =
            seen.lines == 1 && seen.level == MX_LOG_WARNING && strstr(seen.line, "MXRUN_LOG=loud: debug, info");
        mx_log(MX_LOG_DEBUG, "dropped");
        mx_log(MX_LOG_INFO, "said");
        _exit(named && seen.lines == 2 && !strcmp(seen.line, "said") ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fail_writes_message_and_returns_status),
        cmocka_unit_test(long_messages_are_cut),
        cmocka_unit_test(fail_within_puts_prefix_before),
        cmocka_unit_test(every_status_has_its_own_name),
        cmocka_unit_test(an_unknown_level_is_named_once),
        cmocka_unit_test(log_reaches_the_sink_from_its_level_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
