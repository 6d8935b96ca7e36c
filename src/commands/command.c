#include "commands/command.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- help -------------------------------------------------------------------------------------------------------- */
static const char exit_codes[] = "Exit codes:\n"
                                 "  0    done\n"
                                 "  1    the work failed: a bad file, no memory, a check that did not pass\n"
                                 "  2    wrong options or arguments\n"
                                 "  130  interrupted (Ctrl-C)\n";

/* Everything that goes to stdout can meet a full disk or a closed pipe. */
static int flushed(void) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return MX_EXIT_OK;
    fprintf(stderr, "mxrun: cannot write to stdout: %s\n", strerror(errno));
    return MX_EXIT_FAILED;
}

int mx_print_version(void) {
    printf("mxrun " MX_VERSION "\n");
    return flushed();
}

int mx_print_commands(const mx_command *const *commands) {
    printf("Usage: mxrun -m MODEL [OPTION]... [-p PROMPT]\n"
           "  or:  mxrun COMMAND [OPTION]...\n"
           "\n"
           "Runs mixture-of-experts language models of the gpt-oss kind.\n"
           "\n"
           "Commands:\n");
    for (const mx_command *const *c = commands; *c; c++) printf("  %-12s %s\n", (*c)->name, (*c)->summary);
    printf("\n"
           "Options:\n"
           "  -h, --help     Show this help and exit\n"
           "  -V, --version  Show the version and exit\n"
           "\n"
           "MODEL is a folder or file, a name (\"mxrun list --all\" shows them; \"stories\" is the\n"
           "small model that comes with mxrun), or ORG/NAME[@REVISION][:FILE.gguf] on the\n"
           "Hugging Face hub. \"mxrun COMMAND --help\" tells about a command; without a command\n"
           "word it is \"run\".\n"
           "\n"
           "Examples:\n"
           "  $ mxrun -m stories -p \"Tell me a story about a fox and a lamp.\"\n"
           "  $ mxrun -m stories\n"
           "  $ mxrun -m gpt-oss-20b     asks before it downloads what is not there\n"
           "\n"
           "Environment:\n"
           "  MXRUN_CPU   Use these instructions at most: scalar; avx2, avx512, avx512bf16, amx; neon,\n"
           "              neondot, neonbf16\n"
           "  MXRUN_CUDA_PLUGIN  The libmxrun_cuda.so to use, where it is not beside the program\n"
           "  MXRUN_CUDA_GRAPHS  0: queue a GPU's kernels one by one, for debugging\n"
           "  MXRUN_CUDA_OVERLAP  1: kernels begin while those before them end (from 9.0 on; untried)\n"
           "  MXRUN_CUDA_PROFILE  1: where the time of a GPU's steps goes, as a table at the end; it runs\n"
           "              more slowly meanwhile\n"
           "  MXRUN_CUDA_ROWS  few, many: multiply on a GPU with the kernels for so many rows alone\n"
           "              (the results are the same), for debugging\n"
           "  MXRUN_LOG   Say this and what is worse: debug, info (default), warning, error\n"
           "  MXRUN_DATA  Folder that holds \"stories\" and models.txt, where they are not beside the\n"
           "              program\n"
           "  NO_COLOR    Thinking is not dimmed\n"
           "  HF_HUB_CACHE, HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HUB_OFFLINE and\n"
           "  https_proxy are those of other tools of the hub (see mxrun pull --help)\n"
           "\n"
           "%s",
           exit_codes);
    return flushed();
}

/* popt's text about the options, without the usage line in front of it. */
static void print_options(poptContext context) {
    char *text = NULL;
    size_t size = 0;
    FILE *memory = open_memstream(&text, &size);
    if (!memory) return;
    poptPrintHelp(context, memory, 0);
    if (fclose(memory) == 0) {
        const char *options = strchr(text, '\n');
        if (options) fputs(options + 1 + strspn(options + 1, "\n"), stdout);
    }
    free(text);
}

static int print_help(const mx_command *self, poptContext context) {
    printf("Usage: mxrun %s %s\n\n%s\n\n", self->name, self->arguments, self->description);
    print_options(context);
    printf("\n%s", exit_codes);
    return flushed();
}

/* popt names a bad number without the option in front of it. */
static int wrong_option(const mx_command *self, int argc, const char **argv, const char *bad, const char *problem) {
    for (int i = 2; i < argc; i++) {
        if (*bad != '-' && *argv[i - 1] == '-' && strcmp(argv[i], bad) == 0)
            return mx_command_usage(self, "%s %s: %s", argv[i - 1], bad, problem);
    }
    return mx_command_usage(self, "%s: %s", bad, problem);
}

/* ---- options ----------------------------------------------------------------------------------------------------- */
/* popt forgets its copy of a string when the option comes again. It parses copies of the tables in which each option
 * that takes a string has a value of its own, so that poptGetNextOpt returns there and the earlier copy can be freed.
 */
enum { HELP = 0x4d58, FIRST_STRING };

typedef struct string_option {
    char **variable, *text; /* popt's copy, which `variable` points to; NULL: it has not come */
} string_option;

static unsigned type_of(const struct poptOption *option) {
    return option->argInfo & POPT_ARG_MASK;
}

static size_t entries_of(const struct poptOption *table) {
    size_t n = 0;
    while (table[n].longName || table[n].shortName || table[n].arg) n++;
    return n + 1;
}

/* With those of the tables that it includes. */
static size_t all_entries_of(const struct poptOption *table) {
    const size_t own = entries_of(table);
    size_t n = own;
    for (size_t i = 0; i < own; i++)
        if (type_of(&table[i]) == POPT_ARG_INCLUDE_TABLE && table[i].arg) n += all_entries_of(table[i].arg);
    return n;
}

/* Returns the end of the copy, where the next can begin. string[i] belongs to first[i]. */
static struct poptOption *copy_table(const struct poptOption *table, struct poptOption *to,
                                     const struct poptOption *first, string_option *string) {
    struct poptOption *copy = to;
    const size_t own = entries_of(table);
    memcpy(copy, table, own * sizeof *copy);
    to += own;
    for (size_t i = 0; i < own; i++) {
        if (type_of(&copy[i]) == POPT_ARG_INCLUDE_TABLE && copy[i].arg) {
            const struct poptOption *included = copy[i].arg;
            copy[i].arg = to;
            to = copy_table(included, to, first, string);
        } else if (type_of(&copy[i]) == POPT_ARG_STRING) {
            string[&copy[i] - first].variable = copy[i].arg;
            copy[i].val = FIRST_STRING + (int)(&copy[i] - first);
        }
    }
    return to;
}

/* What poptGetNextOpt ends with: -1, an error, or HELP. */
static int take_options(poptContext context, string_option *string) {
    int value;
    while ((value = poptGetNextOpt(context)) >= FIRST_STRING) {
        string_option *s = &string[value - FIRST_STRING];
        free(s->text);
        s->text = *s->variable;
    }
    return value;
}

bool mx_command_parse(const mx_command *self, const struct poptOption *options, int argc, const char **argv,
                      const char *const **positional, int *exit_code) {
    const struct poptOption help_table[] = {
        {"help", 'h', POPT_ARG_NONE, NULL, HELP, "Show this help and exit", NULL},
        POPT_TABLEEND,
    };
    /* A table of tables brings its own headings, and an empty one needs none. */
    const bool none = entries_of(options) == 1;
    const char *heading = none || options->argInfo == POPT_ARG_INCLUDE_TABLE ? NULL : "Options:";
    const struct poptOption table[] = {
        {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)options, 0, heading, NULL},
        {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)help_table, 0, "Help:", NULL},
        POPT_TABLEEND,
    };
    /* The strings of positional arguments belong to the context, which therefore stays. */
    static poptContext context;
    if (context) poptFreeContext(context);
    const size_t entries = all_entries_of(table);
    struct poptOption *copy = calloc(entries, sizeof *copy);
    string_option *string = calloc(entries, sizeof *string);
    if (copy && string) copy_table(table, copy, copy, string);
    context = copy && string ? poptGetContext("mxrun", argc, argv, copy, 0) : NULL;
    const int value = context ? take_options(context, string) : POPT_ERROR_MALLOC;
    if (!context) {
        fprintf(stderr, "mxrun %s: out of memory\n", self->name);
        *exit_code = MX_EXIT_FAILED;
    } else if (value == HELP) {
        *exit_code = print_help(self, context);
    } else if (value < -1) {
        *exit_code =
            wrong_option(self, argc, argv, poptBadOption(context, POPT_BADOPTION_NOALIAS), poptStrerror(value));
    } else {
        *positional = (const char *const *)poptGetArgs(context);
    }
    free(copy);
    free(string);
    return context && value == -1;
}

int mx_command_fail(const mx_command *self, const mx_error *error) {
    fprintf(stderr, "mxrun %s: %s\n", self->name, error->text);
    if (error->status == MX_INVALID_ARGUMENT) return MX_EXIT_USAGE;
    return error->status == MX_CANCELLED ? MX_EXIT_INTERRUPTED : MX_EXIT_FAILED;
}

int mx_command_usage(const mx_command *self, const char *format, ...) {
    va_list list;
    va_start(list, format);
    fprintf(stderr, "mxrun %s: ", self->name);
    vfprintf(stderr, format, list);
    fprintf(stderr, " (see mxrun %s --help)\n", self->name);
    va_end(list);
    return MX_EXIT_USAGE;
}
