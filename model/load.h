#ifndef MX_MODEL_LOAD_H
#define MX_MODEL_LOAD_H

#include "model/model.h"
#include "model/safetensors.h"

/* Private to model/: bringing a checkpoint's files into memory, once their headers are known to be right. */

/* Pointers into the files stay as they are. A checkpoint that is in no file is loaded already. */
mx_status mx_load_checkpoint(mx_checkpoint *ck, const mx_load_options *options, mx_error *error);

/* The files of a checkpoint; 0 of one in memory. (checkpoint.c) */
int mx_checkpoint_files(const mx_checkpoint *ck);
mx_safetensors *mx_checkpoint_file(mx_checkpoint *ck, int index);

/* mx_load_options.without */
enum { MX_WITHOUT_DIRECT = 1, MX_WITHOUT_POPULATE = 2, MX_WITHOUT_MEMORY = 4 };

#endif
