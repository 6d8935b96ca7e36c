#ifndef MX_METRICS_H
#define MX_METRICS_H

#include "base/bytes.h"
#include "engine/mxrun.h"

/* What the server counts, for Prometheus. Used by any number of threads. */
typedef struct mx_metrics mx_metrics;

typedef enum mx_measure {
    MX_MEASURE_FIRST_TOKEN, /* seconds from a request to the first token of each answer */
    MX_MEASURE_NEXT_TOKEN,  /* seconds from one token of an answer to the next */
    MX_MEASURE_REQUEST,     /* seconds from a request line to the end of the reply */
    MX_MEASURE_QUEUE,       /* seconds from submitting to the first step */
    MX_MEASURES
} mx_measure;

mx_metrics *mx_metrics_create(void); /* NULL: no memory */
void mx_metrics_free(mx_metrics *m); /* NULL allowed */

void mx_metrics_observe(mx_metrics *m, mx_measure what, double seconds);
/* `path`: the endpoint's, a constant; NULL: none was found. */
void mx_metrics_count_request(mx_metrics *m, const char *method, const char *path, int status);
void mx_metrics_count_tokens(mx_metrics *m, int64_t generated);
/* An answer ended. */
void mx_metrics_count_answer(mx_metrics *m, const struct mx_usage *usage);
void mx_metrics_count_cut(mx_metrics *m); /* a client that went away, or was cut off, while it was answered */

/* What is so now. */
typedef struct mx_metrics_now {
    const char *model;
    int connections, busy;
} mx_metrics_now;
/* Appends all of it in Prometheus' text format. false: no memory. */
bool mx_metrics_write(mx_metrics *m, mx_engine *engine, const mx_metrics_now *now, mx_bytes *out);

#endif
