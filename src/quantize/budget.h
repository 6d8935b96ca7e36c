#ifndef MX_QUANTIZE_BUDGET_H
#define MX_QUANTIZE_BUDGET_H

#include "base/bytes.h"
#include "quantize/source.h"

/* --target-bits: which part of a model takes which format, so that it is as small as asked for and its predictions
 * change as little as can be. Measured on the model itself: what each format of each part does to the predictions on a
 * calibration text, all else left as it is. */

/* What takes one format together: the experts' gate and up of a layer, their down, q, k and v, o, the embedding,
 * lm_head. The router keeps 16 bits. */
typedef enum mx_part {
    MX_PART_QKV,
    MX_PART_O,
    MX_PART_GATE_UP,
    MX_PART_DOWN,
    MX_PART_EMBEDDING, /* and lm_head, where they are one matrix */
    MX_PART_LM_HEAD,
    MX_PARTS
} mx_part;
const char *mx_part_name(mx_part part); /* "qkv", "o", "gate_up", "down", "embedding", "lm_head" */

enum { MX_BUDGET_FORMATS = 12 };

/* A part in one of the formats. */
typedef struct mx_budget_choice {
    mx_form form;
    bool possible; /* false: its columns are no multiple of the format's block */
    int64_t bits;  /* of all its weights, with scales, zeros and post */
    double kl;     /* mean over the text's tokens of KL(model || model with this part so), nats */
    double error;  /* sum of (w - w')^2 over sum of w^2 */
    bool run;      /* kl was measured; else it is 0 (lossless) or an estimate (quick) */
} mx_budget_choice;

typedef struct mx_budget_part {
    mx_part part;
    int layer; /* -1: of none */
    int64_t weights;
    mx_budget_choice choice[MX_BUDGET_FORMATS]; /* [formats] */
    int chosen;
} mx_budget_part;

typedef struct mx_budget_report {
    mx_budget_part *part; /* [parts] by layer, then those of none; owned */
    int parts, formats;
    double bits;        /* a weight, of the mixture over all matrices, the router's 16 included */
    double kl;          /* sum of the chosen ones' */
    double kl_measured; /* of the mixture as a whole; -1: not measured (no room for its matrices in fp32) */
    int64_t tokens;     /* predictions that were compared */
    double seconds;
} mx_budget_report;

typedef struct mx_budget_options {
    double bits;               /* a weight, over all matrices, at most */
    const char *calibrate;     /* text: see mx_calibrate_options */
    const char *formats;       /* names of mx_form_parse, commas between; NULL: mx_budget_default_formats */
    int64_t tokens;            /* of the text; 0: 4096 */
    int64_t window;            /* 0: 512 */
    mx_quantize_recipe recipe; /* what a format cannot have of it is left out for that format */
    bool quick;  /* only the smallest format of each part is run; the KL of the others is taken to be as much less as
                    their squared error is (HIGGS, arXiv 2411.17525) */
    int threads; /* 0: all */
    void (*progress)(void *user, int64_t done, int64_t total); /* tokens through the model, of all there will be; the
                                                                  calling thread; may be NULL */
    void *user;
    const volatile sig_atomic_t *stop; /* may be NULL */
} mx_budget_options;

extern const char mx_budget_default_formats[];

/* The best mixture within options->bits: to form [source->modules] what each module is to become. Free the report in
 * any case. MX_INVALID_ARGUMENT: not even the smallest formats fit (says what they take), or the model is no gpt-oss.
 *
 * Takes a run of the text through the model for each part and format; the log says beforehand about how long. */
mx_status mx_budget_choose(const mx_source *source, const mx_budget_options *options, mx_form *form,
                           mx_budget_report *report, mx_error *error);
void mx_budget_report_free(mx_budget_report *report); /* all zeros allowed */
/* Appends the table: a line for each part, with KL of every format and the chosen one. */
bool mx_budget_show(const mx_budget_report *report, mx_bytes *out);

/* What of a recipe goes with this form, for a module of this kind: flags that the form cannot have are off, and an
 * embedding, into which no product goes, has no statistics. What parts were measured with. */
mx_quantize_recipe mx_budget_recipe(const mx_quantize_recipe *recipe, const mx_form *form, mx_kind kind);

/* The choice alone: sets part[].chosen to possible choices so that their bits are `budget` at most and the sum of KL
 * is least (of equals the fewest bits; the same for the same table). MX_INVALID_ARGUMENT: not even the smallest fit.
 * Exact where the greatest common divisor of the choices' differences goes at most MX_BUDGET_CELLS times into what the
 * budget leaves beside the smallest; else each part is counted up to a MX_BUDGET_CELLS-th of that larger than it is,
 * and what is left over is spent afterwards. */
enum { MX_BUDGET_CELLS = 1 << 16 };
mx_status mx_budget_solve(mx_budget_part *part, int parts, int formats, int64_t budget, mx_error *error);

#endif
