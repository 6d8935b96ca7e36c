/* mxrun harmony as a user runs it: lines in, lines out, wrong lines and wrong options. */
#include <sys/wait.h>
#include <unistd.h>

#include "harmony_support.h"

/* Runs `mxrun harmony ARGUMENTS` on the input; returns the exit code. */
static int run(const char *arguments, const char *input, size_t size, mx_bytes *out) {
    char name[] = "/tmp/mxrun-harmony-XXXXXX", command[4096], buffer[4096];
    int fd = mkstemp(name);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, input, size), size);
    close(fd);
    snprintf(command, sizeof command, "'%s' harmony %s < %s 2>&1", getenv("MXRUN_BINARY"), arguments, name);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) assert_true(mx_bytes_add(out, buffer, n));
    int status = pclose(pipe);
    unlink(name);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void expect(const char *arguments, const char *input, int exit_code, const char *expected) {
    mx_bytes out = {0};
    int code = run(arguments, input, strlen(input), &out);
    const char *text = out.data ? out.data : "";
    if (!strstr(text, expected)) fail_msg("%s gives\n%sexpected\n%s", arguments, text, expected);
    assert_int_equal(code, exit_code);
    mx_bytes_free(&out);
}

#define TOKENIZER "--jsonl -m stories "

static void test_options(void **state) {
    (void)state;
    expect("--help", "", 0, "Usage: mxrun harmony");
    expect("", "", 2, "render");
    expect("dance " TOKENIZER, "", 2, "render");
    expect("render render " TOKENIZER, "", 2, "render");
    expect("render --jsonl", "", 2, "--tokenizer");
    expect("render --jsonl -m stories --tokenizer x", "", 2, "not both");
    expect("render -m stories", "", 2, "--jsonl");
    expect("render --lenient " TOKENIZER, "", 2, "--lenient");
    expect("render --nonsense " TOKENIZER, "", 2, "--nonsense");
    expect("render --jsonl --tokenizer /nonexistent/tokenizer.json", "", 1, "/nonexistent/tokenizer.json");
    expect("render " TOKENIZER, "", 0, "");
}

static void test_render(void **state) {
    (void)state;
    expect("render " TOKENIZER, "{\"conversation\":{\"messages\":[{\"role\":\"user\",\"content\":\"a\\u0000b\"}]}}", 0,
           "\"text\":\"<|start|>user<|message|>a\\u0000b<|end|><|start|>assistant\"}\n");
    expect("render " TOKENIZER,
           "{\"conversation\":{\"messages\":[{\"role\":\"assistant\",\"channel\":\"final\",\"content\":\"x\"}]},"
           "\"options\":{\"mode\":\"training\",\"next_role\":null,\"auto_drop_analysis\":false}}\n",
           0, "final<|message|>x<|return|>\"}\n");
    expect("render " TOKENIZER,
           "{\"conversation\":{\"messages\":[]},\"options\":{\"mode\":\"conversation\",\"next_role\":null}}\n", 0,
           "{\"ids\":[],\"text\":\"\"}\n");
}

static void test_wrong_lines(void **state) {
    (void)state;
    static const char *const wrong[] = {
        "{}",
        "5",
        "null",
        "{\"conversation\":5}",
        "{\"conversation\":{\"messages\":[{\"role\":\"x\",\"content\":\"\"}]}}",
        "{\"conversation\":{\"messages\":[]},\"options\":{\"mode\":\"sing\"}}",
        "{\"conversation\":{\"messages\":[]},\"options\":{\"next_role\":5}}",
        "{\"conversation\":{\"messages\":[]},\"options\":{\"next_role\":\"robot\"}}",
        "{\"conversation\":{\"messages\":[]},\"options\":{\"auto_drop_analysis\":\"yes\"}}",
    };
    static const char good[] = "{\"conversation\":{\"messages\":[]}}\n";
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char lines[300];
        snprintf(lines, sizeof lines, "%s\n%s", wrong[i], good);
        mx_bytes out = {0};
        assert_int_equal(run("render " TOKENIZER, lines, strlen(lines), &out), 0);
        assert_memory_equal(out.data, "{\"error\":\"", 10);
        assert_non_null(strstr(out.data, "\"text\":\"<|start|>assistant\"}\n"));
        mx_bytes_free(&out);
    }
    expect("render " TOKENIZER, "{\"conversation\":\n{\"conversation\":{\"messages\":[]}}\n", 1,
           "\"text\":\"<|start|>assistant\"}\n");
    expect("parse " TOKENIZER, "nonsense\n", 1, "{\"error\":\"");
    expect("parse " TOKENIZER, "{}\n", 0, "{\"error\":\"");
    expect("parse " TOKENIZER, "{\"ids\":[\"x\"]}\n", 0, "{\"error\":\"");
    expect("parse " TOKENIZER, "{\"ids\":[],\"role\":\"robot\"}\n", 0, "robot");
    expect("parse " TOKENIZER, "{\"ids\":[],\"role\":5}\n", 0, "role");
    expect("parse " TOKENIZER, "{\"ids\":[],\"strict\":5}\n", 0, "strict");
    mx_bytes out = {0};
    assert_int_equal(run("parse " TOKENIZER, "\0\n\xFF\n", 4, &out), 1);
    mx_bytes_free(&out);
}

static void parse(const char *text, const char *rest, const char *option, const char *expected) {
    mx_ids ids = encode_special(stories(), text);
    mx_bytes line = {0};
    char arguments[100];
    assert_true(mx_bytes_add_string(&line, "{\"ids\":["));
    for (int64_t i = 0; i < ids.count; i++) assert_true(mx_bytes_addf(&line, i ? ",%d" : "%d", ids.data[i]));
    assert_true(mx_bytes_addf(&line, "]%s}\n", rest));
    snprintf(arguments, sizeof arguments, "parse %s " TOKENIZER, option);
    expect(arguments, line.data, 0, expected);
    mx_bytes_free(&line);
    mx_ids_free(&ids);
}

static void test_parse(void **state) {
    (void)state;
    parse("<|channel|>final<|message|>x<|end|>", ",\"role\":\"assistant\",\"strict\":true", "",
          "{\"messages\":[{\"role\":\"assistant\",\"name\":null,\"content\":[{\"type\":\"text\",\"text\":\"x\"}],"
          "\"channel\":\"final\"}],\"stream\":[[\"assistant\",null,null,null],");
    parse("<|start|>user<|message|>x", ",\"role\":null", "", "[\"user\",null,null,\"x\"]]}\n");
    parse("", ",\"role\":\"assistant\",\"strict\":false", "", "\"error_at\":0,\"partial\":[],\"stream\":[]}\n");
    parse("Hello", ",\"role\":\"assistant\"", "--lenient", "\"text\":\"Hello\"}],\"channel\":\"final\",\"tokens\":[0,");
    expect("parse " TOKENIZER, "{\"ids\":[99999999999]}\n", 0, "\"error_at\":0");
    expect("parse --lenient " TOKENIZER, "{\"ids\":[99999999999]}\n", 0, "\"text\":\"\xEF\xBF\xBD\"");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_render),
        cmocka_unit_test(test_wrong_lines),
        cmocka_unit_test(test_parse),
    };
    return cmocka_run_group_tests_name("mxrun harmony", tests, NULL, NULL);
}
