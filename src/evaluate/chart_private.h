#ifndef MX_EVALUATE_CHART_PRIVATE_H
#define MX_EVALUATE_CHART_PRIVATE_H

#include "evaluate/chart.h"

/* What both kinds of pictures have in common. Lengths are SVG's pixels. */

enum { MX_CHART_WIDTH = 860, MX_CHART_EDGE = 24, MX_CHART_TEXT = 13 }; /* margin; height of ordinary text */

/* About as wide as a reader's sans-serif will draw it, a little more rather than less. */
double mx_chart_text_width(const char *text, double size);

/* <text> with an anchor of "start", "middle" or "end"; cut with an ellipsis where it is wider than `most` (0: never).
 */
bool mx_chart_text(mx_bytes *out, const char *class, const char *anchor, double x, double y, double size, double most,
                   const char *text);

/* Everything up to the drawing itself: head, colours, background, title and subtitle, which may take several lines.
 * *top: where there is room below them. `height` comes out by mx_chart_head(NULL, ...), which only measures. */
bool mx_chart_head(mx_bytes *out, const char *title, const char *subtitle, double height, double *top);
bool mx_chart_tail(mx_bytes *out);

/* Places on an axis. */
enum { MX_CHART_TICKS = 24 };
typedef struct mx_chart_axis {
    double low, high; /* what the axis shows */
    bool log;
    double from, to; /* pixels of low and high */
    double tick[MX_CHART_TICKS];
    int ticks, decimals; /* of their labels; -1: as many as each needs */
} mx_chart_axis;
double mx_chart_at(const mx_chart_axis *a, double value);
/* Ticks at round numbers, no more than `most`. */
void mx_chart_ticks(mx_chart_axis *a, int most);
void mx_chart_tick_text(const mx_chart_axis *a, int tick, char out[static 32]);

#endif
