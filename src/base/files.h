#ifndef MX_BASE_FILES_H
#define MX_BASE_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Makes the folders above `path` that are not there, with `mode` (less the umask). What cannot be made shows when the
 * file itself is written. `path` is changed meanwhile and is the same again afterwards. */
void mx_make_folders(char *path, mode_t mode);

/* Writes a file through another one beside it, so that `path` holds the old content or the whole new one at any moment;
 * readable by its owner alone. `durable`: the content is on the disk before the name is. false: errno says why, and
 * nothing has changed. */
bool mx_replace_file(const char *path, const void *data, size_t size, bool durable);

/* Brings the folder of `path` to the disk: names in it that were made, changed or removed outlive a power failure from
 * then on. false: errno says why. */
bool mx_sync_folder(const char *path);

#endif
