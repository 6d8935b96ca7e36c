#ifndef MX_BATCH_RESPONSE_H
#define MX_BATCH_RESPONSE_H

#include "api/answer.h"

/* The record of a line: one line of JSON with its newline. `number` and `hash` are the line's. Nothing in it depends
 * on what ran beside it, but for "created" and "cached_tokens". */

/* `answers`: best_of for each prompt, those of a prompt together. false: no memory. */
bool mx_batch_write_answers(mx_bytes *out, const mx_api_settings *settings, const mx_api_request *request,
                            const mx_api_answer *answers, int64_t number, uint64_t hash);

/* request->problem instead of answers. */
bool mx_batch_write_problem(mx_bytes *out, const mx_api_settings *settings, const mx_api_request *request,
                            int64_t number, uint64_t hash);

#endif
