/* mxrun quantize as a user runs it: places, interruptions, options, and recipes that run the model; nothing is left
 * under the name of an output that was not finished. */
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "model_support.h"

/* ---- places -------------------------------------------------------------------------------------------------------
 */

static void test_places(void **state) {
    (void)state;
    mx_model_options o = as(NULL, NULL);
    o.force = false;
    make(TOP1, in_folder("there"), "keep", "keep");
    refuse(TOP1, in_folder("there"), &o, MX_INVALID_ARGUMENT, "is there already; --force replaces it");
    mx_model_options late = o; /* said before anything is measured */
    late.target_bits = 5;
    late.calibrate = in_folder("nowhere");
    memset(late.choice.format, 0, sizeof late.choice.format);
    refuse(TOP1, in_folder("there"), &late, MX_INVALID_ARGUMENT, "is there already; --force replaces it");
    refuse(TOP1, in_folder("name.safetensors"), &o, MX_INVALID_ARGUMENT, "give a folder's");
    refuse(in_folder("there"), in_folder("there/inside"), &o, MX_INVALID_ARGUMENT, "is inside the folder");
    refuse(TOP1, in_folder("there/model.safetensors/x"), &o, MX_IO, "cannot be made");
    refuse(in_folder("nowhere"), in_folder("none"), &o, MX_IO, "nowhere");
    o.force = true;
    refuse(in_folder("there"), in_folder("there"), &o, MX_INVALID_ARGUMENT, "holds what is to be converted");
}

static void die(void *user, const char *label, bool bytes, uint64_t done, uint64_t total) {
    (void)user;
    (void)label;
    (void)bytes;
    if (done > total * 3 / 4) raise(SIGKILL);
}

/* A child that quantises, with files of `limit` bytes at most (0: any). Its wait status. */
static int in_child(const char *out, bool dies, rlim_t limit) {
    const pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        mx_pool *own;
        mx_error why = {0};
        mx_model_report report;
        const struct rlimit size = {limit, limit};
        signal(SIGXFSZ, SIG_IGN);
        if (limit) setrlimit(RLIMIT_FSIZE, &size);
        if (mx_pool_create(1, &own, &why)) _exit(99);
        mx_model_options o = as("nvfp4", "mxfp8");
        o.pool = own;
        if (dies) o.progress = die;
        const mx_status status = mx_quantize_model(TOP1, out, &o, &report, &why);
        _exit(status == MX_IO && !strstr(why.text, "File too large") ? 98 : (int)status);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static void test_kill_and_full_disk(void **state) {
    (void)state;
    int status = in_child(in_folder("killed"), true, 0);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_false(exists(in_folder("killed")));
    assert_true(exists(in_folder("killed.incomplete")));
    make(TOP1, in_folder("killed"), "nvfp4", "mxfp8"); /* takes it over */
    assert_false(exists(in_folder("killed.incomplete")));
    make(TOP1, in_folder("whole"), "nvfp4", "mxfp8");
    assert_true(same_content(in_folder("killed/model.safetensors"), in_folder("whole/model.safetensors")));
    status = in_child(in_folder("limited"), false, 100000);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), MX_IO);
    assert_false(exists(in_folder("limited")));
    assert_false(exists(in_folder("limited.incomplete")));
}

static volatile sig_atomic_t stop;
static int shown;
static void stop_at(void *user, const char *label, bool bytes, uint64_t done, uint64_t total) {
    (void)bytes;
    (void)total;
    if (strcmp(label, user)) return;
    shown++;
    if (done) stop = 1;
}

static const char *stories(void) {
    return checkout("tools/stories/checkpoint");
}

static const char *story(void) {
    static char path[200];
    write_test_file("text.txt", "Once upon a time there was a fox who lived in a wood beside a lake.\n", path);
    return path;
}

/* Whatever goes on: nothing is left, and soon. */
static void test_stop(void **state) {
    (void)state;
    static const char *const labels[] = {"quantising", "calibrating", "measuring"};
    for (int i = 0; i < 3; i++) {
        mx_model_options o = as(i == 2 ? NULL : "nvfp4", i == 2 ? NULL : "mxfp8");
        o.stop = &stop;
        o.progress = stop_at;
        o.user = (void *)(uintptr_t)labels[i];
        o.calibrate = story();
        o.calibrate_tokens = 8;
        o.target_bits = i == 2 ? 8 : 0;
        o.choice.recipe.rule = i == 1 ? MX_RULE_WEIGHTED : MX_RULE_OCP;
        stop = shown = 0;
        refuse(stories(), in_folder("stopped"), &o, MX_CANCELLED, "interrupted");
        assert_in_range(shown, 1, 8);
    }
}

/* Formats by what they do to the predictions: what was measured is told, and what was chosen is written. */
static void test_target_bits(void **state) {
    (void)state;
    char text[200], out[400];
    snprintf(text, sizeof text, "%s", story());
    snprintf(out, sizeof out, "%s", in_folder("mixture"));
    outcome o =
        run("quantize", stories(), out, "--target-bits", "8", "--calibrate", text, "--calibrate-tokens", "8", "--json");
    expect_code(&o, 0);
    mx_json_document *document = parse_output(&o);
    const mx_json *root = mx_json_root(document), *table = mx_json_get(root, "table");
    double bits = 0, kl = -1, measured = -1;
    assert_true(mx_json_double(mx_json_get(root, "bits"), &bits) && bits <= 8 && bits > 7);
    assert_true(mx_json_double(mx_json_get(root, "kl"), &kl) && kl >= 0);
    assert_true(mx_json_double(mx_json_get(root, "kl_measured"), &measured) && measured >= 0);
    int parts = 0, compared = 0;
    for (const mx_json *p = table->child; p; p = p->next, parts++) {
        const mx_json *chosen = mx_json_get(p, "chosen"), *formats = mx_json_get(p, "formats");
        double of = -1;
        int64_t layer = -1;
        assert_true(mx_json_double(mx_json_get(formats, chosen->text), &of) && of >= 0);
        if (!mx_json_is_string(mx_json_get(p, "part"), "o")) continue;
        assert_true(mx_json_int64(mx_json_get(p, "layer"), &layer));
        char name[100];
        snprintf(name, sizeof name, "model.layers.%d.self_attn.o_proj", (int)layer);
        for (const mx_json *m = mx_json_get(root, "matrices")->child; m; m = m->next)
            if (mx_json_is_string(mx_json_get(m, "name"), name)) {
                assert_true(mx_json_is_string(mx_json_get(m, "format"), chosen->text));
                compared++;
            }
    }
    assert_int_equal(parts, 4 * 4 + 2);
    assert_int_equal(compared, 4);
    mx_json_free(document);
    outcome_free(&o);
    mx_weights *w;
    if (mx_weights_open(out, pool, &w, &error)) fail_msg("%s", error.text);
    mx_weights_close(w);
    o = run("quantize", stories(), "--dry-run", "--target-bits", "9", "--calibrate", text, "--calibrate-tokens", "8",
            "--formats", "int4:32,int8:32,bf16", "--quick", "--json");
    expect_code(&o, 0);
    document = parse_output(&o);
    table = mx_json_get(mx_json_root(document), "table");
    assert_non_null(table->child);
    for (const mx_json *p = table->child; p; p = p->next) {
        const mx_json *formats = mx_json_get(p, "formats");
        assert_true(formats->count == 3 && mx_json_get(formats, "int4:32") && mx_json_get(formats, "int8:32"));
        assert_null(mx_json_get(formats, "nvfp4"));
    }
    mx_json_free(document);
    outcome_free(&o);
    o = run("quantize", stories(), "--dry-run", "--target-bits", "9", "--calibrate", text, "--formats", "mxfp4,keep");
    expect_code(&o, 2);
    expect_text(&o.err, "keep: no such format");
    outcome_free(&o);
    write_test_file("packed.txt",
                    "\xFD"
                    "7zXZ",
                    text);
    o = run("quantize", stories(), in_folder("none"), "--target-bits", "8", "--calibrate", text);
    expect_code(&o, 1);
    expect_text(&o.err, "packed.txt: is no UTF-8 text");
    outcome_free(&o);
}

/* ---- the command --------------------------------------------------------------------------------------------------
 */

static void expect_usage(const char *part, const char *const *arguments) {
    outcome o = run_with(&(surroundings){0}, arguments);
    expect_code(&o, 2);
    expect_text(&o.err, part);
    outcome_free(&o);
}
#define usage(part, ...) expect_usage(part, (const char *const[]){"quantize", __VA_ARGS__, NULL})

static void test_command(void **state) {
    (void)state;
    const char *out = in_folder("by-command");
    char model[4096];
    snprintf(model, sizeof model, "%s", TOP1);
    outcome o = run("quantize", model, "--dry-run", "--verbose", "--lm-head", "nvfp4");
    expect_code(&o, 0);
    expect_text(&o.out, "model.layers.2.self_attn.o_proj");
    expect_text(&o.out, "lm_head    nvfp4");
    outcome_free(&o);
    assert_false(exists(out));
    o = run("quantize", model, out, "--json", "--experts", "int4:32", "--recipe", "search");
    expect_code(&o, 0);
    mx_json_document *document = parse_output(&o);
    const mx_json *root = mx_json_root(document);
    assert_true(mx_json_is_string(mx_json_get(root, "out"), out));
    double bits = 0;
    for (const mx_json *c = mx_json_get(root, "classes")->child; c; c = c->next)
        if (mx_json_is_string(mx_json_get(c, "class"), "experts"))
            mx_json_double(mx_json_get(c, "bits_per_weight"), &bits);
    assert_true(bits == 4.5);
    mx_json_free(document);
    outcome_free(&o);
    o = run("quantize", model, out);
    expect_code(&o, 2);
    expect_text(&o.err, "--force replaces it");
    outcome_free(&o);
    o = run("quantize", model, in_folder("no.gguf"), "--lm-head", "nvfp4");
    expect_code(&o, 2);
    expect_text(&o.err, "GGUF holds experts in mxfp4");
    outcome_free(&o);
    usage("expected a model", model);
    usage("expected hf or gguf", model, out, "--to", "metal");
    usage("--recipe", model, out, "--recipe", "best");
    usage("--target-bits measures on a text", model, out, "--target-bits", "5");
    usage("leave the formats", model, out, "--target-bits", "5", "--calibrate", model, "--experts", "mxfp4");
    usage("--formats says how --target-bits", model, out, "--formats", "mxfp4,bf16");
    usage("--quick says how --target-bits", model, out, "--quick");
    usage("--calibrate-tokens is of a text", model, out, "--calibrate-tokens", "5");
    usage("--allow-loss is for GGUF", model, out, "--allow-loss");
    usage("first write it with --allow-nonfinite", model, out, "--allow-nonfinite", "--recipe", "gptq", "--calibrate",
          model);
    o = run("quantize", model, in_folder("little"), "--dry-run", "--lm-head", "nvfp4", "--embedding", "mxfp8");
    expect_code(&o, 0);
    assert_null(strstr(o.err.data, "has no matrix"));
    outcome_free(&o);
    char alone[420];
    snprintf(alone, sizeof alone, "%s", write_llama("headless", -1, 0, 0, NULL));
    o = run("quantize", alone, "--dry-run", "--lm-head", "nvfp4");
    expect_code(&o, 0);
    expect_text(&o.err, "has no matrix of class lm_head, which was to be nvfp4");
    outcome_free(&o);
    usage("--calibrate is for the recipes", model, out, "--calibrate", model);
}

static void test_gguf(void **state) {
    (void)state;
    char base[4200];
    snprintf(base, sizeof base, "%s", checkout("tests/data/base"));
    make(base, in_folder("plain"), "bf16", "keep");
    for (int i = 0; i < 2; i++) {
        outcome o =
            run("quantize", i ? base : in_folder("plain"), in_folder("made.gguf"), "--force", "--experts", "mxfp4");
        expect_code(&o, 0);
        expect_text(&o.out, i ? "experts    mxfp4, as it is" : "experts    mxfp4   ");
        expect_text(&o.out, "made.gguf: ");
        assert_null(strstr(o.out.data, "rel. error"));
        outcome_free(&o);
        expect_same_numbers(base, in_folder("made.gguf"));
    }
    outcome dry = run("quantize", in_folder("plain"), in_folder("dry.gguf"), "--dry-run");
    expect_code(&dry, 0);
    expect_text(&dry.out, "experts    mxfp4   ");
    assert_null(strstr(dry.out.data, "rel. error"));
    outcome_free(&dry);
    assert_false(exists(in_folder("dry.gguf")));
    write_nan("plain");
    outcome o = run("quantize", in_folder("plain"), in_folder("nan.gguf"));
    expect_code(&o, 1);
    expect_text(&o.err, "down_proj_blocks: holds a block that is NaN");
    outcome_free(&o);
    assert_false(exists(in_folder("nan.gguf")));
    make(in_folder("made.gguf"), in_folder("from-gguf"), "nvfp4", "keep");
    assert_true(exists(in_folder("from-gguf/config.json")));
    const mx_model_options all = as("mxfp8", "int8:32");
    mx_model_report report = quantize(in_folder("made.gguf"), in_folder("from-gguf"), &all);
    expect_as_reported(base, in_folder("from-gguf"), &report);
    mx_model_report_free(&report);
}

/* Rotation and statistics. What they do to a model is looked at elsewhere; here, that all of it is written. */
static void test_recipes(void **state) {
    (void)state;
    mx_model_options o = as("keep", "keep");
    o.choice.recipe.hadamard = true;
    mx_model_report report = quantize(TOP1, in_folder("rotated"), &o);
    for (int i = 0; i < report.classes; i++) assert_false(report.of_class[i].kept);
    mx_model_report_free(&report);
    mx_weights *w;
    if (mx_weights_open(in_folder("rotated"), pool, &w, &error)) fail_msg("%s", error.text);
    for (int i = 0; i < w->config.hidden; i++) assert_true(w->norm[i] == 1 && w->layer[1].attn_norm[i] == 1);
    mx_weights_close(w);
    outcome done = run("quantize", stories(), in_folder("calibrated"), "--experts", "keep", "--attention", "int4:32",
                       "--recipe", "search+gptq", "--calibrate", story(), "--json");
    expect_code(&done, 0);
    expect_text(&done.out, "int4:32");
    outcome_free(&done);
    if (mx_weights_open(in_folder("calibrated"), pool, &w, &error)) fail_msg("%s", error.text);
    assert_int_equal(w->layer[0].q.format, MX_INT4);
    mx_weights_close(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_places),  cmocka_unit_test(test_kill_and_full_disk),
        cmocka_unit_test(test_stop),    cmocka_unit_test(test_target_bits),
        cmocka_unit_test(test_gguf),    cmocka_unit_test(test_recipes),
        cmocka_unit_test(test_command),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
