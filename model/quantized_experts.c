/* Experts in modules of their own, as compressed-tensors, ModelOpt and `mxrun quantize` write them, put together. */
#include <stdlib.h>
#include <string.h>

#include "model/quantized.h"
#include "model/show.h"

/* Kinds of matrices, and what a module's tensors are called. What is called otherwise stays as it is and is reported as
 * ignored. */
static const char *const kinds[] = {"gate_proj", "up_proj", "down_proj"};
static const char *const parts[] = {
    "weight",          "weight_packed",     "weight_e2m3",  "weight_e3m2",      "weight_amxfp4",
    "weight_scale",    "weight_scale_2",    "weight_shape", "weight_scale_inv", "weight_global_scale",
    "weight_g_idx",    "weight_zero_point", "bias",         "input_scale",      "input_global_scale",
    "pre_quant_scale",
};
enum { KINDS = sizeof kinds / sizeof *kinds, PARTS = sizeof parts / sizeof *parts };

typedef struct member {
    mx_tensor tensor;
    int layer, kind, part, expert;
} member;

/* A number without sign and leading zeros, below a million; NULL: there is none. */
static const char *read_number(const char *at, int *out) {
    int digits = 0, n = 0;
    while (at[digits] >= '0' && at[digits] <= '9' && digits < 7) n = 10 * n + at[digits++] - '0';
    if (!digits || digits == 7 || (*at == '0' && digits > 1)) return NULL;
    *out = n;
    return at + digits;
}

static const char *skip(const char *at, const char *text) {
    const size_t n = strlen(text);
    return at && !strncmp(at, text, n) ? at + n : NULL;
}

static bool parse(const mx_tensor *t, member *out) {
    const char *at = skip(t->name, "model.layers.");
    if (at) at = read_number(at, &out->layer);
    at = skip(at, ".mlp.experts.");
    if (at) at = read_number(at, &out->expert);
    at = skip(at, ".");
    for (out->kind = 0; at && out->kind < KINDS; out->kind++) {
        const char *rest = skip(skip(at, kinds[out->kind]), ".");
        for (out->part = 0; rest && out->part < PARTS; out->part++)
            if (!strcmp(rest, parts[out->part])) {
                out->tensor = *t;
                return true;
            }
    }
    return false;
}

static int by_expert(const void *a, const void *b) {
    const member *x = a, *y = b;
    if (x->layer != y->layer) return x->layer < y->layer ? -1 : 1;
    if (x->kind != y->kind) return x->kind < y->kind ? -1 : 1;
    if (x->part != y->part) return x->part < y->part ? -1 : 1;
    return (x->expert > y->expert) - (x->expert < y->expert);
}

static void make_gathered(const mx_recipe *r, int64_t first, int64_t count, uint8_t *out) {
    for (int64_t e = first; e < first + count; e++, out += r->from_bytes) memcpy(out, r->each[e], r->from_bytes);
}

static bool alike(const mx_tensor *a, const mx_tensor *b) {
    return a->dtype == b->dtype && a->dims == b->dims && a->bytes == b->bytes &&
           !memcmp(a->shape, b->shape, sizeof a->shape);
}

/* Experts 0 ... count - 1 are all there. (No tensor is there twice: mx_checkpoint_open.) */
static mx_status check_numbers(const member *m, int count, mx_error *error) {
    for (int i = 0; i < count; i++) {
        const mx_tensor *t = &m[i].tensor;
        if (m[i].expert == i) continue;
        return mx_fail(error, MX_INVALID_FILE,
                       "%s: tensor model.layers.%d.mlp.experts.%d.%s.%s is missing, but experts up to %d have it: "
                       "is the download complete?",
                       t->file, m->layer, i, kinds[m->kind], parts[m->part], m[count - 1].expert);
    }
    return MX_OK;
}

/* And of one form, the first one's, or, where that is the only one of its form, the second one's. */
static mx_status check_group(const member *m, int count, mx_error *error) {
    const bool first_odd = count > 2 && !alike(&m[0].tensor, &m[1].tensor) && alike(&m[1].tensor, &m[2].tensor);
    const mx_tensor *like = &m[first_odd].tensor;
    mx_status status = check_numbers(m, count, error);
    for (int i = 0; i < count && !status; i++) {
        const mx_tensor *t = &m[i].tensor;
        char shape[120], expected[120];
        if (t->dims > 3)
            return mx_fail(error, MX_INVALID_FILE, "%s: %s: is %s %s, expected at most 3 dimensions", t->file, t->name,
                           t->dtype_name, mx_show_shape(shape, sizeof shape, t->shape, t->dims));
        if (alike(t, like)) continue;
        return mx_fail(error, MX_INVALID_FILE,
                       "%s: %s: is %s %s, expected %s %s like %s: experts of a layer share a form", t->file, t->name,
                       t->dtype_name, mx_show_shape(shape, sizeof shape, t->shape, t->dims), like->dtype_name,
                       mx_show_shape(expected, sizeof expected, like->shape, like->dims), like->name);
    }
    return status;
}

/* One stride leads from each expert to the next, within one file. */
static bool in_place(const member *m, int count, uint64_t *stride) {
    *stride = m->tensor.bytes;
    if (count > 1) {
        if (m[1].tensor.file != m->tensor.file || m[1].tensor.data < m->tensor.data) return false;
        *stride = (uint64_t)(m[1].tensor.data - m->tensor.data);
    }
    for (int i = 1; i < count; i++)
        if (m[i].tensor.file != m->tensor.file || m[i].tensor.data < m[i - 1].tensor.data ||
            (uint64_t)(m[i].tensor.data - m[i - 1].tensor.data) != *stride)
            return false;
    return *stride >= m->tensor.bytes;
}

static mx_status fuse(mx_checkpoint *ck, const member *m, int count, mx_error *error) {
    mx_status status = check_group(m, count, error);
    if (status) return status;
    const char *part = parts[m->part];
    mx_tensor *t = mx_checkpoint_add(ck, m->tensor.file, "model.layers.%d.mlp.experts.%s%c%s", m->layer, kinds[m->kind],
                                     strcmp(part, "bias") ? '.' : '_', part);
    if (!t) return mx_fail(error, MX_NO_MEMORY, "%s: no memory for its tensors", m->tensor.file);
    const mx_tensor *one = &m->tensor;
    t->dtype = one->dtype;
    t->dtype_name = one->dtype_name;
    t->dims = one->dims + 1;
    t->shape[0] = count;
    memcpy(t->shape + 1, one->shape, 4 * sizeof *one->shape);
    t->bytes = (uint64_t)count * one->bytes;
    t->data = one->data;
    struct mx_slice_origin *origin = mx_checkpoint_alloc(ck, (size_t)count * sizeof *origin);
    if (!origin) return mx_fail(error, MX_NO_MEMORY, "%s: no memory for its tensors", one->file);
    for (int i = 0; i < count; i++) origin[i] = (struct mx_slice_origin){m[i].tensor.name, m[i].tensor.file};
    t->origin = origin;
    if (in_place(m, count, &t->slice_stride)) return MX_OK;
    t->slice_stride = one->bytes;
    const uint8_t **each = mx_checkpoint_alloc(ck, (size_t)count * sizeof *each);
    for (int i = 0; each && i < count; i++) each[i] = m[i].tensor.data;
    const mx_recipe recipe = {.make = make_gathered, .each = each, .from_bytes = one->bytes};
    return each && mx_tensor_made(ck, t, &recipe)
               ? MX_OK
               : mx_fail(error, MX_NO_MEMORY, "%s: no memory for its tensors", one->file);
}

mx_status mx_quantized_experts_read(mx_checkpoint *ck, mx_error *error) {
    member found;
    int count = 0, kept = 0;
    for (int i = 0; i < ck->count; i++) count += parse(&ck->tensor[i], &found);
    if (!count) return MX_OK;
    member *list = malloc(((size_t)count + 1) * sizeof *list); /* parse writes to one more */
    if (!list) return mx_fail(error, MX_NO_MEMORY, "%s: no memory for its tensors", ck->tensor[0].file);
    count = 0;
    for (int i = 0; i < ck->count; i++) {
        if (parse(&ck->tensor[i], &list[count]))
            count++;
        else
            ck->tensor[kept++] = ck->tensor[i];
    }
    ck->count = kept;
    qsort(list, (size_t)count, sizeof *list, by_expert);
    mx_status status = MX_OK;
    for (int i = 0, n; i < count && !status; i += n) {
        for (n = 1; i + n < count && list[i + n].layer == list[i].layer && list[i + n].kind == list[i].kind &&
                    list[i + n].part == list[i].part;)
            n++;
        status = fuse(ck, list + i, n, error);
    }
    free(list);
    return status;
}
