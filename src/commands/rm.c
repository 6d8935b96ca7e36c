#include <stdio.h>
#include <string.h>

#include "commands/models.h"
#include "commands/pull_show.h"

static int option_yes;

/* What a removal means for another revision that is the same commit. */
static const char *say_other(char out[static 400], const mx_removal *sum) {
    out[0] = 0;
    if (sum->other[0])
        snprintf(out, 400,
                 sum->stays ? " (the files stay: revision %.256s is the same commit)"
                            : " (revision %.256s is the same commit and loses them, too)",
                 sum->other);
    return out;
}

static mx_status remove_one(const mx_hub *hub, const mx_models *models, const char *name, mx_error *error) {
    mx_target target;
    mx_removal sum;
    char size[16], other[400], question[900];
    mx_status status = mx_target_parse(models, name, &target, error);
    if (status) return status;
    if (mx_comes_along(&target))
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s comes with mxrun and is not in the cache", target.name);
    status = mx_cache_remove(hub, &target, true, &sum, error);
    if (status) return status;
    if (!option_yes) {
        if (!mx_can_ask())
            return mx_fail(error, MX_INVALID_ARGUMENT, "%s: not removed without being asked; give --yes", target.name);
        snprintf(question, sizeof question, "Remove %.200s: %d files, %s of %.150s%s?", target.name, sum.files,
                 mx_size_text(size, sum.bytes), hub->folder, say_other(other, &sum));
        if (!mx_ask(question, false)) return mx_fail(error, MX_INVALID_STATE, "%s was not removed", target.name);
    }
    status = mx_cache_remove(hub, &target, false, &sum, error);
    if (!status)
        fprintf(stderr, "mxrun: removed %s: %d files, %s%s\n", target.name, sum.files, mx_size_text(size, sum.bytes),
                say_other(other, &sum));
    return status;
}

static int run(const mx_command *self, int argc, const char **argv) {
    static const struct poptOption options[] = {
        {"yes", 'y', POPT_ARG_NONE, &option_yes, 0, "Without asking", NULL},
        POPT_TABLEEND,
    };
    return mx_command_on_models(self, options, argc, argv, false, remove_one, NULL);
}

const mx_command mx_command_rm = {
    .name = "rm",
    .arguments = "NAME... [--yes]",
    .summary = "Remove downloaded models",
    .description = "Removes a model from the Hugging Face cache, whoever downloaded it: its files that\n"
                   "no other snapshot of the repository uses, and what mxrun has begun of it. Nothing outside\n"
                   "that repository's folder; not while a pull is at it. NAME is as in \"mxrun list\".",
    .run = run,
};
