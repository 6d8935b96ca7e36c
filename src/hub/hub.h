#ifndef MX_HUB_H
#define MX_HUB_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"
#include "hub/download.h"

/* Models by name: the list models.txt, the cache that all tools of the Hugging Face hub share, and pulling into it.
 * Knows files and layouts, not what is in them. */

enum { MX_HUB_PATH = 4096, MX_REPOSITORY = 200, MX_REVISION = 256, MX_FILE_NAME = 512 };

/* ---- strings ----------------------------------------------------------------------------------------------------- */
typedef struct mx_strings {
    char **text; /* owned */
    int count, capacity;
} mx_strings;
bool mx_strings_add(mx_strings *s, const char *text); /* false: no memory */
bool mx_strings_have(const mx_strings *s, const char *text);
void mx_strings_free(mx_strings *s);

/* MX_INVALID_ARGUMENT where it gets too long. */
mx_status mx_hub_path(char out[static MX_HUB_PATH], mx_error *error, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* ---- models.txt -------------------------------------------------------------------------------------------------- */
typedef enum mx_hub_layout { MX_HUB_ANY, MX_HUB_HF, MX_HUB_GGUF, MX_HUB_ORIGINAL } mx_hub_layout;
const char *mx_hub_layout_name(mx_hub_layout layout); /* "hf" */

typedef struct mx_listed_file {
    char *path;
    int64_t size;                /* -1: not known */
    char sha256[MX_SHA256_TEXT]; /* "": not known */
    bool optional;
    int line; /* where models.txt says so */
} mx_listed_file;

typedef struct mx_known_model {
    char *name, *repository, *revision, *licence; /* repository "-": it comes with mxrun */
    mx_strings aliases;
    mx_hub_layout layout;
    mx_listed_file *files; /* none: what the layout needs of what the hub lists */
    int file_count;
    const char *source; /* the file that says it, of the mx_models */
    int line;
    int generation; /* 0: of the first list that was read */
} mx_known_model;

typedef struct mx_models {
    mx_known_model *model; /* in the order of the lists; what another one replaced is not there */
    int count, capacity, generations;
    mx_strings sources;
} mx_models;

/* Adds the list at `path`: its models replace those of the same name, its aliases come first. The first list alone may
 * have models that come with mxrun (repository "-"), whose names no later one takes. `optional`: where there
 * is no such file nothing happens. Errors name file, line and field. After one `models` is still to be freed. */
mx_status mx_models_add(mx_models *models, const char *path, bool optional, mx_error *error);
void mx_models_free(mx_models *models);
/* By name or alias; NULL: none. */
const mx_known_model *mx_models_find(const mx_models *models, const char *name);

/* ---- what -m names ----------------------------------------------------------------------------------------------- */
/* A model on the hub. */
typedef struct mx_target {
    char name[MX_REPOSITORY + MX_REVISION + MX_FILE_NAME]; /* as messages and `mxrun pull` have it */
    char repository[MX_REPOSITORY];                        /* "openai/gpt-oss-20b"; "-": comes with mxrun */
    char revision[MX_REVISION];
    char file[MX_FILE_NAME]; /* of :file.gguf; "" */
    mx_hub_layout layout;
    const mx_known_model *known; /* whose files and hashes hold for it; NULL: none. Borrowed from the mx_models */
} mx_target;

/* NAME, ALIAS, NAME@REVISION or ORG/NAME[@REVISION][:FILE]. A repository that models.txt knows, at the revision that
 * it has there, is the model of models.txt. Unknown names are MX_NOT_FOUND, with those that are near. */
mx_status mx_target_parse(const mx_models *models, const char *text, mx_target *out, mx_error *error);

/* ---- the hub and the cache --------------------------------------------------------------------------------------- */
/* What the environment says, by the names and rules of huggingface_hub. */
typedef struct mx_hub {
    char folder[MX_HUB_PATH]; /* HF_HUB_CACHE, else HF_HOME/hub, else XDG_CACHE_HOME/huggingface/hub, else below HOME */
    char endpoint[MX_HUB_PATH]; /* HF_ENDPOINT, else https://huggingface.co; no slash at its end. Holds a
                                   password perhaps: mx_url_shown */
    char *token;  /* HF_TOKEN, HUGGING_FACE_HUB_TOKEN, else the file HF_TOKEN_PATH or HF_HOME/token; NULL, also with
                     HF_HUB_DISABLE_IMPLICIT_TOKEN */
    bool offline; /* HF_HUB_OFFLINE, else TRANSFORMERS_OFFLINE */
} mx_hub;
mx_status mx_hub_open(mx_hub *out, mx_error *error);
void mx_hub_close(mx_hub *hub);

/* A copy of a target in the cache. */
typedef struct mx_copy {
    bool found;                  /* a snapshot of it is there */
    bool complete;               /* with all that the layout needs */
    bool ours;                   /* mxrun pulled it, or began to: mxrun.lock pins it */
    char commit[MX_COMMIT_TEXT]; /* "" where nothing tells it */
    char snapshot[MX_HUB_PATH];  /* folder of the snapshot */
    char path[MX_HUB_PATH];      /* for -m: that folder, its original/, or the (first) .gguf */
    mx_hub_layout layout;
    mx_strings files;   /* those that the layout needs, that are there, by their paths in the snapshot */
    mx_strings missing; /* those that are not, or have not the size that they should have */
    int64_t bytes;      /* of `files` */
} mx_copy;
/* MX_OK also where there is none. Other failures: several GGUF files and none named, a damaged mxrun.lock. */
mx_status mx_cache_find(const mx_hub *hub, const mx_target *target, mx_copy *out, mx_error *error);
/* The same for a folder that is no snapshot of the cache. */
mx_status mx_look_at_folder(const mx_target *target, const char *folder, mx_copy *out, mx_error *error);
void mx_copy_free(mx_copy *copy);
/* "config.json, tokenizer.json and 3 more" */
void mx_copy_missing(const mx_copy *copy, char out[static 300]);

/* ---- pull -------------------------------------------------------------------------------------------------------- */
typedef enum mx_pull_event_type {
    MX_PULL_WAITING,  /* another process has the repository locked */
    MX_PULL_ASKING,   /* the hub is asked for what there is */
    MX_PULL_PLANNED,  /* sizes are known, nothing is fetched yet */
    MX_PULL_PROGRESS, /* a few times a second */
    MX_PULL_RETRY,
    MX_PULL_FILE, /* one is there and checked */
    MX_PULL_PRESENT,
    MX_PULL_DONE
} mx_pull_event_type;

typedef struct mx_pull_event {
    mx_pull_event_type type;
    const mx_target *target;
    const char *endpoint;     /* of the hub, as it may be shown */
    const char *commit;       /* NULL: not known yet */
    const char *folder;       /* of the repository in the cache; from PLANNED on */
    const char *path;         /* for -m; PRESENT and DONE */
    const char *text;         /* RETRY: why */
    const mx_download *file;  /* FILE, RETRY; may be NULL */
    const mx_download *files; /* from PLANNED to FILE: what is fetched; NULL: nothing has to be */
    int count;                /* of `files` */
    int64_t total;            /* bytes of the model; sizes that nobody said are 0 */
    int64_t missing;          /* of them to be fetched, as it was planned; what an earlier run left is none of them */
    int64_t free_space;       /* of the file system */
    double seconds;           /* since the download began */
} mx_pull_event;

typedef struct mx_pull_options {
    bool update; /* what the hub has now is taken instead of what mxrun.lock pins */
    bool (*confirm)(void *user, const mx_pull_event *planned); /* false: stop, MX_CANCELLED; NULL: yes */
    void (*event)(void *user, const mx_pull_event *event);     /* may be NULL */
    void *user;
    const volatile sig_atomic_t *stop;
} mx_pull_options;

/* Brings in what is not there and publishes it in the cache; *out is a complete copy then. Offline it only looks. */
mx_status mx_pull(const mx_hub *hub, const mx_target *target, const mx_pull_options *options, mx_copy *out,
                  mx_error *error);

/* ---- what else is done with copies ------------------------------------------------------------------------------- */
typedef struct mx_removal {
    int files;               /* names and blobs */
    int64_t bytes;           /* that became free, or would */
    char other[MX_REVISION]; /* another revision that is the same commit; "": none */
    bool stays;              /* the files do, for that revision: only the target's name goes */
} mx_removal;
/* Removes the copies of a target from the cache: its files, refs, blobs that no other snapshot has, and what mxrun had
 * begun. Never outside the repository's folder; refuses while a pull has it. Where nothing of the target is there it
 * is MX_NOT_FOUND and nothing changes. `only_count`: does nothing, and no pull is in its way. */
mx_status mx_cache_remove(const mx_hub *hub, const mx_target *target, bool only_count, mx_removal *out,
                          mx_error *error);

typedef struct mx_check_event {
    const char *file;
    const char *problem; /* NULL: as it should be */
    bool unknown;        /* nobody says what it should be */
    int64_t size;
} mx_check_event;
typedef struct mx_check_options {
    void (*file)(void *user, const mx_check_event *event);
    void (*progress)(void *user, int64_t done, int64_t total); /* bytes of all files */
    void *user;
    const volatile sig_atomic_t *stop;
} mx_check_options;
/* Reads every file of a copy in `folder` (a snapshot, or the folder of a model that comes with mxrun; `hub` is NULL
 * then) and compares size and SHA-256, or git's SHA-1, with models.txt, mxrun.lock and the names of the blobs.
 * *wrong: how many are not as they should be. */
mx_status mx_check_files(const mx_hub *hub, const mx_target *target, const mx_copy *copy,
                         const mx_check_options *options, int *wrong, mx_error *error);

/* One model in the cache. */
typedef struct mx_cached {
    mx_target target;
    mx_copy copy;
    int64_t incomplete; /* bytes of files that are coming in, or were broken off */
} mx_cached;
typedef struct mx_cached_list {
    mx_cached *item;
    int count, capacity;
} mx_cached_list;
/* The models of models.txt that are there, at least in part, then other repositories: those that mxrun pulled, and
 * those whose files look like gpt-oss. */
mx_status mx_cache_list(const mx_hub *hub, const mx_models *models, mx_cached_list *out, mx_error *error);
void mx_cached_list_free(mx_cached_list *list);

#endif
