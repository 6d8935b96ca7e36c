/* mxrun perplexity as a user runs it. */
#include "support.h"

#include <math.h>
#include <sys/stat.h>

static const char STORY[] = "Once upon a time there was a fox who lived under an old bridge. Every evening she went to "
                            "the mill, where the miller's daughter left a bowl of milk on the step.\n";

#define PERPLEXITY "perplexity", "-m", "stories", "-d", "cpu", "-t", "1"

static double number(const mx_json *object, const char *key) {
    double x;
    if (!mx_json_double(mx_json_get(object, key), &x)) fail_msg("no number \"%s\"", key);
    return x;
}

static void in_folder(const char *name, char out[static 200]) {
    snprintf(out, 200, "%s/%s", test_folder, name);
}

static void a_table_and_json(void **state) {
    (void)state;
    char text[200];
    write_test_file("story.txt", STORY, text);
    outcome o = run(PERPLEXITY, text);
    expect_code(&o, 0);
    expect_text(&o.out, "stories: ");
    expect_text(&o.out, "strided, window 2048, stride 1024");
    expect_text(&o.out, "perplexity ");
    expect_text(&o.out, "standard error of the mean over tokens");
    expect_text(&o.out, "bits per byte");
    expect_text(&o.err, "tokens/s");
    outcome_free(&o);
    o = run(PERPLEXITY, text, "--json", "--quiet");
    expect_code(&o, 0);
    assert_int_equal(o.err.size, 0);
    mx_json_document *d = parse_output(&o);
    const mx_json *v = mx_json_root(d);
    const double tokens = number(v, "tokens"), nats = number(v, "nats");
    assert_true(tokens > 30 && tokens < 200);
    assert_true(fabs(number(v, "perplexity") / exp(nats) - 1) < 1e-9);
    assert_true(fabs(number(v, "bits_per_byte") - nats * tokens / log(2) / number(v, "bytes")) < 1e-9);
    assert_true(number(v, "stderr") > 0);
    assert_true(mx_json_is_string(mx_json_get(v, "protocol"), "strided, window 2048, stride 1024"));
    assert_null(mx_json_get(v, "kl_mean"));
    mx_json_free(d);
    outcome_free(&o);
}

static void against_a_base(void **state) {
    (void)state;
    char text[200], other[200], base[200];
    struct stat found;
    write_test_file("story.txt", STORY, text);
    write_test_file("other.txt", "Once upon a time there was a mill, and no fox.\n", other);
    in_folder("a.base", base);
    outcome o = run(PERPLEXITY, text, "--save-base", base, "--precision", "fp32", "-q", "--base-top", "64");
    expect_code(&o, 0);
    outcome_free(&o);
    assert_int_equal(stat(base, &found), 0);
    o = run(PERPLEXITY, text, "--base", base, "--precision", "fp32", "-q");
    expect_code(&o, 0);
    expect_text(&o.out, "against stories, the same weights");
    expect_text(&o.out, "mean 0 ± 0 ");
    expect_text(&o.out, "a lower bound: the 64 likeliest");
    expect_text(&o.out, "same top token  100.00 %");
    expect_text(&o.out, "Δ perplexity    +0.0000 ± 0.0000 (paired)");
    outcome_free(&o);
    o = run(PERPLEXITY, text, "--base", base, "--precision", "int8", "--json", "-q");
    expect_code(&o, 0);
    mx_json_document *d = parse_output(&o);
    const mx_json *v = mx_json_root(d);
    assert_true(number(v, "kl_mean") > 0 && number(v, "kl_median") <= number(v, "kl_p99"));
    assert_true(number(v, "kl_p99") <= number(v, "kl_max") && number(v, "top1") > 0.8);
    const double delta = number(v, "perplexity") - number(v, "base_perplexity");
    assert_true(fabs(number(v, "delta_perplexity") - delta) < 1e-9);
    mx_json_free(d);
    outcome_free(&o);
    o = run(PERPLEXITY, other, "--base", base);
    expect_code(&o, 2);
    expect_text(&o.err, "made of another text");
    outcome_free(&o);
    o = run(PERPLEXITY, text, "--base", base, "--protocol", "documents");
    expect_code(&o, 2);
    expect_text(&o.err, "another protocol");
    outcome_free(&o);
    o = run(PERPLEXITY, text, "--base", text);
    expect_code(&o, 1);
    expect_text(&o.err, "holds no distributions");
    outcome_free(&o);
    o = run(PERPLEXITY, text, "--save-base", "/dev/full");
    expect_code(&o, 2);
    expect_text(&o.err, "is no file");
    outcome_free(&o);
}

static double tokens_of(const outcome *o) {
    expect_code(o, 0);
    mx_json_document *d = parse_output(o);
    const double n = number(mx_json_root(d), "tokens");
    mx_json_free(d);
    return n;
}

/* One text as a file, between separators, as lines and as conversations. */
static void documents(void **state) {
    (void)state;
    char plain[200], lines[200], chats[200];
    write_test_file("d.txt", "A fox.\n---\nA mill and a bridge.\n---\n", plain);
    write_test_file("d.jsonl", "{\"text\": \"A fox.\"}\n\n \"A mill and a bridge.\"\n", lines);
    write_test_file("c.jsonl",
                    "{\"messages\": [{\"role\": \"user\", \"content\": \"Write a text.\"}, {\"role\": \"assistant\", "
                    "\"content\": \"A fox.\"}]}\n\"A mill and a bridge.\"\n",
                    chats);
    outcome a = run(PERPLEXITY, plain, "-p", "documents", "--separator", "\\n---\\n", "--json", "-q");
    outcome b = run(PERPLEXITY, lines, "-p", "documents", "--json", "-q");
    assert_true(tokens_of(&a) == tokens_of(&b));
    assert_string_equal(strstr(a.out.data, "\"protocol\"") ? "" : "none", "");
    outcome c = run(PERPLEXITY, chats, "-p", "harmony", "--json", "-q");
    outcome d = run(PERPLEXITY, plain, "-p", "harmony", "--separator", "\\n---\\n", "--json", "-q");
    assert_true(tokens_of(&c) == tokens_of(&a) && tokens_of(&d) == tokens_of(&a));
    mx_json_document *x = parse_output(&c), *y = parse_output(&d);
    assert_true(number(mx_json_root(x), "nats") == number(mx_json_root(y), "nats"));
    mx_json_free(x);
    mx_json_free(y);
    outcome *const all[] = {&a, &b, &c, &d};
    for (int i = 0; i < 4; i++) outcome_free(all[i]);
    outcome e = run_with(&(surroundings){.input = STORY}, (const char *const[]){PERPLEXITY, "-", "--json", "-q", NULL});
    assert_true(tokens_of(&e) > 30);
    outcome_free(&e);
}

static void texts_that_are_none(void **state) {
    (void)state;
    char empty[200], one[200], wrong[200], folder[200], broken[200];
    write_test_file("empty.txt", "", empty);
    write_test_file("one.txt", "a", one);
    write_test_file("wrong.jsonl", "{\"text\": \"ok, this is one\"}\n{\"txt\": 1}\n", wrong);
    write_test_file("broken.txt", "A fox\xff\xfe and a mill.", broken);
    in_folder("", folder);
    const struct {
        const char *file, *says;
        int code;
    } all[] = {{empty, "the text is empty", 2},
               {one, "no text has two tokens", 2},
               {wrong, "wrong.jsonl: line 2: expected a string", 1},
               {folder, "directory", 1},
               {"/nowhere.txt", "No such file", 1}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        outcome o = run(PERPLEXITY, all[i].file);
        expect_code(&o, all[i].code);
        expect_text(&o.err, all[i].says);
        outcome_free(&o);
    }
    outcome o = run(PERPLEXITY, one, "-p", "documents"); /* of one token nobody knows the error */
    expect_code(&o, 0);
    expect_text(&o.out, "± unknown");
    outcome_free(&o);
    o = run(PERPLEXITY, broken);
    expect_code(&o, 0);
    expect_text(&o.err, "UTF-8");
    outcome_free(&o);
}

/* A model without weights: what is wrong with the files of distributions is said before it is read. */
static void files_are_looked_at_first(void **state) {
    (void)state;
    static const char *const files[] = {"config.json", "tokenizer.json"};
    char text[200], folder[200], here[300], there[4096], taken[300];
    write_test_file("story.txt", STORY, text);
    in_folder("bare", folder);
    assert_int_equal(mkdir(folder, 0777), 0);
    for (int i = 0; i < 2; i++) {
        snprintf(here, sizeof here, "%s/%s", folder, files[i]);
        snprintf(there, sizeof there, "%s/tools/stories/checkpoint/%s", getenv("MXRUN_SOURCE"), files[i]);
        assert_int_equal(symlink(there, here), 0);
    }
    snprintf(taken, sizeof taken, "%s/new.base", test_folder);
    const struct {
        const char *option, *value, *says;
    } all[] = {{"--base", "/nowhere.base", "/nowhere.base: cannot be opened"},
               {"--base", text, "holds no distributions"},
               {"--save-base", "/nowhere/x.base", "/nowhere/x.base: cannot be written"},
               {"--save-base", folder, "is no file"},
               {"--save-base", taken, ".safetensors"}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        outcome o = run("perplexity", "-m", folder, text, all[i].option, all[i].value);
        if (!o.code) fail_msg("%s %s", all[i].option, all[i].value);
        expect_text(&o.err, all[i].says);
        outcome_free(&o);
    }
    assert_int_not_equal(access(taken, F_OK), 0);
    outcome o = run(PERPLEXITY, "-", "-");
    expect_code(&o, 2);
    expect_text(&o.err, "stdin can be read only once");
    outcome_free(&o);
}

static void wrong_options(void **state) {
    (void)state;
    char text[200];
    write_test_file("story.txt", STORY, text);
    const struct {
        const char *option, *value, *says;
        int code;
    } all[] = {{"--protocol", "wikitext", "expected strided, llama.cpp, documents or harmony", 2},
               {"--window", "1", "--window 1", 2},
               {"--stride", "0", "--stride 0", 2},
               {"--base-top", "5", "--base-top is for --save-base", 2},
               {"--base-top", "most", "--base-top most", 2},
               {"--separator", "x", "--separator", 2},
               {"--window", "100000000", "context", 2},
               {"--stride", "2048", "expected 1 to 2047", 2},
               {"--base", "/nowhere.base", "/nowhere.base", 1}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        outcome o = run(PERPLEXITY, text, all[i].option, all[i].value);
        expect_code(&o, all[i].code);
        expect_text(&o.err, all[i].says);
        outcome_free(&o);
    }
    outcome o = run(PERPLEXITY);
    expect_code(&o, 2);
    expect_text(&o.err, "no text given");
    outcome_free(&o);
    o = run("perplexity", text);
    expect_code(&o, 2);
    expect_text(&o.err, "no model given");
    outcome_free(&o);
    o = run("perplexity", "--help");
    expect_code(&o, 0);
    expect_text(&o.out, "tuned for chats");
    outcome_free(&o);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_table_and_json), cmocka_unit_test(against_a_base),
        cmocka_unit_test(documents),        cmocka_unit_test(texts_that_are_none),
        cmocka_unit_test(wrong_options),    cmocka_unit_test(files_are_looked_at_first),
    };
    return cmocka_run_group_tests(tests, program_set_up, program_tear_down);
}
