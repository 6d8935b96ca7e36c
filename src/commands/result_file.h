#ifndef MX_RESULT_FILE_H
#define MX_RESULT_FILE_H

#include "base/bytes.h"
#include "base/status.h"

/* Files that a command writes its results to. What was there before stays until all of the new content is on its way to
 * the disk; pipes and devices (all below /dev/) are written as they are. */

/* Before the work, which may take hours: can the file be written? Nothing is left behind, nothing is changed. `option`
 * is for the message. */
mx_status mx_result_file_check(const char *option, const char *path, mx_error *error);
/* MX_NO_SPACE or MX_IO: a file that was there is as it was. */
mx_status mx_result_file_write(const char *path, const mx_bytes *text, mx_error *error);

#endif
