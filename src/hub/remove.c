#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hub/private.h"

/* What is removed lies in the folder of one repository: every path is that folder and a relative name without "..",
 * links are removed, never followed, and the folder itself must be a real one inside the cache. What goes is decided
 * as a whole first: names that the target has there, the blobs that only these lead to, and what mxrun had begun for
 * it. Blobs that no name leads to may be another tool's and stay. */

typedef struct remover {
    const char *folder;
    const mx_target *target;
    mx_removal *sum;
    mx_error *error;
    mx_pins pins;
    mx_hub_layout layout;
    mx_strings names;   /* in the folder */
    bool *goes;         /* for each of them */
    mx_strings commits; /* that the target has had here */
    const char **other; /* for each of them: another revision that holds it; NULL. Borrowed from names and pins */
    bool *whole;        /* for each of them: all of its snapshot goes */
    mx_strings files;   /* of the target, by their paths in a snapshot, whether they are there or not */
} remover;

static mx_status out_of_memory(remover *r) {
    return mx_fail(r->error, MX_NO_MEMORY, "out of memory");
}

static bool begins_with(const char *text, const char *begin) {
    return !strncmp(text, begin, strlen(begin));
}

static bool add_once(mx_strings *s, const char *text) {
    return mx_strings_have(s, text) || mx_strings_add(s, text);
}

/* ---- what there is ----------------------------------------------------------------------------------------------- */
/* The commits that the target has had here: of several revisions, nobody knows whose an older one was. */
static bool find_commits(remover *r) {
    char ref[MX_COMMIT_TEXT];
    const char *revision = r->target->revision, *pinned = mx_pins_commit(&r->pins, revision);
    mx_refs_read(r->folder, revision, ref);
    bool kept = (!pinned || add_once(&r->commits, pinned)) && (!ref[0] || add_once(&r->commits, ref)) &&
                (!mx_is_commit(revision) || add_once(&r->commits, revision));
    for (int i = 0; i < r->pins.files && r->pins.revisions < 2 && !r->target->file[0] && kept; i++) {
        bool elsewhere = false; /* another revision pins it */
        for (int k = 0; k < r->pins.revisions; k++)
            elsewhere |= !strcmp(r->pins.revision[k].commit, r->pins.file[i].commit) &&
                         strcmp(r->pins.revision[k].revision, revision) != 0;
        if (!elsewhere) kept = add_once(&r->commits, r->pins.file[i].commit);
    }
    return kept;
}

/* Another revision with that commit; NULL: none. */
static const char *other_revision(const remover *r, const char *commit) {
    for (int i = 0; i < r->names.count; i++) {
        char found[MX_COMMIT_TEXT];
        if (!begins_with(r->names.text[i], "refs/")) continue;
        const char *revision = r->names.text[i] + strlen("refs/");
        mx_refs_read(r->folder, revision, found);
        if (!strcmp(found, commit) && strcmp(revision, r->target->revision) != 0) return revision;
    }
    for (int i = 0; i < r->pins.revisions; i++)
        if (!strcmp(r->pins.revision[i].commit, commit) &&
            strcmp(r->pins.revision[i].revision, r->target->revision) != 0)
            return r->pins.revision[i].revision;
    return NULL;
}

/* The path in the snapshot of commit number *commit; NULL: the name is in none of the target's. */
static const char *path_in_snapshot(const remover *r, const char *folder, const char *name, int *commit) {
    if (!begins_with(name, folder)) return NULL;
    name += strlen(folder);
    const char *slash = strchr(name, '/');
    for (int i = 0; i < r->commits.count && slash; i++) {
        const size_t size = strlen(r->commits.text[i]);
        *commit = i;
        if ((size_t)(slash - name) == size && !memcmp(name, r->commits.text[i], size)) return slash + 1;
    }
    return NULL;
}

static int number_of_commit(const remover *r, const char *commit) {
    for (int i = 0; i < r->commits.count; i++)
        if (!strcmp(r->commits.text[i], commit)) return i;
    return -1;
}

/* Those of the target among what is, was or was begun at one of its commits. */
static mx_status find_files_at(remover *r, int number) {
    mx_strings there = {0}, needed = {0}, wanted = {0};
    mx_hub_layout layout = r->target->layout;
    bool kept = true;
    int commit;
    for (int i = 0; i < r->names.count && kept; i++) {
        const char *path = path_in_snapshot(r, "snapshots/", r->names.text[i], &commit);
        kept = !path || commit != number || mx_strings_add(&there, path);
    }
    for (int i = 0; i < r->pins.files && kept; i++)
        kept = number_of_commit(r, r->pins.file[i].commit) != number || add_once(&there, r->pins.file[i].path);
    mx_status status = kept ? mx_choose_files(r->target, &there, &layout, &needed, &wanted, r->error) : MX_OK;
    if (status == MX_OK && needed.count) r->layout = layout;
    if (status == MX_NOT_FOUND) status = MX_OK;
    for (int i = 0; i < needed.count && kept; i++) kept = add_once(&r->files, needed.text[i]);
    for (int i = 0; i < wanted.count && kept; i++) kept = add_once(&r->files, wanted.text[i]);
    mx_strings_free(&there);
    mx_strings_free(&needed);
    mx_strings_free(&wanted);
    return kept ? status : out_of_memory(r);
}

/* By models.txt, by the index of a copy, and by what there is. */
static mx_status find_files(remover *r, const mx_copy *copy) {
    const mx_known_model *known = r->target->known && r->target->known->file_count ? r->target->known : NULL;
    bool kept = true;
    for (int i = 0; i < copy->files.count && kept; i++) kept = add_once(&r->files, copy->files.text[i]);
    for (int i = 0; i < copy->missing.count && kept; i++) kept = add_once(&r->files, copy->missing.text[i]);
    for (int i = 0; known && i < known->file_count && kept; i++) kept = add_once(&r->files, known->files[i].path);
    mx_status status = kept ? MX_OK : out_of_memory(r);
    for (int i = 0; i < r->commits.count && !known && !status; i++) status = find_files_at(r, i);
    return status;
}

static mx_status look(remover *r, const mx_hub *hub) {
    mx_copy copy = {0};
    mx_status status = mx_pins_read(r->folder, &r->pins, r->error);
    if (!status) status = mx_cache_find(hub, r->target, &copy, r->error);
    r->layout = copy.layout;
    if (!status) status = mx_list_files(r->folder, &r->names, r->error);
    if (!status && !find_commits(r)) status = out_of_memory(r);
    if (!status) status = find_files(r, &copy);
    mx_copy_free(&copy);
    if (status) return status;
    r->goes = calloc((size_t)r->names.count + 1, sizeof *r->goes);
    r->other = calloc((size_t)r->commits.count + 1, sizeof *r->other);
    r->whole = calloc((size_t)r->commits.count + 1, sizeof *r->whole);
    if (!r->goes || !r->other || !r->whole) return out_of_memory(r);
    for (int i = 0; i < r->commits.count; i++) r->other[i] = other_revision(r, r->commits.text[i]);
    return MX_OK;
}

/* ---- what goes --------------------------------------------------------------------------------------------------- */
/* A GGUF file may stand beside others, each of which is a model; another layout is the whole snapshot, which stays
 * while another revision has it. */
static bool stays_for_other(const remover *r, int commit) {
    return r->other[commit] && r->layout != MX_HUB_GGUF;
}

static bool pin_goes(const remover *r, const mx_pinned_file *pin) {
    const int commit = number_of_commit(r, pin->commit);
    return commit >= 0 && !stays_for_other(r, commit) && (r->whole[commit] || mx_strings_have(&r->files, pin->path));
}

/* Marks names in snapshots; false: nothing of the target is here. */
static bool mark_snapshots(remover *r) {
    bool found = false;
    int commit;
    for (int i = 0; i < r->names.count; i++) {
        const char *path = path_in_snapshot(r, "snapshots/", r->names.text[i], &commit);
        if (!path || !mx_strings_have(&r->files, path)) continue;
        found = true;
        if (r->layout == MX_HUB_GGUF)
            r->goes[i] = true;
        else
            r->whole[commit] = !r->other[commit];
    }
    for (int i = 0; i < r->names.count; i++)
        if (path_in_snapshot(r, "snapshots/", r->names.text[i], &commit) && r->whole[commit]) r->goes[i] = true;
    for (int i = 0; i < r->pins.files && !found; i++)
        found = number_of_commit(r, r->pins.file[i].commit) >= 0 && mx_strings_have(&r->files, r->pins.file[i].path);
    return found;
}

/* Is anything of the commit's snapshot left? */
static bool is_left(const remover *r, int number) {
    int commit;
    for (int i = 0; i < r->names.count; i++)
        if (!r->goes[i] && path_in_snapshot(r, "snapshots/", r->names.text[i], &commit) && commit == number)
            return true;
    return false;
}

/* "blobs/X" where a link leads to .../blobs/X. */
static bool add_blob_of(const char *folder, const char *name, mx_strings *blobs) {
    char path[MX_HUB_PATH], target[MX_HUB_PATH];
    if (mx_hub_path(path, NULL, "%s/%s", folder, name)) return false;
    const ssize_t size = readlink(path, target, sizeof target - 1);
    if (size <= 0) return true;
    target[size] = 0;
    const char *end = strrchr(target, '/'), *blob = end;
    while (blob && blob > target && blob[-1] != '/') blob--;
    return !blob || !begins_with(blob, "blobs/") || end - blob != 5 || add_once(blobs, blob);
}

/* `kept`: blobs that what stays leads to, or waits for; `freed`: those of what goes. */
static bool find_blobs(const remover *r, mx_strings *kept, mx_strings *freed) {
    bool memory = true;
    for (int i = 0; i < r->names.count && memory; i++)
        if (begins_with(r->names.text[i], "snapshots/"))
            memory = add_blob_of(r->folder, r->names.text[i], r->goes[i] ? freed : kept);
    for (int i = 0; i < r->pins.files && memory; i++) {
        char name[MX_ETAG_TEXT + 8];
        snprintf(name, sizeof name, "blobs/%s", r->pins.file[i].etag);
        memory = add_once(pin_goes(r, &r->pins.file[i]) ? freed : kept, name);
    }
    return memory;
}

static mx_status mark_blobs(remover *r) {
    mx_strings kept = {0}, freed = {0};
    const bool memory = find_blobs(r, &kept, &freed);
    for (int i = 0; i < r->names.count && memory; i++) {
        char blob[MX_HUB_PATH];
        if (!begins_with(r->names.text[i], "blobs/")) continue;
        mx_set_text(blob, sizeof blob, r->names.text[i]);
        char *ours = strstr(blob, ".mxrun."); /* BLOB.mxrun.incomplete, its .state, what a kill left of that */
        if (ours) *ours = 0;
        r->goes[i] = (ours || mx_strings_have(&freed, blob)) && !mx_strings_have(&kept, blob);
    }
    mx_strings_free(&kept);
    mx_strings_free(&freed);
    return memory ? MX_OK : out_of_memory(r);
}

static void mark_others(remover *r) {
    bool used = false; /* the repository, by what stays */
    for (int i = 0; i < r->names.count; i++) {
        const char *name = r->names.text[i];
        used |= !r->goes[i] && (begins_with(name, "snapshots/") || begins_with(name, "blobs/"));
    }
    for (int i = 0; i < r->names.count; i++) {
        const char *name = r->names.text[i];
        int commit;
        if (begins_with(name, "refs/")) {
            char text[MX_COMMIT_TEXT];
            mx_refs_read(r->folder, name + strlen("refs/"), text);
            commit = number_of_commit(r, text);
            if (commit >= 0 && stays_for_other(r, commit))
                r->goes[i] = !strcmp(name + strlen("refs/"), r->target->revision);
            else
                r->goes[i] = !used || (commit >= 0 && !is_left(r, commit));
        } else if (begins_with(name, ".no_exist/")) { /* huggingface_hub: files that the hub had not */
            r->goes[i] = !used || (path_in_snapshot(r, ".no_exist/", name, &commit) && r->whole[commit]);
        } else if (begins_with(name, ".mxrun-") || begins_with(name, "mxrun.lock.")) {
            r->goes[i] = true; /* of a pull that was killed */
        }
    }
}

static mx_status mark(remover *r, const mx_hub *hub) {
    const char *name = r->target->name;
    if (!mark_snapshots(r)) return mx_fail(r->error, MX_NOT_FOUND, "%s is not in %s", name, hub->folder);
    mx_status status = mark_blobs(r);
    if (status) return status;
    mark_others(r);
    bool stays = r->commits.count > 0, own = mx_pins_commit(&r->pins, r->target->revision) != NULL;
    for (int i = 0; i < r->commits.count; i++) {
        stays &= stays_for_other(r, i);
        if (r->other[i]) mx_set_text(r->sum->other, sizeof r->sum->other, r->other[i]);
    }
    for (int i = 0; i < r->names.count; i++)
        own |= begins_with(r->names.text[i], "refs/") && !strcmp(r->names.text[i] + 5, r->target->revision);
    r->sum->stays = stays;
    if (stays && !own)
        return mx_fail(r->error, MX_INVALID_STATE,
                       "%s: revision %s of %s is that commit and would go, too; remove that one", name, r->sum->other,
                       r->target->repository);
    return MX_OK;
}

/* ---- removing ---------------------------------------------------------------------------------------------------- */
static mx_status remove_file(remover *r, const char *name, bool only_count) {
    char path[MX_HUB_PATH];
    struct stat info;
    mx_status status = mx_hub_path(path, r->error, "%s/%s", r->folder, name);
    if (status || lstat(path, &info) != 0) return status;
    r->sum->files++;
    if (S_ISREG(info.st_mode) && info.st_nlink == 1) r->sum->bytes += (int64_t)info.st_blocks * 512;
    if (only_count) return MX_OK;
    if (unlink(path) != 0) return mx_fail(r->error, MX_IO, "%s: cannot remove: %s", path, strerror(errno));
    /* Folders that are empty now go, too, up to the repository's. */
    const size_t root = strlen(r->folder);
    for (char *slash; (slash = strrchr(path, '/')) && slash > path + root;) {
        *slash = 0;
        if (rmdir(path) != 0) break;
    }
    return MX_OK;
}

/* Refs last: what a kill leaves is still found by its name. */
static mx_status remove_names(remover *r, bool only_count) {
    mx_status status = MX_OK;
    for (int refs = 0; refs < 2; refs++)
        for (int i = 0; i < r->names.count && !status; i++)
            if (r->goes[i] && begins_with(r->names.text[i], "refs/") == refs)
                status = remove_file(r, r->names.text[i], only_count);
    return status;
}

static mx_status forget_pins(remover *r) {
    char path[MX_HUB_PATH];
    if (r->pins.files + r->pins.revisions == 0) return MX_OK;
    for (int i = r->pins.files; i-- > 0;) {
        char commit[MX_COMMIT_TEXT], name[MX_HUB_PATH];
        if (!pin_goes(r, &r->pins.file[i])) continue;
        mx_set_text(commit, sizeof commit, r->pins.file[i].commit);
        mx_set_text(name, sizeof name, r->pins.file[i].path);
        mx_pins_drop_file(&r->pins, commit, name);
    }
    for (int i = 0; i < r->commits.count; i++) {
        bool pinned = false;
        for (int k = 0; k < r->pins.files; k++) pinned |= !strcmp(r->pins.file[k].commit, r->commits.text[i]);
        if (stays_for_other(r, i))
            mx_pins_drop_revision(&r->pins, r->target->revision);
        else if (!is_left(r, i) && !pinned)
            mx_pins_drop_commit(&r->pins, r->commits.text[i]);
    }
    if (r->pins.files || r->pins.revisions) return mx_pins_write(r->folder, &r->pins, r->error);
    const mx_status status = mx_hub_path(path, r->error, "%s/mxrun.lock", r->folder);
    if (status || unlink(path) == 0 || errno == ENOENT) return status;
    return mx_fail(r->error, MX_IO, "%s: cannot remove: %s", path, strerror(errno));
}

/* A repository without mxrun.lock is another tool's, or gone. Whoever waits for the lock sees that its file went. */
static void remove_traces(const remover *r) {
    char path[MX_HUB_PATH];
    if (mx_hub_path(path, NULL, "%s/mxrun.lock", r->folder) || access(path, F_OK) == 0) return;
    if (!mx_hub_path(path, NULL, "%s/mxrun.busy", r->folder)) unlink(path);
    rmdir(r->folder);
}

static mx_status run(const mx_hub *hub, const mx_target *target, const char *folder, bool only_count, mx_removal *out,
                     mx_error *error) {
    remover r = {.folder = folder, .target = target, .sum = out, .error = error};
    *out = (mx_removal){0};
    mx_status status = look(&r, hub);
    if (!status) status = mark(&r, hub);
    if (!status) status = remove_names(&r, only_count);
    if (!status && !only_count) status = forget_pins(&r);
    if (!status && !only_count) remove_traces(&r);
    free(r.goes);
    free(r.other);
    free(r.whole);
    mx_strings_free(&r.names);
    mx_strings_free(&r.commits);
    mx_strings_free(&r.files);
    mx_pins_free(&r.pins);
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
    /* Taking the lock makes a file, so looking goes without: what is not there must leave no trace. */
    status = run(hub, target, folder, true, out, error);
    if (status || only_count) return status;
    mx_repository_lock lock = {-1};
    status = mx_repository_lock_take(folder, false, NULL, NULL, NULL, &lock, error);
    if (status) return status;
    status = run(hub, target, folder, false, out, error);
    mx_repository_lock_release(&lock);
    return status;
}
