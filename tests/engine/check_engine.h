#ifndef CHECK_ENGINE_H
#define CHECK_ENGINE_H

#include "fake_engine.h"

/* Requests to an engine on a fake backend, and their answers. The program must be linked with --wrap for malloc, calloc
 * and realloc: a step that calls them fails. */

typedef struct answer {
    int32_t token[FAKE_MOST];
    float logprob[FAKE_MOST];
    int tokens, ends;
    int prompt_tokens; /* events */
    mx_event last;
} answer;

/* Greedy. `a` is cleared, and gets the events. */
mx_request request_for(const int32_t *prompt, int64_t n, int64_t max_tokens, answer *a);
void fill(int32_t *tokens, int64_t n, uint64_t seed);
mx_handle submit(mx_engine *e, const mx_request *r);
void step(mx_engine *e);
/* Polls so many events, at most 8, into their answers; returns how many. The descriptor must have said whether there
 * are any: nobody else polls meanwhile. */
int collect(mx_engine *e, int at_once);
void run_until_idle(mx_engine *e);
void check_answer(const answer *a, const mx_config *config, const mx_request *r, int count, mx_finish finish);

#endif
