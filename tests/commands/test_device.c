/* --device as a user meets it: the plugin, its device emulated, through the whole program. Without a C++ compiler there
 * is no such plugin: then only what is refused is tested. */
#include "support.h"

static const char *const TALE = "Tell me a story about a fox and a lamp.";

static void use_plugin(const char *path) {
    if (path)
        setenv("MXRUN_CUDA_PLUGIN", path, 1);
    else
        unsetenv("MXRUN_CUDA_PLUGIN");
}

/* The emulated plugin is in use from here on; skips the test where it was not built. */
static void with_gpu(void) {
    const char *plugin = getenv("MXRUN_EMULATED_PLUGIN");
    if (!plugin || access(plugin, R_OK)) {
        print_message("skipped: the emulated plugin is not built (it needs a C++ compiler)\n");
        skip();
    }
    use_plugin(plugin);
}

static int no_plugin(void **state) {
    (void)state;
    use_plugin(NULL);
    unsetenv("MXRUN_CUDA_GRAPHS");
    unsetenv("MXRUN_CUDA_PROFILE");
    return 0;
}

static const char *data(const char *name) {
    static char path[2][600];
    static int turn;
    char *to = path[turn = !turn];
    snprintf(to, sizeof path[0], "%s/tests/data/%s", getenv("MXRUN_SOURCE"), name);
    return to;
}

static void refused(int code, const char *part, const char *const *arguments) {
    outcome o = run_with(&(surroundings){0}, arguments);
    expect_code(&o, code);
    expect_text(&o.err, part);
    outcome_free(&o);
}
#define refuses(code, part, ...) refused(code, part, (const char *const[]){__VA_ARGS__, NULL})

/* ---- without a GPU ----------------------------------------------------------------------------------------------- */

static void a_gpu_that_is_not_there_is_an_error_with_the_reason(void **state) {
    (void)state;
    char text[200];
    write_test_file("plugin.txt", "no library", text);
    use_plugin(text);
    refuses(1, "cannot be opened", "-m", "stories", "--device", "cuda", "-p", TALE);
    refuses(1, "cannot be opened", "verify", "-m", data("base"), "--device", "cuda", data("base.golden.safetensors"));
    refuses(1, "cannot be opened", "bench", "-m", "stories", "--device", "cuda");
    use_plugin("/nowhere/libmxrun_cuda.so");
    refuses(1, "/nowhere/libmxrun_cuda.so", "-m", "stories", "-d", "cuda:0", "-p", TALE);
    use_plugin("libm.so.6");
    refuses(1, "is not a plugin of mxrun", "-m", "stories", "-d", "cuda", "-p", TALE);
}

static void automatic_choice_without_a_gpu_is_the_cpu(void **state) {
    (void)state;
    use_plugin("/nowhere/libmxrun_cuda.so");
    outcome o = run("-m", "stories", "--greedy", "-n", "3", "-p", TALE);
    expect_code(&o, 0);
    expect_no_text(&o.err, "libmxrun_cuda");
    outcome_free(&o);
    o = run("info", "-m", "stories");
    expect_code(&o, 0);
    expect_text(&o.out, "GPU           none: /nowhere/libmxrun_cuda.so");
    outcome_free(&o);
}

static void wrong_options_are_named(void **state) {
    (void)state;
    refuses(2, "--device tpu: expected auto, cpu, cuda or cuda:N", "-m", "stories", "-d", "tpu", "-p", TALE);
    refuses(2, "cuda:x: expected", "-m", "stories", "-d", "cuda:x", "-p", TALE);
    refuses(2, "cuda:: expected", "verify", "-m", "stories", "-d", "cuda:");
    refuses(2, "--gpu-memory lots", "-m", "stories", "-d", "cuda", "--gpu-memory", "lots", "-p", TALE);
    refuses(2, "contradict", "-m", "stories", "-d", "cpu", "--gpu-memory", "1G", "-p", TALE);
    refuses(2, "--load is about the CPU's memory", "-m", "stories", "-d", "cuda", "--load", "read", "-p", TALE);
    refuses(2, "--threads is about the CPU", "bench", "-m", "stories", "-d", "cuda", "--threads", "1");
}

/* ---- with the emulated one --------------------------------------------------------------------------------------- */

static void verify_passes_the_goldens(void **state) {
    (void)state;
    static const char *const cases[][2] = {{"base", "t17,t129"}, {"mqa", "t15,t17"}, {"top1", "t1,t9"}};
    char golden[100];
    with_gpu();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(golden, sizeof golden, "%s.golden.safetensors", cases[i][0]);
        outcome o = run("verify", "-d", "cuda", "-m", data(cases[i][0]), data(golden), "--cases", cases[i][1],
                        "--max-kl", "1e-7");
        expect_code(&o, 0);
        expect_text(&o.out, "passed");
        expect_text(&o.out, "cuda");
        outcome_free(&o);
    }
}

/* A device that is lost, wherever the host waits for it: creating, between layers, at last for logits. */
static void verify_says_why_a_device_is_lost(void **state) {
    enum { MOST = 30 };
    (void)state;
    int code = 1, n = 0;
    with_gpu();
    while (code && ++n < MOST) {
        char fail[40];
        snprintf(fail, sizeof fail, "stream_wait:%d", n);
        setenv("MX_EMULATION_FAIL", fail, 1);
        outcome o =
            run("verify", "-m", data("base"), data("base.golden.safetensors"), "--device", "cuda", "--cases", "t1");
        unsetenv("MX_EMULATION_FAIL");
        code = o.code;
        if (code) expect_code(&o, 1);
        if (code) expect_text(&o.err, "the emulated GPU fails in stream_wait");
        outcome_free(&o);
    }
    assert_in_range(n, 3, MOST - 1);
}

static void answers_are_those_of_the_cpu(void **state) {
    (void)state;
    static const char *const graphs[] = {"1", "0"};
    with_gpu();
    outcome cpu = run("-m", "stories", "-d", "cpu", "--greedy", "-n", "24", "-p", TALE);
    expect_code(&cpu, 0);
    for (int i = 0; i < 2; i++) {
        setenv("MXRUN_CUDA_GRAPHS", graphs[i], 1);
        outcome gpu = run("-m", "stories", "-d", "cuda", "--ctx", "512", "--greedy", "-n", "24", "-p", TALE);
        expect_code(&gpu, 0);
        assert_string_equal(gpu.out.data, cpu.out.data);
        expect_text(&gpu.err, "weights 0.01 GB, KV ");
        expect_text(&gpu.err, "for a context of 512 tokens, scratch ");
        outcome_free(&gpu);
    }
    outcome_free(&cpu);
}

static int lines_with(const outcome *o, const char *text) {
    int lines = 0;
    for (const char *at = o->err.data; (at = strstr(at, text)); at++) lines++;
    return lines;
}

static void a_profile_is_printed_and_changes_nothing(void **state) {
    (void)state;
    static const char *const groups[] = {"embedding ", "norm ",    "qkv ",  "attention ", "o ",       "router ",
                                         "routing ",   "gate_up ", "down ", "last norm ", "lm_head ", "sampling "};
    with_gpu();
    outcome cpu = run("-m", "stories", "-d", "cpu", "--greedy", "-n", "24", "-p", TALE);
    expect_code(&cpu, 0);
    setenv("MXRUN_CUDA_PROFILE", "1", 1);
    outcome o = run("-m", "stories", "-d", "cuda", "--ctx", "512", "--greedy", "-n", "24", "-p", TALE);
    expect_code(&o, 0);
    assert_string_equal(o.out.data, cpu.out.data);
    expect_text(&o.err, "GPU profile, steps of more than 64 rows: 1 of ");
    expect_text(&o.err, "GPU profile, steps of at most 64 rows: 23 of 1.0 rows, ");
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
        char line[40];
        snprintf(line, sizeof line, ":   %s", groups[i]);
        if (lines_with(&o, line) != 2) fail_msg("%d lines of %s: %s", lines_with(&o, line), groups[i], o.err.data);
    }
    assert_int_equal(lines_with(&o, " GB/s\n"), 6); /* qkv, o, router, gate_up, down, lm_head */
    outcome_free(&o);
    outcome_free(&cpu);
    setenv("MXRUN_CUDA_PROFILE", "yes", 1);
    refuses(2, "MXRUN_CUDA_PROFILE=yes: expected 0 (no profile) or 1", "-m", "stories", "-d", "cuda", "-p", TALE);
}

static void seeds_and_rules_of_drawing_are_those_of_the_cpu(void **state) {
    (void)state;
    with_gpu();
    outcome both[2];
    for (int i = 0; i < 2; i++) {
        both[i] = run("-m", "stories", "-d", i ? "cuda" : "cpu", "--precision", "fp32", "--kv-type", "f32", "--ctx",
                      "512", "--seed", "11", "--temperature", "0.9", "--top-k", "40", "--top-p", "0.95", "--min-p",
                      "0.01", "--repetition-penalty", "1.1", "--logit-bias", "20=-100", "-n", "16", "-p", TALE);
        expect_code(&both[i], 0);
    }
    assert_string_equal(both[1].out.data, both[0].out.data);
    for (int i = 0; i < 2; i++) outcome_free(&both[i]);
}

static void automatic_choice_takes_a_gpu_that_holds_the_model(void **state) {
    (void)state;
    with_gpu();
    outcome o = run("-m", "stories", "--ctx", "512", "--greedy", "-n", "2", "-p", TALE);
    expect_code(&o, 0);
    expect_text(&o.err, "(cuda:0): weights ");
    outcome_free(&o);
    o = run("-m", "stories", "--gpu-memory", "1M", "--greedy", "-n", "2", "-p", TALE);
    expect_code(&o, 0);
    expect_text(&o.err, "warning: the model runs on the CPU: ");
    expect_text(&o.err, "--gpu-memory allows 0.00 GB");
    outcome_free(&o);
    o = run("info", "-m", "stories", "--json");
    expect_code(&o, 0);
    expect_text(&o.out, "\"holds_model\":true");
    outcome_free(&o);
}

static void what_does_not_fit_or_cannot_be_done_is_refused(void **state) {
    (void)state;
    with_gpu();
    refuses(1, "does not hold this model", "-m", "stories", "-d", "cuda", "--gpu-memory", "2M", "-p", TALE);
    refuses(1, "this machine has 1 GPU", "-m", "stories", "-d", "cuda:7", "-p", TALE);
    refuses(1, "int8", "-m", "stories", "-d", "cuda", "--precision", "int8", "-p", TALE);
    refuses(1, "keys and values of 131,072 tokens", "-m", "stories", "-d", "cuda", "--gpu-memory", "600M", "--ctx",
            "131072", "-p", TALE);
}

static void bench_measures_the_gpu(void **state) {
    (void)state;
    with_gpu();
    char shape[600];
    snprintf(shape, sizeof shape, "%s/config.json", data("base"));
    outcome o = run("bench", "--synthetic", shape, "-d", "cuda", "-p", "8", "-n", "2", "--depth", "0", "-r", "1",
                    "--batch", "16", "--json");
    expect_code(&o, 0);
    mx_json_document *d = parse_output(&o);
    const mx_json *root = mx_json_root(d), *peaks = mx_json_get(root, "peak_gflop_s");
    double read, multiply;
    assert_true(mx_json_double(mx_json_get(root, "bandwidth_gb_s"), &read) && read > 0);
    assert_true(mx_json_double(mx_json_get(peaks, "mma_bf16"), &multiply) && multiply > 0);
    expect_text(&o.out, "\"tier\":\"cuda");
    mx_json_free(d);
    outcome_free(&o);
}

int main(void) {
#define ALONE(name) cmocka_unit_test_setup(name, no_plugin)
    const struct CMUnitTest tests[] = {
        ALONE(a_gpu_that_is_not_there_is_an_error_with_the_reason),
        ALONE(automatic_choice_without_a_gpu_is_the_cpu),
        ALONE(wrong_options_are_named),
        ALONE(verify_passes_the_goldens),
        ALONE(verify_says_why_a_device_is_lost),
        ALONE(answers_are_those_of_the_cpu),
        ALONE(a_profile_is_printed_and_changes_nothing),
        ALONE(seeds_and_rules_of_drawing_are_those_of_the_cpu),
        ALONE(automatic_choice_takes_a_gpu_that_holds_the_model),
        ALONE(what_does_not_fit_or_cannot_be_done_is_refused),
        ALONE(bench_measures_the_gpu),
    };
    return cmocka_run_group_tests_name("device", tests, program_set_up, program_tear_down);
}
