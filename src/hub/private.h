#ifndef MX_HUB_PRIVATE_H
#define MX_HUB_PRIVATE_H

#include "hub/hub.h"

/* ---- what may stand in names ------------------------------------------------------------------------------------- */
bool mx_is_repository(const char *text); /* ORG/NAME, as the hub allows it */
bool mx_is_revision(const char *text);   /* no "..", no blanks, no path that leaves refs/ */
bool mx_is_file_name(const char *text);  /* relative, no "." or "..", nothing empty, no control characters */
bool mx_is_commit(const char *text);     /* 40 or 64 hexadecimal digits */
bool mx_is_hexadecimal(const char *text, size_t digits); /* lower case, so many */
bool mx_parse_size(const char *text, int64_t *out);
void mx_set_text(char *out, size_t size, const char *text); /* what does not fit is cut */

/* ---- paths ------------------------------------------------------------------------------------------------------- */
/* HUB/models--ORG--NAME */
mx_status mx_repository_folder(const mx_hub *hub, const char *repository, char out[static MX_HUB_PATH],
                               mx_error *error);
/* The names below a folder that are no folders, as "a/b", sorted; links are not followed, but for `folder` itself. A
 * folder that is not there has none. */
mx_status mx_list_files(const char *folder, mx_strings *out, mx_error *error);
/* Removes a folder with all that is in it, or what is there in its stead; links go, what they lead to stays. */
mx_status mx_clear_folder(const char *folder, mx_error *error);

enum { MX_MOST_FILES = 5000 }; /* of one model; more is no model */

/* ---- layouts ----------------------------------------------------------------------------------------------------- */
/* Which of the files that are there a target needs: the layout (MX_HUB_ANY: hf, else gguf, else original) and its
 * files, those that a program can do without in `wanted` (may be NULL). MX_NOT_FOUND where no layout is among them,
 * MX_INVALID_ARGUMENT where one of several GGUF files has to be named. */
mx_status mx_choose_files(const mx_target *target, const mx_strings *there, mx_hub_layout *layout, mx_strings *needed,
                          mx_strings *wanted, mx_error *error);

/* ---- mxrun.lock: what was pinned --------------------------------------------------------------------------------- */
typedef struct mx_pinned_file {
    char commit[MX_COMMIT_TEXT];
    int64_t size;
    char etag[MX_ETAG_TEXT];
    char sha256[MX_SHA256_TEXT]; /* "": not known yet */
    char *path;
} mx_pinned_file;
typedef struct mx_pinned_revision {
    char *revision;
    char commit[MX_COMMIT_TEXT];
} mx_pinned_revision;
typedef struct mx_pins {
    mx_pinned_revision *revision;
    mx_pinned_file *file;
    int revisions, files;
} mx_pins;
/* Of a repository's folder; none where there is no mxrun.lock. */
mx_status mx_pins_read(const char *folder, mx_pins *out, mx_error *error);
mx_status mx_pins_write(const char *folder, const mx_pins *pins, mx_error *error);
void mx_pins_free(mx_pins *pins);
const char *mx_pins_commit(const mx_pins *pins, const char *revision); /* NULL: not pinned */
mx_pinned_file *mx_pins_file(const mx_pins *pins, const char *commit, const char *path);
bool mx_pins_set_revision(mx_pins *pins, const char *revision, const char *commit); /* false: no memory */
bool mx_pins_set_file(mx_pins *pins, const char *commit, const char *path, int64_t size, const char *etag,
                      const char *sha256);
void mx_pins_drop_revision(mx_pins *pins, const char *revision);
void mx_pins_drop_commit(mx_pins *pins, const char *commit);
void mx_pins_drop_file(mx_pins *pins, const char *commit, const char *path);

/* ---- one process at a time --------------------------------------------------------------------------------------- */
/* Locks a repository's folder. With `wait` it calls `waiting` once and goes on when the other has ended, in a new
 * folder where that took its own away; without, the folder must be there, and a lock of another process is
 * MX_INVALID_STATE. */
typedef struct mx_repository_lock {
    int fd; /* -1: not held */
} mx_repository_lock;
mx_status mx_repository_lock_take(const char *folder, bool wait, void (*waiting)(void *user), void *user,
                                  const volatile sig_atomic_t *stop, mx_repository_lock *out, mx_error *error);
void mx_repository_lock_release(mx_repository_lock *lock);

/* ---- the cache --------------------------------------------------------------------------------------------------- */
/* The commit that REPOSITORY/refs/REVISION holds; "" where there is none. */
void mx_refs_read(const char *folder, const char *revision, char out[static MX_COMMIT_TEXT]);
mx_status mx_refs_write(const char *folder, const char *revision, const char *commit, mx_error *error);
/* Puts BLOB (a name in the repository's blobs/) at SNAPSHOT/NAME: a link that is right in snapshots/COMMIT or, where
 * the file system has no links, the blob itself, a copy as long as another name needs it; the name appears at once and
 * as a whole. */
typedef enum mx_publish_mode { MX_PUBLISH_LINK, MX_PUBLISH_MOVE, MX_PUBLISH_COPY } mx_publish_mode;
mx_status mx_publish_file(const char *folder, const char *snapshot, const char *name, const char *blob,
                          mx_publish_mode mode, mx_error *error);
/* Does the file system of the folder have symbolic links? The folder is locked. */
bool mx_has_links(const char *folder);
/* What lies at a snapshot, for a target. `commit` may be NULL: no snapshot. */
mx_status mx_look_at(const mx_target *target, const mx_pins *pins, const char *commit, const char *snapshot,
                     mx_copy *out, mx_error *error);

/* git's name of a file's content: SHA-1 of "blob SIZE\0" and the bytes. */
mx_status mx_git_sha1_file(const char *path, char out[static 41], const volatile sig_atomic_t *stop, mx_error *error);

#endif
