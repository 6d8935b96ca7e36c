#ifndef MX_MODEL_H
#define MX_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/status.h"
#include "base/threads.h"
#include "kernels/kernels.h"
#include "model/alternative.h"
#include "model/load_options.h"
#include "model/logit_bias.h"

/* ---- configuration: everything config.json says about the computation ---------------------------------------------
 */
enum { MX_MAX_LAYERS = 512 };

typedef struct mx_config {
    int layers, hidden, intermediate; /* intermediate: width of one expert */
    int heads, kv_heads, head_dim;
    int experts, top_k;
    int vocab;
    int window;                  /* keys a sliding layer sees, itself included */
    bool sliding[MX_MAX_LAYERS]; /* by layer */
    int max_positions;           /* max_position_embeddings */
    float rms_eps, swiglu_limit, swiglu_alpha;
    double rope_theta;
    bool yarn; /* false: plain RoPE (rope_type "default") */
    double yarn_factor, yarn_beta_fast, yarn_beta_slow;
    int yarn_original_positions;
    bool yarn_truncate;
    double yarn_attention_factor; /* the factor on cos and sin where the file gives one; 0: 0.1 ln(yarn_factor) + 1 */
    bool attention_bias;          /* false: q, k, v and o have no biases */
    bool tied_embeddings;         /* lm_head is the embedding */
    int eos[8], eos_count;        /* eos_token_id of config.json and generation_config.json together */
    /* How generation_config.json says that tokens are chosen; 1, 1 and 0 where it does not. do_sample false: 0, 1, 0.
     */
    float temperature, top_p;
    int sample_top_k;
    bool activations_quantized; /* the file wants activations (or keys and values) quantised, which is not done */
} mx_config;

/* How a model lies on the disk. */
typedef enum mx_layout {
    MX_LAYOUT_HF,       /* a folder: config.json, generation_config.json, .safetensors by Hugging Face's names */
    MX_LAYOUT_ORIGINAL, /* a folder: OpenAI's config.json, dtypes.json, .safetensors by their own names */
    MX_LAYOUT_GGUF,     /* a file, or the first of several */
    MX_LAYOUT_METAL,    /* a file: OpenAI's model.bin */
    MX_LAYOUT_TENSORS,  /* one .safetensors without a configuration: goldens */
    MX_LAYOUTS
} mx_layout;
const char *mx_layout_name(mx_layout layout); /* "Hugging Face", "OpenAI original/", "GGUF", "OpenAI metal" ... */

enum { MX_PATH = 4096 };
typedef struct mx_location {
    mx_layout layout;
    char path[MX_PATH]; /* the folder, or the (first) file */
} mx_location;

/* What lies at `path`: a folder in one of the layouts, one that holds original/ or metal/ or a GGUF model and nothing
 * better, or a file. Looks at names and first bytes only. */
mx_status mx_location_find(const char *path, mx_location *out, mx_error *error);

/* The configuration of the model at `path`, in any layout but MX_LAYOUT_TENSORS: config.json (and
 * generation_config.json where it is), the keys of a GGUF, the header of a model.bin. Every number is in a range in
 * which no product of sizes overflows; matrix widths are multiples of 32. MX_INVALID_FILE for what is wrong,
 * MX_UNSUPPORTED for another model, activation, RoPE or quantisation. */
mx_status mx_config_read(const char *path, mx_config *out, mx_error *error);

/* inv_freq [head_dim / 2] (radians per position) and the factor on cos and sin, docs/gpt_oss.md. */
void mx_config_rope(const mx_config *c, double *inv_freq, double *concentration);

/* ---- checkpoint: named tensors in mapped files --------------------------------------------------------------------
 */
typedef enum mx_dtype {
    MX_DTYPE_U8,
    MX_DTYPE_BF16,
    MX_DTYPE_F16,
    MX_DTYPE_F32,
    MX_DTYPE_I32,
    MX_DTYPE_I64,
    MX_DTYPE_F8_E8M0,
    MX_DTYPE_F8_E4M3,
    MX_DTYPE_F8_E5M2,
    MX_DTYPE_I8,
    MX_DTYPE_Q8_0,  /* GGML's: 32 columns in 34 bytes, an F16 scale and 32 int8 */
    MX_DTYPE_MXFP4, /* GGML's: 32 columns in 17 bytes, a scale, then low nibbles 0..15 and high nibbles 16..31 */
    MX_DTYPE_OTHER
} mx_dtype;

typedef struct mx_tensor {
    const char *name, *file; /* owned by the checkpoint */
    mx_dtype dtype;
    const char *dtype_name; /* as the file spells it */
    int dims;
    int64_t shape[8];
    uint64_t bytes; /* of all of it, without gaps */
    /* Where it lies: in the mapped file, or, with a recipe, in memory that is filled when weights are loaded. */
    const uint8_t *data;
    uint64_t slice_stride;          /* bytes from one index of the first dimension to the next: slice_bytes or more */
    const struct mx_recipe *recipe; /* how it is made of what the file holds; NULL: the file holds it as it is */
    /* [shape[0]] what files call its slices, where they are tensors of their own; NULL: they are not */
    const struct mx_slice_origin { const char *name, *file; } * origin;
} mx_tensor;

/* Bytes of one index of the first dimension (of all, where it has none). */
uint64_t mx_tensor_slice_bytes(const mx_tensor *t);
/* Slices first .. first + count without gaps, as a file in the Hugging Face layout would hold them: copied or made,
 * whether weights are loaded or not. Any thread. */
void mx_tensor_slices(const mx_tensor *t, int64_t first, int64_t count, uint8_t *out);

typedef struct mx_checkpoint mx_checkpoint;

/* What becomes of experts that a file does not hold in Hugging Face's form. */
typedef enum mx_expert_form {
    MX_EXPERTS_KEPT,     /* MXFP4 takes that form; BF16, F16 and F32 are turned to [experts, out, in] */
    MX_EXPERTS_MXFP4,    /* BF16 is rounded to nearest, scales by OCP's rule: floor(log2(largest)) - 2 */
    MX_EXPERTS_OVERFLOW, /* the same by the rules MX_ROUND_OVERFLOW and _SEARCH */
    MX_EXPERTS_SEARCH,
    MX_EXPERTS_IN_PLACE, /* as KEPT, but GGUF's stay as they are, for which there are kernels: mlp.experts.gate_proj,
                            up_proj and down_proj .weight [experts, out, in], MX_DTYPE_MXFP4 or a dense type, and
                            gate_proj_bias, up_proj_bias, down_proj_bias. Of Hugging Face's those that lie in a module
                            each are put together under these names, too, with all tensors of quantised ones
                            (docs/quantized.md; so with the three that round). */
    MX_EXPERTS_STORED,   /* as KEPT, but in a Hugging Face folder every tensor is what the file says: experts of 16 bits
                            [experts, in, out]; of any model, not of gpt-oss alone */
} mx_expert_form;
static inline bool mx_experts_rounded(mx_expert_form form) {
    return form == MX_EXPERTS_MXFP4 || form == MX_EXPERTS_OVERFLOW || form == MX_EXPERTS_SEARCH;
}
/* In which a model is computed that is loaded with `rounding`. */
mx_expert_form mx_experts_form(mx_rounding rounding);
/* "mxfp4", "mxfp4:RECIPE" with a recipe that needs no statistics; MX_INVALID_ARGUMENT names those. And its name. */
mx_status mx_rounding_parse(const char *text, mx_rounding *out, mx_error *error);
const char *mx_rounding_name(mx_rounding rounding); /* "ocp", "overflow", "search"; "" of none */

/* `path`: what mx_location_find finds. Maps every file and checks every header: lengths, offsets, overlaps, holes,
 * duplicates, dtype sizes. With an index only its files are opened, and each tensor must be in the file it names.
 *
 * Whatever the layout, tensors have the names, shapes and values of the Hugging Face layout (docs/layouts.md):
 * q, k and v apart, experts as *_blocks, *_scales and *_bias with interleaved rows, or, kept in BF16, as
 * mlp.experts.gate_up_proj.weight [experts, 2 * intermediate, hidden] and down_proj.weight [experts, hidden,
 * intermediate]; dense tensors in the type that the file has. */
mx_status mx_checkpoint_open(const char *path, mx_checkpoint **out, mx_error *error);
mx_status mx_checkpoint_open_as(const char *path, mx_expert_form form, mx_checkpoint **out, mx_error *error);
/* The same for a whole model, with its configuration. Close the checkpoint; NULL after a failure. */
mx_status mx_checkpoint_open_model(const char *path, mx_expert_form form, mx_config *config, mx_checkpoint **out,
                                   mx_error *error);
mx_layout mx_checkpoint_layout(const mx_checkpoint *ck);
/* BF16 expert tensors that a form that is rounded rounds; 0: there are none, or the layout is none of Hugging Face. */
int mx_checkpoint_rounded(const mx_checkpoint *ck);
/* Bytes of tensors that lie in no file, once weights are open: they were made of what it holds. */
uint64_t mx_checkpoint_made(const mx_checkpoint *ck);
/* Tensors that lie in memory, no two of one name. On success `tensor` [count], from malloc, and `memory` are the
 * checkpoint's; everything that the tensors point to lives in `memory` or for ever. */
mx_status mx_checkpoint_in_memory(const char *name, mx_tensor *tensor, int count, mx_arena memory, mx_checkpoint **out,
                                  mx_error *error);
void mx_checkpoint_close(mx_checkpoint *ck); /* NULL allowed; every pointer into it dies */
int mx_checkpoint_count(const mx_checkpoint *ck);
const mx_tensor *mx_checkpoint_at(const mx_checkpoint *ck, int index); /* in name order */
uint64_t mx_checkpoint_cached(const mx_checkpoint *ck);                /* bytes of its files in the page cache, about */
/* What reading its files has made resident is the page cache's alone again: a process that goes through more than the
 * memory holds stays small. Any thread, at any time. */
void mx_checkpoint_forget(const mx_checkpoint *ck);
const mx_tensor *mx_checkpoint_find(const mx_checkpoint *ck, const char *name); /* NULL: not there */
/* The format of a module's elements (docs/quantized.md); MX_BF16 where it is not there, or of no known one. */
mx_format mx_checkpoint_format(const mx_checkpoint *ck, const char *module);
/* The first tensor of quantised weights other than gpt-oss's own MXFP4 experts and GGUF's; NULL: there is none. */
const mx_tensor *mx_checkpoint_quantized(const mx_checkpoint *ck);

/* ---- weights: the checkpoint's tensors by their role, every shape and dtype checked -------------------------------
 */
typedef struct mx_experts {
    mx_matrix matrix; /* expert 0; data, scales, zeros (bytes) and post (floats) of expert e lie e * stride further */
    int64_t data_stride, scale_stride, zero_stride, post_stride;
    const uint8_t *bias;   /* [experts, rows], bias_stride bytes from one expert to the next */
    int64_t bias_stride;   /* 0: rows numbers of bias_format, without gaps */
    mx_format bias_format; /* BF16 or F32 */
    bool bf16_safe;        /* mx_matrix.bf16_safe of all of them; MXFP4 as published: every scale, but of blocks of
                              zeros, is 2..252: no weight is subnormal or near infinity, in fp32 and in BF16. True of F32, F16,
                              BF16 and Q8_0 */
} mx_experts;

typedef struct mx_layer {
    const float *attn_norm, *mlp_norm; /* [hidden] */
    mx_matrix q, k, v, o, router;
    const float *q_bias, *k_bias, *v_bias, *o_bias; /* NULL where config.attention_bias is false */
    const float *router_bias;
    const float *sinks;       /* [heads] */
    mx_experts gate_up, down; /* [2 * intermediate, hidden] interleaved, [hidden, intermediate] */
    mx_experts up;            /* with rows: gate_up is gate alone, and this is up, both [intermediate, hidden] */
} mx_layer;

typedef struct mx_weights {
    mx_config config;
    mx_checkpoint *checkpoint; /* owned */
    mx_matrix embedding, lm_head;
    const float *norm; /* [hidden] */
    mx_layer *layer;   /* [config.layers] */
    void *owned;       /* the small vectors widened to fp32 */
} mx_weights;

/* Opens a model in any layout. `pool` (may be NULL) is used to look for scales that are NaN or make a weight infinite.
 * The files stay mapped: one that another program cuts while it is in use ends this one with SIGBUS, so a model's files
 * must not change while it is open. Free with mx_weights_close. */
mx_status mx_weights_open(const char *path, mx_pool *pool, mx_weights **out, mx_error *error);
/* The same, and brings the bytes into memory as `options` says. mx_weights_open is MX_LOAD_LAZY. */
mx_status mx_weights_load(const char *path, const mx_load_options *options, mx_pool *pool, mx_weights **out,
                          mx_error *error);
/* The same from tensors that are there already. `checkpoint` becomes the weights', also when this fails; `name` is for
 * messages. */
mx_status mx_weights_from(const char *name, const mx_config *config, mx_checkpoint *checkpoint, mx_pool *pool,
                          mx_weights **out, mx_error *error);
void mx_weights_close(mx_weights *w);

/* What people call a matrix's format: "NVFP4", "MXFP8 E4M3", "INT4 of 64 asymmetric", "BF16". */
enum { MX_WEIGHT_NAME = 32 };
void mx_weight_name(char out[MX_WEIGHT_NAME], const mx_matrix *w);

/* A hash, in letters, of the configuration, of every tensor's name, type and shape, and of all bytes of its content.
 * That reads them all: about 10 GB a second and core, where they are in memory. The same for any number of threads. */
enum { MX_IDENTITY = 33 };
typedef struct mx_identity_options {
    mx_pool *pool;
    /* Called now and then by the calling thread, with bytes; NULL: nobody wants to know. */
    void (*progress)(void *user, uint64_t done, uint64_t total);
    void *user;
} mx_identity_options;
mx_status mx_weights_identity(const mx_weights *w, const mx_identity_options *options, char out[MX_IDENTITY],
                              mx_error *error);
/* The same without the configuration: of a checkpoint whose weights are not opened yet. */
mx_status mx_checkpoint_identity(const mx_checkpoint *checkpoint, const mx_identity_options *options,
                                 char out[MX_IDENTITY], mx_error *error);

/* ---- precision: how activations enter the products, by class ------------------------------------------------------
 */
typedef enum mx_class {
    MX_CLASS_QKV,
    MX_CLASS_O,
    MX_CLASS_ROUTER,
    MX_CLASS_GATE_UP,
    MX_CLASS_DOWN,
    MX_CLASS_LM_HEAD,
    MX_CLASSES
} mx_class;

typedef struct mx_precisions {
    mx_precision of[MX_CLASSES];
} mx_precisions;

enum { MX_PRECISION_NAME = 120 };

/* "fp32", "bf16x2", "mixed" (experts bf16, the rest bf16x2), "bf16", "int8" (experts; the rest bf16), or one of them
 * and what differs from it: CLASS=PRECISION after commas, as in "bf16,router=bf16x2". Classes: qkv o router gate_up
 * down lm_head. */
mx_status mx_precisions_parse(const char *text, mx_precisions *out, mx_error *error);
void mx_precisions_name(char out[MX_PRECISION_NAME], const mx_precisions *p); /* in the form that parse reads */
/* Of these kernels: mixed where they have instructions for BF16 (README, Numbers), else fp32, which costs the same as
 * the others. */
mx_precisions mx_precisions_default(const mx_kernels *kernels);

/* ---- backend: one device that holds KV pages and runs steps -------------------------------------------------------
 */
/* One row of a step. Rows of one sequence stand together with ascending, consecutive positions; a sequence appears in
 * one such run only. */
typedef struct mx_row {
    int32_t token; /* or MX_TOKEN_DRAWN(d), of a backend that runs ahead (mx_backend_ops.draw) */
    int32_t position;
    int32_t sequence; /* index into mx_batch.sequence */
    bool wanted;      /* its logits are to be kept until the next step */
} mx_row;

#define MX_TOKEN_DRAWN(d) (-1 - (d))

/* A sequence's page table: page of layer l for positions 64 t .. 64 t + 63 is table[l * stride + t]; -1 where no row of
 * this step looks (behind a sliding layer's window). Pages that this step writes must be held by this sequence alone.
 */
typedef struct mx_sequence_view {
    const int32_t *table;
    int64_t stride;
} mx_sequence_view;

typedef struct mx_batch {
    const mx_row *row;
    int rows; /* <= mx_backend_options.max_rows */
    const mx_sequence_view *sequence;
    int sequences;
    /* Diagnostics for `verify`; NULL otherwise. */
    float *residual;       /* [layers + 1, rows, hidden]: before layer 0 and after each layer */
    int32_t *experts;      /* [layers, rows, top_k], best first */
    float *expert_weights; /* [layers, rows, top_k] */
    /* A part of the model, on the CPU; 0 and NULL: all of it. Layers first ... last - 1 are run (last 0: to the end),
     * from `before` [rows, hidden], which is the residual stream there, instead of the embedding where first is not 0.
     * Logits are there only where it is run to the end. */
    int first, last;
    const float *before;
    float *after; /* [rows, hidden]: the residual stream behind the last layer that is run; may be `before`'s memory.
                     NULL: nobody wants it */
} mx_batch;

/* What enters a product, in fp32, before it is packed. */
typedef struct mx_observed {
    mx_class class;
    int layer;          /* lm_head: config.layers */
    int expert;         /* of gate_up and down; else -1 */
    const float *x;     /* row i: x + (row ? row[i] : i) * cols */
    const int32_t *row; /* NULL: one behind the other */
    int64_t rows, cols;
} mx_observed;

/* Who looks at the inputs of products: of every row of a step, also of those whose logits nobody wants. `see` is called
 * by the thread that steps, in the order of the products, and may use the pool. */
typedef struct mx_observer {
    void (*see)(void *user, const mx_observed *seen);
    void *user;
    bool plain; /* what comes out of a norm is shown without its gain: x / sqrt(mean(x^2) + eps) */
} mx_observer;

typedef struct mx_backend_options {
    mx_format kv_format;            /* MX_F16, MX_F32, MX_BF16 */
    int64_t pages;                  /* KV pages to hold; one page is MX_TILE positions of one layer */
    int max_rows;                   /* rows in one step */
    int max_wanted;                 /* rows in one step whose logits are kept */
    const char *tier;               /* kernels; NULL: the best within MXRUN_CPU */
    const mx_kernels *kernels;      /* instead of `tier`: a table that only tests have; NULL: none */
    const mx_precisions *precision; /* NULL: mx_precisions_default */
    bool openblas;                  /* dense products by OpenBLAS in fp32: not batch-invariant */
    const mx_observer *observer;    /* borrowed, CPU only; NULL: nobody looks, and nothing is kept for it */
} mx_backend_options;

typedef struct mx_token_count {
    int32_t token, count;
} mx_token_count;

/* How one row's logits become a token. Order: bias, repetition, presence and frequency, mask; then temperature, top-k,
 * top-p, min-p, each over what the one before left (section "sampling" of README). */
typedef struct mx_sample_spec {
    float temperature;        /* 0: the largest logit, ties to the lowest id */
    int top_k;                /* 0: all */
    float top_p;              /* 1: all */
    float min_p;              /* 0: all */
    float repetition_penalty; /* 1: none. Logits of seen tokens are divided by it when positive, multiplied otherwise */
    float presence_penalty, frequency_penalty; /* 0: none. Subtracted once / times the count */
    uint64_t seed;                             /* with `position`, all that the random number depends on */
    int64_t position;
    const mx_logit_bias *bias;
    int bias_count;
    const mx_token_count *seen; /* tokens of prompt and answer, each once, for the repetition penalty */
    int64_t seen_count;
    const mx_token_count *generated; /* tokens of the answer, each once, for presence and frequency */
    int64_t generated_count;
    const uint32_t *mask; /* bit i: token i may be chosen; NULL: all */
} mx_sample_spec;

/* Checks everything but the lists of seen tokens: the ranges of the numbers (temperature >= 0, top_k >= 0, top_p and
 * min_p in 0..1, repetition penalty > 0, all finite) and the tokens of the biases. MX_INVALID_ARGUMENT names the first
 * that is wrong. */
mx_status mx_sample_spec_check(const mx_sample_spec *spec, int32_t vocab, mx_error *error);

typedef struct mx_sampled {
    int32_t token;
    float logprob; /* log softmax of the unchanged logits at `token` */
} mx_sampled;

/* One of several rows whose tokens are drawn together. */
typedef struct mx_draw {
    int wanted; /* as in `sample` below */
    mx_sample_spec spec;
    mx_sampled sampled;
    mx_status status;
} mx_draw;

typedef struct mx_backend mx_backend;
typedef struct mx_backend_ops {
    const char *name; /* "cpu" */
    void (*destroy)(mx_backend *b);
    int64_t (*page_bytes)(const mx_backend *b);
    void (*page_clear)(mx_backend *b, int32_t page); /* zeros; needed before a page's first use */
    void (*page_copy)(mx_backend *b, int32_t to, int32_t from);
    /* page_bytes from or to a page. Where they fail, `out` holds nothing that may be used, the page likewise. */
    mx_status (*page_read)(mx_backend *b, int32_t page, void *out, mx_error *error);
    mx_status (*page_write)(mx_backend *b, int32_t page, const void *in, mx_error *error);
    /* One forward pass. The wanted rows' logits replace those of the step before. */
    mx_status (*step)(mx_backend *b, const mx_batch *batch, mx_error *error);
    /* `wanted`: 0 for the first wanted row of the last step, and so on. */
    mx_status (*sample)(mx_backend *b, int wanted, const mx_sample_spec *spec, mx_sampled *out, mx_error *error);
    /* The same for several rows; where one fails `sample` has the words. NULL: not faster than one by one. */
    void (*sample_all)(mx_backend *b, mx_draw *draw, int count);
    /* The k likeliest tokens of that row's unchanged logits (0 to vocab), likeliest first, ties to the lowest id, and
     * the logprob of `token` (-1: of none) in *logprob: the bits that `sample` gives it. */
    mx_status (*top)(mx_backend *b, int wanted, int k, mx_alternative *out, int32_t token, float *logprob,
                     mx_error *error);
    /* [vocab] in host memory, until the next call; where `draw` is NULL until the next step, and then any thread may
     * call this. NULL: there are none. */
    const float *(*logits)(mx_backend *b, int wanted);

    /* Running ahead, for a device that works while the host does something else; NULL, both: this backend does not.
     * Such a backend's `step` only queues the pass; what the batch points to is copied before it returns. The page_...
     * calls are in order with what is queued: page_clear of a page that a queued step writes comes after it. But
     * page_read is asked for what page_write, or steps whose draws were fetched, wrote: it need not wait for those
     * behind them, and is quicker if it does not. `draw` queues drawing from the rows that the last queued step wanted;
     * its draws are numbered from 0, and rows of the next step may have MX_TOKEN_DRAWN(d) for the token that draw d of
     * the last `draw` will give, so that it can be queued before anybody knows it (where that draw fails it is any
     * token of the vocabulary: such rows are not looked at). What the specs point to (biases, counts, masks) is copied
     * before `draw` returns. `drawn` waits for the draws of the oldest `draw` that was not fetched yet, and gives their
     * `sampled` and `status` (where one failed `*error` has the words of the first, and its status is returned; a step
     * that failed fails all of them). count 0 is allowed, in both: so a step without draws is waited for, and `drawn`
     * says whether it failed. At most two draws are queued and not fetched. `sample`, `sample_all`, `top` and `logits`
     * speak of the last queued step and wait for it. */
    mx_status (*draw)(mx_backend *b, const mx_draw *draw, int count, mx_error *error);
    mx_status (*drawn)(mx_backend *b, mx_draw *draw, int count, mx_error *error);
} mx_backend_ops;

struct mx_backend {
    const mx_backend_ops *ops;
};

/* The CPU. `weights` and `pool` are borrowed and must outlive it. */
mx_status mx_cpu_backend_create(const mx_weights *weights, mx_pool *pool, const mx_backend_options *options,
                                mx_backend **out, mx_error *error);

/* Bytes that it takes at most beside its pages, once steps are as large as they may be; without what OpenBLAS wants.
 * `options->pages` does not matter. */
mx_status mx_cpu_backend_memory(const mx_weights *weights, mx_pool *pool, const mx_backend_options *options,
                                uint64_t *out, mx_error *error);

/* Of these bytes those that become resident while no step has more than `rows` rows, `wanted` of them with logits:
 * memory comes in huge pages, when it is first written. Attention's parts in a context beyond MX_SEGMENT are left out:
 * they take a few MB. `threads`: of the pool. */
mx_status mx_cpu_backend_resident(const mx_config *config, int threads, const mx_backend_options *options, int rows,
                                  int wanted, uint64_t *out, mx_error *error);

mx_precisions mx_cpu_backend_precision(const mx_backend *b); /* in force; `b` is the CPU's */

/* Bytes of one KV page for this model: kv_heads * 2 * head_dim * MX_TILE elements. */
int64_t mx_page_bytes(const mx_config *c, mx_format kv_format);

#endif
