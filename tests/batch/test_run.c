/* Runs of batch in this process, in front of an engine whose memory may run out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "batch/batch.h"
#include "engine/model_parts.h"
#include "turn/turn.h"

/* How many requests there is memory for, and what was seen. */
static int memory_for = 1000, refused, most_at_work;

mx_status __real_mx_submit(mx_engine *engine, const mx_request *request, mx_handle *out, mx_error *error);
mx_status __wrap_mx_submit(mx_engine *engine, const mx_request *request, mx_handle *out, mx_error *error);
mx_status __wrap_mx_submit(mx_engine *engine, const mx_request *request, mx_handle *out, mx_error *error) {
    const mx_engine_stats stats = mx_engine_get_stats(engine);
    const int at_work = (int)(stats.submitted - stats.finished);
    if (at_work >= memory_for) {
        refused++;
        return mx_fail(error, MX_NO_MEMORY, "no memory for a request");
    }
    if (at_work + 1 > most_at_work) most_at_work = at_work + 1;
    return __real_mx_submit(engine, request, out, error);
}

static char folder[] = "/tmp/mxrun-batch-XXXXXX", model_path[600], input[60], output[60];
static mx_model *model;
static mx_tokenizer *tokenizer;
static mx_ids stop_tokens;

static int set_up(void **state) {
    mx_error error;
    (void)state;
    snprintf(model_path, sizeof model_path, "%s/tools/stories/checkpoint", getenv("MXRUN_SOURCE"));
    if (!mkdtemp(folder)) return -1;
    snprintf(input, sizeof input, "%s/in", folder);
    snprintf(output, sizeof output, "%s/out", folder);
    if (mx_model_open(model_path, NULL, &model, &error) || mx_tokenizer_open(model_path, &tokenizer, &error)) return -1;
    return mx_turn_stop_tokens(tokenizer, mx_model_config(model), &stop_tokens) ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    mx_ids_free(&stop_tokens);
    mx_tokenizer_close(tokenizer);
    mx_model_close(model);
    unlink(input);
    unlink(output);
    return rmdir(folder);
}

/* Two lines of 40 answers, and one that is wrong. */
#define LINES                                                                                                          \
    "{\"prompt\":\"Once upon a time\",\"n\":40,\"max_tokens\":3}\n{\"prompt\":7}\n"                                    \
    "{\"prompt\":\"There was\",\"n\":2,\"best_of\":40,\"max_tokens\":3}\n"

static mx_status run(const char *lines, int max_in_flight, mx_batch_state *state, mx_error *error) {
    FILE *f = fopen(input, "w");
    assert_non_null(f);
    fputs(lines, f);
    fclose(f);
    unlink(output);
    mx_engine *engine;
    mx_batch *batch;
    const mx_batch_files files = {.input = input, .output = output};
    const mx_engine_options options = {.context = 256, .max_running = max_in_flight, .threads = 1};
    assert_int_equal(mx_engine_create(model, &options, &engine, error), MX_OK);
    assert_int_equal(mx_batch_open(&files, &batch, error), MX_OK);
    const mx_engine_info info = mx_engine_get_info(engine);
    mx_batch_settings settings = {.tokenizer = tokenizer,
                                  .raw = true,
                                  .model = "stories",
                                  .sampling = mx_model_sampling(model),
                                  .stop_tokens = &stop_tokens,
                                  .vocab = info.vocab,
                                  .setup = {.context = info.context, .tier = "any", .precision = "any"}};
    const mx_batch_work work = {.engine = engine, .max_in_flight = max_in_flight};
    refused = most_at_work = 0;
    const mx_status status = mx_batch_run(batch, &settings, &work, state, error);
    mx_batch_close(batch);
    mx_engine_destroy(engine);
    return status;
}

static void test_answers_are_counted(void **unused) {
    (void)unused;
    mx_batch_state state;
    mx_error error;
    memory_for = 1000;
    assert_int_equal(run(LINES, 8, &state, &error), MX_OK);
    assert_int_equal(state.done, 3);
    assert_int_equal(state.wrong, 1);
    assert_int_equal(most_at_work, 8);
}

static void test_waits_for_memory(void **unused) {
    (void)unused;
    mx_batch_state state;
    mx_error error;
    memory_for = 3;
    assert_int_equal(run(LINES, 8, &state, &error), MX_OK);
    assert_int_equal(state.done, 3);
    assert_int_equal(state.wrong, 1);
    assert_int_equal(most_at_work, 3);
    assert_true(refused > 0);
}

static void test_no_memory_at_all(void **unused) {
    (void)unused;
    mx_batch_state state;
    mx_error error;
    memory_for = 0;
    assert_int_equal(run(LINES, 8, &state, &error), MX_NO_MEMORY);
    assert_string_equal(error.text, "line 1: no memory for a request");
}

/* The deadline is the line's, also of answers that waited for others of it. */
static void test_deadline_of_a_line(void **unused) {
    (void)unused;
    mx_batch_state state;
    mx_error error;
    memory_for = 1000;
    const char *line = "{\"prompt\":\"There was\",\"n\":100,\"deadline\":0.2,\"logit_bias\":{\"4088\":-100,"
                       "\"4089\":-100,\"4095\":-100}}\n";
    assert_int_equal(run(line, 1, &state, &error), MX_OK);
    assert_int_equal(state.done, 1);
    assert_int_equal(state.wrong, 0);
    assert_true(state.seconds < 10 && state.generated_tokens < 100 * 128); /* 0.2 s for each would be more of one */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers_are_counted),
        cmocka_unit_test(test_waits_for_memory),
        cmocka_unit_test(test_no_memory_at_all),
        cmocka_unit_test(test_deadline_of_a_line),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
