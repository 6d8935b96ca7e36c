#ifndef MIX_H
#define MIX_H

#include "engine/model_parts.h"
#include "engine/mxrun.h"

/* A mix: random requests of all kinds that meet in one engine, drawn from a seed. What each is told there is compared,
 * bit for bit, with what it is told by an engine of its own: without a cache, one thread, steps of another size. */

enum {
    MIX_MOST = 40,
    MIX_PROMPT = 3000,
    MIX_TOKENS = 400,
    MIX_STOPS = 8,
    MIX_BIASES = 8,
    MIX_THREADS = 4,
    MIX_ROWS = 512
};

/* All that one engine said of a request. `said` is rows of a token with its logprob and then its top_logprobs
 * alternatives: those of the prompt, where asked for, and those of the answer. */
typedef struct mix_answer {
    struct mix_request *of;
    mx_handle handle, told; /* of mx_submit and of the events */
    mx_alternative *said;
    int64_t room, prompt_rows, tokens; /* rows of `said` there are, are in it, of the prompt and of the answer */
    int ends;
    mx_event last;
} mix_answer;

/* A constraint by hashing: its choice depends on all tokens that it accepted. */
typedef struct mix_rule {
    uint64_t seed, state;
    bool masks, rejects;
    int64_t accepted, finish_at, refuse_from; /* -1: never */
    int destroyed;
} mix_rule;

typedef struct mix_request {
    mx_request request; /* prompt_count of one that follows another is the most it may get until it is submitted */
    int32_t *prompt;    /* [request.prompt_count] */
    int32_t stop[MIX_STOPS];
    mx_logit_bias bias[MIX_BIASES];
    mix_rule rule; /* how it begins; seed 0: no constraint */

    int follows; /* goes on from that request's prompt and answer; -1: from none */
    double kept; /* that part of its answer */
    int32_t *tail;
    int64_t tail_count; /* and these tokens */

    int64_t submit_step;  /* from the mix's beginning, or from the end of the one that it follows */
    int64_t cancel_step;  /* after submitting; -1: none */
    int64_t cancel_token; /* when so many were told; -1: none */

    mix_rule rule_together, rule_alone;
    bool submitted, cancelled;
    int64_t submitted_step, ended_step;
    mix_answer together, alone;
} mix_request;

typedef struct mix_model {
    const char *name;
    mx_model *model;
    int token_us; /* roughly what a token takes */
} mix_model;

typedef struct mix {
    uint64_t seed;
    bool ahead; /* the engine for all runs ahead */
    const mix_model *model;
    const char *tier;                  /* NULL: the best */
    mx_engine_options together, alone; /* how the engines are made */
    int64_t pages;                     /* KV pages of the one for all */
    int32_t boundary[2];
    int at_once;    /* events polled at once, at most */
    int poll_every; /* steps */
    int count;
    mix_request request[MIX_MOST];
} mix;

/* Models to choose from, and the instruction tiers of this machine. */
typedef struct mix_choice {
    const mix_model *model;
    int models;
    const mix_model *least; /* for the slow tier */
    const char *const *tier;
    int tiers;
    double most_seconds; /* that the requests of a mix take alone, roughly */
} mix_choice;

mix *mix_make(uint64_t seed, const mix_choice *choice);
void mix_free(mix *m);
void mix_print(const mix *m);                      /* the engine and every request */
void mix_print_request(const mix *m, int request); /* on one line */

/* What happened in the engine for all. */
typedef struct mix_counts {
    mx_engine_stats stats;
    int64_t dropped_pages; /* out of the cache, for others */
    int64_t copied_pages;
} mix_counts;

/* Runs them all in one engine, with one thread that does everything. Fails the test where an event makes no sense. */
void mix_run_together(mix *m, mix_counts *counts);
/* The same with threads that submit, cancel, poll and step at once. */
void mix_run_threads(mix *m, mix_counts *counts);
void mix_run_alone(mix *m, int request);
/* Fails the test where a request was told anything else than alone. */
void mix_compare(const mix *m, int request);

#endif
