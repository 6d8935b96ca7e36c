#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "batch_support.h"

/* ---- going on ---------------------------------------------------------------------------------------------------- */
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Starts mxrun with stdin from `in` (-1: none) and stderr and stdout to nothing. */
static pid_t start(const char *const *arguments, int in, rlim_t file_limit) {
    const char *argv[40] = {getenv("MXRUN_BINARY")};
    for (int i = 0; arguments[i]; i++) argv[i + 1] = arguments[i];
    pid_t child = fork();
    if (child) return child;
    int nothing = open("/dev/null", O_RDWR);
    dup2(in >= 0 ? in : nothing, 0);
    dup2(nothing, 1);
    dup2(nothing, 2);
    if (file_limit) setrlimit(RLIMIT_FSIZE, &(struct rlimit){file_limit, file_limit});
    execv(argv[0], (char *const *)argv);
    _exit(127);
}

static int wait_for(pid_t child) {
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int lines_of(const mx_bytes *text) {
    int lines = 0;
    for (const char *p = text->data; (p = strchr(p, '\n')); p++) lines++;
    return lines;
}

/* Kills at random moments, one after the other, until there were as many as wanted or nothing is left to do. Each run
 * gets about `part` of what an undisturbed one takes. Returns how many there were. */
static int kill_often(const char *in, const char *out, int wanted, double whole, double part) {
    static unsigned random;
    if (!random) random = (unsigned)getpid();
    const char *const arguments[] = {BATCH, "-i", path_of(in), "-o", path_of(out), "--max-in-flight", "4", NULL};
    int kills = 0;
    unlink(path_of(out));
    while (kills < wanted) {
        pid_t child = start(arguments, -1, 0);
        usleep((useconds_t)(1e6 * whole * part * (0.2 + 1.6 * rand_r(&random) / RAND_MAX)));
        kill(child, SIGKILL);
        const int code = wait_for(child);
        if (code == 0) break;
        assert_int_equal(code, 128 + SIGKILL);
        kills++;
    }
    return kills;
}

/* After all of them the output is that of an undisturbed run, line for line. */
static void check_kills(int prompts, int kills, double part) {
    write_prompts("kill.jsonl", prompts);
    const double begin = now();
    outcome o = run(BATCH, "-i", path_of("kill.jsonl"), "-o", path_of("undisturbed.jsonl"), "--max-in-flight", "4");
    expect_code(&o, 0);
    outcome_free(&o);
    const double whole = now() - begin;
    mx_bytes before = {0};
    int killed_times = 0;
    for (int i = 0; i < 6 && (killed_times < kills || before.size == 0); i++) {
        mx_bytes_free(&before);
        killed_times = kill_often("kill.jsonl", "killed.jsonl", kills, whole, part);
        part *= killed_times < kills ? 0.6 : 1.5; /* the machine got faster or slower */
        before = access(path_of("killed.jsonl"), F_OK) ? (mx_bytes){0} : read_file("killed.jsonl");
    }
    run_whole("kill.jsonl", "killed.jsonl");
    mx_bytes undisturbed = read_file("undisturbed.jsonl"), killed = read_file("killed.jsonl");
    print_message("%d kills, %zu of %zu bytes were there after them\n", killed_times, before.size, killed.size);
    assert_int_equal(killed_times, kills);
    assert_in_range(before.size, 1, killed.size - 1);
    const char *torn = strrchr(before.data, '\n'); /* what is behind it is cut off, what is before it stays */
    if (torn) assert_memory_equal(killed.data, before.data, torn + 1 - before.data);
    assert_int_equal(lines_of(&killed), prompts);
    expect_same_records(&undisturbed, &killed);
    mx_bytes_free(&before);
    mx_bytes_free(&undisturbed);
    mx_bytes_free(&killed);
}

static void test_kills(void **unused) {
    (void)unused;
    check_kills(120, 8, 0.05);
}

static void test_kills_of_a_thousand(void **unused) {
    (void)unused;
    check_kills(1000, 20, 0.04);
}

/* Wherever the output is cut, what is missing is computed again. */
static void test_torn_output(void **unused) {
    (void)unused;
    write_prompts("torn.jsonl", 20);
    run_whole("torn.jsonl", "torn.whole");
    mx_bytes whole = read_file("torn.whole");
    unsigned random = 1;
    for (int i = 0; i < 10; i++) {
        write_file("torn.out", whole.data, (size_t)rand_r(&random) % whole.size);
        run_whole("torn.jsonl", "torn.out");
        mx_bytes again = read_file("torn.out");
        expect_same_records(&whole, &again);
        mx_bytes_free(&again);
    }
    /* Nothing is left to do, and nothing is changed. */
    run_whole("torn.jsonl", "torn.whole");
    mx_bytes again = read_file("torn.whole");
    assert_string_equal(again.data, whole.data);
    mx_bytes_free(&again);
    mx_bytes_free(&whole);
}

static void refused(const char *in, const char *out, const char *option, const char *value, const char *text) {
    struct stat before = {0}, after = {0};
    stat(path_of(out), &before);
    outcome o = run(BATCH, "-i", path_of(in), "-o", path_of(out), option, value);
    assert_in_range(o.code, 1, 2);
    expect_text(&o.err, text);
    outcome_free(&o);
    stat(path_of(out), &after);
    assert_int_equal(before.st_size, after.st_size);
}

static void test_other_output(void **unused) {
    (void)unused;
    write_prompts("mine.jsonl", 6);
    run_whole("mine.jsonl", "mine.out");
    write_prompts("longer.jsonl", 7); /* lines may be added */
    run_whole("longer.jsonl", "mine.out");
    refused("mine.jsonl", "mine.out", "--threads", "1", "it belongs to another input");
    refused("longer.jsonl", "mine.out", "--temperature", "0.5", "with other options");
    refused("longer.jsonl", "mine.out", "--reasoning", "low", "with other options");
    write_file("letter", "Dear fox,\nhow are you?", 22);
    refused("mine.jsonl", "letter", "--threads", "1", "no record of mxrun batch");
    write_file("letter", "Dear fox", 8);
    refused("mine.jsonl", "letter", "--threads", "1", "no output of mxrun batch");
    mx_bytes letter = read_file("letter");
    assert_string_equal(letter.data, "Dear fox");
    mx_bytes_free(&letter);
    outcome o = run(BATCH, "-i", path_of("mine.jsonl"), "-o", path_of("mine.jsonl"));
    expect_code(&o, 2);
    expect_text(&o.err, "the same file");
    outcome_free(&o);
    char *same = strdup(path_of("mine.jsonl"));
    o = run_with(&(surroundings){.stdout_path = same}, (const char *const[]){BATCH, "-i", same, "-o", "-", NULL});
    expect_code(&o, 2);
    expect_text(&o.err, "stdout: input and output are the same file");
    outcome_free(&o);
    free(same);
}

/* A model of the same names and sizes is another one. */
static void test_other_model(void **unused) {
    (void)unused;
    char stories[600], mine[300], command[2000], path[400];
    snprintf(stories, sizeof stories, "%s/tools/stories/checkpoint", getenv("MXRUN_SOURCE"));
    snprintf(mine, sizeof mine, "%s", path_of("my.model"));
    snprintf(command, sizeof command, "cp -rL '%s' '%s' && chmod -R u+w '%s'", stories, mine, mine);
    assert_int_equal(system(command), 0);
    write_prompts("model.jsonl", 3);
    outcome o = run("batch", "-q", "-m", mine, "-i", path_of("model.jsonl"), "-o", path_of("model.out"));
    expect_code(&o, 0);
    outcome_free(&o);
    write_prompts("model.jsonl", 4);
    o = run("batch", "-q", "-m", mine, "-i", path_of("model.jsonl"), "-o", path_of("model.out"));
    expect_code(&o, 0);
    outcome_free(&o);
    write_prompts("model.jsonl", 5);
    static const char *const files[] = {"model.safetensors", "tokenizer.json"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        /* The end of the weights is a tensor's; of the tokenizer the name of a token. */
        mx_bytes content = {0};
        snprintf(path, sizeof path, "%s/%s", mine, files[i]);
        assert_int_equal(mx_read_file(path, 1 << 26, &content, NULL), MX_OK);
        const char *name = i ? strstr(content.data, "<|endoftext|>") : NULL;
        assert_true(i == 0 || name);
        const long at = i ? (long)(name - content.data) + 3 : (long)content.size - 3;
        mx_bytes_free(&content);
        FILE *f = fopen(path, "r+");
        assert_non_null(f);
        fseek(f, at, SEEK_SET);
        const int was = fgetc(f);
        fseek(f, at, SEEK_SET);
        fputc(was ^ 1, f);
        fclose(f);
        o = run("batch", "-q", "-m", mine, "-i", path_of("model.jsonl"), "-o", path_of("model.out"));
        expect_code(&o, 1);
        expect_text(&o.err, "with another model");
        outcome_free(&o);
        f = fopen(path, "r+");
        fseek(f, at, SEEK_SET);
        fputc(was, f);
        fclose(f);
    }
}

/* Context, kernels and precision are part of what answers depend on, also where nobody named them. */
static void test_other_setup(void **unused) {
    (void)unused;
    const char *in = "setup.jsonl", *out = "setup.out";
    write_prompts(in, 4);
    outcome o = run("batch", "-m", "stories", "-i", path_of(in), "-o", path_of(out), "--kv-memory", "1M", "--precision",
                    "fp32");
    expect_code(&o, 0);
    expect_text(&o.err, "mxrun: context ");
    expect_text(&o.err, " tokens, KV memory 1.0 MB");
    outcome_free(&o);
    write_prompts(in, 5);
    refused(in, out, "--precision", "bf16", "was begun with --precision fp32, this run has bf16");
    /* With more memory it has the context that it was begun with. */
    o = run(BATCH, "-i", path_of(in), "-o", path_of(out), "--precision", "fp32");
    expect_code(&o, 0);
    outcome_free(&o);
    mx_bytes file = read_file(out);
    records r = parse_records(&file);
    assert_int_equal(r.count, 5);
    free_records(&r);
    mx_bytes_free(&file);
    write_prompts(in, 6);
    o = run(BATCH, "-i", path_of(in), "-o", path_of(out), "--precision", "fp32", "-c", "2000");
    expect_code(&o, 2);
    expect_text(&o.err, "was begun with a context of ");
    expect_text(&o.err, "this run has 2000");
    outcome_free(&o);

    const char *in2 = "large.jsonl", *out2 = "large.out";
    write_prompts(in2, 4);
    run_whole(in2, out2);
    write_prompts(in2, 5);
    refused(in2, out2, "--kv-memory", "1M", "was begun with a context of ");
    setenv("MXRUN_CPU", "scalar", 1);
    o = run(BATCH, "-i", path_of(in2), "-o", path_of(out2));
    unsetenv("MXRUN_CPU");
    if (o.code)
        expect_text(&o.err, "this run has those for scalar, which round differently");
    else
        print_message("the kernels of this machine are scalar\n");
    outcome_free(&o);
}

/* An output is one process's; a pipe is read as it comes. */
static void test_lock(void **unused) {
    (void)unused;
    int in[2];
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    write_prompts("lock.jsonl", 3);
    const char *const arguments[] = {BATCH, "-i", "-", "-o", path_of("lock.out"), NULL};
    pid_t child = start(arguments, in[0], 0);
    close(in[0]);
    const char line[] = "{\"id\":\"a\",\"prompt\":\"Hello\",\"max_tokens\":2}\n";
    assert_int_equal(write(in[1], line, sizeof line - 1), sizeof line - 1);
    struct stat info = {0};
    for (int i = 0; i < 2000 && info.st_size == 0; i++) {
        usleep(10000);
        if (stat(path_of("lock.out"), &info)) info.st_size = 0;
    }
    assert_true(info.st_size > 0); /* though the pipe is still open */
    refused("lock.jsonl", "lock.out", "--threads", "1", "another mxrun");
    close(in[1]);
    assert_int_equal(wait_for(child), 0);
}

static void test_full_disk(void **unused) {
    (void)unused;
    write_prompts("full.jsonl", 30);
    run_whole("full.jsonl", "full.whole");
    outcome o = run(BATCH, "-i", path_of("full.jsonl"), "-o", "/dev/full");
    expect_code(&o, 1);
    expect_text(&o.err, "cannot write to /dev/full: No space left on device");
    expect_no_text(&o.err, "goes on");
    outcome_free(&o);
    /* A file that may not grow beyond 5,000 bytes is like a disk that is full there, in the middle of a line. */
    const char *const arguments[] = {BATCH, "-i", path_of("full.jsonl"), "-o", path_of("full.out"), NULL};
    assert_int_equal(wait_for(start(arguments, -1, 5000)), 1);
    mx_bytes part = read_file("full.out"), whole = read_file("full.whole");
    assert_in_range(part.size, 1, 5000);
    assert_int_equal(part.data[part.size - 1], '\n');
    run_whole("full.jsonl", "full.out");
    mx_bytes again = read_file("full.out");
    expect_same_records(&whole, &again);
    assert_memory_equal(again.data, part.data, part.size);
    mx_bytes_free(&part);
    mx_bytes_free(&whole);
    mx_bytes_free(&again);
}

static void test_interrupt(void **unused) {
    (void)unused;
    write_prompts("interrupt.jsonl", 60);
    run_whole("interrupt.jsonl", "interrupt.whole");
    const surroundings s = {.interrupt_after = 100};
    outcome o = run_with(&s, (const char *const[]){"batch", "-m", "stories", "-i", path_of("interrupt.jsonl"), "-o",
                                                   "-", "--max-in-flight", "4", NULL});
    expect_code(&o, 130);
    expect_text(&o.err, "finishing the ");
    expect_no_text(&o.err, "goes on");
    records r = parse_records(&o.out);
    assert_in_range(r.count, 3, 50); /* those at work were finished, no others begun */
    free_records(&r);
    /* What stdout got goes on as a file. */
    write_file("interrupt.out", o.out.data, o.out.size);
    outcome_free(&o);
    run_whole("interrupt.jsonl", "interrupt.out");
    mx_bytes whole = read_file("interrupt.whole"), again = read_file("interrupt.out");
    expect_same_records(&whole, &again);
    mx_bytes_free(&whole);
    mx_bytes_free(&again);
}

/* The second Ctrl-C does not wait for answers that never end. */
static void test_second_interrupt(void **unused) {
    (void)unused;
    mx_bytes input = {0};
    assert_true(mx_bytes_add_string(&input, "{\"id\":\"soon\",\"prompt\":\"Hello\",\"max_tokens\":2}\n"));
    for (int i = 0; i < 8; i++)
        assert_true(mx_bytes_add_string(&input, "{\"prompt\":\"Hello\",\"logit_bias\":{\"4088\":-100,\"4089\":-100,"
                                                "\"4092\":-100,\"4095\":-100}}\n"));
    write_file("endless.jsonl", input.data, input.size);
    const char *const arguments[] = {BATCH, "-i", path_of("endless.jsonl"), "-o", path_of("endless.out"), NULL};
    const double begin = now();
    pid_t child = start(arguments, -1, 0);
    struct stat info = {0};
    while (info.st_size == 0 && now() < begin + 30) {
        usleep(10000);
        if (stat(path_of("endless.out"), &info)) info.st_size = 0;
    }
    kill(child, SIGINT);
    usleep(300000);
    assert_int_equal(waitpid(child, NULL, WNOHANG), 0);
    kill(child, SIGINT);
    assert_int_equal(wait_for(child), 128 + SIGINT);
    mx_bytes file = read_file("endless.out");
    records r = parse_records(&file);
    assert_int_equal(r.count, 1);
    free_records(&r);
    mx_bytes_free(&file);
    mx_bytes_free(&input);
}

/* ---- order, shards, dry run -------------------------------------------------------------------------------------- */
static void test_ordered(void **unused) {
    (void)unused;
    write_prompts("order.jsonl", 40);
    run_whole("order.jsonl", "order.whole");
    mx_bytes whole = read_file("order.whole");
    for (int i = 0; i < 3; i++) { /* from the beginning, from the middle, from a torn line */
        outcome o = run(BATCH, "-i", path_of("order.jsonl"), "-o", path_of("order.out"), "--ordered", "--max-in-flight",
                        i ? "64" : "3");
        expect_code(&o, 0);
        outcome_free(&o);
        mx_bytes again = read_file("order.out");
        expect_same_records(&whole, &again);
        long line = 0;
        for (const char *p = again.data; *p; p = strchr(p, '\n') + 1) {
            assert_int_equal(line_of(p), line + 1);
            line++;
        }
        write_file("order.out", again.data, again.size * (size_t)(2 - i) / 3);
        mx_bytes_free(&again);
    }
    /* All but line 1. */
    outcome o = run(BATCH, "-i", path_of("order.jsonl"), "-o", "-", "--ordered");
    const char *second = strchr(o.out.data, '\n') + 1;
    write_file("order.out", second, strlen(second));
    outcome_free(&o);
    o = run(BATCH, "-i", path_of("order.jsonl"), "-o", path_of("order.out"), "--ordered");
    expect_code(&o, 1);
    expect_text(&o.err, "line 1 is missing before others: go on without --ordered");
    outcome_free(&o);
    run_whole("order.jsonl", "order.out");
    mx_bytes again = read_file("order.out");
    expect_same_records(&whole, &again);
    mx_bytes_free(&again);
    mx_bytes_free(&whole);
}

static void test_shards(void **unused) {
    (void)unused;
    write_prompts("shard.jsonl", 20);
    run_whole("shard.jsonl", "shard.whole");
    mx_bytes whole = read_file("shard.whole"), all = {0};
    static const char *const shards[] = {"1/3", "2/3", "3/3"};
    for (int i = 0; i < 3; i++) {
        outcome o = run(BATCH, "-i", path_of("shard.jsonl"), "-o", "-", "--shard", shards[i]);
        expect_code(&o, 0);
        assert_true(mx_bytes_add(&all, o.out.data, o.out.size));
        outcome_free(&o);
    }
    expect_same_records(&whole, &all);
    mx_bytes_free(&whole);
    mx_bytes_free(&all);
    static const char *const wrong[] = {"0/3", "4/3", "1", "1/0", "a/b", "1/3x", "-1/3"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        outcome o = run(BATCH, "-i", path_of("shard.jsonl"), "-o", "-", "--shard", wrong[i]);
        expect_code(&o, 2);
        expect_text(&o.err, "--shard");
        outcome_free(&o);
    }
}

static void test_dry_run(void **unused) {
    (void)unused;
    write_prompts("dry.jsonl", 9);
    outcome o = run(BATCH, "-i", path_of("dry.jsonl"), "-o", path_of("dry.out"), "--dry-run");
    expect_code(&o, 0);
    expect_text(&o.out, "requests: 9, of them 0 answered already and 0 wrong\n");
    expect_text(&o.out, "answers:  12, 12 limited by max_tokens to ");
    expect_text(&o.out, "measured: prompts ");
    expect_text(&o.out, "answers take at most about ");
    assert_int_not_equal(access(path_of("dry.out"), F_OK), 0);
    outcome_free(&o);
    /* The numbers are those of the run. */
    o = run(BATCH, "-i", path_of("dry.jsonl"), "-o", "-");
    records r = parse_records(&o.out);
    long long tokens = 0;
    for (int i = 0; i < r.count; i++) {
        const mx_json *root = mx_json_root(r.item[i]), *response = mx_json_get(root, "response");
        tokens += number_at(response ? mx_json_get(response, "body") : root, "usage.prompt_tokens");
    }
    free_records(&r);
    outcome_free(&o);
    char expected[60];
    snprintf(expected, sizeof expected, "prompts:  %lld tokens", tokens);
    o = run(BATCH, "-i", path_of("dry.jsonl"), "--dry-run");
    expect_text(&o.out, expected);
    outcome_free(&o);
}

/* The same for any number of threads, whatever else is in flight, however little memory there is. */
static void test_same_alone(void **unused) {
    (void)unused;
    write_prompts("alone.jsonl", 30);
    outcome first = run(BATCH, "-i", path_of("alone.jsonl"), "-o", "-", "-c", "1000");
    expect_code(&first, 0);
    static const char *const ways[][6] = {{"--max-in-flight", "1"},
                                          {"--max-in-flight", "7", "--threads", "3", "--speculate", "on"},
                                          {"--kv-memory", "3M", "--batch-tokens", "17"}};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        outcome o = run(BATCH, "-i", path_of("alone.jsonl"), "-o", "-", "-c", "1000", ways[i][0], ways[i][1],
                        ways[i][2], ways[i][3], ways[i][4], ways[i][5]);
        expect_code(&o, 0);
        expect_same_records(&first.out, &o.out);
        outcome_free(&o);
    }
    outcome_free(&first);
}

/* The last line on stderr: guessed tokens where there were any. */
static void test_summary(void **unused) {
    (void)unused;
    const char *line =
        "{\"prompt\":\"one two three one two three one two three one two\",\"raw\":true,\"max_tokens\":40,"
        "\"temperature\":0}\n";
    static const char *const ways[] = {"on", "off"};
    for (int i = 0; i < 2; i++) {
        outcome o = run_input(line, "batch", "-m", "stories", "-i", "-", "-o", "-", "--speculate", ways[i]);
        expect_code(&o, 0);
        expect_text(&o.err, "mxrun: 1 request in ");
        expect_text(&o.err, " + 40 new | ");
        if (i == 0)
            expect_text(&o.err, " guessed tokens right");
        else
            expect_no_text(&o.err, "guessed");
        outcome_free(&o);
    }
}

static void test_wrong_options(void **unused) {
    (void)unused;
    static const struct {
        const char *arguments[12], *text;
        int code;
    } wrong[] = {
        {{"batch", "-m", "stories", "-o", "-"}, "no input given", 2},
        {{"batch", "-m", "stories", "-i", "-"}, "no output given", 2},
        {{"batch", "-i", "-", "-o", "-"}, "no model given", 2},
        {{"batch", "-m", "stories", "-i", "/nowhere/in", "-o", "-"}, "/nowhere/in", 1},
        {{"batch", "-m", "stories", "-i", "/", "-o", "-"}, "folder", 1},
        {{"batch", "-m", "stories", "-i", "-", "-o", "/nowhere/out"}, "/nowhere/out", 1},
        {{"batch", "-m", "stories", "-i", "-", "-o", "-", "--max-in-flight", "0"}, "--max-in-flight 0", 2},
        {{"batch", "-m", "stories", "-i", "-", "-o", "-", "extra"}, "unexpected argument", 2},
        {{"batch", "-m", "stories", "-i", "-", "-o", "-", "--raw", "--reasoning", "low"}, "--reasoning", 2},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        outcome o = run_with(&(surroundings){0}, wrong[i].arguments);
        expect_code(&o, wrong[i].code);
        expect_text(&o.err, wrong[i].text);
        outcome_free(&o);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kills),       cmocka_unit_test(test_torn_output), cmocka_unit_test(test_other_output),
        cmocka_unit_test(test_other_model), cmocka_unit_test(test_other_setup), cmocka_unit_test(test_lock),
        cmocka_unit_test(test_full_disk),   cmocka_unit_test(test_interrupt),   cmocka_unit_test(test_second_interrupt),
        cmocka_unit_test(test_ordered),     cmocka_unit_test(test_shards),      cmocka_unit_test(test_dry_run),
        cmocka_unit_test(test_same_alone),  cmocka_unit_test(test_summary),     cmocka_unit_test(test_wrong_options),
    };
    const struct CMUnitTest full[] = {cmocka_unit_test(test_kills_of_a_thousand)};
    if (argc > 1 && !strcmp(argv[1], "full"))
        return cmocka_run_group_tests_name("mxrun batch, begun again, long", full, program_set_up, program_tear_down);
    return cmocka_run_group_tests_name("mxrun batch, begun again", tests, program_set_up, program_tear_down);
}
