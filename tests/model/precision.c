/* Names of precisions: parsed, printed and refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "model/model.h"

/* What is given, and what is printed for it. */
static void test_names(void **state) {
    (void)state;
    static const char *const pairs[][2] = {
        {"fp32", "fp32"},
        {"bf16x2", "bf16x2"},
        {"mixed", "mixed"},
        {"bf16", "bf16"},
        {"int8", "int8"},
        {"bf16x2,gate_up=bf16,down=bf16", "mixed"},
        {"bf16,router=bf16x2", "bf16,router=bf16x2"},
        {"bf16,qkv=fp32,qkv=bf16", "bf16"},
        {"fp32,lm_head=bf16,down=int8", "fp32,down=int8,lm_head=bf16"},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        mx_precisions p, again;
        mx_error error;
        char name[MX_PRECISION_NAME];
        assert_int_equal(mx_precisions_parse(pairs[i][0], &p, &error), MX_OK);
        mx_precisions_name(name, &p);
        assert_string_equal(name, pairs[i][1]);
        assert_int_equal(mx_precisions_parse(name, &again, &error), MX_OK);
        assert_memory_equal(&p, &again, sizeof p);
    }
}

/* The longest name fits and is read again. */
static void test_longest(void **state) {
    (void)state;
    mx_error error;
    for (int i = 0; i < 4096; i++) { /* every combination */
        mx_precisions p, again;
        for (int c = 0, rest = i; c < MX_CLASSES; c++, rest /= 4) {
            p.of[c] = (mx_precision)(rest % 4);
            if (p.of[c] == MX_X_INT8 && c != MX_CLASS_GATE_UP && c != MX_CLASS_DOWN) p.of[c] = MX_X_FP32;
        }
        char name[MX_PRECISION_NAME];
        mx_precisions_name(name, &p);
        if (mx_precisions_parse(name, &again, &error)) fail_msg("%s: %s", name, error.text);
        assert_memory_equal(&p, &again, sizeof p);
    }
}

static void test_refused(void **state) {
    (void)state;
    static const char *const wrong[] = {
        "",           "fp64",        "BF16",         "bf16 ",       "bf16,",          "bf16,qkv",   "bf16,qkv=",
        "bf16,=fp32", "bf16,a=fp32", "bf16,o=mixed", "int8,o=int8", "bf16,,o=bf16x2", "bf16;o=fp32"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        mx_precisions p;
        mx_error error = {0};
        assert_int_equal(mx_precisions_parse(wrong[i], &p, &error), MX_INVALID_ARGUMENT);
        assert_non_null(strstr(error.text, "precision"));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_names), cmocka_unit_test(test_longest),
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests_name("precision", tests, NULL, NULL);
}
