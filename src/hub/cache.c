#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/files.h"
#include "base/json.h"
#include "hub/private.h"

/* The cache is laid out as huggingface_hub does it (docs "Understand caching", file_download.py), so that every tool
 * finds what another one fetched:
 *
 *     HUB/models--ORG--NAME/refs/main                       the commit, as text
 *                           blobs/ETAG                      contents; the etag is their SHA-256, or git's SHA-1
 *                           snapshots/COMMIT/a/config.json  -> ../../../blobs/ETAG
 *                           mxrun.lock, mxrun.busy          ours
 */

/* ---- paths ------------------------------------------------------------------------------------------------------- */
mx_status mx_hub_path(char out[static MX_HUB_PATH], mx_error *error, const char *format, ...) {
    va_list list;
    va_start(list, format);
    const int size = vsnprintf(out, MX_HUB_PATH, format, list);
    va_end(list);
    if (size >= 0 && size < MX_HUB_PATH) return MX_OK;
    return mx_fail(error, MX_INVALID_ARGUMENT, "%.200s...: the path is longer than %d bytes", out, MX_HUB_PATH - 1);
}

mx_status mx_repository_folder(const mx_hub *hub, const char *repository, char out[static MX_HUB_PATH],
                               mx_error *error) {
    const char *slash = strchr(repository, '/');
    if (!slash) return mx_fail(error, MX_INVALID_ARGUMENT, "%s: no ORG/NAME", repository);
    return mx_hub_path(out, error, "%s/models--%.*s--%s", hub->folder, (int)(slash - repository), repository,
                       slash + 1);
}

enum { DEEPEST = 8 };

/* `flags`: more of open()'s. */
static mx_status list_below(int parent, const char *name, const char *prefix, int depth, int flags, mx_strings *out,
                            mx_error *error) {
    const int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | flags);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        const int problem = errno;
        if (fd >= 0) close(fd);
        if (problem == ENOENT || problem == ENOTDIR) return MX_OK;
        return mx_fail(error, MX_IO, "%s: cannot list the folder: %s", depth ? prefix : name, strerror(problem));
    }
    mx_status status = MX_OK;
    for (struct dirent *entry; !status && (entry = readdir(dir));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        char path[MX_HUB_PATH];
        status = mx_hub_path(path, error, "%s%s%s", prefix, *prefix ? "/" : "", entry->d_name);
        struct stat info;
        if (status || fstatat(fd, entry->d_name, &info, AT_SYMLINK_NOFOLLOW) != 0) continue;
        if (S_ISDIR(info.st_mode))
            status = depth < DEEPEST ? list_below(fd, entry->d_name, path, depth + 1, O_NOFOLLOW, out, error) : MX_OK;
        else if (!mx_strings_add(out, path))
            status = mx_fail(error, MX_NO_MEMORY, "out of memory");
    }
    closedir(dir);
    return status;
}

static int compare(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static mx_status list_sorted(const char *folder, int flags, mx_strings *out, mx_error *error) {
    *out = (mx_strings){0};
    mx_status status = list_below(AT_FDCWD, folder, "", 0, flags, out, error);
    if (out->count) qsort(out->text, (size_t)out->count, sizeof *out->text, compare);
    return status;
}

mx_status mx_list_files(const char *folder, mx_strings *out, mx_error *error) {
    return list_sorted(folder, 0, out, error);
}

mx_status mx_clear_folder(const char *folder, mx_error *error) {
    mx_strings names = {0};
    struct stat info;
    if (lstat(folder, &info) != 0) return MX_OK;
    if (!S_ISDIR(info.st_mode)) {
        if (unlink(folder) == 0) return MX_OK;
        return mx_fail(error, MX_IO, "%s: cannot remove: %s", folder, strerror(errno));
    }
    mx_status status = list_sorted(folder, O_NOFOLLOW, &names, error);
    for (int i = 0; i < names.count && !status; i++) {
        char path[MX_HUB_PATH];
        status = mx_hub_path(path, error, "%s/%s", folder, names.text[i]);
        if (!status) unlink(path);
        for (char *slash; !status && (slash = strrchr(path, '/')) && slash > path + strlen(folder);) {
            *slash = 0;
            if (rmdir(path) != 0) break;
        }
    }
    mx_strings_free(&names);
    rmdir(folder);
    return status;
}

/* ---- one process at a time --------------------------------------------------------------------------------------- */
enum { MOST_GONE = 100 }; /* times in which others remove the folder */

/* Is it still the file of that name? Another process may have removed the repository while this one waited. */
static bool is_at(int fd, const char *path) {
    struct stat a, b;
    return fstat(fd, &a) == 0 && stat(path, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

mx_status mx_repository_lock_take(const char *folder, bool wait, void (*waiting)(void *user), void *user,
                                  const volatile sig_atomic_t *stop, mx_repository_lock *out, mx_error *error) {
    char path[MX_HUB_PATH];
    bool told = false;
    out->fd = -1;
    mx_status status = mx_hub_path(path, error, "%s/mxrun.busy", folder);
    for (int gone = 0; !status;) {
        const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
        if (fd < 0 && errno == ENOENT && wait && gone++ < MOST_GONE) {
            mx_make_folders(path, 0777);
            continue;
        }
        if (fd < 0) return mx_fail(error, MX_IO, "%s: cannot open: %s", path, strerror(errno));
        if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
            if (is_at(fd, path)) {
                out->fd = fd;
                return MX_OK;
            }
            close(fd); /* it was removed: once more, with a new one */
            continue;
        }
        const int problem = errno;
        close(fd);
        if (problem != EWOULDBLOCK && problem != EINTR)
            return mx_fail(error, MX_IO,
                           "%s: cannot lock: %s; set HF_HUB_CACHE to a folder on a file system with locks", path,
                           strerror(problem));
        if (!wait) return mx_fail(error, MX_INVALID_STATE, "%s: another mxrun is pulling into it", folder);
        if (!told && waiting) waiting(user);
        told = true;
        if (stop && *stop) return mx_fail(error, MX_CANCELLED, "interrupted");
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    }
    return status;
}

void mx_repository_lock_release(mx_repository_lock *lock) {
    if (lock->fd >= 0) close(lock->fd);
    lock->fd = -1;
}

/* ---- refs and snapshots ------------------------------------------------------------------------------------------ */
void mx_refs_read(const char *folder, const char *revision, char out[static MX_COMMIT_TEXT]) {
    char path[MX_HUB_PATH];
    mx_bytes text = {0};
    out[0] = 0;
    if (!mx_hub_path(path, NULL, "%s/refs/%s", folder, revision) && access(path, R_OK) == 0 &&
        !mx_read_regular_file(path, 1000, &text, NULL) && text.data) {
        text.data[strcspn(text.data, " \t\r\n")] = 0;
        if (mx_is_commit(text.data)) mx_set_text(out, MX_COMMIT_TEXT, text.data);
    }
    mx_bytes_free(&text);
}

mx_status mx_refs_write(const char *folder, const char *revision, const char *commit, mx_error *error) {
    char path[MX_HUB_PATH], old[MX_COMMIT_TEXT];
    if (mx_is_commit(revision)) return MX_OK; /* huggingface_hub has no refs for them either */
    mx_refs_read(folder, revision, old);
    if (!strcmp(old, commit)) return MX_OK;
    mx_status status = mx_hub_path(path, error, "%s/refs/%s", folder, revision);
    if (status) return status;
    mx_make_folders(path, 0777);
    if (!mx_replace_file(path, commit, strlen(commit), true) || chmod(path, 0644) != 0)
        return mx_fail(error, MX_IO, "%s: cannot write: %s", path, strerror(errno));
    return MX_OK;
}

bool mx_has_links(const char *folder) {
    char path[MX_HUB_PATH];
    if (mx_hub_path(path, NULL, "%s/.mxrun-probe", folder)) return false;
    unlink(path); /* of a process that was killed */
    const bool has = symlink("blobs", path) == 0 || errno == EEXIST;
    unlink(path);
    return has;
}

/* What is new moves, as huggingface_hub does it where there are no links: the content once, not twice. */
static mx_status move_blob(const char *folder, const char *blob, const char *path, mx_error *error) {
    char from[MX_HUB_PATH];
    mx_status status = mx_hub_path(from, error, "%s/blobs/%s", folder, blob);
    if (status || rename(from, path) == 0) return status;
    return mx_fail(error, MX_IO, "%s: cannot move it to %s: %s", from, path, strerror(errno));
}

static bool copy_bytes(int from, int to) {
    enum { AT_ONCE = 1 << 20 };
    char *buffer = malloc(AT_ONCE);
    ssize_t size = -1;
    while (buffer && (size = read(from, buffer, AT_ONCE)) != 0) {
        if (size < 0 && errno == EINTR) continue;
        ssize_t done = 0, n = 0;
        while (done < size && (n = write(to, buffer + done, (size_t)(size - done))) > 0) done += n;
        if (done < size || size < 0) {
            size = -1;
            break;
        }
    }
    free(buffer);
    return size == 0;
}

/* A second name of one content: a hard link, or a copy where there are none. */
static mx_status copy_blob(const char *folder, const char *blob, const char *beside, const char *path,
                           mx_error *error) {
    char from[MX_HUB_PATH];
    mx_status status = mx_hub_path(from, error, "%s/blobs/%s", folder, blob);
    if (status) return status;
    bool made = link(from, beside) == 0;
    if (!made) {
        const int in = open(from, O_RDONLY | O_CLOEXEC);
        const int out = in < 0 ? -1 : open(beside, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        made = out >= 0 && copy_bytes(in, out);
        int problem = errno;
        if (out >= 0 && close(out) != 0 && made) {
            made = false;
            problem = errno;
        }
        if (in >= 0) close(in);
        errno = problem;
    }
    if (made && rename(beside, path) == 0) return MX_OK;
    const int problem = errno;
    unlink(beside);
    return mx_fail(error, MX_IO, "%s: cannot copy it to %s: %s", from, path, strerror(problem));
}

/* Folders of a snapshot that are links would let files appear outside the cache. `path`: SNAPSHOT/NAME; the same again
 * afterwards. */
static mx_status check_folders(char *path, size_t snapshot, mx_error *error) {
    mx_status status = MX_OK;
    for (char *slash = path + snapshot; slash && !status; slash = strchr(slash + 1, '/')) {
        struct stat info;
        *slash = 0;
        if (lstat(path, &info) == 0 && !S_ISDIR(info.st_mode))
            status =
                mx_fail(error, MX_IO, "%s: this is a link or a file where a snapshot has a folder; remove it", path);
        *slash = '/';
    }
    return status;
}

mx_status mx_publish_file(const char *folder, const char *snapshot, const char *name, const char *blob,
                          mx_publish_mode mode, mx_error *error) {
    char path[MX_HUB_PATH], beside[MX_HUB_PATH], up[MX_FILE_NAME * 3] = "../../", target[MX_HUB_PATH];
    mx_status status = mx_hub_path(path, error, "%s/%s", snapshot, name);
    if (!status) status = mx_hub_path(beside, error, "%s/.mxrun-link", folder);
    for (const char *slash = name; (slash = strchr(slash, '/')); slash++) strcat(up, "../");
    if (!status) status = mx_hub_path(target, error, "%sblobs/%s", up, blob);
    if (!status) status = check_folders(path, strlen(snapshot), error);
    if (status) return status;
    mx_make_folders(path, 0777);
    unlink(beside);
    if (mode == MX_PUBLISH_MOVE) return move_blob(folder, blob, path, error);
    if (mode == MX_PUBLISH_COPY) return copy_blob(folder, blob, beside, path, error);
    if (symlink(target, beside) == 0 && rename(beside, path) == 0) return MX_OK;
    const int problem = errno;
    unlink(beside);
    return mx_fail(error, MX_IO, "%s: cannot make the link to %s: %s", path, target, strerror(problem));
}

/* ---- what a snapshot holds --------------------------------------------------------------------------------------- */
static mx_status out_of_memory(mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "out of memory");
}

/* The size that a file should have; -1: nobody says. */
static int64_t expected_size(const mx_target *target, const mx_pins *pins, const char *commit, const char *path) {
    for (int i = 0; target->known && i < target->known->file_count; i++)
        if (!strcmp(target->known->files[i].path, path) && target->known->files[i].size >= 0)
            return target->known->files[i].size;
    const mx_pinned_file *pinned = commit ? mx_pins_file(pins, commit, path) : NULL;
    return pinned ? pinned->size : -1;
}

static mx_status look_at_file(const mx_target *target, const mx_pins *pins, const char *commit, const char *snapshot,
                              const char *path, bool needed, mx_copy *out, mx_error *error) {
    if (mx_strings_have(&out->files, path) || mx_strings_have(&out->missing, path)) return MX_OK;
    char full[MX_HUB_PATH];
    struct stat info;
    mx_status status = mx_hub_path(full, error, "%s/%s", snapshot, path);
    if (status) return status;
    const int64_t size = expected_size(target, pins, commit, path);
    const bool there = stat(full, &info) == 0 && S_ISREG(info.st_mode) && (size < 0 || info.st_size == size);
    if (!there && !needed) return MX_OK;
    if (!mx_strings_add(there ? &out->files : &out->missing, path)) return out_of_memory(error);
    if (there) out->bytes += info.st_size;
    return MX_OK;
}

/* The shards that an index names. A damaged one is told when the model is read. */
static mx_status read_index(const char *snapshot, const char *name, mx_strings *needed, mx_error *error) {
    char path[MX_HUB_PATH];
    mx_status status = mx_hub_path(path, error, "%s/%s", snapshot, name);
    if (status || access(path, R_OK) != 0) return status;
    mx_bytes text = {0};
    mx_json_document *document = NULL;
    status = mx_read_regular_file(path, (size_t)64 << 20, &text, error);
    if (!status) status = mx_json_parse(path, text.data ? text.data : "", text.size, &document, error);
    const mx_json *map = status ? NULL : mx_json_get(mx_json_root(document), "weight_map");
    for (const mx_json *v = map && map->type == MX_JSON_OBJECT ? map->child : NULL; v && !status; v = v->next) {
        if (v->type != MX_JSON_STRING || strlen(v->text) != v->size || !mx_is_file_name(v->text))
            status = mx_fail(error, MX_INVALID_FILE, "%s: weight_map names a file that cannot be one", path);
        else if (needed->count >= MX_MOST_FILES)
            status = mx_fail(error, MX_INVALID_FILE, "%s: weight_map names more than %d files", path, MX_MOST_FILES);
        else if (!mx_strings_have(needed, v->text) && !mx_strings_add(needed, v->text))
            status = out_of_memory(error);
    }
    mx_json_free(document);
    mx_bytes_free(&text);
    return status;
}

/* The names that a target needs there, whether they are there or not. */
static mx_status needed_files(const mx_target *target, const char *snapshot, const mx_strings *there, mx_copy *out,
                              mx_strings *needed, mx_strings *wanted, mx_error *error) {
    const mx_known_model *known = target->known && target->known->file_count ? target->known : NULL;
    mx_status status = MX_OK;
    out->layout = target->layout ? target->layout : MX_HUB_HF;
    if (!known) status = mx_choose_files(target, there, &out->layout, needed, wanted, error);
    if (status == MX_NOT_FOUND) { /* nothing of a layout: what the name says is missing */
        if (target->file[0] && !mx_strings_add(needed, target->file)) return out_of_memory(error);
        status = MX_OK;
    }
    for (int i = 0; known && i < known->file_count && !status; i++)
        if (!mx_strings_add(known->files[i].optional ? wanted : needed, known->files[i].path))
            status = out_of_memory(error);
    if (!status && out->layout == MX_HUB_HF)
        status = read_index(snapshot, "model.safetensors.index.json", needed, error);
    return status;
}

/* What an engine opens. */
static mx_status path_of(const mx_strings *needed, mx_copy *out, mx_error *error) {
    const char *tail = out->layout == MX_HUB_ORIGINAL ? "original" : "";
    for (int i = 0; i < needed->count && out->layout == MX_HUB_GGUF; i++) {
        const size_t size = strlen(needed->text[i]);
        if (size > 5 && !strcmp(needed->text[i] + size - 5, ".gguf")) {
            tail = needed->text[i];
            break;
        }
    }
    return mx_hub_path(out->path, error, "%s%s%s", out->snapshot, *tail ? "/" : "", tail);
}

mx_status mx_look_at(const mx_target *target, const mx_pins *pins, const char *commit, const char *snapshot,
                     mx_copy *out, mx_error *error) {
    mx_strings there = {0}, needed = {0}, wanted = {0};
    struct stat info;
    *out = (mx_copy){.found = stat(snapshot, &info) == 0 && S_ISDIR(info.st_mode)};
    mx_set_text(out->commit, sizeof out->commit, commit ? commit : "");
    mx_status status = mx_hub_path(out->snapshot, error, "%s", snapshot);
    if (!status) status = mx_list_files(snapshot, &there, error);
    if (!status) status = needed_files(target, snapshot, &there, out, &needed, &wanted, error);
    for (int i = 0; i < needed.count && !status; i++)
        status = look_at_file(target, pins, commit, snapshot, needed.text[i], true, out, error);
    for (int i = 0; i < wanted.count && !status; i++)
        status = look_at_file(target, pins, commit, snapshot, wanted.text[i], false, out, error);
    if (!status) status = path_of(&needed, out, error);
    out->complete = !status && out->found && needed.count && !out->missing.count;
    for (int i = 0; i < out->files.count && commit && !out->ours; i++)
        out->ours = mx_pins_file(pins, commit, out->files.text[i]) != NULL;
    mx_strings_free(&there);
    mx_strings_free(&needed);
    mx_strings_free(&wanted);
    return status;
}

mx_status mx_look_at_folder(const mx_target *target, const char *folder, mx_copy *out, mx_error *error) {
    const mx_pins none = {0};
    return mx_look_at(target, &none, NULL, folder, out, error);
}

/* What was pinned goes before what another tool made of the ref since then, and what is complete before what is not. */
mx_status mx_cache_find(const mx_hub *hub, const mx_target *target, mx_copy *out, mx_error *error) {
    char folder[MX_HUB_PATH], commits[2][MX_COMMIT_TEXT] = {"", ""};
    mx_pins pins = {0};
    *out = (mx_copy){0};
    mx_status status = mx_repository_folder(hub, target->repository, folder, error);
    if (!status) status = mx_pins_read(folder, &pins, error);
    if (!status) {
        const char *pinned = mx_pins_commit(&pins, target->revision);
        mx_set_text(commits[0], sizeof commits[0], pinned ? pinned : "");
        if (mx_is_commit(target->revision))
            mx_set_text(commits[1], sizeof commits[1], target->revision);
        else
            mx_refs_read(folder, target->revision, commits[1]);
    }
    for (int i = 0; i < 2 && !status && !out->complete; i++) {
        char snapshot[MX_HUB_PATH];
        mx_copy copy = {0};
        if (!commits[i][0] || (i == 1 && !strcmp(commits[0], commits[1]))) continue;
        status = mx_hub_path(snapshot, error, "%s/snapshots/%s", folder, commits[i]);
        if (!status) status = mx_look_at(target, &pins, commits[i], snapshot, &copy, error);
        if (status || (out->commit[0] && !copy.complete && (out->found || !copy.found))) {
            mx_copy_free(&copy);
            continue;
        }
        mx_copy_free(out);
        *out = copy;
    }
    mx_pins_free(&pins);
    return status;
}

void mx_copy_free(mx_copy *copy) {
    mx_strings_free(&copy->files);
    mx_strings_free(&copy->missing);
}

void mx_copy_missing(const mx_copy *copy, char out[static 300]) {
    out[0] = 0;
    int told = 0;
    for (; told < copy->missing.count && told < 3; told++) {
        const size_t used = strlen(out);
        snprintf(out + used, 300 - used, "%s%.80s", told ? ", " : "", copy->missing.text[told]);
    }
    const size_t used = strlen(out);
    if (told < copy->missing.count) snprintf(out + used, 300 - used, " and %d more", copy->missing.count - told);
}
