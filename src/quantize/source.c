#include "quantize/source.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bytes.h"
#include "base/json.h"
#include "model/show.h"

/* The tensors of a checkpoint as modules. What lies in a file is read in place; an expert's part of a tensor that has
 * to be made first (GGUF, model.bin) is made once for the modules that follow each other in it. */

enum { TILE = 32, CONFIG_LIMIT = 16 << 20 };

/* One slice of a tensor that no file holds as it is, and of its scales. Readers of it wait for whoever makes it. */
typedef struct slice_cache {
    pthread_rwlock_t lock;
    const mx_tensor *tensor; /* NULL: empty */
    int64_t slice;
    uint8_t *data, *scales; /* owned */
    uint64_t room, scale_room;
} slice_cache;

/* Where a module's numbers lie: rows first, first + step, ... of a slice of a tensor. */
typedef struct reader {
    const mx_tensor *tensor, *scales; /* scales NULL: dense */
    slice_cache *cache;
    const mx_kernels *kernels;
    int64_t slice; /* -1: rows are the tensor's own slices */
    int64_t first, step;
    int64_t slice_rows, cols;
} reader;

typedef struct mx_source_own {
    char *path;
    reader *reader; /* [modules] */
    slice_cache cache;
} own;

/* ---- numbers ------------------------------------------------------------------------------------------------------
 */

static mx_format format_of(mx_dtype dtype) {
    return dtype == MX_DTYPE_BF16   ? MX_BF16
           : dtype == MX_DTYPE_F16  ? MX_F16
           : dtype == MX_DTYPE_Q8_0 ? MX_Q8_0
                                    : MX_F32;
}

static bool is_dense(mx_dtype dtype) {
    return dtype == MX_DTYPE_BF16 || dtype == MX_DTYPE_F16 || dtype == MX_DTYPE_F32 || dtype == MX_DTYPE_Q8_0;
}

/* Rows that are slices of their tensor. Made ones go through the end of `out`, which is as long or longer. */
static void read_rows(void *user, int64_t first, int64_t count, float *out) {
    const reader *r = user;
    const mx_tensor *t = r->tensor;
    const mx_format format = format_of(t->dtype);
    const uint64_t bytes = mx_tensor_slice_bytes(t);
    for (int64_t i = 0; i < count; i++, out += r->cols) {
        const uint8_t *from = t->data + (uint64_t)(first + i) * t->slice_stride;
        uint8_t *end = (uint8_t *)out + (uint64_t)r->cols * sizeof *out - bytes;
        if (!t->recipe) {
            r->kernels->widen(out, from, format, r->cols);
            continue;
        }
        mx_tensor_slices(t, first + i, 1, end);
        if (format == MX_F32) continue;
        for (int64_t k = 0; k < r->cols; k++) { /* what is written ends before what is not read yet */
            const uint16_t v = mx_load_u16(end + 2 * k);
            out[k] = format == MX_BF16 ? mx_bf16_to_f32(v) : mx_f16_to_f32(v);
        }
    }
}

static bool holds(const slice_cache *c, const reader *r) {
    return c->tensor == r->tensor && c->slice == r->slice;
}

static uint8_t *grow(uint8_t **data, uint64_t *room, uint64_t size) {
    if (size > *room) {
        free(*data);
        *data = malloc(size);
        *room = *data ? size : 0;
    }
    return *data;
}

/* The slice's bytes and scales; locked until release. NULL: no memory. */
static const uint8_t *acquire(const reader *r, const uint8_t **scales) {
    slice_cache *c = r->cache;
    pthread_rwlock_rdlock(&c->lock);
    while (!holds(c, r)) {
        pthread_rwlock_unlock(&c->lock);
        pthread_rwlock_wrlock(&c->lock);
        if (!holds(c, r)) {
            const uint64_t bytes = mx_tensor_slice_bytes(r->tensor),
                           scale_bytes = r->scales ? mx_tensor_slice_bytes(r->scales) : 1;
            c->tensor = NULL;
            if (!grow(&c->data, &c->room, bytes) || !grow(&c->scales, &c->scale_room, scale_bytes)) return NULL;
            mx_tensor_slices(r->tensor, r->slice, 1, c->data);
            if (r->scales) mx_tensor_slices(r->scales, r->slice, 1, c->scales);
            c->tensor = r->tensor;
            c->slice = r->slice;
        }
        pthread_rwlock_unlock(&c->lock);
        pthread_rwlock_rdlock(&c->lock);
    }
    *scales = c->scales;
    return c->data;
}

static void release(const reader *r) {
    pthread_rwlock_unlock(&r->cache->lock);
}

static const uint8_t *slice_at(const mx_tensor *t, int64_t slice) {
    return t->data + (uint64_t)slice * t->slice_stride;
}

/* Rows of one expert: MXFP4, or dense. A number that cannot be read for want of memory is NaN, which is refused. */
static void read_expert(void *user, int64_t first, int64_t count, float *out) {
    const reader *r = user;
    const bool made = r->tensor->recipe || (r->scales && r->scales->recipe);
    const uint8_t *scales = NULL, *data;
    if (made) {
        data = acquire(r, &scales);
    } else {
        data = slice_at(r->tensor, r->slice);
        if (r->scales) scales = slice_at(r->scales, r->slice);
    }
    const int64_t per_row = r->cols / 32, row_bytes = (int64_t)mx_tensor_slice_bytes(r->tensor) / r->slice_rows;
    for (int64_t i = 0; i < count; i++, out += r->cols) {
        const int64_t n = r->first + (first + i) * r->step;
        if (!data)
            memset(out, 0xFF, (size_t)r->cols * sizeof *out);
        else if (!r->scales)
            r->kernels->widen(out, data + n * row_bytes, format_of(r->tensor->dtype), r->cols);
        else
            for (int64_t b = 0; b < per_row; b++)
                mx_mxfp4_widen(out + 32 * b, data + n * row_bytes + 16 * b, scales[n * per_row + b]);
    }
    if (made) release(r);
}

/* Rows of one expert that lie as columns: tensor [experts, in, out]. By tiles, so that whole lines of cache are read
 * and written. */
static void read_turned(void *user, int64_t first, int64_t count, float *out) {
    const reader *r = user;
    const uint8_t *from = slice_at(r->tensor, r->slice);
    const mx_dtype dtype = r->tensor->dtype;
    const int64_t size = dtype == MX_DTYPE_F32 ? 4 : 2, step = r->step * size;
    for (int64_t n0 = 0; n0 < count; n0 += TILE) {
        const int64_t rows = count - n0 < TILE ? count - n0 : TILE;
        for (int64_t k0 = 0; k0 < r->cols; k0 += TILE) {
            const int64_t cols = r->cols - k0 < TILE ? r->cols - k0 : TILE;
            uint32_t tile[TILE][TILE];
            for (int64_t k = 0; k < cols; k++) {
                const uint8_t *at = from + ((k0 + k) * r->slice_rows + r->first + (first + n0) * r->step) * size;
                if (dtype == MX_DTYPE_F32)
                    for (int64_t n = 0; n < rows; n++) tile[n][k] = mx_load_u32(at + n * step);
                else
                    for (int64_t n = 0; n < rows; n++) tile[n][k] = (uint32_t)mx_load_u16(at + n * step) << 16;
            }
            for (int64_t n = 0; n < rows; n++) {
                float *to = out + (n0 + n) * r->cols + k0;
                if (dtype == MX_DTYPE_F16)
                    for (int64_t k = 0; k < cols; k++) to[k] = mx_f16_to_f32((uint16_t)(tile[n][k] >> 16));
                else
                    memcpy(to, tile[n], (size_t)cols * sizeof *to);
            }
        }
    }
}

const uint8_t *mx_module_plain(const mx_module *m, mx_dtype *dtype, int64_t *count) {
    if (m->read != read_turned) return NULL;
    const reader *r = m->user;
    *dtype = r->tensor->dtype;
    *count = r->slice_rows * r->cols;
    return *dtype == MX_DTYPE_BF16 || *dtype == MX_DTYPE_F16 ? slice_at(r->tensor, r->slice) : NULL;
}

/* ---- modules ------------------------------------------------------------------------------------------------------
 */

typedef struct building {
    mx_source *s;
    own *own;
    const mx_kernels *kernels;
    mx_error *error;
} building;

static mx_status wrong_shape(const mx_tensor *t, const char *expected, mx_error *error) {
    char shape[120];
    return mx_fail(error, MX_INVALID_FILE, "%s: %s: is %s %s, expected %s", t->file, t->name, t->dtype_name,
                   mx_show_shape(shape, sizeof shape, t->shape, t->dims), expected);
}

/* Another module with its reader; NULL: its name is too long, which `error` says. */
static mx_module *add_module(building *b, const mx_module *m, const reader *r, const char *stem) {
    mx_source *s = b->s;
    mx_module *to = &s->module[s->modules];
    *to = *m;
    if (snprintf(to->name, sizeof to->name, "%s", stem) >= (int)sizeof to->name) {
        mx_fail(b->error, MX_UNSUPPORTED, "%s: %.60s...: a tensor's name is longer than %zu bytes", m->tensor->file,
                m->tensor->name, sizeof to->name - 1);
        return NULL;
    }
    b->own->reader[s->modules] = *r;
    b->own->reader[s->modules].tensor = m->tensor;
    b->own->reader[s->modules].cache = &b->own->cache;
    b->own->reader[s->modules].kernels = b->kernels;
    to->user = &b->own->reader[s->modules++];
    return to;
}

static const struct {
    const char *name;
    mx_kind kind;
} kinds[] = {{"self_attn.q_proj", MX_KIND_Q},
             {"self_attn.k_proj", MX_KIND_K},
             {"self_attn.v_proj", MX_KIND_V},
             {"self_attn.o_proj", MX_KIND_O},
             {"mlp.router", MX_KIND_ROUTER}};

/* "model.layers.3.self_attn.q_proj" and its like; OTHER: none of them. */
static mx_kind kind_of(const char *stem, int *layer) {
    int end = 0;
    *layer = -1;
    if (!strcmp(stem, "model.embed_tokens")) return MX_KIND_EMBEDDING;
    if (!strcmp(stem, "lm_head")) return MX_KIND_LM_HEAD;
    if (sscanf(stem, "model.layers.%6d.%n", layer, &end) == 1 && end)
        for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
            if (!strcmp(stem + end, kinds[i].name)) return kinds[i].kind;
    return MX_KIND_OTHER;
}

static mx_status add_vector(building *b, const mx_tensor *t) {
    b->s->vector[b->s->vectors++] = (mx_vector){.tensor = t};
    return MX_OK;
}

/* A matrix of its own. What is none of gpt-oss's is carried along as it is. */
static mx_status add_matrix(building *b, const mx_tensor *t) {
    char stem[sizeof b->s->module->name + 8];
    mx_module m = {.tensor = t, .kind = MX_KIND_OTHER, .layer = -1, .expert = -1, .read = read_rows};
    const int length = (int)strlen(t->name) - (mx_ends_with(t->name, ".weight") ? 7 : 0);
    snprintf(stem, sizeof stem, "%.*s", length, t->name);
    if (b->s->gpt_oss) {
        m.kind = kind_of(stem, &m.layer);
        if (m.kind == MX_KIND_OTHER || !mx_ends_with(t->name, ".weight")) return add_vector(b, t);
        if (!is_dense(t->dtype) || (t->recipe && t->dtype == MX_DTYPE_Q8_0))
            return wrong_shape(t, "BF16, F16, F32 or Q8_0", b->error);
    }
    if (!t->shape[0] || !t->shape[1]) return add_vector(b, t);
    m.rows = t->shape[0];
    m.cols = t->shape[1];
    const reader r = {.slice = -1, .step = 1, .slice_rows = m.rows, .cols = m.cols};
    return add_module(b, &m, &r, stem) ? MX_OK : b->error->status;
}

/* The modules of all experts in one tensor: gate and up, whose rows alternate, or down. `r`: of the whole tensor. */
static mx_status add_experts(building *b, const mx_tensor *t, int layer, bool down, reader r, mx_read_rows *read) {
    const mx_config *c = &b->s->config;
    const int64_t rows = down ? c->hidden : 2 * c->intermediate, cols = down ? c->intermediate : c->hidden;
    if (t->shape[0] != c->experts || r.slice_rows != rows || r.cols != cols) {
        char expected[120];
        snprintf(expected, sizeof expected, "%d experts of [%lld, %lld], as config.json says", c->experts,
                 (long long)rows, (long long)cols);
        return wrong_shape(t, expected, b->error);
    }
    if (layer >= c->layers) return wrong_shape(t, "no more layers than config.json says", b->error);
    const int parts = down ? 1 : 2;
    for (int e = 0; e < c->experts; e++) {
        for (int part = 0; part < parts; part++) {
            char stem[sizeof b->s->module->name];
            static const char *const names[] = {"gate_proj", "up_proj"};
            mx_module m = {.tensor = t,
                           .kind = down   ? MX_KIND_DOWN
                                   : part ? MX_KIND_UP
                                          : MX_KIND_GATE,
                           .layer = layer,
                           .expert = e,
                           .rows = rows / parts,
                           .cols = cols,
                           .read = read};
            snprintf(stem, sizeof stem, "model.layers.%d.mlp.experts.%d.%s", layer, e,
                     down ? "down_proj" : names[part]);
            r.slice = e;
            r.first = part;
            r.step = parts;
            if (!add_module(b, &m, &r, stem)) return b->error->status;
        }
    }
    return MX_OK;
}

/* A tensor of experts, by what is behind "gate_up_proj" or "down_proj" in its name. */
static mx_status add_expert_tensor(building *b, const mx_tensor *t, int layer, bool down, const char *end) {
    const bool blocks = !strcmp(end, "_blocks"), kept = !strcmp(end, ".weight");
    if (!strcmp(end, "_scales")) return MX_OK; /* goes with blocks */
    if (!strcmp(end, "_bias")) return add_vector(b, t);
    if (blocks) {
        char name[200];
        snprintf(name, sizeof name, "%.*s_scales", (int)(strlen(t->name) - strlen("_blocks")), t->name);
        const mx_tensor *scales = mx_checkpoint_find(b->s->checkpoint, name);
        if (!scales)
            return mx_fail(b->error, MX_INVALID_FILE, "%s: tensor %s is missing: is the download complete?", b->s->path,
                           name);
        if (t->dims != 4 || t->shape[3] != 16 || t->dtype != MX_DTYPE_U8)
            return wrong_shape(t, "U8 [experts, rows, columns / 32, 16]", b->error);
        if (scales->dims != 3 || memcmp(scales->shape, t->shape, 3 * sizeof *t->shape) ||
            (scales->dtype != MX_DTYPE_U8 && scales->dtype != MX_DTYPE_F8_E8M0))
            return wrong_shape(scales, "U8, a scale for each block", b->error);
        const reader r = {.scales = scales, .slice_rows = t->shape[1], .cols = 32 * t->shape[2]};
        return add_experts(b, t, layer, down, r, read_expert);
    }
    if ((!kept && *end) || t->dims != 3) return add_vector(b, t);
    if (!is_dense(t->dtype) || (!kept && t->dtype == MX_DTYPE_Q8_0))
        return wrong_shape(t, "BF16, F16 or F32", b->error);
    const reader r = {.slice_rows = t->shape[kept ? 1 : 2], .cols = t->shape[kept ? 2 : 1]};
    return add_experts(b, t, layer, down, r, kept ? read_expert : read_turned);
}

static mx_status add_tensor(building *b, const mx_tensor *t) {
    int layer, end = 0;
    if (b->s->gpt_oss && sscanf(t->name, "model.layers.%6d.mlp.experts.%n", &layer, &end) == 1 && end) {
        const char *rest = t->name + end;
        if (!strncmp(rest, "gate_up_proj", 12)) return add_expert_tensor(b, t, layer, false, rest + 12);
        if (!strncmp(rest, "down_proj", 9)) return add_expert_tensor(b, t, layer, true, rest + 9);
    }
    /* Of other models any 2-D tensor of floating-point numbers is a weight. */
    const bool matrix = t->dims == 2 && (b->s->gpt_oss ? mx_ends_with(t->name, ".weight")
                                                       : is_dense(t->dtype) && t->dtype != MX_DTYPE_Q8_0);
    return matrix ? add_matrix(b, t) : add_vector(b, t);
}

/* ---- opening ------------------------------------------------------------------------------------------------------
 */

/* Is config.json of the folder of a gpt-oss? *quantized: what its quantization_config says, "" where there is none. */
static mx_status read_kind(const char *folder, bool *gpt_oss, char quantized[40], mx_error *error) {
    char path[MX_PATH + 20];
    struct stat info;
    mx_bytes text = {0};
    mx_json_document *document = NULL;
    snprintf(path, sizeof path, "%s/config.json", folder);
    *gpt_oss = false;
    *quantized = 0;
    if (stat(path, &info) != 0) return MX_OK;
    mx_status status = mx_read_regular_file(path, CONFIG_LIMIT, &text, error);
    if (!status) status = mx_json_parse(path, text.data ? text.data : "", text.size, &document, error);
    if (!status) {
        const mx_json *root = mx_json_root(document), *q = mx_json_get(root, "quantization_config");
        const mx_json *method = mx_json_get(q, "quant_method");
        *gpt_oss = mx_json_is_string(mx_json_get(root, "model_type"), "gpt_oss");
        if (q && q->type != MX_JSON_NULL)
            snprintf(quantized, 40, "%s", method && method->type == MX_JSON_STRING ? method->text : "unknown");
    }
    mx_json_free(document);
    mx_bytes_free(&text);
    return status;
}

/* What is quantised already would only lose more; MXFP4 experts are gpt-oss's own form. */
static mx_status check_plain(const mx_source *s, const char *quantized, mx_error *error) {
    static const char *const ends[] = {".weight_packed", ".weight_scale", ".weight_e2m3", ".weight_e3m2",
                                       ".weight_amxfp4"};
    if (*quantized && (!s->gpt_oss || strcmp(quantized, "mxfp4")))
        return mx_fail(error, MX_UNSUPPORTED,
                       "%s: is quantised already (quantization_config: quant_method %s): give the model it was made of",
                       s->path, mx_is_one_line(quantized, strlen(quantized)) ? quantized : "?");
    for (int i = 0; i < mx_checkpoint_count(s->checkpoint); i++)
        for (size_t k = 0; k < sizeof ends / sizeof *ends; k++)
            if (mx_ends_with(mx_checkpoint_at(s->checkpoint, i)->name, ends[k]))
                return mx_fail(error, MX_UNSUPPORTED,
                               "%s: is quantised already (it has %s): give the model it was "
                               "made of",
                               s->path, mx_checkpoint_at(s->checkpoint, i)->name);
    return MX_OK;
}

static mx_status open_files(mx_source *s, mx_error *error) {
    mx_location place;
    char quantized[40] = "";
    mx_status status = mx_location_find(s->path, &place, error);
    s->gpt_oss = true;
    if (!status && place.layout == MX_LAYOUT_HF) status = read_kind(place.path, &s->gpt_oss, quantized, error);
    if (status) return status;
    if (place.layout == MX_LAYOUT_TENSORS) s->gpt_oss = false;
    if (*quantized && (!s->gpt_oss || strcmp(quantized, "mxfp4"))) return check_plain(s, quantized, error);
    status = s->gpt_oss ? mx_checkpoint_open_model(s->path, MX_EXPERTS_STORED, &s->config, &s->checkpoint, error)
                        : mx_checkpoint_open_as(s->path, MX_EXPERTS_STORED, &s->checkpoint, error);
    return status ? status : check_plain(s, quantized, error);
}

/* At most, one more included. */
static size_t most_modules(const mx_source *s) {
    size_t most = 1;
    for (int i = 0; s->checkpoint && i < mx_checkpoint_count(s->checkpoint); i++)
        most += s->gpt_oss && mx_checkpoint_at(s->checkpoint, i)->dims > 2 ? 2 * (size_t)s->config.experts : 1;
    return most;
}

mx_status mx_source_open(const char *path, mx_source *out, mx_error *error) {
    *out = (mx_source){0};
    building b = {.s = out, .error = error};
    mx_error own_error = {0};
    if (!error) b.error = &own_error;
    b.own = out->own = calloc(1, sizeof *b.own);
    if (!b.own || pthread_rwlock_init(&b.own->cache.lock, NULL) != 0) {
        free(b.own);
        out->own = NULL;
        return mx_fail(b.error, MX_NO_MEMORY, "%s: no memory to open it", path);
    }
    out->path = b.own->path = strdup(path);
    mx_status status = out->path ? open_files(out, b.error) : mx_fail(b.error, MX_NO_MEMORY, "no memory for a path");
    if (!status) status = mx_kernels_get(NULL, &b.kernels, b.error);
    const int tensors = out->checkpoint ? mx_checkpoint_count(out->checkpoint) : 0;
    const size_t most = most_modules(out);
    if (!status) {
        out->module = calloc(most, sizeof *out->module);
        out->vector = calloc((size_t)tensors + 1, sizeof *out->vector);
        b.own->reader = calloc(most, sizeof *b.own->reader);
        if (!out->module || !out->vector || !b.own->reader)
            status = mx_fail(b.error, MX_NO_MEMORY, "%s: no memory for %d tensors", path, tensors);
    }
    for (int i = 0; i < tensors && !status; i++) status = add_tensor(&b, mx_checkpoint_at(out->checkpoint, i));
    if (status) mx_source_close(out);
    return status;
}

void mx_source_close(mx_source *s) {
    for (int i = 0; i < s->vectors; i++) free(s->vector[i].changed);
    mx_checkpoint_close(s->checkpoint);
    free(s->module);
    free(s->vector);
    if (s->own) {
        pthread_rwlock_destroy(&s->own->cache.lock);
        free(s->own->cache.data);
        free(s->own->cache.scales);
        free(s->own->reader);
        free(s->own->path);
        free(s->own);
    }
    *s = (mx_source){0};
}

mx_module *mx_source_find(const mx_source *s, const char *name) {
    for (int i = 0; i < s->modules; i++)
        if (!strcmp(s->module[i].name, name)) return &s->module[i];
    return NULL;
}
