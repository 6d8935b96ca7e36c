/* What a layout cannot say of a configuration. Each layout's reader takes something instead; a model that means
 * something else would silently become another one, so that it is only written when that is wanted. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "convert/origin.h"

typedef struct losses {
    char text[700];
    int count;
} losses;

__attribute__((format(printf, 2, 3))) static void lost(losses *l, const char *format, ...) {
    const size_t used = strlen(l->text);
    va_list list;
    if (l->count++ && used + 3 < sizeof l->text) memcpy(l->text + used, "; ", 3);
    va_start(list, format);
    vsnprintf(l->text + strlen(l->text), sizeof l->text - strlen(l->text), format, list);
    va_end(list);
}

static bool is_float(double x) {
    return (double)(float)x == x;
}

/* What none of the three has a word for. */
static void common(losses *l, const mx_config *c) {
    bool alternates = true;
    for (int i = 0; i < c->layers; i++) alternates &= c->sliding[i] == (i % 2 == 0);
    if (!alternates) lost(l, "layer_types (readers take every second layer, from the first, as sliding)");
    if (c->swiglu_alpha != 1.702f) lost(l, "swiglu_alpha %.9g (readers take 1.702)", (double)c->swiglu_alpha);
    if (c->yarn && c->yarn_truncate) lost(l, "rope_scaling.truncate true (readers take false)");
    if (c->temperature != 1 || c->top_p != 1 || c->sample_top_k)
        lost(l, "generation_config.json's sampling (temperature %g, top_p %g, top_k %d)", (double)c->temperature,
             (double)c->top_p, c->sample_top_k);
}

static void of_gguf(losses *l, const mx_config *c) {
    common(l, c);
    if (c->swiglu_limit != 7.0f) lost(l, "swiglu_limit %g (readers take 7)", (double)c->swiglu_limit);
    if (c->yarn_attention_factor > 0) lost(l, "rope_scaling.attention_factor %g", c->yarn_attention_factor);
    if (!is_float(c->rope_theta)) lost(l, "rope_theta %.17g (as F32)", c->rope_theta);
    if (c->yarn && !is_float(c->yarn_factor)) lost(l, "rope_scaling.factor %.17g (as F32)", c->yarn_factor);
    if (c->yarn && (!is_float(c->yarn_beta_fast) || !is_float(c->yarn_beta_slow)))
        lost(l, "rope_scaling.beta_fast and beta_slow (as F32)");
}

/* OpenAI's two. The ends of an answer are harmony's there. */
static void of_openai(losses *l, const mx_config *c) {
    common(l, c);
    int wanted = 0, there = 0;
    for (int i = 0; i < c->eos_count; i++) there += c->eos[i] == 200002 || c->eos[i] == 199999;
    wanted = c->vocab > 200002 ? 2 : c->vocab > 199999 ? 1 : 0;
    if (there != wanted || there != c->eos_count) lost(l, "eos_token_id (readers take harmony's 200002 and 199999)");
    const double positions = c->yarn ? c->yarn_original_positions * c->yarn_factor : c->max_positions;
    if (positions != c->max_positions)
        lost(l, "max_position_embeddings %d (readers take the original length times the factor, %.0f)",
             c->max_positions, positions);
    if (c->yarn && c->yarn_factor <= 1) lost(l, "YaRN with the factor %g", c->yarn_factor);
}

static void of_original(losses *l, const mx_config *c) {
    of_openai(l, c);
    if (c->rms_eps != 1e-5f) lost(l, "rms_norm_eps %.9g (readers take 1e-5)", (double)c->rms_eps);
    if (c->yarn_attention_factor > 0) lost(l, "rope_scaling.attention_factor %g", c->yarn_attention_factor);
}

static void of_metal(losses *l, const mx_config *c) {
    of_openai(l, c);
    if (!is_float(c->rope_theta)) lost(l, "rope_theta %.17g (as F32)", c->rope_theta);
    if (c->yarn && 1 / (double)(float)(1 / c->yarn_factor) != c->yarn_factor)
        lost(l, "rope_scaling.factor %.17g (as 1 / F32)", c->yarn_factor);
    if (c->yarn && (c->yarn_beta_fast != round(c->yarn_beta_fast) || c->yarn_beta_slow != round(c->yarn_beta_slow)))
        lost(l, "rope_scaling.beta_fast and beta_slow (nearly: the header has what comes of them, as F32)");
    if (!is_float(c->yarn_attention_factor)) lost(l, "rope_scaling.attention_factor (as F32)");
}

/* What a layout has no room for at all. */
static mx_status check_kind(const mx_origin *o, mx_layout to) {
    const mx_config *c = &o->config;
    const char *problem = NULL;
    const mx_tensor *quantized = mx_checkpoint_quantized(o->ck);
    if (quantized)
        return mx_fail(
            o->error, MX_UNSUPPORTED,
            "%s: %s is quantised (%s) in a way that the layout %s cannot hold: convert the model that it was "
            "quantised from",
            quantized->file, quantized->name, quantized->dtype_name, mx_layout_name(to));
    if (!c->attention_bias) problem = "attention without biases";
    if (to != MX_LAYOUT_GGUF && c->tied_embeddings) problem = "an embedding that is lm_head as well";
    if (to != MX_LAYOUT_GGUF && !o->mxfp4) problem = "experts that are not MXFP4";
    if (to == MX_LAYOUT_METAL && c->head_dim != 64) problem = "heads of another size than 64";
    if (!problem) return MX_OK;
    return mx_fail(o->error, MX_UNSUPPORTED, "%s: has %s, which the layout %s cannot hold", o->place.path, problem,
                   mx_layout_name(to));
}

mx_status mx_origin_check_config(const mx_origin *o, mx_layout to) {
    losses l = {0};
    if (to == MX_LAYOUT_HF) return MX_OK;
    mx_status status = check_kind(o, to);
    if (status) return status;
    if (to == MX_LAYOUT_GGUF) of_gguf(&l, &o->config);
    if (to == MX_LAYOUT_ORIGINAL) of_original(&l, &o->config);
    if (to == MX_LAYOUT_METAL) of_metal(&l, &o->config);
    if (!l.count) return MX_OK;
    if (o->options->allow_loss) {
        mx_log(MX_LOG_WARNING, "%s: the layout %s cannot say: %s", o->place.path, mx_layout_name(to), l.text);
        return MX_OK;
    }
    return mx_fail(o->error, MX_INVALID_ARGUMENT,
                   "%s: the layout %s cannot say: %s; --allow-loss converts it all the same", o->place.path,
                   mx_layout_name(to), l.text);
}
