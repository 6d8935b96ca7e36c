#include <math.h>
#include <stdio.h>
#include <string.h>

#include "evaluate/chart_private.h"

/* Bars from the left, a pair (or one) for each label; the labels stand before them, so that nothing can overlap. */

enum { BAR = 14, BETWEEN = 2, APART = 16, LEGEND = 26, BOTTOM = 56 };
static const double LABEL_MOST = 270, LABEL_LEAST = 60, BOLD = 1.1; /* how much wider bold text is */
static const char *const classes[MX_CHART_SERIES] = {"a", "b"};

static int series_of(const mx_chart_bars *c) {
    return c->series[1] ? 2 : 1;
}

static double row_height(const mx_chart_bars *c) {
    return series_of(c) * (BAR + BETWEEN) + APART;
}

static bool legend(mx_bytes *out, const mx_chart_bars *c, double y) {
    double x = MX_CHART_EDGE;
    bool ok = true;
    for (int s = 0; s < series_of(c) && ok; s++) {
        ok = mx_bytes_addf(out, "<rect class=\"%s\" x=\"%.1f\" y=\"%.1f\" width=\"12\" height=\"12\" rx=\"2\"/>\n",
                           classes[s], x, y) &&
             mx_chart_text(out, "", "start", x + 18, y + 10.5, MX_CHART_TEXT, 0, c->series[s]);
        x += 18 + mx_chart_text_width(c->series[s], MX_CHART_TEXT) + 24;
    }
    return ok;
}

static bool grid(mx_bytes *out, const mx_chart_bars *c, const mx_chart_axis *x, double top, double bottom) {
    bool ok = true;
    char text[32];
    for (int i = 0; i < x->ticks && ok; i++) {
        const double at = mx_chart_at(x, x->tick[i]);
        mx_chart_tick_text(x, i, text);
        if (c->line > 0) strcat(text, "×");
        ok = mx_bytes_addf(out, "<path class=\"%s\" d=\"M%.1f %.1fV%.1f\"/>\n", i ? "grid" : "axis", at, top, bottom) &&
             mx_chart_text(out, "quiet", "middle", at, bottom + 18, 12, 0, text);
    }
    if (ok && c->line > 0)
        ok = mx_bytes_addf(out, "<path class=\"standard\" d=\"M%.1f %.1fV%.1f\"/>\n", mx_chart_at(x, c->line), top,
                           bottom);
    return ok && mx_chart_text(out, "quiet", "middle", (x->from + x->to) / 2, bottom + 38, 12, 0, c->x_title);
}

static bool bar(mx_bytes *out, const mx_chart_bars *c, const mx_chart_axis *x, const mx_chart_bar *b, double top) {
    const int series = series_of(c);
    bool ok = mx_chart_text(out, "strong", "end", x->from - 10,
                            top + (series * (BAR + BETWEEN) - BETWEEN) / 2.0 + MX_CHART_TEXT * 0.36, MX_CHART_TEXT,
                            (x->from - 10 - MX_CHART_EDGE) / BOLD + 0.5, b->label);
    for (int s = 0; s < series && ok; s++) {
        const double y = top + s * (BAR + BETWEEN);
        if (!(b->value[s] > 0)) {
            ok = mx_chart_text(out, "quiet", "start", x->from + 8, y + BAR - 3, 12, 0, "–");
            continue;
        }
        const double end = mx_chart_at(x, b->value[s]);
        ok = mx_bytes_addf(out, "<rect class=\"%s\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%d\"/>\n", classes[s],
                           x->from, y, fmax(1, end - x->from), BAR) &&
             mx_chart_text(out, "halo", "start", end + 6, y + BAR - 3, 12, 0, b->text[s]);
    }
    return ok;
}

/* Room for the longest label on the left, for the longest text behind a bar on the right. */
static mx_chart_axis axis_of(const mx_chart_bars *c, int bars) {
    double label = LABEL_LEAST, behind = 0, high = c->line;
    for (int i = 0; i < bars; i++) {
        label = fmax(label, mx_chart_text_width(c->bar[i].label, MX_CHART_TEXT) * BOLD);
        for (int s = 0; s < series_of(c); s++) {
            behind = fmax(behind, mx_chart_text_width(c->bar[i].text[s], 12));
            if (isfinite(c->bar[i].value[s])) high = fmax(high, c->bar[i].value[s]);
        }
    }
    if (label > LABEL_MOST) label = LABEL_MOST;
    mx_chart_axis x = {.high = high > 0 ? high * 1.02 : 1,
                       .from = MX_CHART_EDGE + label + 10,
                       .to = MX_CHART_WIDTH - MX_CHART_EDGE - 6 - behind};
    mx_chart_ticks(&x, 8);
    return x;
}

bool mx_chart_draw_bars(mx_bytes *out, const mx_chart_bars *c) {
    const int bars = c->bars < MX_CHART_MOST ? c->bars : MX_CHART_MOST;
    const mx_chart_axis x = axis_of(c, bars);
    double top = 0;
    bool ok = mx_chart_head(NULL, c->title, c->subtitle, 0, &top);
    const double first = top + LEGEND + APART / 2.0, bottom = first + bars * row_height(c) - APART / 2.0;
    ok = ok && mx_chart_head(out, c->title, c->subtitle, bottom + BOTTOM, &top) && legend(out, c, top) &&
         grid(out, c, &x, top + LEGEND, bottom);
    for (int i = 0; i < bars && ok; i++) ok = bar(out, c, &x, &c->bar[i], first + i * row_height(c));
    return ok && mx_chart_tail(out);
}
