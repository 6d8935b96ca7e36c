#ifndef MX_COMPARE_MEASURE_H
#define MX_COMPARE_MEASURE_H

#include "commands/common.h"
#include "evaluate/compare.h"

/* The work of mxrun compare: fills in what an mx_compare holds, model by model. A model with which something fails is
 * named on stderr, keeps the reason, and the others go on; only Ctrl-C (MX_CANCELLED) and what all of them need
 * ends the work. */

typedef struct mx_compare_work {
    const mx_command *command;
    mx_compare *result;           /* label and path of each model are there */
    const mx_evaluate_text *text; /* [texts] */
    int texts;
    mx_evaluate_options evaluate; /* protocol, window, stride, most_tokens */
    mx_device_choice on;          /* the CPU or a GPU; not automatic */
    const char *device;           /* the same as mx_load_options takes it */
    int threads;                  /* 0: all cores */
    const mx_kv_name *kv;
    const char *precision; /* NULL: the default of this machine */
    mx_config config[MX_COMPARE_MOST];
    uint64_t tokenizer[MX_COMPARE_MOST]; /* hashes of the vocabularies */
} mx_compare_work;

/* Sizes, configuration and tokenizer of each, and one window for all: looks at headers alone. A failure: the text is
 * none. */
mx_status mx_compare_look(mx_compare_work *w, mx_error *error);
/* Perplexity of each, and how far it is from the first. */
mx_status mx_compare_evaluate(mx_compare_work *w, mx_error *error);
/* Speeds and energy. */
mx_status mx_compare_measure(mx_compare_work *w, mx_error *error);

#endif
