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

/* The same with one thing changed: tests/commands/other_gpu.c. */
static void with_other_gpu(const char *what) {
    with_gpu();
    use_plugin(getenv("MXRUN_OTHER_GPU"));
    setenv("OTHER_GPU", what, 1);
}

static int no_plugin(void **state) {
    (void)state;
    unsetenv("OTHER_GPU");
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
    expect_text(&o.err, "mxrun: no GPU is used: /nowhere/libmxrun_cuda.so cannot be opened");
    expect_no_text(&o.err, "warning");
    outcome_free(&o);
    use_plugin(NULL); /* beside the program there is none, or one without a driver */
    o = run("-m", "stories", "-d", "cpu", "--greedy", "-n", "3", "-p", TALE);
    expect_code(&o, 0);
    expect_no_text(&o.err, "no GPU is used");
    outcome_free(&o);
    use_plugin("/nowhere/libmxrun_cuda.so");
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
}

/* In all commands alike. */
static void options_of_the_cpu_and_of_a_gpu_contradict_each_other(void **state) {
    (void)state;
    static const char *const commands[] = {"run", "bench", "verify"};
    static const char *const cpu[][3] = {{"--load", "read", "--load read is about the CPU"},
                                         {"--numa", "off", "--numa off is about the CPU"},
                                         {"--precision", "int8", "--precision with int8 is about the CPU"},
                                         {"--precision", "bf16,down=int8", "--precision with int8 is about the CPU"}};
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        refuses(2, "--gpu-memory and --device cpu contradict each other", commands[i], "-m", "stories", "-d", "cpu",
                "--gpu-memory", "1G");
        refuses(2, "--gpu-memory and --load read contradict each other", commands[i], "-m", "stories", "--load", "read",
                "--gpu-memory", "1G");
        for (size_t k = 0; k < sizeof cpu / sizeof *cpu; k++)
            refuses(2, cpu[k][2], commands[i], "-m", "stories", "-d", "cuda:0", cpu[k][0], cpu[k][1]);
    }
    refuses(2, "--load read is about the CPU", "batch", "-m", "stories", "-d", "cuda", "--load", "read", "-i", "-",
            "-o", "-");
    refuses(2, "--dense openblas is about the CPU", "-m", "stories", "-d", "cuda", "--dense", "openblas", "-p", TALE);
    refuses(2, "--dense openblas is about the CPU", "bench", "-m", "stories", "-d", "cuda", "--dense", "openblas");
    refuses(2, "--threads 1 is about the CPU", "bench", "-m", "stories", "-d", "cuda", "--threads", "1");
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
    refuses(2, "MXRUN_CUDA_PROFILE=yes: expected 0 (off) or 1 (on)", "-m", "stories", "-d", "cuda", "-p", TALE);
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

static void automatic_choice_is_the_cpu_with_options_of_the_cpu(void **state) {
    (void)state;
    static const char *const options[][2] = {{"--load", "read"}, {"--numa", "off"}, {"--precision", "int8"}};
    with_gpu();
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        outcome o = run("-m", "stories", options[i][0], options[i][1], "--greedy", "-n", "2", "-p", TALE);
        expect_code(&o, 0);
        expect_no_text(&o.err, "cuda");
        expect_no_text(&o.err, "warning");
        outcome_free(&o);
    }
    outcome o = run("verify", "-m", data("base"), "--load", "read", data("base.golden.safetensors"), "--cases", "t17");
    expect_code(&o, 0);
    expect_no_text(&o.out, "cuda");
    outcome_free(&o);
}

static void automatic_choice_goes_on_with_the_cpu_where_the_gpu_fails(void **state) {
    (void)state;
    static const char *const faults[][2] = {{"kernels", "cuda:0: GPU 0 is sm_75"},
                                            {"load", "a router has a number of F32 that is none of BF16"},
                                            {"room", "another program took the memory"}};
    char shape[600], warning[200];
    snprintf(shape, sizeof shape, "%s/config.json", data("base"));
    with_gpu();
    outcome cpu = run("-m", "stories", "-d", "cpu", "--greedy", "-n", "3", "-p", TALE);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        with_other_gpu(faults[i][0]);
        snprintf(warning, sizeof warning, "warning: the model runs on the CPU: %s", faults[i][1]);
        outcome o = run("-m", "stories", "--greedy", "-n", "3", "-p", TALE);
        expect_code(&o, 0);
        expect_text(&o.err, warning);
        assert_string_equal(o.out.data, cpu.out.data);
        outcome_free(&o);
        refuses(1, faults[i][1], "-m", "stories", "-d", "cuda", "-p", TALE);
        o = run("verify", "-m", data("base"), data("base.golden.safetensors"), "--cases", "t17");
        expect_code(&o, 0);
        expect_text(&o.err, warning);
        expect_no_text(&o.out, "cuda");
        outcome_free(&o);
    }
    outcome_free(&cpu);
    /* To measure a CPU takes seconds: this is too much for any. */
    with_gpu();
    outcome o =
        run("bench", "--synthetic", shape, "-p", "0", "-n", "1", "--depth", "100000", "--streams", "256", "--kv-type",
            "f32", "--precision", "fp32", "--precision", "fp32", "--precision", "fp32", "--precision", "fp32",
            "--precision", "fp32", "--precision", "fp32", "--precision", "fp32", "--precision", "fp32", "-r", "1");
    expect_code(&o, 1);
    expect_text(&o.err, "warning: the model runs on the CPU: emulated: ");
    expect_text(&o.err, "GB of memory are needed");
    outcome_free(&o);
}

static void automatic_choice_is_the_cpu_where_the_context_does_not_fit(void **state) {
    (void)state;
    with_gpu();
    outcome o = run("-m", "stories", "--gpu-memory", "600M", "--ctx", "131072", "--greedy", "-n", "2", "-p", TALE);
    expect_code(&o, 0);
    expect_text(&o.err, "warning: the model runs on the CPU: ");
    expect_text(&o.err, "keys and values of 131,072 tokens");
    expect_no_text(&o.err, "(cuda:0): weights");
    outcome_free(&o);
    o = run("-m", "stories", "--gpu-memory", "600M", "--kv-memory", "2G", "--greedy", "-n", "2", "-p", TALE);
    expect_code(&o, 0);
    expect_text(&o.err, "warning: the model runs on the CPU: ");
    outcome_free(&o);
}

static void of_several_the_one_that_works_is_taken(void **state) {
    (void)state;
    with_other_gpu("two");
    outcome o = run("-m", "stories", "--ctx", "512", "--greedy", "-n", "1", "--raw", "-p", "A");
    expect_code(&o, 0);
    expect_text(&o.err, "(cuda:1): weights ");
    outcome_free(&o);
    refuses(1, "cuda:0: GPU 0 is sm_75", "-m", "stories", "-d", "cuda:0", "-p", TALE);
}

static void a_plugin_that_cannot_be_used_is_named(void **state) {
    (void)state;
    with_other_gpu("driver");
    outcome o = run("-m", "stories", "--greedy", "-n", "2", "-p", TALE);
    expect_code(&o, 0);
    expect_text(&o.err, "mxrun: no GPU is used: the NVIDIA driver knows CUDA 12.4");
    outcome_free(&o);
    refuses(1, "the NVIDIA driver knows CUDA 12.4", "-m", "stories", "-d", "cuda", "-p", TALE);
    with_other_gpu("build");
    refuses(1, "is of another build than this mxrun: install", "-m", "stories", "-d", "cuda", "-p", TALE);
}

static void what_does_not_fit_or_cannot_be_done_is_refused(void **state) {
    (void)state;
    with_gpu();
    refuses(1, "does not hold this model", "-m", "stories", "-d", "cuda", "--gpu-memory", "2M", "-p", TALE);
    refuses(1, "this machine has 1 GPU", "-m", "stories", "-d", "cuda:7", "-p", TALE);
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
    expect_text(&o.out, "\"rapl\":false");
    mx_json_free(d);
    outcome_free(&o);
    with_other_gpu("measure");
    refuses(1, "nothing was measured", "bench", "--synthetic", shape, "-d", "cuda", "-p", "8", "-n", "0", "-r", "1");
}

/* What the line of the memory says of scratch. */
static double scratch_of(const outcome *o) {
    const char *at = strstr(o->err.data, ", scratch ");
    assert_non_null(strstr(o->err.data, " for all tests, scratch "));
    assert_non_null(at);
    return atof(at + strlen(", scratch "));
}

static void bench_takes_steps_as_the_engine_and_scratch_for_each_precision(void **state) {
    (void)state;
    static const char *const batch[] = {"512", "2048"};
    with_gpu();
    char shape[600];
    snprintf(shape, sizeof shape, "%s/config.json", data("base"));
    double of[4];
    for (int i = 0; i < 2; i++) {
        outcome o =
            run("bench", "--synthetic", shape, "-d", "cuda", "-p", "8", "-n", "0", "-r", "1", "--batch", batch[i]);
        expect_code(&o, 0);
        of[i] = scratch_of(&o);
        outcome_free(&o);
    }
    outcome o = run("bench", "--synthetic", shape, "-d", "cuda", "-p", "8", "-n", "0", "-r", "1");
    expect_code(&o, 0);
    of[2] = scratch_of(&o);
    outcome_free(&o);
    o = run("bench", "--synthetic", shape, "-d", "cuda", "-p", "8", "-n", "0", "-r", "1", "--precision", "mixed",
            "--precision", "fp32");
    expect_code(&o, 0);
    of[3] = scratch_of(&o);
    outcome_free(&o);
    assert_true(of[0] < of[1]);
    assert_true(of[2] == of[1]);
    assert_true(of[3] > 1.9 * of[2]);
}

int main(void) {
#define ALONE(name) cmocka_unit_test_setup(name, no_plugin)
    const struct CMUnitTest tests[] = {
        ALONE(a_gpu_that_is_not_there_is_an_error_with_the_reason),
        ALONE(automatic_choice_without_a_gpu_is_the_cpu),
        ALONE(wrong_options_are_named),
        ALONE(options_of_the_cpu_and_of_a_gpu_contradict_each_other),
        ALONE(verify_passes_the_goldens),
        ALONE(verify_says_why_a_device_is_lost),
        ALONE(answers_are_those_of_the_cpu),
        ALONE(a_profile_is_printed_and_changes_nothing),
        ALONE(seeds_and_rules_of_drawing_are_those_of_the_cpu),
        ALONE(automatic_choice_takes_a_gpu_that_holds_the_model),
        ALONE(automatic_choice_is_the_cpu_with_options_of_the_cpu),
        ALONE(automatic_choice_goes_on_with_the_cpu_where_the_gpu_fails),
        ALONE(automatic_choice_is_the_cpu_where_the_context_does_not_fit),
        ALONE(of_several_the_one_that_works_is_taken),
        ALONE(a_plugin_that_cannot_be_used_is_named),
        ALONE(what_does_not_fit_or_cannot_be_done_is_refused),
        ALONE(bench_measures_the_gpu),
        ALONE(bench_takes_steps_as_the_engine_and_scratch_for_each_precision),
    };
    return cmocka_run_group_tests_name("device", tests, program_set_up, program_tear_down);
}
