#include "quantize/budget.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/log.h"
#include "base/progress.h"
#include "quantize/calibrate.h"
#include "quantize/forward.h"
#include "quantize/rotate.h"

/* What each part of a model costs in each format: its matrices are quantised, widened to fp32 again (where the source
 * is rotated, turned back), put in the place of the model's own, and the text runs through. So every format is measured
 * alike, whatever kernels there are for it, and a part at a time is in memory. */

const char mx_budget_default_formats[] = "mxfp4,nvfp4,mxfp8,bf16";

enum {
    TOKENS = 4096,
    WINDOW = 512,
    STEP_ROWS = 2048,
    WIDEN_GRAIN = 16,
};
static const int64_t LOGIT_BYTES = 512 << 20; /* for the model's own logits; fewer tokens are compared beyond */

typedef struct measuring {
    const mx_source *source;
    const mx_budget_options *options;
    mx_budget_report *report;
    mx_error *error;
    mx_pool *pool;
    const mx_kernels *kernels;
    mx_weights *weights; /* the model's */
    mx_weights view;     /* the same with other matrices, which `forward` runs */
    mx_forward forward;
    mx_passages text;
    int64_t every, rows; /* each how many tokens a prediction is compared; how many are */
    float *logits;       /* [rows, vocab] of the model */
    float *scratch;      /* [threads, 2, vocab rounded up] */
    int64_t scratch_floats;
    double *kl;                  /* [rows] */
    mx_calibration *calibration; /* NULL: no recipe needs any */
    int64_t done, total;         /* tokens through the model */
} measuring;

static mx_status no_memory(const measuring *m, const char *what) {
    return mx_fail(m->error, MX_NO_MEMORY, "%s: no memory for %s", m->source->path, what);
}

static bool stopped(const measuring *m) {
    return m->options->stop && *m->options->stop;
}

/* ---- parts ------------------------------------------------------------------------------------------------------- */

/* -1: keeps 16 bits. */
static int part_of(const mx_module *m) {
    switch (m->kind) {
    case MX_KIND_Q:
    case MX_KIND_K:
    case MX_KIND_V:
        return MX_PART_QKV;
    case MX_KIND_O:
        return MX_PART_O;
    case MX_KIND_GATE:
    case MX_KIND_UP:
        return MX_PART_GATE_UP;
    case MX_KIND_DOWN:
        return MX_PART_DOWN;
    case MX_KIND_EMBEDDING:
        return MX_PART_EMBEDDING;
    case MX_KIND_LM_HEAD:
        return MX_PART_LM_HEAD;
    default:
        return -1;
    }
}

static bool is_in(const mx_module *m, const mx_budget_part *p) {
    return part_of(m) == (int)p->part && m->layer == p->layer;
}

static int by_place(const void *a, const void *b) {
    const mx_budget_part *x = a, *y = b;
    const unsigned s = (unsigned)x->layer, t = (unsigned)y->layer; /* -1 comes last */
    return s != t ? (s < t ? -1 : 1) : (int)x->part - (int)y->part;
}

static int64_t bits_of(const mx_form *f, const mx_module *m) {
    return (int64_t)llround(mx_form_bits(f, m->rows, m->cols) * (double)m->rows * (double)m->cols);
}

/* Of which a matrix' columns must be a multiple. */
static int64_t columns_of(const mx_form *f) {
    const bool block = mx_is_block_format(f->format) || f->format == MX_MXFP4;
    return !block ? 1 : f->blocks.columns > 32 ? f->blocks.columns : 32;
}

/* The parts and what they take in each form. */
static mx_status find_parts(measuring *m, const mx_form *form, int formats) {
    const mx_source *s = m->source;
    mx_budget_report *r = m->report;
    r->formats = formats;
    r->part = calloc((size_t)s->config.layers * 4 + 3, sizeof *r->part);
    if (!r->part) return no_memory(m, "its parts");
    for (int i = 0; i < s->modules; i++) {
        const mx_module *module = &s->module[i];
        const int part = part_of(module);
        if (part < 0) continue;
        int at = 0;
        while (at < r->parts && !is_in(module, &r->part[at])) at++;
        mx_budget_part *p = &r->part[at];
        if (at == r->parts) {
            if (r->parts++ >= s->config.layers * 4 + 2)
                return mx_fail(m->error, MX_INVALID_FILE, "%s: %s: of no layer of this model", s->path, module->name);
            *p = (mx_budget_part){.part = (mx_part)part, .layer = module->layer};
            for (int j = 0; j < formats; j++) p->choice[j] = (mx_budget_choice){.form = form[j], .possible = true};
        }
        p->weights += module->rows * module->cols;
        for (int j = 0; j < formats; j++) {
            mx_budget_choice *c = &p->choice[j];
            if (module->cols % columns_of(&form[j])) c->possible = false;
            if (c->possible) c->bits += bits_of(&form[j], module);
        }
    }
    if (!r->parts) return mx_fail(m->error, MX_INVALID_FILE, "%s: nothing in it can be quantised", s->path);
    qsort(r->part, (size_t)r->parts, sizeof *r->part, by_place);
    return MX_OK;
}

static mx_status parse_formats(const char *names, mx_form form[MX_BUDGET_FORMATS], int *count, mx_error *error) {
    *count = 0;
    for (const char *at = names; *at;) {
        const size_t n = strcspn(at, ",");
        char name[MX_FORM_NAME];
        if (*count == MX_BUDGET_FORMATS)
            return mx_fail(error, MX_INVALID_ARGUMENT, "%s: more than %d formats", names, MX_BUDGET_FORMATS);
        if (!n) return mx_fail(error, MX_INVALID_ARGUMENT, "%s: names of formats with a comma between them", names);
        snprintf(name, sizeof name, "%.*s", (int)n, at);
        mx_status status = mx_form_parse(name, &form[*count], error);
        if (status) return status;
        for (int i = 0; i < *count; i++)
            if (mx_form_equal(&form[i], &form[*count]))
                return mx_fail(error, MX_INVALID_ARGUMENT, "%s: %s is there twice", names, name);
        ++*count;
        at += n + (at[n] == ',');
    }
    return *count ? MX_OK : mx_fail(error, MX_INVALID_ARGUMENT, "no formats to choose from");
}

/* ---- a run of the text ------------------------------------------------------------------------------------------- */

struct comparison {
    measuring *m;
    int64_t first; /* place of the step's first prediction in m->logits */
};

/* KL(model || view) = sum p (a - b) + log sum exp b - log sum exp a, with a and b the logits of both. */
static void compare_rows(void *arg, int64_t begin, int64_t end, int thread) {
    const struct comparison *c = arg;
    const measuring *m = c->m;
    const int64_t vocab = m->view.config.vocab;
    float *p = m->scratch + thread * m->scratch_floats;
    for (int64_t i = begin; i < end; i++) {
        const float *a = m->logits + (c->first + i) * vocab,
                    *b = m->forward.backend->ops->logits(m->forward.backend, (int)i);
        const float top_a = a[m->kernels->argmax(a, vocab)], top_b = b[m->kernels->argmax(b, vocab)];
        const double sum_b = m->kernels->exp_sum(p, b, vocab, top_b, 1),
                     sum_a = m->kernels->exp_sum(p, a, vocab, top_a, 1);
        double difference = 0;
        for (int64_t k = 0; k < vocab; k++) difference += (double)p[k] * ((double)a[k] - b[k]);
        m->kl[c->first + i] = difference / sum_a + (top_b + log(sum_b)) - (top_a + log(sum_a));
    }
}

static mx_status check_finite(const measuring *m, const float *logits) {
    for (int64_t k = 0; k < m->view.config.vocab; k++)
        if (!isfinite(logits[k])) return mx_forward_not_finite(m->source->path, m->weights, m->error);
    return MX_OK;
}

/* The text through the view, from layer forward.first on. `keep`: its logits, and the residual stream, become the
 * model's; else *kl is the mean distance from them. */
static mx_status run_text(measuring *m, bool keep, double *kl) {
    const int64_t vocab = m->view.config.vocab;
    int64_t first = 0;
    m->forward.keep = keep && m->forward.residual;
    for (int at = 0, wanted; at < m->text.count; first += wanted) {
        const int before = at;
        if (stopped(m)) return mx_fail(m->error, MX_CANCELLED, "stopped");
        mx_status status = mx_forward_step(&m->forward, &m->text, at, m->every, &at, &wanted, m->error);
        if (status) return status;
        for (int i = 0; i < wanted && keep && !status; i++) {
            float *to = m->logits + (first + i) * vocab;
            memcpy(to, m->forward.backend->ops->logits(m->forward.backend, i), (size_t)vocab * sizeof *to);
            status = check_finite(m, to);
        }
        if (status) return status;
        if (!keep) mx_parallel_for(m->pool, wanted, 1, compare_rows, &(struct comparison){m, first});
        m->done += m->text.first[at] - m->text.first[before];
        if (m->options->progress) m->options->progress(m->options->user, m->done, m->total);
    }
    double sum = 0;
    for (int64_t i = 0; i < m->rows && !keep; i++) sum += m->kl[i];
    if (!keep) *kl = sum < 0 ? 0 : sum / (double)m->rows; /* NaN stays NaN */
    return MX_OK;
}

/* ---- other matrices ---------------------------------------------------------------------------------------------- */

static mx_matrix dense(const float *w, int64_t rows, int64_t cols) {
    return (mx_matrix){.format = MX_F32,
                       .rows = rows,
                       .cols = cols,
                       .data = (const uint8_t *)w,
                       .row_stride = cols * 4,
                       .bf16_safe = true};
}

static void put_experts(mx_experts *to, const float *w) {
    const int64_t rows = to->matrix.rows, cols = to->matrix.cols;
    to->matrix = dense(w, rows, cols);
    to->data_stride = rows * cols * 4;
    to->scale_stride = to->zero_stride = to->post_stride = 0;
    to->bf16_safe = true;
}

/* The view has `w` [weights] for the part, or the model's own matrices (NULL). */
static void put(measuring *m, const mx_budget_part *p, const float *w) {
    const mx_config *c = &m->view.config;
    const mx_weights *own = m->weights;
    const int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim, h = c->hidden;
    mx_layer *l = p->layer < 0 ? NULL : &m->view.layer[p->layer];
    if (!w && l) {
        *l = own->layer[p->layer];
        return;
    }
    switch (p->part) {
    case MX_PART_QKV:
        l->q = dense(w, q, h);
        l->k = dense(w + q * h, kv, h);
        l->v = dense(w + (q + kv) * h, kv, h);
        break;
    case MX_PART_O:
        l->o = dense(w, h, q);
        break;
    case MX_PART_GATE_UP:
        put_experts(&l->gate_up, w);
        if (l->up.matrix.rows) put_experts(&l->up, w + (int64_t)c->experts * c->intermediate * h);
        break;
    case MX_PART_DOWN:
        put_experts(&l->down, w);
        break;
    case MX_PART_EMBEDDING:
        m->view.embedding = w ? dense(w, c->vocab, h) : own->embedding;
        if (c->tied_embeddings && !m->source->untied) m->view.lm_head = w ? m->view.embedding : own->lm_head;
        break;
    default:
        m->view.lm_head = w ? dense(w, c->vocab, h) : own->lm_head;
    }
}

/* Where the rows of a module begin in its part's matrices, and how far they lie apart: gate and up alternate where the
 * model has them so. */
static float *place_of(const measuring *m, const mx_module *module, float *w, int64_t *step) {
    const mx_config *c = &m->view.config;
    const int64_t h = c->hidden, expert = (int64_t)c->intermediate * h, e = module->expert;
    const bool apart = module->layer >= 0 && m->weights->layer[module->layer].up.matrix.rows > 0;
    *step = module->cols;
    switch (module->kind) {
    case MX_KIND_K:
        return w + (int64_t)c->heads * c->head_dim * h;
    case MX_KIND_V:
        return w + (int64_t)(c->heads + c->kv_heads) * c->head_dim * h;
    case MX_KIND_GATE:
    case MX_KIND_UP:
        if (apart) return w + (e + (module->kind == MX_KIND_UP ? c->experts : 0)) * expert;
        *step = 2 * h;
        return w + 2 * e * expert + (module->kind == MX_KIND_UP ? h : 0);
    case MX_KIND_DOWN:
        return w + e * expert;
    default:
        return w;
    }
}

/* The module has the sizes that the model's configuration gives it. */
static mx_status check_size(const measuring *m, const mx_module *module) {
    const mx_config *c = &m->view.config;
    const int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    const int64_t sizes[MX_KINDS][2] = {[MX_KIND_Q] = {q, c->hidden},
                                        [MX_KIND_K] = {kv, c->hidden},
                                        [MX_KIND_V] = {kv, c->hidden},
                                        [MX_KIND_O] = {c->hidden, q},
                                        [MX_KIND_GATE] = {c->intermediate, c->hidden},
                                        [MX_KIND_UP] = {c->intermediate, c->hidden},
                                        [MX_KIND_DOWN] = {c->hidden, c->intermediate},
                                        [MX_KIND_EMBEDDING] = {c->vocab, c->hidden},
                                        [MX_KIND_LM_HEAD] = {c->vocab, c->hidden}};
    const int64_t *size = sizes[module->kind];
    if (module->rows == size[0] && module->cols == size[1] && module->layer < c->layers && module->expert < c->experts)
        return MX_OK;
    return mx_fail(m->error, MX_INVALID_FILE, "%s: %s: is [%lld, %lld], expected [%lld, %lld] as config.json has it",
                   m->source->path, module->name, (long long)module->rows, (long long)module->cols, (long long)size[0],
                   (long long)size[1]);
}

/* ---- quantising -------------------------------------------------------------------------------------------------- */

static bool needs_statistics(const mx_quantize_recipe *r) {
    return r->rule == MX_RULE_WEIGHTED || r->gptq;
}

mx_quantize_recipe mx_budget_recipe(const mx_quantize_recipe *recipe, const mx_form *form, mx_kind kind) {
    mx_quantize_recipe r = *recipe;
    if (kind == MX_KIND_EMBEDDING && r.rule == MX_RULE_WEIGHTED) r.rule = MX_RULE_SEARCH;
    if (kind == MX_KIND_EMBEDDING) r.gptq = false;
    if (!mx_quantize_recipe_check(&r, form, NULL)) return r;
    r.four_over_six = r.tensor_search = false;
    if (!mx_quantize_recipe_check(&r, form, NULL)) return r;
    r.gptq = false;
    if (!mx_quantize_recipe_check(&r, form, NULL)) return r;
    return (mx_quantize_recipe){.rule = MX_RULE_OCP, .hadamard = recipe->hadamard};
}

/* Statistics of all that a form's recipe needs them for. */
static mx_status open_calibration(measuring *m) {
    const mx_source *s = m->source;
    const mx_budget_report *r = m->report;
    if (!needs_statistics(&m->options->recipe)) return MX_OK;
    const mx_calibrate_options options = {.text_path = m->options->calibrate,
                                          .tokens = m->options->tokens,
                                          .rotated = m->options->recipe.hadamard,
                                          .pool = m->pool,
                                          .weights = m->weights,
                                          .stop = m->options->stop};
    mx_status status = mx_calibration_open(s->path, &m->weights->config, &options, &m->calibration, m->error);
    for (int i = 0; i < s->modules && !status; i++)
        for (int j = 0; j < r->formats && part_of(&s->module[i]) >= 0; j++) {
            const mx_quantize_recipe recipe =
                mx_budget_recipe(&m->options->recipe, &r->part[0].choice[j].form, s->module[i].kind);
            if (needs_statistics(&recipe)) mx_calibration_want(m->calibration, &s->module[i], recipe.gptq);
        }
    return status;
}

struct widening {
    mx_matrix from;
    float *to;
    int64_t step;
};

static void widen_rows(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const struct widening *w = arg;
    for (int64_t n = begin; n < end; n++) mx_matrix_widen_row(w->to + n * w->step, &w->from, n);
}

/* The module quantised, and what it is worth then in its place in w. */
static mx_status quantize_module(measuring *m, const mx_module *module, const mx_form *form, float *w,
                                 mx_quantize_report *out) {
    const int64_t rows = module->rows, cols = module->cols;
    mx_quantize_job job = {.name = module->name,
                           .rows = rows,
                           .cols = cols,
                           .read = module->read,
                           .user = module->user,
                           .form = *form,
                           .recipe = mx_budget_recipe(&m->options->recipe, form, module->kind),
                           .stop = m->options->stop};
    mx_status status = MX_OK;
    if (needs_statistics(&job.recipe)) {
        status = mx_calibration_run(m->calibration, module, m->error);
        if (status) return status;
        job.statistics = mx_calibration_of(m->calibration, module);
    }
    int64_t step;
    float *place = place_of(m, module, w, &step), *own = NULL;
    job.data = malloc((size_t)(rows * mx_columns_bytes(form->format, cols)));
    job.scales = malloc((size_t)(rows * mx_row_scale_bytes(&form->blocks, cols)) + 1);
    job.zeros = malloc((size_t)(rows * mx_row_zero_bytes(&form->blocks, cols)) + 1);
    job.post = malloc((size_t)rows * sizeof *job.post);
    if (step != cols) own = malloc((size_t)(rows * cols) * sizeof *own);
    if (!job.data || !job.scales || !job.zeros || !job.post || (step != cols && !own))
        status = no_memory(m, module->name);
    if (!status) status = mx_quantize_matrix(&job, m->pool, out, m->error);
    if (!status) {
        float *to = own ? own : place;
        mx_parallel_for(m->pool, rows, WIDEN_GRAIN, widen_rows, &(struct widening){mx_quantize_view(&job), to, cols});
        mx_rotation_undo(module, to);
        for (int64_t n = 0; n < rows && own; n++) memcpy(place + n * step, own + n * cols, (size_t)cols * sizeof *own);
    }
    free(job.data);
    free(job.scales);
    free(job.zeros);
    free(job.post);
    free(own);
    return status;
}

/* The part in this form, to w [weights]; *lossless: it is worth what it was. */
static mx_status quantize_part(measuring *m, const mx_budget_part *p, mx_budget_choice *c, float *w, bool *lossless) {
    double square = 0, error = 0;
    mx_status status = MX_OK;
    *lossless = !m->options->recipe.hadamard;
    for (int i = 0; i < m->source->modules && !status; i++) {
        const mx_module *module = &m->source->module[i];
        mx_quantize_report r = {0};
        if (!is_in(module, p)) continue;
        status = check_size(m, module);
        if (!status) status = quantize_module(m, module, &c->form, w, &r);
        square += r.square;
        error += r.error;
        *lossless = *lossless && r.lossless;
    }
    c->error = square > 0 ? error / square : 0;
    return status;
}

/* ---- measuring --------------------------------------------------------------------------------------------------- */

/* The layer that first sees the part; `layers`: none, only lm_head. */
static int first_layer(const measuring *m, const mx_budget_part *p) {
    return p->part == MX_PART_LM_HEAD ? m->view.config.layers : p->layer < 0 ? 0 : p->layer;
}

/* The part in one of its forms: how far it moves the predictions. */
static mx_status measure_choice(measuring *m, const mx_budget_part *p, mx_budget_choice *c, bool estimate, float *w) {
    bool lossless;
    mx_status status = quantize_part(m, p, c, w, &lossless);
    if (status || lossless || estimate) {
        m->done += m->text.ids.count; /* is not run */
        return status;
    }
    put(m, p, w);
    c->run = true;
    /* What comes before the part is as it was. */
    if (m->forward.residual) m->forward.first = first_layer(m, p);
    status = run_text(m, false, &c->kl);
    m->forward.first = 0;
    put(m, p, NULL);
    return status;
}

/* The possible choice of the fewest bits. */
static int fewest_bits(const mx_budget_part *p, int formats) {
    int low = -1;
    for (int j = 0; j < formats; j++)
        if (p->choice[j].possible && (low < 0 || p->choice[j].bits < p->choice[low].bits)) low = j;
    return low;
}

/* Each form of the part. Quick: of those beside the smallest only the error, which KL is taken to be proportional to.
 */
static mx_status measure_part(measuring *m, mx_budget_part *p) {
    const int formats = m->report->formats, low = fewest_bits(p, formats);
    const bool quick = m->options->quick;
    mx_status status = MX_OK;
    float *w = malloc((size_t)p->weights * sizeof *w);
    if (!w) return no_memory(m, mx_part_name(p->part));
    for (int j = 0; j < formats && !status; j++)
        if (p->choice[j].possible) status = measure_choice(m, p, &p->choice[j], quick && j != low, w);
    const mx_budget_choice *first = &p->choice[low < 0 ? 0 : low];
    for (int j = 0; j < formats && !status && quick; j++)
        if (j != low && p->choice[j].possible && first->error > 0)
            p->choice[j].kl = first->kl * p->choice[j].error / first->error;
    free(w);
    return status;
}

/* All parts as they were chosen, at once; -1 where their matrices have no room beside each other in fp32. */
static mx_status measure_mixture(measuring *m) {
    mx_budget_report *r = m->report;
    int64_t bytes = 0;
    for (int i = 0; i < r->parts; i++) bytes += r->part[i].weights * 4;
    r->kl_measured = -1;
    if ((uint64_t)bytes > mx_memory_available() / 2) return MX_OK;
    float *w = malloc((size_t)bytes), *at = w;
    if (!w) return MX_OK;
    mx_status status = MX_OK;
    for (int i = 0; i < r->parts && !status; at += r->part[i++].weights) {
        mx_budget_choice choice = r->part[i].choice[r->part[i].chosen];
        bool lossless;
        status = quantize_part(m, &r->part[i], &choice, at, &lossless);
    }
    at = w;
    for (int i = 0; i < r->parts && !status; at += r->part[i++].weights) put(m, &r->part[i], at);
    if (!status) status = run_text(m, false, &r->kl_measured);
    for (int i = 0; i < r->parts; i++) put(m, &r->part[i], NULL);
    free(w);
    return status;
}

/* Model, text, and room for what is compared. */
static mx_status prepare(measuring *m) {
    const mx_budget_options *o = m->options;
    mx_tokenizer *tokenizer = NULL;
    mx_status status = mx_pool_create(o->threads, &m->pool, m->error);
    if (!status) status = mx_kernels_get(NULL, &m->kernels, m->error);
    if (!status) status = mx_weights_open(m->source->path, m->pool, &m->weights, m->error);
    if (!status) status = mx_tokenizer_open(m->source->path, &tokenizer, m->error);
    if (!status) {
        int64_t window = o->window ? o->window : WINDOW;
        if (window > m->weights->config.max_positions) window = m->weights->config.max_positions;
        status = mx_passages_read(o->calibrate, tokenizer, o->tokens ? o->tokens : TOKENS, window, &m->text, m->error);
    }
    mx_tokenizer_close(tokenizer);
    if (status) return status;
    m->view = *m->weights;
    const mx_config *c = &m->view.config;
    const int64_t vocab = c->vocab, most = LOGIT_BYTES / (vocab * 4);
    int64_t longest = m->text.ids.count < STEP_ROWS ? m->text.ids.count : STEP_ROWS;
    m->every = (m->text.ids.count + most - 1) / (most > 0 ? most : 1);
    for (int i = 0; i < m->text.count; i++) {
        if (m->text.first[i + 1] - m->text.first[i] > longest) longest = m->text.first[i + 1] - m->text.first[i];
        for (int64_t k = m->text.first[i]; k < m->text.first[i + 1]; k++)
            m->rows += mx_forward_wanted(k, m->text.first[i + 1], m->every);
    }
    m->view.layer = malloc((size_t)c->layers * sizeof *m->view.layer);
    m->logits = malloc((size_t)(m->rows * vocab) * sizeof *m->logits + 1);
    m->scratch_floats = (vocab + 15) / 16 * 16;
    m->scratch = aligned_alloc(64, (size_t)mx_pool_threads(m->pool) * (size_t)m->scratch_floats * sizeof *m->scratch);
    m->kl = malloc((size_t)m->rows * sizeof *m->kl + 1);
    if (!m->view.layer || !m->logits || !m->scratch || !m->kl) return no_memory(m, "predictions");
    memcpy(m->view.layer, m->weights->layer, (size_t)c->layers * sizeof *m->view.layer);
    m->report->tokens = m->rows;
    status =
        mx_forward_open(&m->view, m->pool, NULL, (int)longest, (int)(longest / m->every + 1), &m->forward, m->error);
    const uint64_t residual = (uint64_t)m->text.ids.count * (uint64_t)(c->layers + 1) * (uint64_t)c->hidden * 4;
    if (!status && residual < mx_memory_available() / 4)
        status = mx_forward_keep(&m->forward, m->text.ids.count, m->error);
    return status;
}

/* `whole`: seconds of a run of all layers; `share`: of such runs that all of them are together. */
static void say_how_long(const measuring *m, double whole, int runs, double share) {
    char time[32];
    mx_progress_time_left(whole * share, time);
    char *left = strstr(time, " left");
    if (left) *left = 0;
    mx_log(MX_LOG_INFO,
           "sensitivity: %d runs of %lld tokens, about %s, and quantising every part in %d formats besides", runs,
           (long long)m->text.ids.count, time, m->report->formats);
}

static mx_status measure(measuring *m) {
    mx_budget_report *r = m->report;
    const double layers = m->view.config.layers + 1;
    int runs = 0, all = 0;
    double share = 0;
    for (int i = 0; i < r->parts; i++)
        for (int j = 0; j < r->formats; j++) {
            if (!r->part[i].choice[j].possible) continue;
            all++;
            if (m->options->quick && j != fewest_bits(&r->part[i], r->formats)) continue;
            runs++;
            share += m->forward.residual ? (layers - first_layer(m, &r->part[i])) / layers : 1;
        }
    m->total = (all + 2) * m->text.ids.count;
    const double started = mx_seconds();
    mx_status status = run_text(m, true, NULL);
    if (!status) say_how_long(m, mx_seconds() - started, runs, share);
    for (int i = 0; i < r->parts && !status; i++) status = measure_part(m, &r->part[i]);
    return status;
}

/* ---- all --------------------------------------------------------------------------------------------------------- */

/* The mixture for `bits` a weight of all matrices, of which those that keep 16 take theirs first. */
static mx_status choose(measuring *m, const mx_form *kept, mx_form *form) {
    const mx_source *s = m->source;
    mx_budget_report *r = m->report;
    int64_t weights = 0, fixed = 0, bits = 0;
    for (int i = 0; i < s->modules; i++) {
        weights += s->module[i].rows * s->module[i].cols;
        if (part_of(&s->module[i]) < 0) fixed += bits_of(kept, &s->module[i]);
    }
    int64_t least = fixed;
    for (int i = 0; i < r->parts; i++) {
        const int low = fewest_bits(&r->part[i], r->formats);
        if (low >= 0) least += r->part[i].choice[low].bits;
    }
    const double budget = m->options->bits * (double)weights;
    if ((double)least > budget)
        return mx_fail(m->error, MX_INVALID_ARGUMENT,
                       "%s: %.4g bits a weight cannot be had: the smallest of these formats take %.4g", s->path,
                       m->options->bits, (double)least / (double)weights);
    const int64_t most = budget < 0x1p60 ? (int64_t)budget : (int64_t)1 << 60;
    mx_status status = mx_budget_solve(r->part, r->parts, r->formats, most - fixed, m->error);
    if (status) return status;
    for (int i = 0; i < s->modules; i++) {
        form[i] = *kept;
        for (int p = 0; p < r->parts; p++)
            if (is_in(&s->module[i], &r->part[p])) form[i] = r->part[p].choice[r->part[p].chosen].form;
    }
    r->kl = 0;
    for (int p = 0; p < r->parts; p++) {
        bits += r->part[p].choice[r->part[p].chosen].bits;
        r->kl += r->part[p].choice[r->part[p].chosen].kl;
    }
    r->bits = (double)(bits + fixed) / (double)weights;
    return MX_OK;
}

mx_status mx_budget_choose(const mx_source *source, const mx_budget_options *options, mx_form *form,
                           mx_budget_report *report, mx_error *error) {
    mx_error own;
    measuring m = {.source = source, .options = options, .report = report, .error = error ? error : &own};
    mx_form all[MX_BUDGET_FORMATS], kept;
    int formats;
    const double started = mx_seconds();
    *report = (mx_budget_report){.kl_measured = -1};
    if (!source->gpt_oss)
        return mx_fail(error, MX_UNSUPPORTED, "%s: bits can be aimed at for models of gpt-oss form only: it is run",
                       source->path);
    if (!(options->bits > 0) || !options->calibrate)
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s: a number of bits and a calibration text are needed",
                       source->path);
    mx_status status =
        parse_formats(options->formats ? options->formats : mx_budget_default_formats, all, &formats, error);
    if (!status) status = mx_form_parse("bf16", &kept, error);
    if (!status) status = find_parts(&m, all, formats);
    if (!status) status = choose(&m, &kept, form); /* is it possible at all? */
    if (!status) status = prepare(&m);
    if (!status) status = open_calibration(&m);
    if (!status) status = measure(&m);
    if (!status) status = choose(&m, &kept, form);
    if (!status) status = measure_mixture(&m);
    report->seconds = mx_seconds() - started;
    mx_calibration_free(m.calibration);
    mx_forward_close(&m.forward);
    mx_passages_free(&m.text);
    free(m.view.layer);
    free(m.logits);
    free(m.scratch);
    free(m.kl);
    mx_weights_close(m.weights);
    mx_pool_destroy(m.pool);
    return status;
}
