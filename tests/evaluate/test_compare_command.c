/* mxrun compare as a user runs it. */
#include "support.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

static const char story[] =
    "Once upon a time there was a small fox named Ruby who lived near the river. Ruby had a red lamp and loved it very "
    "much. One day the lamp was gone. Ruby looked under the bed and behind the door, but it was not there. Then an old "
    "owl came by. \"Do not be sad,\" said the owl. \"I can help you.\" And they found the lamp under a tree.\n";

static char text[200], copy[200], folder[200];

static int set_up(void **state) {
    char target[4096];
    if (program_set_up(state)) return -1;
    write_test_file("story.txt", story, text);
    snprintf(copy, sizeof copy, "%s/copy", test_folder);
    snprintf(target, sizeof target, "%s/tools/stories/checkpoint", getenv("MXRUN_SOURCE"));
    snprintf(folder, sizeof folder, "%s/tmp", test_folder);
    setenv("TMPDIR", folder, 1);
    return symlink(target, copy) || mkdir(folder, 0777) ? -1 : 0;
}

static int entries_of(const char *path) {
    int n = 0;
    DIR *dir = opendir(path);
    assert_non_null(dir);
    for (struct dirent *e; (e = readdir(dir));) n += *e->d_name != '.';
    closedir(dir);
    return n;
}

static double number(const mx_json *object, const char *key) {
    double x;
    if (!mx_json_double(mx_json_get(object, key), &x)) fail_msg("no number \"%s\"", key);
    return x;
}

static bool exists(const char *name) {
    char path[300];
    snprintf(path, sizeof path, "%s/%s", test_folder, name);
    return access(path, F_OK) == 0;
}

/* A model and its copy: the same perplexity, nothing between them. */
static void a_copy_is_the_same(void **state) {
    (void)state;
    char csv[300], svg[300];
    snprintf(csv, sizeof csv, "%s/out.csv", test_folder);
    snprintf(svg, sizeof svg, "%s/charts", test_folder);
    outcome o =
        run("compare", "stories", copy, "--text", text, "-w", "64", "--rounds", "1", "--prompt", "20", "--decode", "5",
            "--precision", "fp32", "--json", "-", "--csv", csv, "--svg", svg, "--base-top", "all");
    expect_code(&o, 0);
    expect_text(&o.err, "kl.svg: not drawn: no model is at a distance from the first\n");
    expect_no_text(&o.err, "removed");
    mx_json_document *d = parse_output(&o);
    const mx_json *root = mx_json_root(d), *first = mx_json_get(root, "models")->child, *second = first->next;
    assert_true(mx_json_is_string(mx_json_get(first, "model"), "stories"));
    assert_true(mx_json_is_string(mx_json_get(second, "model"), "copy"));
    assert_true(mx_json_is_string(mx_json_get(root, "text"), "story.txt"));
    assert_true(number(first, "perplexity") > 1 && number(first, "perplexity") == number(second, "perplexity"));
    assert_true(number(first, "tokens") > 50);
    assert_true(number(second, "kl_mean") < 1e-9 && number(second, "kl_mean") > -1e-9);
    assert_true(number(second, "delta_perplexity") == 0 && number(second, "top1") == 1);
    assert_int_equal(mx_json_get(first, "kl_mean")->type, MX_JSON_NULL);
    assert_true(number(first, "parameters") == 9754976);
    assert_true(number(first, "bits_per_weight") > 8 && number(first, "bits_per_weight") < 9);
    assert_true(number(first, "bytes") >= number(first, "weight_bytes"));
    for (const mx_json *m = first; m; m = m->next) {
        assert_true(number(m, "prompt_tokens_per_s") > 0 && number(m, "decode_tokens_per_s") > 0);
        assert_true(number(m, "bytes_per_token") == number(first, "bytes_per_token"));
    }
    assert_true(number(mx_json_get(root, "speed"), "prompt_tokens") == 20);
    assert_true(exists("out.csv") && exists("charts/perplexity.svg") && exists("charts/speed.svg"));
    assert_int_equal(entries_of(folder), 0); /* the first one's distributions are gone */
    mx_json_free(d);
    outcome_free(&o);
}

/* A GGUF says nothing of ignore_merges: it has the same vocabulary all the same. */
static void a_gguf_of_the_model_is_compared(void **state) {
    (void)state;
    char gguf[300];
    snprintf(gguf, sizeof gguf, "%s/stories.gguf", test_folder);
    outcome o = run("convert", "stories", gguf, "--to", "gguf");
    expect_code(&o, 0);
    outcome_free(&o);
    o = run("compare", "stories", gguf, "--text", text, "--tokens", "30", "--no-speed", "--precision", "fp32", "--json",
            "-");
    expect_code(&o, 0);
    mx_json_document *d = parse_output(&o);
    const mx_json *second = mx_json_get(mx_json_root(d), "models")->child->next;
    assert_null(mx_json_get(second, "not_compared"));
    assert_true(number(second, "kl_mean") < 1e-9 && number(second, "top1") == 1);
    mx_json_free(d);
    outcome_free(&o);
}

/* A copy with a shorter context: the window is one for both. */
static void contexts_may_differ(void **state) {
    (void)state;
    static const char *const files[] = {"model.safetensors", "tokenizer.json", "generation_config.json"};
    char shorter[200], from[4096], to[4096];
    mx_bytes config = {0};
    mx_error error;
    snprintf(shorter, sizeof shorter, "%s/shorter", test_folder);
    assert_int_equal(mkdir(shorter, 0777), 0);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(from, sizeof from, "%s/tools/stories/checkpoint/%s", getenv("MXRUN_SOURCE"), files[i]);
        snprintf(to, sizeof to, "%s/%s", shorter, files[i]);
        assert_int_equal(symlink(from, to), 0);
    }
    snprintf(from, sizeof from, "%s/tools/stories/checkpoint/config.json", getenv("MXRUN_SOURCE"));
    assert_int_equal(mx_read_file(from, 1 << 20, &config, &error), MX_OK);
    char *at = strstr(config.data, "\"max_position_embeddings\": ");
    assert_non_null(at);
    at += strlen("\"max_position_embeddings\": ");
    memset(at, ' ', strspn(at, "0123456789"));
    memcpy(at, "40", 2);
    write_test_file("shorter/config.json", config.data, to);
    mx_bytes_free(&config);
    outcome o = run("compare", "stories", shorter, "--text", text, "--no-speed", "--precision", "fp32", "--json", "-");
    expect_code(&o, 0);
    mx_json_document *d = parse_output(&o);
    const mx_json *root = mx_json_root(d), *second = mx_json_get(root, "models")->child->next;
    assert_true(mx_json_is_string(mx_json_get(root, "protocol"), "strided, window 41, stride 20"));
    assert_true(number(second, "tokens") > 50 && number(second, "top1") == 1);
    mx_json_free(d);
    outcome_free(&o);
}

static void a_model_that_fails_keeps_its_line(void **state) {
    (void)state;
    char broken[200], path[200];
    snprintf(broken, sizeof broken, "%s/broken", test_folder);
    mkdir(broken, 0777);
    write_test_file("broken/config.json", "{}", path);
    outcome o = run("compare", "stories", broken, copy, "/nonesuch/model", "--text", text, "--tokens", "20",
                    "--no-speed", "--labels", "A,B,C,D");
    expect_code(&o, 1);
    expect_text(&o.out, "\nA  ");
    expect_text(&o.out, "\nB  ");
    expect_text(&o.out, "\nC  ");
    expect_text(&o.out, "100.0 %"); /* C is there, and the same as A */
    expect_text(&o.out, "\nB failed: ");
    expect_text(&o.out, "\nD failed: ");
    expect_text(&o.err, "mxrun compare: B: ");
    expect_text(&o.err, "mxrun compare: D: /nonesuch/model: No such file or directory\n"); /* and no option -m */
    expect_no_text(&o.out, "decode");
    outcome_free(&o);
    /* The first: the others are there, but held against nothing. */
    o = run("compare", broken, "stories", "--text", text, "--tokens", "20", "--no-speed", "--json", "-");
    expect_code(&o, 1);
    mx_json_document *d = parse_output(&o);
    const mx_json *second = mx_json_get(mx_json_root(d), "models")->child->next;
    assert_true(number(second, "perplexity") > 1);
    assert_int_equal(mx_json_get(second, "kl_mean")->type, MX_JSON_NULL);
    assert_non_null(mx_json_get(second, "not_compared"));
    mx_json_free(d);
    outcome_free(&o);
}

/* Of a text that is none each model would say the same. */
static void a_text_that_is_none_is_said_once(void **state) {
    (void)state;
    char empty[200];
    write_test_file("empty.txt", "", empty);
    outcome o = run("compare", "stories", copy, "--text", empty, "--no-speed");
    expect_code(&o, 2);
    assert_string_equal(o.err.data, "mxrun compare: nothing to score: the text is empty\n");
    assert_int_equal(o.out.size, 0);
    outcome_free(&o);
    o = run("compare", "stories", copy, "--text", text, "--no-speed", "--protocol", "llama.cpp");
    expect_code(&o, 2);
    expect_text(&o.err,
                "mxrun compare: nothing to score: protocol llama.cpp wants whole windows of 512 tokens, and the");
    outcome_free(&o);
}

static void wrong_options_are_named(void **state) {
    (void)state;
    static const struct {
        const char *arguments[8], *said;
    } cases[] = {
        {{"stories", "--text", text}, "1 model is given"},
        {{"stories", copy}, "give --text FILE"},
        {{"stories", copy, "--text", text, "--labels", "A"}, "expected 2 names"},
        {{"stories", copy, "--text", text, "--labels", "A,B,C"}, "expected 2 names"},
        {{"stories", copy, "--text", text, "--labels", "A,"}, "expected 2 names"},
        {{"stories", copy, "--text", text, "--rounds", "0"}, "--rounds 0"},
        {{"stories", copy, "--text", text, "--protocol", "x"}, "--protocol x"},
        {{"stories", copy, "--text", text, "--kv-type", "f8"}, "--kv-type f8"},
        {{"stories", copy, "--text", text, "--precision", "f8"}, "--precision"},
        {{"stories", copy, "--text", text, "--json=-", "--csv=-"}, "only one of"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *arguments[10] = {"compare"};
        for (int k = 0; k < 8; k++) arguments[k + 1] = cases[i].arguments[k];
        outcome o = run_with(&(surroundings){0}, arguments);
        expect_code(&o, 2);
        expect_text(&o.err, cases[i].said);
        assert_int_equal(o.out.size, 0);
        outcome_free(&o);
    }
}

/* What cannot be written or read is found out before the work; what was begun is taken away. */
static void files_that_cannot_be_written(void **state) {
    (void)state;
    char json[300], csv[300];
    snprintf(json, sizeof json, "%s/no/such/folder.json", test_folder);
    snprintf(csv, sizeof csv, "%s/begun.csv", test_folder);
    outcome o = run("compare", "stories", copy, "--text", text, "--csv", csv, "--json", json);
    expect_code(&o, 1);
    expect_text(&o.err, "--json ");
    expect_text(&o.err, "it cannot be written");
    assert_false(exists("begun.csv"));
    outcome_free(&o);
    o = run("compare", "stories", copy, "--text", text, "--svg", text);
    expect_code(&o, 1);
    expect_text(&o.err, "it is no folder");
    outcome_free(&o);
    o = run("compare", "stories", copy, "--text", "/nonesuch.txt");
    expect_code(&o, 1);
    expect_text(&o.err, "/nonesuch.txt");
    outcome_free(&o);
    if (access("/dev/full", W_OK)) return;
    o = run("compare", "stories", copy, "--text", text, "--tokens", "5", "--no-speed", "--csv", "/dev/full");
    expect_code(&o, 1);
    expect_text(&o.out, "copy"); /* the table is there all the same */
    expect_text(&o.err, "/dev/full: it cannot be written");
    outcome_free(&o);
}

static void write_in(const char *name, const char *content) {
    char path[300];
    snprintf(path, sizeof path, "%s/%s", test_folder, name);
    FILE *f = fopen(path, "w");
    assert_true(f && fputs(content, f) >= 0 && fclose(f) == 0);
}

static void expect_content(const char *name, const char *start) {
    char path[300];
    mx_bytes found = {0};
    mx_error error;
    snprintf(path, sizeof path, "%s/%s", test_folder, name);
    assert_int_equal(mx_read_file(path, 1 << 24, &found, &error), MX_OK);
    if (!found.data || strncmp(found.data, start, strlen(start)) != 0)
        fail_msg("%s: %s", name, found.data ? found.data : "(empty)");
    mx_bytes_free(&found);
}

/* No file may grow beyond some bytes: the disk is full, as far as a program can see. */
static void a_full_disk_spoils_nothing(void **state) {
    (void)state;
    char json[300], csv[300], svg[300], line[1500];
    snprintf(json, sizeof json, "%s/results/out.json", test_folder);
    snprintf(csv, sizeof csv, "%s/results/out.csv", test_folder);
    snprintf(svg, sizeof svg, "%s/results", test_folder);
    assert_int_equal(mkdir(svg, 0777), 0);
    write_in("results/out.json", "old");
    write_in("results/perplexity.svg", "old picture");
    snprintf(
        line, sizeof line,
        "trap '' XFSZ; ulimit -f 1; exec %s compare stories %s --text %s --tokens 9 --no-speed --base-top 1 --json "
        "%s --csv %s --svg %s",
        getenv("MXRUN_BINARY"), copy, text, json, csv, svg);
    outcome o = run_with(&(surroundings){.program = "/bin/sh"}, (const char *const[]){"-c", line, NULL});
    expect_code(&o, 1);
    expect_text(&o.out, "copy");
    expect_text(&o.err, "it cannot be written: File too large");
    expect_content("results/out.json", "old");
    expect_content("results/perplexity.svg", "old picture");
    assert_int_equal(entries_of(svg), 2);
    outcome_free(&o);
    o = run("compare", "stories", copy, "--text", text, "--tokens", "9", "--no-speed", "--json", json, "--svg", svg);
    expect_code(&o, 0);
    expect_content("results/out.json", "{");
    expect_content("results/perplexity.svg", "<svg");
    outcome_free(&o);
}

/* Nor may the first model's distributions be written: what to do about it is what compare has options for. */
static void no_room_for_distributions(void **state) {
    (void)state;
    char line[800];
    snprintf(line, sizeof line,
             "trap '' XFSZ; ulimit -f 8; exec %s compare stories %s --text %s --no-speed --csv - --labels A,B",
             getenv("MXRUN_BINARY"), copy, text);
    outcome o = run_with(&(surroundings){.program = "/bin/sh"}, (const char *const[]){"-c", line, NULL});
    expect_code(&o, 1);
    expect_text(&o.err, "mxrun compare: A: ");
    expect_text(&o.err,
                "--base-top keeps fewer tokens of each distribution, --tokens scores less of the text, and TMPDIR");
    expect_text(&o.out, "\nB,");
    assert_int_equal(entries_of(folder), 0);
    outcome_free(&o);
}

/* Pictures that belong to an earlier comparison go, what is not ours stays. */
static void no_old_picture_stays(void **state) {
    (void)state;
    char svg[300];
    snprintf(svg, sizeof svg, "%s/old", test_folder);
    assert_int_equal(mkdir(svg, 0777), 0);
    write_in("old/kl.svg", "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"860\"><rect class=\"page\"/></svg>\n");
    write_in("old/speed.svg", "mine");
    outcome o = run("compare", "stories", copy, "--text", text, "--tokens", "9", "--no-speed", "--svg", svg);
    expect_code(&o, 0);
    expect_text(&o.err, "kl.svg: not drawn: no model is at a distance from the first; that of an earlier");
    expect_no_text(&o.err, "speed.svg");
    assert_false(exists("old/kl.svg"));
    expect_content("old/speed.svg", "mine");
    expect_content("old/perplexity.svg", "<svg");
    outcome_free(&o);
}

/* What ends a program in other ways than Ctrl-C leaves no files either. */
static void ended_by_a_signal(void **state) {
    (void)state;
    enum { TIMES = 2000 };
    static const struct {
        const char *arguments, *begun, *signal;
    } cases[] = {{"compare stories %s --no-speed --text", "tmp/mxrun-compare-*/base.*.part", "TERM"},
                 {"compare stories %s --no-speed --text", "tmp/mxrun-compare-*/base.*.part", "HUP"},
                 {"perplexity -q -m stories --save-base kept.base", "kept.base.*.part", "TERM"}};
    char line[2000], arguments[400];
    mx_bytes many = {0};
    for (int i = 0; i < TIMES; i++) assert_true(mx_bytes_add_string(&many, story));
    write_in("many.txt", many.data);
    mx_bytes_free(&many);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(arguments, sizeof arguments, cases[i].arguments, copy);
        snprintf(line, sizeof line,
                 "cd %s; %s %s many.txt & while kill -0 $! && ! ls %s; do sleep 0.02; done >/dev/null 2>&1; kill -%s "
                 "$!; wait $!; code=$?; ls -d %s kept.base tmp/*; exit $code",
                 test_folder, getenv("MXRUN_BINARY"), arguments, cases[i].begun, cases[i].signal, cases[i].begun);
        outcome o = run_with(&(surroundings){.program = "/bin/sh"}, (const char *const[]){"-c", line, NULL});
        expect_code(&o, 130);
        assert_int_equal(o.out.size, 0);
        outcome_free(&o);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_copy_is_the_same),
        cmocka_unit_test(a_gguf_of_the_model_is_compared),
        cmocka_unit_test(contexts_may_differ),
        cmocka_unit_test(a_model_that_fails_keeps_its_line),
        cmocka_unit_test(a_text_that_is_none_is_said_once),
        cmocka_unit_test(wrong_options_are_named),
        cmocka_unit_test(files_that_cannot_be_written),
        cmocka_unit_test(a_full_disk_spoils_nothing),
        cmocka_unit_test(no_room_for_distributions),
        cmocka_unit_test(no_old_picture_stays),
        cmocka_unit_test(ended_by_a_signal),
    };
    return cmocka_run_group_tests(tests, set_up, program_tear_down);
}
