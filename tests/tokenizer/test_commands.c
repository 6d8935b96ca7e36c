/* mxrun tokenize and detokenize as a user runs them. */
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

/* Runs `mxrun ARGUMENTS` on `input`; returns the exit code. `out` and `err` get what it prints. */
static int run(const char *arguments, const void *input, size_t size, mx_bytes *out, mx_bytes *err) {
    char command[4096], path[400];
    const char *folder = scratch_folder(), *binary = getenv("MXRUN_BINARY");
    if (!binary) fail_msg("MXRUN_BINARY is not set; run the tests with meson test");
    scratch_file("in", input, size);
    snprintf(command, sizeof command, "'%s' %s < '%s/in' > '%s/out' 2> '%s/err'", binary, arguments, folder, folder,
             folder);
    int status = system(command);
    assert_true(WIFEXITED(status));
    const char *const names[] = {"out", "err"};
    mx_bytes *const into[] = {out, err};
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        mx_bytes_free(into[i]);
        assert_int_equal(mx_read_file(path, (size_t)1 << 30, into[i], NULL), MX_OK);
    }
    return WEXITSTATUS(status);
}

static mx_bytes out, err;
static char tokenizer[500]; /* --tokenizer of the small vocabulary */

static const char *with(const char *words) {
    static char arguments[1000];
    char command[20];
    snprintf(command, sizeof command, "%.*s", (int)strcspn(words, " "), words);
    snprintf(arguments, sizeof arguments, "%s --tokenizer %s %s", command, tokenizer, words + strlen(command));
    return arguments;
}

#define RUN(words, input) run(with(words), input, sizeof(input) - 1, &out, &err)

static int make_tokenizer(void **state) {
    (void)state;
    mx_bytes json = {0};
    small_tokenizer(&json);
    snprintf(tokenizer, sizeof tokenizer, "'%s'", scratch_file("tokenizer.json", json.data, json.size));
    mx_bytes_free(&json);
    return 0;
}

static void expect(int code, int expected, const char *text) {
    if (code != expected || strcmp(out.data ? out.data : "", text) != 0)
        fail_msg("exit code %d, stdout: %s, stderr: %s", code, out.data ? out.data : "", err.data ? err.data : "");
}

static void test_plain(void **state) {
    (void)state;
    expect(RUN("tokenize", "ab abc"), 0, "256 32 257\n");
    expect(RUN("tokenize", ""), 0, "\n");
    expect(RUN("tokenize", "<|end|>"), 0, "60 124 101 110 100 124 62\n");
    expect(RUN("tokenize --special", "<|end|>\n"), 0, "301 10\n");
    expect(RUN("tokenize", "\xFF"), 0, "239 191 189\n");
    expect(RUN("detokenize", "256 258\n98\t99\r\n\n 300"), 0, "ab abc<|start|>");
    expect(RUN("detokenize --special", "300 97"), 0, "<|start|>a");
    expect(RUN("detokenize --skip-special", "300 97 303"), 0, "a<tool>");
    expect(RUN("detokenize", ""), 0, "");
    assert_int_equal(RUN("detokenize", "0 255 10"), 0);
    assert_int_equal(out.size, 3);
    assert_memory_equal(out.data, "\0\xFF\n", 3);
}

static void test_jsonl(void **state) {
    (void)state;
    expect(RUN("tokenize --jsonl", "{\"text\":\"ab\"}\n{\"cat\":1,\"text\":\"\\u0000a\\n\"}\n{\"text\":\"\"}"), 0,
           "{\"ids\":[256]}\n{\"ids\":[0,97,10]}\n{\"ids\":[]}\n");
    expect(RUN("tokenize --jsonl --special", "{\"text\":\"<|end|>>ab\"}\n"), 0, "{\"ids\":[302,256]}\n");
    expect(RUN("detokenize --jsonl", "{\"ids\":[256]}\n{\"ids\":[]}\n{\"ids\":[0,255,301]}\n"), 0,
           "{\"bytes_b64\":\"YWI=\"}\n{\"bytes_b64\":\"\"}\n{\"bytes_b64\":\"AP88fGVuZHw+\"}\n");
    expect(RUN("tokenize --jsonl", ""), 0, "");
}

static void expect_error(int code, int expected, const char *says) {
    if (code != expected || !err.data || !strstr(err.data, says))
        fail_msg("exit code %d, expected %d and \"%s\", stderr: %s", code, expected, says, err.data ? err.data : "");
}

/* Lines before the wrong one are answered. */
static void test_wrong_lines(void **state) {
    (void)state;
    expect_error(RUN("tokenize --jsonl", "{\"text\":\"ab\"}\n{\"text\":7}\n"), 1, "line 2: ");
    assert_string_equal(out.data, "{\"ids\":[256]}\n");
    expect_error(RUN("tokenize --jsonl", "{\"text\":\"ab\"}\n\n"), 1, "line 2: ");
    expect_error(RUN("tokenize --jsonl", "[\"text\"]\n"), 1, "line 1: ");
    expect_error(RUN("tokenize --jsonl", "{\"text\":\"ab\"\n"), 1, "line 1: ");
    expect_error(RUN("tokenize --jsonl", "{\"text\":\"\xFF\"}\n"), 1, "line 1: ");
    expect_error(RUN("detokenize --jsonl", "{\"ids\":[1]}\n{\"ids\":[1]}\n{\"ids\":[280]}"), 1,
                 "line 3: 280 is no token");
    expect_error(RUN("detokenize --jsonl", "{\"ids\":[1.5]}"), 1, "line 1: ");
    expect_error(RUN("detokenize --jsonl", "{\"ids\":[-1]}"), 1, "line 1: -1 is no token");
    expect_error(RUN("detokenize --jsonl", "{\"ids\":[4294967296]}"), 1, "line 1: 4294967296 is no token");
    expect_error(RUN("detokenize --jsonl", "{\"ids\":\"1\"}"), 1, "line 1: ");
    expect_error(RUN("detokenize", "1 2\n3 x"), 1, "line 2: ");
    expect_error(RUN("detokenize", "1\n\n280"), 1, "line 3: 280 is no token");
    expect_error(RUN("detokenize", "99999999999999999999"), 1, "line 1: 99999999999999999999 is no token");
    expect_error(RUN("detokenize --jsonl", "{\"ids\":[99999999999999999999]}"), 1,
                 "line 1: 99999999999999999999 is no token");
    expect_error(RUN("detokenize", "-1"), 1, "line 1: ");
}

static void test_usage(void **state) {
    (void)state;
    expect_error(run("tokenize", "", 0, &out, &err), 2, "--tokenizer");
    expect_error(RUN("tokenize -m stories", ""), 2, "not both");
    expect_error(RUN("tokenize --nonsense", ""), 2, "nonsense");
    expect_error(RUN("tokenize extra", ""), 2, "extra");
    expect_error(RUN("tokenize --skip-special", ""), 2, "skip-special");
    expect_error(RUN("detokenize --special --skip-special", ""), 2, "not both");
    expect_error(run("tokenize --tokenizer /nowhere/at/all", "", 0, &out, &err), 1, "/nowhere/at/all");
    assert_int_equal(run("detokenize --help", "", 0, &out, &err), 0);
    assert_non_null(strstr(out.data, "--skip-special"));
}

/* The model that comes with mxrun, there and back, a line longer than any buffer. */
static void test_round_trip(void **state) {
    (void)state;
    mx_bytes text = {0}, ids = {0};
    uint64_t seed = 3;
    for (int i = 0; i < 300000; i++)
        assert_true(mx_bytes_add_utf8(&text, 1 + random_below(&seed, i % 3 ? 0x7F : 0xD7FF)));
    assert_int_equal(run("tokenize -m stories", text.data, text.size, &ids, &err), 0);
    assert_int_equal(run("detokenize -m stories", ids.data, ids.size, &out, &err), 0);
    assert_int_equal(out.size, text.size);
    assert_memory_equal(out.data, text.data, out.size);
    mx_bytes line = {0};
    assert_true(mx_bytes_add_string(&line, "{\"text\":") && mx_bytes_add_json(&line, text.data, text.size) &&
                mx_bytes_add_string(&line, "}\n"));
    assert_int_equal(run("tokenize -m stories --jsonl", line.data, line.size, &out, &err), 0);
    assert_memory_equal(out.data, "{\"ids\":[", 8);
    for (size_t i = 8; i < out.size; i++) out.data[i] = out.data[i] == ',' ? ' ' : out.data[i];
    assert_int_equal(out.size, ids.size + 10); /* {"ids":[ ]} and the same digits */
    assert_memory_equal(out.data + 8, ids.data, ids.size - 1);
    mx_bytes_free(&line);
    mx_bytes_free(&text);
    mx_bytes_free(&ids);
}

static int free_buffers(void **state) {
    (void)state;
    mx_bytes_free(&out);
    mx_bytes_free(&err);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain), cmocka_unit_test(test_jsonl),      cmocka_unit_test(test_wrong_lines),
        cmocka_unit_test(test_usage), cmocka_unit_test(test_round_trip),
    };
    return cmocka_run_group_tests(tests, make_tokenizer, free_buffers);
}
