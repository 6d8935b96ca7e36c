#ifndef MX_EVALUATE_CHART_H
#define MX_EVALUATE_CHART_H

#include <stdbool.h>

#include "base/bytes.h"

/* Pictures of results as SVG: one file, no script, nothing fetched; light, and dark where the reader's system is. Text
 * is UTF-8; what XML cannot hold is left out. */

enum { MX_CHART_MOST = 64 }; /* points or bars; more are not drawn */

/* Does a text begin as these pictures do? */
bool mx_chart_is_one(const char *start);

/* ---- points with a label each ------------------------------------------------------------------------------------ */

typedef struct mx_chart_point {
    const char *label;
    double x, y;   /* finite; x > 0 */
    double error;  /* half the length of its whisker; 0: none */
    bool standard; /* what the others are measured by: drawn as a ring, with a line across at its y */
} mx_chart_point;

typedef struct mx_chart_points {
    const char *title, *subtitle, *x_title, *y_title;
    bool log_y;    /* points of y <= 0 then lie on the axis, as rings */
    bool frontier; /* a line through those of which none is lower and further left */
    const mx_chart_point *point;
    int points;
} mx_chart_points;

bool mx_chart_draw_points(mx_bytes *out, const mx_chart_points *c); /* false: no memory */

/* ---- bars in pairs ----------------------------------------------------------------------------------------------- */

enum { MX_CHART_SERIES = 2 };
typedef struct mx_chart_bar {
    const char *label;
    double value[MX_CHART_SERIES];  /* > 0; 0: none */
    char text[MX_CHART_SERIES][48]; /* behind each */
} mx_chart_bar;

typedef struct mx_chart_bars {
    const char *title, *subtitle, *x_title;
    const char *series[MX_CHART_SERIES]; /* names; NULL: there is one only */
    double line;                         /* a value with a line of its own; 0: none */
    const mx_chart_bar *bar;
    int bars;
} mx_chart_bars;

bool mx_chart_draw_bars(mx_bytes *out, const mx_chart_bars *c); /* false: no memory */

#endif
