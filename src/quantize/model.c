#include "quantize/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/log.h"
#include "model/show.h"
#include "quantize/budget.h"
#include "quantize/fill.h"
#include "quantize/rotate.h"

/* One run: the source, what its modules become, and the place where it goes. */
typedef struct run {
    const char *in;
    const mx_model_options *options;
    mx_model_report *report;
    mx_error *error;
    mx_location place;
    mx_source source;
    mx_rotation *rotation;
    mx_choice *choice; /* [source.modules] */
    bool *changed;
    mx_plan plan;
    int *matrix_of; /* [plan.works] */
    mx_record record;
    mx_origin origin; /* where the small files come from, for layouts that are no folder of ours */
    bool origin_open;
    mx_output out;
} run;

static mx_status no_memory(const run *r) {
    return mx_fail(r->error, MX_NO_MEMORY, "%s: no memory to quantise it", r->in);
}

/* ---- what becomes of it -------------------------------------------------------------------------------------------
 */

static mx_status rotate(run *r) {
    mx_source *s = &r->source;
    if (!s->gpt_oss)
        return mx_fail(
            r->error, MX_UNSUPPORTED,
            "%s: the recipe hadamard folds rotations into neighbouring weights, which mxrun knows of gpt-oss "
            "alone",
            r->in);
    const int before = s->modules;
    mx_read_rows **read = calloc((size_t)before + 1, sizeof *read);
    void **user = calloc((size_t)before + 1, sizeof *user);
    mx_status status = read && user ? MX_OK : no_memory(r);
    for (int i = 0; i < before && !status; i++) {
        read[i] = s->module[i].read;
        user[i] = s->module[i].user;
    }
    if (!status) status = mx_rotate(s, r->options->allow_nonfinite, &r->rotation, r->error);
    free(r->changed);
    r->changed = calloc((size_t)s->modules + 1, sizeof *r->changed);
    if (!status && !r->changed) status = no_memory(r);
    for (int i = 0; i < s->modules && !status; i++)
        r->changed[i] = i >= before || s->module[i].read != read[i] || s->module[i].user != user[i];
    free(read);
    free(user);
    return status;
}

static void measuring(void *user, int64_t done, int64_t total) {
    const mx_model_options *o = ((const run *)user)->options;
    if (o->progress) o->progress(o->user, "measuring", false, (uint64_t)done, (uint64_t)total);
}

/* --target-bits. */
static mx_status choose_by_budget(run *r) {
    const mx_model_options *o = r->options;
    const mx_budget_options options = {.bits = o->target_bits,
                                       .calibrate = o->calibrate,
                                       .formats = o->formats,
                                       .tokens = o->calibrate_tokens,
                                       .quick = o->quick,
                                       .recipe = o->choice.recipe,
                                       .threads = mx_pool_threads(o->pool),
                                       .progress = measuring,
                                       .user = r,
                                       .stop = o->stop};
    mx_form *form = calloc((size_t)r->source.modules + 1, sizeof *form);
    mx_status status = form ? mx_budget_choose(&r->source, &options, form, &r->report->budget, r->error) : no_memory(r);
    for (int i = 0; i < r->source.modules && !status; i++) {
        const mx_module *m = &r->source.module[i];
        r->choice[i] = (mx_choice){.form = form[i], .recipe = mx_budget_recipe(&o->choice.recipe, &form[i], m->kind)};
        /* What stays in 16 bits stays in those that it has. */
        r->choice[i].kept = m->kind == MX_KIND_ROUTER && m->tensor->dtype == MX_DTYPE_F16;
    }
    free(form);
    return status;
}

/* An embedding is no product: nothing goes into it that statistics could be of. */
static void spare_embedding(run *r) {
    for (int i = 0; i < r->source.modules; i++) {
        mx_choice *c = &r->choice[i];
        if (r->source.module[i].kind != MX_KIND_EMBEDDING || !mx_needs_statistics(c)) continue;
        c->recipe.gptq = false;
        if (c->recipe.rule == MX_RULE_WEIGHTED) c->recipe.rule = MX_RULE_SEARCH;
        const bool tied = r->source.gpt_oss && r->source.config.tied_embeddings && !r->source.untied;
        mx_log(MX_LOG_INFO, "%s: is looked up%s: its scales are searched without statistics", r->source.module[i].name,
               tied ? ", besides being lm_head" : ", not multiplied with");
    }
}

static mx_status choose(run *r) {
    const mx_model_options *o = r->options;
    r->choice = calloc((size_t)r->source.modules + 1, sizeof *r->choice);
    mx_status status = r->choice ? MX_OK : no_memory(r);
    if (!status)
        status = o->target_bits > 0 ? choose_by_budget(r) : mx_choose(&r->source, &o->choice, r->choice, r->error);
    if (status) return status;
    spare_embedding(r);
    bool needed = false;
    for (int i = 0; i < r->source.modules; i++) needed |= mx_needs_statistics(&r->choice[i]);
    if (needed && !r->source.gpt_oss)
        return mx_fail(r->error, MX_UNSUPPORTED,
                       "%s: the recipes weighted and gptq run the model over a text, and mxrun runs gpt-oss alone",
                       r->in);
    if (needed && !o->calibrate)
        return mx_fail(r->error, MX_INVALID_ARGUMENT, "the recipes weighted and gptq need a text: --calibrate FILE");
    return MX_OK;
}

/* ---- report -------------------------------------------------------------------------------------------------------
 */

static mx_model_class *class_of(run *r, mx_group group, const mx_form *form, bool kept) {
    mx_model_report *report = r->report;
    for (int i = 0; i < report->classes; i++) {
        mx_model_class *c = &report->of_class[i];
        if (c->group == group && c->kept == kept && mx_form_equal(&c->form, form)) return c;
    }
    mx_model_class *more = realloc(report->of_class, (size_t)(report->classes + 1) * sizeof *more);
    if (!more) return NULL;
    report->of_class = more;
    more[report->classes] = (mx_model_class){.group = group, .form = *form, .kept = kept, .sum = {.lossless = true}};
    return &more[report->classes++];
}

static mx_model_matrix *add_matrix(run *r, const mx_module *m, const mx_form *form, bool kept, int64_t rows) {
    mx_model_matrix *to = &r->report->matrix[r->report->matrices++];
    *to = (mx_model_matrix){.group = mx_group_of(m), .form = *form, .kept = kept, .rows = rows, .cols = m->cols};
    to->was_mxfp4 = m->tensor->dtype == MX_DTYPE_U8;
    snprintf(to->name, sizeof to->name, "%s", m->name);
    return to;
}

/* The list of matrices, and the classes as far as they are known before. */
static mx_status list(run *r) {
    const mx_source *s = &r->source;
    const mx_plan *p = &r->plan;
    r->report->matrix = calloc((size_t)s->modules + 1, sizeof *r->report->matrix);
    r->matrix_of = calloc((size_t)p->works + 1, sizeof *r->matrix_of);
    if (!r->report->matrix || !r->matrix_of) return no_memory(r);
    for (int i = 0; i < s->modules; i++)
        if (p->copied[i]) add_matrix(r, &s->module[i], &p->form[i], true, s->module[i].rows);
    for (int i = 0; i < p->works; i++) {
        const mx_work *w = &p->work[i];
        r->matrix_of[i] = r->report->matrices;
        mx_model_matrix *m = add_matrix(r, &s->module[w->module], &w->choice.form, false, w->rows);
        m->pair = w->pair >= 0;
        if (m->pair) snprintf(m->name + strlen(m->name) - strlen("gate_proj"), 13, "gate_up_proj");
    }
    for (int i = 0; i < r->report->matrices; i++) {
        const mx_model_matrix *m = &r->report->matrix[i];
        mx_model_class *c = class_of(r, m->group, &m->form, m->kept);
        if (!c) return no_memory(r);
        c->matrices += m->pair ? 2 : 1;
        c->weights += m->rows * m->cols;
        c->bytes += (uint64_t)(mx_form_bits(&m->form, m->rows, m->cols) * (double)(m->rows * m->cols) / 8 + 0.5);
    }
    r->report->other = calloc((size_t)s->vectors + 1, sizeof *r->report->other);
    if (!r->report->other) return no_memory(r);
    for (int i = 0; i < s->vectors; i++) {
        const mx_vector *v = &s->vector[i];
        if (p->taken[i]) continue;
        mx_model_other *to = &r->report->other[r->report->others++];
        snprintf(to->name, sizeof to->name, "%s", v->tensor->name);
        snprintf(to->type, sizeof to->type, "%s", v->tensor->dtype_name);
        to->changed = v->changed != NULL;
    }
    r->report->bytes = p->bytes;
    for (int i = 0; i < mx_checkpoint_count(s->checkpoint); i++)
        r->report->bytes_before += mx_checkpoint_at(s->checkpoint, i)->bytes;
    return MX_OK;
}

static void sum_up(run *r) {
    for (int i = 0; i < r->report->matrices; i++) {
        const mx_model_matrix *m = &r->report->matrix[i];
        if (m->kept) continue;
        mx_model_class *c = class_of(r, m->group, &m->form, false);
        mx_quantize_report *sum = &c->sum;
        const mx_quantize_report *of = &m->report;
        c->unseen += of->unseen;
        sum->square += of->square;
        sum->error += of->error;
        if (of->largest_error > sum->largest_error) sum->largest_error = of->largest_error;
        sum->saturated += of->saturated;
        sum->zero_blocks += of->zero_blocks;
        sum->nonfinite += of->nonfinite;
        sum->lossless &= of->lossless;
    }
}

void mx_model_report_free(mx_model_report *r) {
    free(r->of_class);
    free(r->matrix);
    free(r->other);
    mx_budget_report_free(&r->budget);
    *r = (mx_model_report){0};
}

/* ---- small files --------------------------------------------------------------------------------------------------
 */

/* config.json and what else lies beside the weights, into the output. */
static mx_status put_texts(run *r) {
    mx_bytes config = {0}, beside = {0};
    mx_record *record = &r->record;
    mx_status status = MX_OK;
    if (r->place.layout == MX_LAYOUT_HF) {
        status = mx_record_of_folder(record, r->place.path, r->source.checkpoint, r->error);
    } else if (r->place.layout != MX_LAYOUT_TENSORS) {
        static const mx_convert_options to_hf = {.to = MX_LAYOUT_HF};
        r->origin_open = true;
        status = mx_origin_open(&r->origin, r->in, &to_hf, r->error);
        record = &r->origin.record;
    }
    if (status) return status;
    const mx_bytes *text = r->place.layout == MX_LAYOUT_HF ? mx_record_file(record, "config.json") : NULL;
    status = mx_plan_config(&r->plan, text, &config);
    if (!status && r->options->modelopt && !mx_plan_modelopt(&r->plan, &beside)) status = no_memory(r);
    mx_record_make_stale(record);
    bool ok = !status;
    for (int i = 0; i < record->files && ok; i++)
        ok = mx_output_add_text(&r->out, record->file[i].name, record->file[i].content.data,
                                record->file[i].content.size);
    ok = ok && mx_output_add_text(&r->out, "config.json", config.data, config.size);
    ok = ok && (!beside.size || mx_output_add_text(&r->out, "hf_quant_config.json", beside.data, beside.size));
    if (!status && !ok) status = no_memory(r);
    mx_bytes_free(&config);
    mx_bytes_free(&beside);
    return status;
}

/* ---- all of it ----------------------------------------------------------------------------------------------------
 */

static mx_status write_folder(run *r) {
    const double start = mx_seconds();
    const mx_fill fill = {.plan = &r->plan,
                          .out = &r->out,
                          .options = r->options,
                          .rotated = r->rotation != NULL,
                          .report = r->report,
                          .matrix_of = r->matrix_of,
                          .error = r->error};
    mx_status status = mx_plan_put(&r->plan, &r->out);
    if (!status) status = put_texts(r);
    if (!status) status = mx_output_create(&r->out);
    if (!status) status = mx_fill_run(&fill);
    if (status) return status;
    r->report->file_bytes = mx_output_size(&r->out);
    r->report->files = r->out.files;
    sum_up(r);
    status = mx_output_publish(&r->out);
    r->report->quantize_seconds = mx_seconds() - start - r->report->calibrate_seconds;
    return status;
}

static mx_status check_name(const run *r, const char *path) {
    static const char *const ends[] = {".gguf", ".bin", ".safetensors"};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (mx_ends_with(path, ends[i]))
            return mx_fail(r->error, MX_INVALID_ARGUMENT,
                           "%s: a folder is written, and this is the name of a file: give a folder's", path);
    return MX_OK;
}

static mx_status quantize(run *r, const char *path) {
    mx_status status = mx_location_find(r->in, &r->place, r->error);
    if (!status) status = check_name(r, path);
    if (!status && !r->options->dry_run) /* before anything that takes long */
        status = mx_output_begin(&r->out, path, true, r->options->force, &r->place, r->error);
    if (!status) status = mx_source_open(r->in, &r->source, r->error);
    if (status) return status;
    r->changed = calloc((size_t)r->source.modules + 1, sizeof *r->changed);
    if (!r->changed) return no_memory(r);
    if (r->options->choice.recipe.hadamard) status = rotate(r); /* it may have one matrix more afterwards */
    if (!status) status = choose(r);
    if (status) return status;
    r->plan = (mx_plan){.source = &r->source,
                        .choice = r->choice,
                        .changed = r->changed,
                        .modelopt = r->options->modelopt,
                        .clean = r->options->allow_nonfinite,
                        .error = r->error};
    status = mx_plan_make(&r->plan);
    if (!status) status = list(r);
    if (!status && r->options->dry_run) {
        mx_bytes config = {0}; /* says what else would be refused */
        status = mx_plan_config(&r->plan, NULL, &config);
        mx_bytes_free(&config);
        return status;
    }
    return status ? status : write_folder(r);
}

mx_status mx_quantize_model(const char *in, const char *out, const mx_model_options *options, mx_model_report *report,
                            mx_error *error) {
    const double start = mx_seconds();
    mx_error own = {0};
    *report = (mx_model_report){0};
    run r = {.in = in, .options = options, .report = report, .error = error ? error : &own, .out = {.lock = -1}};
    const mx_status status = quantize(&r, out);
    report->seconds = mx_seconds() - start;
    mx_output_end(&r.out);
    mx_record_free(&r.record);
    if (r.origin_open) mx_origin_close(&r.origin);
    mx_plan_free(&r.plan);
    free(r.matrix_of);
    free(r.choice);
    free(r.changed);
    mx_rotation_free(r.rotation);
    mx_source_close(&r.source);
    return status;
}
