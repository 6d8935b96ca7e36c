#ifndef MX_CONVERT_RECORD_H
#define MX_CONVERT_RECORD_H

#include "base/gguf.h"
#include "convert/gguf_text.h"

/* What a Hugging Face folder holds beside the tensors' bytes, so that it can be made again byte for byte: those of its
 * small files that have known names, and the headers of its .safetensors. A GGUF carries it as keys:
 *
 *     mxrun.source.files     names             mxrun.source.contents   their bytes
 *     mxrun.source.shards    names             mxrun.source.headers    their headers, the JSON with its padding
 *
 * Other layouts have a file MX_RECORD_FILE beside theirs, which is a GGUF of these keys. */
#define MX_RECORD_FILE "mxrun-source"

typedef struct mx_record_entry {
    char *name; /* owned; of a file in the folder */
    mx_bytes content;
} mx_record_entry;

typedef struct mx_record {
    mx_record_entry *file, *shard;
    int files, shards;
} mx_record;

/* Is it the name of a small file that published repositories have, and that is carried along? */
bool mx_record_carries(const char *name);
/* Of the folder that `ck` was opened from. Whatever else it holds, files, folders and weights that `ck` does not use, a
 * line in the log names as left out; so it does with a file of more than 64 MB. */
mx_status mx_record_of_folder(mx_record *r, const char *folder, const mx_checkpoint *ck, mx_error *error);
/* Of the keys, checked: names of files, each once; other names than those that are carried are left out, and told.
 * Without such keys: empty. */
mx_status mx_record_of_gguf(mx_record *r, const mx_gguf *g, mx_error *error);
/* A single file of the folder, where it is there. */
mx_status mx_record_add(mx_record *r, const char *folder, const char *name, mx_error *error);
void mx_record_put(const mx_record *r, mx_gguf_text *g);
const mx_bytes *mx_record_file(const mx_record *r, const char *name); /* NULL: not there */
void mx_record_drop(mx_record *r, const char *name);
void mx_record_make_stale(mx_record *r); /* drops what tells of the weights: headers, index, config.json */
void mx_record_free(mx_record *r);

#endif
