#ifndef MX_PLAN_ADVICE_H
#define MX_PLAN_ADVICE_H

#include "base/bytes.h"
#include "plan/estimate.h"

/* What to do with all that: which kernels would run, which model to take and why. */

/* By what a class of products is done. */
typedef enum mx_plan_kind {
    MX_PLAN_NATIVE,  /* the processor multiplies numbers of this format */
    MX_PLAN_WIDENED, /* they are made wider in registers first: memory reads the small ones */
    MX_PLAN_LIBRARY, /* another library does it */
    MX_PLAN_PLAIN,   /* scalar C */
    MX_PLAN_NONE,    /* this cannot be done there */
} mx_plan_kind;
const char *mx_plan_kind_key(mx_plan_kind kind); /* "native", "widened", "library", "scalar", "none" */

typedef struct mx_plan_way {
    mx_plan_kind kind;
    char how[96];
} mx_plan_way;
typedef struct mx_plan_kernels {
    mx_plan_way experts, dense, attention;
} mx_plan_kernels;
/* What the kernels of a tier do with a model of these formats. */
mx_plan_kernels mx_plan_kernels_cpu(const char *tier, const mx_precisions *precision, const mx_plan_formats *formats);
/* What mxrun's kernels do on a GPU of this compute capability. */
mx_plan_kernels mx_plan_kernels_gpu(int major, int minor);
const char *mx_plan_gpu_family(int major, int minor); /* "Hopper"; "" where it is not known */

/* One model on one machine. */
typedef struct mx_plan_fit {
    mx_plan_model model;
    mx_plan_memory memory;
    mx_plan_speed speed;
    mx_plan_memory gpu[MX_PLAN_GPUS];
} mx_plan_fit;
mx_status mx_plan_fit_make(const mx_plan_model *model, const mx_plan_machine *machine, const mx_plan_request *request,
                           mx_plan_fit *out, mx_error *error);

/* Which of them to run here; -1: none of them. Of those that are no toys and fit, with a context of the request and no
 * less than 2 tokens/s, the one with the most parameters, as it was published before smaller forms of it. */
int mx_plan_choice(const mx_plan_fit *fit, int count);

/* Sentences, each a line. `asked`: the user named the first model, which is judged before others. false: no memory. */
bool mx_plan_advise(const mx_plan_machine *machine, const mx_plan_request *request, const mx_plan_fit *fit, int count,
                    bool asked, mx_bytes *out);

/* ---- before a model is loaded ------------------------------------------------------------------------------------ */

typedef struct mx_plan_load {
    const char *path; /* of the model */
    int64_t context;  /* 0: not given */
    double kv_memory; /* bytes; 0: not given */
    mx_format kv;
    double more; /* bytes that are wanted beside it */
    mx_expert_form form;
    bool copied; /* --load read: without room for the weights loading fails by itself */
    int threads; /* 0: all cores */
} mx_plan_load;

/* A warning, in the log, where weights, keys and values and what steps compute in will not fit into the memory that is
 * free; true: it was given. Says nothing about what it cannot read: opening the model will. */
bool mx_plan_warn(const mx_plan_load *load);
/* Its text for so much free memory; false: it fits, or nothing is known. */
bool mx_plan_warning(const mx_plan_load *load, double memory_free, char *out, size_t size);

#endif
