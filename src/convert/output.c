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

/* Is `input` at `path`, or a file of the folder at `path`? */
static bool holds_input(const char *path, const mx_location *input) {
    char parent[MX_PATH];
    snprintf(parent, sizeof parent, "%s", input->path);
    char *slash = strrchr(parent, '/');
    if (slash) slash[slash == parent] = 0;
    return same(path, input->path) || same(path, slash ? parent : ".");
}

/* Walks a folder. `remove`: takes away every file. *inside: a folder in it, or "". */
static bool look_into(const char *folder, bool remove, int *entries, char inside[256]) {
    DIR *dir = opendir(folder);
    *entries = 0;
    *inside = 0;
    if (!dir) return false;
    for (struct dirent *e; (e = readdir(dir));) {
        struct stat info;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        ++*entries;
        if (fstatat(dirfd(dir), e->d_name, &info, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(info.st_mode))
            snprintf(inside, 256, "%s", e->d_name);
        else if (remove)
            unlinkat(dirfd(dir), e->d_name, 0);
    }
    closedir(dir);
    return true;
}

static mx_status check_place(const mx_output *o, const mx_location *input) {
    struct stat info;
    int entries;
    char inside[256];
    if (lstat(o->path, &info) != 0) return MX_OK;
    if (!o->folder && S_ISDIR(info.st_mode))
        return mx_fail(o->error, MX_INVALID_ARGUMENT, "%s: is a folder, expected the name of a file to be written",
                       o->path);
    if (o->folder && S_ISDIR(info.st_mode) && look_into(o->path, false, &entries, inside) && !entries) return MX_OK;
    if (!o->force) return mx_fail(o->error, MX_INVALID_ARGUMENT, "%s: is there already; --force replaces it", o->path);
    if (o->folder && !S_ISDIR(info.st_mode))
        return mx_fail(o->error, MX_INVALID_ARGUMENT, "%s: is a file, expected a folder to be written", o->path);
    if (o->folder && *inside)
        return mx_fail(o->error, MX_INVALID_ARGUMENT,
                       "%s: holds the folder %s, which --force does not remove: remove it yourself, or choose another "
                       "name",
                       o->path, inside);
    if (holds_input(o->path, input))
        return mx_fail(o->error, MX_INVALID_ARGUMENT, "%s: holds what is to be converted: choose another name",
                       o->path);
    return MX_OK;
}

mx_status mx_output_begin(mx_output *o, const char *path, bool folder, bool force, const mx_location *input,
                          mx_error *error) {
    *o = (mx_output){.folder = folder, .force = force, .lock = -1, .error = error};
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    if (!n || n >= MX_PATH - 16)
        return mx_fail(error, MX_INVALID_ARGUMENT, "the path of the output is %s", n ? "too long" : "empty");
    snprintf(o->path, sizeof o->path, "%.*s", (int)n, path);
    snprintf(o->grows, sizeof o->grows, "%s.incomplete", o->path);
    return check_place(o, input);
}

/* Opens and locks what grows. What an earlier run left there is taken over. */
static mx_status take_place(mx_output *o) {
    struct stat here, there;
    int entries;
    char inside[256];
    mx_make_folders(o->grows, 0777);
    if (o->folder && mkdir(o->grows, 0777) != 0 && errno != EEXIST) return cannot(o, o->grows, "be made", errno);
    o->lock = o->folder ? open(o->grows, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
                        : open(o->grows, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (o->lock < 0) return cannot(o, o->grows, "be opened", errno);
    if (flock(o->lock, LOCK_EX | LOCK_NB) != 0 || fstat(o->lock, &here) != 0 || stat(o->grows, &there) != 0 ||
        here.st_ino != there.st_ino || here.st_dev != there.st_dev)
        return mx_fail(o->error, MX_IO, "%s: another process is writing it", o->grows);
    o->made_place = true;
    if (o->folder && (!look_into(o->grows, true, &entries, inside) || *inside)) {
        o->made_place = false;
        return mx_fail(o->error, MX_IO, "%s: is in the way: remove it", o->grows);
    }
    return MX_OK;
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
    snprintf(parent, sizeof parent, "%s", path);
    char *slash = strrchr(parent, '/');
    if (slash) slash[slash == parent] = 0;
    const int fd = open(slash ? parent : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

/* The old folder gets the name of the growing one, in one step where the file system can; then it goes. */
static bool replace_folder(const mx_output *o) {
    int entries;
    char inside[256];
    if (rename(o->grows, o->path) == 0) return true;
    if (!o->force || (errno != ENOTEMPTY && errno != EEXIST)) return false;
    if (renameat2(AT_FDCWD, o->grows, AT_FDCWD, o->path, RENAME_EXCHANGE) != 0) {
        char old[MX_PATH + 16];
        snprintf(old, sizeof old, "%s.replaced", o->path);
        if (rename(o->path, old) != 0) return false;
        if (rename(o->grows, o->path) != 0) return false;
        if (rename(old, o->grows) != 0) return true;
    }
    look_into(o->grows, true, &entries, inside);
    rmdir(o->grows);
    return true;
}

mx_status mx_output_publish(mx_output *o) {
    mx_status status = sync_files(o);
    if (status) return status;
    struct stat info;
    if (!o->force && !o->folder && lstat(o->path, &info) == 0)
        return mx_fail(o->error, MX_IO, "%s: somebody else has written it meanwhile", o->path);
    if (o->folder ? !replace_folder(o) : rename(o->grows, o->path) != 0)
        return cannot(o, o->path, "be given its name", errno);
    o->made_place = false;
    sync_parent(o->path);
    return MX_OK;
}

void mx_output_end(mx_output *o) {
    int entries;
    char inside[256];
    for (int i = 0; i < o->files; i++) {
        if (o->file[i].fd >= 0) close(o->file[i].fd);
        free(o->file[i].name);
        mx_bytes_free(&o->file[i].head);
    }
    if (o->made_place && o->folder) {
        look_into(o->grows, true, &entries, inside);
        rmdir(o->grows);
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
