#ifndef MX_KV_H
#define MX_KV_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "model/model.h"

/* Keys and values of any number of sequences, in pages that they share.
 *
 * A page holds one tile, MX_TILE positions, of one layer. Pages are counted references: a sequence holds those it
 * reads and writes, a tree of cached prefixes holds those that a later prompt may want. What another has seen of a page
 * is never written again: a sequence that goes on in the middle of a tile gets a copy of that tile's pages, unless it
 * ends there and nobody else writes it.
 *
 * Each node of the tree is a tile: the tokens of its positions (fewer than MX_TILE only in a leaf) and a page for every
 * layer. Full-attention layers keep theirs as long as the node lives. Those of sliding layers are wanted only by a
 * prompt that goes on within their window, so they can go before the node does.
 *
 * A mark is a position where a prefix will probably be gone on from: behind a boundary token, where a prefix was
 * resumed before, where mx_sequence_mark was called and where a sequence ended. The window before a mark, and one
 * position more, lets a prompt go on there or at its last token.
 *
 * When pages are wanted and none is free, what no running sequence holds goes, in this order:
 *   1. sliding pages that lie in no mark's window, the longest unused first;
 *   2. then whatever is longest unused: a leaf with all its pages, or the sliding pages of a tile near a mark. A prefix
 *      ages from the end of the last sequence that went through it, the sliding pages of one of its tiles from when a
 *      sequence last had that tile in its window.
 *
 * One thread at a time: the one that steps. */

typedef struct mx_kv_plan {
    int64_t context; /* most tokens of one request */
    int64_t pages;
} mx_kv_plan;

/* Pages that one sequence of `tokens` needs at most, in steps of at most `batch` rows. */
int64_t mx_kv_pages_needed(const mx_config *config, int64_t tokens, int batch);

/* `memory` bytes of pages of `page_bytes` each, all of it used. context 0: as many tokens as fit one sequence, at most
 * the model's maximum. MX_INVALID_ARGUMENT: a context beyond the model's maximum; MX_NO_MEMORY: it does not fit, with
 * the numbers. */
mx_status mx_kv_plan_make(const mx_config *config, int64_t page_bytes, uint64_t memory, int64_t context, int batch,
                          mx_kv_plan *out, mx_error *error);

/* ---- what all sequences share -------------------------------------------------------------------------------------
 */
typedef struct mx_kv mx_kv;

typedef struct mx_kv_options {
    const mx_config *config; /* borrowed, as is the backend */
    mx_backend *backend;
    int64_t pages;
    int64_t context;
    const int32_t *boundary; /* tokens that end messages; copied */
    int boundary_count;
    struct mx_prefix_store *store; /* owned from success on; NULL: none */
} mx_kv_options;

mx_status mx_kv_create(const mx_kv_options *options, mx_kv **out, mx_error *error);
/* After its sequences. What is to be stored is, as far as the disk writes it within some seconds. NULL allowed. */
void mx_kv_destroy(mx_kv *kv);

int64_t mx_kv_pages_free(const mx_kv *kv);   /* held by nobody */
int64_t mx_kv_pages_cached(const mx_kv *kv); /* held by the tree alone: free when wanted */
void mx_kv_forget(mx_kv *kv);                /* empties the tree, but for what running sequences hold */

/* How many of the first `count` tokens the tree could give a sequence now, where there is room to copy the pages of a
 * tile. Changes nothing. */
int64_t mx_kv_cached_tokens(const mx_kv *kv, const int32_t *tokens, int64_t count);

/* The same, and what a sequence that resumed it would hold: tiles as in mx_sequence, and `taken` of the pages that are
 * free or cached. */
typedef struct mx_kv_prefix {
    int64_t tokens, tiles, first_tile, taken;
} mx_kv_prefix;
mx_kv_prefix mx_kv_find_prefix(const mx_kv *kv, const int32_t *tokens, int64_t count);

/* Pages that several sequences hold together, each counted once: of every one those that were not counted since
 * mx_kv_count_anew (`taken` of a prefix that would be resumed; pages that would be copied are new). */
typedef struct mx_sequence mx_sequence;
void mx_kv_count_anew(mx_kv *kv);
int64_t mx_kv_count_sequence(const mx_sequence *s);
mx_kv_prefix mx_kv_count_prefix(mx_kv *kv, const int32_t *tokens, int64_t count);

/* Where the store has more of the first `limit` tokens than the tree, that is read into pages, for about so many
 * seconds at most (one tile is always read, but none with less than 0). false: there is more to read. */
bool mx_kv_fetch(mx_kv *kv, const int32_t *tokens, int64_t limit, double seconds);

/* ---- one sequence -------------------------------------------------------------------------------------------------
 */
typedef struct mx_kv_node mx_kv_node;

struct mx_sequence {
    mx_kv *kv;
    int32_t *table;     /* [layers][stride]; entries below `tiles` are set, -1: no page */
    int64_t stride;     /* tiles of the longest it may become */
    int64_t count;      /* positions whose keys and values are there */
    int64_t tiles;      /* tiles that have pages */
    int64_t first_tile; /* sliding layers hold pages from this tile on */
    int64_t published;  /* whole tiles that are in the tree */
    int64_t resumed;    /* of them, were there before this sequence */
    bool drawn;         /* mx_sequence_mark was called */
    mx_kv_node *node;   /* of the last of them; held */
    mx_kv_node *open;   /* the tile behind them, where that is in the tree too and this sequence writes it; held */
};

/* Empty, for at most `most` tokens. The only call that allocates. */
mx_status mx_sequence_init(mx_sequence *s, mx_kv *kv, int64_t most, mx_error *error);
void mx_sequence_free(mx_sequence *s); /* what it put into the tree stays; all zeros allowed */

/* An empty sequence takes the longest prefix of tokens [limit] that the tree has: up to the first token that differs,
 * where what the sliding layers need is still there. Returns the new `count`. */
int64_t mx_sequence_resume(mx_sequence *s, const int32_t *tokens, int64_t limit);

/* Pages for the next `rows` positions; cached ones make room. false: not even that was enough, and nothing changed
 * but the cache. */
bool mx_sequence_reserve(mx_sequence *s, int64_t rows);

/* The first `rows` of the reserved positions were computed, from tokens [count + rows]. Full tiles go into the tree
 * (where another sequence was first with the same tile, its pages replace this one's: they hold the same bits), pages
 * behind the window are let go. */
void mx_sequence_advance(mx_sequence *s, const int32_t *tokens, int64_t rows);

/* A token was drawn behind what was computed, of tokens [count]: the prompt's end. Others will go on from here, so all
 * of it can be resumed from now on, the last and unfinished tile too; and it is right (what is not a number would have
 * shown), so from now on this sequence's tiles are stored. */
void mx_sequence_mark(mx_sequence *s, const int32_t *tokens);

/* Everything computed goes into the tree, the last tile too, and the sequence is empty again. `keep` false: what this
 * sequence computed may be wrong (a step failed): its pages are dropped, those that it put into the tree too unless
 * another sequence already goes on from them. */
void mx_sequence_end(mx_sequence *s, const int32_t *tokens, bool keep);

mx_sequence_view mx_sequence_get_view(const mx_sequence *s);

#endif
