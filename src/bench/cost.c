#include "bench/cost.h"

#include <string.h>

#include "kernels/mx.h"

enum { MOST_EXPERTS = 1 << 14 }; /* what mx_config_read lets through */

static double element_bytes(mx_format format) {
    return format == MX_F32 ? 4 : 2;
}

/* ---- one matrix ------------------------------------------------------------------------------------------------- */

static double matrix_bytes(const mx_matrix *m) {
    const double post = m->post ? 4.0 * (double)(m->post_step ? m->rows : 1) : 0;
    return (double)m->rows * (double)(m->row_stride + m->scale_stride + m->zero_stride) + post;
}

/* Weights that BF16 cannot multiply exactly. */
static bool is_exact(const mx_matrix *m, bool bf16_safe) {
    return m->format == MX_F32 || m->format == MX_F16 || (mx_is_block_format(m->format) && !bf16_safe);
}

/* A dense matrix with its fp32 bias that `rows` rows go through. */
static void dense(mx_cost *cost, mx_class class, const mx_matrix *m, const float *bias, double rows) {
    if (rows < 1) return;
    cost->bytes += matrix_bytes(m) + (bias ? 4.0 * (double)m->rows : 0);
    const double flops = 2 * rows * (double)m->rows * (double)m->cols;
    cost->flops[class] += flops;
    if (is_exact(m, m->bf16_safe)) cost->exact[class] += flops;
    if (m->format == MX_Q8_0) cost->q8_0[class] += flops;
}

/* `read` experts of one kind, with which `pairs` pairs of a row and an expert are computed. */
static void experts_of(mx_cost *cost, mx_class class, const mx_experts *e, double read, double pairs) {
    const mx_matrix *m = &e->matrix;
    const double bias = e->bias ? (double)m->rows * element_bytes(e->bias_format) : 0;
    cost->bytes += read * (matrix_bytes(m) + bias);
    const double flops = 2 * pairs * (double)m->rows * (double)m->cols;
    cost->flops[class] += flops;
    if (!e->bf16_safe || is_exact(m, e->bf16_safe))
        cost->exact[class] += flops;
    else if (m->format == MX_Q8_0)
        cost->q8_0[class] += flops;
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
    cost->bytes += rows * matrix_bytes(&w->embedding) / (double)w->embedding.rows;
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
        cost->experts += read;
        experts_of(cost, MX_CLASS_GATE_UP, &l->gate_up, read, pairs);
        if (l->up.matrix.rows) experts_of(cost, MX_CLASS_GATE_UP, &l->up, read, pairs);
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

/* What the tiers' kernels multiply with. MX_PEAK_LOOPS: by nothing that is measured here. */
static const struct {
    const char *tier;
    mx_peak_loop fp32, bf16, int8;
} tiers[] = {
    {"avx2", MX_PEAK_FMA256, MX_PEAK_FMA256, MX_PEAK_MADDUBS256},
    {"avx512", MX_PEAK_FMA512, MX_PEAK_FMA512, MX_PEAK_MADDUBS512},
    {"avx512bf16", MX_PEAK_FMA512, MX_PEAK_DPBF16, MX_PEAK_VNNI},
    {"amx", MX_PEAK_FMA512, MX_PEAK_AMX_BF16, MX_PEAK_AMX_INT8},
    {"neon", MX_PEAK_FMA128, MX_PEAK_FMA128, MX_PEAK_LOOPS},
    {"neondot", MX_PEAK_FMA128, MX_PEAK_FMA128, MX_PEAK_SDOT},
    {"neonbf16", MX_PEAK_FMA128, MX_PEAK_BFMMLA, MX_PEAK_SMMLA},
};

static bool on_gpu(const char *tier) {
    return !strncmp(tier, "cuda", 4);
}

/* Scalar C is held against the machine's widest FMA. A GPU multiplies all parts of an activation by the same
 * instruction. */
static mx_cost_units unit_of(const char *tier, mx_precision precision) {
    if (on_gpu(tier))
        return (mx_cost_units){MX_PEAK_MMA, precision == MX_X_FP32 ? 3 : precision == MX_X_BF16X2 ? 2 : 1};
    for (size_t i = 0; i < sizeof tiers / sizeof *tiers; i++) {
        if (strcmp(tier, tiers[i].tier) != 0) continue;
        if (precision == MX_X_FP32) return (mx_cost_units){tiers[i].fp32, 1};
        if (precision == MX_X_INT8) return (mx_cost_units){tiers[i].int8, 1};
        const bool twice = precision == MX_X_BF16X2 && tiers[i].bf16 != tiers[i].fp32;
        return (mx_cost_units){tiers[i].bf16, twice ? 2 : 1};
    }
    return (mx_cost_units){precision == MX_X_INT8 ? MX_PEAK_LOOPS : mx_peak_fp32(), 1};
}

mx_cost_units mx_cost_unit(const char *tier, mx_precision precision) {
    mx_cost_units unit = unit_of(tier, precision);
    if (unit.loop < MX_PEAK_LOOPS && !on_gpu(tier) && !mx_peak_here(unit.loop)) unit.loop = MX_PEAK_LOOPS;
    return unit;
}

bool mx_cost_by_fma(const char *tier, mx_format format, mx_precision precision) {
    const bool x86 = !strcmp(tier, "avx512bf16") || !strcmp(tier, "amx");
    if (precision == MX_X_INT8 || on_gpu(tier) || unit_of(tier, precision).loop == unit_of(tier, MX_X_FP32).loop)
        return false;
    if (mx_is_block_format(format)) return mx_is_integer_format(format) || !x86;
    return format == MX_F32 || format == MX_F16 || (format == MX_Q8_0 && precision == MX_X_BF16X2 && x86);
}

/* Multiplications by the same instructions. */
typedef struct part {
    double flops;
    mx_cost_units unit;
} part;
enum { PARTS = 2 * MX_CLASSES + 1 };

static void take_apart(const mx_cost *cost, const char *tier, const mx_precisions *precision, part out[PARTS]) {
    const mx_cost_units fma = unit_of(tier, on_gpu(tier) ? MX_X_BF16X2 : MX_X_FP32);
    for (int i = 0; i < MX_CLASSES; i++) {
        const mx_precision p = precision->of[i];
        /* int8 takes any scale. */
        double exact = p == MX_X_INT8 || on_gpu(tier) ? 0 : cost->exact[i];
        if (mx_cost_by_fma(tier, MX_Q8_0, p)) exact += cost->q8_0[i];
        out[2 * i] = (part){exact, fma};
        out[2 * i + 1] = (part){cost->flops[i] - exact, unit_of(tier, p)};
    }
    out[2 * MX_CLASSES] = (part){cost->attention, fma};
}

static double peak_of(mx_peak_loop loop, const mx_peaks *peaks) {
    return loop < MX_PEAK_LOOPS ? peaks->of[loop] : 0;
}

double mx_cost_operations(const mx_cost *cost, const char *tier, const mx_precisions *precision) {
    part parts[PARTS];
    double sum = 0;
    take_apart(cost, tier, precision, parts);
    for (int i = 0; i < PARTS; i++) sum += parts[i].unit.times * parts[i].flops;
    return sum;
}

double mx_cost_seconds(const mx_cost *cost, const char *tier, const mx_precisions *precision, const mx_peaks *peaks) {
    part parts[PARTS];
    double seconds = 0;
    take_apart(cost, tier, precision, parts);
    for (int i = 0; i < PARTS; i++) {
        if (!(parts[i].flops > 0)) continue;
        const double peak = peak_of(parts[i].unit.loop, peaks);
        if (!(peak > 0)) return 0;
        seconds += parts[i].unit.times * parts[i].flops / peak;
    }
    return seconds;
}

const char *mx_cost_lacking(const mx_cost *cost, const char *tier, const mx_precisions *precision,
                            const mx_peaks *peaks) {
    part parts[PARTS];
    take_apart(cost, tier, precision, parts);
    for (int i = 0; i < PARTS; i++)
        if (parts[i].flops > 0 && !(peak_of(parts[i].unit.loop, peaks) > 0)) {
            const char *key = parts[i].unit.loop < MX_PEAK_LOOPS ? mx_peak_key(parts[i].unit.loop) : NULL;
            return key ? key : "";
        }
    return NULL;
}
