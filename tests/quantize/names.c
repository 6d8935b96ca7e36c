/* Formats and recipes by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "quantize_maker.h"

static void forms_are_read_as_they_are_written(void **unused) {
    (void)unused;
    static const struct {
        const char *name, *called;
        double bits; /* of 2880 x 2880 */
    } all[] = {{"bf16", "bf16", 16},
               {"mxfp4", "mxfp4", 4.25},
               {"mxfp4:32", "mxfp4", 4.25},
               {"mxfp4:16", "mxfp4:16", 4.5},
               {"mxfp4:64", "mxfp4:64", 4.125},
               {"amxfp4", "amxfp4", 4.5},
               {"nvfp4", "nvfp4", 4.5 + 32.0 / 2880 / 2880},
               {"mxfp6_e2m3", "mxfp6_e2m3", 6.25},
               {"mxfp6_e3m2", "mxfp6_e3m2", 6.25},
               {"mxfp8_e4m3", "mxfp8_e4m3", 8.25},
               {"mxfp8", "mxfp8_e4m3", 8.25},
               {"mxfp8_e5m2", "mxfp8_e5m2", 8.25},
               {"fp8", "fp8", 8 + 32.0 / 2880 / 2880},
               {"fp8:channel", "fp8:channel", 8 + 32.0 / 2880},
               {"int8:32", "int8:32", 8.5},
               {"int8:64", "int8:64", 8.25},
               {"int4:32:asym", "int4:32:asym", 4.75},
               {"int4:64", "int4:64", 4.25},
               {"int8:32:asym", "int8:32:asym", 8.75}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        mx_form form, again;
        char name[MX_FORM_NAME];
        assert_int_equal(mx_form_parse(all[i].name, &form, NULL), MX_OK);
        mx_form_name(name, &form);
        assert_string_equal(name, all[i].called);
        assert_int_equal(mx_form_parse(name, &again, NULL), MX_OK);
        assert_true(mx_form_equal(&form, &again));
        assert_true(fabs(mx_form_bits(&form, 2880, 2880) - all[i].bits) < 1e-9);
        assert_int_equal(form.blocks.columns % 16, 0);
    }
    mx_form form;
    mx_error error;
    static const char *const bad[] = {"",     "mxfp5",   "MXFP4",      "mxfp4:", "mxfp4:8",
                                      "int4", "int4:16", "nvfp4:asym", "f32",    "f16"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(mx_form_parse(bad[i], &form, &error), MX_INVALID_ARGUMENT);
        assert_non_null(strstr(error.text, "nvfp4"));
    }
    assert_true(mx_form_bits(&form, 0, 5) <= 0);
}

static void recipes_are_read_as_they_are_written(void **unused) {
    (void)unused;
    static const struct {
        const char *given, *called;
    } all[] = {
        {"ocp", "ocp"},
        {"nearest", "ocp"},
        {"overflow", "overflow"},
        {"search", "search"},
        {"weighted", "weighted"},
        {"keep", "keep"},
        {"gptq", "ocp+gptq"},
        {"search+gptq", "search+gptq"},
        {"tensor-search+search+four-over-six", "search+four-over-six+tensor-search"},
        {"hadamard+weighted+gptq", "hadamard+weighted+gptq"},
        {"hadamard+overflow+four-over-six+tensor-search+gptq", "hadamard+overflow+four-over-six+tensor-search+gptq"}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        mx_quantize_recipe r;
        char name[MX_RECIPE_NAME];
        assert_int_equal(mx_quantize_recipe_parse(all[i].given, &r, NULL), MX_OK);
        mx_quantize_recipe_name(name, &r);
        assert_string_equal(name, all[i].called);
    }
    static const char *const bad[] = {"",           "+",         "ocp+",      "+ocp",          "best",
                                      "ocp+search", "gptq+gptq", "keep+gptq", "keep+hadamard", "ocp search"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        mx_quantize_recipe r;
        mx_error error;
        if (mx_quantize_recipe_parse(bad[i], &r, &error) != MX_INVALID_ARGUMENT) fail_msg("%s is taken", bad[i]);
        assert_true(strlen(error.text) > 20);
    }
}

static void recipes_that_do_not_fit_are_named(void **unused) {
    (void)unused;
    static const struct {
        const char *recipe, *form;
        bool fits;
    } all[] = {{"four-over-six", "nvfp4", true},
               {"four-over-six", "mxfp4", false},
               {"tensor-search", "nvfp4", true},
               {"tensor-search", "fp8", false},
               {"gptq", "mxfp4", true},
               {"gptq", "nvfp4", true},
               {"gptq", "int4:64:asym", true},
               {"gptq", "amxfp4", true},
               {"gptq", "mxfp8", false},
               {"gptq", "fp8", false},
               {"gptq", "bf16", false},
               {"search", "bf16", true},
               {"overflow", "int8:32:asym", true},
               {"gptq", "mxfp6_e2m3", false}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        mx_quantize_recipe r;
        mx_form form;
        mx_error error;
        assert_int_equal(mx_quantize_recipe_parse(all[i].recipe, &r, NULL), MX_OK);
        assert_int_equal(mx_form_parse(all[i].form, &form, NULL), MX_OK);
        const mx_status status = mx_quantize_recipe_check(&r, &form, &error);
        assert_int_equal(status, all[i].fits ? MX_OK : MX_INVALID_ARGUMENT);
        if (status) {
            assert_true(strstr(error.text, all[i].recipe) && strstr(error.text, all[i].form));
            assert_non_null(strstr(error.text, "--rules"));
        }
    }
    const mx_quantize_recipe damped = {.gptq = true, .damp = NAN};
    const mx_form mxfp4 = {MX_E2M1, {.columns = 32, .scale = MX_SCALE_E8M0}, MX_POST_NONE};
    assert_int_equal(mx_quantize_recipe_check(&damped, &mxfp4, NULL), MX_INVALID_ARGUMENT);
}

static void hadamard_is_its_own_inverse(void **unused) {
    (void)unused;
    float x[96], before[96];
    double square = 0, turned = 0;
    for (int i = 0; i < 96; i++) before[i] = x[i] = maker_normal();
    mx_hadamard(x, 96, 32);
    for (int row = 0; row < 32; row++) { /* by its definition: (-1)^(bits in common) / sqrt(size) */
        double sum = 0;
        for (int i = 0; i < 32; i++)
            sum += (double)before[32 + i] * (__builtin_popcount((unsigned)(row & i)) % 2 ? -1 : 1);
        assert_true(fabs(sum / sqrt(32.0) - (double)x[32 + row]) < 1e-5);
    }
    for (int i = 0; i < 96; i++) {
        square += (double)before[i] * (double)before[i];
        turned += (double)x[i] * (double)x[i];
    }
    assert_true(fabs(square - turned) < 1e-4);
    mx_hadamard(x, 96, 32);
    for (int i = 0; i < 96; i++) assert_true(fabsf(x[i] - before[i]) < 1e-5f);
    float one[3] = {1, 2, 3};
    mx_hadamard(one, 3, 1);
    assert_true(same(one[2], 3));
    assert_int_equal(mx_hadamard_size(2880, 128), 64);
    assert_int_equal(mx_hadamard_size(2880, 32), 32);
    assert_int_equal(mx_hadamard_size(4096, 128), 128);
    assert_int_equal(mx_hadamard_size(4096, 100), 64);
    assert_int_equal(mx_hadamard_size(201, 128), 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forms_are_read_as_they_are_written),
        cmocka_unit_test(recipes_are_read_as_they_are_written),
        cmocka_unit_test(recipes_that_do_not_fit_are_named),
        cmocka_unit_test(hadamard_is_its_own_inverse),
    };
    return cmocka_run_group_tests_name("names of formats and recipes", tests, NULL, NULL);
}
