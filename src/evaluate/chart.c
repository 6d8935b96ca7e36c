#include <math.h>
#include <stdio.h>
#include <string.h>

#include "evaluate/chart_private.h"

/* ---- text -------------------------------------------------------------------------------------------------------- */

/* Widths of Helvetica's characters ' ' to '~' in thousandths of its size (Adobe's font metrics), which Arial and
 * Liberation Sans share. */
static const short helvetica[] = {
    278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333,  278, 278, 556, 556, 556,
    556, 556, 556, 556, 556, 556, 556, 278, 278, 584, 584, 584, 556, 1015, 667, 667, 722, 722, 667,
    611, 778, 722, 278, 500, 667, 556, 833, 722, 778, 667, 778, 722, 667,  611, 722, 667, 944, 667,
    667, 611, 278, 278, 278, 469, 556, 333, 556, 556, 500, 556, 556, 278,  556, 556, 222, 222, 500,
    222, 833, 556, 556, 556, 556, 333, 500, 278, 556, 500, 722, 500, 500,  500, 334, 260, 334, 584,
};
_Static_assert(sizeof helvetica / sizeof *helvetica == '~' - ' ' + 1, "a width for each character");

enum { OTHER = 600, WIDE = 1000 };   /* of other alphabets; of East Asian characters */
static const double ALLOWANCE = 1.2; /* fonts differ: DejaVu Sans is the widest of those that stand in for it */

/* Bytes and width of the character at `text`; what is not UTF-8 is one byte. */
static int character(const char *text, double *width) {
    const unsigned char c = (unsigned char)*text;
    if (c >= ' ' && c <= '~') {
        *width = helvetica[c - ' '];
        return 1;
    }
    const int length = mx_utf8_length(text, strlen(text));
    *width = length >= 3 && (c == 0xe3 || (c >= 0xe4 && c <= 0xed) || c >= 0xf0) ? WIDE : OTHER;
    return length > 0 ? length : 1;
}

double mx_chart_text_width(const char *text, double size) {
    double sum = 0, width;
    for (const char *at = text; *at; sum += width) at += character(at, &width);
    return sum * size / 1000 * ALLOWANCE;
}

/* As XML: markup escaped, invalid bytes replaced, controls (of which XML 1.0 allows none that a label could want) and
 * U+FFFE and U+FFFF left out. */
static bool add_escaped(mx_bytes *out, const char *text, size_t size) {
    mx_bytes clean = {0};
    bool ok = mx_bytes_add_lossy(&clean, text, size);
    for (size_t i = 0; i < clean.size && ok; i++) {
        const unsigned char c = (unsigned char)clean.data[i];
        if (c == '&')
            ok = mx_bytes_add_string(out, "&amp;");
        else if (c == '<')
            ok = mx_bytes_add_string(out, "&lt;");
        else if (c == '>')
            ok = mx_bytes_add_string(out, "&gt;");
        else if (c == '"')
            ok = mx_bytes_add_string(out, "&quot;");
        else if (c == 0xef && clean.size - i >= 3 && !memcmp(clean.data + i, "\xef\xbf", 2) &&
                 (unsigned char)clean.data[i + 2] >= 0xbe)
            i += 2;
        else if (c >= ' ' && c != 0x7f)
            ok = mx_bytes_add(out, clean.data + i, 1);
    }
    mx_bytes_free(&clean);
    return ok;
}

/* Bytes of `text` that fit, an ellipsis behind them included; all of it where it fits without one. */
static size_t fitting(const char *text, double size, double most, bool *cut) {
    *cut = most > 0 && mx_chart_text_width(text, size) > most;
    if (!*cut) return strlen(text);
    double left = most - WIDE * size / 1000;
    const char *at = text;
    while (*at) {
        double width;
        const int bytes = character(at, &width);
        left -= width * size / 1000 * ALLOWANCE;
        if (left < 0) break;
        at += bytes;
    }
    return (size_t)(at - text);
}

bool mx_chart_text(mx_bytes *out, const char *class, const char *anchor, double x, double y, double size, double most,
                   const char *text) {
    bool cut;
    const size_t bytes = fitting(text, size, most, &cut);
    return mx_bytes_addf(out, "<text class=\"%s\" x=\"%.1f\" y=\"%.1f\" font-size=\"%.0f\" text-anchor=\"%s\">", class,
                         x, y, size, anchor) &&
           add_escaped(out, text, bytes) && mx_bytes_addf(out, "%s</text>\n", cut ? "…" : "");
}

/* ---- the frame --------------------------------------------------------------------------------------------------- */

static const char style[] =
    "<style>\n"
    "text{font-family:system-ui,-apple-system,\"Segoe UI\",Helvetica,Arial,\"Liberation Sans\",sans-serif;"
    "fill:#1f2328}\n"
    ".page{fill:#ffffff;stroke:#d1d9e0}\n"
    ".strong{font-weight:600}\n"
    ".halo{paint-order:stroke;stroke:#ffffff;stroke-width:3px;stroke-linejoin:round}\n"
    ".quiet{fill:#59636e}\n"
    ".grid{stroke:#e4e8ec;stroke-width:1;fill:none}\n"
    ".axis{stroke:#818b98;stroke-width:1;fill:none}\n"
    ".standard{stroke:#59636e;stroke-width:1.25;stroke-dasharray:5 4;fill:none}\n"
    ".leader{stroke:#818b98;stroke-width:0.8;fill:none}\n"
    ".frontier{stroke:#0072b2;stroke-opacity:0.35;stroke-width:2;fill:none}\n"
    ".whisker{stroke:#0072b2;stroke-opacity:0.6;stroke-width:1.5;fill:none}\n"
    ".a{fill:#0072b2}\n"
    ".b{fill:#e69f00}\n"
    ".ring{fill:#ffffff;stroke:#0072b2;stroke-width:2}\n"
    "@media (prefers-color-scheme:dark){\n"
    "text{fill:#f0f6fc}\n"
    ".page{fill:#0d1117;stroke:#3d444d}\n"
    ".halo{stroke:#0d1117}\n"
    ".quiet{fill:#9198a1}\n"
    ".grid{stroke:#262c36}\n"
    ".axis,.leader{stroke:#656c76}\n"
    ".standard{stroke:#9198a1}\n"
    ".frontier,.whisker{stroke:#56b4e9}\n"
    ".a{fill:#56b4e9}\n"
    ".b{fill:#e69f00}\n"
    ".ring{fill:#0d1117;stroke:#56b4e9}\n"
    "}\n"
    "</style>\n";

enum { TITLE = 18, LINE = 18 };

/* Words into lines of the picture's width; each goes to `out` at *y (NULL: it is only counted), which moves on. */
static bool add_lines(mx_bytes *out, const char *text, double *y) {
    mx_bytes line = {0};
    bool ok = true;
    const double most = MX_CHART_WIDTH - 2 * MX_CHART_EDGE;
    for (const char *at = text; *at && ok;) {
        const size_t word = strcspn(at, " "), space = strspn(at + word, " "), before = line.size;
        ok = (!before || mx_bytes_add_string(&line, " ")) && mx_bytes_add(&line, at, word);
        if (ok && before && mx_chart_text_width(line.data, MX_CHART_TEXT) > most) {
            line.data[before] = 0;
            *y += LINE;
            if (out) ok = mx_chart_text(out, "quiet", "start", MX_CHART_EDGE, *y, MX_CHART_TEXT, most, line.data);
            mx_bytes_clear(&line);
            continue; /* the word again, on a new line */
        }
        at += word + space;
    }
    if (line.size) *y += LINE;
    if (ok && out && line.size)
        ok = mx_chart_text(out, "quiet", "start", MX_CHART_EDGE, *y, MX_CHART_TEXT, most, line.data);
    mx_bytes_free(&line);
    return ok;
}

bool mx_chart_head(mx_bytes *out, const char *title, const char *subtitle, double height, double *top) {
    double y = MX_CHART_EDGE + 14;
    bool ok = true;
    if (out) {
        ok = mx_bytes_addf(out,
                           "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%.0f\" viewBox=\"0 0 %d "
                           "%.0f\" role=\"img\">\n<title>",
                           MX_CHART_WIDTH, height, MX_CHART_WIDTH, height) &&
             add_escaped(out, title, strlen(title)) && mx_bytes_addf(out, "</title>\n%s", style) &&
             mx_bytes_addf(out, "<rect class=\"page\" x=\"0.5\" y=\"0.5\" width=\"%d\" height=\"%.0f\" rx=\"8\"/>\n",
                           MX_CHART_WIDTH - 1, height - 1) &&
             mx_chart_text(out, "strong", "start", MX_CHART_EDGE, y, TITLE, MX_CHART_WIDTH - 2 * MX_CHART_EDGE, title);
    }
    y += 4;
    ok = ok && add_lines(out, subtitle, &y);
    *top = y + 12;
    return ok;
}

bool mx_chart_is_one(const char *start) {
    static const char begin[] = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"";
    return !strncmp(start, begin, sizeof begin - 1) && strstr(start, "<rect class=\"page\"");
}

bool mx_chart_tail(mx_bytes *out) {
    return mx_bytes_add_string(out, "</svg>\n");
}

/* ---- axes -------------------------------------------------------------------------------------------------------- */

double mx_chart_at(const mx_chart_axis *a, double value) {
    const double part = a->log ? log(value / a->low) / log(a->high / a->low) : (value - a->low) / (a->high - a->low);
    return a->from + part * (a->to - a->from);
}

static void add_tick(mx_chart_axis *a, double value) {
    const double slack = 1e-9 * fabs(a->high);
    if (value >= a->low - slack && value <= a->high + slack && a->ticks < MX_CHART_TICKS) a->tick[a->ticks++] = value;
}

/* 1, 2 or 5 times a power of ten, the least with which there are no more than `most`. */
static void even_ticks(mx_chart_axis *a, int most) {
    static const double factor[] = {1, 2, 5};
    const double span = a->high - a->low, first = floor(log10(span / most));
    for (int i = 0; i < 9; i++) {
        const double power = pow(10, first + i / 3), step = factor[i % 3] * power;
        if (floor(a->high / step) - ceil(a->low / step) + 1 > most) continue;
        for (double k = ceil(a->low / step - 1e-9); k * step <= a->high + 1e-9 * span; k++)
            add_tick(a, k * step + 0.0); /* no -0 */
        const double digits = -floor(log10(step) + 1e-9);
        a->decimals = digits > 0 ? (int)digits : 0;
        return;
    }
}

/* Of all numbers with these leading digits. */
static void log_ticks(mx_chart_axis *a, const double *factor, int factors) {
    a->ticks = 0;
    for (double e = floor(log10(a->low)); e <= ceil(log10(a->high)); e++)
        for (int i = 0; i < factors; i++) add_tick(a, factor[i] * pow(10, e));
    a->decimals = -1;
}

void mx_chart_ticks(mx_chart_axis *a, int most) {
    static const double fine[] = {1, 1.5, 2, 3, 4, 5, 6, 8}, middle[] = {1, 2, 5}, coarse[] = {1};
    a->ticks = 0;
    if (a->log && a->high / a->low >= 1.8) {
        log_ticks(a, fine, 8);
        if (a->ticks > most) log_ticks(a, middle, 3);
        if (a->ticks > most) log_ticks(a, coarse, 1);
        const int every = (a->ticks + most - 1) / most, all = a->ticks; /* of many decades only some */
        for (int i = a->ticks = 0; i < all; i += every) a->tick[a->ticks++] = a->tick[i];
        return;
    }
    even_ticks(a, most);
}

/* 0.0005, 0.02, 4, 16, 100,000 as 1e+05 */
void mx_chart_tick_text(const mx_chart_axis *a, int tick, char out[static 32]) {
    const double value = a->tick[tick];
    if (a->decimals >= 0 || value == 0)
        snprintf(out, 32, "%.*f", a->decimals > 0 ? a->decimals : 0, value);
    else if (value < 1e-4)
        snprintf(out, 32, "%.0e", value);
    else
        snprintf(out, 32, "%g", value);
}
