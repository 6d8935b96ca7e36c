#ifndef MX_EVALUATE_H
#define MX_EVALUATE_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/mxrun.h"
#include "tokenizer/tokenizer.h"

/* How well a model predicts text, and how far its predictions are from another's. */

typedef enum mx_protocol {
    MX_PROTOCOL_STRIDED, /* windows of `window` tokens, each `stride` further; a token is scored once, with the longest
                            past that a window gives it */
    MX_PROTOCOL_LLAMA_CPP, /* windows of 512 side by side, the second half of each scored */
    MX_PROTOCOL_DOCUMENTS, /* each document apart, from its first token on (behind <|startoftext|> or <|endoftext|>,
                              where the vocabulary has one of them), windows as in strided */
    MX_PROTOCOL_HARMONY,   /* each document as a rendered conversation; the answer's tokens are scored. A text that is a
                              JSON object with "messages", as in OpenAI's API, is such a conversation, and its last
                              message the answer; any other text is an answer to MX_HARMONY_PROMPT */
} mx_protocol;

#define MX_HARMONY_PROMPT "Write a text."

typedef struct mx_evaluate_text {
    const char *name; /* for messages */
    const char *text; /* UTF-8, [size] */
    size_t size;
} mx_evaluate_text;

typedef struct mx_evaluate_options {
    mx_protocol protocol;
    int64_t window, stride; /* tokens; 0: 2048 (or what the context allows: one token more than it holds), half of
                               window; llama.cpp: 512, and no other stride than the window */
    int64_t most_tokens;    /* scored at most; 0: all */
    const char *save_base;  /* file for the distributions of this run; NULL: not kept */
    bool temporary;         /* save_base need not outlive a power failure */
    const char *base;       /* file of a reference run of the same text, tokens and protocol; NULL: none */
    int base_top;      /* tokens of a distribution that are kept, at most the vocabulary's; 0: mx_base_top_default */
    const char *model; /* its name and hash (mx_weights_identity), for save_base; NULL: not known */
    const char *identity;
    void (*progress)(void *user, int64_t done, int64_t total); /* tokens, by the calling thread; may be NULL */
    void *user;
    const volatile sig_atomic_t *stop; /* MX_CANCELLED once it is not 0; may be NULL */
} mx_evaluate_options;

typedef struct mx_evaluation {
    char protocol[200];                      /* with window and stride, as a person reads it */
    int64_t tokens, bytes;                   /* scored */
    double nats, perplexity, standard_error; /* nats: mean of -log p; standard_error: of the perplexity */
    double bits_per_byte;
    double seconds;
    bool has_base;                                        /* the rest: against the reference */
    double kl_mean, kl_stderr, kl_median, kl_p99, kl_max; /* nats a token, of reference || this */
    double top1;                                          /* share of tokens whose likeliest is the same */
    double delta_perplexity, delta_stderr;                /* this one's less the reference's, paired */
    double base_perplexity;
    int base_top;         /* tokens of each of its distributions that are kept, ... */
    bool base_whole;      /* ... which is all of them: else the KL divergences are lower bounds */
    char base_model[200]; /* the reference's name; "": not known */
    bool same_model;      /* it is this model, by its hash */
} mx_evaluation;

/* `engine` runs nothing else meanwhile. */
mx_status mx_evaluate(mx_engine *engine, const mx_tokenizer *tokenizer, const mx_evaluate_text *texts, int count,
                      const mx_evaluate_options *options, mx_evaluation *out, mx_error *error);

/* Is there anything to score, whatever the model? Looks at no more of the texts than it must; window and stride that
 * make no sense are found out, too. */
mx_status mx_evaluate_check(const mx_tokenizer *tokenizer, const mx_evaluate_text *texts, int count,
                            const mx_evaluate_options *options, mx_error *error);

/* Can these files be written and read, as far as is to be seen before the models are loaded? Both may be NULL. */
mx_status mx_evaluate_check_files(const char *save_base, const char *base, mx_error *error);

/* How many tokens of a distribution are kept where nobody says: all of a small vocabulary. */
int mx_base_top_default(int32_t vocab);

const char *mx_protocol_name(mx_protocol p); /* "strided", "llama.cpp", "documents", "harmony" */
bool mx_protocol_parse(const char *name, mx_protocol *out);

#endif
