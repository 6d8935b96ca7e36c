/* OpenAI's model.bin, the file of their Metal program (gpt_oss/metal/scripts/create-local-model.py): a header, the
 * vocabulary, then all weights at places that follow from the sizes. It differs from the checkpoint in this: rows of q
 * and k are ordered so that the two of a RoPE pair are neighbours, q is halved and k quartered (1/8 = 1/sqrt(64) of
 * attention's scale), scale bytes are 14 higher, and only rows of the embedding that have a token are there. All of
 * that is undone exactly, when weights are loaded; blocks, the bulk, stay where they are. */
#include "model/metal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "model/checkpoint_private.h"
#include "model/config_private.h"

enum {
    MAGIC = 16,
    MODEL_HEADER = MAGIC + 16 + 17 * 4, /* magic, UUID, numbers */
    TOKENIZER_HEADER = MODEL_HEADER + 16 + 16,
    HEADER = TOKENIZER_HEADER + 16,
    PAGE = 16384, /* before the weights and before each layer's experts */
    LINE = 16,    /* before each tensor */
    SCALE_SHIFT = 14,
    HEAD_DIM = 64, /* the only one that the format is defined for */
};

static const uint8_t model_uuid[16] = {0xdf, 0x52, 0xdc, 0x86, 0x17, 0x89, 0x4e, 0xd0,
                                       0xa2, 0x95, 0x66, 0xf1, 0x05, 0x08, 0x14, 0x5b};
static const uint8_t layout_uuid[16] = {0x22, 0x91, 0x77, 0xa8, 0x57, 0x75, 0x42, 0x68,
                                        0xbf, 0xd8, 0xd5, 0x88, 0xb3, 0x51, 0xc5, 0x6d};
static const uint8_t tokenizer_uuid[16] = {0x74, 0x01, 0xad, 0xed, 0x2a, 0x95, 0x40, 0xcb,
                                           0xb7, 0x82, 0x9c, 0xce, 0xba, 0xaf, 0xe7, 0x2b};

/* ---- header ------------------------------------------------------------------------------------------------------ */

static uint32_t whole_at(const mx_mapped *m, int number) {
    return mx_load_u32(m->data + MAGIC + 16 + 4 * number);
}

static double real_at(const mx_mapped *m, int number) {
    const uint32_t bits = whole_at(m, number);
    float value;
    memcpy(&value, &bits, sizeof value);
    return (double)value;
}

static mx_status check_kind(const mx_mapped *m, mx_error *error) {
    static const struct {
        const char *what;
        int at;
        const uint8_t *uuid;
    } parts[] = {{"model", MAGIC, model_uuid},
                 {"layout", MODEL_HEADER, layout_uuid},
                 {"tokenizer", MODEL_HEADER + 16, tokenizer_uuid}};
    if (memcmp(m->data, "GPT-OSS v1.0\0\0\0", MAGIC))
        return mx_fail(error, MX_INVALID_FILE, "%s: does not begin with \"GPT-OSS v1.0\": no model.bin", m->path);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (memcmp(m->data + parts[i].at, parts[i].uuid, 16))
            return mx_fail(error, MX_UNSUPPORTED, "%s: its %s identifier is none that mxrun knows: another kind of %s",
                           m->path, parts[i].what, parts[i].what);
    return MX_OK;
}

typedef struct numbers {
    const mx_mapped *m;
    mx_error *error;
    mx_status status;
} numbers;

static int whole(numbers *n, int number, const char *name, uint32_t low, uint32_t high) {
    const uint32_t x = whole_at(n->m, number);
    if (x >= low && x <= high) return (int)x;
    if (!n->status)
        n->status = mx_fail(n->error, MX_INVALID_FILE, "%s: header: %s is %u, expected a number from %u to %u",
                            n->m->path, name, x, low, high);
    return (int)low;
}

static double real(numbers *n, int number, const char *name, double low, double high) {
    const double x = real_at(n->m, number);
    if (x >= low && x <= high) return x;
    if (!n->status)
        n->status = mx_fail(n->error, MX_INVALID_FILE, "%s: header: %s is %g, expected a number from %g to %g",
                            n->m->path, name, x, low, high);
    return low;
}

/* The header holds the ramp of YaRN as fp32 (offset = -low / (high - low), scale = 1 / (high - low)); the numbers of
 * turns that low and high come from are whole in the published models. */
static double turns_of(const mx_config *c, double pair) {
    const double pi = 3.14159265358979323846;
    const double turns = c->yarn_original_positions / (2 * pi) * exp(-pair * log(c->rope_theta) * 2 / c->head_dim);
    return fabs(turns - round(turns)) < 1e-3 * turns ? round(turns) : turns;
}

static void read_rope(numbers *n, mx_config *c) {
    c->rope_theta = real(n, 11, "rope_theta", 1.001, 1e15);
    const double interpolation = real(n, 12, "interpolation_scale", 1e-6, 1);
    const double offset = real(n, 13, "yarn_offset", -1e6, 1e6), scale = real(n, 14, "yarn_scale", 1e-6, 1e6);
    const double multiplier = real(n, 15, "yarn_multiplier", 1e-6, 1e6);
    if (n->status || interpolation == 1) return;
    c->yarn = true;
    c->yarn_factor = 1 / interpolation;
    c->yarn_original_positions = (int)lround(c->max_positions * interpolation);
    c->yarn_beta_fast = turns_of(c, -offset / scale);
    c->yarn_beta_slow = turns_of(c, (1 - offset) / scale);
    if (fabs(multiplier - (0.1 * log(c->yarn_factor) + 1)) > 1e-5) c->yarn_attention_factor = multiplier;
    if (c->yarn_original_positions < 1 || !(c->yarn_beta_slow > 0) || !(c->yarn_beta_fast >= c->yarn_beta_slow))
        n->status = mx_fail(n->error, MX_INVALID_FILE, "%s: header: yarn_offset %g and yarn_scale %g make no sense",
                            n->m->path, offset, scale);
}

static mx_status read_config(const mx_mapped *m, mx_config *c, mx_error *error) {
    numbers n = {m, error, check_kind(m, error)};
    *c = (mx_config){.temperature = 1, .top_p = 1, .swiglu_alpha = 1.702f, .attention_bias = true};
    if (n.status) return n.status;
    c->max_positions = whole(&n, 0, "context_length", 1, 1 << 24);
    c->layers = whole(&n, 1, "num_blocks", 1, MX_MAX_LAYERS);
    c->experts = whole(&n, 2, "num_experts", 1, 1 << 14);
    c->top_k = whole(&n, 3, "num_active_experts", 1, 1 << 14);
    c->hidden = whole(&n, 4, "embedding_dim", 32, 1 << 17);
    c->intermediate = whole(&n, 5, "mlp_dim", 32, 1 << 17);
    c->swiglu_limit = (float)real(&n, 6, "swiglu_limit", 1e-3, 1e6);
    c->head_dim = HEAD_DIM;
    if (!n.status && whole_at(m, 7) != HEAD_DIM)
        n.status = mx_fail(error, MX_UNSUPPORTED,
                           "%s: header: head_dim is %u; the format is only defined for 64, by the scale of attention "
                           "that is worked into its weights",
                           m->path, whole_at(m, 7));
    c->heads = whole(&n, 8, "num_heads", 1, 1 << 12);
    c->kv_heads = whole(&n, 9, "num_kv_heads", 1, 1 << 12);
    c->window = whole(&n, 10, "attention_window", 1, 1 << 24);
    c->rms_eps = (float)real(&n, 16, "rmsnorm_epsilon", 1e-12, 1);
    read_rope(&n, c);
    for (int i = 0; i < c->layers; i++) c->sliding[i] = i % 2 == 0;
    const uint64_t tokens =
        (uint64_t)mx_load_u32(m->data + TOKENIZER_HEADER) + mx_load_u32(m->data + TOKENIZER_HEADER + 4);
    if (!n.status && (tokens < 1 || tokens > 1 << 24))
        n.status = mx_fail(error, MX_INVALID_FILE, "%s: header: %llu tokens, expected 1 to 16777216", m->path,
                           (unsigned long long)tokens);
    if (n.status) return n.status;
    c->vocab = (int)tokens;
    mx_config_harmony_eos(c);
    return mx_config_check(c, m->path, error);
}

mx_status mx_metal_config(const char *path, mx_config *out, mx_error *error) {
    mx_mapped m;
    mx_status status = mx_mapped_open(path, HEADER, &m, error);
    if (!status) status = read_config(&m, out, error);
    mx_mapped_close(&m);
    return status;
}

/* ---- recipes ------------------------------------------------------------------------------------------------------
 */

/* Rows of q or k back in the order of the checkpoint, times `factor`: row j * 32 + i of a head lies at row 2 i + j. */
static void make_unpaired(const mx_recipe *r, int64_t first, int64_t count, uint8_t *out) {
    for (int64_t n = first; n < first + count; n++) {
        const int64_t head = n / HEAD_DIM, row = n % HEAD_DIM, half = HEAD_DIM / 2;
        const uint8_t *from = r->from + (uint64_t)(head * HEAD_DIM + 2 * (row % half) + row / half) * r->from_stride;
        for (int64_t i = 0; i < r->cols; i++, out += 2) {
            const uint16_t v = mx_f32_to_bf16(mx_bf16_to_f32(mx_load_u16(from + 2 * i)) * (float)r->factor);
            memcpy(out, &v, 2);
        }
    }
}

/* A byte below 14 is none that a converter wrote: it becomes NaN's, which is refused. */
static void make_scales(const mx_recipe *r, int64_t first, int64_t count, uint8_t *out) {
    for (int64_t e = first; e < first + count; e++) {
        const uint8_t *from = r->from + (uint64_t)e * r->from_stride;
        for (uint64_t i = 0; i < r->from_bytes; i++)
            *out++ = from[i] < SCALE_SHIFT ? 255 : (uint8_t)(from[i] - SCALE_SHIFT);
    }
}

static void make_copy(const mx_recipe *r, int64_t first, int64_t count, uint8_t *out) {
    for (int64_t e = first; e < first + count; e++, out += r->from_bytes)
        memcpy(out, r->from + (uint64_t)e * r->from_stride, r->from_bytes);
}

/* ---- weights ------------------------------------------------------------------------------------------------------
 */

typedef struct walk {
    mx_checkpoint *ck;
    const mx_mapped *m;
    uint64_t at; /* of the next byte; beyond the file: it is too short, which is said at the end */
    mx_status status;
    mx_error *error;
} walk;

static void align(walk *w, uint64_t to) {
    w->at = (w->at + to - 1) / to * to;
}

/* The next tensor, as it lies there. Its data are not looked at before the size of the file is known to be right. */
static mx_tensor *next(walk *w, int layer, const char *name, mx_dtype dtype, int dims, const int64_t *shape) {
    if (w->status) return NULL;
    mx_tensor *t = layer < 0 ? mx_checkpoint_add(w->ck, w->m->path, "%s", name)
                             : mx_checkpoint_add(w->ck, w->m->path, "model.layers.%d.%s", layer, name);
    if (!t) {
        w->status = mx_fail(w->error, MX_NO_MEMORY, "%s: no memory for its tensors", w->m->path);
        return NULL;
    }
    mx_tensor_form(t, dtype, dims, shape);
    t->data = w->m->data + w->at;
    w->at += t->bytes;
    return t;
}

static void make(walk *w, mx_tensor *t, const mx_recipe *recipe) {
    if (t && !mx_tensor_made(w->ck, t, recipe))
        w->status = mx_fail(w->error, MX_NO_MEMORY, "%s: no memory for its tensors", w->m->path);
}

static void plain(walk *w, int layer, const char *name, int dims, const int64_t *shape) {
    next(w, layer, name, MX_DTYPE_BF16, dims, shape);
}

/* Weight and bias of q, k and v, weights first, without gaps. */
static void qkv(walk *w, const mx_config *c, int layer) {
    const struct {
        const char *name;
        int64_t rows;
        int factor; /* 0: as it is */
    } parts[] = {{"q", (int64_t)c->heads * HEAD_DIM, 2},
                 {"k", (int64_t)c->kv_heads * HEAD_DIM, 4},
                 {"v", (int64_t)c->kv_heads * HEAD_DIM, 0}};
    for (int bias = 0; bias < 2; bias++)
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            char name[40];
            snprintf(name, sizeof name, "self_attn.%s_proj.%s", parts[i].name, bias ? "bias" : "weight");
            mx_tensor *t = next(w, layer, name, MX_DTYPE_BF16, bias ? 1 : 2, (int64_t[]){parts[i].rows, c->hidden});
            if (!t || !parts[i].factor) continue;
            const uint64_t row = mx_tensor_slice_bytes(t);
            make(w, t,
                 &(mx_recipe){.make = make_unpaired,
                              .from = t->data,
                              .from_stride = row,
                              .from_bytes = row,
                              .cols = bias ? 1 : c->hidden,
                              .factor = parts[i].factor});
        }
}

static void dense(walk *w, const mx_config *c, int layer) {
    const int64_t h = c->hidden, q = (int64_t)c->heads * HEAD_DIM;
    align(w, LINE);
    plain(w, layer, "input_layernorm.weight", 1, &h);
    align(w, LINE);
    qkv(w, c, layer);
    align(w, LINE);
    plain(w, layer, "self_attn.sinks", 1, (int64_t[]){c->heads});
    align(w, LINE);
    plain(w, layer, "self_attn.o_proj.weight", 2, (int64_t[]){h, q});
    plain(w, layer, "self_attn.o_proj.bias", 1, &h);
    align(w, LINE);
    plain(w, layer, "post_attention_layernorm.weight", 1, &h);
    align(w, LINE);
    plain(w, layer, "mlp.router.weight", 2, (int64_t[]){c->experts, h});
    plain(w, layer, "mlp.router.bias", 1, (int64_t[]){c->experts});
}

/* One expert's part of a tensor lies at w->at, the next one's `stride` further. */
static void strided(walk *w, int layer, const char *name, mx_dtype dtype, int dims, const int64_t *shape,
                    uint64_t stride, void (*how)(const mx_recipe *, int64_t, int64_t, uint8_t *)) {
    align(w, LINE);
    const uint64_t begin = w->at;
    mx_tensor *t = next(w, layer, name, dtype, dims, shape);
    if (!t) return;
    const uint64_t slice = mx_tensor_slice_bytes(t);
    w->at = begin + slice;
    t->slice_stride = stride;
    if (how) make(w, t, &(mx_recipe){.make = how, .from = t->data, .from_stride = stride, .from_bytes = slice});
}

static uint64_t in_lines(uint64_t bytes) {
    return (bytes + LINE - 1) / LINE * LINE;
}

static void experts(walk *w, const mx_config *c, int layer) {
    const int64_t e = c->experts, up = 2 * (int64_t)c->intermediate, h = c->hidden, i = c->intermediate;
    const uint64_t up_blocks = (uint64_t)(up * (h / 32)), down_blocks = (uint64_t)(h * (i / 32));
    const uint64_t stride = in_lines(up_blocks * 16) + in_lines(up_blocks) + in_lines((uint64_t)up * 2) +
                            in_lines(down_blocks * 16) + in_lines(down_blocks) + in_lines((uint64_t)h * 2);
    align(w, PAGE);
    const uint64_t begin = w->at;
    strided(w, layer, "mlp.experts.gate_up_proj_blocks", MX_DTYPE_U8, 4, (int64_t[]){e, up, h / 32, 16}, stride, NULL);
    strided(w, layer, "mlp.experts.gate_up_proj_scales", MX_DTYPE_U8, 3, (int64_t[]){e, up, h / 32}, stride,
            make_scales);
    strided(w, layer, "mlp.experts.gate_up_proj_bias", MX_DTYPE_BF16, 2, (int64_t[]){e, up}, stride, make_copy);
    strided(w, layer, "mlp.experts.down_proj_blocks", MX_DTYPE_U8, 4, (int64_t[]){e, h, i / 32, 16}, stride, NULL);
    strided(w, layer, "mlp.experts.down_proj_scales", MX_DTYPE_U8, 3, (int64_t[]){e, h, i / 32}, stride, make_scales);
    strided(w, layer, "mlp.experts.down_proj_bias", MX_DTYPE_BF16, 2, (int64_t[]){e, h}, stride, make_copy);
    w->at = begin + (uint64_t)(e - 1) * stride + (w->at - begin); /* the last expert ends without padding */
}

/* Bytes of the vocabulary: UUIDs of the special tokens, the split pattern, the other tokens. */
static uint64_t vocabulary_bytes(const mx_mapped *m) {
    return 16 * (uint64_t)mx_load_u32(m->data + TOKENIZER_HEADER) + mx_load_u32(m->data + TOKENIZER_HEADER + 8) +
           mx_load_u32(m->data + TOKENIZER_HEADER + 12);
}

uint64_t mx_metal_header(const mx_mapped *m) {
    return HEADER + vocabulary_bytes(m);
}

mx_status mx_metal_read(mx_checkpoint *ck, const char *path, mx_error *error) {
    mx_config c;
    mx_status status = mx_mapped_open(path, HEADER, &ck->metal, error);
    if (!status) status = read_config(&ck->metal, &c, error);
    if (status) return status;
    walk w = {.ck = ck, .m = &ck->metal, .error = error, .at = mx_metal_header(&ck->metal)};
    align(&w, PAGE);
    plain(&w, -1, "model.embed_tokens.weight", 2, (int64_t[]){c.vocab, c.hidden});
    for (int i = 0; i < c.layers; i++) dense(&w, &c, i);
    align(&w, LINE);
    plain(&w, -1, "model.norm.weight", 1, (int64_t[]){c.hidden});
    align(&w, LINE);
    plain(&w, -1, "lm_head.weight", 2, (int64_t[]){c.vocab, c.hidden});
    for (int i = 0; i < c.layers; i++) experts(&w, &c, i);
    if (w.status || w.at == ck->metal.size) return w.status;
    return mx_fail(error, MX_INVALID_FILE,
                   "%s: %zu bytes, but a model of its header's sizes has %llu: download it again", path, ck->metal.size,
                   (unsigned long long)w.at);
}
