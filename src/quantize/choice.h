#ifndef MX_QUANTIZE_CHOICE_H
#define MX_QUANTIZE_CHOICE_H

#include "quantize/source.h"

/* Which module takes which format, by which recipe: rules, then classes. */

typedef enum mx_group {
    MX_GROUP_EXPERTS, /* and the feed-forward matrices of dense models */
    MX_GROUP_ATTENTION,
    MX_GROUP_ROUTER,
    MX_GROUP_EMBEDDING,
    MX_GROUP_LM_HEAD,
    MX_GROUP_OTHER,
    MX_GROUPS
} mx_group;
const char *mx_group_name(mx_group group); /* "experts" ... */

/* By kind, or, where that is OTHER, by the names that Llama, Qwen, Mixtral and their relatives have. */
mx_group mx_group_of(const mx_module *m);

typedef struct mx_choice {
    bool kept;    /* as it is, whatever that is; otherwise: */
    mx_form form; /* of kept ones: none */
    mx_quantize_recipe recipe;
} mx_choice;

typedef struct mx_choice_options {
    const char *format[MX_GROUPS]; /* a name of mx_form_parse, or "keep"; NULL: experts mxfp4, all else kept */
    const char *rules;             /* a file of lines "GLOB FORMAT [RECIPE]"; NULL: none. hadamard is of all or of none:
                                      rules inherit it */
    mx_quantize_recipe recipe;     /* where no rule has one */
} mx_choice_options;

/* To choice [s->modules]. Formats that a matrix cannot take, recipes that a format cannot, and rules that fit no module
 * are refused by name. */
mx_status mx_choose(const mx_source *s, const mx_choice_options *options, mx_choice *choice, mx_error *error);
/* Can the module take it? MX_INVALID_ARGUMENT says why not. */
mx_status mx_choice_check(const mx_module *m, const mx_choice *choice, mx_error *error);

#endif
