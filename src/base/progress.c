#include "base/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/cpu.h"

enum { BAR = 24, BAR_LEAST = 6, DEFAULT_WIDTH = 80 };
static const double QUIET = 0.5, PERIOD = 0.1; /* seconds before the first drawing, between two */

static int terminal_width(void) {
    struct winsize size;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : DEFAULT_WIDTH;
}

void mx_progress_start(mx_progress *p, const char *label, double total, bool bytes) {
    const char *kind = getenv("TERM");
    *p = (mx_progress){.label = label, .total = total, .bytes = bytes, .started = mx_seconds()};
    p->terminal = isatty(STDERR_FILENO) && kind && strcmp(kind, "dumb") != 0;
}

void mx_progress_label(mx_progress *p, const char *label) {
    p->label = label;
}

int mx_text_width(const char *text) {
    int n = 0;
    for (; *text; text++) n += (*text & 0xc0) != 0x80;
    return n;
}

const char *mx_with_commas(int64_t value, char out[static 32]) {
    char digits[24];
    const int n = snprintf(digits, sizeof digits, "%lld", (long long)value), sign = value < 0;
    int to = 0;
    for (int i = 0; i < n; i++) {
        if (i > sign && (n - i) % 3 == 0) out[to++] = ',';
        out[to++] = digits[i];
    }
    out[to] = 0;
    return out;
}

void mx_progress_time_left(double seconds, char out[static 32]) {
    if (seconds < 99.5)
        snprintf(out, 32, "%.0f s left", seconds);
    else if (seconds < 99.5 * 60)
        snprintf(out, 32, "%.0f min left", seconds / 60);
    else
        snprintf(out, 32, "%.0f h left", seconds / 3600);
}

static void how_far(const mx_progress *p, double done, double seconds, char out[64]) {
    if (!p->bytes) {
        snprintf(out, 64, "%3.0f %%", 100 * done / p->total);
        return;
    }
    const double unit = p->total >= 1e9 ? 1e9 : 1e6;
    snprintf(out, 64, "%.*f of %.*f %s  %.0f MB/s", unit == 1e9, done / unit, unit == 1e9, p->total / unit,
             unit == 1e9 ? "GB" : "MB", seconds > 0 ? done / seconds / 1e6 : 0);
}

void mx_progress_line(const mx_progress *p, double done, double seconds, int width, char out[static 300]) {
    char bar[BAR + 1], far[64], left[32] = "";
    done = done < 0 ? 0 : done > p->total ? p->total : done;
    const double share = p->total > 0 ? done / p->total : 1;
    how_far(p, done, seconds, far);
    if (share > 0.01 && share < 1) mx_progress_time_left(seconds / share - seconds, left);
    /* The last column stays free: some terminals wrap there. The bar gives way to the words. */
    const int words = (int)(strlen(p->label) + strlen(far) + strlen(left) + strlen("  []    "));
    int length = width > 0 && width - 1 - words < BAR ? width - 1 - words : BAR;
    if (length < BAR_LEAST) length = BAR_LEAST;
    const int filled = (int)(share * length);
    for (int i = 0; i < length; i++) bar[i] = i < filled ? '#' : ' ';
    bar[length] = 0;
    snprintf(out, 300, "%s  [%s]  %s  %s", p->label, bar, far, left);
    if (width > 0 && width < 300 && strlen(out) >= (size_t)width) out[width - 1] = 0;
}

void mx_progress_update(mx_progress *p, double done) {
    if (!p->terminal) return;
    const double now = mx_seconds();
    if (now - p->started < QUIET || now - p->drawn < PERIOD) return;
    char line[300];
    mx_progress_line(p, done, now - p->started, terminal_width(), line);
    fprintf(stderr, "\r%s\033[K", line);
    fflush(stderr);
    p->drawn = now;
    p->shown = true;
}

void mx_progress_clear(mx_progress *p) {
    if (!p->shown) return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    p->shown = false;
    p->drawn = 0;
}
