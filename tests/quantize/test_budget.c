/* The mixture of formats: exact on tables that can be searched through, within its budget always, and measured on a
 * model. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <math.h>

#include "quantize/budget.h"
#include "quantize/rotate.h"

static mx_error error;

static const char *path_in(const char *variable, const char *name) {
    static char paths[4][4096];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, 4096, "%s/%s", getenv(variable), name);
    return path;
}

static void ok(mx_status status) {
    if (status) fail_msg("%s", error.text);
}

/* ---- the choice --------------------------------------------------------------------------------------------------
 */

static uint64_t seed = 1;
static unsigned random_below(unsigned n) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(seed >> 33) % n;
}

enum { PARTS = 6, FORMATS = 4 };

/* Tables as they are found: sizes of a few kinds, KL that falls with the bits, mostly; a form that cannot be. */
static void make_table(mx_budget_part *part, int64_t grain) {
    static const int64_t weights[] = {1000, 1000, 4000, 8000, 500, 500};
    static const double bits[FORMATS] = {4.25, 4.5, 8.25, 16};
    for (int i = 0; i < PARTS; i++) {
        part[i] = (mx_budget_part){.part = MX_PART_QKV, .layer = i, .weights = weights[i]};
        const double sensitive = 1 + random_below(1000);
        for (int j = 0; j < FORMATS; j++) {
            mx_budget_choice *c = &part[i].choice[j];
            c->possible = j == 3 || random_below(8) > 0;
            c->bits = (int64_t)(bits[j] * (double)weights[i]) * grain + (grain > 1 ? random_below(1000) : 0);
            c->kl = j == 3 ? 0 : sensitive * pow(4, -bits[j]) * (0.5 + random_below(100) / 100.0);
        }
    }
}

static int64_t bits_of(const mx_budget_part *part, double *kl) {
    int64_t bits = 0;
    *kl = 0;
    for (int i = 0; i < PARTS; i++) {
        const mx_budget_choice *c = &part[i].choice[part[i].chosen];
        assert_true(c->possible);
        bits += c->bits;
        *kl += c->kl;
    }
    return bits;
}

/* The least sum of KL, INFINITY: there is none. */
static double search(const mx_budget_part *part, int64_t budget) {
    double best = INFINITY;
    for (int i = 0; i < 1 << (2 * PARTS); i++) {
        int64_t bits = 0;
        double kl = 0;
        bool possible = true;
        for (int k = 0; k < PARTS; k++) {
            const mx_budget_choice *c = &part[k].choice[i >> (2 * k) & 3];
            possible = possible && c->possible;
            bits += c->bits;
            kl += c->kl;
        }
        if (possible && bits <= budget && kl < best) best = kl;
    }
    return best;
}

static void test_exact(void **state) {
    (void)state;
    mx_budget_part part[PARTS];
    for (int round = 0; round < 60; round++) {
        make_table(part, 1);
        double before = INFINITY;
        for (double aim = 4; aim < 17; aim += 0.37) {
            const int64_t budget = (int64_t)(aim * 15000);
            const double best = search(part, budget);
            double kl;
            mx_status status = mx_budget_solve(part, PARTS, FORMATS, budget, &error);
            assert_int_equal(status, isinf(best) ? MX_INVALID_ARGUMENT : MX_OK);
            if (status) continue;
            assert_true(bits_of(part, &kl) <= budget);
            if (fabs(kl - best) > 1e-12 * (1 + best)) fail_msg("%g bits: %.17g, best is %.17g", aim, kl, best);
            assert_true(kl <= before + 1e-12);
            before = kl;
        }
    }
}

/* Bits without a common divisor: within the budget still, and hardly worse than the best. */
static void test_coarse(void **state) {
    (void)state;
    mx_budget_part part[PARTS];
    int exact = 0, all = 0;
    for (int round = 0; round < 30; round++) {
        make_table(part, 1000003);
        for (double aim = 4.6; aim < 16; aim += 1.3) {
            const int64_t budget = (int64_t)(aim * 15000 * 1000003);
            const double best = search(part, budget);
            double kl;
            if (isinf(best)) continue;
            ok(mx_budget_solve(part, PARTS, FORMATS, budget, &error));
            assert_true(bits_of(part, &kl) <= budget);
            assert_true(kl <= 1.05 * best + 1e-12);
            all++;
            exact += kl <= best * (1 + 1e-9);
        }
    }
    assert_true(all > 100 && exact > all * 9 / 10);
}

static void test_edges(void **state) {
    (void)state;
    mx_budget_part part[2] = {{.layer = 0}, {.layer = 1}};
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 3; j++) part[i].choice[j] = (mx_budget_choice){.possible = true, .bits = 100, .kl = 3 - j};
    ok(mx_budget_solve(part, 2, 3, 200, &error)); /* all of one size: the best of them */
    assert_int_equal(part[0].chosen, 2);
    assert_int_equal(mx_budget_solve(part, 2, 3, 199, &error), MX_INVALID_ARGUMENT);
    part[0].choice[0] = (mx_budget_choice){.possible = true, .bits = 90, .kl = 1}; /* as good, and smaller */
    part[0].choice[1].kl = NAN;
    ok(mx_budget_solve(part, 2, 3, 1 << 30, &error));
    assert_int_equal(part[0].chosen, 0);
    for (int j = 0; j < 3; j++) part[1].choice[j].possible = false;
    assert_int_equal(mx_budget_solve(part, 2, 3, 1 << 30, &error), MX_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "layer 1"));
}

/* What of a recipe each form has. */
static void test_recipes(void **state) {
    (void)state;
    static const struct {
        const char *recipe, *form, *is;
        mx_kind kind;
    } all[] = {
        {"search+four-over-six+gptq", "nvfp4", "search+four-over-six+gptq", MX_KIND_DOWN},
        {"search+four-over-six+gptq", "mxfp4", "search+gptq", MX_KIND_DOWN},
        {"search+four-over-six+gptq", "mxfp8", "search", MX_KIND_DOWN},
        {"hadamard+weighted", "mxfp4", "hadamard+weighted", MX_KIND_LM_HEAD},
        {"hadamard+weighted", "mxfp4", "hadamard+search", MX_KIND_EMBEDDING},
        {"ocp+gptq", "mxfp4", "ocp", MX_KIND_EMBEDDING},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        mx_quantize_recipe recipe, is;
        mx_form form;
        char a[MX_RECIPE_NAME], b[MX_RECIPE_NAME];
        ok(mx_quantize_recipe_parse(all[i].recipe, &recipe, &error));
        ok(mx_quantize_recipe_parse(all[i].is, &is, &error));
        ok(mx_form_parse(all[i].form, &form, &error));
        recipe = mx_budget_recipe(&recipe, &form, all[i].kind);
        ok(mx_quantize_recipe_check(&recipe, &form, &error));
        mx_quantize_recipe_name(a, &recipe);
        mx_quantize_recipe_name(b, &is);
        assert_string_equal(a, b);
    }
}

/* ---- a model ----------------------------------------------------------------------------------------------------- */

static const char *stories_bf16(void) {
    const char *path = path_in("MXRUN_SHARED", "checkpoints/stories-bf16");
    if (access(path, R_OK)) {
        print_message("skipped: %s is not here\n", path);
        skip();
    }
    return path;
}

static char text_path[] = "/tmp/mxrun-budget-XXXXXX";

static int write_text(void **state) {
    (void)state;
    const int file = mkstemp(text_path);
    FILE *f = file < 0 ? NULL : fdopen(file, "w");
    if (!f) return 1;
    for (int i = 0; i < 8; i++)
        fprintf(f, "Once upon a time there was a fox number %d who had a lamp. The owl and the bear were %d.\n", i,
                i * i);
    return fclose(f);
}

static int remove_text(void **state) {
    (void)state;
    return unlink(text_path);
}

static int64_t told;
static void progress(void *user, int64_t done, int64_t total) {
    assert_ptr_equal(user, &told);
    assert_true(done > 0 && done <= total);
    told = done;
}

static void choose(const char *path, double bits, const char *formats, const char *recipe, bool rotated, bool quick,
                   mx_budget_report *r) {
    mx_source s;
    mx_rotation *rotation = NULL;
    mx_budget_options o = {.bits = bits,
                           .calibrate = text_path,
                           .formats = formats,
                           .tokens = 96,
                           .window = 48,
                           .quick = quick,
                           .progress = progress,
                           .user = &told};
    ok(mx_source_open(path, &s, &error));
    ok(mx_quantize_recipe_parse(recipe, &o.recipe, &error));
    if (rotated) ok(mx_rotate(&s, false, &rotation, &error));
    mx_form *form = calloc((size_t)s.modules, sizeof *form);
    assert_non_null(form);
    ok(mx_budget_choose(&s, &o, form, r, &error));
    double weights = 0, taken = 0;
    for (int i = 0; i < s.modules; i++) {
        const double n = (double)(s.module[i].rows * s.module[i].cols);
        weights += n;
        taken += n * mx_form_bits(&form[i], s.module[i].rows, s.module[i].cols);
        if (s.module[i].kind == MX_KIND_ROUTER) assert_int_equal(form[i].format, MX_BF16);
    }
    assert_true(fabs(taken / weights - r->bits) < 1e-6);
    assert_true(r->bits <= bits);
    assert_true(r->kl_measured >= 0 && r->tokens == 94);
    mx_bytes table = {0};
    assert_true(mx_budget_show(r, &table));
    assert_non_null(strstr(table.data, "gate_up"));
    if (getenv("MXRUN_SHOW")) print_message("%s", table.data);
    mx_bytes_free(&table);
    free(form);
    mx_source_close(&s);
    mx_rotation_free(rotation);
}

static void test_model(void **state) {
    (void)state;
    const char *path = stories_bf16();
    mx_budget_report small, quick;
    choose(path, 4.4, "mxfp4,mxfp8,bf16", "ocp", false, false, &small);
    assert_int_equal(small.parts, 4 * 4 + 2);
    assert_true(small.kl > 0 && small.kl_measured < 3 * small.kl && small.kl < 3 * small.kl_measured); /* adds up */
    for (int i = 0; i < small.parts; i++) {
        const mx_budget_choice *c = small.part[i].choice;
        assert_true(c[0].kl > 0 && c[0].run && c[0].error > c[1].error);
        assert_true(c[2].kl == 0 && !c[2].run && c[2].error == 0); /* bf16: itself */
    }
    choose(path, 6, "mxfp4,mxfp8,bf16", "ocp", false, true, &quick);
    assert_true(quick.kl_measured > 0 && quick.kl_measured < small.kl_measured);
    for (int i = 0; i < quick.parts; i++) {
        const mx_budget_choice *c = quick.part[i].choice, *full = small.part[i].choice;
        assert_true(c[0].kl == full[0].kl && c[1].error == full[1].error); /* once more: the same */
        assert_true(c[0].run && !c[1].run && fabs(c[1].kl * c[0].error - c[0].kl * c[1].error) < 1e-12);
    }
    mx_budget_report_free(&small);
    mx_budget_report_free(&quick);
}

/* A rotated source, with statistics: 16 bits cost hardly anything, whatever is turned back. */
static void test_rotated(void **state) {
    (void)state;
    const char *path = stories_bf16();
    mx_budget_report r;
    choose(path, 15.9, "mxfp4,bf16", "hadamard+weighted", true, false, &r);
    double sum = 0;
    for (int i = 0; i < r.parts; i++) {
        sum += r.part[i].choice[0].kl;
        assert_true(r.part[i].choice[1].kl < 1e-3);
    }
    assert_true(sum > 0 && sum < 1);
    assert_true(r.kl_measured < 1e-3);
    mx_budget_report_free(&r);
}

/* Experts that are MXFP4 already stay what they are, and what is saved there goes elsewhere. */
static void test_mxfp4(void **state) {
    (void)state;
    mx_budget_report r;
    choose(path_in("MXRUN_SOURCE", "tools/stories/checkpoint"), 8, "mxfp4,mxfp8", "ocp", false, true, &r);
    for (int i = 0; i < r.parts; i++) {
        const mx_budget_part *p = &r.part[i];
        if (p->part == MX_PART_GATE_UP || p->part == MX_PART_DOWN)
            assert_true(p->choice[0].kl == 0 && !p->choice[0].run && p->chosen == 0);
        else
            assert_true(p->choice[0].kl > 0);
    }
    mx_budget_report_free(&r);
}

static void test_refused(void **state) {
    (void)state;
    mx_source s = {.path = "llama"};
    mx_form form[600];
    mx_budget_report r;
    mx_budget_options o = {.bits = 5, .calibrate = text_path};
    assert_int_equal(mx_budget_choose(&s, &o, form, &r, &error), MX_UNSUPPORTED);
    mx_budget_report_free(&r);
    ok(mx_source_open(path_in("MXRUN_SOURCE", "tools/stories/checkpoint"), &s, &error));
    assert_true(s.modules <= 600);
    const struct {
        double bits;
        const char *text, *formats, *says;
        mx_status status;
    } wrong[] = {
        {0, text_path, NULL, "number of bits", MX_INVALID_ARGUMENT},
        {5, NULL, NULL, "calibration", MX_INVALID_ARGUMENT},
        {4, text_path, NULL, "cannot be had", MX_INVALID_ARGUMENT},
        {5, text_path, "", "no formats", MX_INVALID_ARGUMENT},
        {5, text_path, "mxfp4,mxfp5", "mxfp5", MX_INVALID_ARGUMENT},
        {5, text_path, "mxfp4,,bf16", "a comma between", MX_INVALID_ARGUMENT},
        {5, text_path, "mxfp4,mxfp4", "twice", MX_INVALID_ARGUMENT},
        {5, "/nowhere/text", NULL, "/nowhere/text", MX_IO},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        o = (mx_budget_options){.bits = wrong[i].bits, .calibrate = wrong[i].text, .formats = wrong[i].formats};
        assert_int_equal(mx_budget_choose(&s, &o, form, &r, &error), wrong[i].status);
        if (!strstr(error.text, wrong[i].says)) fail_msg("%s: no \"%s\"", error.text, wrong[i].says);
        mx_budget_report_free(&r);
    }
    const volatile sig_atomic_t stop = 1;
    o = (mx_budget_options){.bits = 5, .calibrate = text_path, .stop = &stop};
    assert_int_equal(mx_budget_choose(&s, &o, form, &r, &error), MX_CANCELLED);
    mx_budget_report_free(&r);
    mx_source_close(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exact),   cmocka_unit_test(test_coarse),  cmocka_unit_test(test_edges),
        cmocka_unit_test(test_recipes), cmocka_unit_test(test_model),   cmocka_unit_test(test_rotated),
        cmocka_unit_test(test_mxfp4),   cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, write_text, remove_text);
}
