#ifndef MX_TESTS_LAYOUT_MAKER_H
#define MX_TESTS_LAYOUT_MAKER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "model/model.h"

/* Writes the published layouts of a Hugging Face folder: OpenAI's original/, experts in BF16, GGUF, metal's model.bin.
 * From the descriptions of the formats, with no code of model/ or src/: what their readers are tested with. All of it
 * ends the test where it fails. */

/* ---- numbers ------------------------------------------------------------------------------------------------------
 */

/* Tensor types by GGUF's numbers, in all layouts. MADE_U8 is none of them. */
enum { MADE_F32 = 0, MADE_F16 = 1, MADE_Q8_0 = 8, MADE_Q4_K = 12, MADE_BF16 = 30, MADE_MXFP4 = 39, MADE_U8 = 1000 };

uint64_t made_bytes(uint32_t type, uint64_t n); /* of n numbers; n is a multiple of the type's block */
/* Rounds to nearest; from malloc. Not MXFP4. */
uint8_t *made_encode(uint32_t type, const float *from, uint64_t n);
float *made_decode(uint32_t type, const uint8_t *from, uint64_t n);

/* ---- a model in the Hugging Face layout ---------------------------------------------------------------------------
 */
typedef struct source {
    char name[40], folder[600], golden[600];
    mx_config config;
    mx_checkpoint *ck;
} source;

void source_open(source *s, const char *name); /* "base", "mqa", "top1", "stories", as they are in the repository */
void source_close(source *s);
const mx_tensor *source_find(const source *s, int layer, const char *name); /* layer -1: none. Never NULL */
/* Experts of "gate_up_proj" or "down_proj" as numbers [experts, out, in]; from malloc. */
float *source_experts(const source *s, int layer, const char *which, uint64_t *count);

/* ---- tensors of a file that is to be written ----------------------------------------------------------------------
 */
typedef struct piece {
    char name[120];
    uint32_t type;
    int dims;
    int64_t shape[4]; /* first = slowest */
    uint8_t *data;    /* owned */
    uint64_t bytes;
} piece;

enum { PIECES = 200 };
typedef struct pile {
    piece piece[PIECES];
    int count;
} pile;

piece *pile_find(pile *p, const char *name); /* never NULL */
void pile_remove(pile *p, const char *name);
void pile_free(pile *p);

/* A folder of one model.safetensors: pieces by `p`, config.json with `config`. */
void folder_write(const char *folder, const pile *p, const char *config);
void original_from(pile *p, const source *s);
void original_config(mx_bytes *out, const source *s);
void original_write(const char *folder, const source *s); /* with dtypes.json */
void bf16_experts_from(pile *p, const source *s);
void bf16_experts_config(mx_bytes *out, const source *s);
void bf16_experts_write(const char *folder, const source *s);

/* ---- GGUF ---------------------------------------------------------------------------------------------------------
 */
typedef struct gguf_form {
    uint32_t dense, experts; /* types of attention, embedding, head; of experts */
    bool tied;               /* no output.weight */
    bool bare_sinks;         /* attn_sinks without .weight */
} gguf_form;

enum { GGUF_KEYS = 40 };
typedef struct gguf {
    struct {
        char name[80];
        uint32_t kind;
        uint8_t value[80]; /* as in the file */
        int size;
    } key[GGUF_KEYS];
    int keys;
    pile pile;
} gguf;

void gguf_from(gguf *g, const source *s, const gguf_form *form);
/* Each replaces the key where it is there. */
void gguf_u32(gguf *g, const char *key, uint32_t value);
void gguf_f32(gguf *g, const char *key, float value);
void gguf_text(gguf *g, const char *key, const char *value);
void gguf_remove(gguf *g, const char *key);
void gguf_write(const gguf *g, const char *path);
/* STEM-00001-of-0000N.gguf and so on; `total`: split.tensors.count, -1: the truth. */
void gguf_split(const gguf *g, const char *stem, int parts, int64_t total);
void gguf_free(gguf *g);

/* ---- model.bin ----------------------------------------------------------------------------------------------------
 */
enum { METAL_UUID = 16, METAL_NUMBERS = 32, METAL_HEAD_DIM = METAL_NUMBERS + 4 * 7, METAL_REGEX = 148 + 16 * 16 };
/* `scale`: where the first scale byte of layer 0 lies; may be NULL. */
void metal_from(mx_bytes *out, const source *s, size_t *scale);

/* ---- files --------------------------------------------------------------------------------------------------------
 */
void made_folder(char out[200]); /* a new temporary one */
void made_file(const char *folder, const char *name, const void *data, size_t size);
const char *made_path(const char *folder, const char *name); /* valid until the next call but seven */

#endif
