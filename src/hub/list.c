#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "hub/private.h"

void mx_cached_list_free(mx_cached_list *list) {
    for (int i = 0; i < list->count; i++) mx_copy_free(&list->item[i].copy);
    free(list->item);
    *list = (mx_cached_list){0};
}

/* Takes over the copy. */
static mx_status add(mx_cached_list *list, const mx_target *target, mx_copy *copy, int64_t incomplete,
                     mx_error *error) {
    if (list->count == list->capacity) {
        const int capacity = list->capacity ? 2 * list->capacity : 16;
        mx_cached *more = realloc(list->item, (size_t)capacity * sizeof *more);
        if (!more) {
            mx_copy_free(copy);
            return mx_fail(error, MX_NO_MEMORY, "out of memory");
        }
        list->item = more;
        list->capacity = capacity;
    }
    list->item[list->count++] = (mx_cached){*target, *copy, incomplete};
    *copy = (mx_copy){0};
    return MX_OK;
}

/* Blobs that are coming in; `all`: the others, too, where no snapshot leads to them yet. */
static int64_t bytes_of_blobs(const char *folder, bool all) {
    char path[MX_HUB_PATH];
    mx_strings names = {0};
    int64_t sum = 0;
    if (!mx_hub_path(path, NULL, "%s/blobs", folder) && !mx_list_files(path, &names, NULL)) {
        for (int i = 0; i < names.count; i++) {
            struct stat info;
            if (!all && !strstr(names.text[i], ".incomplete")) continue;
            if (!mx_hub_path(path, NULL, "%s/blobs/%s", folder, names.text[i]) && lstat(path, &info) == 0)
                sum += (int64_t)info.st_blocks * 512;
        }
    }
    mx_strings_free(&names);
    return sum;
}

static mx_status add_known(const mx_hub *hub, const mx_models *models, mx_cached_list *out, mx_error *error) {
    mx_status status = MX_OK;
    for (int i = 0; i < models->count && !status; i++) {
        const mx_known_model *m = &models->model[i];
        char folder[MX_HUB_PATH];
        mx_target target;
        mx_copy copy = {0};
        if (!strcmp(m->repository, "-")) continue;
        status = mx_target_parse(models, m->name, &target, error);
        if (!status) status = mx_repository_folder(hub, m->repository, folder, error);
        if (status || access(folder, F_OK) != 0) continue;
        /* What is damaged is told where it is used; a list goes on. */
        if (mx_cache_find(hub, &target, &copy, NULL) != MX_OK) mx_copy_free(&copy);
        const int64_t begun = copy.complete ? 0 : bytes_of_blobs(folder, !copy.found);
        if (copy.files.count || (!copy.found && begun))
            status = add(out, &target, &copy, begun, error);
        else
            mx_copy_free(&copy);
    }
    return status;
}

/* ---- what models.txt does not know ------------------------------------------------------------------------------- */
static bool file_has(const char *folder, const char *name, const char *word, size_t limit) {
    char path[MX_HUB_PATH];
    if (mx_hub_path(path, NULL, "%s/%s", folder, name)) return false;
    FILE *file = fopen(path, "rbe");
    char *head = malloc(limit);
    const size_t size = file && head ? fread(head, 1, limit, file) : 0;
    const bool has = size && memmem(head, size, word, strlen(word));
    free(head);
    if (file) fclose(file);
    return has;
}

/* "models--org--name" to "org/name" */
static bool repository_of(const char *entry, char out[static MX_REPOSITORY]) {
    const char *name = entry + strlen("models--");
    if (strncmp(entry, "models--", strlen("models--")) != 0) return false;
    const char *dashes = strstr(name, "--");
    if (!dashes || strlen(name) >= MX_REPOSITORY) return false;
    snprintf(out, MX_REPOSITORY, "%.*s/%s", (int)(dashes - name), name, dashes + 2);
    return mx_is_repository(out);
}

/* A repository as it is, or each GGUF model of one with several. */
static mx_status add_target(const mx_hub *hub, const mx_models *models, const char *text, bool ours,
                            mx_cached_list *out, mx_error *error) {
    mx_target target;
    mx_copy copy = {0};
    mx_status status = mx_target_parse(models, text, &target, error);
    if (status || target.known) return status;
    if (mx_cache_find(hub, &target, &copy, NULL) == MX_OK && copy.files.count) {
        const char *kind = copy.layout == MX_HUB_GGUF ? copy.files.text[0]
                           : copy.layout == MX_HUB_HF ? "config.json"
                                                      : "original/config.json";
        if (ours || copy.layout == MX_HUB_ORIGINAL || file_has(copy.snapshot, kind, "gpt_oss", 65536) ||
            file_has(copy.snapshot, kind, "gpt-oss", 65536))
            return add(out, &target, &copy, 0, error);
    }
    mx_copy_free(&copy);
    return MX_OK;
}

static mx_status add_ggufs(const mx_hub *hub, const mx_models *models, const char *repository, const char *snapshot,
                           bool ours, mx_cached_list *out, mx_error *error) {
    mx_strings names = {0};
    mx_status status = mx_list_files(snapshot, &names, error);
    for (int i = 0; i < names.count && !status; i++) {
        const char *name = names.text[i];
        const size_t size = strlen(name);
        char text[MX_HUB_PATH];
        const char *tail = size > 20 ? name + size - 20 : ""; /* "-00001-of-00003.gguf" */
        if (size < 5 || strcmp(name + size - 5, ".gguf") != 0) continue;
        if (*tail == '-' && !strncmp(tail + 6, "-of-", 4) && strncmp(tail, "-00001", 6) != 0) continue;
        status = mx_hub_path(text, error, "%s:%s", repository, name);
        if (!status) status = add_target(hub, models, text, ours, out, error);
    }
    mx_strings_free(&names);
    return status;
}

static mx_status add_repository(const mx_hub *hub, const mx_models *models, const char *repository, mx_cached_list *out,
                                mx_error *error) {
    char folder[MX_HUB_PATH], pins[MX_HUB_PATH], snapshot[MX_HUB_PATH], commit[MX_COMMIT_TEXT];
    mx_target target;
    mx_copy copy = {0};
    mx_status status = mx_repository_folder(hub, repository, folder, error);
    if (!status) status = mx_hub_path(pins, error, "%s/mxrun.lock", folder);
    if (!status) status = mx_target_parse(models, repository, &target, error);
    if (status || target.known) return status;
    const bool ours = access(pins, F_OK) == 0;
    if (mx_cache_find(hub, &target, &copy, NULL) != MX_INVALID_ARGUMENT) {
        mx_copy_free(&copy);
        return add_target(hub, models, repository, ours, out, error);
    }
    mx_copy_free(&copy);
    mx_refs_read(folder, target.revision, commit);
    if (!commit[0]) return MX_OK;
    status = mx_hub_path(snapshot, error, "%s/snapshots/%s", folder, commit);
    return status ? status : add_ggufs(hub, models, repository, snapshot, ours, out, error);
}

static int compare(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

mx_status mx_cache_list(const mx_hub *hub, const mx_models *models, mx_cached_list *out, mx_error *error) {
    mx_strings repositories = {0};
    *out = (mx_cached_list){0};
    DIR *dir = opendir(hub->folder);
    if (!dir && errno != ENOENT)
        return mx_fail(error, MX_IO, "%s: cannot list the folder: %s", hub->folder, strerror(errno));
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        char repository[MX_REPOSITORY];
        if (repository_of(entry->d_name, repository) && !mx_strings_add(&repositories, repository)) break;
    }
    if (dir) closedir(dir);
    if (repositories.count) qsort(repositories.text, (size_t)repositories.count, sizeof(char *), compare);
    mx_status status = add_known(hub, models, out, error);
    for (int i = 0; i < repositories.count && !status; i++)
        status = add_repository(hub, models, repositories.text[i], out, error);
    mx_strings_free(&repositories);
    return status;
}
