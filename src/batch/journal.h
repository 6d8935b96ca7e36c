#ifndef MX_BATCH_JOURNAL_H
#define MX_BATCH_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "batch/batch.h"

/* The output as a journal of what is done. Every record names its line and that line's hash: `id`
 * "batch_req_12_HASH_CONTEXT-TIER-PRECISION" in OpenAI's form, `request_id` "req_12_..." in the short one (the hash in
 * 16 hexadecimal digits, then mx_api_setup, the same in all records).
 *
 * The kernel has every record once mx_journal_write has returned, so a killed process loses none. The disk has it at
 * most SYNC_SECONDS later, as long as mx_journal_sync is called often enough: what a power failure takes is computed
 * again.
 *
 * Where the engine failed, which is not the line's fault, its record says so only until the next run: that takes the
 * record out, by writing the file anew beside it ("PATH.mxrun-new", which the next run removes where this one was
 * killed) and renaming it, and the line is one without a record again. */
typedef struct mx_done {
    int64_t line;
    uint64_t hash;
    bool failed; /* by the engine: the line is to be done again */
} mx_done;

typedef struct mx_journal {
    const char *path; /* borrowed; as in messages */
    int fd;
    bool look; /* nothing is changed */
    bool keep_failed;
    bool regular;  /* else nothing can be read back, such as from a pipe */
    int64_t size;  /* bytes, all of them whole lines */
    mx_done *done; /* [count], ascending */
    int64_t count, capacity;
    struct mx_span {
        int64_t begin, end; /* bytes of records of lines that the engine failed, newlines included, ascending */
    } * failed;             /* [failed_count]: those that are in the file */
    int64_t failed_count, failed_capacity;
    mx_api_setup setup; /* of all records; .context 0: there are none */
    bool ascending;     /* the records are in the order of their lines */
    double dirty;       /* mx_seconds() of the oldest record that was written since the last sync; 0: there is none */
} mx_journal;

/* Opens or makes the file, locks it (MX_INVALID_STATE: another process has it), reads it, cuts a torn last line off.
 * A line that is no record is MX_INVALID_FILE. `input`: a descriptor that must not be the same file.
 * `look`: only reads what is there. `keep_failed`: records of lines that the engine failed are like all others. */
mx_status mx_journal_open(mx_journal *journal, const char *path, int input, bool look, bool keep_failed,
                          mx_error *error);
/* Takes those of lines that the engine failed out of the file, so that they can be written again; `done` still tells
 * that they were there. Where that cannot be (a folder that is not to be written, a file that is mounted or somebody
 * else's) a warning says so, and they are like all others from now on. Returns whether they are out. */
bool mx_journal_take_out(mx_journal *journal);
void mx_journal_close(mx_journal *journal); /* all zeros with fd -1 allowed */

bool mx_batch_same_setup(const mx_api_setup *a, const mx_api_setup *b);

/* The record of that line, or NULL. */
const mx_done *mx_journal_find(const mx_journal *journal, int64_t line);

/* Appends a whole line. After a failure the file ends where it ended before, or in a torn line that the next open cuts.
 */
mx_status mx_journal_write(mx_journal *journal, const mx_bytes *record, mx_error *error);
/* Where a record would otherwise be too old at the next call, in so many seconds. INFINITY: now. */
mx_status mx_journal_sync(mx_journal *journal, double next, mx_error *error);

#endif
