#include <stdio.h>
#include <string.h>

#include "commands/models.h"
#include "commands/pull_show.h"

static int option_yes;

static mx_status remove_one(const mx_hub *hub, const mx_models *models, const char *name, mx_error *error) {
    mx_target target;
    mx_removal sum;
    char size[16], question[400];
    mx_status status = mx_target_parse(models, name, &target, error);
    if (status) return status;
    if (mx_comes_along(&target))
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s comes with mxrun and is not in the cache", target.name);
    status = mx_cache_remove(hub, &target, true, &sum, error);
    if (status) return status;
    if (!option_yes) {
        if (!mx_can_ask())
            return mx_fail(error, MX_INVALID_ARGUMENT, "%s: not removed without being asked; give --yes", target.name);
        snprintf(question, sizeof question, "Remove %.200s: %d files, %s of %.150s?", target.name, sum.files,
                 mx_size_text(size, sum.bytes), hub->folder);
        if (!mx_ask(question, false)) return mx_fail(error, MX_INVALID_STATE, "%s was not removed", target.name);
    }
    status = mx_cache_remove(hub, &target, false, &sum, error);
    if (!status)
        fprintf(stderr, "mxrun: removed %s: %d files, %s\n", target.name, sum.files, mx_size_text(size, sum.bytes));
    return status;
}

static int run(const mx_command *self, int argc, const char **argv) {
    static const struct poptOption options[] = {
        {"yes", 'y', POPT_ARG_NONE, &option_yes, 0, "Without asking", NULL},
        POPT_TABLEEND,
    };
    const char *const *names = NULL;
    int code = MX_EXIT_OK;
    if (!mx_command_parse(self, options, argc, argv, &names, &code)) return code;
    if (!names || !names[0]) return mx_command_usage(self, "give the NAME of a model");
    mx_error error = {0};
    mx_models models = {0};
    mx_hub hub = {0};
    mx_status status = mx_open_models(&models, &error);
    if (!status) status = mx_open_hub(&hub, &error);
    for (int i = 0; names[i] && !status; i++) status = remove_one(&hub, &models, names[i], &error);
    mx_hub_close(&hub);
    mx_models_free(&models);
    return status ? mx_command_fail(self, &error) : MX_EXIT_OK;
}

const mx_command mx_command_rm = {
    .name = "rm",
    .arguments = "NAME... [--yes]",
    .summary = "Remove downloaded models",
    .description = "Removes a model from the Hugging Face cache, whoever downloaded it: its files, what no\n"
                   "other snapshot of the repository uses, and what is incomplete. Nothing outside that\n"
                   "repository's folder; not while a pull is at it. NAME is as in \"mxrun list\".",
    .run = run,
};
