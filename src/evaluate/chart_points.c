#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "evaluate/chart_private.h"

/* Points, each with its label beside it. Where labels go is searched: of many places around its point each takes the
 * one that costs least, given where all others are, several times over. */

enum { HEIGHT = 560, LEFT = 84, BOTTOM = 64, RADIUS = 5, ROOM = 20 };
static const double LABEL_MOST = 240, LABEL_HEIGHT = 15, CLOSE = 9; /* a label's nearest distance from its point */

typedef struct box {
    double x0, y0, x1, y1;
} box;

typedef struct placed {
    double x, y;         /* of the point */
    double high, low;    /* ends of its whisker */
    double width;        /* of the label */
    box label;           /* where it is */
    double far;          /* beyond CLOSE */
    double end_x, end_y; /* of its leader */
    bool there;
} placed;

typedef struct scene {
    const mx_chart_points *c;
    mx_chart_axis x, y;
    int points;
    placed at[MX_CHART_MOST];
    double standard; /* y of the line across; NAN: none */
} scene;

/* ---- geometry ---------------------------------------------------------------------------------------------------- */

static bool overlap(const box *a, const box *b, double air) {
    return a->x0 < b->x1 + air && b->x0 < a->x1 + air && a->y0 < b->y1 + air && b->y0 < a->y1 + air;
}

/* Does the line from (x0, y0) to (x1, y1) go through the box? (Liang and Barsky) */
static bool through(const box *b, double x0, double y0, double x1, double y1) {
    const double p[] = {x0 - x1, x1 - x0, y0 - y1, y1 - y0}, q[] = {x0 - b->x0, b->x1 - x0, y0 - b->y0, b->y1 - y0};
    double from = 0, to = 1;
    for (int i = 0; i < 4; i++) {
        if (p[i] == 0) {
            if (q[i] < 0) return false;
        } else if (p[i] < 0) {
            from = fmax(from, q[i] / p[i]);
        } else {
            to = fmin(to, q[i] / p[i]);
        }
    }
    return from <= to;
}

static double side(double ax, double ay, double bx, double by, double x, double y) {
    return (bx - ax) * (y - ay) - (by - ay) * (x - ax);
}

static bool cross(const placed *a, const placed *b) {
    return side(a->x, a->y, a->end_x, a->end_y, b->x, b->y) * side(a->x, a->y, a->end_x, a->end_y, b->end_x, b->end_y) <
               0 &&
           side(b->x, b->y, b->end_x, b->end_y, a->x, a->y) * side(b->x, b->y, b->end_x, b->end_y, a->end_x, a->end_y) <
               0;
}

static box around(double x, double y, double half) {
    return (box){x - half, y - half, x + half, y + half};
}

/* ---- places of labels -------------------------------------------------------------------------------------------- */

enum { DIRECTIONS = 24 };
static const double distances[] = {0, 6, 14, 24, 36, 50, 66, 84, 104, 128, 156, 190, 230, 280};

/* The label in direction `k`, its nearest edge CLOSE + `far` away. Direction 0 is to the right. */
static void put(placed *p, int k, double far) {
    const double angle = 2 * M_PI * k / DIRECTIONS, gap = CLOSE + far;
    const double x = p->x + cos(angle) * (p->width / 2 + gap), y = p->y - sin(angle) * (LABEL_HEIGHT / 2 + gap);
    p->label = (box){x - p->width / 2, y - LABEL_HEIGHT / 2, x + p->width / 2, y + LABEL_HEIGHT / 2};
    p->far = far;
    p->end_x = fmin(fmax(p->x, p->label.x0), p->label.x1);
    p->end_y = fmin(fmax(p->y, p->label.y0), p->label.y1);
    p->there = true;
}

static double cost_beside(const placed *p, const placed *other) {
    const box marker = around(other->x, other->y, RADIUS + 2), heart = around(other->x, other->y, RADIUS - 1);
    const box whisker = {other->x - 2, other->high, other->x + 2, other->low};
    double cost = 0;
    if (overlap(&p->label, &marker, 0)) cost += 400;
    if (overlap(&p->label, &whisker, 0)) cost += 60;
    if (through(&heart, p->x, p->y, p->end_x, p->end_y)) cost += 600;
    if (!other->there) return cost;
    if (overlap(&p->label, &other->label, 3)) cost += 1500;
    if (through(&other->label, p->x, p->y, p->end_x, p->end_y)) cost += 250;
    if (other->far > 0 && through(&p->label, other->x, other->y, other->end_x, other->end_y)) cost += 250;
    if (cross(p, other)) cost += 120;
    return cost;
}

static double cost_of(const scene *s, int index, int direction) {
    const placed *p = &s->at[index];
    const box own = {p->x - 2, p->high, p->x + 2, p->low};
    double cost = p->far + 0.4 * (direction % (DIRECTIONS / 4) != 0) + 0.2 * (direction != 0);
    const double outside = fmax(0, s->x.from - p->label.x0) + fmax(0, p->label.x1 - (MX_CHART_WIDTH - 8)) +
                           fmax(0, s->y.to - p->label.y0) + fmax(0, p->label.y1 - s->y.from);
    if (outside > 0) cost += 3000 + outside;
    if (p->low - p->high > 2 * RADIUS && overlap(&p->label, &own, 1)) cost += 60;
    if (isfinite(s->standard) && p->label.y0 < s->standard + 1 && p->label.y1 > s->standard - 1) cost += 30;
    for (int i = 0; i < s->points; i++)
        if (i != index) cost += cost_beside(p, &s->at[i]);
    return cost;
}

static void place(scene *s, int index) {
    placed *p = &s->at[index], best = *p;
    double least = INFINITY;
    for (size_t d = 0; d < sizeof distances / sizeof *distances; d++)
        for (int k = 0; k < DIRECTIONS; k++) {
            put(p, k, distances[d]);
            const double cost = cost_of(s, index, k);
            if (cost < least) {
                least = cost;
                best = *p;
            }
        }
    *p = best;
}

static void place_all(scene *s) {
    enum { PASSES = 8 };
    bool moved = true;
    for (int pass = 0; pass < PASSES && moved; pass++) {
        moved = false;
        for (int i = 0; i < s->points; i++) {
            const box before = s->at[i].label;
            place(s, i);
            moved |= before.x0 != s->at[i].label.x0 || before.y0 != s->at[i].label.y0;
        }
    }
}

/* ---- drawing ----------------------------------------------------------------------------------------------------- */

/* From least to most with some air, on a logarithmic axis by factors. `standard`: a value that shall be in sight. */
static void set_range(mx_chart_axis *a, double low, double high, double air) {
    if (a->log) {
        const double factor = fmax(pow(high / low, air), 1.08);
        a->low = low / factor;
        a->high = high * factor;
        return;
    }
    const double span = fmax(high - low, 1e-3 * fmax(fabs(high), 1e-6));
    a->low = low - air * span;
    a->high = high + air * span;
}

/* Sizes of weights that people know, powers of two before others, with room for their labels; false: there are less
 * than two. */
static bool size_ticks(mx_chart_axis *a) {
    static const double sizes[] = {1, 2, 4, 8, 16, 32, 3, 6, 12, 24, 5, 10, 20, 7, 14, 1.5, 2.5, 3.5, 4.5};
    a->ticks = 0;
    a->decimals = -1;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        bool room = sizes[i] >= a->low && sizes[i] <= a->high && a->ticks < MX_CHART_TICKS;
        for (int k = 0; k < a->ticks && room; k++)
            room = fabs(mx_chart_at(a, sizes[i]) - mx_chart_at(a, a->tick[k])) >= 32;
        if (room) a->tick[a->ticks++] = sizes[i];
    }
    return a->ticks > 1;
}

static void set_axes(scene *s, double top) {
    const mx_chart_points *c = s->c;
    double x0 = INFINITY, x1 = 0, y0 = INFINITY, y1 = -INFINITY;
    for (int i = 0; i < s->points; i++) {
        const mx_chart_point *p = &c->point[i];
        const double error = p->error > 0 && isfinite(p->error) ? p->error : 0;
        x0 = fmin(x0, p->x);
        x1 = fmax(x1, p->x);
        if (c->log_y && !(p->y > 0)) continue;
        y0 = fmin(y0, c->log_y && p->y - error <= 0 ? p->y / 2 : p->y - error);
        y1 = fmax(y1, p->y + error);
    }
    if (!(y0 <= y1)) y0 = y1 = 1;
    s->x = (mx_chart_axis){.log = true, .from = LEFT, .to = MX_CHART_WIDTH - MX_CHART_EDGE - ROOM};
    s->y = (mx_chart_axis){.log = c->log_y, .from = HEIGHT - BOTTOM, .to = top + 6};
    set_range(&s->x, x0, x1, 0.06);
    set_range(&s->y, y0, y1, 0.08);
    if (!size_ticks(&s->x)) mx_chart_ticks(&s->x, 12);
    mx_chart_ticks(&s->y, 8);
}

static double y_at(const scene *s, double y) {
    if (s->c->log_y && !(y > 0)) return s->y.from;
    return fmin(fmax(mx_chart_at(&s->y, y), s->y.to), s->y.from);
}

static void set_points(scene *s) {
    s->standard = NAN;
    for (int i = 0; i < s->points; i++) {
        const mx_chart_point *p = &s->c->point[i];
        const double error = p->error > 0 && isfinite(p->error) ? p->error : 0;
        s->at[i] = (placed){.x = mx_chart_at(&s->x, p->x),
                            .y = y_at(s, p->y),
                            .high = y_at(s, p->y + error),
                            .low = y_at(s, p->y - error),
                            .width = fmin(mx_chart_text_width(p->label, MX_CHART_TEXT), LABEL_MOST)};
        if (p->standard && !(s->c->log_y && !(p->y > 0))) s->standard = s->at[i].y;
    }
}

static bool draw_axes(mx_bytes *out, const scene *s) {
    const double left = s->x.from, right = MX_CHART_WIDTH - MX_CHART_EDGE, top = s->y.to - 6, bottom = s->y.from;
    char text[32];
    bool ok = true;
    for (int i = 0; i < s->y.ticks && ok; i++) {
        const double y = mx_chart_at(&s->y, s->y.tick[i]);
        mx_chart_tick_text(&s->y, i, text);
        ok = mx_bytes_addf(out, "<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/>\n", left, y, right) &&
             mx_chart_text(out, "quiet", "end", left - 8, y + 4, 12, 0, text);
    }
    for (int i = 0; i < s->x.ticks && ok; i++) {
        const double x = mx_chart_at(&s->x, s->x.tick[i]);
        mx_chart_tick_text(&s->x, i, text);
        ok = mx_bytes_addf(out, "<path class=\"grid\" d=\"M%.1f %.1fV%.1f\"/>\n", x, top, bottom) &&
             mx_chart_text(out, "quiet", "middle", x, bottom + 18, 12, 0, text);
    }
    return ok && mx_bytes_addf(out, "<path class=\"axis\" d=\"M%.1f %.1fV%.1fH%.1f\"/>\n", left, top, bottom, right) &&
           mx_chart_text(out, "quiet", "middle", (left + right) / 2, bottom + 42, 12, 0, s->c->x_title) &&
           mx_bytes_addf(out, "<g transform=\"translate(%d %.1f) rotate(-90)\">", MX_CHART_EDGE + 4,
                         (top + bottom) / 2) &&
           mx_chart_text(out, "quiet", "middle", 0, 0, 12, 0, s->c->y_title) && mx_bytes_add_string(out, "</g>\n");
}

/* Is there one that is as far left and as low, and in one of both further? */
static bool beaten(const mx_chart_points *c, int points, int index) {
    const mx_chart_point *p = &c->point[index];
    for (int i = 0; i < points; i++) {
        const mx_chart_point *q = &c->point[i];
        if (q->x <= p->x && q->y <= p->y && (q->x < p->x || q->y < p->y || i < index)) return true;
    }
    return false;
}

static const char FRONTIER[] = "no smaller one is better";

static bool draw_frontier(mx_bytes *out, const scene *s) {
    int order[MX_CHART_MOST], count = 0;
    for (int i = 0; i < s->points; i++) {
        if (beaten(s->c, s->points, i)) continue;
        int at = count++;
        for (; at > 0 && s->c->point[order[at - 1]].x > s->c->point[i].x; at--) order[at] = order[at - 1];
        order[at] = i;
    }
    bool ok = count < 2 || mx_bytes_add_string(out, "<path class=\"frontier\" d=\"");
    for (int i = 0; i < count && count > 1 && ok; i++)
        ok = mx_bytes_addf(out, "%c%.1f %.1f", i ? 'L' : 'M', s->at[order[i]].x, s->at[order[i]].y);
    if (!ok || count < 2) return ok;
    const double right = MX_CHART_WIDTH - MX_CHART_EDGE, y = s->y.from + 42; /* what it says, beside the axis's title */
    const double left = right - mx_chart_text_width(FRONTIER, 12) - 34;
    return mx_bytes_addf(out, "\"/>\n<path class=\"frontier\" d=\"M%.1f %.1fh26\"/>\n", left, y - 4) &&
           mx_chart_text(out, "quiet", "start", left + 34, y, 12, 0, FRONTIER);
}

static bool draw_whiskers(mx_bytes *out, const scene *s) {
    bool ok = true;
    for (int i = 0; i < s->points && ok; i++) {
        const placed *p = &s->at[i];
        if (p->low - p->high < 1) continue;
        ok = mx_bytes_addf(out, "<path class=\"whisker\" d=\"M%.1f %.1fV%.1fM%.1f %.1fh8M%.1f %.1fh8\"/>\n", p->x,
                           p->high, p->low, p->x - 4, p->high, p->x - 4, p->low);
    }
    return ok;
}

/* Leaders first, so that no line lies on a label. */
static bool draw_points(mx_bytes *out, const scene *s) {
    bool ok = true;
    for (int i = 0; i < s->points && ok; i++) {
        const placed *p = &s->at[i];
        if (p->far >= 6)
            ok = mx_bytes_addf(out, "<path class=\"leader\" d=\"M%.1f %.1fL%.1f %.1f\"/>\n", p->x, p->y, p->end_x,
                               p->end_y);
    }
    for (int i = 0; i < s->points && ok; i++) {
        const placed *p = &s->at[i];
        const mx_chart_point *q = &s->c->point[i];
        const bool ring = q->standard || (s->c->log_y && !(q->y > 0));
        ok = mx_bytes_addf(out, "<circle class=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"%d\"/>\n", ring ? "ring" : "a", p->x,
                           p->y, RADIUS);
    }
    for (int i = 0; i < s->points && ok; i++) {
        const placed *p = &s->at[i];
        ok = mx_chart_text(out, s->c->point[i].standard ? "halo strong" : "halo", "middle",
                           (p->label.x0 + p->label.x1) / 2, p->label.y1 - 3.5, MX_CHART_TEXT, LABEL_MOST,
                           s->c->point[i].label);
    }
    return ok;
}

bool mx_chart_draw_points(mx_bytes *out, const mx_chart_points *c) {
    scene *s = calloc(1, sizeof *s);
    double top = 0;
    if (!s) return false;
    s->c = c;
    s->points = c->points < MX_CHART_MOST ? c->points : MX_CHART_MOST;
    bool ok = mx_chart_head(out, c->title, c->subtitle, HEIGHT, &top);
    set_axes(s, top);
    set_points(s);
    place_all(s);
    ok = ok && draw_axes(out, s);
    if (ok && isfinite(s->standard))
        ok = mx_bytes_addf(out, "<path class=\"standard\" d=\"M%.1f %.1fH%d\"/>\n", s->x.from, s->standard,
                           MX_CHART_WIDTH - MX_CHART_EDGE);
    if (ok && c->frontier) ok = draw_frontier(out, s);
    ok = ok && draw_whiskers(out, s) && draw_points(out, s) && mx_chart_tail(out);
    free(s);
    return ok;
}
