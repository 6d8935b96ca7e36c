#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quantize/budget.h"

/* The mixture of formats with the least sum of KL within a budget of bits, and its table. Each part takes one of its
 * choices: a multiple-choice knapsack, solved exactly by dynamic programming over the bits.
 *
 * Why the sum is a fair model of what all of them together do: KL is quadratic in small changes of the weights, and
 * rounding errors of different matrices are as good as independent with mean 0, so that the mixed terms nearly vanish
 * (the linearity theorem of HIGGS, arXiv 2411.17525; HAWQ-V3, arXiv 2011.10680, adds up second-order terms
 * likewise). The report has what the mixture as a whole was measured to cost beside the sum. */

const char *mx_part_name(mx_part part) {
    static const char *const names[MX_PARTS] = {[MX_PART_QKV] = "qkv",
                                                [MX_PART_O] = "o",
                                                [MX_PART_DOWN] = "down",
                                                [MX_PART_GATE_UP] = "gate_up",
                                                [MX_PART_EMBEDDING] = "embedding",
                                                [MX_PART_LM_HEAD] = "lm_head"};
    return names[part];
}

/* ---- the knapsack ------------------------------------------------------------------------------------------------ */

static bool usable(const mx_budget_choice *c) {
    return c->possible && isfinite(c->kl);
}

/* The choice of the fewest bits, of equals the one of the least KL; -1: none. */
static int smallest(const mx_budget_part *p, int formats) {
    int best = -1;
    for (int j = 0; j < formats; j++) {
        const mx_budget_choice *c = &p->choice[j], *b = best < 0 ? NULL : &p->choice[best];
        if (usable(c) && (!b || c->bits < b->bits || (c->bits == b->bits && c->kl < b->kl))) best = j;
    }
    return best;
}

static int64_t gcd(int64_t a, int64_t b) {
    while (b) {
        const int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Bits of the part beyond its smallest choice. */
static int64_t extra(const mx_budget_part *p, int choice, int formats) {
    return p->choice[choice].bits - p->choice[smallest(p, formats)].bits;
}

/* Choices in ascending order of bits, of equals by KL; returns how many. */
static int in_order(const mx_budget_part *p, int formats, int order[MX_BUDGET_FORMATS]) {
    int n = 0;
    for (int j = 0; j < formats; j++) {
        if (!usable(&p->choice[j])) continue;
        int at = n++;
        for (; at > 0; at--) {
            const mx_budget_choice *before = &p->choice[order[at - 1]], *c = &p->choice[j];
            if (before->bits < c->bits || (before->bits == c->bits && before->kl <= c->kl)) break;
            order[at] = order[at - 1];
        }
        order[at] = j;
    }
    return n;
}

/* best[c]: the least sum of KL of the parts so far in at most c cells of bits beyond the smallest; taken [parts, cells
 * + 1]: which choice it takes of each. */
static void fill(const mx_budget_part *part, int parts, int formats, int64_t cell, int64_t cells, double *best,
                 double *next, uint8_t *taken) {
    for (int64_t c = 0; c <= cells; c++) best[c] = 0;
    for (int i = 0; i < parts; i++, taken += cells + 1) {
        const mx_budget_part *p = &part[i];
        int order[MX_BUDGET_FORMATS];
        const int n = in_order(p, formats, order);
        for (int64_t c = 0; c <= cells; c++) next[c] = INFINITY;
        for (int j = 0; j < n; j++) { /* of equals the one that comes first stays */
            const int64_t cost = (extra(p, order[j], formats) + cell - 1) / cell;
            const double kl = p->choice[order[j]].kl;
            for (int64_t c = cost; c <= cells; c++)
                if (best[c - cost] + kl < next[c]) {
                    next[c] = best[c - cost] + kl;
                    taken[c] = (uint8_t)order[j];
                }
        }
        memcpy(best, next, (size_t)(cells + 1) * sizeof *best);
    }
}

/* Spends what rounding up to cells has left over: the greatest gain a bit first. */
static void spend(mx_budget_part *part, int parts, int formats, int64_t left) {
    for (;;) {
        int at = -1, to = -1;
        double most = 0;
        for (int i = 0; i < parts; i++)
            for (int j = 0; j < formats; j++) {
                const mx_budget_choice *c = &part[i].choice[j], *now = &part[i].choice[part[i].chosen];
                const double gain = now->kl - c->kl;
                const int64_t bits = c->bits - now->bits;
                if (!usable(c) || gain <= 0 || bits > left) continue;
                const double rate = bits > 0 ? gain / (double)bits : INFINITY;
                if (rate > most) {
                    most = rate;
                    at = i;
                    to = j;
                }
            }
        if (at < 0) return;
        left -= part[at].choice[to].bits - part[at].choice[part[at].chosen].bits;
        part[at].chosen = to;
    }
}

mx_status mx_budget_solve(mx_budget_part *part, int parts, int formats, int64_t budget, mx_error *error) {
    int64_t least = 0, common = 0, most = 0;
    for (int i = 0; i < parts; i++) {
        const int low = smallest(&part[i], formats);
        if (low < 0)
            return mx_fail(error, MX_INVALID_ARGUMENT, "layer %d, %s: none of the formats can hold it", part[i].layer,
                           mx_part_name(part[i].part));
        least += part[i].choice[low].bits;
        int64_t widest = 0;
        for (int j = 0; j < formats; j++) {
            if (!usable(&part[i].choice[j])) continue;
            const int64_t more = extra(&part[i], j, formats);
            common = gcd(common, more);
            if (more > widest) widest = more;
        }
        most += widest;
    }
    const int64_t room = budget - least;
    if (room < 0)
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "the smallest formats take %.4g MB, the budget is %.4g MB: a larger one, or smaller formats",
                       (double)least / 8e6, (double)budget / 8e6);
    const int64_t used = room < most ? room : most; /* more than everything takes is of no use */
    int64_t cell = common ? common : 1;
    if (used / cell > MX_BUDGET_CELLS) cell = (used + MX_BUDGET_CELLS - 1) / MX_BUDGET_CELLS;
    const int64_t cells = used / cell;
    double *best = malloc((size_t)(cells + 1) * sizeof *best), *next = malloc((size_t)(cells + 1) * sizeof *next);
    uint8_t *taken = calloc((size_t)parts + 1, (size_t)(cells + 1));
    mx_status status = best && next && taken ? MX_OK : mx_fail(error, MX_NO_MEMORY, "no memory for the mixture");
    if (!status) {
        fill(part, parts, formats, cell, cells, best, next, taken);
        int64_t c = cells, bits = 0;
        while (c > 0 && best[c - 1] == best[cells]) c--;
        for (int i = parts - 1; i >= 0; i--) {
            part[i].chosen = taken[i * (cells + 1) + c];
            c -= (extra(&part[i], part[i].chosen, formats) + cell - 1) / cell;
            bits += part[i].choice[part[i].chosen].bits;
        }
        if (cell != common) spend(part, parts, formats, budget - bits);
    }
    free(best);
    free(next);
    free(taken);
    return status;
}

/* ---- the report -------------------------------------------------------------------------------------------------- */

void mx_budget_report_free(mx_budget_report *report) {
    free(report->part);
    *report = (mx_budget_report){0};
}

/* KL in thousandths of a nat; what was not measured with a sign before it. */
static bool show_kl(const mx_budget_choice *c, mx_bytes *out) {
    if (!c->possible) return mx_bytes_addf(out, " %12s", "-");
    if (!isfinite(c->kl)) return mx_bytes_addf(out, " %12s", "not finite");
    char text[24];
    snprintf(text, sizeof text, "%s%.4g", c->run || c->kl == 0 ? "" : "~", 1e3 * c->kl);
    return mx_bytes_addf(out, " %12s", text);
}

bool mx_budget_show(const mx_budget_report *r, mx_bytes *out) {
    char name[MX_FORM_NAME];
    bool ok = mx_bytes_addf(out, "%-10s %5s", "part", "layer");
    for (int j = 0; j < r->formats && ok; j++) {
        mx_form_name(name, &r->part[0].choice[j].form);
        ok = mx_bytes_addf(out, " %12s", name);
    }
    ok = ok && mx_bytes_addf(out, "  %-12s %6s   (KL in 1/1000 nats)\n", "chosen", "bits");
    for (int i = 0; i < r->parts && ok; i++) {
        const mx_budget_part *p = &r->part[i];
        const mx_budget_choice *c = &p->choice[p->chosen];
        char layer[12] = "-";
        if (p->layer >= 0) snprintf(layer, sizeof layer, "%d", p->layer);
        mx_form_name(name, &c->form);
        ok = mx_bytes_addf(out, "%-10s %5s", mx_part_name(p->part), layer);
        for (int j = 0; j < r->formats && ok; j++) ok = show_kl(&p->choice[j], out);
        ok = ok && mx_bytes_addf(out, "  %-12s %6.3f\n", name, (double)c->bits / (double)p->weights);
    }
    ok = ok && mx_bytes_addf(out, "%.3f bits a weight; KL %.4g summed", r->bits, 1e3 * r->kl);
    if (r->kl_measured >= 0) ok = ok && mx_bytes_addf(out, ", %.4g measured with all of it", 1e3 * r->kl_measured);
    return ok && mx_bytes_addf(out, " (1/1000 nats, %lld predictions)\n", (long long)r->tokens);
}
