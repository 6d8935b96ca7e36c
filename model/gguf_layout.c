/* GGUF files of the architecture gpt-oss, one or split, as llama.cpp's converter writes them: other names, gate and up
 * apart, MXFP4 blocks of 17 bytes with the halves of a block in low and high nibbles. Dense tensors stay where they
 * are; experts become Hugging Face's form when weights are loaded, which only moves bits. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "model/checkpoint_private.h"
#include "model/gguf_layout.h"

enum { MOST_FILES = 512, BLOCK_BYTES = 17 };

/* ---- MXFP4 ------------------------------------------------------------------------------------------------------- */

typedef uint16_t pairs __attribute__((vector_size(16))); /* of bytes */
typedef uint8_t half __attribute__((vector_size(8)));

/* 16 bytes whose low nibbles are elements 0..15 and high nibbles 16..31, to bytes of elements 2 j and, above it,
 * 2 j + 1. (Little endian: the first byte of a pair is its low one.) */
static inline void reorder(uint8_t out[16], const uint8_t qs[16]) {
    pairs x;
    memcpy(&x, qs, sizeof x);
    pairs low = x & 0x0F0F, high = x >> 4 & 0x0F0F;
    low = (low | low >> 4) & 0x00FF;
    high = (high | high >> 4) & 0x00FF;
    const half first = __builtin_convertvector(low, half), second = __builtin_convertvector(high, half);
    memcpy(out, &first, sizeof first);
    memcpy(out + 8, &second, sizeof second);
}

/* Row n of a slice: with two sources the even ones are of the first (gate), the odd ones of the second (up). */
static const uint8_t *source_row(const mx_recipe *r, int64_t slice, int64_t n, uint64_t row_bytes) {
    if (!r->also) return r->from + (uint64_t)slice * r->from_stride + (uint64_t)n * row_bytes;
    return n % 2 ? r->also + (uint64_t)slice * r->also_stride + (uint64_t)(n / 2) * row_bytes
                 : r->from + (uint64_t)slice * r->from_stride + (uint64_t)(n / 2) * row_bytes;
}

/* Either output may be NULL. */
static void make_both(const mx_recipe *r, int64_t first, int64_t count, uint8_t *blocks, uint8_t *scales) {
    const int64_t per_row = r->cols / 32;
    for (int64_t e = first; e < first + count; e++)
        for (int64_t n = 0; n < r->rows; n++) {
            const uint8_t *at = source_row(r, e, n, (uint64_t)per_row * BLOCK_BYTES);
            if (blocks)
                for (int64_t b = 0; b < per_row; b++, blocks += 16) reorder(blocks, at + b * BLOCK_BYTES + 1);
            if (scales)
                for (int64_t b = 0; b < per_row; b++) *scales++ = at[b * BLOCK_BYTES];
        }
}

static void make_blocks(const mx_recipe *r, int64_t first, int64_t count, uint8_t *out) {
    make_both(r, first, count, out, NULL);
}

static void make_scales(const mx_recipe *r, int64_t first, int64_t count, uint8_t *out) {
    make_both(r, first, count, NULL, out);
}

/* Rows as they are, of `factor` bytes. */
static void make_rows(const mx_recipe *r, int64_t first, int64_t count, uint8_t *out) {
    for (int64_t e = first; e < first + count; e++)
        for (int64_t n = 0; n < r->rows; n++, out += r->factor)
            memcpy(out, source_row(r, e, n, (uint64_t)r->factor), (size_t)r->factor);
}

/* ---- names ------------------------------------------------------------------------------------------------------- */

static const struct {
    const char *gguf, *name; /* behind "blk.N." and "model.layers.N." */
} in_layer[] =
    {
        {"attn_norm.weight", "input_layernorm.weight"},
        {"post_attention_norm.weight", "post_attention_layernorm.weight"},
        {"attn_q.weight", "self_attn.q_proj.weight"},
        {"attn_q.bias", "self_attn.q_proj.bias"},
        {"attn_k.weight", "self_attn.k_proj.weight"},
        {"attn_k.bias", "self_attn.k_proj.bias"},
        {"attn_v.weight", "self_attn.v_proj.weight"},
        {"attn_v.bias", "self_attn.v_proj.bias"},
        {"attn_output.weight", "self_attn.o_proj.weight"},
        {"attn_output.bias", "self_attn.o_proj.bias"},
        {"attn_sinks.weight", "self_attn.sinks"},
        {"ffn_gate_inp.weight", "mlp.router.weight"},
        {"ffn_gate_inp.bias", "mlp.router.bias"},
        {"ffn_down_exps.bias", "mlp.experts.down_proj_bias"},
},
  outside[] = {
      {"token_embd.weight", "model.embed_tokens.weight"},
      {"output_norm.weight", "model.norm.weight"},
      {"output.weight", "lm_head.weight"},
};

/* The types that tensors of gpt-oss have in such files; false: another one. */
static bool dtype_of(const mx_gguf_tensor *g, mx_dtype *out) {
    switch (g->type) {
    case MX_GGUF_TENSOR_F32:
        *out = MX_DTYPE_F32;
        return true;
    case MX_GGUF_TENSOR_F16:
        *out = MX_DTYPE_F16;
        return true;
    case MX_GGUF_TENSOR_BF16:
        *out = MX_DTYPE_BF16;
        return true;
    case MX_GGUF_TENSOR_Q8_0:
        *out = MX_DTYPE_Q8_0;
        return true;
    default:
        return false;
    }
}

static mx_status other_type(const mx_gguf *file, const mx_gguf_tensor *g, mx_error *error) {
    char number[24];
    const char *name = mx_gguf_type_name(g->type);
    snprintf(number, sizeof number, "number %u", g->type);
    return mx_fail(
        error, MX_UNSUPPORTED,
        "%s: %.*s: has the type %s, which mxrun does not read: it reads MXFP4 experts, and F32, F16, BF16 and "
        "Q8_0; take the model's MXFP4 file, as ggml-org publishes it%s",
        file->file.path, (int)g->name.size, g->name.text, name ? name : number,
        g->type == 4 ? " (type 4 is the MXFP4 of Ollama's own dialect)" : "");
}

static mx_status no_memory(const mx_gguf *file, mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "%s: no memory for its tensors", file->file.path);
}

static mx_status add_as(mx_checkpoint *ck, const mx_gguf *file, const mx_gguf_tensor *g, mx_dtype dtype, int layer,
                        const char *name, mx_error *error) {
    int64_t shape[4];
    mx_tensor *t = layer < 0 ? mx_checkpoint_add(ck, file->file.path, "%s", name)
                             : mx_checkpoint_add(ck, file->file.path, "model.layers.%d.%s", layer, name);
    if (!t) return no_memory(file, error);
    for (int i = 0; i < g->dims; i++) shape[i] = g->ne[g->dims - 1 - i];
    mx_tensor_form(t, dtype, g->dims, shape);
    t->data = g->data;
    return MX_OK;
}

static mx_status add_as_it_is(mx_checkpoint *ck, const mx_gguf *file, const mx_gguf_tensor *g, int layer,
                              const char *name, mx_error *error) {
    mx_dtype dtype;
    return dtype_of(g, &dtype) ? add_as(ck, file, g, dtype, layer, name, error) : other_type(file, g, error);
}

/* ---- experts ----------------------------------------------------------------------------------------------------- */

/* The sources of one of a layer's expert matrices; `up` NULL: there is one. */
typedef struct expert_source {
    const mx_gguf *file, *up_file;
    const mx_gguf_tensor *gate, *up;
} expert_source;

static mx_recipe recipe_of(const expert_source *s) {
    const mx_gguf_tensor *g = s->gate;
    const uint64_t experts = g->ne[2] ? (uint64_t)g->ne[2] : 1;
    mx_recipe r = {.from = g->data, .from_stride = g->bytes / experts, .from_bytes = g->bytes / experts};
    r.cols = g->ne[0];
    r.rows = g->ne[1];
    if (s->up) {
        r.also = s->up->data;
        r.also_stride = r.also_bytes = s->up->bytes / experts;
        r.rows *= 2;
    }
    return r;
}

static mx_status add_made(mx_checkpoint *ck, const expert_source *s, int layer, const char *name, mx_dtype dtype,
                          int dims, const int64_t *shape, const mx_recipe *recipe, mx_error *error) {
    mx_tensor *t = mx_checkpoint_add(ck, s->file->file.path, "model.layers.%d.mlp.experts.%s", layer, name);
    if (!t) return no_memory(s->file, error);
    mx_tensor_form(t, dtype, dims, shape);
    return mx_tensor_made(ck, t, recipe) ? MX_OK : no_memory(s->file, error);
}

/* ffn_gate_exps and ffn_up_exps, or ffn_down_exps. `name`: "gate_up_proj" or "down_proj". */
static mx_status add_experts(mx_checkpoint *ck, const expert_source *s, int layer, const char *name, mx_error *error) {
    const mx_gguf_tensor *g = s->gate, *u = s->up;
    char full[40];
    mx_dtype dtype = MX_DTYPE_U8;
    /* First: sizes of an unknown type are no file's, their products may overflow. */
    if (g->type != MX_GGUF_TENSOR_MXFP4 && !dtype_of(g, &dtype)) return other_type(s->file, g, error);
    if (g->dims != 3 || (u && (u->dims != 3 || u->type != g->type || memcmp(u->ne, g->ne, sizeof u->ne))))
        return mx_fail(error, MX_INVALID_FILE, "%s: %.*s: has %d dimensions, expected 3%s", s->file->file.path,
                       (int)g->name.size, g->name.text, g->dims,
                       u ? ", and ffn_up_exps of the same type and sizes" : "");
    mx_recipe r = recipe_of(s);
    const int64_t shape[4] = {g->ne[2], r.rows, r.cols / 32, 16};
    if (g->type == MX_GGUF_TENSOR_MXFP4) {
        r.make = make_blocks;
        r.make_both = make_both;
        snprintf(full, sizeof full, "%s_blocks", name);
        mx_status status = add_made(ck, s, layer, full, MX_DTYPE_U8, 4, shape, &r, error);
        r.make = make_scales;
        r.make_both = NULL;
        snprintf(full, sizeof full, "%s_scales", name);
        return status ? status : add_made(ck, s, layer, full, MX_DTYPE_U8, 3, shape, &r, error);
    }
    snprintf(full, sizeof full, "mlp.experts.%s.weight", name);
    if (!u) return add_as_it_is(ck, s->file, g, layer, full, error);
    r.make = make_rows;
    const uint64_t rows = (uint64_t)g->ne[1] * (uint64_t)g->ne[2];
    r.factor = rows ? (int64_t)(g->bytes / rows) : 0;
    return add_made(ck, s, layer, full + strlen("mlp.experts."), dtype, 3, (int64_t[]){g->ne[2], r.rows, r.cols}, &r,
                    error);
}

/* ffn_gate_exps.bias and ffn_up_exps.bias [experts, intermediate], number by number. */
static mx_status add_bias(mx_checkpoint *ck, const expert_source *s, int layer, mx_error *error) {
    const mx_gguf_tensor *g = s->gate, *u = s->up;
    mx_dtype dtype;
    if (!dtype_of(g, &dtype) || dtype == MX_DTYPE_Q8_0) return other_type(s->file, g, error);
    if (g->dims != 2 || u->dims != 2 || u->type != g->type || memcmp(u->ne, g->ne, sizeof u->ne))
        return mx_fail(error, MX_INVALID_FILE,
                       "%s: %.*s: has %d dimensions, expected 2, and ffn_up_exps.bias of the same type and sizes",
                       s->file->file.path, (int)g->name.size, g->name.text, g->dims);
    const int size = dtype == MX_DTYPE_F32 ? 4 : 2;
    const uint64_t slice = (uint64_t)g->ne[0] * (uint64_t)size;
    const mx_recipe r = {.make = make_rows,
                         .from = g->data,
                         .also = u->data,
                         .from_stride = slice,
                         .also_stride = slice,
                         .from_bytes = slice,
                         .also_bytes = slice,
                         .rows = 2 * g->ne[0],
                         .cols = 1,
                         .factor = size};
    return add_made(ck, s, layer, "gate_up_proj_bias", dtype, 2, (int64_t[]){g->ne[1], r.rows}, &r, error);
}

/* ---- all of them --------------------------------------------------------------------------------------------------
 */

static const mx_gguf_tensor *find_in_any(const mx_checkpoint *ck, const char *name, const mx_gguf **file) {
    for (int i = 0; i < ck->gguf_count; i++) {
        const mx_gguf_tensor *t = mx_gguf_find_tensor(&ck->gguf[i], name);
        if (t) *file = &ck->gguf[i];
        if (t) return t;
    }
    return NULL;
}

/* The twin of a layer's ffn_gate_exps. */
static mx_status find_up(const mx_checkpoint *ck, expert_source *s, int layer, const char *part, mx_error *error) {
    char name[60];
    snprintf(name, sizeof name, "blk.%d.ffn_up_exps.%s", layer, part);
    s->up = find_in_any(ck, name, &s->up_file);
    if (s->up) return MX_OK;
    return mx_fail(error, MX_INVALID_FILE, "%s: tensor %s is missing: is the download complete?", s->file->file.path,
                   name);
}

/* Reported with the others that have no part in gpt-oss; its type does not matter. */
static mx_status add_unknown(mx_checkpoint *ck, const mx_gguf *file, const mx_gguf_tensor *g, const char *name,
                             mx_error *error) {
    mx_dtype dtype;
    if (dtype_of(g, &dtype)) return add_as(ck, file, g, dtype, -1, name, error);
    mx_tensor *t = mx_checkpoint_add(ck, file->file.path, "%s", name);
    if (!t) return no_memory(file, error);
    t->dtype = MX_DTYPE_OTHER;
    t->dtype_name = mx_gguf_type_name(g->type) ? mx_gguf_type_name(g->type) : "unknown";
    t->data = file->file.data;
    return MX_OK;
}

/* ffn_gate_exps, ffn_up_exps or ffn_down_exps, where it lies. `rest`: the name behind "blk.N.". */
static mx_status add_in_place(mx_checkpoint *ck, const mx_gguf *file, const mx_gguf_tensor *g, int layer,
                              const char *rest, mx_error *error) {
    char name[60];
    const char *kind = rest + strlen("ffn_"), *part = strchr(rest, '.') + 1;
    const int length = (int)strcspn(kind, "_");
    const bool weight = !strcmp(part, "weight");
    snprintf(name, sizeof name, "mlp.experts.%.*s_proj%s", length, kind, weight ? ".weight" : "_bias");
    if (weight && g->type == MX_GGUF_TENSOR_MXFP4) return add_as(ck, file, g, MX_DTYPE_MXFP4, layer, name, error);
    return add_as_it_is(ck, file, g, layer, name, error);
}

static bool is_experts(const char *rest) {
    static const char *const names[] = {"ffn_gate_exps.weight", "ffn_gate_exps.bias",   "ffn_up_exps.weight",
                                        "ffn_up_exps.bias",     "ffn_down_exps.weight", "ffn_down_exps.bias"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(rest, names[i])) return true;
    return false;
}

static mx_status add_tensor(mx_checkpoint *ck, const mx_gguf *file, const mx_gguf_tensor *g, mx_expert_form form,
                            mx_error *error) {
    char name[MX_TENSOR_NAME];
    int layer, end = 0;
    snprintf(name, sizeof name, "%.*s", (int)(g->name.size < MX_TENSOR_NAME ? g->name.size : MX_TENSOR_NAME - 1),
             g->name.text);
    if (sscanf(name, "blk.%6d.%n", &layer, &end) != 1 || !end) {
        for (size_t i = 0; i < sizeof outside / sizeof *outside; i++)
            if (!strcmp(name, outside[i].gguf)) return add_as_it_is(ck, file, g, -1, outside[i].name, error);
        return add_unknown(ck, file, g, name, error);
    }
    const char *rest = name + end;
    expert_source s = {.file = file, .gate = g};
    if (form == MX_EXPERTS_IN_PLACE && is_experts(rest)) return add_in_place(ck, file, g, layer, rest, error);
    if (!strncmp(rest, "ffn_up_exps.", 12)) return MX_OK; /* goes with ffn_gate_exps */
    if (!strcmp(rest, "ffn_down_exps.weight")) return add_experts(ck, &s, layer, "down_proj", error);
    if (!strcmp(rest, "ffn_gate_exps.weight")) {
        mx_status status = find_up(ck, &s, layer, "weight", error);
        return status ? status : add_experts(ck, &s, layer, "gate_up_proj", error);
    }
    if (!strcmp(rest, "ffn_gate_exps.bias")) {
        mx_status status = find_up(ck, &s, layer, "bias", error);
        return status ? status : add_bias(ck, &s, layer, error);
    }
    if (!strcmp(rest, "attn_sinks")) rest = "attn_sinks.weight"; /* the first converters */
    for (size_t i = 0; i < sizeof in_layer / sizeof *in_layer; i++)
        if (!strcmp(rest, in_layer[i].gguf)) return add_as_it_is(ck, file, g, layer, in_layer[i].name, error);
    return add_unknown(ck, file, g, name, error);
}

/* How many files the model has. A further one of them is refused: it lacks the keys, which the first one holds. */
static mx_status count_parts(const mx_gguf *g, int64_t *parts, mx_error *error) {
    const mx_gguf_value *count = mx_gguf_find(g, "split.count");
    int64_t number = 0;
    *parts = 1;
    if (count && !mx_gguf_int64(count, 0, MOST_FILES, parts))
        return mx_fail(error, MX_INVALID_FILE, "%s: split.count: expected a whole number up to %d", g->file.path,
                       MOST_FILES);
    if (*parts < 2) return MX_OK;
    if (!mx_gguf_int64(mx_gguf_find(g, "split.no"), 0, MOST_FILES, &number) || number != 0)
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "%s: is part %lld of %lld: give the first one, -00001-of-%05lld.gguf", g->file.path,
                       (long long)number + 1, (long long)*parts, (long long)*parts);
    return MX_OK;
}

/* The further files of a split model: NAME-00001-of-00003.gguf names them all. */
static mx_status open_parts(mx_checkpoint *ck, const char *path, int64_t parts, mx_error *error) {
    int64_t tensors = 0, held = 0;
    if (parts < 2) return MX_OK;
    char tail[40];
    snprintf(tail, sizeof tail, "-00001-of-%05lld.gguf", (long long)parts);
    const size_t length = strlen(path), n = strlen(tail);
    if (length < n || strcmp(path + length - n, tail))
        return mx_fail(error, MX_INVALID_FILE,
                       "%s: is the first of %lld files, but its name does not end in %s, by which the others are found",
                       path, (long long)parts, tail);
    for (int64_t i = 1; i < parts; i++) {
        char name[MX_PATH + 40];
        int64_t no = -1;
        snprintf(name, sizeof name, "%.*s-%05lld-of-%05lld.gguf", (int)(length - n), path, (long long)i + 1,
                 (long long)parts);
        mx_status status = mx_gguf_open(name, &ck->gguf[ck->gguf_count++], error);
        if (status) return status;
        if (!mx_gguf_int64(mx_gguf_find(&ck->gguf[i], "split.no"), 0, MOST_FILES, &no) || no != i)
            return mx_fail(error, MX_INVALID_FILE,
                           "%s: split.no is %lld, expected %lld: the file is a part of another model", name,
                           (long long)no, (long long)i);
    }
    for (int i = 0; i < ck->gguf_count; i++) held += ck->gguf[i].tensors;
    if (mx_gguf_int64(mx_gguf_find(&ck->gguf[0], "split.tensors.count"), 0, INT32_MAX, &tensors) && tensors != held)
        return mx_fail(error, MX_INVALID_FILE, "%s: split.tensors.count is %lld, but the %d files hold %lld tensors",
                       path, (long long)tensors, ck->gguf_count, (long long)held);
    return MX_OK;
}

mx_status mx_gguf_layout_read(mx_checkpoint *ck, const char *path, mx_expert_form form, mx_error *error) {
    ck->gguf = calloc(MOST_FILES, sizeof *ck->gguf);
    if (!ck->gguf) return mx_fail(error, MX_NO_MEMORY, "%s: no memory to open it", path);
    ck->gguf_count = 1;
    int64_t parts;
    mx_status status = mx_gguf_open(path, &ck->gguf[0], error);
    if (!status) status = count_parts(&ck->gguf[0], &parts, error);
    if (!status) status = mx_gguf_check_architecture(&ck->gguf[0], error);
    if (!status) status = open_parts(ck, path, parts, error);
    for (int i = 0; i < ck->gguf_count && !status; i++)
        for (int j = 0; j < ck->gguf[i].tensors && !status; j++)
            status = add_tensor(ck, &ck->gguf[i], &ck->gguf[i].tensor[j], form, error);
    return status;
}
