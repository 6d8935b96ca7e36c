#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "commands/command.h"

/* In the order of the list that `mxrun --help` prints. */
static const mx_command *const commands[] = {
    &mx_command_run,
    &mx_command_chat,
    &mx_command_serve,
    &mx_command_batch,
    &mx_command_plan,
    &mx_command_pull,
    &mx_command_list,
    &mx_command_rm,
    &mx_command_verify_files,
    &mx_command_tokenize,
    &mx_command_detokenize,
    &mx_command_harmony,
    &mx_command_verify,
    &mx_command_info,
    &mx_command_bench,
    &mx_command_compare,
    &mx_command_perplexity,
    &mx_command_convert,
    &mx_command_quantize,
    NULL,
};

/* A descriptor that the caller closed would become the next file that is opened, which then gets our output. The
 * stand-ins refuse what stdin and stdout are for, so that it still fails; messages have nowhere to go. */
static void fill_closed_descriptors(void) {
    static const int flags[] = {O_WRONLY, O_RDONLY, O_WRONLY};
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", flags[fd]) != fd) _exit(MX_EXIT_FAILED);
}

int main(int argc, const char **argv) {
    fill_closed_descriptors();
    signal(SIGXFSZ, SIG_IGN); /* a limit of file sizes is an error of the write, which is told */
    const char *word = argc > 1 ? argv[1] : "";
    if (strcmp(word, "--version") == 0 || strcmp(word, "-V") == 0) return mx_print_version();
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) return mx_print_commands(commands);
    mx_log(MX_LOG_DEBUG, "version " MX_VERSION); /* and a wrong MXRUN_LOG is named at once */
    for (const mx_command *const *c = commands; *c; c++) {
        if (strcmp(word, (*c)->name) == 0) return (*c)->run(*c, argc - 1, argv + 1);
    }
    if (*word == '-') return mx_command_run.run(&mx_command_run, argc, argv);
    if (*word) {
        fprintf(stderr, "mxrun: there is no command \"%s\" (see mxrun --help)\n", word);
    } else {
        fprintf(stderr, "mxrun: nothing to do (see mxrun --help)\n");
    }
    return MX_EXIT_USAGE;
}
