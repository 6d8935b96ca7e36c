#ifndef MXRUN_H
#define MXRUN_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "model/alternative.h"
#include "model/load_options.h"
#include "model/logit_bias.h"

/* The narrow waist of mxrun: six calls around a model and an engine.
 *
 * Any number of requests may be there, of which up to max_running run at once on one set of weights: each step computes
 * decode rows and pieces of prompts of several of them. What a request gets depends on nothing but the request: the
 * same tokens and logprobs, bit for bit, alone or among others, from cold or out of the cache, however often it was set
 * back.
 *
 * Callers always give the FULL prompt as token ids; finding what is already in the KV cache is the engine's business
 * alone. The engine knows no text. submit, poll, cancel and wait may be called from any thread, step has one caller at
 * a time, mx_engine_fd is readable while events wait. */

typedef struct mx_model mx_model; /* immutable, may be shared by engines */
typedef struct mx_engine mx_engine;
typedef uint64_t mx_handle; /* a request; never reused, never 0 */

/* `path`: a folder or file in any layout (docs/layouts.md). options NULL: mapped, read when first used. */
mx_status mx_model_open(const char *path, const mx_load_options *options, mx_model **out, mx_error *error);
void mx_model_close(mx_model *model); /* after the engines that use it; NULL allowed */

typedef enum mx_kv_type { MX_KV_F16, MX_KV_F32, MX_KV_BF16 } mx_kv_type;

/* Tokens that occurred before are guessed to come again, and checked in the step that computes them: the answer is the
 * same, bit for bit. AUTO drafts where what was measured so far says that it pays; never on a device that computes the
 * next step before the tokens of the last are known (mx_step), for a guess has to wait for them. */
typedef enum mx_speculation { MX_SPECULATE_AUTO, MX_SPECULATE_OFF, MX_SPECULATE_ON } mx_speculation;

typedef struct mx_engine_options {
    int threads; /* 0: all cores this process may use */
    int64_t
        context; /* most tokens of one request; 0: the model's maximum or what the memory holds, whichever is less */
    uint64_t kv_memory; /* bytes of KV pages at most; 0: most of what is free */
    mx_kv_type kv_type;
    int batch_tokens;      /* most rows of one step: tokens of prompts, generated and guessed ones; 0: 512, on a GPU
                              2048 */
    const char *precision; /* of activations in products: "fp32", "bf16x2", "mixed", "bf16", "int8", or one of them and
                              classes that differ, "bf16,router=bf16x2"; NULL: the default for this machine */
    bool openblas;         /* dense products by OpenBLAS, in fp32; results then depend on the batch */
    int max_running;       /* requests that run at once at most, the others wait; 0: 64 */
    int scored_rows;       /* rows of one step whose logits can be kept beyond one of each request (prompt_logits,
                              prompt_logprobs, guesses), each with 4 bytes for every token of the vocabulary; 0: 64 */
    double step_seconds; /* a step in which requests decode takes at most so long, or three times what it takes without
                            prompts, if that is more; 0: 0.25. Much, where nobody waits for single tokens */
    mx_speculation speculation;
    int draft_tokens;        /* drafted ahead of one request in one step at most; 0: 4 */
    const int32_t *boundary; /* tokens that end messages: behind them a prefix is resumed most often, and what a hit */
    int boundary_count;      /* there needs is kept longest; copied */
    const uint32_t *tokens;  /* bits of the ids that have a token: others are never drawn; [vocab], copied. NULL: all */
    const char *prefix_cache;    /* folder that keeps computed prefixes between runs; NULL: none */
    uint64_t prefix_cache_bytes; /* it holds at most; 0: 10 GB */
    /* While the weights go to a GPU, with bytes, by the calling thread; NULL: nobody wants to know. */
    void (*progress)(void *user, uint64_t done, uint64_t total);
    void *progress_user;
    const volatile sig_atomic_t *stop; /* once it is not 0, that ends with MX_CANCELLED */
} mx_engine_options;

mx_status mx_engine_create(mx_model *model, const mx_engine_options *options, mx_engine **out, mx_error *error);
void mx_engine_destroy(mx_engine *engine); /* NULL allowed; unfinished requests end without an event */

/* Bytes of KV pages that a request of `context` tokens takes at most, in steps of the default size. */
uint64_t mx_kv_memory(const mx_model *model, mx_kv_type type, int64_t context);

/* A constraint sees every sampled token, stop tokens too, and may narrow the next choice: grammars are such. (Stop
 * strings are not: the engine knows no text. Who streams the text looks for them and cancels, as src/turn does.) A
 * token that accept rejects does not count: another is drawn in its place (after 64 in a row the request fails). All
 * functions but accept may be NULL. Tokens that were guessed ahead are checked before a constraint sees them, so that
 * the engine never calls rollback, nor clone: those are for its user. Called during mx_step, by its thread, but for
 * masks, which threads of the engine make for several requests at once, while the step is computed; never two calls for
 * one request at a time. destroy is also called by mx_engine_destroy; a request that mx_submit refused leaves its
 * constraint to the caller. */
typedef enum mx_verdict { MX_CONTINUE, MX_FINISHED, MX_REJECTED } mx_verdict;
typedef struct mx_constraint {
    void *user;
    /* Clears the bits of forbidden tokens; false: nothing is forbidden. */
    bool (*mask)(void *user, uint32_t *bits, int32_t vocab);
    mx_verdict (*accept)(void *user, int32_t token);
    void (*rollback)(void *user, int count); /* forget the last `count` accepted tokens */
    void *(*clone)(void *user);
    void (*destroy)(void *user); /* when the request ends */
} mx_constraint;

typedef struct mx_sampling {
    float temperature;                         /* 0: greedy */
    int top_k;                                 /* 0: off */
    float top_p;                               /* 1: off */
    float min_p;                               /* 0: off */
    float repetition_penalty;                  /* 1: off */
    float presence_penalty, frequency_penalty; /* 0: off */
    uint64_t seed;
    const mx_logit_bias *bias; /* copied */
    int bias_count;
} mx_sampling;
/* Everything off. mx_model_sampling: the same with what the model's generation_config.json says. */
#define MX_SAMPLING_DEFAULT ((mx_sampling){.temperature = 1, .top_p = 1, .repetition_penalty = 1})

mx_sampling mx_model_sampling(const mx_model *model);

typedef struct mx_request {
    const int32_t *prompt; /* copied */
    int64_t prompt_count;  /* at least 1 */
    int64_t max_tokens;    /* 0: until the context is full */
    mx_sampling sampling;
    const int32_t *stop; /* tokens that end the answer (they are reported as the last token); copied */
    int stop_count;
    int64_t min_tokens;       /* stop tokens are not drawn before so many */
    mx_constraint constraint; /* .accept NULL: none */
    int priority; /* the higher go first, 0 for ordinary ones: where as many run as may, or memory is short, those of a
                     lower priority are set back for them, the youngest first, and go on when there is room again */
    double deadline;      /* seconds from now at which it ends with what it has; 0: none */
    int top_logprobs;     /* likeliest tokens reported beside each token, 0 to MX_TOP_LOGPROBS */
    bool prompt_logprobs; /* an MX_EVENT_PROMPT for every token of the prompt; it is then computed anew */
    /* NULL: not wanted. Else called in mx_step for every position of the prompt from `logits_from` on, once, with what
     * its row says of the token behind it: logits [vocab], valid during the call. Several calls, of this and of other
     * requests, may run at once, in any order, in threads of the engine; it must not call the engine. From that
     * position on the prompt is computed anew. */
    void (*prompt_logits)(void *user, int64_t position, const float *logits, int32_t vocab);
    int64_t logits_from; /* below prompt_count */
    bool prompt_only; /* ends with MX_FINISH_LENGTH once the prompt is computed: no token is drawn, and the prompt may
                         fill the context; max_tokens, sampling and all else about the answer do not matter */
    void *user;       /* handed back with every event, and to prompt_logits */
} mx_request;

typedef enum mx_event_type {
    MX_EVENT_TOKEN,
    MX_EVENT_PROMPT, /* a token of the prompt, in order, before the first MX_EVENT_TOKEN; the first has no logprob: 0 */
    MX_EVENT_FINISHED,
    MX_EVENT_FAILED,
} mx_event_type;
typedef enum mx_finish {
    MX_FINISH_STOP,       /* a stop token */
    MX_FINISH_CONSTRAINT, /* the constraint said finished */
    MX_FINISH_LENGTH,     /* max_tokens */
    MX_FINISH_CONTEXT,    /* the context is full */
    MX_FINISH_CANCELLED,
    MX_FINISH_DEADLINE,
} mx_finish;

enum { MX_TOP_LOGPROBS = 20 };

typedef struct mx_event {
    mx_event_type type;
    mx_handle request;
    void *user;
    int32_t token;             /* TOKEN, PROMPT */
    float logprob;             /* TOKEN, PROMPT: of the unchanged distribution */
    const mx_alternative *top; /* TOKEN, PROMPT: [top_count], likeliest first, ties to the lowest id; valid until the */
    int top_count;             /* next mx_poll */
    mx_finish finish;          /* FINISHED */
    struct mx_usage {
        int64_t prompt_tokens, cached_tokens, generated_tokens; /* cached: of the prompt, not computed again */
        double prompt_seconds;                                  /* from the first step to the first token */
        double generate_seconds;                                /* from the first token to the last */
        double queue_seconds;                                   /* from submitting to the first step */
        int64_t drafted_tokens, accepted_tokens;                /* guessed ahead, and right */
        int set_back; /* times that it had to wait again, for memory or for one of a higher priority */
    } usage;          /* FINISHED */
    mx_error error;   /* FAILED */
} mx_event;

/* A prompt that can never fit is refused here, with the numbers (MX_CONTEXT_FULL); so are tokens, of the prompt or of
 * biases, that the model does not have, and sampling numbers out of range (MX_INVALID_ARGUMENT). Several requests with
 * one prompt (n samples, each with a seed of its own) compute it once. */
mx_status mx_submit(mx_engine *engine, const mx_request *request, mx_handle *out, mx_error *error);
/* One forward pass over whatever is runnable; MX_OK and nothing done when nothing is. A request's own failure is an
 * event, not an error of the step.
 *
 * With a device that computes while the host does something else, a call queues a pass, and tells what the pass that
 * the call before queued has computed: the device is never idle while constraints and callers are busy with tokens. A
 * request that ends by its token had a row more then than it needed. While one runs that has top_logprobs or is
 * prompt_only, whose prompt_logprobs or prompt_logits are not all told, or with MX_SPECULATE_ON, each call waits for
 * its own pass. */
mx_status mx_step(mx_engine *engine, mx_error *error);
int mx_poll(mx_engine *engine, mx_event *events, int max); /* returns how many were taken; never waits */
void mx_cancel(mx_engine *engine, mx_handle request);
int mx_engine_fd(const mx_engine *engine);
bool mx_engine_idle(mx_engine *engine); /* nothing runs or waits to run */
/* Waits until something is there to run, at most so many seconds. Returns whether there is. */
bool mx_engine_wait(mx_engine *engine, double seconds);

typedef struct mx_engine_info {
    int threads;
    int64_t context;
    int32_t vocab;          /* tokens are 0 to vocab - 1 */
    uint64_t kv_bytes;      /* KV memory at most */
    uint64_t kv_bytes_used; /* of it, held now */
    uint64_t weight_bytes;
    char tier[24];       /* of the kernels: "avx2" ..., on a GPU "cuda9.0" */
    char device[128];    /* the GPU's name; "": the CPU */
    char precision[120]; /* in force, as mx_engine_options has it */
    mx_kv_type kv_type;
    int max_running; /* requests that run at once at most */
} mx_engine_info;
mx_engine_info mx_engine_get_info(mx_engine *engine);

/* Since the engine was made. */
typedef struct mx_engine_stats {
    int running, waiting;                 /* requests, now */
    int64_t steps, submitted, finished;   /* steps: whose results are there; finished: however */
    int64_t prompt_tokens, cached_tokens; /* of requests that were begun; cached: not computed again */
    int64_t generated_tokens;
    int64_t computed_rows;                   /* tokens that went through the model, recomputed and drafted ones too */
    int64_t drafted_tokens, accepted_tokens; /* by speculation */
    int64_t set_back;                        /* times that a request was set back */
    uint64_t kv_bytes_cached;                /* held by nothing but the cache, now */
    double step_seconds;                     /* of them: */
    double forward_seconds;  /* in the forward pass, or waiting for a device that computes it and draws */
    double sample_seconds;   /* drawing tokens, or what is left of it for the host */
    double schedule_seconds; /* all else */
} mx_engine_stats;
mx_engine_stats mx_engine_get_stats(mx_engine *engine);

#endif
