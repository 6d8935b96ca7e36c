#ifndef MX_MODEL_CHECKPOINT_PRIVATE_H
#define MX_MODEL_CHECKPOINT_PRIVATE_H

#include "base/gguf.h"
#include "model/model.h"
#include "model/recipe.h"
#include "model/safetensors.h"

/* Private to model/: a checkpoint while a layout's reader fills it. The readers (original.c, gguf_layout.c, metal.c,
 * experts16.c) turn what files hold into tensors under Hugging Face's names; all above them knows these alone. */

enum { MX_TENSOR_NAME = 160 };

struct mx_checkpoint {
    mx_layout layout;
    mx_safetensors *safetensors; /* [safetensors_count] */
    int safetensors_count;
    mx_gguf *gguf; /* [gguf_count] */
    int gguf_count;
    mx_mapped metal;
    mx_tensor *tensor; /* [count], by name once it is open */
    int count, capacity;
    int rounded;            /* tensors that were BF16 experts and are MXFP4 now */
    struct mx_owned *owned; /* names and recipes */
    mx_arena memory;        /* of tensors that are in no file, or made */
    bool copied;            /* files were read (MX_LOAD_READ): what was mapped is this process's own memory now */
};

/* Zeroed memory that lives as long as the checkpoint; NULL: there is none. */
void *mx_checkpoint_alloc(mx_checkpoint *ck, size_t size);
/* One more tensor, named by `format`, otherwise zeros but for `file`. NULL: no memory. */
mx_tensor *mx_checkpoint_add(mx_checkpoint *ck, const char *file, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Type, shape, and from them bytes and stride. `shape` [dims] must make sense: its product fits. */
void mx_tensor_form(mx_tensor *t, mx_dtype dtype, int dims, const int64_t *shape);
/* A tensor of `recipe`'s slices; the recipe is copied. false: no memory. */
bool mx_tensor_made(mx_checkpoint *ck, mx_tensor *t, const mx_recipe *recipe);

/* Each node's threads bring their part of the matrix, or of each expert's, into memory (the first touch), before it is
 * filled in the order of its addresses: these are the nodes that multiply with it (run_products in gpt_oss.c). */
void mx_tensor_place(mx_pool *pool, const mx_tensor *t);

/* The readers. Each adds its tensors; `path` is the folder or the first file. */
mx_status mx_original_read(mx_checkpoint *ck, const char *path, mx_error *error); /* safetensors are open */
mx_status mx_gguf_layout_read(mx_checkpoint *ck, const char *path, mx_expert_form form, mx_error *error);
mx_status mx_metal_read(mx_checkpoint *ck, const char *path, mx_error *error);
/* Hugging Face's: those of the open safetensors, experts of 16 bits in the form asked for. */
mx_status mx_experts16_read(mx_checkpoint *ck, mx_expert_form form, mx_error *error);
/* Loading failed with `status`: where an expert that was rounded has a number that is none, and its block therefore a
 * scale that is NaN, the error names that number, else it stays. */
mx_status mx_experts16_blame(const mx_checkpoint *ck, mx_status status, mx_error *error);
bool mx_recipe_rounds(const mx_recipe *r); /* is it of a tensor that experts of 16 bits are rounded to? */

/* What experts were rounded to, kept in a file (expert_cache.c). Nothing here fails: what goes wrong is a warning. */
typedef struct mx_expert_cache {
    mx_rounding rounding;
    char key[33];       /* of the files and the rounding; what is kept is of these alone */
    char file[2][4096]; /* where it is looked for, and kept: beside the model, in the user's cache */
    int *made;          /* [count] tensors that were not there, by index; owned */
    int count;
    char wrong[2][4300]; /* with what is there; "": nothing */
    char said[4400];     /* what became of it, for the user */
} mx_expert_cache;

/* Tensors that are to be rounded become those of a file that has them. Before there is room for them. */
void mx_expert_cache_find(mx_expert_cache *c, mx_checkpoint *ck, const mx_load_options *options);
/* Keeps what was rounded. After loading. */
void mx_expert_cache_keep(mx_expert_cache *c, const mx_checkpoint *ck, const mx_load_options *options);
void mx_expert_cache_free(mx_expert_cache *c); /* all zeros is allowed */

/* Gives tensors with a recipe their place in memory; vectors are made at once. */
mx_status mx_checkpoint_make_room(mx_checkpoint *ck, const char *name, mx_error *error);

#endif
