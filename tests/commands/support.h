#ifndef TESTS_COMMANDS_SUPPORT_H
#define TESTS_COMMANDS_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/json.h"

/* Runs mxrun as a user would. `stories` is found wherever the build folder is; HOME is an empty folder. */
int program_set_up(void **state);
int program_tear_down(void **state);
extern char test_folder[]; /* for files of tests; removed with all that is in it */

typedef struct outcome {
    int code;          /* exit code; 128 + N after signal N */
    mx_bytes out, err; /* NUL-terminated, never NULL */
    double resident;   /* bytes at most */
} outcome;
void outcome_free(outcome *o);

/* What the child reads and writes besides pipes. All zeros: stdin is empty, everything is captured. */
typedef struct surroundings {
    const char *input;
    size_t input_size;       /* 0: strlen(input) */
    const char *stdout_path; /* instead of capturing: "/dev/full" */
    size_t close_stdout_at;  /* close the pipe after so many bytes of stdout */
    int interrupt_after;     /* send SIGINT after so many bytes of stdout */
    const char *program;     /* instead of MXRUN_BINARY */
} surroundings;

/* Arguments behind the program's name. A child that takes longer than two minutes fails the test. */
outcome run_with(const surroundings *s, const char *const *arguments);
#define run(...)             run_with(&(surroundings){0}, (const char *const[]){__VA_ARGS__, NULL})
#define run_input(text, ...) run_with(&(surroundings){.input = text}, (const char *const[]){__VA_ARGS__, NULL})

/* Fails the test with everything there is to see. */
void expect_code(const outcome *o, int code);
void expect_text(const mx_bytes *text, const char *part);
void expect_no_text(const mx_bytes *text, const char *part);

/* stdout as JSON; free with mx_json_free. */
mx_json_document *parse_output(const outcome *o);

void write_test_file(const char *name, const char *content, char path[static 200]);

#endif
