#include <stdio.h>
#include <string.h>

#include "model/model.h"

static const char *const precision_names[MX_PRECISIONS] = {
    [MX_X_FP32] = "fp32", [MX_X_BF16X2] = "bf16x2", [MX_X_BF16] = "bf16", [MX_X_INT8] = "int8"};
static const char *const class_names[MX_CLASSES] = {
    [MX_CLASS_QKV] = "qkv",         [MX_CLASS_O] = "o",       [MX_CLASS_ROUTER] = "router",
    [MX_CLASS_GATE_UP] = "gate_up", [MX_CLASS_DOWN] = "down", [MX_CLASS_LM_HEAD] = "lm_head"};

static bool is_experts(int class) {
    return class == MX_CLASS_GATE_UP || class == MX_CLASS_DOWN;
}

/* Precisions of the whole model. Dense weights are no integers: beside experts in int8 they are multiplied in bf16. */
static const struct preset {
    const char *name;
    mx_precision experts, others;
} presets[] = {
    {"fp32", MX_X_FP32, MX_X_FP32}, {"bf16x2", MX_X_BF16X2, MX_X_BF16X2}, {"mixed", MX_X_BF16, MX_X_BF16X2},
    {"bf16", MX_X_BF16, MX_X_BF16}, {"int8", MX_X_INT8, MX_X_BF16},
};
enum { FP32, BF16X2, MIXED, BF16, INT8, PRESETS };

static mx_precisions every(const struct preset *p) {
    mx_precisions out;
    for (int c = 0; c < MX_CLASSES; c++) out.of[c] = is_experts(c) ? p->experts : p->others;
    return out;
}

static int find(const char *const *names, int count, const char *text, size_t size) {
    for (int i = 0; i < count; i++)
        if (strlen(names[i]) == size && !memcmp(names[i], text, size)) return i;
    return -1;
}

mx_status mx_precisions_parse(const char *text, mx_precisions *out, mx_error *error) {
    size_t size = strcspn(text, ",");
    int p = 0;
    while (p < PRESETS && (strlen(presets[p].name) != size || memcmp(presets[p].name, text, size))) p++;
    if (p == PRESETS)
        return mx_fail(error, MX_INVALID_ARGUMENT, "precision \"%.40s\": expected fp32, bf16x2, mixed, bf16 or int8",
                       text);
    *out = every(&presets[p]);
    for (const char *at = text + size; *at;) {
        at++;
        size_t name = strcspn(at, "=,"), value = at[name] == '=' ? strcspn(at + name + 1, ",") : 0;
        int c = find(class_names, MX_CLASSES, at, name);
        p = value ? find(precision_names, MX_PRECISIONS, at + name + 1, value) : -1;
        if (c < 0 || p < 0)
            return mx_fail(error, MX_INVALID_ARGUMENT,
                           "precision \"%.80s\": after a comma stands CLASS=PRECISION; classes are qkv, o, router, "
                           "gate_up, down and lm_head, precisions fp32, bf16x2, bf16 and int8",
                           text);
        if (p == MX_X_INT8 && !is_experts(c))
            return mx_fail(error, MX_INVALID_ARGUMENT, "precision \"%.80s\": only experts (gate_up, down) have int8",
                           text);
        out->of[c] = (mx_precision)p;
        at += name + 1 + value;
    }
    return MX_OK;
}

static int differences(const mx_precisions *a, const mx_precisions *b) {
    int count = 0;
    for (int c = 0; c < MX_CLASSES; c++) count += a->of[c] != b->of[c];
    return count;
}

void mx_precisions_name(char out[MX_PRECISION_NAME], const mx_precisions *p) {
    mx_precisions base = every(&presets[FP32]);
    int best = FP32;
    for (int i = FP32; i < PRESETS; i++) {
        mx_precisions other = every(&presets[i]);
        if (differences(&other, p) >= differences(&base, p)) continue;
        base = other;
        best = i;
    }
    int at = snprintf(out, MX_PRECISION_NAME, "%s", presets[best].name);
    for (int c = 0; c < MX_CLASSES && at < MX_PRECISION_NAME; c++)
        if (base.of[c] != p->of[c])
            at += snprintf(out + at, (size_t)(MX_PRECISION_NAME - at), ",%s=%s", class_names[c],
                           precision_names[p->of[c]]);
}

/* bf16 has twice the speed of bf16x2 in prompts and the same in decode. Of a prompt's products the experts are four
 * fifths: with them alone in bf16 it costs 1.2 times bf16, and every golden is nearer than with transformers in BF16.
 */
mx_precisions mx_precisions_default(const mx_kernels *kernels) {
    const mx_product *bf16 = kernels->product[MX_MXFP4][MX_X_BF16], *fp32 = kernels->product[MX_MXFP4][MX_X_FP32];
    return every(&presets[bf16 && bf16->matmul != fp32->matmul ? MIXED : FP32]);
}
