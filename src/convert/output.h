#ifndef MX_CONVERT_OUTPUT_H
#define MX_CONVERT_OUTPUT_H

#include "base/bytes.h"
#include "convert/convert.h"

/* What a conversion writes: files with a beginning in memory and tensors behind it. First all of it is described, so
 * that every size and place is known; then all threads make and write pieces of a few MB, each on its own. */

/* A tensor of an output: how it is made of the checkpoint's, slice by slice, and where it goes. */
typedef struct mx_made mx_made;
struct mx_made {
    int file;
    uint64_t at, stride;  /* of slice 0 in the file, and from one slice to the next */
    uint64_t slice_bytes; /* in the file */
    int64_t slices;
    /* Slices first .. first + count to `out` without gaps. NULL, or what is wrong with them ("is F32, not BF16"). Any
     * thread; `scratch` has `scratch` bytes for each slice; *source, 0 before, is the index in `from` that it is about.
     * `make` itself NULL: somebody else writes it. */
    const char *(*make)(const mx_made *m, int64_t first, int64_t count, uint8_t *out, uint8_t *scratch, int *source);
    uint64_t scratch;
    const mx_tensor *from[3]; /* for most: the first dimension goes on from one to the next */
    int froms;
    mx_dtype dtype;     /* of the result */
    int part, parts;    /* every parts-th row, beginning with row `part` */
    int64_t of;         /* of this slice alone, where `make` is of one */
    int64_t rows, cols; /* of a slice, where `make` needs them */
    int64_t heads[2];   /* metal: of q, of k */
};

typedef struct mx_output_file {
    char *name; /* owned; "" in an output that is one file */
    mx_bytes head;
    uint64_t size; /* of all of it */
    int fd;
} mx_output_file;

typedef struct mx_output {
    char path[MX_PATH], grows[MX_PATH + 16];
    bool folder, force, made_place;
    int lock; /* descriptor of what grows */
    mx_output_file *file;
    int files;
    mx_made *made;
    int mades, capacity;
    const mx_location *input; /* borrowed */
    mx_error *error;          /* of whoever began it */
} mx_output;

/* Checks that `path` may be written. `input`: what is read, which must not be what is replaced, and stays valid.
 * Then mx_output_end in any case. */
mx_status mx_output_begin(mx_output *o, const char *path, bool folder, bool force, const mx_location *input,
                          mx_error *error);
/* Another file; the index, or -1: no memory. */
int mx_output_add_file(mx_output *o, const char *name);
/* Another tensor behind what the file has, at a multiple of `align`; it grows the file. NULL: no memory. Valid until
 * the next one. */
mx_made *mx_output_add(mx_output *o, const mx_made *made, uint64_t align);
mx_made *mx_output_place(mx_output *o, const mx_made *made, uint64_t at); /* the same, exactly there */
/* A whole file from memory, in one call. false: no memory. */
bool mx_output_add_text(mx_output *o, const char *name, const void *data, size_t size);
uint64_t mx_output_size(const mx_output *o);

/* Can all of these be made? possible[i] says it of made[i]; nothing is written. */
mx_status mx_output_try(mx_output *o, const mx_made *made, int count, const mx_convert_options *options,
                        bool *possible);
/* The place, room for everything on the disk, and the beginnings of all files. */
mx_status mx_output_create(mx_output *o);
/* Writes the head of a file again, of whatever size; for files without tensors. */
mx_status mx_output_rewrite(mx_output *o, int file);
/* `from`: what it is made of, so that it does not pile up in memory. */
mx_status mx_output_fill(mx_output *o, const mx_checkpoint *from, const mx_convert_options *options);
/* Writes some bytes of a file; any thread. false: errno says why. */
bool mx_output_write(const mx_output *o, int file, const void *data, uint64_t size, uint64_t at);
mx_status mx_output_publish(mx_output *o); /* syncs, and gives it its name */
void mx_output_end(mx_output *o);          /* removes what was not published */

#endif
