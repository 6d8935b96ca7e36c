#include "model/batch.h"

static mx_status check_row(const mx_config *c, const mx_batch *batch, const mx_row *row, int drawn, mx_error *error) {
    if (row->token >= c->vocab || (row->token < 0 && !drawn))
        return mx_fail(error, MX_INVALID_ARGUMENT, "batch: token %d is not in the vocabulary of %d", row->token,
                       c->vocab);
    if (row->token < MX_TOKEN_DRAWN(drawn - 1) && row->token < 0)
        return mx_fail(error, MX_INVALID_ARGUMENT, "batch: token of draw %d, the last draw had %d",
                       MX_TOKEN_DRAWN(row->token), drawn);
    if (row->sequence < 0 || row->sequence >= batch->sequences)
        return mx_fail(error, MX_INVALID_ARGUMENT, "batch: sequence %d of %d", row->sequence, batch->sequences);
    if (row->position < 0 || row->position >= c->max_positions)
        return mx_fail(error, MX_INVALID_ARGUMENT, "batch: position %d, the model has %d", row->position,
                       c->max_positions);
    return MX_OK;
}

mx_status mx_rows_check(const mx_config *config, const mx_batch *batch, int max_rows, int max_wanted, int drawn,
                        mx_error *error) {
    if (batch->rows < 1 || batch->rows > max_rows)
        return mx_fail(error, MX_INVALID_ARGUMENT, "batch: %d rows, 1 to %d possible", batch->rows, max_rows);
    int wanted = 0;
    for (int t = 0, start = 0; t < batch->rows; t++) {
        const mx_row *row = &batch->row[t];
        mx_status status = check_row(config, batch, row, drawn, error);
        if (status) return status;
        if (batch->row[start].sequence != row->sequence) start = t;
        if (row->position != batch->row[start].position + (t - start))
            return mx_fail(error, MX_INVALID_ARGUMENT, "batch: position %d does not follow the row before",
                           row->position);
        wanted += row->wanted;
    }
    if (wanted > max_wanted)
        return mx_fail(error, MX_INVALID_ARGUMENT, "batch: logits of %d rows wanted, %d possible", wanted, max_wanted);
    return MX_OK;
}

int mx_rows_run(const mx_batch *batch, int start) {
    int end = start + 1;
    while (end < batch->rows && batch->row[end].sequence == batch->row[start].sequence) end++;
    return end - start;
}
