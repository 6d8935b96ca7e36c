/* Models through every layout and back: byte for byte where they carry what they came from, tensor for tensor where
 * not. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/gguf.h"
#include "support.h"
#include "tokenizer/tokenizer.h"

static const char stories[] = "tools/stories/checkpoint";

static void through(const char *folder, mx_layout layout) {
    const char *middle = temporary(layout == MX_LAYOUT_GGUF ? "middle.gguf" : "middle"), *back = temporary("back");
    convert_anyway(folder, middle, layout);
    mx_converted done = convert_anyway(middle, back, MX_LAYOUT_HF);
    expect_nothing_logged();
    assert_true(done.restored);
    expect_same_folder(folder, back);
}

static void test_gguf(void **state) {
    (void)state;
    static const char *const folders[] = {"tests/data/base", "tests/data/mqa", "tests/data/top1", stories};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) through(checkout(folders[i]), MX_LAYOUT_GGUF);
}

static void test_original(void **state) {
    (void)state;
    static const char *const folders[] = {"tests/data/base", "tests/data/mqa", "tests/data/top1", stories};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) through(checkout(folders[i]), MX_LAYOUT_ORIGINAL);
}

static void test_metal(void **state) {
    (void)state;
    through(checkout(stories), MX_LAYOUT_METAL);
}

static void test_shards(void **state) {
    (void)state;
    const char *shards = shared("checkpoints/random/base-shards");
    if (!shards) skip();
    through(shards, MX_LAYOUT_GGUF);
    through(shards, MX_LAYOUT_ORIGINAL);
}

/* A model.safetensors.index.json that has every tensor in model.safetensors. */
static void write_index(const char *folder) {
    mx_bytes text = {0};
    mx_checkpoint *ck;
    char path[4096];
    if (mx_checkpoint_open(checkout(stories), &ck, &error)) fail_msg("%s", error.text);
    mx_bytes_add_string(&text, "{\"metadata\": {}, \"weight_map\": {");
    for (int i = 0; i < mx_checkpoint_count(ck); i++)
        mx_bytes_addf(&text, "%s\"%s\": \"model.safetensors\"", i ? ", " : "", mx_checkpoint_at(ck, i)->name);
    mx_bytes_add_string(&text, "}}");
    mx_checkpoint_close(ck);
    snprintf(path, sizeof path, "%.4000s/model.safetensors.index.json", folder);
    write_file(path, text.data, text.size);
    mx_bytes_free(&text);
}

static void test_experts_of_16_bits(void **state) {
    (void)state;
    const char *folder = shared("checkpoints/random/base-bf16-experts");
    if (!folder) skip();
    through(folder, MX_LAYOUT_GGUF);
    refuse(folder, temporary("none"), MX_LAYOUT_ORIGINAL, MX_UNSUPPORTED, "experts that are not MXFP4");
}

static void test_rounded_experts(void **state) {
    (void)state;
    const char *folder = shared("checkpoints/random/base-bf16-experts"), *out = temporary("rounded");
    if (!folder) skip();
    mx_converted done;
    const mx_convert_options options = {.to = MX_LAYOUT_HF, .pool = pool, .quantize_experts = true};
    if (mx_convert(folder, out, &options, &done, &error)) fail_msg("%s", error.text);
    expect_same_tensors(checkout("tests/data/base"), out); /* which it was made of */
    mx_weights *weights;
    if (mx_weights_open(out, NULL, &weights, &error)) fail_msg("%s", error.text);
    mx_weights_close(weights);
    assert_int_equal(mx_convert(checkout("tests/data/base"), temporary("none"), &options, &done, &error),
                     MX_INVALID_ARGUMENT);
}

/* Small files of published repositories go along, and nothing else, which is told. */
static void test_what_is_carried(void **state) {
    (void)state;
    static const char *const known[] = {".gitattributes", "LICENSE", "USAGE_POLICY", "chat_template.jinja",
                                        "special_tokens_map.json"};
    static const char *const others[] = {"token.txt", "training_args.bin", ".env", "other.safetensors",
                                         ".mxrun-experts-mxfp4-ocp" /* of which nothing is said */};
    char name[100];
    const char *folder = temporary("carried"), *gguf = temporary("carried.gguf"), *back = temporary("carried.back");
    copy_folder(checkout(stories), folder);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        snprintf(name, sizeof name, "carried/%s", known[i]);
        write_file(temporary(name), "{\"a\": 1}\n", 9);
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        snprintf(name, sizeof name, "carried/%s", others[i]);
        write_file(temporary(name), "SECRET", 6);
    }
    mkdir(temporary("carried/sub"), 0777);
    /* The weights that an index names are all; others are none of the model's. */
    write_index(temporary("carried"));
    convert(folder, gguf, MX_LAYOUT_GGUF);
    expect_logged("carried: not carried along: .env, other.safetensors, sub/, token.txt, training_args.bin\n");
    mx_bytes bytes = content(gguf);
    assert_null(memmem(bytes.data, bytes.size, "SECRET", 6));
    mx_bytes_free(&bytes);
    assert_true(convert(gguf, back, MX_LAYOUT_HF).restored);
    expect_nothing_logged();
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        snprintf(name, sizeof name, "carried/%s", others[i]);
        unlink(temporary(name));
    }
    expect_same_folder(folder, back);
    for (int i = 0; i < 20; i++) {
        snprintf(name, sizeof name, "carried/%02d", 19 - i);
        write_file(temporary(name), "x", 1);
    }
    convert_anyway(temporary("carried"), temporary("carried.gguf"), MX_LAYOUT_GGUF);
    expect_logged("not carried along: 00, 01, 02, 03, 04, 05, 06, 07 and 13 more\n");
}

/* What it carries goes on from layout to layout. */
static void test_long_way(void **state) {
    (void)state;
    convert_anyway(checkout(stories), temporary("a"), MX_LAYOUT_METAL);
    convert_anyway(temporary("a"), temporary("a.gguf"), MX_LAYOUT_GGUF);
    convert_anyway(temporary("a.gguf"), temporary("b"), MX_LAYOUT_ORIGINAL);
    assert_true(convert(temporary("b"), temporary("c"), MX_LAYOUT_HF).restored);
    expect_same_folder(checkout(stories), temporary("c"));
}

/* A token's row that model.bin has no place for goes beside it. */
static void test_rows_beyond_metal(void **state) {
    (void)state;
    const char *folder = temporary("short");
    copy_folder(checkout(stories), folder);
    mx_bytes text = content(temporary("short/tokenizer.json"));
    char *last = strstr(text.data, "\"id\": 4095"), *from = last, *to = strchr(last, '}') + 1;
    while (*from != ',') from--;
    memmove(from, to, text.size - (size_t)(to - text.data) + 1);
    write_file(temporary("short/tokenizer.json"), text.data, strlen(text.data));
    mx_bytes_free(&text);
    through(folder, MX_LAYOUT_METAL);
    convert_anyway(folder, temporary("short.metal"), MX_LAYOUT_METAL);
    expect_logged("4095 of the 4096 rows");
}

/* ---- without what it came from ------------------------------------------------------------------------------------
 */

static void expect_same_gguf_tensors(const char *a, const char *b) {
    mx_gguf x, y;
    if (mx_gguf_open(a, &x, &error) || mx_gguf_open(b, &y, &error)) fail_msg("%s", error.text);
    assert_int_equal(x.tensors, y.tensors);
    for (int i = 0; i < x.tensors; i++) {
        char name[100];
        const mx_gguf_tensor *t = &x.tensor[i];
        snprintf(name, sizeof name, "%.*s", (int)t->name.size, t->name.text);
        const mx_gguf_tensor *u = mx_gguf_find_tensor(&y, name);
        if (!u || u->type != t->type || memcmp(u->ne, t->ne, sizeof t->ne) || u->bytes != t->bytes ||
            memcmp(u->data, t->data, t->bytes))
            fail_msg("%s is not the same in both", name);
    }
    mx_gguf_close(&x);
    mx_gguf_close(&y);
}

/* The same as another program made of the same models with gguf-py. */
static void test_like_gguf_py(void **state) {
    (void)state;
    if (!shared("checkpoints/stories.gguf")) skip();
    convert_anyway(checkout("tests/data/base"), temporary("base.gguf"), MX_LAYOUT_GGUF);
    expect_same_gguf_tensors(temporary("base.gguf"), shared("checkpoints/random/base-bf16.gguf"));
    convert_anyway(checkout(stories), temporary("stories.gguf"), MX_LAYOUT_GGUF);
    expect_same_gguf_tensors(temporary("stories.gguf"), shared("checkpoints/stories.gguf"));
}

static void expect_same_ids(const char *a, const char *b) {
    static const char text[] = "Once upon a time, in 1984,\n\n  a fox's LAMP\tglowed: \xC3\xA4\xE2\x82\xAC!<|end|>";
    mx_tokenizer *x = NULL, *y = NULL;
    mx_ids p = {0}, q = {0};
    if (mx_tokenizer_open(a, &x, &error) || mx_tokenizer_open(b, &y, &error)) fail_msg("%s", error.text);
    assert_int_equal(mx_encode_special(x, text, strlen(text), &p, &error), MX_OK);
    assert_int_equal(mx_encode_special(y, text, strlen(text), &q, &error), MX_OK);
    assert_int_equal(p.count, q.count);
    assert_memory_equal(p.data, q.data, (size_t)p.count * sizeof *p.data);
    assert_int_equal(mx_tokenizer_size(x), mx_tokenizer_size(y));
    mx_ids_free(&p);
    mx_ids_free(&q);
    mx_tokenizer_close(x);
    mx_tokenizer_close(y);
}

static void test_foreign_gguf(void **state) {
    (void)state;
    const char *gguf = shared("checkpoints/stories.gguf"), *folder = temporary("foreign");
    if (!gguf) skip();
    assert_false(convert(gguf, folder, MX_LAYOUT_HF).restored);
    expect_nothing_logged();
    expect_same_tensors(checkout(stories), folder);
    expect_same_ids(checkout(stories), folder);
    mx_config a, b;
    assert_int_equal(mx_config_read(gguf, &a, &error), MX_OK);
    if (mx_config_read(folder, &b, &error)) fail_msg("%s", error.text);
    assert_memory_equal(&a, &b, sizeof a);
    assert_true(exists(temporary("foreign/generation_config.json")));
}

static void test_foreign_original(void **state) {
    (void)state;
    const char *original = shared("checkpoints/random/base-original");
    if (!original) skip();
    convert(original, temporary("from-original"), MX_LAYOUT_HF);
    expect_same_tensors(checkout("tests/data/base"), temporary("from-original"));
    convert(original, temporary("from-original.gguf"), MX_LAYOUT_GGUF);
    expect_same_gguf_tensors(temporary("from-original.gguf"), shared("checkpoints/random/base-bf16.gguf"));
    convert_anyway(checkout("tests/data/base"), temporary("to-original"), MX_LAYOUT_ORIGINAL);
    expect_same_tensors(original, temporary("to-original"));
}

/* OpenAI's repository holds original/ beside the tokenizer. */
static void test_original_in_a_repository(void **state) {
    (void)state;
    copy_folder(checkout(stories), temporary("repository"));
    convert_anyway(checkout(stories), temporary("repository/original"), MX_LAYOUT_ORIGINAL);
    unlink(temporary("repository/original/mxrun-source"));
    unlink(temporary("repository/original/tokenizer.json"));
    convert(temporary("repository/original"), temporary("repository.gguf"), MX_LAYOUT_GGUF);
    expect_nothing_logged();
    expect_same_ids(checkout(stories), temporary("repository.gguf"));
}

/* Q8_0 becomes F32: 8 bits times a scale of 11. */
static void test_q8_0(void **state) {
    (void)state;
    const char *gguf = shared("checkpoints/random/base-q8_0.gguf");
    if (!gguf) skip();
    convert(gguf, temporary("q8"), MX_LAYOUT_HF);
    expect_logged("tensors in Q8_0 become F32, exactly");
    mx_checkpoint *a, *b;
    if (mx_checkpoint_open(gguf, &a, &error) || mx_checkpoint_open(temporary("q8"), &b, &error))
        fail_msg("%s", error.text);
    const mx_tensor *q = mx_checkpoint_find(a, "lm_head.weight"), *f = mx_checkpoint_find(b, "lm_head.weight");
    assert_int_equal(f->dtype, MX_DTYPE_F32);
    for (int64_t i = 0; i < q->shape[0] * q->shape[1]; i++) {
        const uint8_t *block = q->data + i / 32 * 34;
        float value;
        memcpy(&value, f->data + 4 * i, 4);
        assert_true(value == mx_f16_to_f32(mx_load_u16(block)) * (float)(int8_t)block[2 + i % 32]);
    }
    assert_int_equal(mx_checkpoint_find(b, "model.norm.weight")->dtype, MX_DTYPE_BF16);
    mx_checkpoint_close(a);
    mx_checkpoint_close(b);
    refuse(gguf, temporary("none"), MX_LAYOUT_ORIGINAL, MX_UNSUPPORTED, "Q8_0");
}

/* ---- what was carried along is of another model -------------------------------------------------------------------
 */

/* The GGUF of base with `from` replaced by `to`, of the same length, the first time behind `after`. */
static const char *changed(const char *after, const char *from, const char *to) {
    const char *gguf = temporary("changed.gguf");
    convert_anyway(checkout("tests/data/base"), gguf, MX_LAYOUT_GGUF);
    mx_bytes bytes = content(gguf);
    char *at = memmem(bytes.data, bytes.size, after, strlen(after));
    assert_non_null(at);
    at = memmem(at, bytes.size - (size_t)(at - bytes.data), from, strlen(from));
    assert_non_null(at);
    assert_int_equal(strlen(from), strlen(to));
    memcpy(at, to, strlen(to));
    write_file(gguf, bytes.data, bytes.size);
    mx_bytes_free(&bytes);
    return gguf;
}

static void test_headers_that_do_not_fit(void **state) {
    (void)state;
    static const char last[] =
        ",\"lm_head.weight\":{\"dtype\":\"BF16\",\"shape\":[512,192],\"data_offsets\":[3150848,3347456]}";
    char blanks[sizeof last];
    memset(blanks, ' ', sizeof blanks);
    blanks[sizeof last - 1] = 0;
    const struct {
        const char *from, *to;
    } cases[] = {{"\"lm_head.weight\"", "\"lm_heax.weight\""},
                 {"\"BF16\"", "\"F16\" "},
                 {"[512,192]", "[512,191]"},
                 {"[0,196608]", "[2,196610]"},
                 {last, blanks},
                 {"{\"__metadata__\"", " \"__metadata__\""}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *gguf = changed("mxrun.source.headers", cases[i].from, cases[i].to);
        assert_false(convert_anyway(gguf, temporary("changed"), MX_LAYOUT_HF).restored);
        expect_logged("do not fit its tensors any more");
        expect_same_tensors(checkout("tests/data/base"), temporary("changed"));
    }
}

static void test_config_that_does_not_fit(void **state) {
    (void)state;
    const char *gguf = changed("mxrun.source.contents", "\"sliding_window\": 128", "\"sliding_window\": 127");
    assert_false(convert_anyway(gguf, temporary("changed"), MX_LAYOUT_HF).restored);
    expect_logged("config.json that it was made of does not fit");
    mx_config config;
    if (mx_config_read(temporary("changed"), &config, &error)) fail_msg("%s", error.text);
    assert_int_equal(config.window, 128);
}

static void test_names_that_are_none(void **state) {
    (void)state;
    static const char *const names[] = {"../fig.json", "a/nfig.json", ".onfig.json", "con\ng.json!"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        refuse(changed("mxrun.source.files", "config.json", names[i]), temporary("none"), MX_LAYOUT_HF, MX_INVALID_FILE,
               "mxrun.source.files: expected names of files");
    refuse(changed("mxrun.source.shards", "model.safetensors", "model.safetensorz"), temporary("none"), MX_LAYOUT_HF,
           MX_INVALID_FILE, "mxrun.source.shards: expected names of .safetensors files");
    convert_anyway(changed("mxrun.source.files", "config.json", "secrets.txt"), temporary("changed"), MX_LAYOUT_HF);
    expect_logged("not carried along: secrets.txt\n");
    assert_false(exists(temporary("changed/secrets.txt")));
}

/* A number in F32 that is none in BF16: the tensor stays F32, and OpenAI's layouts have no place for it. */
static void test_numbers_of_F32(void **state) {
    (void)state;
    const char *gguf = changed("GGUF", "GGUF", "GGUF");
    mx_gguf g;
    if (mx_gguf_open(gguf, &g, &error)) fail_msg("%s", error.text);
    const size_t at = (size_t)(mx_gguf_find_tensor(&g, "output_norm.weight")->data - g.file.data);
    mx_gguf_close(&g);
    mx_bytes bytes = content(gguf);
    bytes.data[at] = 1;
    write_file(gguf, bytes.data, bytes.size);
    assert_false(convert_anyway(gguf, temporary("changed"), MX_LAYOUT_HF).restored);
    mx_checkpoint *ck;
    if (mx_checkpoint_open(temporary("changed"), &ck, &error)) fail_msg("%s", error.text);
    const mx_tensor *t = mx_checkpoint_find(ck, "model.norm.weight");
    assert_int_equal(t->dtype, MX_DTYPE_F32);
    assert_memory_equal(t->data, bytes.data + at, t->bytes);
    assert_int_equal(mx_checkpoint_find(ck, "model.layers.0.self_attn.sinks")->dtype, MX_DTYPE_BF16);
    mx_checkpoint_close(ck);
    mx_bytes_free(&bytes);
    mx_converted done;
    const mx_convert_options options = {.to = MX_LAYOUT_ORIGINAL, .pool = pool, .allow_loss = true};
    assert_int_equal(mx_convert(gguf, temporary("none"), &options, &done, &error), MX_UNSUPPORTED);
    assert_non_null(strstr(error.text, "model.norm.weight: holds numbers of F32 that are none of BF16"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gguf),
        cmocka_unit_test(test_original),
        cmocka_unit_test(test_metal),
        cmocka_unit_test(test_shards),
        cmocka_unit_test(test_experts_of_16_bits),
        cmocka_unit_test(test_rounded_experts),
        cmocka_unit_test(test_what_is_carried),
        cmocka_unit_test(test_long_way),
        cmocka_unit_test(test_rows_beyond_metal),
        cmocka_unit_test(test_like_gguf_py),
        cmocka_unit_test(test_foreign_gguf),
        cmocka_unit_test(test_foreign_original),
        cmocka_unit_test(test_original_in_a_repository),
        cmocka_unit_test(test_q8_0),
        cmocka_unit_test(test_headers_that_do_not_fit),
        cmocka_unit_test(test_config_that_does_not_fit),
        cmocka_unit_test(test_names_that_are_none),
        cmocka_unit_test(test_numbers_of_F32),
    };
    return cmocka_run_group_tests(tests, convert_set_up, convert_tear_down);
}
