#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "commands/models.h"
#include "commands/pull_show.h"
#include "commands/terminal.h"

static char *option_revision;
static int option_json, option_update;

/* NAME, with --revision put into it. */
static mx_status parse(const mx_models *models, const char *name, mx_target *out, mx_error *error) {
    mx_status status = mx_target_parse(models, name, out, error);
    if (status || !option_revision) return status;
    if (mx_comes_along(out))
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s comes with mxrun: no --revision", out->name);
    if (strchr(name, '@')) return mx_fail(error, MX_INVALID_ARGUMENT, "%s has a revision and --revision, too", name);
    char text[MX_HUB_PATH];
    const char *base = out->known ? out->known->name : out->repository;
    status = mx_hub_path(text, error, "%s@%s%s%s", base, option_revision, out->file[0] ? ":" : "", out->file);
    return status ? status : mx_target_parse(models, text, out, error);
}

static mx_status pull_stories(const mx_target *target, mx_pull_show *show, mx_error *error) {
    char path[MX_HUB_PATH];
    mx_copy copy = {0};
    mx_status status = mx_find_stories(path, sizeof path, error);
    if (!status) status = mx_look_at_folder(target, path, &copy, error);
    if (!status && show->json) {
        const mx_pull_event event = {
            .type = MX_PULL_PRESENT, .target = target, .commit = copy.commit, .path = path, .total = copy.bytes};
        mx_pull_show_event(show, &event);
    } else if (!status) {
        fprintf(stderr, "mxrun: %s comes with mxrun\n", target->name);
        printf("%s\n", path);
    }
    mx_copy_free(&copy);
    return status;
}

static mx_status pull(const mx_hub *hub, const mx_models *models, const char *name, mx_error *error) {
    mx_pull_show show = {.json = option_json};
    mx_target target;
    mx_copy copy = {0};
    mx_status status = parse(models, name, &target, error);
    if (status) return status;
    if (mx_comes_along(&target)) return pull_stories(&target, &show, error);
    const mx_pull_options options = {
        .update = option_update, .event = mx_pull_show_event, .user = &show, .stop = &mx_interrupted};
    status = mx_pull(hub, &target, &options, &copy, error);
    mx_pull_show_end(&show);
    if (!status && !option_json) printf("%s\n", copy.path);
    mx_copy_free(&copy);
    return status ? mx_fail_within(error, status, "%s", target.name) : MX_OK;
}

static void print_error(const char *name, const mx_error *error) {
    if (!option_json) return;
    mx_bytes out = {0};
    mx_bytes_add_string(&out, "{\"event\":\"error\",\"name\":");
    mx_bytes_add_json(&out, name, strlen(name));
    mx_bytes_add_string(&out, ",\"text\":");
    mx_bytes_add_json(&out, error->text, strlen(error->text));
    printf("%s}\n", out.data ? out.data : "");
    fflush(stdout);
    mx_bytes_free(&out);
}

static int run(const mx_command *self, int argc, const char **argv) {
    static const struct poptOption options[] = {
        {"update", '\0', POPT_ARG_NONE, &option_update, 0, "Take what the hub has now, not what was pinned before",
         NULL},
        {"revision", '\0', POPT_ARG_STRING, &option_revision, 0, "Branch, tag or commit (default: that of models.txt)",
         "REVISION"},
        {"json", '\0', POPT_ARG_NONE, &option_json, 0, "Events on stdout, one JSON object a line", NULL},
        {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)mx_offline_option, 0, NULL, NULL},
        POPT_TABLEEND,
    };
    return mx_command_on_models(self, options, argc, argv, true, pull, print_error);
}

const mx_command mx_command_pull = {
    .name = "pull",
    .arguments = "NAME... [--update] [--revision REVISION] [--offline] [--json]",
    .summary = "Download models from the Hugging Face hub",
    .description = "NAME is one of \"mxrun list --all\", or ORG/NAME[@REVISION][:FILE.gguf] on the hub. Says\n"
                   "what is to be downloaded and how much space is free, then fetches several files and\n"
                   "parts of files at once, checks sizes and SHA-256, and prints the path that -m would use.\n"
                   "What was broken off goes on where it was. What is there already is not asked for again.\n"
                   "\n"
                   "Files go to the cache that other tools of the hub use, too (HF_HUB_CACHE, else\n"
                   "HF_HOME/hub, else ~/.cache/huggingface/hub); what those have downloaded is used in\n"
                   "place. Commit, sizes and hashes are pinned in mxrun.lock in the repository's folder\n"
                   "there: later pulls must find the same, until --update takes what is new.\n"
                   "\n"
                   "HF_ENDPOINT is the address of a mirror; HF_TOKEN (or the file HF_TOKEN_PATH or\n"
                   "HF_HOME/token) is sent to that host only, and with HF_HUB_DISABLE_IMPLICIT_TOKEN=1 to\n"
                   "none; HF_HUB_OFFLINE=1 (or TRANSFORMERS_OFFLINE=1) is --offline; proxies are those of\n"
                   "curl (https_proxy). ~/.config/mxrun/models.txt adds names; models.txt, which comes with\n"
                   "mxrun, tells how.\n"
                   "\n"
                   "The events of --json are waiting, asking, planned, progress, retry, file, present, done\n"
                   "and error.\n"
                   "\n"
                   "Examples:\n"
                   "  $ mxrun pull gpt-oss-20b\n"
                   "  $ mxrun pull ggml-org/gpt-oss-20b-GGUF:gpt-oss-20b-mxfp4.gguf",
    .run = run,
};
