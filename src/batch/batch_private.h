#ifndef MX_BATCH_PRIVATE_H
#define MX_BATCH_PRIVATE_H

#include "api/request.h"
#include "batch/batch.h"
#include "batch/journal.h"
#include "batch/lines.h"

struct mx_batch {
    mx_batch_files files;
    mx_lines lines;
    mx_journal journal;
    int64_t total, before; /* lines of ours, -1: not known; those of them that have a record */
};

/* The next line of ours that has no record. `wait` as mx_lines_next. */
mx_status mx_batch_next(mx_batch *batch, bool wait, mx_line *line, mx_next *next, mx_error *error);

/* A line as a request; also one that is too long. Free with mx_api_request_free in any case. */
mx_status mx_batch_read_line(const mx_api_reader *reader, const mx_line *line, mx_api_request *out, mx_error *error);

#endif
