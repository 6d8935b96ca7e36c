#ifndef MX_QUANTIZE_FILL_H
#define MX_QUANTIZE_FILL_H

#include "quantize/model.h"
#include "quantize/plan.h"

/* Private to src/quantize: quantises and writes what a plan says, matrix by matrix, each with all threads. */

typedef struct mx_fill {
    const mx_plan *plan;
    mx_output *out;
    const mx_model_options *options;
    bool rotated;            /* statistics are to be those of the rotated model */
    mx_model_report *report; /* matrix[i] is work i's, but for copied ones */
    const int *matrix_of;    /* [plan->works] index in report->matrix */
    mx_error *error;
} mx_fill;

/* Copies first, then vectors, then matrices. */
mx_status mx_fill_run(const mx_fill *f);
/* Must this choice know what goes into the product? */
bool mx_needs_statistics(const mx_choice *choice);

#endif
