#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/progress.h"
#include "commands/models.h"
#include "commands/pull_show.h"
#include "commands/terminal.h"

typedef struct shown {
    mx_progress bar;
    bool started;
    int files, unknown;
} shown;

static void on_bytes(void *user, int64_t done, int64_t total) {
    shown *s = user;
    if (!s->started) mx_progress_start(&s->bar, "reading", (double)total, true);
    s->started = true;
    mx_progress_update(&s->bar, (double)done);
}

static void on_file(void *user, const mx_check_event *e) {
    shown *s = user;
    char size[16];
    if (s->started) mx_progress_clear(&s->bar);
    s->files++;
    s->unknown += e->unknown;
    if (e->problem)
        printf("wrong    %s: %s\n", e->file, e->problem);
    else
        printf("%s  %s  %s\n", e->unknown ? "unknown" : "right  ", e->file, mx_size_text(size, e->size));
    fflush(stdout);
}

/* The copy of a target, wherever it lies. */
static mx_status find(const mx_hub *hub, const mx_target *target, mx_copy *copy, mx_error *error) {
    if (!mx_comes_along(target)) {
        mx_status status = mx_cache_find(hub, target, copy, error);
        if (!status && !copy->files.count)
            status = mx_fail(error, MX_NOT_FOUND, "%s is not in %s; \"mxrun pull %s\" downloads it", target->name,
                             hub->folder, target->name);
        return status;
    }
    char path[MX_HUB_PATH];
    mx_status status = mx_find_stories(path, sizeof path, error);
    return status ? status : mx_look_at_folder(target, path, copy, error);
}

static mx_status verify(const mx_hub *hub, const mx_models *models, const char *name, mx_error *error) {
    mx_target target;
    mx_copy copy = {0};
    shown s = {0};
    int wrong = 0;
    mx_status status = mx_target_parse(models, name, &target, error);
    if (!status) status = find(hub, &target, &copy, error);
    const mx_check_options options = {.file = on_file, .progress = on_bytes, .user = &s, .stop = &mx_interrupted};
    if (!status) status = mx_check_files(mx_comes_along(&target) ? NULL : hub, &target, &copy, &options, &wrong, error);
    if (s.started) mx_progress_clear(&s.bar);
    if (!status && wrong)
        status = mx_fail(error, MX_INVALID_FILE,
                         "%s: %d of %d files are not as they should be; delete them in %s (the links and what they "
                         "lead to), then \"mxrun pull %s\" fetches them again",
                         target.name, wrong, s.files, copy.snapshot, target.name);
    if (!status)
        fprintf(stderr, "mxrun: %s: %d files are as they should be%s\n", target.name, s.files - s.unknown,
                s.unknown ? "; nobody says what the unknown ones should be" : "");
    mx_copy_free(&copy);
    return status;
}

static int run(const mx_command *self, int argc, const char **argv) {
    static const struct poptOption options[] = {POPT_TABLEEND};
    return mx_command_on_models(self, options, argc, argv, true, verify, NULL);
}

const mx_command mx_command_verify_files = {
    .name = "verify-files",
    .arguments = "NAME...",
    .summary = "Check the files of downloaded models",
    .description = "Reads every file of a model and compares size and SHA-256 (git's SHA-1 of small ones)\n"
                   "with models.txt, with what mxrun.lock pins, and with the names that the Hugging Face\n"
                   "cache gives to contents, whoever downloaded them. Exit code 1 where one is wrong.",
    .run = run,
};
