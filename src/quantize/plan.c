#include "quantize/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "model/show.h"

static mx_status no_memory(const mx_plan *p) {
    return mx_fail(p->error, MX_NO_MEMORY, "%s: no memory to plan its tensors", p->source->path);
}

static void *another(void *list, int count, int *room, size_t size) {
    if (count < *room) return list;
    const int more = *room ? 2 * *room : 256;
    void *grown = realloc(list, (size_t)more * size);
    if (grown) *room = more;
    return grown;
}

/* ---- entries ------------------------------------------------------------------------------------------------------
 */

/* Another tensor of the output, called stem.name or stem where name is ""; its index, or -1, which `error` says. */
static int add_entry(mx_plan *p, const char *stem, const char *name, const char *dtype, int bits, int dims,
                     const int64_t *shape) {
    mx_entry *more = another(p->entry, p->entries, &p->entry_room, sizeof *more);
    if (!more) {
        no_memory(p);
        return -1;
    }
    p->entry = more;
    mx_entry *e = &more[p->entries];
    *e = (mx_entry){.dims = dims};
    if (snprintf(e->name, sizeof e->name, "%s%s%s", stem, *name ? "." : "", name) >= (int)sizeof e->name) {
        mx_fail(p->error, MX_UNSUPPORTED, "%.60s...: the name of a tensor is longer than %zu bytes", stem,
                sizeof e->name - 1);
        return -1;
    }
    snprintf(e->dtype, sizeof e->dtype, "%s", dtype);
    uint64_t elements = 1;
    for (int i = 0; i < dims; i++) elements *= (uint64_t)(e->shape[i] = shape[i]);
    e->made = (mx_made){.slices = 1, .slice_bytes = elements * (uint64_t)bits / 8};
    p->bytes += e->made.slice_bytes;
    return p->entries++;
}

/* A tensor as it is, under `name`. */
static mx_status copy(mx_plan *p, const mx_tensor *t, const char *name) {
    const bool widened = t->dtype == MX_DTYPE_Q8_0; /* which safetensors do not have; exactly */
    const int at = add_entry(p, name, "", widened ? "F32" : t->dtype_name, 0, t->dims, t->shape);
    if (at < 0) return p->error->status;
    p->entry[at].made = mx_make_rows(t, NULL, NULL, widened ? MX_DTYPE_F32 : t->dtype);
    p->bytes += mx_plan_bytes(p, at);
    return MX_OK;
}

/* The same of experts that lie as [experts, out, in]: as [experts, in, out], as transformers has them. */
static mx_status copy_turned(mx_plan *p, const mx_tensor *t, const char *name) {
    const int at = add_entry(p, name, "", t->dtype_name, 0, 3, (int64_t[]){t->shape[0], t->shape[2], t->shape[1]});
    if (at < 0) return p->error->status;
    p->entry[at].made = mx_make_turned(t);
    p->bytes += mx_plan_bytes(p, at);
    return MX_OK;
}

/* ---- forms --------------------------------------------------------------------------------------------------------
 */

static bool is_mxfp4(const mx_form *f) {
    return f->format == MX_MXFP4 || (f->format == MX_E2M1 && f->blocks.columns == 32 && !f->blocks.sides &&
                                     f->blocks.scale == MX_SCALE_E8M0 && f->post == MX_POST_NONE);
}

static bool is_dense(mx_format format) {
    return format == MX_F32 || format == MX_F16 || format == MX_BF16;
}

/* What a module's tensor is in the file. */
static mx_form form_of(const mx_module *m) {
    switch (m->tensor->dtype) {
    case MX_DTYPE_BF16:
        return (mx_form){.format = MX_BF16};
    case MX_DTYPE_F16:
        return (mx_form){.format = MX_F16};
    case MX_DTYPE_U8:
        return (mx_form){.format = MX_E2M1, .blocks = {.columns = 32, .scale = MX_SCALE_E8M0}};
    default:
        return (mx_form){.format = MX_F32};
    }
}

static bool lies_turned(const mx_module *m) {
    return m->expert >= 0 && mx_ends_with(m->tensor->name, ".weight");
}

/* Form and whether it is a copy, of one module. */
static void resolve(mx_plan *p, int i) {
    const mx_module *m = &p->source->module[i];
    const mx_choice *c = &p->choice[i];
    const mx_form is = form_of(m);
    const bool q8 = m->tensor->dtype == MX_DTYPE_Q8_0;
    p->form[i] = c->kept ? is : c->form;
    const bool same = is_mxfp4(&is) ? is_mxfp4(&p->form[i]) && (c->kept || c->recipe.rule == MX_RULE_KEEP)
                                    : is.format == p->form[i].format;
    p->copied[i] = same && !p->changed[i] && (c->kept || !p->clean || is_mxfp4(&is));
    /* Experts that would have to be widened or turned in F32 go through their numbers. */
    if (m->expert >= 0 && (q8 || (lies_turned(m) && is.format == MX_F32))) p->copied[i] = false;
    if (q8 && m->expert < 0 && same && !p->changed[i]) p->copied[i] = true;
}

/* ---- one matrix ---------------------------------------------------------------------------------------------------
 */

static mx_work *add_work(mx_plan *p, int module) {
    mx_work *more = another(p->work, p->works, &p->work_room, sizeof *more);
    if (!more) {
        no_memory(p);
        return NULL;
    }
    p->work = more;
    const mx_module *m = &p->source->module[module];
    mx_work *w = &more[p->works++];
    *w = (mx_work){.module = module, .pair = -1, .rows = m->rows, .cols = m->cols, .choice = p->choice[module]};
    w->data = w->scales = w->zeros = w->post = w->shape = -1;
    w->choice.form = p->form[module];
    if (is_dense(w->choice.form.format)) w->choice.recipe = (mx_quantize_recipe){0}; /* has no scales to choose */
    return w;
}

static const char *dense_name(mx_format format) {
    return format == MX_BF16 ? "BF16" : format == MX_F16 ? "F16" : "F32";
}

/* The tensor of codes. */
static int add_data(mx_plan *p, const char *stem, const mx_form *f, int64_t rows, int64_t cols) {
    const bool modelopt = p->modelopt && f->blocks.scale == MX_SCALE_E4M3;
    switch (f->format) {
    case MX_E4M3:
        return add_entry(p, stem, "weight", "F8_E4M3", 8, 2, (int64_t[]){rows, cols});
    case MX_E5M2:
        return add_entry(p, stem, "weight", "F8_E5M2", 8, 2, (int64_t[]){rows, cols});
    case MX_INT8:
        return add_entry(p, stem, "weight", "I8", 8, 2, (int64_t[]){rows, cols});
    case MX_INT4:
        return add_entry(p, stem, "weight_packed", "I32", 32, 2, (int64_t[]){rows, cols / 8});
    case MX_E2M3:
        return add_entry(p, stem, "weight_e2m3", "U8", 8, 2, (int64_t[]){rows, cols / 4 * 3});
    case MX_E3M2:
        return add_entry(p, stem, "weight_e3m2", "U8", 8, 2, (int64_t[]){rows, cols / 4 * 3});
    case MX_E2M1:
    case MX_MXFP4:
        return add_entry(p, stem,
                         f->blocks.sides ? "weight_amxfp4"
                         : modelopt      ? "weight"
                                         : "weight_packed",
                         "U8", 8, 2, (int64_t[]){rows, cols / 2});
    default:
        return add_entry(p, stem, "weight", dense_name(f->format), f->format == MX_F32 ? 32 : 16, 2,
                         (int64_t[]){rows, cols});
    }
}

static int add_post(mx_plan *p, const char *stem, const mx_form *f, int64_t rows) {
    if (f->blocks.scale == MX_SCALE_NONE)
        return add_entry(p, stem, "weight_scale", "F32", 32, f->post == MX_POST_ROW ? 2 : 1,
                         (int64_t[]){f->post == MX_POST_ROW ? rows : 1, 1});
    return p->modelopt ? add_entry(p, stem, "weight_scale_2", "F32", 32, 0, NULL)
                       : add_entry(p, stem, "weight_global_scale", "F32", 32, 1, (int64_t[]){1});
}

/* Entries by part, so that those of the experts of a layer lie one behind the other, part by part. */
enum { PARTS = 5 };
static mx_status add_part(mx_plan *p, mx_work *w, int part) {
    const char *stem = p->source->module[w->module].name;
    const mx_form *f = &w->choice.form;
    const int64_t blocks = f->blocks.columns ? w->cols / f->blocks.columns : 0;
    static const char *const scale_names[] = {
        [MX_SCALE_NONE] = "", [MX_SCALE_E8M0] = "U8", [MX_SCALE_E4M3] = "F8_E4M3", [MX_SCALE_BF16] = "BF16"};
    int *at[PARTS] = {&w->data, &w->scales, &w->zeros, &w->post, &w->shape};
    if (part == 0) {
        w->data = add_data(p, stem, f, w->rows, w->cols);
    } else if (part == 1 && blocks) {
        w->scales =
            add_entry(p, stem, "weight_scale", scale_names[f->blocks.scale], 8 * mx_scale_bytes(f->blocks.scale), 2,
                      (int64_t[]){w->rows, f->blocks.sides ? 2 * blocks : blocks});
    } else if (part == 2 && f->blocks.zeros) {
        w->zeros = f->format == MX_INT4
                       ? add_entry(p, stem, "weight_zero_point", "I32", 32, 2, (int64_t[]){(w->rows + 7) / 8, blocks})
                       : add_entry(p, stem, "weight_zero_point", "I8", 8, 2, (int64_t[]){w->rows, blocks});
    } else if (part == 3 && f->post != MX_POST_NONE) {
        w->post = add_post(p, stem, f, w->rows);
    } else if (part == 4 && f->format == MX_INT4) {
        w->shape = add_entry(p, stem, "weight_shape", "I64", 64, 1, (int64_t[]){2});
    } else {
        return MX_OK;
    }
    return *at[part] < 0 ? p->error->status : MX_OK;
}

/* ---- experts ------------------------------------------------------------------------------------------------------
 */

static mx_vector *find_vector(const mx_plan *p, const char *name, int *index) {
    for (int i = 0; i < p->source->vectors; i++)
        if (!strcmp(p->source->vector[i].tensor->name, name)) {
            *index = i;
            return &p->source->vector[i];
        }
    return NULL;
}

static int64_t elements_of(const mx_tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->dims; i++) n *= t->shape[i];
    return n;
}

static bool is_bf16(const float *x, int64_t n) {
    uint32_t lost = 0, bits;
    for (int64_t i = 0; i < n; i++) {
        memcpy(&bits, &x[i], sizeof bits);
        lost |= bits & 0xFFFF;
    }
    return !lost;
}

/* A tensor of a vector's numbers. Changed ones stay in their type where that holds them exactly. */
static mx_status add_piece(mx_plan *p, const char *stem, const char *name, int vector, const mx_piece *numbers,
                           int dims, const int64_t *shape) {
    const mx_vector *v = &p->source->vector[vector];
    mx_piece *more = another(p->piece, p->pieces, &p->piece_room, sizeof *more);
    if (!more) return no_memory(p);
    p->piece = more;
    const bool single =
        v->tensor->dtype == MX_DTYPE_F32 ||
        (v->changed && !(v->tensor->dtype == MX_DTYPE_BF16 && is_bf16(v->changed, elements_of(v->tensor))));
    const int entry = add_entry(p, stem, name, single ? "F32" : v->tensor->dtype_name, single ? 32 : 16, dims, shape);
    if (entry < 0) return p->error->status;
    mx_piece *piece = &more[p->pieces++];
    *piece = *numbers;
    piece->entry = entry;
    piece->vector = vector;
    piece->single = single;
    return MX_OK;
}

/* Biases of experts apart; the joined tensor goes. */
static mx_status add_biases(mx_plan *p, int first, int experts, int parts, const char *stem) {
    char name[220];
    int index;
    snprintf(name, sizeof name, "%s_bias", stem);
    const mx_vector *v = find_vector(p, name, &index);
    if (!v) return MX_OK;
    const mx_module *m = &p->source->module[first];
    if (v->tensor->dims != 2 || v->tensor->shape[0] != experts || v->tensor->shape[1] != parts * m->rows ||
        (v->tensor->dtype != MX_DTYPE_BF16 && v->tensor->dtype != MX_DTYPE_F16 && v->tensor->dtype != MX_DTYPE_F32)) {
        char shape[120];
        return mx_fail(p->error, MX_INVALID_FILE, "%s: %s: is %s %s, expected BF16, F16 or F32 [%d, %lld]",
                       v->tensor->file, name, v->tensor->dtype_name,
                       mx_show_shape(shape, sizeof shape, v->tensor->shape, v->tensor->dims), experts,
                       (long long)(parts * m->rows));
    }
    p->taken[index] = true;
    mx_status status = MX_OK;
    for (int part = 0; part < parts && !status; part++)
        for (int e = 0; e < experts && !status; e++) {
            const mx_piece numbers = {.first = e * parts * m->rows + part, .step = parts, .count = m->rows};
            status = add_piece(p, p->source->module[first + e * parts + part].name, "bias", index, &numbers, 1,
                               (int64_t[]){m->rows});
        }
    return status;
}

/* Each expert's matrices apart: part by part, of gate and of up, one expert behind the other. */
static mx_status experts_apart(mx_plan *p, int first, int experts, int parts, const char *stem) {
    const int from = p->works, begin = p->entries;
    for (int i = 0; i < experts * parts; i++)
        if (!add_work(p, first + i)) return p->error->status;
    for (int m = 0; m < parts; m++)
        for (int part = 0; part < PARTS; part++)
            for (int e = 0; e < experts; e++) {
                mx_status status = add_part(p, &p->work[from + e * parts + m], part);
                if (status) return status;
            }
    mx_status status = add_biases(p, first, experts, parts, stem);
    for (int i = begin + 1; i < p->entries; i++) p->entry[i].joined = true;
    return status;
}

/* All experts in one tensor, or two: MXFP4 as gpt-oss is published, dense numbers as transformers has them. */
static mx_status experts_together(mx_plan *p, int first, int experts, int parts, const char *stem) {
    const mx_module *m = &p->source->module[first];
    const mx_form *f = &p->form[first];
    const int64_t rows = parts * m->rows;
    const bool blocks = is_mxfp4(f);
    char name[220];
    int data, scales = -1;
    snprintf(name, sizeof name, "%s%s", stem, blocks ? "_blocks" : "");
    if (blocks)
        data = add_entry(p, name, "", "U8", 8, 4, (int64_t[]){experts, rows, m->cols / 32, 16});
    else
        data = add_entry(p, name, "", dense_name(f->format), f->format == MX_F32 ? 32 : 16, 3,
                         (int64_t[]){experts, m->cols, rows});
    if (data < 0) return p->error->status;
    if (blocks) {
        snprintf(name, sizeof name, "%s_scales", stem);
        scales = add_entry(p, name, "", "U8", 8, 3, (int64_t[]){experts, rows, m->cols / 32});
        if (scales < 0) return p->error->status;
        p->entry[scales].joined = true;
    }
    for (int e = 0; e < experts; e++) {
        mx_work *w = add_work(p, first + e * parts);
        if (!w) return p->error->status;
        if (parts == 2) w->pair = first + e * parts + 1;
        w->rows = rows;
        w->data = data;
        w->scales = scales;
        w->slice = e;
        w->turned = !blocks;
    }
    return MX_OK;
}

/* Each expert's codes and scales apart, of MXFP4 experts in one tensor; rows of gate and of up alternate there. */
static mx_status copy_apart(mx_plan *p, int first, int experts, int parts, const char *stem) {
    const mx_module *module = &p->source->module[first];
    char name[220];
    snprintf(name, sizeof name, "%s_scales", stem);
    const mx_tensor *from[2] = {module->tensor, mx_checkpoint_find(p->source->checkpoint, name)};
    const int begin = p->entries;
    for (int part = 0; part < parts; part++)
        for (int scales = 0; scales < 2; scales++)
            for (int e = 0; e < experts; e++) {
                const mx_module *m = &module[e * parts + part];
                const int at = add_entry(p, m->name, scales ? "weight_scale" : "weight_packed", "U8", 0, 2,
                                         (int64_t[]){m->rows, m->cols / (scales ? 32 : 2)});
                if (at < 0) return p->error->status;
                p->entry[at].made = mx_make_every_of(from[scales], e, part, parts);
                p->bytes += mx_plan_bytes(p, at);
            }
    mx_status status = add_biases(p, first, experts, parts, stem);
    for (int i = begin + 1; i < p->entries; i++) p->entry[i].joined = true;
    return status;
}

/* Modules first .. first + count, of one tensor of experts. compressed-tensors knows a module by its own tensors. */
static mx_status plan_experts(mx_plan *p, int first, int count) {
    const mx_module *m = &p->source->module[first];
    const int parts = m->kind == MX_KIND_DOWN ? 1 : 2, experts = count / parts;
    char stem[160];
    snprintf(stem, sizeof stem, "model.layers.%d.mlp.experts.%s", m->layer, parts == 2 ? "gate_up_proj" : "down_proj");
    for (int i = first + 1; i < first + count; i++) {
        char a[MX_FORM_NAME], b[MX_FORM_NAME];
        if (mx_form_equal(&p->form[i], &p->form[first]) && p->copied[i] == p->copied[first]) continue;
        mx_form_name(a, &p->form[first]);
        mx_form_name(b, &p->form[i]);
        return mx_fail(p->error, MX_INVALID_ARGUMENT,
                       "%s is %s%s and %s is %s%s: the experts of a layer share one format for gate and up, and one "
                       "for down",
                       m->name, a, p->copied[first] ? " as it is" : "", p->source->module[i].name, b,
                       p->copied[i] ? " as it is" : "");
    }
    const bool mxfp4 = is_mxfp4(&p->form[first]), apart = mxfp4 && p->method == MX_METHOD_COMPRESSED_TENSORS;
    if (p->copied[first]) {
        if (apart) return copy_apart(p, first, experts, parts, stem);
        if (lies_turned(m)) return copy_turned(p, m->tensor, stem);
        mx_status status = copy(p, m->tensor, m->tensor->name);
        if (status || !mxfp4) return status;
        char name[220];
        snprintf(name, sizeof name, "%s_scales", stem);
        return copy(p, mx_checkpoint_find(p->source->checkpoint, name), name);
    }
    return (mxfp4 && !apart) || is_dense(p->form[first].format) ? experts_together(p, first, experts, parts, stem)
                                                                : experts_apart(p, first, experts, parts, stem);
}

/* ---- all of it ----------------------------------------------------------------------------------------------------
 */

static mx_status plan_module(mx_plan *p, int i) {
    const mx_module *m = &p->source->module[i];
    if (p->copied[i]) return copy(p, m->tensor, m->tensor->name);
    const int begin = p->entries;
    mx_work *w = add_work(p, i);
    mx_status status = w ? MX_OK : p->error->status;
    for (int part = 0; part < PARTS && !status; part++) status = add_part(p, w, part);
    for (int k = begin + 1; k < p->entries; k++) p->entry[k].joined = true;
    return status;
}

static mx_status plan_vector(mx_plan *p, int i) {
    const mx_vector *v = &p->source->vector[i];
    if (!v->changed) return copy(p, v->tensor, v->tensor->name);
    const mx_piece all = {.step = 1, .count = elements_of(v->tensor)};
    return add_piece(p, v->tensor->name, "", i, &all, v->tensor->dims, v->tensor->shape);
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* A model may hold M.weight and M.weight_scale, too, which would then be there twice. */
static mx_status check_names(const mx_plan *p) {
    const char **name = malloc(((size_t)p->entries + 1) * sizeof *name);
    mx_status status = name ? MX_OK : no_memory(p);
    for (int i = 0; i < p->entries && !status; i++) name[i] = p->entry[i].name;
    if (!status && p->entries) qsort(name, (size_t)p->entries, sizeof *name, by_name);
    for (int i = 1; i < p->entries && !status; i++)
        if (!strcmp(name[i - 1], name[i]))
            status = mx_fail(p->error, MX_INVALID_FILE, "%s: two tensors would be called %s", p->source->path, name[i]);
    free(name);
    return status;
}

mx_status mx_plan_make(mx_plan *p) {
    const mx_source *s = p->source;
    p->taken = calloc((size_t)s->vectors + 1, sizeof *p->taken);
    p->form = calloc((size_t)s->modules + 1, sizeof *p->form);
    p->copied = calloc((size_t)s->modules + 1, sizeof *p->copied);
    mx_status status = p->taken && p->form && p->copied ? MX_OK : no_memory(p);
    for (int i = 0; i < s->modules && !status; i++) resolve(p, i);
    if (!status) status = mx_plan_method(p, &p->method);
    for (int i = 0, end; i < s->modules && !status; i = end) {
        end = i + 1;
        if (s->module[i].expert < 0) {
            status = plan_module(p, i);
            continue;
        }
        while (end < s->modules && s->module[end].tensor == s->module[i].tensor) end++;
        status = plan_experts(p, i, end - i);
    }
    for (int i = 0; i < s->vectors && !status; i++)
        if (!p->taken[i]) status = plan_vector(p, i);
    return status ? status : check_names(p);
}

/* ---- files --------------------------------------------------------------------------------------------------------
 */

static int width_of(const mx_entry *e) {
    static const struct {
        const char *name;
        int bytes;
    } widths[] = {{"I64", 8}, {"F64", 8},  {"U64", 8}, {"C64", 8}, {"F32", 4}, {"I32", 4},
                  {"U32", 4}, {"BF16", 2}, {"F16", 2}, {"I16", 2}, {"U16", 2}};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        if (!strcmp(e->dtype, widths[i].name)) return widths[i].bytes;
    return 1;
}

/* Tensors of wide elements first, so that every one lies at a multiple of its width, as torch wants it. Otherwise in
 * the order that they have. */
static void order_file(const mx_plan *p, mx_entry *to, int begin, int end) {
    int at = begin;
    for (int width = 8; width; width /= 2)
        for (int i = begin; i < end; i++) {
            if (width_of(&p->entry[i]) != width) continue;
            p->place[i] = at;
            to[at++] = p->entry[i];
        }
}

mx_status mx_plan_put(mx_plan *p, mx_output *out) {
    int *shard = calloc((size_t)p->entries + 1, sizeof *shard);
    mx_entry *ordered = calloc((size_t)p->entries + 1, sizeof *ordered);
    p->place = calloc((size_t)p->entries + 1, sizeof *p->place);
    mx_status status = shard && ordered && p->place ? MX_OK : no_memory(p);
    if (!status) {
        const int shards = mx_cut_shards(p->entry, p->entries, shard);
        for (int i = 0; i < shards; i++) order_file(p, ordered, i ? shard[i - 1] : 0, shard[i]);
        p->first = out->mades;
        if (!mx_put_shards(out, ordered, shard, shards)) status = no_memory(p);
    }
    free(shard);
    free(ordered);
    return status;
}

void mx_plan_free(mx_plan *p) {
    free(p->entry);
    free(p->place);
    free(p->work);
    free(p->piece);
    free(p->form);
    free(p->copied);
    free(p->taken);
    *p = (mx_plan){0};
}
