#ifndef MX_EVALUATE_COMPARE_H
#define MX_EVALUATE_COMPARE_H

#include "base/bytes.h"
#include "bench/bench.h"
#include "evaluate/evaluate.h"

/* Several models side by side: what each weighs, how well it predicts, how fast it is, and what a token costs. Here are
 * the results and what is written of them; measuring is the command's affair (commands/compare.c). */

enum { MX_COMPARE_MOST = 64 }; /* models at once */

typedef struct mx_compare_model {
    const char *label, *path;
    char failed[1000];             /* why the rest is not known, one line; "": nothing failed */
    char apart[300];               /* why it was not held against the first; "": it was, or is the first */
    double disk, bytes;            /* of its files; of their tensors alone; 0: not known */
    double parameters;             /* weights, biases and norms; 0: not known */
    bool evaluated;                /* the next is known */
    mx_evaluation evaluation;      /* against the first, where has_base */
    mx_bench_range prompt, decode; /* tokens a second; medians of 0: not measured */
    double joules;                 /* of a decoded token; 0: not known */
    double token_bytes;            /* memory that a decoded token reads; 0: not known */
    bool unsteady;                 /* the machine's bandwidth changed in all that was measured */
} mx_compare_model;

/* Whose counters the column of energy shows. */
typedef enum mx_compare_energy {
    MX_COMPARE_BYTES, /* nobody's: it shows the bytes moved instead */
    MX_COMPARE_RAPL,
    MX_COMPARE_NVML,
} mx_compare_energy;

typedef struct mx_compare {
    mx_compare_model *model; /* [models]; all others are compared with the first */
    int models;
    const char *text;  /* names of the texts, for people */
    bool speed;        /* speeds were to be measured, and the rest is known */
    bool together;     /* all models in memory at once, round by round in turn */
    int rounds;        /* of them the medians */
    int prompt_tokens; /* of the prompt; 0: none */
    int decode_tokens; /* decoded one by one, from position 0 on; 0: none */
    bool gpu;          /* computed there */
    int threads;       /* of the CPU */
    const char *precision, *kv, *tier;
    const char *machine; /* the processor's name, or the GPU's */
    mx_compare_energy energy;
} mx_compare;

/* Weights, biases, norms and sinks of a model, from its configuration. */
double mx_compare_parameters(const mx_config *c);
/* Bits a weight of all its tensors; 0: not known. */
double mx_compare_bits(const mx_compare_model *m);

/* Each appends a whole text; false: no memory. A model that failed has its line, and its reason behind the table. */
bool mx_compare_table(mx_bytes *out, const mx_compare *c); /* at most 100 columns wide */
bool mx_compare_markdown(mx_bytes *out, const mx_compare *c);
bool mx_compare_csv(mx_bytes *out, const mx_compare *c); /* RFC 4180, but lines end in \n; what is not known is empty */
bool mx_compare_json(mx_bytes *out, const mx_compare *c); /* the same names; what is not known is null */

/* Pictures (SVG). *drawn: there was something to draw; else nothing is appended. */
bool mx_compare_chart_perplexity(mx_bytes *out, const mx_compare *c, bool *drawn); /* over bits a weight */
bool mx_compare_chart_kl(mx_bytes *out, const mx_compare *c, bool *drawn);         /* over bits a weight */
bool mx_compare_chart_speed(mx_bytes *out, const mx_compare *c, bool *drawn);      /* relative to the first */

#endif
