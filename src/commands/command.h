#ifndef MX_COMMAND_H
#define MX_COMMAND_H

#include <popt.h>
#include <stdbool.h>

#include "base/status.h"

/* Exit codes of every command. */
enum {
    MX_EXIT_OK = 0,
    MX_EXIT_FAILED = 1,       /* the work failed: a bad file, no memory, a check that did not pass */
    MX_EXIT_USAGE = 2,        /* wrong options or arguments */
    MX_EXIT_INTERRUPTED = 130 /* Ctrl-C */
};

typedef struct mx_command {
    const char *name;        /* "tokenize" */
    const char *arguments;   /* of the usage line: "-m MODEL [--jsonl]" */
    const char *summary;     /* one line for the list of commands */
    const char *description; /* paragraphs below the usage line of --help; examples */
    int (*run)(const struct mx_command *self, int argc,
               const char **argv); /* argv[0] is the command's name; returns the exit code */
} mx_command;

/* Parses argv with a popt table (end it with POPT_TABLEEND; --help is added) into the variables it points to, which
 * must be static: popt's copies of strings stay for the life of the program. `*positional` gets what is left,
 * NULL-terminated, or NULL when nothing is. Returns false when the command is over: after --help or a wrong option,
 * with *exit_code set. */
bool mx_command_parse(const mx_command *self, const struct poptOption *options, int argc, const char **argv,
                      const char *const **positional, int *exit_code);

/* Says "mxrun NAME: text" on stderr; returns the exit code that fits the status. */
int mx_command_fail(const mx_command *self, const mx_error *error);
/* Says "mxrun NAME: text (see mxrun NAME --help)"; returns MX_EXIT_USAGE. */
int mx_command_usage(const mx_command *self, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* What -m names: an existing folder or file as it is; else a name of models.txt, or ORG/NAME[@REVISION][:FILE] of the
 * Hugging Face hub, that lies in the cache (commands/models.h). `out` gets the path. mx_resolve_model may download what
 * is not there, after asking on a terminal or with --yes; mx_find_model only looks. */
mx_status mx_resolve_model(const char *name, char *out, size_t size, mx_error *error);
mx_status mx_find_model(const char *name, char *out, size_t size, mx_error *error);

/* `mxrun --help` (`commands` ends in NULL) and `mxrun --version`; return the exit code. */
int mx_print_commands(const mx_command *const *commands);
int mx_print_version(void);

extern const mx_command mx_command_run, mx_command_chat, mx_command_serve, mx_command_tokenize, mx_command_detokenize, mx_command_harmony,
    mx_command_verify, mx_command_info, mx_command_bench, mx_command_batch, mx_command_pull, mx_command_list,
    mx_command_rm, mx_command_verify_files, mx_command_plan, mx_command_convert, mx_command_quantize,
    mx_command_perplexity, mx_command_compare;

#endif
