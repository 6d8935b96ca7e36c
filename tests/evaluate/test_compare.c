/* What mxrun compare writes of made-up results. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/json.h"
#include "evaluate/chart.h"
#include "evaluate/compare.h"

static const mx_compare_model base_model = {
    .label = "bf16",
    .path = "models/bf16",
    .disk = 20e6,
    .bytes = 20e6,
    .parameters = 10e6,
    .evaluated = true,
    .evaluation = {.protocol = "strided, window 512, stride 256",
                   .tokens = 12345,
                   .perplexity = 3.73214,
                   .standard_error = 0.0312,
                   .bits_per_byte = 0.75},
    .prompt = {900, 880, 910},
    .decode = {100, 99, 101},
    .token_bytes = 16e6,
};

static const mx_compare_model small_model = {
    .label = "nvfp4, \"search\"",
    .path = "models/nvfp4",
    .disk = 6e6,
    .bytes = 5.625e6,
    .parameters = 10e6,
    .evaluated = true,
    .evaluation = {.protocol = "strided, window 512, stride 256",
                   .tokens = 12345,
                   .perplexity = 3.76,
                   .standard_error = 0.0322,
                   .bits_per_byte = 0.76,
                   .has_base = true,
                   .kl_mean = 0.00823,
                   .kl_stderr = 0.0001,
                   .kl_median = 0.001,
                   .kl_p99 = 0.1,
                   .kl_max = 2.5,
                   .top1 = 0.9917,
                   .delta_perplexity = 0.02786,
                   .delta_stderr = 0.0041,
                   .base_top = 64},
    .prompt = {800, 790, 810},
    .decode = {241.5, 240, 242},
    .token_bytes = 5e6,
};

static const mx_compare_model failed_model = {
    .label = "broken",
    .path = "models/broken",
    .failed = "models/broken/model.safetensors: cut off after 12 bytes, 5,625,000 were expected: fetch the file again, "
              "or leave it out",
};

enum { ALL = 3 };
static mx_compare_model models[ALL];

static mx_compare results(void) {
    models[0] = base_model;
    models[1] = small_model;
    models[2] = failed_model;
    return (mx_compare){.model = models,
                        .models = ALL,
                        .text = "book.txt",
                        .speed = true,
                        .together = true,
                        .rounds = 5,
                        .prompt_tokens = 512,
                        .decode_tokens = 64,
                        .threads = 2,
                        .precision = "mixed",
                        .kv = "f16",
                        .tier = "avx512bf16",
                        .machine = "Some CPU"};
}

static void expect(const mx_bytes *text, const char *golden) {
    if (text->data && !strcmp(text->data, golden)) return;
    fail_msg("found:\n%s\nexpected:\n%s", text->data ? text->data : "(nothing)", golden);
}

static void expect_part(const mx_bytes *text, const char *part) {
    if (!text->data || !strstr(text->data, part)) fail_msg("no \"%s\" in:\n%s", part, text->data ? text->data : "");
}

static void expect_no_part(const mx_bytes *text, const char *part) {
    if (text->data && strstr(text->data, part)) fail_msg("\"%s\" in:\n%s", part, text->data);
}

/* ---- tables ------------------------------------------------------------------------------------------------------ */

static void the_table_is_aligned(void **state) {
    (void)state;
    const mx_compare c = results();
    mx_bytes out = {0};
    assert_true(mx_compare_table(&out, &c));
    expect(&out,
           "model               size   bits      perplexity       KL    top-1  prompt  decode  MB/token\n"
           "bf16             20.0 MB  16.00  3.7321 ± 0.031        –        –   900.0   100.0     16.00\n"
           "nvfp4, \"search\"   6.0 MB   4.50  3.7600 ± 0.032  0.00823  99.17 %   800.0   241.5     5.000\n"
           "broken                 –      –               –        –        –       –       –         –\n"
           "\n"
           "text: book.txt, 12,345 tokens scored; strided, window 512, stride 256\n"
           "bits: of all tensors, for each weight; ±: standard error of the mean over tokens. All models see the\n"
           "  same tokens, so their differences are surer than that\n"
           "KL: divergence of bf16's distribution from the model's, mean of nats a token (its 64 likeliest\n"
           "  tokens one by one, all others together: a lower bound); top-1: tokens of which both say the same\n"
           "  is likeliest\n"
           "prompt, decode: tokens/s of a prompt of 512, decoding 64 one by one; medians of prompts and windows\n"
           "  of decoded tokens, 5 rounds, in each of which every model had its turn\n"
           "Some CPU; 2 threads, avx512bf16 kernels, precision mixed, KV cache f16\n"
           "MB/token: bytes that a decoded token moves from memory, counted; energy was not measured, for no\n"
           "  counter (RAPL, /sys/class/powercap/intel-rapl:*) may be read here\n"
           "broken failed: models/broken/model.safetensors: cut off after 12 bytes, 5,625,000 were expected:\n"
           "  fetch the file again, or leave it out\n");
    mx_bytes_free(&out);
}

static void markdown_has_the_differences_too(void **state) {
    (void)state;
    const mx_compare c = results();
    mx_bytes out = {0};
    models[2].label = "bro|ken_2";
    assert_true(mx_compare_markdown(&out, &c));
    expect_part(&out, "| model | size | bits/weight | perplexity | Δ to the first | KL | top-1 | prompt tokens/s | "
                      "decode tokens/s | MB/token |\n| --- | ---: | ---: |");
    expect_part(&out, "\n| nvfp4, \"search\" | 6.0 MB | 4.50 | 3.7600 ± 0.032 | +0.0279 ± 0.0041 | 0.00823 | 99.17 % | "
                      "800.0 | 241.5 | 5.000 |\n");
    expect_part(&out, "\n| bro\\|ken\\_2 | – |");
    expect_part(&out, "\n- MB/token: bytes that a decoded token moves");
    expect_part(&out, "\n- bro\\|ken\\_2 failed: models/broken");
    mx_bytes_free(&out);
}

static int width_of(const char *line, size_t size) {
    int n = 0;
    for (size_t i = 0; i < size; i++) n += (line[i] & 0xc0) != 0x80;
    return n;
}

/* Long names, large numbers, all columns. */
static void the_table_fits_100_columns(void **state) {
    (void)state;
    mx_compare c = results();
    mx_bytes out = {0};
    models[0].label = "ein-sehr-langer-Name-eines-Modells-das-größer-ist-als-andere-und-noch-größer";
    models[0].disk = 123.45e9;
    models[0].evaluation.perplexity = 99999.12;
    models[0].evaluation.standard_error = 1234.5;
    models[1].evaluation.kl_mean = 1e-9;
    models[1].evaluation.top1 = 1;
    models[1].decode.median = 12345;
    strcpy(models[1].apart, "not held against it, for this is a long line that has to be broken somewhere, and where "
                            "better than between two words of it");
    assert_true(mx_compare_table(&out, &c));
    for (const char *line = out.data, *end; (end = strchr(line, '\n')); line = end + 1)
        if (width_of(line, (size_t)(end - line)) > 100) fail_msg("too wide: %.*s", (int)(end - line), line);
    expect_part(&out, "ein-sehr-langer-");
    expect_part(&out, "…");
    expect_part(&out, "123.45 GB");
    expect_part(&out, "1.0e-09");
    expect_part(&out, "100.0 %");
    mx_bytes_free(&out);
}

static void energy_is_named_as_what_it_is(void **state) {
    (void)state;
    mx_compare c = results();
    mx_bytes out = {0};
    c.energy = MX_COMPARE_RAPL;
    models[0].joules = 12.3456;
    models[1].joules = 0.0456;
    assert_true(mx_compare_table(&out, &c));
    expect_part(&out, "J/token\n");
    expect_part(&out, "12.346\n");
    expect_part(&out, "0.0456\n");
    expect_part(&out, "(RAPL)\n");
    expect_no_part(&out, "MB/token");
    mx_bytes_clear(&out);
    c.energy = MX_COMPARE_NVML;
    assert_true(mx_compare_table(&out, &c));
    expect_part(&out, "of the GPU (NVML)");
    mx_bytes_clear(&out);
    c.speed = false;
    assert_true(mx_compare_table(&out, &c));
    expect_no_part(&out, "token\n");
    expect_no_part(&out, "decode");
    mx_bytes_clear(&out);
    c.speed = true;
    c.together = false;
    assert_true(mx_compare_table(&out, &c));
    expect_part(&out, "after the other, for they do not fit");
    mx_bytes_clear(&out);
    c.gpu = true;
    assert_true(mx_compare_table(&out, &c));
    expect_part(&out, "on the GPU\nSome CPU; avx512bf16 kernels");
    mx_bytes_free(&out);
}

/* ---- numbers for programs ---------------------------------------------------------------------------------------- */

static void csv_is_quoted(void **state) {
    (void)state;
    const mx_compare c = results();
    mx_bytes out = {0};
    strcpy(models[2].failed, "two\nlines, and \"quotes\"");
    assert_true(mx_compare_csv(&out, &c));
    expect(&out, "model,path,bytes,weight_bytes,parameters,bits_per_weight,perplexity,stderr,bits_per_byte,tokens,"
                 "delta_perplexity,delta_stderr,kl_mean,kl_stderr,kl_median,kl_p99,kl_max,top1,prompt_tokens_per_s,"
                 "prompt_tokens_per_s_min,prompt_tokens_per_s_max,decode_tokens_per_s,decode_tokens_per_s_min,"
                 "decode_tokens_per_s_max,joules_per_token,bytes_per_token,error\n"
                 "bf16,models/bf16,20000000,20000000,10000000,16,3.73214,0.0312,0.75,12345,,,,,,,,,900,880,910,100,99,"
                 "101,,16000000,\n"
                 "\"nvfp4, \"\"search\"\"\",models/nvfp4,6000000,5625000,10000000,4.5,3.76,0.0322,0.76,12345,0.02786,"
                 "0.0041,0.00823,0.0001,0.001,0.1,2.5,0.9917,800,790,810,241.5,240,242,,5000000,\n"
                 "broken,models/broken,,,,,,,,,,,,,,,,,,,,,,,,,\"two\nlines, and \"\"quotes\"\"\"\n");
    mx_bytes_free(&out);
}

static void a_bound_is_called_one(void **state) {
    (void)state;
    const mx_compare c = results();
    mx_bytes out = {0};
    bool drawn;
    assert_true(mx_compare_chart_kl(&out, &c, &drawn) && drawn);
    expect_part(&out, "lower bounds");
    mx_bytes_clear(&out);
    models[1].evaluation.base_whole = true;
    assert_true(mx_compare_chart_kl(&out, &c, &drawn) && drawn);
    assert_true(mx_compare_table(&out, &c));
    expect_part(&out, "mean of nats a token; top-1");
    expect_no_part(&out, "lower bound");
    mx_bytes_free(&out);
}

/* Of a model of 65 GB no byte is rounded away. */
static void whole_numbers_stay_whole(void **state) {
    (void)state;
    const mx_compare c = results();
    mx_bytes out = {0};
    models[0].disk = 65248815744;
    models[0].bytes = 65248815137;
    models[0].parameters = 116829156672;
    models[0].token_bytes = 12345678901.25;
    models[0].evaluation.tokens = 12345678901;
    assert_true(mx_compare_csv(&out, &c));
    expect_part(&out, "models/bf16,65248815744,65248815137,116829156672,4.46");
    expect_part(&out, ",12345678901,");
    expect_part(&out, ",12345678901,\n");
    mx_bytes_clear(&out);
    assert_true(mx_compare_json(&out, &c));
    expect_part(&out, "\"bytes\":65248815744,\"weight_bytes\":65248815137,\"parameters\":116829156672,");
    expect_part(&out, "\"tokens\":12345678901,");
    expect_part(&out, "\"bytes_per_token\":12345678901}");
    mx_bytes_free(&out);
}

static double number(const mx_json *object, const char *key) {
    double x = -1;
    if (!mx_json_double(mx_json_get(object, key), &x)) fail_msg("no number \"%s\"", key);
    return x;
}

static void json_parses(void **state) {
    (void)state;
    const mx_compare c = results();
    mx_bytes out = {0};
    mx_error error;
    mx_json_document *d;
    models[1].evaluation.kl_max = (double)INFINITY;
    assert_true(mx_compare_json(&out, &c));
    if (mx_json_parse("json", out.data, out.size, &d, &error)) fail_msg("%s", error.text);
    const mx_json *root = mx_json_root(d), *list = mx_json_get(root, "models"), *speed = mx_json_get(root, "speed");
    assert_int_equal(list->count, 3);
    assert_true(mx_json_is_string(mx_json_get(root, "protocol"), "strided, window 512, stride 256"));
    assert_true(mx_json_is_string(mx_json_get(speed, "energy"), "none"));
    assert_true(number(speed, "rounds") == 5 && number(speed, "threads") == 2);
    const mx_json *first = list->child, *second = first->next, *third = second->next;
    assert_true(number(first, "perplexity") == 3.73214);
    assert_int_equal(mx_json_get(first, "kl_mean")->type, MX_JSON_NULL);
    assert_true(mx_json_is_string(mx_json_get(second, "model"), "nvfp4, \"search\""));
    assert_true(number(second, "bits_per_weight") == 4.5 && number(second, "top1") == 0.9917);
    assert_int_equal(mx_json_get(second, "kl_max")->type, MX_JSON_NULL); /* infinite */
    assert_null(mx_json_get(second, "error"));
    assert_int_equal(mx_json_get(third, "perplexity")->type, MX_JSON_NULL);
    assert_true(mx_json_is_string(mx_json_get(third, "error"), failed_model.failed));
    mx_json_free(d);
    mx_bytes_free(&out);
}

static void parameters_are_counted(void **state) {
    (void)state;
    /* tools/stories/checkpoint: 9,754,976 by the shapes of its tensors */
    const mx_config stories = {.layers = 4,
                               .hidden = 256,
                               .intermediate = 128,
                               .heads = 8,
                               .kv_heads = 2,
                               .head_dim = 64,
                               .experts = 16,
                               .top_k = 4,
                               .vocab = 4096,
                               .attention_bias = true};
    assert_true(mx_compare_parameters(&stories) == 9754976);
    mx_config tied = stories;
    tied.tied_embeddings = true;
    assert_true(mx_compare_parameters(&stories) - mx_compare_parameters(&tied) == 4096 * 256);
}

/* ---- pictures ---------------------------------------------------------------------------------------------------- */

/* Just enough of XML for what we write: elements that nest, attributes in quotes, no bare markup in between. Texts of
 * <text> elements are joined with newlines in `texts`. */
static void parse_xml(const mx_bytes *svg, mx_bytes *texts) {
    const char *stack[32];
    int depth = 0;
    const char *at = svg->data;
    assert_non_null(at);
    while (*at) {
        if (*at != '<') {
            const size_t size = strcspn(at, "<");
            for (size_t i = 0; i < size; i++) {
                const unsigned char c = (unsigned char)at[i];
                if (c < ' ' && c != '\n') fail_msg("control character %d", c);
                if (c == '&' && strncmp(at + i, "&amp;", 5) && strncmp(at + i, "&lt;", 4) &&
                    strncmp(at + i, "&gt;", 4) && strncmp(at + i, "&quot;", 6))
                    fail_msg("bare & in %.20s", at + i);
            }
            if (depth && !strncmp(stack[depth - 1], "text ", 5))
                assert_true(mx_bytes_add(texts, at, size) && mx_bytes_add_string(texts, "\n"));
            if (!depth && strspn(at, "\n") < size) fail_msg("text outside: %.20s", at);
            at += size;
            continue;
        }
        const char *end = strchr(at, '>');
        assert_non_null(end);
        int quotes = 0;
        for (const char *p = at; p < end; p++) quotes += *p == '"';
        assert_int_equal(quotes % 2, 0);
        if (at[1] == '/') {
            assert_true(depth > 0);
            depth--;
            const size_t size = (size_t)(end - at - 2);
            if (strncmp(stack[depth], at + 2, size)) fail_msg("%.20s does not close %.10s", at, stack[depth]);
        } else if (end[-1] != '/') {
            assert_in_range(depth, 0, 31);
            stack[depth++] = at + 1;
        }
        at = end + 1;
    }
    assert_int_equal(depth, 0);
}

typedef bool draw_fn(mx_bytes *out, const mx_compare *c, bool *drawn);
static draw_fn *const charts[] = {mx_compare_chart_perplexity, mx_compare_chart_kl, mx_compare_chart_speed};

/* Two models' labels in each; what failed is in none. */
static void charts_have_labels_and_axes(void **state) {
    (void)state;
    static const char *const units[] = {"\nbits per weight", "\nbits per weight", "\ntimes as fast"};
    static const char *const sides[] = {"\nperplexity\n", "\nmean KL, nats a token", "\nprompt (512 tokens)\n"};
    const mx_compare c = results();
    models[1].label = "a<b & \"c\" \x01\xff";
    for (int i = 0; i < 3; i++) {
        mx_bytes svg = {0}, texts = {0};
        bool drawn = false;
        assert_true(charts[i](&svg, &c, &drawn));
        assert_true(drawn);
        parse_xml(&svg, &texts);
        expect_part(&texts, "\na&lt;b &amp; &quot;c&quot; \xef\xbf\xbd\n");
        if (i != 1) expect_part(&texts, "\nbf16\n"); /* nothing is held against itself */
        expect_part(&texts, units[i]);
        if (!i) expect_part(&texts, "\nno smaller one is better\n");
        expect_part(&texts, sides[i]);
        expect_no_part(&texts, "broken");
        expect_no_part(&svg, "<script");
        expect_no_part(&svg, "href");
        expect_no_part(&svg, "nan");
        expect_no_part(&svg, "inf");
        mx_bytes_free(&svg);
        mx_bytes_free(&texts);
    }
}

static void nothing_to_draw_is_no_chart(void **state) {
    (void)state;
    mx_compare c = results();
    models[0] = models[1] = failed_model;
    for (int i = 0; i < 3; i++) {
        mx_bytes svg = {0};
        bool drawn = true;
        assert_true(charts[i](&svg, &c, &drawn));
        assert_false(drawn);
        assert_int_equal(svg.size, 0);
    }
}

typedef struct box {
    double x0, y0, x1, y1;
} box;

/* Boxes of the labels in a chart of points, by the widths that Helvetica has at least: half of the size a letter. */
static int boxes_of(const mx_bytes *svg, const char *prefix, box *out, int most) {
    int n = 0;
    for (const char *at = svg->data; (at = strstr(at, "<text class=\"halo")) && n < most; at++) {
        double x, y;
        const char *text = strchr(at, '>') + 1;
        if (sscanf(strstr(at, " x="), " x=\"%lf\" y=\"%lf\"", &x, &y) != 2) fail_msg("no place in %.60s", at);
        if (strncmp(text, prefix, strlen(prefix))) continue;
        const double width = 13 * 0.5 * (double)strcspn(text, "<");
        out[n++] = (box){x - width / 2, y - 10, x + width / 2, y + 3};
    }
    return n;
}

/* Twelve formats, many of one size and alike, as they are in earnest. */
static void twelve_labels_do_not_overlap(void **state) {
    (void)state;
    static const double x[] = {16, 8.61, 8.4, 8.51, 6.66, 4.75, 4.75, 4.75, 4.75, 5, 5, 4.66};
    enum { POINTS = 12, SETS = 8 };
    uint32_t random = 1;
    for (int set = 0; set < SETS; set++) {
        mx_chart_point point[POINTS];
        char label[POINTS][40];
        mx_bytes svg = {0};
        for (int i = 0; i < POINTS; i++) {
            random = random * 1664525 + 1013904223;
            snprintf(label[i], sizeof label[i], "format%02d search+gptq", i);
            /* the first set: all in one place */
            point[i] =
                (mx_chart_point){label[i], set ? x[i] : 4.25, set ? 0.001 + 1e-6 * (random >> 20) : 0.005, 0, !i};
        }
        const mx_chart_points c = {.title = "title",
                                   .subtitle = "subtitle",
                                   .x_title = "x",
                                   .y_title = "y",
                                   .log_y = set % 2,
                                   .frontier = true,
                                   .point = point,
                                   .points = POINTS};
        assert_true(mx_chart_draw_points(&svg, &c));
        box b[POINTS];
        assert_int_equal(boxes_of(&svg, "format", b, POINTS), POINTS);
        for (int i = 0; i < POINTS; i++) {
            if (b[i].x0 < 0 || b[i].x1 > 860 || b[i].y0 < 0 || b[i].y1 > 560) fail_msg("label %d is outside", i);
            for (int k = 0; k < i; k++)
                if (b[i].x0 < b[k].x1 && b[k].x0 < b[i].x1 && b[i].y0 < b[k].y1 && b[k].y0 < b[i].y1)
                    fail_msg("set %d: labels %d and %d overlap", set, k, i);
        }
        mx_bytes_free(&svg);
    }
}

/* One model, models that are all alike, numbers far apart, many. */
static void odd_numbers_make_charts_too(void **state) {
    (void)state;
    static mx_compare_model many[MX_COMPARE_MOST];
    for (int kind = 0; kind < 4; kind++) {
        mx_compare c = results();
        c.model = many;
        c.models = kind == 0 ? 1 : kind == 1 ? MX_COMPARE_MOST : 20;
        for (int i = 0; i < c.models; i++) {
            many[i] = i ? small_model : base_model;
            if (kind != 2) continue;
            many[i].evaluation.perplexity = i * 1e5 + 1;
            many[i].evaluation.kl_mean = i % 2 ? i * 1e-12 : 0;
            many[i].decode.median = i % 3 ? i * 1e6 : 0;
            many[i].bytes = 1e6 * (i + 1);
            many[i].label = i % 2 ? "" : "a label that is so long that it cannot be shown in any picture of this world";
        }
        if (kind == 3) many[5].evaluation.perplexity = many[5].evaluation.kl_mean = (double)INFINITY;
        for (int i = 0; i < 3; i++) {
            mx_bytes svg = {0}, texts = {0};
            bool drawn = false;
            assert_true(charts[i](&svg, &c, &drawn));
            if (drawn) {
                parse_xml(&svg, &texts);
                expect_no_part(&svg, "nan");
                expect_no_part(&svg, "\"inf");
            }
            mx_bytes_free(&svg);
            mx_bytes_free(&texts);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_table_is_aligned),
        cmocka_unit_test(markdown_has_the_differences_too),
        cmocka_unit_test(the_table_fits_100_columns),
        cmocka_unit_test(energy_is_named_as_what_it_is),
        cmocka_unit_test(csv_is_quoted),
        cmocka_unit_test(whole_numbers_stay_whole),
        cmocka_unit_test(a_bound_is_called_one),
        cmocka_unit_test(json_parses),
        cmocka_unit_test(parameters_are_counted),
        cmocka_unit_test(charts_have_labels_and_axes),
        cmocka_unit_test(nothing_to_draw_is_no_chart),
        cmocka_unit_test(twelve_labels_do_not_overlap),
        cmocka_unit_test(odd_numbers_make_charts_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
