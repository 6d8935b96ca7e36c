#ifndef MX_CONVERT_ORIGIN_H
#define MX_CONVERT_ORIGIN_H

#include "convert/makes.h"
#include "convert/record.h"

/* What is converted: a checkpoint in any layout, its configuration, and what it carries along. */
typedef struct mx_origin {
    mx_location place;
    mx_config config;
    mx_checkpoint *ck;
    mx_record record;
    mx_gguf sidecar;   /* MX_RECORD_FILE beside a layout that cannot carry it; open as long as this */
    mx_tensor more[2]; /* rows of the embedding and of lm_head behind those that metal has; without dims: none */
    mx_tensor cut[4];  /* of both, rows that metal has, and rows that it has not (metal.c) */
    bool *used;        /* by index in the checkpoint: it has a place in the output */
    bool mxfp4;        /* experts are MXFP4 */
    const mx_convert_options *options;
    mx_error *error;
} mx_origin;

mx_status mx_origin_open(mx_origin *o, const char *path, const mx_convert_options *options, mx_error *error);
void mx_origin_close(mx_origin *o);

/* The tensor, which must have this shape; it counts as used. `dims` 0: of any shape. NULL: missing or wrong, which
 * *status says; nothing happens where that is no MX_OK before. */
const mx_tensor *mx_origin_take(mx_origin *o, mx_status *status, int layer, const char *name, int dims,
                                const int64_t *shape);
/* The same for a layout that has BF16 only, which numbers of F32 are made where they can be: other types are refused.
 */
const mx_tensor *mx_origin_take_bf16(mx_origin *o, mx_status *status, int layer, const char *name, int dims,
                                     const int64_t *shape);
/* The rows behind those of t that belong to it; NULL: none. */
const mx_tensor *mx_origin_more(const mx_origin *o, const mx_tensor *t);
/* Tensors that no one took: what the target cannot hold. Fails unless losses are allowed, and warns then. */
mx_status mx_origin_check_used(const mx_origin *o);
/* Can `to` say all that the configuration says? As above. (losses.c) */
mx_status mx_origin_check_config(const mx_origin *o, mx_layout to);
mx_status mx_origin_no_memory(const mx_origin *o);

/* For layouts whose vocabulary is in the file: tokenizer.json and what goes with it, put into the record.
 * (vocabulary_json.c) */
mx_status mx_origin_read_vocabulary(mx_origin *o, const mx_gguf *g);

/* The layouts, each a description of everything in `out`. */
mx_status mx_hf_plan(mx_origin *o, mx_output *out, bool *restored);
mx_status mx_gguf_plan(mx_origin *o, mx_output *out);
mx_status mx_original_plan(mx_origin *o, mx_output *out);
mx_status mx_metal_plan(mx_origin *o, mx_output *out);
/* Between mx_output_create and mx_output_fill: a config.json that was carried along must fit the model. */
mx_status mx_hf_check_config(const mx_origin *o, mx_output *out, bool *restored);
/* What a model.bin says of the vocabulary, from its UUID to the text tokens. Rows of the embedding that have a place:
 * *rows. (metal_vocabulary.c) */
mx_status mx_metal_put_vocabulary(const mx_origin *o, mx_bytes *out, int *rows);
/* The keys of a GGUF that tell the vocabulary. (gguf_vocabulary.c) */
mx_status mx_gguf_put_vocabulary(const mx_origin *o, mx_gguf_text *g);

/* MX_RECORD_FILE and a copy of tokenizer.json, for layouts that have neither. `text` may have tensors already, which
 * then are added behind it: *file gets its index. */
mx_status mx_put_sidecar(const mx_origin *o, mx_output *out, mx_gguf_text *text, int *file);

/* ---- .safetensors ---- */
typedef struct mx_entry {
    char name[200], dtype[16];
    int dims;
    int64_t shape[8];
    bool joined; /* in the file of the one before it */
    mx_made made;
} mx_entry;
/* A file of these, in this order, behind a header of ours, or behind `header` (JSON), which must be of these. */
bool mx_put_safetensors(mx_output *out, const char *name, const mx_entry *entry, int count, const mx_bytes *header);
/* Where files of 5 GB end, unless what is joined is larger: entries shard[i - 1] .. shard[i] are file i. Returns how
 * many; `shard` has room for `count` numbers, 1 at least. */
int mx_cut_shards(const mx_entry *entry, int count, int *shard);
/* These files, numbered as OpenAI's, and the index where there are several. false: no memory. */
bool mx_put_shards(mx_output *out, const mx_entry *entry, const int *shard, int shards);

#endif
