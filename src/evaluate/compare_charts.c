#include <math.h>
#include <stdio.h>
#include <string.h>

#include "evaluate/chart.h"
#include "evaluate/compare.h"

/* What the pictures of a comparison show. */

static const char bits_title[] = "bits per weight, of all tensors (logarithmic)";

static bool has_place(const mx_compare_model *m) {
    return m->evaluated && mx_compare_bits(m) > 0;
}

/* The text and how it was scored: the rest of each subtitle. */
static void describe(const mx_compare *c, const char *before, char out[static 1200]) {
    const mx_evaluation *e = NULL;
    char tokens[32];
    for (int i = 0; i < c->models && !e; i++)
        if (has_place(&c->model[i])) e = &c->model[i].evaluation;
    if (e)
        snprintf(out, 1200, "%s%.300s, %s token%s; %s", before, c->text, mx_with_commas(e->tokens, tokens),
                 e->tokens == 1 ? "" : "s", e->protocol);
    else
        snprintf(out, 1200, "%s", before);
}

bool mx_compare_chart_perplexity(mx_bytes *out, const mx_compare *c, bool *drawn) {
    mx_chart_point point[MX_COMPARE_MOST];
    char subtitle[1200];
    int points = 0;
    double low = INFINITY, high = 0;
    bool whiskers = false;
    for (int i = 0; i < c->models && points < MX_COMPARE_MOST; i++) {
        const mx_compare_model *m = &c->model[i];
        const mx_evaluation *e = &m->evaluation;
        if (!has_place(m) || !isfinite(e->perplexity) || !(e->perplexity > 0)) continue;
        const double error = e->has_base && isfinite(e->delta_stderr) ? e->delta_stderr : 0;
        point[points++] = (mx_chart_point){m->label, mx_compare_bits(m), e->perplexity, error, i == 0};
        whiskers |= error > 0;
        low = fmin(low, e->perplexity);
        high = fmax(high, e->perplexity);
    }
    *drawn = points > 0;
    if (!points) return true;
    describe(c,
             whiskers ? "Lower is better; whiskers: standard error of the difference to the first. Text: "
                      : "Lower is better. Text: ",
             subtitle);
    return mx_chart_draw_points(
        out, &(mx_chart_points){.title = "Perplexity by size of the weights",
                                .subtitle = subtitle,
                                .x_title = bits_title,
                                .y_title = high > 4 * low ? "perplexity (logarithmic)" : "perplexity",
                                .log_y = high > 4 * low,
                                .frontier = true,
                                .point = point,
                                .points = points});
}

bool mx_compare_chart_kl(mx_bytes *out, const mx_compare *c, bool *drawn) {
    mx_chart_point point[MX_COMPARE_MOST];
    char subtitle[1200], before[400];
    int points = 0;
    bool any = false, zeros = false, whole = true;
    for (int i = 1; i < c->models && points < MX_COMPARE_MOST; i++) {
        const mx_compare_model *m = &c->model[i];
        const mx_evaluation *e = &m->evaluation;
        if (!has_place(m) || !e->has_base || !isfinite(e->kl_mean)) continue;
        const double error = isfinite(e->kl_stderr) ? e->kl_stderr : 0;
        point[points++] = (mx_chart_point){m->label, mx_compare_bits(m), e->kl_mean, error, false};
        any |= e->kl_mean > 0;
        zeros |= !(e->kl_mean > 0);
        whole &= e->base_whole;
    }
    *drawn = any;
    if (!any) return true;
    snprintf(before, sizeof before,
             "How far each model's predictions are from those of %.100s; lower is better%s; whiskers: standard "
             "error%s. Text: ",
             c->model[0].label, whole ? "" : "; lower bounds, of its likeliest tokens",
             zeros ? "; rings on the axis: no distance" : "");
    describe(c, before, subtitle);
    return mx_chart_draw_points(out, &(mx_chart_points){.title = "KL divergence by size of the weights",
                                                        .subtitle = subtitle,
                                                        .x_title = bits_title,
                                                        .y_title = "mean KL, nats a token (logarithmic)",
                                                        .log_y = true,
                                                        .frontier = true,
                                                        .point = point,
                                                        .points = points});
}

static void set_bar(mx_chart_bar *bar, int series, double speed, double first) {
    bar->value[series] = first > 0 && speed > 0 ? speed / first : 0;
    if (bar->value[series] > 0)
        snprintf(bar->text[series], sizeof bar->text[series], "%.2f× (%.*f/s)", bar->value[series],
                 speed >= 99.95   ? 0
                 : speed >= 9.995 ? 1
                                  : 2,
                 speed);
}

bool mx_compare_chart_speed(mx_bytes *out, const mx_compare *c, bool *drawn) {
    mx_chart_bar bar[MX_COMPARE_MOST];
    char subtitle[800], title[300];
    int bars = 0;
    const mx_compare_model *first = &c->model[0];
    const bool prompt = c->prompt_tokens && first->prompt.median > 0,
               decode = c->decode_tokens && first->decode.median > 0;
    *drawn = c->speed && (prompt || decode);
    if (!*drawn) return true;
    for (int i = 0; i < c->models && bars < MX_COMPARE_MOST; i++) {
        const mx_compare_model *m = &c->model[i];
        if (!(m->prompt.median > 0) && !(m->decode.median > 0)) continue;
        mx_chart_bar *b = &bar[bars++];
        *b = (mx_chart_bar){.label = m->label};
        if (decode) set_bar(b, 0, m->decode.median, first->decode.median);
        if (prompt) set_bar(b, decode ? 1 : 0, m->prompt.median, first->prompt.median);
    }
    snprintf(title, sizeof title, "Speed relative to %.200s", first->label);
    char threads[40] = "";
    if (!c->gpu) snprintf(threads, sizeof threads, "%d thread%s, ", c->threads, c->threads > 1 ? "s" : "");
    snprintf(subtitle, sizeof subtitle,
             "Tokens/s, medians of %s%s%s, %d round%s%s; %.200s, %s%s kernels, precision %.100s, KV cache %s",
             prompt ? "prompts" : "", prompt && decode ? " and " : "", decode ? "windows of decoded tokens" : "",
             c->rounds, c->rounds > 1 ? "s" : "",
             c->together ? " in which every model had its turn" : ", one model after the other", c->machine, threads,
             c->tier, c->precision, c->kv);
    char names[2][60];
    snprintf(names[0], sizeof names[0], "decode (%d tokens one by one)", c->decode_tokens);
    snprintf(names[1], sizeof names[1], "prompt (%d tokens)", c->prompt_tokens);
    return mx_chart_draw_bars(
        out, &(mx_chart_bars){.title = title,
                              .subtitle = subtitle,
                              .x_title = "times as fast; higher is better",
                              .series = {decode ? names[0] : names[1], decode && prompt ? names[1] : NULL},
                              .line = 1,
                              .bar = bar,
                              .bars = bars});
}
