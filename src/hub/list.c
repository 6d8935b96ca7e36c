#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
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

/* Blobs that are coming in; `all`: the others, too, where no snapshot leads to them yet. *ours: mxrun has begun some.
 */
static int64_t bytes_of_blobs(const char *folder, bool all, bool *ours) {
    char path[MX_HUB_PATH];
    mx_strings names = {0};
    int64_t sum = 0;
    if (!mx_hub_path(path, NULL, "%s/blobs", folder) && !mx_list_files(path, &names, NULL)) {
        for (int i = 0; i < names.count; i++) {
            struct stat info;
            if (!all && !strstr(names.text[i], ".incomplete")) continue;
            *ours |= strstr(names.text[i], ".mxrun.incomplete") != NULL;
            if (!mx_hub_path(path, NULL, "%s/blobs/%s", folder, names.text[i]) && lstat(path, &info) == 0)
                sum += (int64_t)info.st_blocks * 512;
        }
    }
    mx_strings_free(&names);
    return sum;
}

/* What there is of a copy that is not complete, beside its files. Before there is a snapshot, mxrun.lock says whose it
 * is, or a download under the name that only mxrun gives. */
static int64_t look_at_begun(const char *folder, mx_copy *copy) {
    char path[MX_HUB_PATH];
    if (copy->complete) return 0;
    if (!copy->found && !mx_hub_path(path, NULL, "%s/mxrun.lock", folder)) copy->ours |= access(path, F_OK) == 0;
    return bytes_of_blobs(folder, !copy->found, &copy->ours);
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
        mx_error why = {0};
        if (mx_cache_find(hub, &target, &copy, &why)) { /* a list goes on */
            mx_log(MX_LOG_WARNING, "%s", why.text);
            mx_copy_free(&copy);
        }
        const int64_t begun = look_at_begun(folder, &copy);
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

typedef struct lister {
    const mx_hub *hub;
    const mx_models *models;
    mx_cached_list *out;
    mx_error *error;
    const char *repository;
    char folder[MX_HUB_PATH];
    bool ours; /* it has a mxrun.lock */
} lister;

static bool looks_like_ours(const mx_copy *copy) {
    const char *kind = copy->layout == MX_HUB_GGUF ? copy->files.text[0] : "config.json";
    return copy->layout == MX_HUB_ORIGINAL || file_has(copy->snapshot, kind, "gpt_oss", 65536) ||
           file_has(copy->snapshot, kind, "gpt-oss", 65536);
}

static mx_status add_target(lister *l, const mx_target *target, mx_copy *copy) {
    const int64_t begun = l->ours ? look_at_begun(l->folder, copy) : 0;
    if ((copy->files.count && (l->ours || looks_like_ours(copy))) || begun)
        return add(l->out, target, copy, begun, l->error);
    mx_copy_free(copy);
    return MX_OK;
}

/* Each GGUF model of a snapshot with several; `name` is "ORG/NAME@REVISION". */
static mx_status add_ggufs(lister *l, const char *name, const char *commit) {
    char snapshot[MX_HUB_PATH];
    mx_strings files = {0};
    mx_status status = mx_hub_path(snapshot, l->error, "%s/snapshots/%s", l->folder, commit);
    if (!status) status = mx_list_files(snapshot, &files, l->error);
    for (int i = 0; i < files.count && !status; i++) {
        const char *file = files.text[i];
        const size_t size = strlen(file);
        const char *tail = size > 20 ? file + size - 20 : ""; /* "-00001-of-00003.gguf" */
        char text[MX_HUB_PATH];
        mx_target target;
        mx_copy copy = {0};
        if (size < 5 || strcmp(file + size - 5, ".gguf") != 0) continue;
        if (*tail == '-' && !strncmp(tail + 6, "-of-", 4) && strncmp(tail, "-00001", 6) != 0) continue;
        if (mx_hub_path(text, NULL, "%s:%s", name, file) || mx_target_parse(l->models, text, &target, NULL)) continue;
        if (mx_cache_find(l->hub, &target, &copy, NULL) == MX_OK)
            status = add_target(l, &target, &copy);
        else
            mx_copy_free(&copy);
    }
    mx_strings_free(&files);
    return status;
}

static mx_status add_revision(lister *l, const char *revision, const char *commit) {
    char name[MX_HUB_PATH];
    mx_target target;
    mx_copy copy = {0};
    mx_error why = {0};
    const bool standard = !strcmp(revision, "main");
    mx_status status =
        mx_hub_path(name, l->error, "%s%s%s", l->repository, standard ? "" : "@", standard ? "" : revision);
    /* A name that cannot be one is another tool's affair; what models.txt knows is in the list already. */
    if (status || mx_target_parse(l->models, name, &target, NULL) || target.known) return status;
    const mx_status found = mx_cache_find(l->hub, &target, &copy, &why);
    if (found == MX_OK) return add_target(l, &target, &copy);
    mx_copy_free(&copy);
    if (found == MX_INVALID_ARGUMENT) return add_ggufs(l, name, commit);
    mx_log(MX_LOG_WARNING, "%s", why.text);
    return MX_OK;
}

/* Revisions that have a ref or are pinned, then snapshots that have neither, by their commits. */
static mx_status add_repository(lister *l) {
    mx_strings revisions = {0}, commits = {0}, files = {0};
    mx_pins pins = {0};
    char path[MX_HUB_PATH], commit[MX_COMMIT_TEXT];
    mx_status status = mx_repository_folder(l->hub, l->repository, l->folder, l->error);
    if (!status) status = mx_hub_path(path, l->error, "%s/refs", l->folder);
    if (!status) status = mx_list_files(path, &revisions, l->error);
    if (!status && mx_pins_read(l->folder, &pins, NULL)) mx_pins_free(&pins); /* told below */
    l->ours = pins.revisions > 0;
    for (int i = 0; i < pins.revisions && !status; i++)
        if (!mx_strings_have(&revisions, pins.revision[i].revision) &&
            !mx_strings_add(&revisions, pins.revision[i].revision))
            status = mx_fail(l->error, MX_NO_MEMORY, "out of memory");
    for (int i = 0; i < revisions.count && !status; i++) {
        const char *pinned = mx_pins_commit(&pins, revisions.text[i]);
        mx_refs_read(l->folder, revisions.text[i], commit);
        if ((*commit && !mx_strings_add(&commits, commit)) || (pinned && !mx_strings_add(&commits, pinned)))
            status = mx_fail(l->error, MX_NO_MEMORY, "out of memory");
        else
            status = add_revision(l, revisions.text[i], pinned ? pinned : commit);
    }
    if (!status) status = mx_hub_path(path, l->error, "%s/snapshots", l->folder);
    if (!status) status = mx_list_files(path, &files, l->error);
    for (int i = 0; i < files.count && !status; i++) {
        const size_t size = strcspn(files.text[i], "/");
        if (size >= sizeof commit) continue;
        memcpy(commit, files.text[i], size);
        commit[size] = 0;
        if (!mx_is_commit(commit) || mx_strings_have(&commits, commit)) continue;
        status = mx_strings_add(&commits, commit) ? add_revision(l, commit, commit)
                                                  : mx_fail(l->error, MX_NO_MEMORY, "out of memory");
    }
    mx_pins_free(&pins);
    mx_strings_free(&files);
    mx_strings_free(&commits);
    mx_strings_free(&revisions);
    return status;
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
    for (int i = 0; i < repositories.count && !status; i++) {
        lister l = {.hub = hub, .models = models, .out = out, .error = error, .repository = repositories.text[i]};
        status = add_repository(&l);
    }
    mx_strings_free(&repositories);
    return status;
}
