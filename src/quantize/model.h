#ifndef MX_QUANTIZE_MODEL_H
#define MX_QUANTIZE_MODEL_H

#include "quantize/budget.h"
#include "quantize/choice.h"

/* A whole model into other formats: docs/quantized.md, and docs of `mxrun quantize`. Memory is bounded by the largest
 * tensor and, with --calibrate, by what calibration holds of the layers at hand. */
typedef struct mx_model_options {
    mx_choice_options choice;
    double target_bits;       /* measured per part instead of chosen by class; 0: not */
    const char *formats;      /* that target_bits chooses from: see mx_budget_options; NULL: the default */
    bool quick;               /* target_bits runs only the smallest format of each part */
    const char *calibrate;    /* text for recipes that need statistics, and for target_bits; NULL: none */
    int64_t calibrate_tokens; /* 0: the default */
    bool gguf;                /* one file, else a folder in the Hugging Face layout */
    bool modelopt;            /* ModelOpt's names for NVFP4 */
    bool force;               /* what lies at `out` is replaced, once the new model is whole */
    bool allow_nonfinite;     /* NaN becomes 0 and infinity the largest, counted; else refused */
    bool dry_run;             /* says what would be written; reads no weights */
    mx_pool *pool;
    const volatile sig_atomic_t *stop; /* not 0: end with MX_CANCELLED; NULL: never */
    /* By the calling thread, with what goes on at present; may be NULL. */
    void (*progress)(void *user, const char *label, bool bytes, uint64_t done, uint64_t total);
    void *user;
} mx_model_options;

/* What became of the matrices of one class in one format. */
typedef struct mx_model_class {
    mx_group group;
    mx_form form;
    bool kept; /* as they were */
    int matrices;
    int64_t weights;
    uint64_t bytes;
    mx_quantize_report sum; /* of quantised ones; lossless: all are */
    int unseen;             /* of them, matrices that no token of the calibration text went through */
} mx_model_class;

/* A line of the list of tensors. */
typedef struct mx_model_matrix {
    char name[200];
    mx_group group;
    mx_form form;
    bool kept, pair; /* pair: an expert's gate and up in one, "gate_up_proj" */
    int64_t rows, cols;
    mx_quantize_report report; /* zeros before it is quantised, and of kept ones */
    bool was_mxfp4;            /* then report.lossless says whether its numbers are what they were */
} mx_model_matrix;

/* A tensor that is no matrix, or none that has a class. */
typedef struct mx_model_other {
    char name[200], type[16];
    bool changed; /* by rotation; else as it was */
} mx_model_other;

typedef struct mx_model_report {
    mx_model_class *of_class; /* [classes] */
    int classes;
    mx_model_matrix *matrix; /* [matrices] in the order of the model; an expert's gate and up may be one */
    int matrices;
    mx_model_other *other; /* [others] */
    int others;
    uint64_t bytes_before, bytes; /* of all tensors */
    uint64_t file_bytes, read;    /* of the files written; of what they were made of */
    int files;
    double seconds, quantize_seconds; /* all of it; without calibration, and what --target-bits measures */
    double calibrate_seconds;
    mx_budget_report budget; /* of --target-bits; parts 0: none */
} mx_model_report;

/* `in`: what mx_source_open takes. Everything is written under the name `out`.incomplete, which becomes `out` when it
 * is on the disk; a run that was killed leaves that behind, and the next one takes it over. Free the report in any
 * case. MX_INVALID_ARGUMENT: what was asked for cannot be; MX_INVALID_FILE: numbers that are NaN or infinite, by name.
 */
mx_status mx_quantize_model(const char *in, const char *out, const mx_model_options *options, mx_model_report *report,
                            mx_error *error);
void mx_model_report_free(mx_model_report *r);

#endif
