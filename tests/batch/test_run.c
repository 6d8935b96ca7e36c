/* Runs of batch in this process, in front of an engine whose memory may run out. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
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

/* Answers that the engine fails from now on, of those that end. */
static int fails;
int __real_mx_poll(mx_engine *engine, mx_event *events, int max);
int __wrap_mx_poll(mx_engine *engine, mx_event *events, int max);
int __wrap_mx_poll(mx_engine *engine, mx_event *events, int max) {
    const int n = __real_mx_poll(engine, events, max);
    for (int i = 0; i < n && fails; i++) {
        if (events[i].type != MX_EVENT_FINISHED) continue;
        events[i].type = MX_EVENT_FAILED;
        mx_fail(&events[i].error, MX_IO, "the device went away");
        fails--;
    }
    return n;
}

/* A clock that is ahead of the other. */
static double ahead;
double __real_mx_seconds(void);
double __wrap_mx_seconds(void);
double __wrap_mx_seconds(void) {
    return __real_mx_seconds() + ahead;
}

static int syncs;
int __wrap_fdatasync(int file);
int __wrap_fdatasync(int file) {
    (void)file;
    syncs++;
    return 0;
}

/* Where a new file cannot have the name of the old one. */
static bool busy;
int __real_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to) {
    if (busy) errno = EBUSY;
    return busy ? -1 : __real_rename(from, to);
}

static char synced[1000]; /* names of what was, one after the other */
int __wrap_fsync(int file);
int __wrap_fsync(int file) {
    char link[60];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    const size_t before = strlen(synced);
    const ssize_t n = readlink(link, synced + before, sizeof synced - before - 2);
    if (n > 0) strcpy(synced + before + n, "\n");
    return 0;
}

static int warnings;
static void count_warning(void *user, mx_log_level level, const char *line) {
    (void)user;
    (void)line;
    warnings += level == MX_LOG_WARNING;
}

/* A signal that comes right before the program waits for input. */
static volatile sig_atomic_t interrupted;
static int waits_until_signal = -1; /* counted down */
int __real_poll(struct pollfd *list, nfds_t count, int milliseconds);
int __wrap_poll(struct pollfd *list, nfds_t count, int milliseconds);
int __wrap_poll(struct pollfd *list, nfds_t count, int milliseconds) {
    if (milliseconds && waits_until_signal >= 0 && waits_until_signal-- == 0) interrupted = 1;
    return __real_poll(list, count, milliseconds);
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

/* Of the next runs, beside what is in the file. */
static uint64_t fingerprint;
static const char *tier = "any";

/* What is in the output goes on. */
static mx_status go_on(int max_in_flight, bool ordered, void (*progress)(void *, const mx_batch_state *),
                       mx_batch_state *state, mx_error *error) {
    mx_engine *engine;
    mx_batch *batch;
    const mx_batch_files files = {.input = input, .output = output, .ordered = ordered, .fingerprint = fingerprint};
    const mx_engine_options options = {.context = 256, .max_running = max_in_flight, .threads = 1};
    mx_status status = mx_batch_open(&files, &batch, error);
    if (status) return status;
    assert_int_equal(mx_engine_create(model, &options, &engine, error), MX_OK);
    const mx_engine_info info = mx_engine_get_info(engine);
    mx_api_settings settings = {.tokenizer = tokenizer,
                                .raw = true,
                                .model = "stories",
                                .sampling = mx_model_sampling(model),
                                .stop_tokens = &stop_tokens,
                                .vocab = info.vocab,
                                .setup = {.context = info.context, .tier = "", .precision = "any"}};
    strcpy(settings.setup.tier, tier);
    const mx_batch_work work = {
        .engine = engine, .max_in_flight = max_in_flight, .interrupted = &interrupted, .progress = progress};
    refused = most_at_work = 0;
    status = mx_batch_run(batch, &settings, &work, state, error);
    mx_batch_close(batch);
    mx_engine_destroy(engine);
    return status;
}

static void write_input(const char *lines) {
    FILE *f = fopen(input, "w");
    assert_non_null(f);
    fputs(lines, f);
    fclose(f);
}

static mx_status run(const char *lines, int max_in_flight, mx_batch_state *state, mx_error *error) {
    write_input(lines);
    unlink(output);
    return go_on(max_in_flight, false, NULL, state, error);
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
                       "\"4089\":-100,\"4092\":-100,\"4095\":-100}}\n";
    assert_int_equal(run(line, 1, &state, &error), MX_OK);
    assert_int_equal(state.done, 1);
    assert_int_equal(state.wrong, 0);
    assert_true(state.seconds < 10 && state.generated_tokens < 100 * 128); /* 0.2 s for each would be more of one */
}

/* ---- the disk ----------------------------------------------------------------------------------------------------
 */
static int64_t records;
static int syncs_before;
static double unsynced_since, oldest; /* the most that a record waited for the disk */

static void watch_the_disk(void *user, const mx_batch_state *s) {
    (void)user;
    const double now = __wrap_mx_seconds();
    if (syncs > syncs_before) unsynced_since = 0;
    syncs_before = syncs;
    if (unsynced_since > 0 && now - unsynced_since > oldest) oldest = now - unsynced_since;
    if (s->done > records && unsynced_since <= 0) unsynced_since = now;
    records = s->done;
    ahead += 0.25; /* what the next step takes */
}

/* A record is on the disk within two seconds also where the next one is long in coming. */
static void test_records_reach_the_disk(void **unused) {
    (void)unused;
    mx_batch_state state;
    mx_error error;
    memory_for = 1000;
    write_input("{\"prompt\":\"Once\",\"max_tokens\":1}\n{\"prompt\":\"There\",\"max_tokens\":3}\n"
                "{\"prompt\":\"There was\",\"max_tokens\":80,\"logit_bias\":{\"4088\":-100,\"4089\":-100,"
                "\"4092\":-100,\"4095\":-100}}\n");
    unlink(output);
    syncs = syncs_before = 0;
    records = 0;
    unsynced_since = oldest = 0;
    assert_int_equal(go_on(8, false, watch_the_disk, &state, &error), MX_OK);
    assert_int_equal(state.done, 3);
    if (oldest > 2.3) fail_msg("a record waited %.1f s", oldest);
    assert_in_range(syncs, 2, 10);
    ahead = 0;
}

/* ---- a signal ----------------------------------------------------------------------------------------------------
 */
/* Ctrl-C just before the program waits for a pipe in which nothing is. */
static void test_signal_before_waiting(void **unused) {
    (void)unused;
    mx_batch_state state;
    mx_error error;
    unlink(input);
    unlink(output);
    assert_int_equal(mkfifo(input, 0600), 0);
    const int writer = open(input, O_RDWR);
    assert_true(writer >= 0);
    assert_int_equal(write(writer, "{\"prompt\":7}\n", 13), 13);
    alarm(60);
    waits_until_signal = 3;
    assert_int_equal(go_on(8, false, NULL, &state, &error), MX_CANCELLED);
    alarm(0);
    assert_int_equal(state.done, 1);
    interrupted = 0;
    close(writer);
    unlink(input);
}

/* ---- the engine fails --------------------------------------------------------------------------------------------
 */
static int lines_with(const char *what) {
    char *line = NULL;
    size_t size = 0;
    int n = 0;
    FILE *f = fopen(output, "r");
    assert_non_null(f);
    while (getline(&line, &size, f) > 0) n += strstr(line, what) != NULL;
    free(line);
    fclose(f);
    return n;
}

/* What the engine failed has a record that says so, and is done again by the next run; what is wrong with a line is
 * not. */
static void test_failed_lines_are_done_again(void **unused) {
    (void)unused;
    static const char lines[] =
        "{\"prompt\":\"A\",\"max_tokens\":2}\n{\"prompt\":\"B\",\"max_tokens\":3}\n{\"prompt\":7}\n"
        "{\"custom_id\":\"c\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{\"model\":\"m\","
        "\"prompt\":\"C\",\"max_tokens\":4}}\n{\"prompt\":\"D\",\"max_tokens\":5}\n";
    mx_batch_state state;
    mx_error error;
    struct stat info;
    memory_for = 1000;
    for (int ordered = 0; ordered < 2; ordered++) {
        write_input(lines);
        unlink(output);
        fails = 3;
        assert_int_equal(go_on(8, ordered, NULL, &state, &error), MX_OK);
        assert_int_equal(state.done, 5);
        assert_int_equal(state.wrong, 4);
        assert_int_equal(state.failed, 3);
        assert_int_equal(lines_with("\"server_error\""), 3);
        assert_int_equal(lines_with("the device went away"), 3);
        chmod(output, 0640);
        fails = 1;
        assert_int_equal(go_on(8, ordered, NULL, &state, &error), MX_OK);
        assert_int_equal(state.done, ordered ? 0 : 3);
        assert_int_equal(state.before, ordered ? 5 : 2);
        assert_int_equal(lines_with("\"server_error\""), ordered ? 3 : 1);
        fails = 0;
        assert_int_equal(go_on(8, ordered, NULL, &state, &error), MX_OK);
        assert_int_equal(state.done, ordered ? 0 : 1);
        assert_int_equal(lines_with("\"server_error\""), ordered ? 3 : 0);
        assert_int_equal(lines_with("req_"), 5);
        assert_int_equal(lines_with("invalid_request_error"), 1);
        assert_int_equal(stat(output, &info), 0);
        assert_int_equal(info.st_mode & 0777, 0640);
    }
}

static const char three[] = "{\"prompt\":\"A\",\"max_tokens\":2}\n{\"prompt\":\"B\",\"max_tokens\":3}\n"
                            "{\"prompt\":\"C\",\"max_tokens\":4}\n";

/* An output of three lines, some of which the engine failed. */
static void write_failed(int count) {
    mx_batch_state state;
    mx_error error;
    memory_for = 1000;
    fails = count;
    assert_int_equal(run(three, 8, &state, &error), MX_OK);
    assert_int_equal(lines_with("\"server_error\""), count);
    fails = 0;
}

static void read_output(char *out, size_t size) {
    FILE *f = fopen(output, "r");
    assert_non_null(f);
    out[fread(out, 1, size - 1, f)] = 0;
    fclose(f);
}

/* Whoever has other lines, another model or other kernels changes nothing, also where no line was answered. */
static void test_who_is_refused_takes_nothing_out(void **unused) {
    (void)unused;
    static char before[10000], after[10000];
    mx_batch_state state;
    mx_error error;
    for (int count = 1; count <= 3; count += 2) {
        write_failed(count);
        read_output(before, sizeof before);
        fingerprint = 7;
        assert_int_equal(go_on(8, false, NULL, &state, &error), MX_INVALID_FILE);
        fingerprint = 0;
        tier = "other";
        assert_int_equal(go_on(8, false, NULL, &state, &error), MX_INVALID_ARGUMENT);
        tier = "any";
        write_input("{\"prompt\":\"Z\"}\n{\"prompt\":\"Y\"}\n{\"prompt\":\"X\"}\n");
        assert_int_equal(go_on(8, false, NULL, &state, &error), MX_INVALID_FILE);
        write_input("{\"prompt\":\"A\",\"max_tokens\":2}\n");
        assert_int_equal(go_on(8, false, NULL, &state, &error), MX_INVALID_FILE);
        read_output(after, sizeof after);
        assert_string_equal(before, after);
        write_input(three);
        assert_int_equal(go_on(8, false, NULL, &state, &error), MX_OK);
        assert_int_equal(state.done, count);
        assert_int_equal(lines_with("\"server_error\""), 0);
    }
}

/* From a pipe a line is known only when it comes. */
static void test_pipe_that_is_refused_takes_nothing_out(void **unused) {
    (void)unused;
    static char before[10000], after[10000];
    mx_batch_state state;
    mx_error error;
    write_failed(3);
    read_output(before, sizeof before);
    for (int wrong = 1; wrong >= 0; wrong--) {
        unlink(input);
        assert_int_equal(mkfifo(input, 0600), 0);
        const int both = open(input, O_RDWR), writer = open(input, O_WRONLY);
        assert_int_equal(write(writer, three, sizeof three - 1), sizeof three - 1);
        fingerprint = wrong ? 7 : 0;
        interrupted = 0;
        waits_until_signal = 3; /* a pipe that stays open */
        alarm(60);
        assert_int_equal(go_on(8, false, NULL, &state, &error), wrong ? MX_INVALID_FILE : MX_CANCELLED);
        alarm(0);
        interrupted = 0;
        waits_until_signal = -1;
        close(writer);
        close(both);
        read_output(after, sizeof after);
        if (wrong) assert_string_equal(before, after);
    }
    assert_int_equal(state.done, 3);
    assert_int_equal(lines_with("\"server_error\""), 0);
    unlink(input);
}

/* Where the file cannot be written anew, such as one that is mounted, its records stay. */
static void test_failed_lines_that_must_stay(void **unused) {
    (void)unused;
    static char before[10000], after[10000], beside[80];
    mx_batch_state state;
    mx_error error;
    write_failed(2);
    read_output(before, sizeof before);
    snprintf(beside, sizeof beside, "%s.mxrun-new", output);
    FILE *stale = fopen(beside, "w"); /* a run was killed */
    assert_non_null(stale);
    fclose(stale);
    busy = true;
    warnings = 0;
    mx_log_set_sink(count_warning, NULL);
    assert_int_equal(go_on(8, false, NULL, &state, &error), MX_OK);
    mx_log_set_sink(NULL, NULL);
    busy = false;
    assert_int_equal(warnings, 1);
    assert_int_equal(state.before, 3);
    assert_int_equal(state.done, 0);
    read_output(after, sizeof after);
    assert_string_equal(before, after);
    assert_int_equal(access(beside, F_OK), -1);
    assert_int_equal(go_on(8, false, NULL, &state, &error), MX_OK);
    assert_int_equal(state.done, 2);
}

/* The new file is where a link leads to, its name is on the disk, and it belongs to whom the old one did. */
static void test_new_file_is_like_the_old_one(void **unused) {
    (void)unused;
    char target_folder[80], target[100], line[100];
    mx_batch_state state;
    mx_error error;
    struct stat info;
    write_failed(1);
    snprintf(target_folder, sizeof target_folder, "%s/far", folder);
    snprintf(target, sizeof target, "%s/target", target_folder);
    assert_int_equal(mkdir(target_folder, 0700), 0);
    assert_int_equal(rename(output, target), 0);
    assert_int_equal(symlink("far/target", output), 0);
    const bool root = geteuid() == 0;
    if (root) assert_int_equal(chown(target, 1234, 4321), 0);
    synced[0] = 0;
    assert_int_equal(go_on(8, false, NULL, &state, &error), MX_OK);
    assert_int_equal(state.done, 1);
    assert_int_equal(lstat(output, &info), 0);
    assert_true(S_ISLNK(info.st_mode));
    assert_int_equal(stat(output, &info), 0);
    assert_int_equal(info.st_uid, root ? 1234 : geteuid());
    if (root) assert_int_equal(info.st_gid, 4321);
    snprintf(line, sizeof line, "%s\n", target_folder);
    assert_non_null(strstr(synced, line));
    unlink(target);
    rmdir(target_folder);
    unlink(output);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers_are_counted),
        cmocka_unit_test(test_waits_for_memory),
        cmocka_unit_test(test_no_memory_at_all),
        cmocka_unit_test(test_deadline_of_a_line),
        cmocka_unit_test(test_records_reach_the_disk),
        cmocka_unit_test(test_signal_before_waiting),
        cmocka_unit_test(test_failed_lines_are_done_again),
        cmocka_unit_test(test_who_is_refused_takes_nothing_out),
        cmocka_unit_test(test_pipe_that_is_refused_takes_nothing_out),
        cmocka_unit_test(test_failed_lines_that_must_stay),
        cmocka_unit_test(test_new_file_is_like_the_old_one),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
