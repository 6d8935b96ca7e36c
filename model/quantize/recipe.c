/* The recipes by name. */
#include <stdio.h>
#include <string.h>

#include "model/quantize/quantize.h"

#define NAMES "ocp, overflow, search, weighted, keep, four-over-six, tensor-search, gptq and hadamard, joined by +"

/* clang-format off */
/* Each with its source in a line, which `mxrun quantize --help` and docs/quantized.md have, too:
 *
 * ocp            OCP MX v1.0, section 6.3: 2^(floor(log2 largest) - emax), elements to nearest, saturating. NVFP4:
 *                largest / 6 as E4M3, the tensor's scale largest / (6 * 448); FP8, integers: largest / largest element
 *                (NVIDIA, compressed-tensors: the same numbers)
 * overflow       arXiv 2603.08713: one more where the largest would round beyond the largest element (E8M0 as
 *                compressed-tensors; integers and FP8, whose largest never does: as ocp)
 * search         arXiv 2606.07618: least squared error, of exponents within +-2 of ocp's; of E4M3's codes -4 .. +7 from
 *                its; of 11 scales of integers and FP8 down to 0.7 of its
 * weighted       llama.cpp's importance matrix: search with squares times the mean of x^2 of their column
 * keep           our own: MXFP4 that stays MXFP4 is copied, all else is ocp's
 * four-over-six  arXiv 2512.02010: an NVFP4 block's largest becomes 6 or 4, whichever has the less error; the tensor's
 *                scale is largest / (6 * 256), so that the block of the largest has the choice, too
 * tensor-search  our own: NVFP4's scale of the tensor of the least error, of largest / (6 * M), M from 448 down to 224
 * gptq           arXiv 2210.17323, a block's scales chosen when its columns are reached, as MR-GPTQ does (2509.23202)
 * hadamard       arXiv 2509.23202: rotation by blocks, folded into the neighbours by the caller
 * amxfp4         (a format) arXiv 2411.09909: two scales a block, of its positive and of its negative numbers */
/* clang-format on */
static const char *const rules[] = {[MX_RULE_OCP] = "ocp",
                                    [MX_RULE_OVERFLOW] = "overflow",
                                    [MX_RULE_SEARCH] = "search",
                                    [MX_RULE_WEIGHTED] = "weighted",
                                    [MX_RULE_KEEP] = "keep"};
enum { RULES = sizeof rules / sizeof *rules };

static bool is(const char *word, int length, const char *name) {
    return (int)strlen(name) == length && !memcmp(word, name, (size_t)length);
}

/* One word of a recipe. false: no such one. */
static bool take(const char *word, int length, mx_quantize_recipe *out, bool *ruled, bool *twice) {
    int rule = is(word, length, "nearest") ? MX_RULE_OCP : -1;
    for (int i = 0; i < RULES; i++)
        if (is(word, length, rules[i])) rule = i;
    if (rule >= 0) {
        *twice = *ruled;
        *ruled = true;
        out->rule = (mx_scale_rule)rule;
        return true;
    }
    bool *flag = is(word, length, "four-over-six")   ? &out->four_over_six
                 : is(word, length, "tensor-search") ? &out->tensor_search
                 : is(word, length, "gptq")          ? &out->gptq
                 : is(word, length, "hadamard")      ? &out->hadamard
                                                     : NULL;
    if (!flag) return false;
    *twice = *flag;
    *flag = true;
    return true;
}

mx_status mx_quantize_recipe_parse(const char *text, mx_quantize_recipe *out, mx_error *error) {
    bool ruled = false;
    *out = (mx_quantize_recipe){.rule = MX_RULE_OCP};
    for (const char *at = text;; at++) {
        const char *end = strchr(at, '+');
        const int length = (int)(end ? (size_t)(end - at) : strlen(at));
        bool twice = false;
        if (!take(at, length, out, &ruled, &twice))
            return mx_fail(error, MX_INVALID_ARGUMENT, "%.80s: no recipe is called \"%.*s\"; there are %s", text,
                           length < 40 ? length : 40, at, NAMES);
        if (twice)
            return mx_fail(error, MX_INVALID_ARGUMENT,
                           "%.80s: \"%.*s\" is one too many: ocp, overflow, search, weighted and keep exclude each "
                           "other, and nothing is named twice",
                           text, length, at);
        if (!end) break;
        at = end;
    }
    if (out->rule == MX_RULE_KEEP && (out->four_over_six || out->tensor_search || out->gptq || out->hadamard))
        return mx_fail(error, MX_INVALID_ARGUMENT, "%.80s: what is kept is not changed: keep stands alone", text);
    return MX_OK;
}

void mx_quantize_recipe_name(char out[MX_RECIPE_NAME], const mx_quantize_recipe *r) {
    snprintf(out, MX_RECIPE_NAME, "%s%s%s%s%s", r->hadamard ? "hadamard+" : "", rules[r->rule],
             r->four_over_six ? "+four-over-six" : "", r->tensor_search ? "+tensor-search" : "",
             r->gptq ? "+gptq" : "");
}

mx_status mx_quantize_recipe_check(const mx_quantize_recipe *r, const mx_form *form, mx_error *error) {
    char name[MX_FORM_NAME], recipe[MX_RECIPE_NAME];
    mx_form_name(name, form);
    mx_quantize_recipe_name(recipe, r);
    const bool nvfp4 = form->format == MX_E2M1 && form->blocks.scale == MX_SCALE_E4M3;
    if (r->four_over_six && !nvfp4)
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "%s: four-over-six chooses between scales that are no powers of two: it is for nvfp4, not for "
                       "%s: a line of "
                       "--rules \"GLOB %s RECIPE\" gives those matrices another recipe",
                       recipe, name, name);
    if (r->tensor_search && !(nvfp4 && form->post == MX_POST_TENSOR))
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "%s: tensor-search is for formats with scales of blocks and of the tensor, nvfp4, not for %s: a "
                       "line of --rules \"GLOB %s RECIPE\" gives those matrices another recipe",
                       recipe, name, name);
    if (r->gptq && form->format != MX_E2M1 && !mx_is_integer_format(form->format))
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "%s: gptq is for formats of 4 bits and for integers, not for %s: a line of --rules \"GLOB %s "
                       "RECIPE\" gives those matrices another recipe",
                       recipe, name, name);
    if (!(r->damp >= 0 && r->damp <= 1))
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s: the damping is %g, expected 0 (0.01) to 1", recipe, r->damp);
    return MX_OK;
}
