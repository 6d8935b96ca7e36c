#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hub/private.h"

/* What is removed lies in the folder of one repository: every path is that folder and a relative name without "..",
 * links are removed, never followed, and the folder itself must be a real one inside the cache. */

typedef struct remover {
    const char *folder;
    bool only_count;
    mx_removal *sum;
    mx_error *error;
} remover;

static mx_status remove_file(remover *r, const char *name) {
    char path[MX_HUB_PATH];
    struct stat info;
    mx_status status = mx_hub_path(path, r->error, "%s/%s", r->folder, name);
    if (status || lstat(path, &info) != 0) return status;
    r->sum->files++;
    if (S_ISREG(info.st_mode) && info.st_nlink == 1) r->sum->bytes += (int64_t)info.st_blocks * 512;
    if (r->only_count) return MX_OK;
    if (unlink(path) != 0) return mx_fail(r->error, MX_IO, "%s: cannot remove: %s", path, strerror(errno));
    /* Folders that are empty now go, too, up to the repository's. */
    const size_t root = strlen(r->folder);
    for (char *slash; (slash = strrchr(path, '/')) && slash > path + root;) {
        *slash = 0;
        if (rmdir(path) != 0) break;
    }
    return MX_OK;
}

static bool begins_with(const char *text, const char *begin) {
    return !strncmp(text, begin, strlen(begin));
}

/* Does this name in the repository's folder belong to a snapshot that goes, or to a file of one? */
static bool is_doomed(const char *name, const mx_target *target, const mx_strings *commits, const mx_strings *files) {
    if (!begins_with(name, "snapshots/")) return false;
    const char *commit = name + strlen("snapshots/"), *slash = strchr(commit, '/');
    for (int i = 0; i < commits->count && slash; i++) {
        const size_t size = strlen(commits->text[i]);
        if ((size_t)(slash - commit) != size || memcmp(commit, commits->text[i], size) != 0) continue;
        /* A GGUF file may stand beside others, each of which is a model; other layouts are the whole snapshot. */
        return target->layout != MX_HUB_GGUF || !files->count || mx_strings_have(files, slash + 1);
    }
    return false;
}

/* The blobs that a name which stays leads to. */
static bool keep_blob(const char *folder, const char *name, mx_strings *kept) {
    char path[MX_HUB_PATH], target[MX_HUB_PATH];
    if (mx_hub_path(path, NULL, "%s/%s", folder, name)) return false;
    const ssize_t size = readlink(path, target, sizeof target - 1);
    if (size <= 0) return true;
    target[size] = 0;
    const char *blobs = strstr(target, "blobs/");
    return !blobs || mx_strings_add(kept, blobs);
}

/* The commits that a target has had here. */
static mx_status commits_of(const char *folder, const mx_target *target, const mx_pins *pins, bool all_pinned,
                            mx_strings *out, mx_error *error) {
    char ref[MX_COMMIT_TEXT];
    const char *pinned = mx_pins_commit(pins, target->revision);
    mx_refs_read(folder, target->revision, ref);
    bool kept = (!pinned || mx_strings_add(out, pinned)) && (!ref[0] || mx_strings_add(out, ref)) &&
                (!mx_is_commit(target->revision) || mx_strings_add(out, target->revision));
    for (int i = 0; i < pins->files && all_pinned && kept; i++) {
        bool elsewhere = false; /* another revision pins it */
        for (int k = 0; k < pins->revisions; k++)
            elsewhere |= !strcmp(pins->revision[k].commit, pins->file[i].commit) &&
                         strcmp(pins->revision[k].revision, target->revision) != 0;
        if (!elsewhere && !mx_strings_have(out, pins->file[i].commit)) kept = mx_strings_add(out, pins->file[i].commit);
    }
    return kept ? MX_OK : mx_fail(error, MX_NO_MEMORY, "out of memory");
}

/* Is anything of the commit left among the names? */
static bool has_snapshot(const mx_strings *names, const mx_target *target, const mx_strings *commits,
                         const mx_strings *files, const char *commit) {
    char begin[MX_COMMIT_TEXT + 16];
    snprintf(begin, sizeof begin, "snapshots/%s/", commit);
    for (int i = 0; i < names->count; i++)
        if (begins_with(names->text[i], begin) && !is_doomed(names->text[i], target, commits, files)) return true;
    return false;
}

static mx_status remove_names(remover *r, const mx_target *target, const mx_strings *names, const mx_strings *commits,
                              const mx_strings *files) {
    mx_strings kept = {0};
    bool others = false, memory = true;
    mx_status status = MX_OK;
    for (int i = 0; i < names->count && memory; i++) {
        if (!begins_with(names->text[i], "snapshots/") || is_doomed(names->text[i], target, commits, files)) continue;
        others = true;
        memory = keep_blob(r->folder, names->text[i], &kept);
    }
    if (!memory) status = mx_fail(r->error, MX_NO_MEMORY, "out of memory");
    for (int i = 0; i < names->count && !status; i++) {
        const char *name = names->text[i];
        bool goes = is_doomed(name, target, commits, files);
        if (begins_with(name, "blobs/")) goes = !mx_strings_have(&kept, name);
        if (begins_with(name, ".mxrun-")) goes = true;
        if (begins_with(name, "refs/")) {
            char commit[MX_COMMIT_TEXT];
            mx_refs_read(r->folder, name + strlen("refs/"), commit);
            goes = mx_strings_have(commits, commit) && !has_snapshot(names, target, commits, files, commit);
        }
        if (!others && strcmp(name, "mxrun.busy") != 0) goes = true; /* nothing of the repository is left */
        if (goes) status = remove_file(r, name);
    }
    mx_strings_free(&kept);
    if (!status && !others && !r->only_count) {
        char path[MX_HUB_PATH];
        status = mx_hub_path(path, r->error, "%s/mxrun.busy", r->folder);
        if (!status) unlink(path);
        rmdir(r->folder);
    }
    return status;
}

static mx_status forget_pins(remover *r, const mx_target *target, mx_pins *pins, const mx_strings *names,
                             const mx_strings *commits, const mx_strings *files) {
    for (int i = 0; i < commits->count; i++) {
        const char *commit = commits->text[i];
        for (int k = 0; k < files->count; k++) mx_pins_drop_file(pins, commit, files->text[k]);
        if (!has_snapshot(names, target, commits, files, commit)) mx_pins_drop_commit(pins, commit);
    }
    return pins->files || pins->revisions ? mx_pins_write(r->folder, pins, r->error) : remove_file(r, "mxrun.lock");
}

static mx_status remove_locked(remover *r, const mx_hub *hub, const mx_target *target) {
    mx_strings commits = {0}, names = {0};
    mx_pins pins = {0};
    mx_copy copy = {0};
    mx_target what = *target;
    mx_status status = mx_pins_read(r->folder, &pins, r->error);
    if (!status) status = mx_cache_find(hub, target, &copy, r->error);
    if (!status) what.layout = copy.layout;
    if (!status) status = commits_of(r->folder, target, &pins, !target->file[0], &commits, r->error);
    if (!status) status = mx_list_files(r->folder, &names, r->error);
    if (!status && commits.count == 0 && copy.complete == false && names.count == 0)
        status = mx_fail(r->error, MX_NOT_FOUND, "%s is not in %s", target->name, hub->folder);
    if (!status && !r->only_count && pins.revisions + pins.files > 0)
        status = forget_pins(r, &what, &pins, &names, &commits, &copy.files);
    if (!status) status = remove_names(r, &what, &names, &commits, &copy.files);
    mx_copy_free(&copy);
    mx_strings_free(&commits);
    mx_strings_free(&names);
    mx_pins_free(&pins);
    return status;
}

mx_status mx_cache_remove(const mx_hub *hub, const mx_target *target, bool only_count, mx_removal *out,
                          mx_error *error) {
    char folder[MX_HUB_PATH];
    struct stat info;
    *out = (mx_removal){0};
    mx_status status = mx_repository_folder(hub, target->repository, folder, error);
    if (status) return status;
    if (lstat(folder, &info) != 0) return mx_fail(error, MX_NOT_FOUND, "%s is not in %s", target->name, hub->folder);
    if (!S_ISDIR(info.st_mode))
        return mx_fail(error, MX_IO, "%s: this is no folder but a link or a file; mxrun removes nothing outside %s",
                       folder, hub->folder);
    mx_repository_lock lock = {-1};
    status = mx_repository_lock_take(folder, false, NULL, NULL, NULL, &lock, error);
    if (status) return status;
    remover r = {folder, only_count, out, error};
    status = remove_locked(&r, hub, target);
    mx_repository_lock_release(&lock);
    return status;
}
