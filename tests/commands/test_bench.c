/* mxrun bench as a user runs it. */
#include "support.h"

#include <fcntl.h>
#include <math.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "tests/two_nodes.h"

/* A gpt-oss in small: 2 layers, hidden 64, 8 experts of width 32, 512 tokens; with QUANT other fields can be added. */
static const char small_config[] =
    "{\"model_type\":\"gpt_oss\",\"num_hidden_layers\":2,\"hidden_size\":64,\"intermediate_size\":32,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":32,\"num_local_experts\":8,"
    "\"num_experts_per_tok\":2,\"vocab_size\":512,\"max_position_embeddings\":1024,\"sliding_window\":64,"
    "\"rms_norm_eps\":1e-5,\"rope_theta\":10000,\"eos_token_id\":3}";

static char small[200];

static int set_up(void **state) {
    char folder[200];
    if (program_set_up(state)) return -1;
    snprintf(folder, sizeof folder, "%s/small", test_folder);
    if (mkdir(folder, 0777)) return -1;
    write_test_file("small/config.json", small_config, small);
    return 0;
}

/* Few tokens: what is tested is that it works, not how fast. */
#define QUICK "-p", "20", "-n", "7", "-r", "1"

static double number(const mx_json *object, const char *key) {
    double x;
    if (!mx_json_double(mx_json_get(object, key), &x)) fail_msg("no number \"%s\"", key);
    return x;
}

static void check_row(const mx_json *row, const char *test, int depth, int streams, int tokens) {
    static const char *const texts[] = {"precision", "tier", "bound_by", "kv_type"};
    assert_true(mx_json_is_string(mx_json_get(row, "test"), test));
    assert_int_equal(number(row, "depth"), depth);
    assert_int_equal(number(row, "streams"), streams);
    assert_int_equal(number(row, "tokens"), tokens);
    const double speed = number(row, "tokens_per_s"), floor = number(row, "floor_tokens_per_s");
    assert_true(speed > 0 && floor > 0);
    assert_true(number(row, "tokens_per_s_min") <= speed && speed <= number(row, "tokens_per_s_max"));
    assert_true(number(row, "percent_of_floor") > 0);
    assert_true(number(row, "bytes_per_token") > 0 && number(row, "flops_per_token") > 0);
    assert_true(number(row, "threads") >= 1 && number(row, "windows") >= 1);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        const mx_json *text = mx_json_get(row, texts[i]);
        assert_true(text && text->type == MX_JSON_STRING && text->size);
    }
}

static void json_has_every_field(void **state) {
    (void)state;
    outcome o = run("bench", "-m", "stories", QUICK, "--depth", "0,100", "--streams", "1,3", "--threads", "1,2",
                    "--precision", "fp32", "--json");
    expect_code(&o, 0);
    assert_int_equal(o.err.size, 0); /* no progress where stderr is no terminal */
    mx_json_document *d = parse_output(&o);
    const mx_json *root = mx_json_root(d), *results = mx_json_get(root, "results"), *row = results->child;
    assert_true(number(root, "bandwidth_gb_s") > 0);
    assert_true(number(root, "load_s") > 0 && number(root, "memory_bytes") > number(root, "weight_bytes"));
    assert_int_equal(mx_json_get(root, "peak_gflop_s")->type, MX_JSON_OBJECT);
    assert_int_equal(mx_json_get(mx_json_get(root, "machine"), "cpu")->type, MX_JSON_STRING);
    assert_true(mx_json_is_string(mx_json_get(root, "model"), "stories"));
    assert_true(number(mx_json_get(root, "energy_counters"), "nvml_devices") >= 0);
    assert_int_equal(results->count, 2 * 5);
    for (int threads = 1; threads <= 2; threads++) {
        const mx_json *first = row;
        check_row(row, "prompt", 0, 1, 20);
        for (int streams = 1; streams <= 3; streams += 2)
            for (int depth = 0; depth <= 100; depth += 100) {
                row = row->next;
                check_row(row, "decode", depth, streams, 7);
                assert_int_equal(number(row, "threads"), threads);
                assert_true(mx_json_is_string(mx_json_get(row, "precision"), "fp32"));
            }
        /* More streams share the weights; a depth adds its keys and values. */
        const mx_json *one = first->next, *deep = one->next, *three = deep->next;
        assert_true(number(deep, "bytes_per_token") > number(one, "bytes_per_token"));
        assert_true(number(three, "bytes_per_token") < number(one, "bytes_per_token"));
        assert_true(number(one, "experts_per_layer") == 4); /* of 16 */
        assert_true(number(three, "experts_per_layer") > 4 && number(three, "experts_per_layer") <= 12);
        const double gain = number(three, "tokens_per_s") / number(one, "tokens_per_s");
        assert_true(fabs(number(three, "ratio_to_one_stream") / gain - 1) < 1e-3);
        assert_null(mx_json_get(one, "ratio_to_one_stream"));
        assert_null(mx_json_get(first, "experts_per_layer"));
        row = row->next;
    }
    assert_null(row);
    mx_json_free(d);
    outcome_free(&o);
}

/* stories: 4 layers, hidden 256, 16 experts of width 128, 4 chosen, 8 heads of 64, 2 of keys and values, vocabulary
 * 4096; layers 0 and 2 see 128 positions. Worked out by hand from these numbers. */
static void bytes_and_flops_are_counted(void **state) {
    (void)state;
    outcome o = run("bench", "-m", "stories", "-p", "0", "-n", "1", "-r", "1", "--depth", "999", "--json");
    expect_code(&o, 0);
    mx_json_document *d = parse_output(&o);
    const mx_json *row = mx_json_get(mx_json_root(d), "results")->child;
    const double q = 512, kv = 128, h = 256, f = 128, e = 16, vocab = 4096;
    const double matrices = q * h + 2 * kv * h + h * q + e * h, expert = 3 * f * h;
    const double flops = 2 * (4 * (matrices + 4 * expert) + vocab * h);
    assert_true(fabs(number(row, "flops_per_token") - flops) < 1);
    const double dense = 2 * (4 * matrices + vocab * h), mxfp4 = 4 * 4 * expert * 17 / 32,
                 biases = 4 * (4 * (q + 2 * kv + h + e) + 4 * 2 * (2 * f + h)), vectors = 4 * (4 * (2 * h + 8) + h),
                 row_of_embedding = 2 * h;
    const double cache = (2 * 1000 + 2 * 128) * 2 * kv * 2;
    const double bytes = dense + mxfp4 + biases + vectors + row_of_embedding + cache;
    if (fabs(number(row, "bytes_per_token") - bytes) > 1)
        fail_msg("%.0f bytes a token, %.0f expected", number(row, "bytes_per_token"), bytes);
    mx_json_free(d);
    outcome_free(&o);
}

static void tables_are_aligned(void **state) {
    (void)state;
    outcome o = run("bench", "--synthetic", small, QUICK, "--depth", "0");
    expect_code(&o, 0);
    expect_text(&o.out, "2 layers");
    expect_text(&o.out, "of random weights");
    expect_text(&o.out, "\n  made in ");
    expect_text(&o.out, "\ntest       depth  streams");
    expect_text(&o.out, "\nprompt 20      0        1");
    expect_text(&o.out, "\ndecode         0        1");
    expect_text(&o.out, "GB/s");
    expect_text(&o.out, "RAPL"); /* which energy was counted, or that there is no counter */
    outcome_free(&o);
    o = run("bench", "--synthetic", small, QUICK, "--depth", "0", "--markdown", "--layers", "1", "--precision", "fp32",
            "--precision", "bf16");
    expect_code(&o, 0);
    expect_text(&o.out, "precision fp32");
    expect_text(&o.out, "precision bf16");
    expect_text(&o.out, "1 of 2 layers");
    expect_text(&o.out, "| test | depth | streams | tokens/s |");
    expect_text(&o.out, "| --- | ---: |");
    expect_text(&o.out, "| decode | 0 | 1 | ");
    outcome_free(&o);
}

/* Of five tokens, the last of them shorter, in each repetition; a prompt is one. */
static void decoding_is_cut_into_windows(void **state) {
    (void)state;
    static const int counts[][3] = {{5, 1, 1}, {6, 1, 2}, {11, 2, 6}};
    for (int i = 0; i < 3; i++) {
        char tokens[12], repetitions[12];
        snprintf(tokens, sizeof tokens, "%d", counts[i][0]);
        snprintf(repetitions, sizeof repetitions, "%d", counts[i][1]);
        outcome o =
            run("bench", "--synthetic", small, "-p", "20", "--depth", "0", "-n", tokens, "-r", repetitions, "--json");
        expect_code(&o, 0);
        mx_json_document *d = parse_output(&o);
        const mx_json *prompt = mx_json_get(mx_json_root(d), "results")->child;
        assert_int_equal(number(prompt, "windows"), counts[i][1]);
        assert_int_equal(number(prompt->next, "windows"), counts[i][2]);
        mx_json_free(d);
        outcome_free(&o);
    }
}

static void streams_are_held_against_one(void **state) {
    (void)state;
    outcome o = run("bench", "--synthetic", small, QUICK, "--depth", "0", "--streams", "1,4", "--markdown");
    expect_code(&o, 0);
    expect_text(&o.out, "| tokens/s | of one | min–max |");
    expect_text(&o.out, "| × ");
    expect_text(&o.out, " experts a layer |");
    expect_text(&o.out, "of one: all streams together");
    outcome_free(&o);
    o = run("bench", "--synthetic", small, QUICK, "--depth", "0", "--streams", "4", "--markdown");
    expect_code(&o, 0);
    expect_text(&o.out, "| tokens/s | min–max |");
    outcome_free(&o);
}

static void defaults_leave_out_what_does_not_fit(void **state) {
    (void)state;
    outcome o = run("bench", "--synthetic", small, "-p", "20", "-r", "1"); /* 1024 positions: no depth of 4096 */
    expect_code(&o, 0);
    expect_no_text(&o.out, "4,096");
    outcome_free(&o);
    o = run("bench", "--synthetic", small, "-r", "1", "--depth", "4096");
    expect_code(&o, 2);
    expect_text(&o.err, "the model has 1024 positions");
    outcome_free(&o);
}

static void saved_weights_can_be_opened_and_measured(void **state) {
    (void)state;
    char folder[200], path[300];
    snprintf(folder, sizeof folder, "%s/saved", test_folder);
    outcome o = run("bench", "--synthetic", small, "--save", folder);
    expect_code(&o, 0);
    expect_text(&o.out, "of random weights, 2 layers");
    outcome_free(&o);
    o = run("bench", "-m", folder, QUICK, "--depth", "0", "--json");
    expect_code(&o, 0);
    mx_json_document *disk = parse_output(&o);
    outcome memory = run("bench", "--synthetic", small, QUICK, "--depth", "0", "--json");
    expect_code(&memory, 0);
    mx_json_document *made = parse_output(&memory);
    assert_true(number(mx_json_root(disk), "weight_bytes") == number(mx_json_root(made), "weight_bytes"));
    /* The same weights and tokens choose the same experts: a prompt reads the same bytes. */
    assert_true(number(mx_json_get(mx_json_root(disk), "results")->child, "bytes_per_token") ==
                number(mx_json_get(mx_json_root(made), "results")->child, "bytes_per_token"));
    mx_json_free(disk);
    mx_json_free(made);
    outcome_free(&o);
    outcome_free(&memory);
    o = run("info", "-m", folder);
    expect_code(&o, 0);
    expect_text(&o.out, "only token ids can be run");
    outcome_free(&o);
    o = run("bench", "--synthetic", small, "--save", folder);
    expect_code(&o, 2);
    expect_text(&o.err, "is there already");
    outcome_free(&o);
    snprintf(path, sizeof path, "%s/config.json/x", folder);
    o = run("bench", "--synthetic", small, "--save", path);
    expect_code(&o, 1);
    expect_text(&o.err, "cannot be made");
    outcome_free(&o);
    if (geteuid() != 0) {
        o = run("bench", "--synthetic", small, "--save", "/usr/mxrun-test");
        expect_code(&o, 1);
        expect_text(&o.err, "Permission denied");
        outcome_free(&o);
    }
}

static void a_full_disk_is_seen_before_writing(void **state) {
    (void)state;
    char mount_point[200], folder[250];
    snprintf(mount_point, sizeof mount_point, "%s/tmpfs", test_folder);
    assert_int_equal(mkdir(mount_point, 0777), 0);
    if (mount("tmpfs", mount_point, "tmpfs", 0, "size=1m")) {
        rmdir(mount_point);
        print_message("skipped: only root can mount a small disk\n");
        skip();
    }
    snprintf(folder, sizeof folder, "%s/model", mount_point);
    outcome o = run("bench", "--synthetic", "gpt-oss-20b", "--layers", "1", "--save", folder);
    const bool empty = rmdir(folder) != 0;
    umount(mount_point);
    expect_code(&o, 1);
    expect_text(&o.err, "the disk has room for 0.00 GB");
    assert_true(empty);
    outcome_free(&o);
    /* tmpfs counts what others take meanwhile: a file that is there makes writing itself fail. */
    assert_int_equal(rmdir(mount_point), 0);
}

static void models_are_loaded_as_asked(void **state) {
    (void)state;
    static const char *const ways[][2] = {{"map", " mapped in "}, {"read", " read in "}, {"lazy", NULL}};
    setenv("MXRUN_LOG", "debug", 1);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        outcome o = run("bench", "-m", "stories", "-p", "0", "-n", "1", "-r", "1", "--depth", "0", "--load", ways[i][0],
                        "--numa", "interleave");
        expect_code(&o, 0);
        expect_text(&o.out, "decode");
        if (ways[i][1])
            expect_text(&o.err, ways[i][1]);
        else
            expect_no_text(&o.err, " GB/s), ");
        outcome_free(&o);
    }
    unsetenv("MXRUN_LOG");
}

/* On a made-up machine of two nodes, where the system has nothing to place: what is said is what was tried, and the
 * weights are the same. */
static void synthetic_weights_are_placed_as_asked(void **state) {
    (void)state;
    static const struct {
        const char *numa, *said;
    } cases[] = {{"auto", "2 memory nodes: each has its part"},
                 {"spread", "2 memory nodes: each has its part"},
                 {"interleave", "cannot be taken from all in turn"},
                 {"off", NULL}};
    double bytes = 0;
    two_nodes nodes;
    if (!two_nodes_begin(&nodes)) skip();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        outcome o = run("bench", "--synthetic", small, QUICK, "--depth", "0", "--json", "--numa", cases[i].numa);
        expect_code(&o, 0);
        if (cases[i].said)
            expect_text(&o.err, cases[i].said);
        else
            expect_no_text(&o.err, "memory nodes: the synthetic");
        mx_json_document *d = parse_output(&o);
        const double now = number(mx_json_get(mx_json_root(d), "results")->child, "bytes_per_token");
        assert_true(i == 0 || now == bytes); /* the same experts are chosen */
        bytes = now;
        mx_json_free(d);
        outcome_free(&o);
    }
    two_nodes_end(&nodes);
}

static void compares_with_an_earlier_run(void **state) {
    (void)state;
    char path[200];
    outcome o = run("bench", "-m", "stories", QUICK, "--depth", "0", "--threads", "1", "--json");
    expect_code(&o, 0);
    write_test_file("before.json", o.out.data, path);
    outcome_free(&o);
    o = run("bench", "-m", "stories", QUICK, "--depth", "0,50", "--threads", "1", "--compare", path);
    expect_code(&o, 0);
    expect_text(&o.out, "before");
    expect_text(&o.out, "× ");
    expect_text(&o.out, "–  memory"); /* depth 50 was not measured then */
    expect_text(&o.out, "–: not measured before");
    expect_no_text(&o.out, "another model");
    outcome_free(&o);
    o = run("bench", "--synthetic", small, QUICK, "--depth", "0", "--threads", "1", "--compare", path, "--json");
    expect_code(&o, 0);
    mx_json_document *d = parse_output(&o);
    assert_true(number(mx_json_get(mx_json_root(d), "results")->child, "ratio_to_before") > 0);
    assert_false(mx_json_get(mx_json_root(d), "before_same_model")->boolean);
    mx_json_free(d);
    outcome_free(&o);

    /* Nothing is compared with what was measured otherwise. */
    static const char *const other[][2] = {
        {"--threads", "2"}, {"--precision", "int8"}, {"--kv-type", "f32"}, {"-n", "6"}};
    for (size_t i = 0; i < sizeof other / sizeof *other; i++) {
        const char *const arguments[] = {
            "bench",   "-m", "stories",   "-p", i == 3 ? "0" : "20", "-n", "7",         "-r",        "1",
            "--depth", "0",  "--threads", "1",  "--compare",         path, other[i][0], other[i][1], NULL};
        o = run_with(&(surroundings){0}, arguments);
        expect_code(&o, 0);
        expect_no_text(&o.out, "× ");
        expect_text(&o.out, "–: not measured before");
        outcome_free(&o);
    }

    o = run("bench", "--synthetic", small, QUICK, "--depth", "0", "--threads", "1", "--json");
    expect_code(&o, 0);
    write_test_file("before.json", o.out.data, path);
    outcome_free(&o);
    o = run("bench", "--synthetic", small, QUICK, "--depth", "0", "--threads", "1", "--layers", "1", "--compare", path);
    expect_code(&o, 0);
    expect_text(&o.out, "another model");
    expect_text(&o.out, "2 layers");
    outcome_free(&o);

    static const char *const wrong[][2] = {
        {"{\"results\": 5}", "no list \"results\""},
        {"[]", "no list \"results\""},
        {"{\"results\": [{\"test\": \"decode\"}]}", "results[0] is no row"},
        {"{\"results\": [", "wrong.json"},
        {"", "wrong.json"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        write_test_file("wrong.json", wrong[i][0], path);
        o = run("bench", "-m", "stories", "--compare", path);
        expect_code(&o, 1);
        expect_text(&o.err, wrong[i][1]);
        outcome_free(&o);
    }
    o = run("bench", "-m", "stories", "--compare", "/nowhere/before.json");
    expect_code(&o, 1);
    outcome_free(&o);
}

static void wrong_options_are_named(void **state) {
    (void)state;
    static const struct {
        const char *arguments[12], *text;
        int code;
    } wrong[] = {
        {{"bench"}, "give -m MODEL or --synthetic NAME", 2},
        {{"bench", "-m", "stories", "--synthetic", "gpt-oss-20b"}, "not both", 2},
        {{"bench", "--synthetic", "gpt-oss-7b"}, "gpt-oss-20b, gpt-oss-120b or the path of a config.json", 2},
        {{"bench", "--synthetic", "gpt-oss-20b", "--layers", "99"}, "it has 1 to 24", 2},
        {{"bench", "--synthetic", "gpt-oss-20b", "--layers", "0"}, "--layers 0", 2},
        {{"bench", "--synthetic", "gpt-oss-20b", "--layers", "99999999999"}, "--layers", 2},
        {{"bench", "--synthetic", "/nowhere/config.json"}, "/nowhere: No such file", 1},
        {{"bench", "-m", "stories", "--layers", "1"}, "--layers is for --synthetic", 2},
        {{"bench", "-m", "stories", "--save", "x"}, "--save is for --synthetic", 2},
        {{"bench", "-m", "stories", "--json", "--markdown"}, "not both", 2},
        {{"bench", "-m", "stories", "-p", "1,x"}, "-p 1,x: expected", 2},
        {{"bench", "-m", "stories", "-p", "1,"}, "-p 1,: expected", 2},
        {{"bench", "-m", "stories", "--streams", "0"}, "--streams 0: expected", 2},
        {{"bench", "-m", "stories", "--depth", "-1"}, "--depth -1: expected", 2},
        {{"bench", "-m", "stories", "--threads", "5000"}, "--threads 5000: expected", 2},
        {{"bench", "-m", "stories", "--precision", "fp64"}, "--precision", 2},
        {{"bench", "-m", "stories", "--kv-type", "f8"}, "--kv-type f8", 2},
        {{"bench", "-m", "stories", "-p", "0", "-n", "0"}, "no test is left", 2},
        {{"bench", "-m", "stories", "-r", "0"}, "-r 0", 2},
        {{"bench", "-m", "stories", "--load", "mmap"}, "--load mmap: expected map, read or lazy", 2},
        {{"bench", "-m", "stories", "--numa", "here"}, "--numa here: expected auto, off,", 2},
        {{"bench", "--synthetic", "gpt-oss-20b", "--load", "map"}, "--load is for models in files", 2},
        {{"bench", "--synthetic", "gpt-oss-20b", "--numa", "here"}, "--numa here: expected auto, off,", 2},
        {{"bench", "-m", "stories", "extra"}, "unexpected argument", 2},
        {{"bench", "-m", "/nowhere"}, "/nowhere", 1},
        {{"bench", "--synthetic", "gpt-oss-120b", "--depth", "131000", "--streams", "256", "-n", "1"},
         "GB of memory are needed",
         1},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        outcome o = run_with(&(surroundings){0}, wrong[i].arguments);
        expect_text(&o.err, wrong[i].text);
        expect_code(&o, wrong[i].code);
        assert_int_equal(o.out.size, 0);
        outcome_free(&o);
    }
    char path[200];
    write_test_file("config.json", "{\"model_type\":\"llama\"}", path);
    outcome o = run("bench", "--synthetic", path);
    expect_code(&o, 1);
    expect_text(&o.err, "model_type is \"llama\"");
    outcome_free(&o);
    o = run_with(&(surroundings){.stdout_path = "/dev/full"},
                 (const char *const[]){"bench", "-m", "stories", QUICK, "--depth", "0", NULL});
    expect_code(&o, 1);
    expect_text(&o.err, "stdout");
    outcome_free(&o);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_has_every_field),
        cmocka_unit_test(bytes_and_flops_are_counted),
        cmocka_unit_test(tables_are_aligned),
        cmocka_unit_test(decoding_is_cut_into_windows),
        cmocka_unit_test(streams_are_held_against_one),
        cmocka_unit_test(defaults_leave_out_what_does_not_fit),
        cmocka_unit_test(saved_weights_can_be_opened_and_measured),
        cmocka_unit_test(a_full_disk_is_seen_before_writing),
        cmocka_unit_test(models_are_loaded_as_asked),
        cmocka_unit_test(synthetic_weights_are_placed_as_asked),
        cmocka_unit_test(compares_with_an_earlier_run),
        cmocka_unit_test(wrong_options_are_named),
    };
    return cmocka_run_group_tests_name("mxrun bench", tests, set_up, program_tear_down);
}
