#include "bench/cost.h"

#include <string.h>

enum { MOST_EXPERTS = 1 << 14 }; /* what mx_config_read lets through */

static double element_bytes(mx_format format) {
    return format == MX_F32 ? 4 : 2;
}

/* ---- one matrix ------------------------------------------------------------------------------------------------- */

static double matrix_bytes(const mx_matrix *m) {
    return (double)m->rows * (double)(m->row_stride + m->scale_stride);
}

/* A dense matrix with its fp32 bias that `rows` rows go through. */
static void dense(mx_cost *cost, mx_class class, const mx_matrix *m, const float *bias, double rows) {
    if (rows < 1) return;
    cost->bytes += matrix_bytes(m) + (bias ? 4.0 * (double)m->rows : 0);
    cost->flops[class] += 2 * rows * (double)m->rows * (double)m->cols;
}

/* `read` experts of one kind, with which `pairs` pairs of a row and an expert are computed. */
static void experts_of(mx_cost *cost, mx_class class, const mx_experts *e, double read, double pairs) {
    const mx_matrix *m = &e->matrix;
    const double bias = e->bias ? (double)m->rows * element_bytes(e->bias_format) : 0;
    cost->bytes += read * (matrix_bytes(m) + bias);
    cost->flops[class] += 2 * pairs * (double)m->rows * (double)m->cols;
}

/* ---- one layer --------------------------------------------------------------------------------------------------- */

/* How many experts of this layer the rows chose; only_wanted: the rows whose logits are wanted. */
static double distinct(const mx_config *c, const mx_batch *batch, const int32_t *experts, bool only_wanted) {
    unsigned char chosen[MOST_EXPERTS] = {0};
    int count = 0;
    for (int t = 0; t < batch->rows; t++) {
        if (only_wanted && !batch->row[t].wanted) continue;
        for (int i = 0; i < c->top_k; i++) {
            const int32_t e = experts[t * c->top_k + i];
            count += !chosen[e];
            chosen[e] = 1;
        }
    }
    return count;
}

/* Keys that each row sees, summed, and positions that must be read, each once for its sequence. */
static void in_sight(const mx_batch *batch, int window, bool only_wanted, double *seen, double *read) {
    *seen = *read = 0;
    for (int t = 0; t < batch->rows; t++) {
        const mx_row *row = &batch->row[t];
        const bool starts = t == 0 || batch->row[t - 1].sequence != row->sequence;
        const double past = (double)row->position + 1, sight = window && past > window ? window : past;
        /* The first row of a sequence brings its whole sight, each later one its own position. */
        *read += starts ? sight : 1;
        if (!only_wanted || row->wanted) *seen += sight;
    }
}

static void attention(mx_cost *cost, const mx_config *c, mx_format kv, const mx_batch *batch, int layer,
                      bool only_wanted) {
    double seen, read;
    in_sight(batch, c->sliding[layer] ? c->window : 0, only_wanted, &seen, &read);
    cost->attention += 4 * seen * (double)c->heads * (double)c->head_dim;
    cost->bytes += read * 2 * (double)c->kv_heads * (double)c->head_dim * element_bytes(kv);
}

void mx_cost_add(mx_cost *cost, const mx_weights *w, mx_format kv, const mx_batch *batch, const int32_t *experts) {
    const mx_config *c = &w->config;
    const double rows = batch->rows, hidden = c->hidden;
    double wanted = 0;
    for (int t = 0; t < batch->rows; t++) wanted += batch->row[t].wanted;
    cost->bytes += rows * (double)w->embedding.row_stride;
    for (int i = 0; i < c->layers; i++) {
        const mx_layer *l = &w->layer[i];
        const bool last = i + 1 == c->layers;
        const double go_on = last ? wanted : rows;
        cost->bytes += 4 * hidden * (go_on > 0 ? 2 : 1) + 4.0 * (double)c->heads;
        dense(cost, MX_CLASS_QKV, &l->k, l->k_bias, rows);
        dense(cost, MX_CLASS_QKV, &l->v, l->v_bias, rows);
        dense(cost, MX_CLASS_QKV, &l->q, l->q_bias, go_on);
        if (go_on < 1) continue;
        attention(cost, c, kv, batch, i, last);
        dense(cost, MX_CLASS_O, &l->o, l->o_bias, go_on);
        dense(cost, MX_CLASS_ROUTER, &l->router, l->router_bias, go_on);
        const double pairs = go_on * c->top_k,
                     read = experts ? distinct(c, batch, experts + (int64_t)i * batch->rows * c->top_k, last)
                                    : (double)c->top_k;
        experts_of(cost, MX_CLASS_GATE_UP, &l->gate_up, read, pairs);
        experts_of(cost, MX_CLASS_DOWN, &l->down, read, pairs);
    }
    if (wanted < 1) return;
    cost->bytes += 4 * hidden;
    dense(cost, MX_CLASS_LM_HEAD, &w->lm_head, NULL, wanted);
}

double mx_cost_matrix_flops(const mx_cost *cost) {
    double sum = 0;
    for (int i = 0; i < MX_CLASSES; i++) sum += cost->flops[i];
    return sum;
}

/* ---- floors ------------------------------------------------------------------------------------------------------ */

/* A tier that lacks an instruction widens to fp32 and is measured by FMA, which it then uses. */
mx_cost_units mx_cost_unit(const char *tier, mx_precision precision) {
    const bool tiles = strstr(tier, "amx") && mx_peak_here(MX_PEAK_AMX_BF16);
    const bool dots = tiles || (strstr(tier, "bf16") && mx_peak_here(MX_PEAK_DPBF16));
    const mx_peak_loop fma = !strcmp(tier, "avx2") ? MX_PEAK_FMA256 : mx_peak_fp32();
    const bool mmla = !strcmp(tier, "neonbf16") && mx_peak_here(MX_PEAK_BFMMLA);
    const mx_peak_loop bf16 = tiles ? MX_PEAK_AMX_BF16 : dots ? MX_PEAK_DPBF16 : mmla ? MX_PEAK_BFMMLA : fma;
    if (precision == MX_X_BF16) return (mx_cost_units){bf16, 1};
    if (precision == MX_X_BF16X2) return (mx_cost_units){bf16, bf16 == fma ? 1 : 2};
    if (precision == MX_X_INT8) {
        if (tiles) return (mx_cost_units){MX_PEAK_AMX_INT8, 1};
        if (mmla) return (mx_cost_units){MX_PEAK_SMMLA, 1};
        if (dots && mx_peak_here(MX_PEAK_VNNI)) return (mx_cost_units){MX_PEAK_VNNI, 1};
    }
    return (mx_cost_units){fma, 1};
}

double mx_cost_seconds(const mx_cost *cost, const char *tier, const mx_precisions *precision, const mx_peaks *peaks) {
    double seconds = 0;
    for (int i = 0; i < MX_CLASSES; i++) {
        const mx_cost_units unit = mx_cost_unit(tier, precision->of[i]);
        const double peak = unit.loop < MX_PEAK_LOOPS ? peaks->of[unit.loop] : 0;
        if (peak > 0) seconds += unit.times * cost->flops[i] / peak;
    }
    const mx_peak_loop fma = mx_cost_unit(tier, MX_X_FP32).loop;
    if (fma < MX_PEAK_LOOPS && peaks->of[fma] > 0) seconds += cost->attention / peaks->of[fma];
    return seconds;
}
