#ifndef MX_LOAD_OPTIONS_H
#define MX_LOAD_OPTIONS_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/numa_choice.h"

struct mx_engine_options;

/* How a model's bytes come into memory. A header of its own, for the public interface (engine/mxrun.h) has it in common
 * with model/.
 *
 * MX_LOAD_MAP is the default. Decoding with both copies in turn, huge pages in each, MX_LOAD_READ was no faster (ratio
 * of the medians 1.00), and its start is slower: it reads the disk each time and has the pages cleared first. */
typedef enum mx_load_way {
    /* The files stay where they are, in the page cache, and are mapped; all of it is brought in before the first step,
     * in huge pages where the file system has them. The next start finds it there, other processes share it. Where it
     * does not fit into memory this is MX_LOAD_LAZY, with a warning. */
    MX_LOAD_MAP,
    /* A copy in anonymous huge pages, read past the page cache where the file system allows that. The process's own:
     * every start reads the disk. */
    MX_LOAD_READ,
    /* Mapped, and read when it is first used. */
    MX_LOAD_LAZY,
    /* Nothing that would have to be rearranged is: enough to say what a model is made of, not to compute. */
    MX_LOAD_LOOK,
} mx_load_way;

/* How experts of 16 bits are rounded to MXFP4 when a model is loaded: to nearest, the scale of each block by this rule
 * (model/quantize/recipe.c). */
typedef enum mx_rounding {
    MX_ROUND_NONE,     /* they stay as they are */
    MX_ROUND_OCP,      /* OCP MX v1.0: floor(log2(largest)) - 2 */
    MX_ROUND_OVERFLOW, /* one more where the largest would round beyond 6 */
    MX_ROUND_SEARCH,   /* of those within +-2 that of the least squared error */
} mx_rounding;

typedef struct mx_load_options {
    int threads; /* 0: all cores */
    mx_load_way way;
    mx_numa numa; /* where pages go that are brought in; also of engines on the model */
    /* Called now and then by the thread that loads, with bytes; NULL: nobody wants to know. `total` changes where one
     * part of it is done and another begins (rounded experts that are kept: hashed, made, written). */
    void (*progress)(void *user, uint64_t done, uint64_t total);
    void *user;
    const volatile sig_atomic_t
        *stop;                    /* once it is not 0, loading ends with MX_CANCELLED; NULL: it cannot be stopped */
    mx_rounding quantize_experts; /* of experts of 16 bits in the Hugging Face layout; others stay as they are */
    bool keep_rounded; /* what came of that goes to a file beside the model, or in $XDG_CACHE_HOME/mxrun where that
                          cannot be written, and is taken from there the next time. What fails there is a warning */
    /* Where the model is to be computed: "cpu", "cuda", "cuda:N", or "auto": the GPU that holds it, else the CPU. NULL:
     * "cpu". For a GPU the way is MX_LOAD_LAZY; the weights go there when the first engine is made, straight from the
     * files. */
    const char *device;
    /* What the first engine will be made with (engine/mxrun.h), so that "auto" takes a GPU only where that has room
     * beside the weights; NULL: all defaults. Read while the model is opened. */
    const struct mx_engine_options *engine;
    uint64_t gpu_memory; /* bytes of the GPU's memory that may be taken; 0: what is free */
    bool told;           /* the user knows already that it may not fit into memory: no second warning */
    unsigned without;    /* for tests: what the kernel is taken not to have (MX_WITHOUT_..., load.h) */
} mx_load_options;

#endif
