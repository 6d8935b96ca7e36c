/* The formats by name. */
#include <stdio.h>
#include <string.h>

#include "model/quantize/quantize.h"

#define NAMES                                                                                                          \
    "bf16, mxfp4, mxfp4:16, mxfp4:64, amxfp4, nvfp4, mxfp6_e2m3, mxfp6_e3m2, mxfp8_e4m3 (mxfp8), mxfp8_e5m2, fp8, "    \
    "fp8:channel, int8:32, int8:64, int8:128, int4:32, int4:64, int4:128, and integers with :asym behind"

typedef struct named {
    const char *name;
    mx_form form;
} named;

#define E8M0(size)                                                                                                     \
    { .columns = size, .scale = MX_SCALE_E8M0 }
#define GROUP(size)                                                                                                    \
    { .columns = size, .scale = MX_SCALE_BF16 }
#define ASYM(size)                                                                                                     \
    { .columns = size, .scale = MX_SCALE_BF16, .zeros = true }

/* Of two names of one form the first is the one that it is called. */
static const named forms[] = {
    {"f32", {.format = MX_F32}},
    {"f16", {.format = MX_F16}},
    {"bf16", {.format = MX_BF16}},
    {"mxfp4", {.format = MX_E2M1, .blocks = E8M0(32)}},
    {"mxfp4:32", {.format = MX_E2M1, .blocks = E8M0(32)}},
    {"mxfp4:16", {.format = MX_E2M1, .blocks = E8M0(16)}},
    {"mxfp4:64", {.format = MX_E2M1, .blocks = E8M0(64)}},
    {"amxfp4", {.format = MX_E2M1, .blocks = {.columns = 32, .scale = MX_SCALE_E8M0, .sides = true}}},
    {"nvfp4", {.format = MX_E2M1, .blocks = {.columns = 16, .scale = MX_SCALE_E4M3}, .post = MX_POST_TENSOR}},
    {"mxfp6_e2m3", {.format = MX_E2M3, .blocks = E8M0(32)}},
    {"mxfp6_e3m2", {.format = MX_E3M2, .blocks = E8M0(32)}},
    {"mxfp8_e4m3", {.format = MX_E4M3, .blocks = E8M0(32)}},
    {"mxfp8", {.format = MX_E4M3, .blocks = E8M0(32)}},
    {"mxfp8_e5m2", {.format = MX_E5M2, .blocks = E8M0(32)}},
    {"fp8", {.format = MX_E4M3, .post = MX_POST_TENSOR}},
    {"fp8:channel", {.format = MX_E4M3, .post = MX_POST_ROW}},
    {"int8:32", {.format = MX_INT8, .blocks = GROUP(32)}},
    {"int8:64", {.format = MX_INT8, .blocks = GROUP(64)}},
    {"int8:128", {.format = MX_INT8, .blocks = GROUP(128)}},
    {"int4:32", {.format = MX_INT4, .blocks = GROUP(32)}},
    {"int4:64", {.format = MX_INT4, .blocks = GROUP(64)}},
    {"int4:128", {.format = MX_INT4, .blocks = GROUP(128)}},
    {"int8:32:asym", {.format = MX_INT8, .blocks = ASYM(32)}},
    {"int8:64:asym", {.format = MX_INT8, .blocks = ASYM(64)}},
    {"int8:128:asym", {.format = MX_INT8, .blocks = ASYM(128)}},
    {"int4:32:asym", {.format = MX_INT4, .blocks = ASYM(32)}},
    {"int4:64:asym", {.format = MX_INT4, .blocks = ASYM(64)}},
    {"int4:128:asym", {.format = MX_INT4, .blocks = ASYM(128)}},
};
enum { FORMS = sizeof forms / sizeof *forms };

mx_status mx_form_parse(const char *text, mx_form *out, mx_error *error) {
    for (int i = 0; i < FORMS; i++)
        if (forms[i].form.format >= MX_BF16 && !strcmp(text, forms[i].name)) {
            *out = forms[i].form;
            return MX_OK;
        }
    return mx_fail(error, MX_INVALID_ARGUMENT, "%.60s: no such format; there are %s", text, NAMES);
}

bool mx_form_equal(const mx_form *a, const mx_form *b) {
    return a->format == b->format && a->post == b->post && a->blocks.columns == b->blocks.columns &&
           a->blocks.scale == b->blocks.scale && a->blocks.sides == b->blocks.sides &&
           a->blocks.zeros == b->blocks.zeros;
}

void mx_form_name(char out[MX_FORM_NAME], const mx_form *form) {
    for (int i = 0; i < FORMS; i++)
        if (mx_form_equal(&forms[i].form, form)) {
            snprintf(out, MX_FORM_NAME, "%s", forms[i].name);
            return;
        }
    /* None that parse knows: say what it is made of. */
    snprintf(out, MX_FORM_NAME, "format %d:%d, scale %d%s%s", (int)form->format, form->blocks.columns,
             (int)form->blocks.scale, form->blocks.sides ? " +-" : "", form->blocks.zeros ? " zeros" : "");
}

double mx_form_bits(const mx_form *form, int64_t rows, int64_t cols) {
    if (rows <= 0 || cols <= 0) return 0;
    const double bytes = (double)mx_columns_bytes(form->format, cols) +
                         (double)mx_row_scale_bytes(&form->blocks, cols) +
                         (double)mx_row_zero_bytes(&form->blocks, cols);
    const double post = form->post == MX_POST_ROW ? 4.0 * (double)rows : form->post == MX_POST_TENSOR ? 4 : 0;
    return 8 * (bytes * (double)rows + post) / ((double)rows * (double)cols);
}
