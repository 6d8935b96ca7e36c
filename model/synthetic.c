#include "model/synthetic.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/bytes.h"
#include "base/cpu.h"
#include "base/log.h"
#include "base/numa.h"
#include "model/checkpoint_private.h"
#include "model/synthetic_private.h"

/* ---- configurations ---------------------------------------------------------------------------------------------- */

/* What gpt-oss-20b and -120b have in common. */
static mx_config gpt_oss(int layers, int experts) {
    mx_config c = {.layers = layers,
                   .hidden = 2880,
                   .intermediate = 2880,
                   .heads = 64,
                   .kv_heads = 8,
                   .head_dim = 64,
                   .experts = experts,
                   .top_k = 4,
                   .vocab = 201088,
                   .window = 128,
                   .max_positions = 131072,
                   .rms_eps = 1e-5f,
                   .swiglu_limit = 7,
                   .swiglu_alpha = 1.702f,
                   .rope_theta = 150000,
                   .yarn = true,
                   .yarn_factor = 32,
                   .yarn_beta_fast = 32,
                   .yarn_beta_slow = 1,
                   .yarn_original_positions = 4096,
                   .attention_bias = true,
                   .eos = {200002, 199999},
                   .eos_count = 2,
                   .temperature = 1,
                   .top_p = 1};
    for (int i = 0; i < layers; i++) c.sliding[i] = i % 2 == 0;
    return c;
}

/* The folder of PATH/config.json, or PATH itself. */
static mx_status read_config(const char *what, mx_config *out, mx_error *error) {
    static const char file[] = "config.json";
    char folder[4096];
    size_t n = strlen(what), tail = sizeof file - 1;
    if (n >= sizeof folder) return mx_fail(error, MX_INVALID_ARGUMENT, "the path of the config.json is too long");
    memcpy(folder, what, n + 1);
    if (n == tail && !strcmp(what, file)) {
        strcpy(folder, ".");
    } else if (n > tail && !strcmp(what + n - tail, file) && what[n - tail - 1] == '/') {
        folder[n - tail - (n > tail + 1)] = 0; /* "/config.json" is in "/" */
    } else if (!strchr(what, '/')) {
        return mx_fail(
            error, MX_INVALID_ARGUMENT,
            "%s: no such synthetic model: gpt-oss-20b, gpt-oss-120b or the path of a config.json is expected", what);
    }
    return mx_config_read(folder, out, error);
}

mx_status mx_synthetic_config(const char *what, int layers, mx_config *out, mx_error *error) {
    if (!strcmp(what, "gpt-oss-20b")) {
        *out = gpt_oss(24, 32);
    } else if (!strcmp(what, "gpt-oss-120b")) {
        *out = gpt_oss(36, 128);
    } else {
        mx_status status = read_config(what, out, error);
        if (status) return status;
    }
    if (layers < 0 || layers > out->layers)
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s: %d layers asked for, it has 1 to %d", what, layers,
                       out->layers);
    if (layers) out->layers = layers;
    return MX_OK;
}

/* ---- the list of tensors ----------------------------------------------------------------------------------------- */

enum { PART = 48 }; /* room for a name behind "model.layers.N." */

typedef struct plan {
    mx_synthetic_tensor *tensor;
    int count;
} plan;

static void add(plan *p, int layer, const char *name, mx_noise noise, double size, int dims, const int64_t *shape) {
    mx_synthetic_tensor *t = &p->tensor[p->count++];
    *t = (mx_synthetic_tensor){.noise = noise, .size = (float)size, .dims = dims};
    if (layer < 0)
        snprintf(t->name, sizeof t->name, "%s", name);
    else
        snprintf(t->name, sizeof t->name, "model.layers.%d.%.*s", layer, PART, name);
    t->bytes = noise == MX_NOISE_BF16 || noise == MX_NOISE_GAIN ? 2 : 1;
    for (int i = 0; i < dims; i++) {
        t->shape[i] = shape[i];
        t->bytes *= (uint64_t)shape[i];
    }
}

/* Biases, and what attention and experts add to the residual stream, are small beside a token's embedding: what many
 * rows have in common would send them to the same experts. */
static const double BIAS = 0.02, LESS = 0.25;

/* A product of a row of size 1 with a matrix of this size is of size 1. */
static double keeping(int64_t cols) {
    return 1 / sqrt((double)cols);
}

static void add_dense(plan *p, int layer, const char *name, int64_t rows, int64_t cols, double factor, bool bias) {
    char full[PART];
    snprintf(full, sizeof full, "%s.weight", name);
    add(p, layer, full, MX_NOISE_BF16, factor * keeping(cols), 2, (int64_t[]){rows, cols});
    snprintf(full, sizeof full, "%s.bias", name);
    if (bias) add(p, layer, full, MX_NOISE_BF16, BIAS, 1, &rows);
}

static void add_experts(plan *p, int layer, const char *name, int64_t count, int64_t rows, int64_t cols,
                        double factor) {
    char full[PART];
    snprintf(full, sizeof full, "mlp.experts.%s_blocks", name);
    add(p, layer, full, MX_NOISE_CODES, 0, 4, (int64_t[]){count, rows, cols / 32, 16});
    snprintf(full, sizeof full, "mlp.experts.%s_scales", name);
    add(p, layer, full, MX_NOISE_SCALES, factor * keeping(cols), 3, (int64_t[]){count, rows, cols / 32});
    snprintf(full, sizeof full, "mlp.experts.%s_bias", name);
    add(p, layer, full, MX_NOISE_BF16, BIAS, 2, (int64_t[]){count, rows});
}

static void add_layer(plan *p, const mx_config *c, int layer) {
    const int64_t hidden = c->hidden, heads = c->heads;
    const int64_t q = heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    add(p, layer, "input_layernorm.weight", MX_NOISE_GAIN, 1, 1, &hidden);
    add_dense(p, layer, "self_attn.q_proj", q, hidden, 1, c->attention_bias);
    add_dense(p, layer, "self_attn.k_proj", kv, hidden, 1, c->attention_bias);
    add_dense(p, layer, "self_attn.v_proj", kv, hidden, 1, c->attention_bias);
    add_dense(p, layer, "self_attn.o_proj", hidden, q, LESS, c->attention_bias);
    add(p, layer, "self_attn.sinks", MX_NOISE_BF16, 1, 1, &heads);
    add(p, layer, "post_attention_layernorm.weight", MX_NOISE_GAIN, 1, 1, &hidden);
    add_dense(p, layer, "mlp.router", c->experts, hidden, 1, true);
    add_experts(p, layer, "gate_up_proj", c->experts, 2 * (int64_t)c->intermediate, hidden, 1);
    add_experts(p, layer, "down_proj", c->experts, hidden, c->intermediate, LESS);
}

mx_status mx_synthetic_plan(const mx_config *c, mx_synthetic_tensor **out, int *count, mx_error *error) {
    enum { A_LAYER = 19, GLOBAL = 3 };
    const int64_t hidden = c->hidden;
    plan p = {.tensor = malloc(((size_t)c->layers * A_LAYER + GLOBAL) * sizeof *p.tensor)};
    *out = p.tensor;
    if (!p.tensor) return mx_fail(error, MX_NO_MEMORY, "no memory for the list of tensors");
    for (int i = 0; i < c->layers; i++) add_layer(&p, c, i);
    add(&p, -1, "model.embed_tokens.weight", MX_NOISE_BF16, 1, 2, (int64_t[]){c->vocab, hidden});
    add(&p, -1, "model.norm.weight", MX_NOISE_GAIN, 1, 1, &hidden);
    if (!c->tied_embeddings) add_dense(&p, -1, "lm_head", c->vocab, hidden, 1, false);
    *count = p.count;
    return MX_OK;
}

uint64_t mx_synthetic_bytes(const mx_config *c) {
    mx_synthetic_tensor *tensor;
    int count = 0;
    uint64_t sum = 0;
    if (mx_synthetic_plan(c, &tensor, &count, NULL)) return UINT64_MAX;
    for (int i = 0; i < count; i++) sum += tensor[i].bytes;
    free(tensor);
    return sum;
}

const char *mx_synthetic_dtype(mx_noise noise) {
    return noise == MX_NOISE_BF16 || noise == MX_NOISE_GAIN ? "BF16" : "U8";
}

/* ---- noise ------------------------------------------------------------------------------------------------------- */

static uint64_t splitmix64(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* FNV-1a. */
static uint64_t hash(const char *text) {
    uint64_t h = 0xcbf29ce484222325u;
    for (; *text; text++) h = (h ^ (unsigned char)*text) * 0x100000001b3u;
    return h;
}

/* A block of random bytes: xorshift128+ in eight lanes side by side, which compilers make vectors of. `size` is a
 * multiple of 64. */
static void random_bytes(uint64_t key, uint8_t *out, size_t size) {
    enum { LANES = 8 };
    uint64_t a[LANES], b[LANES], sum[LANES];
    for (int i = 0; i < LANES; i++) {
        a[i] = splitmix64(&key);
        b[i] = splitmix64(&key);
    }
    for (size_t at = 0; at < size; at += sizeof sum) {
        for (int i = 0; i < LANES; i++) {
            uint64_t x = a[i], y = b[i];
            sum[i] = x + y;
            x ^= x << 23;
            a[i] = y;
            b[i] = x ^ y ^ (x >> 18) ^ (y >> 5);
        }
        memcpy(out + at, sum, sizeof sum);
    }
}

/* BF16: the four powers are those of exponent top - 3 .. top, mean square (1 + 1/4 + 1/16 + 1/64) / 4 of a mantissa's
 * 7/3. Scales: random codes have mean square 68.5 / 8, the four scales (1 + 4 + 16 + 64) / 4, together 13.49 times the
 * least. */
int mx_synthetic_base(const mx_synthetic_tensor *t) {
    switch (t->noise) {
    case MX_NOISE_BF16:
        return 127 + (int)lrint(log2((double)t->size / 0.88));
    case MX_NOISE_SCALES:
        return 127 + (int)lrint(log2((double)t->size / 13.49));
    default:
        return 0;
    }
}

static void to_bf16(uint8_t *data, size_t size, int top) {
    for (size_t i = 0; i < size; i += 2) {
        uint16_t r;
        memcpy(&r, data + i, 2);
        r = (uint16_t)((r & 0x807f) + (top << 7) - (r & 0x0180));
        memcpy(data + i, &r, 2);
    }
}

static void to_gains(uint8_t *data, size_t size) {
    for (size_t i = 0; i < size; i += 2) {
        uint16_t r;
        memcpy(&r, data + i, 2);
        r = (uint16_t)(0x3f00 + (r & 0xff));
        memcpy(data + i, &r, 2);
    }
}

static void to_scales(uint8_t *data, size_t size, int least) {
    for (size_t i = 0; i < size; i++) data[i] = (uint8_t)(least + (data[i] & 3));
}

struct filling {
    const mx_synthetic_tensor *t;
    int base;
    uint64_t key, first_block, size;
    uint8_t *out;
};

static void fill_block(const struct filling *f, uint64_t block, uint8_t *out, size_t size) {
    uint64_t key = f->key + block;
    random_bytes(splitmix64(&key), out, size);
    if (f->t->noise == MX_NOISE_BF16) to_bf16(out, size, f->base);
    if (f->t->noise == MX_NOISE_GAIN) to_gains(out, size);
    if (f->t->noise == MX_NOISE_SCALES) to_scales(out, size, f->base);
}

static void fill_blocks(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const struct filling *f = arg;
    for (int64_t i = begin; i < end; i++) {
        const uint64_t at = (uint64_t)i * MX_SYNTHETIC_BLOCK, left = f->size - at, block = f->first_block + (uint64_t)i;
        const uint64_t size = left < MX_SYNTHETIC_BLOCK ? left : MX_SYNTHETIC_BLOCK, whole = size / 64 * 64;
        fill_block(f, block, f->out + at, whole);
        if (whole == size) continue;
        _Alignas(64) uint8_t end_of_block[MX_SYNTHETIC_BLOCK]; /* numbers are made in 64 bytes at a time */
        fill_block(f, block, end_of_block, whole + 64);
        memcpy(f->out + at + whole, end_of_block + whole, size - whole);
    }
}

uint64_t mx_synthetic_key(const mx_synthetic_tensor *t, uint64_t seed) {
    return splitmix64(&seed) ^ hash(t->name);
}

void mx_synthetic_fill(mx_pool *pool, const mx_synthetic_tensor *t, uint64_t seed, uint64_t offset, uint64_t size,
                       uint8_t *out) {
    enum { GRAIN = 32 }; /* 2 MiB: a huge page is touched by one thread */
    struct filling f = {t, mx_synthetic_base(t), mx_synthetic_key(t, seed), offset / MX_SYNTHETIC_BLOCK, size, out};
    const int64_t blocks = (int64_t)((size + MX_SYNTHETIC_BLOCK - 1) / MX_SYNTHETIC_BLOCK);
    mx_parallel_for(pool, blocks, GRAIN, fill_blocks, &f);
}

/* ---- weights in memory ------------------------------------------------------------------------------------------- */

enum { FILL_AT_ONCE = 256 << 20 };

static uint64_t rounded(uint64_t bytes) {
    return (bytes + 63) / 64 * 64;
}

static mx_status check_memory(uint64_t bytes, mx_error *error) {
    const uint64_t available = mx_memory_available();
    if (bytes <= available) return MX_OK;
    return mx_fail(
        error, MX_NO_MEMORY,
        "the synthetic weights take %.1f GB, %.1f GB of memory are free: take fewer layers with --layers, or "
        "a smaller model",
        (double)bytes / 1e9, (double)available / 1e9);
}

/* ---- NUMA nodes -------------------------------------------------------------------------------------------------- */

/* Before anything is in `memory`. */
static void choose_nodes(mx_numa numa, const mx_pool *pool, const mx_arena *memory) {
    const int nodes = mx_numa_nodes();
    if (nodes > 1 && mx_pool_nodes(pool) > 1)
        mx_log(MX_LOG_INFO, "%d memory nodes: each has its part of the synthetic weights", nodes);
    else if (nodes > 1 && numa == MX_NUMA_INTERLEAVE && mx_numa_interleave_area(memory->base, memory->size))
        mx_log(MX_LOG_INFO, "%d memory nodes: pages of the synthetic weights come from all in turn", nodes);
    else if (nodes > 1 && numa == MX_NUMA_INTERLEAVE)
        mx_log(MX_LOG_WARNING,
               "%d memory nodes: the synthetic weights cannot be taken from all in turn, the system refuses", nodes);
}

/* ---- making them ------------------------------------------------------------------------------------------------- */

/* Gives each tensor its place in `memory`. */
static mx_status place_tensors(const mx_synthetic_tensor *from, int count, mx_arena *memory, uint8_t **data,
                               mx_tensor *to, mx_error *error) {
    for (int i = 0; i < count; i++) {
        data[i] = mx_arena_take(memory, from[i].bytes);
        char *name = mx_arena_take(memory, MX_SYNTHETIC_NAME);
        if (!data[i] || !name) return mx_fail(error, MX_NO_MEMORY, "no memory for %s", from[i].name);
        memcpy(name, from[i].name, MX_SYNTHETIC_NAME);
        to[i] = (mx_tensor){.name = name,
                            .file = "synthetic",
                            .dtype_name = mx_synthetic_dtype(from[i].noise),
                            .dims = from[i].dims,
                            .data = data[i],
                            .bytes = from[i].bytes};
        to[i].dtype = strcmp(to[i].dtype_name, "U8") ? MX_DTYPE_BF16 : MX_DTYPE_U8;
        memcpy(to[i].shape, from[i].shape, sizeof from[i].shape);
    }
    return MX_OK;
}

/* Makes the tensors one by one. */
static mx_status make_tensors(const mx_synthetic_tensor *from, int count, uint64_t seed, mx_pool *pool,
                              mx_progress *progress, const volatile sig_atomic_t *stop, uint8_t *const *data,
                              const mx_tensor *to, mx_error *error) {
    uint64_t done = 0;
    for (int i = 0; i < count; i++) {
        if (mx_pool_nodes(pool) > 1) mx_tensor_place(pool, &to[i]);
        for (uint64_t at = 0; at < from[i].bytes; at += FILL_AT_ONCE) {
            const uint64_t left = from[i].bytes - at, size = left < FILL_AT_ONCE ? left : FILL_AT_ONCE;
            mx_synthetic_fill(pool, &from[i], seed, at, size, data[i] + at);
            done += size;
            if (progress) mx_progress_update(progress, (double)done);
            if (stop && *stop) return mx_fail(error, MX_CANCELLED, "interrupted");
        }
    }
    return MX_OK;
}

/* How the numbers of a model in memory are made. */
struct making {
    uint64_t seed;
    mx_pool *pool;
    mx_numa numa;
    mx_progress *progress;
    const volatile sig_atomic_t *stop;
};

/* `how` NULL: they are not. */
static mx_status make_checkpoint(const mx_config *c, const struct making *how, mx_checkpoint **out, mx_error *error) {
    mx_synthetic_tensor *from = NULL;
    mx_tensor *tensor = NULL;
    uint8_t **data = NULL;
    mx_arena memory = {0};
    int count = 0;
    uint64_t bytes = 0;
    mx_status status = mx_synthetic_plan(c, &from, &count, error);
    for (int i = 0; i < count; i++) bytes += rounded(from[i].bytes) + rounded(MX_SYNTHETIC_NAME);
    if (!status && how) status = check_memory(bytes, error);
    if (!status) status = mx_arena_create(bytes, &memory, error);
    if (!status && how) choose_nodes(how->numa, how->pool, &memory);
    if (!status && (!(tensor = calloc((size_t)count, sizeof *tensor)) || !(data = calloc((size_t)count, sizeof *data))))
        status = mx_fail(error, MX_NO_MEMORY, "no memory for %d tensors", count);
    if (!status) status = place_tensors(from, count, &memory, data, tensor, error);
    if (!status && how) {
        mx_pool_enter(how->pool);
        status = make_tensors(from, count, how->seed, how->pool, how->progress, how->stop, data, tensor, error);
        mx_pool_leave(how->pool);
    }
    free(from);
    free(data);
    if (!status) status = mx_checkpoint_in_memory("synthetic", tensor, count, memory, out, error);
    if (status) {
        mx_arena_destroy(&memory);
        free(tensor);
    }
    return status;
}

mx_status mx_synthetic_weights(const mx_config *c, uint64_t seed, mx_pool *pool, mx_numa numa, mx_progress *progress,
                               const volatile sig_atomic_t *stop, mx_weights **out, mx_error *error) {
    const struct making how = {seed, pool, numa, progress, stop};
    mx_checkpoint *checkpoint = NULL;
    *out = NULL;
    mx_status status = make_checkpoint(c, &how, &checkpoint, error);
    return status ? status : mx_weights_from("synthetic", c, checkpoint, pool, out, error);
}

mx_status mx_synthetic_shape(const mx_config *c, mx_weights **out, mx_error *error) {
    mx_checkpoint *checkpoint = NULL;
    *out = NULL;
    mx_status status = make_checkpoint(c, NULL, &checkpoint, error);
    return status ? status : mx_weights_from("synthetic", c, checkpoint, NULL, out, error);
}
