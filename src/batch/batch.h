#ifndef MX_BATCH_H
#define MX_BATCH_H

#include <signal.h>

#include "api/request.h"

/* Requests from a file of JSON lines, answers to another one, many at once.
 *
 * Two forms of lines, told apart one by one: OpenAI's batch lines {"custom_id", "method", "url", "body"} and a short
 * one {"id", "prompt" | "messages", ...}. A line that is wrong gets a record that says so; the rest goes on.
 *
 * The output is the journal: a record is one line that ends in a newline, appended by one process at a time, and holds
 * the number of its input line and a hash of it (with what else its answer depends on). A run begins by reading the
 * output: a last line without its newline is cut off, lines whose record is there are left out. So wherever a run is
 * broken off, the next one does exactly what is missing. A record that says that the engine failed (status code 500,
 * type "server_error") is taken out of the file before the first line is begun, and its line done again, unless records
 * are in the order of the input: there is no room for it then. */
typedef struct mx_batch mx_batch;

typedef struct mx_batch_files {
    const char *input, *output; /* "-": stdin, stdout */
    bool look;                  /* only counts: the output is neither made nor taken nor changed */
    uint64_t fingerprint;       /* of the model and the options that answers depend on: goes into the lines' hashes */
    bool ordered;               /* records in the order of the input, else as they get done */
    int64_t shard, shards;      /* of every `shards` lines the one with this number, from 1; 0, 0: all lines */
} mx_batch_files;

/* How far it is. */
typedef struct mx_batch_state {
    int64_t total;                                                 /* lines to answer, -1 while that is not known */
    int64_t before;                                                /* of them, answered by an earlier run */
    int64_t done, wrong;                                           /* by this one; wrong: of them, with an error */
    int64_t failed;                                                /* of those, by the engine: not the line's fault */
    int64_t running;                                               /* lines at work */
    int64_t prompt_tokens, cached_tokens, generated_tokens, steps; /* of this run, steps as the engine counts */
    int64_t drafted_tokens, accepted_tokens;                       /* guessed ahead, and right */
    double seconds;                                                /* of this run */
    bool ending;                                                   /* interrupted: no new lines */
} mx_batch_state;

/* Opens both files, takes the output for this process alone, reads it, and, where the input is a regular file, holds
 * it against the input (MX_INVALID_FILE when it belongs to other lines or options). */
mx_status mx_batch_open(const mx_batch_files *files, mx_batch **out, mx_error *error);
void mx_batch_close(mx_batch *batch); /* NULL allowed */
/* What the records in the output were made with; NULL: there are none. */
const mx_api_setup *mx_batch_begun(const mx_batch *batch);
/* MX_INVALID_ARGUMENT when it is not what the records were made with: answers would then differ. mx_batch_run does it,
 * too. */
mx_status mx_batch_check(const mx_batch *batch, const mx_api_setup *setup, mx_error *error);
/* The output is a file that a later run can go on with. */
bool mx_batch_resumable(const mx_batch *batch);
/* Everything is answered already, as far as can be told without reading a pipe. */
bool mx_batch_complete(const mx_batch *batch);

typedef struct mx_batch_work {
    mx_engine *engine; /* nothing else runs on it */
    int max_in_flight; /* answers at work at once; fewer where memory runs out */
    /* Non-zero: no new lines, what is at work is finished, and mx_batch_run returns MX_CANCELLED. */
    const volatile sig_atomic_t *interrupted;
    void (*progress)(void *user, const mx_batch_state *state); /* often; may be NULL */
    void *user;
} mx_batch_work;

/* Answers what is not answered yet. An error is about files, memory or the engine; everything written until then is
 * whole. *state gets the last one. */
mx_status mx_batch_run(mx_batch *batch, const mx_api_settings *settings, const mx_batch_work *work,
                       mx_batch_state *state, mx_error *error);

/* What is to do, without an engine. */
typedef struct mx_batch_total {
    int64_t lines, answered, wrong; /* to answer; of them answered by an earlier run, not understood */
    int64_t answers;                /* n or best_of for each prompt */
    int64_t prompt_tokens;
    int64_t shared_tokens; /* of them, with which the prompt before began, too */
    int64_t limited;       /* answers that max_tokens limits */
    int64_t most_tokens;   /* of the limited ones together */
} mx_batch_total;
mx_status mx_batch_count(mx_batch *batch, const mx_api_settings *settings, mx_batch_total *out, mx_error *error);

/* How fast the first lines go, computed for a few seconds and thrown away. */
typedef struct mx_batch_speed {
    int64_t prompts;             /* that were tried, all at once */
    double prompt_tokens_second; /* 0: too little was computed to say */
    double generated_tokens_second;
    double seconds; /* that it took */
} mx_batch_speed;
mx_status mx_batch_measure(mx_batch *batch, const mx_api_settings *settings, const mx_batch_work *work,
                           mx_batch_speed *out, mx_error *error);

#endif
