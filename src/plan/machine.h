#ifndef MX_PLAN_MACHINE_H
#define MX_PLAN_MACHINE_H

#include "bench/cost.h"
#include "model/model.h"

/* What a machine has, as far as it can be seen or measured. Whatever is not known is zero or empty: nothing is
 * guessed. Tests make machines up. */

typedef struct mx_plan_range {
    double low, median, high; /* zeros: not known */
} mx_plan_range;

enum { MX_PLAN_TEXT = 160, MX_PLAN_GPUS = 64 };

typedef struct mx_plan_gpu {
    char name[96];
    double memory, memory_free; /* bytes */
    int major, minor;           /* compute capability */
    double bandwidth;           /* bytes/s of its memory: bus width and clock, as the driver tells them */
    double watts;               /* power limit */
} mx_plan_gpu;

typedef struct mx_plan_machine {
    /* processor */
    char cpu[100];
    char features[MX_PLAN_TEXT]; /* instruction sets that matter here, with spaces between them */
    char tier[16];               /* the best kernels within MXRUN_CPU */
    mx_precisions precision;     /* their default */
    int processors;              /* logical ones that are on line */
    int allowed;                 /* physical cores within the affinity mask */
    int cores;                   /* of these, as many as the cgroups' quota gives: what mxrun uses */
    int nodes;                   /* memory nodes of them */
    double l1d, l2, l3;          /* bytes: of a core, of a core, of those that share one */
    double watts;                /* power limit of all packages together (RAPL) */
    /* memory, bytes, cgroup limits respected */
    double memory_total, memory_free;
    char huge_pages[16];             /* "always", "madvise", "never" */
    mx_plan_range bandwidth;         /* bytes/s read by all cores */
    mx_peaks peaks;                  /* flops/s of all cores */
    bool given;                      /* bandwidth or peaks are the user's, not measured */
    char not_measured[MX_PLAN_TEXT]; /* why there is no bandwidth */
    /* disk of the folder where models lie, or would lie */
    char folder[4096];
    double disk;                  /* bytes/s of direct reads */
    double disk_free;             /* bytes */
    char disk_note[MX_PLAN_TEXT]; /* of what file, or why it is not known */
    /* GPUs that NVIDIA's driver shows */
    mx_plan_gpu gpu[MX_PLAN_GPUS];
    bool cuda; /* mxrun has its CUDA plugin here, and it can use a GPU */
    int gpus;
    char driver[80];             /* version of the driver; "": there is none */
    char gpu_note[MX_PLAN_TEXT]; /* why there are none */
} mx_plan_machine;

typedef struct mx_plan_look {
    const char *root;      /* before "/proc" and "/sys": "", or a folder of made-up files in tests */
    const char *nvml;      /* NULL: the driver's libnvidia-ml.so.1; a made-up one in tests */
    const char *model;     /* a model's folder or file, where the disk is measured; NULL: there is none */
    const char *cache;     /* where downloads go, which is looked at then; NULL or "": not known */
    double bandwidth;      /* bytes/s, instead of measuring; 0: measure */
    const mx_peaks *peaks; /* instead of measuring; NULL: measure */
} mx_plan_look;

/* Looks and measures, for about two seconds. Fails on a wrong MXRUN_CPU, or without memory for a pool of threads. */
mx_status mx_plan_machine_look(const mx_plan_look *look, mx_plan_machine *out, mx_error *error);

/* ---- its parts --------------------------------------------------------------------------------------------------- */

void mx_plan_look_at_processor(const char *root, mx_plan_machine *out); /* all of it but tier, precision and cores */
void mx_plan_look_at_gpus(const char *library, mx_plan_machine *out);
/* Free space and the rate of direct reads, in about 0.4 s. `model`, `cache`: as in mx_plan_look. */
void mx_plan_look_at_disk(const char *model, const char *cache, mx_plan_machine *out);

#endif
