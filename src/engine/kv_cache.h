#ifndef MX_KV_CACHE_H
#define MX_KV_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "engine/kv.h"
#include "engine/page_pool.h"
#include "model/model.h"

/* Keys and values in pages: a pool of reference-counted pages, and on top of it one sequence that remembers what it
 * has computed, so that the next prompt only computes what is new.
 *
 * A tile is MX_TILE positions; a page holds one tile of one layer. Full-attention layers keep the pages of every
 * position. Sliding layers drop theirs once the window has passed, so a prefix can be resumed only where its last
 * window is still there: at the end of the sequence, or at a checkpoint. A checkpoint is nothing but references to the
 * sliding layers' pages of the last window before some position.
 *
 * A page shared by checkpoint and sequence may still be written at positions behind the checkpoint: its holder never
 * looks there. Going back to position r drops every checkpoint beyond r, so that whatever is overwritten from r on has
 * no other reader: no page is ever copied. */

/* ---- one sequence -------------------------------------------------------------------------------------------------
 */
enum {
    MX_KV_CHECKPOINTS = 64,      /* kept at most */
    MX_KV_CHECKPOINT_STEP = 512, /* positions between those that stand inside a prompt */
};

typedef struct mx_kv_checkpoint {
    int64_t position;   /* tokens before it are the prefix that can be resumed */
    int64_t first_tile; /* its pages cover tiles first_tile .. (position - 1) / MX_TILE */
    bool prompt_end;    /* rather than a point inside a prompt */
    int32_t *page;      /* [sliding layers][tiles] */
} mx_kv_checkpoint;

typedef struct mx_kv_cache {
    const mx_config *config;
    mx_page_pool *pool;
    int64_t context;
    int32_t *tokens; /* [context]; the first `count` have their keys and values in the pages */
    int64_t count;
    int32_t *table; /* [layers][stride], -1: no page */
    int64_t stride;
    int sliding_layers;
    int64_t first_tile;                             /* sliding layers hold pages from this tile on */
    mx_kv_checkpoint checkpoint[MX_KV_CHECKPOINTS]; /* ascending positions */
    int checkpoints;
    int32_t *checkpoint_pages; /* what the checkpoints' page arrays are cut from */
    int64_t checkpoint_tiles;  /* tiles of one layer in a checkpoint at most */
} mx_kv_cache;

/* `config` and `pool` are borrowed. */
mx_status mx_kv_cache_init(mx_kv_cache *cache, const mx_config *config, mx_page_pool *pool, int64_t context,
                           mx_error *error);
void mx_kv_cache_free(mx_kv_cache *cache); /* all zeros allowed */

/* Makes the longest usable prefix of the prompt the content of the cache and puts the whole prompt into `tokens`. The
 * prompt's last token is never part of it, for its logits are wanted. Returns the new `count`. */
int64_t mx_kv_cache_resume(mx_kv_cache *cache, const int32_t *prompt, int64_t prompt_count);

/* Pages for the next `rows` positions; drops checkpoints where the pool is empty. False: even that was not enough. */
bool mx_kv_cache_reserve(mx_kv_cache *cache, int64_t rows);

/* The next `rows` positions were computed. Sets a checkpoint at the end of a prompt and, in its middle, every
 * MX_KV_CHECKPOINT_STEP; drops the pages behind the window. */
typedef enum mx_kv_point { MX_KV_IN_PROMPT, MX_KV_PROMPT_END, MX_KV_IN_ANSWER } mx_kv_point;
void mx_kv_cache_advance(mx_kv_cache *cache, int64_t rows, mx_kv_point point);

void mx_kv_cache_reset(mx_kv_cache *cache); /* forgets everything */

#endif
