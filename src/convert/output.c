/* Where a conversion goes: a file or a folder that grows under another name beside its place. */
#include "convert/output.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"
#include "convert/record.h"
#include "model/show.h"

enum { SPARE = 1 << 20, FILE_PATH = MX_PATH + 300 };

static mx_status cannot(const mx_output *o, const char *path, const char *what, int problem) {
    return mx_fail(o->error, MX_IO, "%s: cannot %s: %s", path, what, strerror(problem));
}

/* ---- description --------------------------------------------------------------------------------------------------
 */

int mx_output_add_file(mx_output *o, const char *name) {
    mx_output_file *more = realloc(o->file, (size_t)(o->files + 1) * sizeof *more);
    if (!more) return -1;
    o->file = more;
    char *own = strdup(name);
    if (!own) return -1;
    o->file[o->files] = (mx_output_file){.name = own, .fd = -1};
    return o->files++;
}

mx_made *mx_output_place(mx_output *o, const mx_made *made, uint64_t at) {
    if (o->mades == o->capacity) {
        const int capacity = o->capacity ? 2 * o->capacity : 512;
        mx_made *more = realloc(o->made, (size_t)capacity * sizeof *more);
        if (!more) return NULL;
        o->made = more;
        o->capacity = capacity;
    }
    mx_made *m = &o->made[o->mades++];
    mx_output_file *f = &o->file[made->file];
    *m = *made;
    m->at = at;
    if (!m->stride) m->stride = m->slice_bytes;
    const uint64_t end = at + (m->slices ? (uint64_t)(m->slices - 1) * m->stride + m->slice_bytes : 0);
    if (f->size < end) f->size = end;
    return m;
}

mx_made *mx_output_add(mx_output *o, const mx_made *made, uint64_t align) {
    const mx_output_file *f = &o->file[made->file];
    const uint64_t size = f->size > f->head.size ? f->size : f->head.size;
    return mx_output_place(o, made, (size + align - 1) / align * align);
}

bool mx_output_add_text(mx_output *o, const char *name, const void *data, size_t size) {
    const int file = mx_output_add_file(o, name);
    return file >= 0 && (!size || mx_bytes_add(&o->file[file].head, data, size));
}

static uint64_t size_of(const mx_output_file *f) {
    return f->size > f->head.size ? f->size : f->head.size;
}

uint64_t mx_output_size(const mx_output *o) {
    uint64_t sum = 0;
    for (int i = 0; i < o->files; i++) sum += size_of(&o->file[i]);
    return sum;
}

/* ---- the place ----------------------------------------------------------------------------------------------------
 */

static bool same(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static void parent_of(const char *path, char out[MX_PATH]) {
    snprintf(out, MX_PATH, "%s", path);
    char *slash = strrchr(out, '/');
    if (slash)
        slash[slash == out] = 0;
    else
        snprintf(out, MX_PATH, ".");
}

/* Is `input` at `path`, or a file of the folder at `path`? */
static bool holds_input(const char *path, const mx_location *input) {
    char parent[MX_PATH];
    parent_of(input->path, parent);
    return same(path, input->path) || same(path, parent);
}

/* Would a file at `path` be in `folder`, or in a folder of it? Of `path` the last part and more may not be there. */
static bool lies_in(const char *path, const char *folder) {
    char above[MX_PATH], parent[MX_PATH];
    char *real = NULL, *real_folder = realpath(folder, NULL);
    for (snprintf(above, sizeof above, "%s", path); !real; snprintf(above, sizeof above, "%s", parent)) {
        parent_of(above, parent);
        real = realpath(parent, NULL);
        if (!strcmp(parent, ".") || !strcmp(parent, "/")) break;
    }
    const size_t n = real_folder ? strlen(real_folder) : 0;
    const bool is = real && n && !strncmp(real, real_folder, n) && (!real[n] || real[n] == '/' || n == 1);
    free(real);
    free(real_folder);
    return is;
}

/* Is `path`, by whatever name, a file that `input` is made of, or one beside it that is read with it? */
static bool is_part_of(const char *path, const mx_location *input) {
    char folder[MX_PATH], part[FILE_PATH];
    struct stat info;
    const bool is_folder = stat(input->path, &info) == 0 && S_ISDIR(info.st_mode);
    if (is_folder)
        snprintf(folder, sizeof folder, "%s", input->path);
    else
        parent_of(input->path, folder);
    bool is = same(path, input->path);
    DIR *dir = opendir(folder);
    for (struct dirent *e; dir && !is && (e = readdir(dir));) {
        if (!is_folder && strcmp(e->d_name, MX_RECORD_FILE) && !mx_record_carries(e->d_name)) continue;
        snprintf(part, sizeof part, "%s/%s", folder, e->d_name);
        is = same(path, part);
    }
    if (dir) closedir(dir);
    return is;
}

/* Is it the name of a file that a folder of some layout has? Others are never removed. */
static bool is_of_layout(const char *name) {
    static const char *const names[] = {"dtypes.json", "model.bin", MX_RECORD_FILE};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i])) return true;
    return mx_ends_with(name, ".safetensors") || mx_record_carries(name);
}

/* What a folder holds. */
typedef struct contents {
    int entries;
    char folder[256], other[256]; /* a folder in it, and a file that no layout has; or "" */
} contents;

/* Walks a folder. `remove`: takes away every file that a layout has. */
static bool look_into(const char *folder, bool remove, contents *c) {
    DIR *dir = opendir(folder);
    *c = (contents){0};
    if (!dir) return false;
    for (struct dirent *e; (e = readdir(dir));) {
        struct stat info;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        c->entries++;
        if (fstatat(dirfd(dir), e->d_name, &info, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(info.st_mode))
            snprintf(c->folder, sizeof c->folder, "%s", e->d_name);
        else if (!is_of_layout(e->d_name))
            snprintf(c->other, sizeof c->other, "%s", e->d_name);
        else if (remove)
            unlinkat(dirfd(dir), e->d_name, 0);
    }
    closedir(dir);
    return true;
}

/* Removes a folder of a model. What no layout has stays, and with it the folder: false. */
static bool remove_folder(const char *folder) {
    contents c;
    look_into(folder, true, &c);
    return rmdir(folder) == 0;
}

static mx_status check_contents(const mx_output *o, const char *folder) {
    contents c;
    if (!look_into(folder, false, &c)) return cannot(o, folder, "be read", errno);
    if (!*c.folder && !*c.other) return MX_OK;
    const char *name = *c.folder ? c.folder : c.other;
    return mx_fail(o->error, MX_INVALID_ARGUMENT,
                   "%s: holds the %s %s, which is no part of a model and would not be removed: take it away yourself, "
                   "or choose another name",
                   folder, *c.folder ? "folder" : "file",
                   mx_is_one_line(name, strlen(name)) ? name : "whose name has control characters");
}

/* What is at `path` and must not be lost. */
static mx_status check_there(const mx_output *o, const struct stat *info, const mx_location *input) {
    contents c;
    if (S_ISLNK(info->st_mode) || (!S_ISREG(info->st_mode) && !S_ISDIR(info->st_mode)))
        return mx_fail(o->error, MX_INVALID_ARGUMENT,
                       "%s: is a %s, and only files and folders are replaced: choose another name", o->path,
                       S_ISLNK(info->st_mode)    ? "symbolic link"
                       : S_ISFIFO(info->st_mode) ? "named pipe"
                       : S_ISSOCK(info->st_mode) ? "socket"
                                                 : "device");
    if (!o->folder && S_ISDIR(info->st_mode))
        return mx_fail(o->error, MX_INVALID_ARGUMENT, "%s: is a folder, expected the name of a file to be written",
                       o->path);
    if (o->folder && S_ISDIR(info->st_mode) && look_into(o->path, false, &c) && !c.entries) return MX_OK;
    if (!o->force) return mx_fail(o->error, MX_INVALID_ARGUMENT, "%s: is there already; --force replaces it", o->path);
    if (o->folder && !S_ISDIR(info->st_mode))
        return mx_fail(o->error, MX_INVALID_ARGUMENT, "%s: is a file, expected a folder to be written", o->path);
    if (o->folder ? holds_input(o->path, input) : is_part_of(o->path, input))
        return mx_fail(o->error, MX_INVALID_ARGUMENT, "%s: %s what is to be converted: choose another name", o->path,
                       o->folder ? "holds" : "is a part of");
    return o->folder ? check_contents(o, o->path) : MX_OK;
}

/* What grows under another name is emptied first. */
static mx_status check_grows(const mx_output *o, const mx_location *input) {
    if (o->folder ? !holds_input(o->grows, input) && !lies_in(input->path, o->grows) : !is_part_of(o->grows, input))
        return MX_OK;
    return mx_fail(o->error, MX_INVALID_ARGUMENT,
                   "%s: %s what is to be converted, and would be written first: choose another name than %s", o->grows,
                   o->folder ? "holds" : "is a part of", o->path);
}

static mx_status check_place(const mx_output *o, const mx_location *input) {
    struct stat info;
    mx_status status = lstat(o->path, &info) == 0 ? check_there(o, &info, input) : MX_OK;
    if (!status && lstat(o->grows, &info) == 0) status = check_grows(o, input);
    if (status || stat(input->path, &info) != 0 || !S_ISDIR(info.st_mode) || !lies_in(o->path, input->path))
        return status;
    return mx_fail(o->error, MX_INVALID_ARGUMENT,
                   "%s: is inside the folder %s, which is to be converted: choose a name outside of it", o->path,
                   input->path);
}

mx_status mx_output_begin(mx_output *o, const char *path, bool folder, bool force, const mx_location *input,
                          mx_error *error) {
    *o = (mx_output){.folder = folder, .force = force, .lock = -1, .input = input, .error = error};
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    const char *slash = memrchr(path, '/', n), *name = slash ? slash + 1 : path;
    const size_t length = n - (size_t)(name - path);
    if (n == 1 && *path == '/') name = "..";
    if ((length == 1 && *name == '.') || (length == 2 && !strncmp(name, "..", 2)))
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s: expected the name of what is to be made", path);
    if (!n || n >= MX_PATH - 16)
        return mx_fail(error, MX_INVALID_ARGUMENT, "the path of the output is %s", n ? "too long" : "empty");
    snprintf(o->path, sizeof o->path, "%.*s", (int)n, path);
    snprintf(o->grows, sizeof o->grows, "%s.incomplete", o->path);
    return check_place(o, input);
}

/* Opens and locks what grows. What an earlier run left there is taken over. */
static mx_status take_place(mx_output *o) {
    struct stat here, there;
    mx_make_folders(o->grows, 0777);
    mx_status again = check_place(o, o->input); /* with the folders there, ".." in it may lead elsewhere */
    if (again) return again;
    if (o->folder && mkdir(o->grows, 0777) != 0 && errno != EEXIST) return cannot(o, o->grows, "be made", errno);
    o->lock = o->folder ? open(o->grows, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
                        : open(o->grows, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (o->lock < 0) return cannot(o, o->grows, "be opened", errno);
    if (flock(o->lock, LOCK_EX | LOCK_NB) != 0 || fstat(o->lock, &here) != 0 || stat(o->grows, &there) != 0 ||
        here.st_ino != there.st_ino || here.st_dev != there.st_dev)
        return mx_fail(o->error, MX_IO, "%s: another process is writing it", o->grows);
    if (!o->folder && !S_ISREG(here.st_mode))
        return mx_fail(o->error, MX_IO, "%s: is in the way, and no file: remove it", o->grows);
    mx_status status = o->folder ? check_contents(o, o->grows) : MX_OK;
    contents c;
    if (!status && o->folder && !look_into(o->grows, true, &c)) status = cannot(o, o->grows, "be emptied", errno);
    o->made_place = !status;
    return status;
}

static mx_status check_room(const mx_output *o) {
    struct statvfs disk;
    const uint64_t needed = mx_output_size(o) + SPARE;
    if (fstatvfs(o->lock, &disk) != 0) return MX_OK; /* writing will show it */
    const uint64_t room = (uint64_t)disk.f_bavail * disk.f_frsize;
    if (needed <= room) return MX_OK;
    return mx_fail(o->error, MX_IO, "%s: takes %.2f GB, but the disk has room for %.2f GB", o->path,
                   (double)needed / 1e9, (double)room / 1e9);
}

static void path_of(const mx_output *o, int file, char out[FILE_PATH]) {
    snprintf(out, FILE_PATH, o->folder ? "%s/%s" : "%s", o->grows, o->file[file].name);
}

static mx_status write_head(mx_output *o, int file) {
    const mx_output_file *f = &o->file[file];
    char path[FILE_PATH];
    path_of(o, file, path);
    for (size_t at = 0; at < f->head.size;) {
        const ssize_t n = pwrite(f->fd, f->head.data + at, f->head.size - at, (off_t)at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return cannot(o, path, "be written", n < 0 ? errno : EIO);
        at += (size_t)n;
    }
    return MX_OK;
}

static mx_status create_file(mx_output *o, int file) {
    mx_output_file *f = &o->file[file];
    char path[FILE_PATH];
    path_of(o, file, path);
    f->fd = o->folder ? openat(o->lock, f->name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666)
                      : fcntl(o->lock, F_DUPFD_CLOEXEC, 0);
    if (f->fd < 0) return cannot(o, path, "be made", errno);
    const off_t size = (off_t)size_of(f);
    if (!o->folder && ftruncate(f->fd, 0) != 0) return cannot(o, path, "be written", errno);
    /* Blocks that are there cannot run out later. Not every file system has this. */
    if (size && fallocate(f->fd, 0, 0, size) != 0 && errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL)
        return cannot(o, path, "be given its size", errno);
    if (ftruncate(f->fd, size) != 0) return cannot(o, path, "be given its size", errno);
    return write_head(o, file);
}

mx_status mx_output_create(mx_output *o) {
    mx_status status = take_place(o);
    if (!status) status = check_room(o);
    for (int i = 0; i < o->files && !status; i++) status = create_file(o, i);
    return status;
}

mx_status mx_output_rewrite(mx_output *o, int file) {
    char path[FILE_PATH];
    path_of(o, file, path);
    o->file[file].size = 0;
    if (ftruncate(o->file[file].fd, (off_t)o->file[file].head.size) != 0)
        return cannot(o, path, "be given its size", errno);
    return write_head(o, file);
}

/* ---- the name -----------------------------------------------------------------------------------------------------
 */

static mx_status sync_files(mx_output *o) {
    char path[FILE_PATH];
    for (int i = 0; i < o->files; i++) {
        path_of(o, i, path);
        const int failed = fsync(o->file[i].fd) != 0 ? errno : 0;
        const int closed = close(o->file[i].fd) != 0 ? errno : 0;
        o->file[i].fd = -1;
        if (failed || closed) return cannot(o, path, "be written", failed ? failed : closed);
    }
    if (o->folder) fsync(o->lock);
    return MX_OK;
}

static void sync_parent(const char *path) {
    char parent[MX_PATH];
    parent_of(path, parent);
    const int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

/* The folder that was there goes, once the new one has its name: in one step where the file system can. */
static mx_status replace_folder(const mx_output *o) {
    char old[MX_PATH + 16];
    struct stat info;
    if (rename(o->grows, o->path) == 0) return MX_OK;
    if (!o->force || (errno != ENOTEMPTY && errno != EEXIST)) return cannot(o, o->path, "be given its name", errno);
    snprintf(old, sizeof old, "%s", o->grows);
    if (renameat2(AT_FDCWD, o->grows, AT_FDCWD, o->path, RENAME_EXCHANGE) != 0) {
        snprintf(old, sizeof old, "%s.replaced", o->path);
        if (lstat(old, &info) == 0)
            return mx_fail(o->error, MX_IO, "%s: is in the way of replacing %s: move or remove it", old, o->path);
        if (rename(o->path, old) != 0) return cannot(o, o->path, "be replaced", errno);
        if (rename(o->grows, o->path) != 0) {
            const int problem = errno;
            if (rename(old, o->path) == 0) return cannot(o, o->path, "be given its name", problem);
            return mx_fail(o->error, MX_IO, "%s: cannot be given its name: %s; the model that was there is now %s",
                           o->path, strerror(problem), old);
        }
    }
    if (!remove_folder(old))
        mx_log(MX_LOG_WARNING, "%s: what it replaces could not all be removed: the rest is in %s", o->path, old);
    return MX_OK;
}

mx_status mx_output_publish(mx_output *o) {
    mx_status status = sync_files(o);
    if (status) return status;
    struct stat info;
    if (!o->force && !o->folder && lstat(o->path, &info) == 0)
        return mx_fail(o->error, MX_IO, "%s: somebody else has written it meanwhile", o->path);
    if (o->folder)
        status = replace_folder(o);
    else if (rename(o->grows, o->path) != 0)
        status = cannot(o, o->path, "be given its name", errno);
    if (status) return status;
    o->made_place = false;
    sync_parent(o->path);
    return MX_OK;
}

void mx_output_end(mx_output *o) {
    for (int i = 0; i < o->files; i++) {
        if (o->file[i].fd >= 0) close(o->file[i].fd);
        if (o->made_place && o->folder) unlinkat(o->lock, o->file[i].name, 0);
        free(o->file[i].name);
        mx_bytes_free(&o->file[i].head);
    }
    if (o->made_place && o->folder) {
        remove_folder(o->grows);
    } else if (o->made_place) {
        unlink(o->grows);
    }
    if (o->lock >= 0) close(o->lock);
    free(o->file);
    free(o->made);
    o->file = NULL;
    o->made = NULL;
    o->files = o->mades = 0;
    o->lock = -1;
    o->made_place = false;
}
