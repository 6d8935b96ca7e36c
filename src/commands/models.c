#include "commands/models.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "commands/pull_show.h"
#include "commands/terminal.h"

static int option_offline, option_yes;
const struct poptOption mx_hub_options[] = {
    {"offline", '\0', POPT_ARG_NONE, &option_offline, 0, "Never connect: only what is on this machine", NULL},
    {"yes", '\0', POPT_ARG_NONE, &option_yes, 0, "Download the model without asking where it is not there", NULL},
    POPT_TABLEEND,
};
const struct poptOption mx_offline_option[] = {
    {"offline", '\0', POPT_ARG_NONE, &option_offline, 0, "Never connect: only what is on this machine", NULL},
    POPT_TABLEEND,
};

/* ---- what comes with the program --------------------------------------------------------------------------------- */
/* Tries FOLDER/TAIL; the name is resolved so that messages show no "/../". */
static bool try_path(const char *folder, const char *tail, const char *holds, char out[static MX_HUB_PATH]) {
    char path[MX_HUB_PATH], inside[MX_HUB_PATH];
    if (mx_hub_path(path, NULL, "%s/%s", folder, tail) || mx_hub_path(inside, NULL, "%s%s", path, holds)) return false;
    if (access(inside, R_OK) != 0) return false;
    char *real = realpath(path, NULL);
    const bool fits = real && !mx_hub_path(out, NULL, "%s", real);
    free(real);
    return fits;
}

/* `installed`: its name where it was installed; `source`: in the checkout; `holds`: what must be below it. */
static bool find_data(const char *installed, const char *source, const char *holds, char out[static MX_HUB_PATH]) {
    const char *data = getenv("MXRUN_DATA");
    if (data && *data && try_path(data, installed, holds, out)) return true;
    char self[MX_HUB_PATH], tail[200];
    const ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length > 0) {
        self[length] = 0;
        char *slash = strrchr(self, '/');
        if (slash) *slash = 0;
        snprintf(tail, sizeof tail, "../share/mxrun/%s",
                 installed); /* PREFIX/bin/mxrun, wherever PREFIX was moved to */
        if (try_path(self, tail, holds, out)) return true;
        snprintf(tail, sizeof tail, "../%s", source); /* a build folder in the checkout */
        if (try_path(self, tail, holds, out)) return true;
        snprintf(tail, sizeof tail, "../../%s", source); /* build/KIND/mxrun */
        if (try_path(self, tail, holds, out)) return true;
    }
    return try_path(MX_DATA_DIR, installed, holds, out); /* installed with a --datadir of its own */
}

mx_status mx_find_stories(char *out, size_t size, mx_error *error) {
    char path[MX_HUB_PATH];
    if (!find_data("stories", "tools/stories/checkpoint", "/config.json", path))
        return mx_fail(error, MX_IO,
                       "the model \"stories\" that comes with mxrun is not where it was installed (" MX_DATA_DIR
                       "/stories); set MXRUN_DATA to the folder that holds \"stories\", or name the folder of a model");
    if (strlen(path) >= size) return mx_fail(error, MX_INVALID_ARGUMENT, "%s: the path is too long", path);
    memcpy(out, path, strlen(path) + 1);
    return MX_OK;
}

mx_status mx_open_models(mx_models *out, mx_error *error) {
    char path[MX_HUB_PATH];
    *out = (mx_models){0};
    if (!find_data("models.txt", "models.txt", "", path))
        return mx_fail(error, MX_IO,
                       "the list models.txt that comes with mxrun is not where it was installed (" MX_DATA_DIR
                       "/models.txt); set MXRUN_DATA to the folder that holds it, or name a model by its path");
    mx_status status = mx_models_add(out, path, false, error);
    const char *config = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    if (status) return status;
    if (config && *config)
        status = mx_hub_path(path, error, "%s/mxrun/models.txt", config);
    else if (home && *home)
        status = mx_hub_path(path, error, "%s/.config/mxrun/models.txt", home);
    else
        return MX_OK;
    return status ? status : mx_models_add(out, path, true, error);
}

mx_status mx_open_hub(mx_hub *out, mx_error *error) {
    mx_status status = mx_hub_open(out, error);
    out->offline |= option_offline != 0;
    return status;
}

int mx_command_on_models(const mx_command *self, const struct poptOption *options, int argc, const char **argv,
                         bool interruptible, mx_model_work *one, void (*failed)(const char *name, const mx_error *)) {
    const char *const *names = NULL;
    int code = MX_EXIT_OK;
    if (!mx_command_parse(self, options, argc, argv, &names, &code)) return code;
    if (!names || !names[0]) return mx_command_usage(self, "give the NAME of a model");
    mx_error error = {0};
    mx_models models = {0};
    mx_hub hub = {0};
    mx_status status = mx_open_models(&models, &error);
    if (!status) status = mx_open_hub(&hub, &error);
    if (interruptible) mx_interrupt_catch(true);
    for (int i = 0; names[i] && !status; i++) {
        status = one(&hub, &models, names[i], &error);
        if (status && failed) failed(names[i], &error);
    }
    if (interruptible) mx_interrupt_release();
    mx_hub_close(&hub);
    mx_models_free(&models);
    if (!status && (fflush(stdout) != 0 || ferror(stdout)))
        status = mx_fail(&error, MX_IO, "cannot write to stdout: %s", strerror(errno));
    return status ? mx_command_fail(self, &error) : MX_EXIT_OK;
}

bool mx_comes_along(const mx_target *target) {
    return !strcmp(target->repository, "-");
}

/* ---- asking ------------------------------------------------------------------------------------------------------ */
bool mx_can_ask(void) {
    return isatty(STDIN_FILENO) && isatty(STDERR_FILENO);
}

bool mx_ask(const char *question, bool otherwise) {
    char answer[100];
    fprintf(stderr, "%s [%s] ", question, otherwise ? "Y/n" : "y/N");
    fflush(stderr);
    if (!fgets(answer, sizeof answer, stdin)) {
        fputc('\n', stderr);
        return false;
    }
    const char *word = answer + strspn(answer, " \t");
    if (*word == '\n') return otherwise;
    return *word == 'y' || *word == 'Y';
}

static bool confirm(void *user, const mx_pull_event *planned) {
    (void)user;
    (void)planned; /* shown already */
    if (option_yes) return true;
    mx_interrupt_release();
    const bool yes = mx_ask("Download it now?", true);
    mx_interrupt_catch(true);
    return yes;
}

/* ---- -m ---------------------------------------------------------------------------------------------------------- */
static mx_status not_here(const mx_target *t, const mx_copy *copy, const mx_hub *hub, bool fetch, mx_error *error) {
    char missing[300], size[64] = "";
    int64_t bytes = 0;
    mx_copy_missing(copy, missing);
    for (int i = 0; t->known && i < t->known->file_count; i++)
        if (t->known->files[i].size > 0) bytes += t->known->files[i].size;
    if (bytes > 0) snprintf(size, sizeof size, ", about %.1f GB", (double)bytes / 1e9);
    if (copy->files.count)
        return mx_fail(error, MX_NOT_FOUND, "%s is not complete in %s: missing %s; \"mxrun pull %s\" fetches them%s",
                       t->name, copy->snapshot, missing, t->name, hub->offline ? ", but not offline" : "");
    return mx_fail(error, MX_NOT_FOUND,
                   "%s is not on this machine (%s of the hub%s; not in %s); \"mxrun pull %s\" downloads it%s", t->name,
                   t->repository, size, hub->folder, t->name,
                   hub->offline ? ", but not offline"
                   : fetch      ? ", and so does --yes"
                                : "");
}

static mx_status download(const mx_hub *hub, const mx_target *t, mx_copy *copy, mx_error *error) {
    mx_pull_show show = {0};
    const mx_pull_options options = {
        .confirm = confirm, .event = mx_pull_show_event, .user = &show, .stop = &mx_interrupted};
    mx_copy_free(copy);
    mx_interrupt_catch(true);
    mx_status status = mx_pull(hub, t, &options, copy, error);
    mx_pull_show_end(&show);
    const bool refused = status == MX_CANCELLED && !mx_interrupted;
    mx_interrupt_release();
    return refused ? mx_fail(error, MX_INVALID_STATE, "%s was not downloaded", t->name) : status;
}

static mx_status resolve_name(const char *name, bool fetch, char *out, size_t size, mx_error *error) {
    mx_models models = {0};
    mx_hub hub = {0};
    mx_copy copy = {0};
    mx_target t;
    mx_status status = mx_open_models(&models, error);
    if (!status) status = mx_target_parse(&models, name, &t, error);
    if (!status && mx_comes_along(&t)) {
        status = mx_find_stories(out, size, error);
    } else if (!status) {
        status = mx_open_hub(&hub, error);
        if (!status) status = mx_cache_find(&hub, &t, &copy, error);
        if (!status && !copy.complete)
            status = fetch && !hub.offline && (option_yes || mx_can_ask()) ? download(&hub, &t, &copy, error)
                                                                           : not_here(&t, &copy, &hub, fetch, error);
        if (!status && strlen(copy.path) >= size)
            status = mx_fail(error, MX_INVALID_ARGUMENT, "%s: the path is too long", copy.path);
        if (!status) memcpy(out, copy.path, strlen(copy.path) + 1);
    }
    mx_copy_free(&copy);
    mx_hub_close(&hub);
    mx_models_free(&models);
    return status;
}

/* "./x", "/x", "~/x" are never names of models, nor is "a/b/c". */
static bool looks_like_path(const char *name) {
    const char *slash = strchr(name, '/');
    return *name == '/' || *name == '.' || *name == '~' || (slash && !slash[1]) ||
           (slash && strchr(slash + 1, '/') && !strpbrk(name, "@:"));
}

/* A slash at the end makes a folder of a name. */
static mx_status no_such_path(const char *name, int problem, mx_error *error) {
    size_t size = strlen(name);
    while (size && name[size - 1] == '/') size--;
    char *bare = strndup(name, size);
    const bool absent = problem == ENOENT || problem == ENOTDIR;
    const bool a_name = absent && bare && name[size] && !looks_like_path(bare);
    const mx_status status =
        a_name ? mx_fail(error, MX_IO, "%s: there is no such folder; the name of a model has no slash at its end: %s",
                         name, bare)
               : mx_fail(error, MX_IO, "%s: %s", name, strerror(problem));
    free(bare);
    return status;
}

static mx_status resolve(const char *name, bool fetch, char *out, size_t size, mx_error *error) {
    struct stat info;
    if (!name || !*name)
        return mx_fail(error, MX_INVALID_ARGUMENT, "no model given: give a name such as \"stories\", or a path");
    if (stat(name, &info) != 0) {
        const int problem = errno;
        const bool absent = problem == ENOENT || problem == ENOTDIR;
        if (absent && !strcmp(name, "stories")) return mx_find_stories(out, size, error); /* needs no list */
        if (absent && !looks_like_path(name)) return resolve_name(name, fetch, out, size, error);
        return no_such_path(name, problem, error);
    }
    if (strlen(name) >= size) return mx_fail(error, MX_INVALID_ARGUMENT, "%s: the path is too long", name);
    memcpy(out, name, strlen(name) + 1);
    return MX_OK;
}

mx_status mx_resolve_model(const char *name, char *out, size_t size, mx_error *error) {
    return resolve(name, true, out, size, error);
}

mx_status mx_find_model(const char *name, char *out, size_t size, mx_error *error) {
    return resolve(name, false, out, size, error);
}
