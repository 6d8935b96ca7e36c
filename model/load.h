#ifndef MX_MODEL_LOAD_H
#define MX_MODEL_LOAD_H

#include "base/mapped.h"
#include "model/model.h"

/* Private to model/: bringing a checkpoint's files into memory, once their headers are known to be right. */

/* Makes the tensors that have a recipe, whose memory is there (mx_checkpoint_make_room), and brings in the others as
 * `options` says; NULL: as MX_LOAD_LAZY. Pointers stay as they are. A checkpoint that is in no file is loaded already.
 */
mx_status mx_load_checkpoint(mx_checkpoint *ck, const mx_load_options *options, mx_error *error);

/* The files of a checkpoint; 0 of one in memory. (checkpoint.c) */
int mx_checkpoint_files(const mx_checkpoint *ck);
mx_mapped *mx_checkpoint_file(mx_checkpoint *ck, int index);
uint64_t mx_checkpoint_header(const mx_checkpoint *ck, int index); /* bytes of it before the first tensor */

/* mx_load_options.without. MEMORY: for all weights; ROOM, with MEMORY: for those that are rearranged, too. */
enum { MX_WITHOUT_DIRECT = 1, MX_WITHOUT_POPULATE = 2, MX_WITHOUT_MEMORY = 4, MX_WITHOUT_ROOM = 8 };

#endif
