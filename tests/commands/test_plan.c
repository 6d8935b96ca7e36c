/* mxrun plan, and the warning before a load, as a user sees them. */
#include "support.h"

#include "base/cpu.h"
#include "base/pages.h"
#include "tests/sanitized.h"

#if defined(__x86_64__)
#define GIVEN      "--bandwidth", "50", "--peak", "fma256=270,fma512=537,dpbf16=1008"
#define PEAK_ALONE "maddubs256=900"
#else
#define GIVEN      "--bandwidth", "50", "--peak", "fma128=100"
#define PEAK_ALONE "sdot=100"
#endif

static const mx_json *model_of(const mx_json_document *d, int index) {
    const mx_json *list = mx_json_get(mx_json_root(d), "models"), *m = list ? list->child : NULL;
    while (m && index--) m = m->next;
    assert_non_null(m);
    return m;
}

static double number(const mx_json *object, const char *key) {
    double x;
    if (!mx_json_double(mx_json_get(object, key), &x)) fail_msg("no number \"%s\"", key);
    return x;
}

static void nothing_is_needed_for_a_plan(void **state) {
    (void)state;
    outcome o = run("plan", GIVEN);
    expect_code(&o, 0);
    static const char *const parts[] = {
        "Machine\n",    "kernels",           "disk",    "Memory in MB, 1 stream of 8,192 tokens",
        "gpt-oss-20b ", "gpt-oss-120b-gguf", "stories", "13,761",
        "65,249",       "Recommendation",    "experts", "GPU"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) expect_text(&o.out, parts[i]);
    assert_int_equal(o.err.size, 0);
    outcome_free(&o);
}

static void json_is_complete(void **state) {
    (void)state;
    outcome o = run("plan", GIVEN, "--json", "--ctx", "4096", "--streams", "2");
    expect_code(&o, 0);
    mx_json_document *d = parse_output(&o);
    const mx_json *root = mx_json_root(d), *machine = mx_json_get(root, "machine");
    static const char *const members[] = {"mxrun",   "machine", "seconds", "context",       "streams",
                                          "kv_type", "models",  "choice",  "recommendation"};
    static const char *const of_machine[] = {"cpu",          "features",
                                             "tier",         "precision",
                                             "logical_cpus", "cores_allowed",
                                             "cores",        "memory_nodes",
                                             "l1d_bytes",    "l2_bytes",
                                             "l3_bytes",     "power_limit_w",
                                             "memory_bytes", "memory_free_bytes",
                                             "huge_pages",   "bandwidth_gb_s",
                                             "peak_gflop_s", "given",
                                             "disk",         "gpus",
                                             "gpu_note",     "gpu_driver"};
    static const char *const of_model[] = {
        "name",          "layout",        "here",   "layers", "experts",   "max_context",  "weight_bytes_per_token",
        "memory",        "gpu_memory",    "prompt", "decode", "from_disk", "cold_start_s", "kernels",
        "speed_unknown", "speed_borrowed"};
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) assert_non_null(mx_json_get(root, members[i]));
    for (size_t i = 0; i < sizeof of_machine / sizeof *of_machine; i++)
        assert_non_null(mx_json_get(machine, of_machine[i]));
    for (int m = 0; m < 5; m++)
        for (size_t i = 0; i < sizeof of_model / sizeof *of_model; i++)
            assert_non_null(mx_json_get(model_of(d, m), of_model[i]));
    assert_true(number(mx_json_get(machine, "bandwidth_gb_s"), "median") == 50);
    assert_true(number(root, "context") == 4096 && number(root, "streams") == 2);
    const mx_json *small = model_of(d, 0), *memory = mx_json_get(small, "memory");
    assert_true(mx_json_is_string(mx_json_get(small, "name"), "gpt-oss-20b"));
    assert_true(number(small, "weight_bytes_per_token") == 3708089088);
    assert_true(number(memory, "weights_bytes") == 13761264768);
    assert_true(number(memory, "kv_bytes") >= 2 * 117964800 && number(memory, "kv_bytes") < 2 * 117964800 + 2097152);
    assert_true(number(memory, "total_bytes") > 14e9);
    mx_json_free(d);
    outcome_free(&o);
}

static void the_model_that_is_asked_about_comes_first(void **state) {
    (void)state;
    static const char *const names[] = {"stories", "120b-gguf", "openai/gpt-oss-safeguard-20b", "20b", "gpt-oss:20b"};
    static const double layers[] = {4, 36, 24, 24, 24};
    for (int i = 0; i < 5; i++) {
        outcome o = run("plan", GIVEN, "--json", "-m", names[i]);
        expect_code(&o, 0);
        mx_json_document *d = parse_output(&o);
        assert_true(mx_json_is_string(mx_json_get(model_of(d, 0), "name"), names[i]));
        assert_true(number(model_of(d, 0), "layers") == layers[i]);
        mx_json_free(d);
        outcome_free(&o);
    }
}

/* Whatever variable names the hub's cache: the rule is the hub's. */
static void the_disk_is_that_of_the_hubs_cache(void **state) {
    (void)state;
    setenv("HUGGINGFACE_HUB_CACHE", "/nowhere/old-name", 1);
    outcome o = run("plan", GIVEN, "--json");
    unsetenv("HUGGINGFACE_HUB_CACHE");
    expect_code(&o, 0);
    mx_json_document *d = parse_output(&o);
    const mx_json *disk = mx_json_get(mx_json_get(mx_json_root(d), "machine"), "disk");
    assert_true(mx_json_is_string(mx_json_get(disk, "folder"), "/nowhere/old-name"));
    mx_json_free(d);
    outcome_free(&o);
}

/* With one peak alone no kernels of this machine but the plainest have a speed. */
static void a_peak_that_is_left_out_is_missed(void **state) {
    (void)state;
    outcome o = run("plan", "--bandwidth", "50", "--peak", PEAK_ALONE);
    expect_code(&o, 0);
    expect_text(&o.out, "Speed on the CPU, behind 4,096 tokens: unknown, ");
    expect_no_text(&o.out, "tokens/s");
    outcome_free(&o);
}

static void the_machine_is_measured_where_nothing_is_given(void **state) {
    (void)state;
    if (SANITIZED) skip(); /* a sanitizer's time is no measure */
    outcome o = run("plan", "--json", "-m", "stories");
    expect_code(&o, 0);
    mx_json_document *d = parse_output(&o);
    const mx_json *machine = mx_json_get(mx_json_root(d), "machine"), *rate = mx_json_get(machine, "bandwidth_gb_s");
    if (rate->type != MX_JSON_NULL) { /* memory may be short */
        assert_true(number(rate, "low") > 0 && number(rate, "low") <= number(rate, "median"));
        assert_true(number(rate, "median") <= number(rate, "high"));
    }
    assert_true(number(mx_json_root(d), "seconds") < 20);
    mx_json_free(d);
    outcome_free(&o);
}

static void wrong_options_are_named(void **state) {
    (void)state;
    static const char *const wrong[][2] = {
        {"--ctx", "0"},        {"--ctx", "many"},          {"--streams", "0"},  {"--streams", "257"},
        {"--bandwidth", "0"},  {"--bandwidth", "fast"},    {"--peak", ""},      {"--peak", "fma512"},
        {"--peak", "fma512="}, {"--peak", "fma512=-1"},    {"--peak", "sse=3"}, {"--peak", "fma512=1,"},
        {"--peak", "=1"},      {"--peak", "fma512=1e999"}, {"--kv-type", "f8"}, {"--peak", "fma512=1x"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        outcome o = run("plan", wrong[i][0], wrong[i][1]);
        expect_code(&o, 2);
        expect_text(&o.err, wrong[i][0]);
        assert_int_equal(o.out.size, 0);
        outcome_free(&o);
    }
    outcome o = run("plan", "gpt-oss-20b");
    expect_code(&o, 2);
    expect_text(&o.err, "unexpected argument");
    outcome_free(&o);
    o = run("plan", GIVEN, "-m", "./no-such-folder");
    expect_code(&o, 1);
    expect_text(&o.err, "no-such-folder");
    outcome_free(&o);
    o = run_with(&(surroundings){.stdout_path = "/dev/full"}, (const char *const[]){"plan", GIVEN, NULL});
    expect_code(&o, 1);
    outcome_free(&o);
}

static void memory_that_will_not_do_is_named_before_the_load(void **state) {
    (void)state;
    outcome o = run("-m", "stories", "--raw", "--greedy", "-n", "1", "-p", "Once");
    expect_code(&o, 0);
    expect_no_text(&o.err, "warning");
    outcome_free(&o);
    o = run("-m", "stories", "--raw", "--greedy", "-n", "1", "--kv-memory", "900G", "-p", "Once");
    if (mx_memory_available() > 900e9) skip();
    expect_text(&o.err, "needs ");
    expect_text(&o.err, "keys and values");
    expect_text(&o.err, "it may run out of memory; mxrun plan tells what fits");
    outcome_free(&o);
}

/* Where memory comes in huge pages; 3 % are within reach (README), other libraries and kernels may add some. */
static void a_run_takes_what_was_planned(void **state) {
    (void)state;
    enum { CONTEXT = 1024 };
    if (SANITIZED || !mx_pages_huge()) skip();
    outcome o = run("plan", GIVEN, "--json", "-m", "stories", "--ctx", "1024");
    expect_code(&o, 0);
    mx_json_document *d = parse_output(&o);
    const mx_json *memory = mx_json_get(model_of(d, 0), "memory");
    const double planned = number(memory, "total_bytes");
    char kv[40], prompt[4 * CONTEXT] = "";
    snprintf(kv, sizeof kv, "%.0f", number(memory, "kv_bytes"));
    mx_json_free(d);
    outcome_free(&o);
    for (int i = 0; i < CONTEXT - 24; i++) strcpy(prompt + 4 * i, " the");
    o = run("-q", "-m", "stories", "--raw", "--ctx", "1024", "--kv-memory", kv, "-n", "16", "-p", prompt);
    expect_code(&o, 0);
    print_message("planned %.1f MB, taken %.1f MB\n", planned / 1e6, o.resident / 1e6);
    assert_true(planned > 0.9 * o.resident && planned < 1.1 * o.resident);
    outcome_free(&o);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_needed_for_a_plan),
        cmocka_unit_test(json_is_complete),
        cmocka_unit_test(the_model_that_is_asked_about_comes_first),
        cmocka_unit_test(the_disk_is_that_of_the_hubs_cache),
        cmocka_unit_test(a_peak_that_is_left_out_is_missed),
        cmocka_unit_test(the_machine_is_measured_where_nothing_is_given),
        cmocka_unit_test(wrong_options_are_named),
        cmocka_unit_test(a_run_takes_what_was_planned),
        cmocka_unit_test(memory_that_will_not_do_is_named_before_the_load),
    };
    return cmocka_run_group_tests_name("plan", tests, program_set_up, program_tear_down);
}
