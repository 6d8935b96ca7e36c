#ifndef MX_QUANTIZE_PLAN_H
#define MX_QUANTIZE_PLAN_H

#include "convert/origin.h"
#include "quantize/choice.h"

/* Private to src/quantize: which tensors a quantised model has (docs/quantized.md), and what each is made of. All sizes
 * are known before the first number is read. */

/* A matrix to be quantised, and the tensors that its parts become. */
typedef struct mx_work {
    int module, pair; /* pair: up, whose rows alternate with this one's, gate's; -1: none */
    int64_t rows, cols;
    mx_choice choice;
    int data, scales, zeros, post, shape; /* indices of entries; -1: none */
    int64_t slice;                        /* of data and scales: index in their first dimension */
    bool turned;                          /* stored as [cols, rows]; dense formats only */
} mx_work;

/* Numbers of a vector: first, first + step, ... */
typedef struct mx_piece {
    int entry, vector;
    int64_t first, step, count;
    bool single; /* as F32, else in the tensor's type */
} mx_piece;

/* quant_method of config.json. */
typedef enum mx_method {
    MX_METHOD_NONE,               /* nothing is quantised */
    MX_METHOD_MXFP4,              /* all experts in MXFP4 of 32, and nothing else: transformers' */
    MX_METHOD_COMPRESSED_TENSORS, /* each format has a name there */
    MX_METHOD_MODELOPT,           /* as asked for; nothing but NVFP4 */
    MX_METHOD_MXRUN,              /* a format is our own */
} mx_method;

typedef struct mx_plan {
    const mx_source *source;
    const mx_choice *choice; /* [source->modules] */
    const bool *changed;     /* [source->modules] its numbers are not the file's any more */
    bool modelopt;
    bool clean; /* what is to be BF16 and is that already goes through its numbers: NaN and infinity are replaced */
    mx_error *error;

    mx_entry *entry;
    int *place; /* [entries] which tensor of the output it is, counted from the first; after mx_plan_put */
    int first;  /* the output's tensor 0 of these */
    int entries, entry_room;
    mx_work *work;
    int works, work_room;
    mx_piece *piece;
    int pieces, piece_room;
    mx_method method;
    mx_form *form;  /* [source->modules] what it becomes; of copied ones: what it is */
    bool *copied;   /* [source->modules] byte for byte */
    bool *taken;    /* [source->vectors] joined biases that became single ones */
    uint64_t bytes; /* of all tensors */
} mx_plan;

/* Fills all but the first block, which is given. Free with mx_plan_free in any case. */
mx_status mx_plan_make(mx_plan *p);
/* Adds the files to `out`. */
mx_status mx_plan_put(mx_plan *p, mx_output *out);
void mx_plan_free(mx_plan *p);

/* Bytes of entry i. */
static inline uint64_t mx_plan_bytes(const mx_plan *p, int i) {
    return (uint64_t)p->entry[i].made.slices * p->entry[i].made.slice_bytes;
}

/* ---- config.json (describe.c) ---- */
/* Of the forms. MX_INVALID_ARGUMENT: ModelOpt's names were asked for, and it is not that. */
mx_status mx_plan_method(const mx_plan *p, mx_method *out);
/* The source's config.json (`text`, NULL: none, one is made of the configuration) with what was done to the weights
 * said in it. */
mx_status mx_plan_config(const mx_plan *p, const mx_bytes *text, mx_bytes *out);
/* hf_quant_config.json, as ModelOpt has it beside. */
bool mx_plan_modelopt(const mx_plan *p, mx_bytes *out);

#endif
