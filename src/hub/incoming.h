#ifndef MX_HUB_INCOMING_H
#define MX_HUB_INCOMING_H

#include "hub/download.h"
#include "hub/hasher.h"
#include "hub/pieces.h"
#include "hub/resume.h"

/* One file while it comes in: where its bytes go, which are there, to which version on the server they belong. All but
 * what is marked belongs to the thread that downloads. */

typedef enum mx_phase {
    MX_WAITING,    /* not opened */
    MX_COMING,     /* the incomplete file is open and locked */
    MX_PUBLISHING, /* the hash is right; the keeper brings it to the disk and gives it its name */
    MX_THERE
} mx_phase;

typedef struct mx_piece_task {
    bool busy;
    int failures;      /* since its last progress */
    int others;        /* of them, in a row: another version was answered */
    double not_before; /* mx_seconds() */
} mx_piece_task;

typedef struct mx_keeper mx_keeper;

typedef struct mx_incoming {
    mx_download *d;
    const mx_http_options *options;
    mx_keeper *keeper;
    void (*wake)(void *user); /* ends the downloading thread's wait; any thread may call it */
    void *wake_user;

    mx_phase phase;
    int fd; /* of the incomplete file; -1: not open */
    char *state_path;
    bool begun;          /* the size is known; pieces, task, state file and hasher are there */
    bool answered;       /* the server has shown in this run that it still has this version */
    mx_pieces pieces;    /* keeper and hasher read it */
    mx_piece_task *task; /* [pieces.count] */
    mx_piece_task probe; /* stands for all of them while the size is not known */
    mx_hasher *hasher;
    mx_resume resume; /* the keeper's while the file is with it */
    int64_t unsaid;   /* bytes stored since the hasher was woken */

    char etag[MX_ETAG_TEXT];   /* the version: what the hub says before a redirect, else what comes with the bytes */
    char source[MX_ETAG_TEXT]; /* what comes with the bytes */
    bool source_weak;          /* no byte range may be asked for with it */
    bool etag_given;           /* by the caller: no other will do */
    bool linked;               /* the hub says it before a redirect */
    char other[MX_ETAG_TEXT], other_source[MX_ETAG_TEXT]; /* seen once instead: seen again, it counts */
    int64_t given_size;                                   /* by the caller; -1: not said */
    bool mixed; /* its bytes came with two etags, though the hub gave one hash for them: they may be wrong */
    int restarts, wrong_hashes;
    char *direct;     /* where the last redirect led, asked first until it fails; NULL: nowhere yet */
    bool unversioned; /* without ETag and known hash: one answer must bring all of it */
    int64_t cursor;   /* pieces before it are there */
    int ignored;      /* ranges in a row that were answered with the whole file */
    int active;       /* transfers */
    bool whole;       /* one of them takes the whole file */
    bool told;        /* that it is finished */

    /* Under the keeper's lock. */
    bool kept, busy, publish, published;
    double synced; /* when its data were brought to the disk last */
    mx_status keeper_status;
    mx_error keeper_error;
} mx_incoming;

/* Opens and locks the incomplete file and takes up what an earlier run left, if it is the version wanted; or finds the
 * finished file (MX_THERE). MX_INVALID_STATE: another process has it. */
mx_status mx_incoming_open(mx_incoming *f, mx_error *error);
/* The size is known: room on the disk, a state file, the hasher. Takes the finished file if that is of this size. */
mx_status mx_incoming_begin(mx_incoming *f, int64_t size, mx_error *error);
/* Throws away all that came. No transfer of it may be active. The version is `etag` from now on. */
mx_status mx_incoming_restart(mx_incoming *f, const char *etag, mx_error *error);
/* Bytes of the file from `at` on, which has no gap before it in its piece; those that are there already are skipped. */
mx_status mx_incoming_store(mx_incoming *f, int64_t at, const char *data, int64_t size, mx_error *error);
/* The hash of all has been computed: right, it goes to the keeper; wrong, it is thrown away: *again, or
 * MX_INVALID_FILE. */
mx_status mx_incoming_check(mx_incoming *f, bool *again, mx_error *error);
/* Ends its hasher, leaves the keeper, closes. What is not finished stays for the next run. */
void mx_incoming_close(mx_incoming *f);

/* ---- keeper.c: the thread that waits for disks ------------------------------------------------------------------- */
/* Tells the state files what has come, several times a second, and brings data to the disk at intervals, so that little
 * is lost when the program is killed or the power fails; publishes finished files. */
mx_status mx_keeper_start(int files, mx_keeper **out, mx_error *error); /* for so many at most */
void mx_keeper_add(mx_keeper *k, mx_incoming *f);                       /* begun */
void mx_keeper_remove(mx_keeper *k, mx_incoming *f); /* waits while the keeper is busy with it; k may be NULL */
void mx_keeper_publish(mx_keeper *k, mx_incoming *f);
/* Has f been published, or did the keeper fail with it? Then its error. */
mx_status mx_keeper_look(mx_keeper *k, mx_incoming *f, bool *published, mx_error *error);
/* Tells the state files the last, and frees k; NULL allowed. */
void mx_keeper_stop(mx_keeper *k);

#endif
