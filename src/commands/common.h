#ifndef MX_COMMON_H
#define MX_COMMON_H

#include "base/bytes.h"
#include "base/progress.h"
#include "commands/command.h"
#include "engine/mxrun.h"
#include "model/device.h"
#include "model/model.h"
#include "tokenizer/tokenizer.h"

/* What several commands say, check and write in the same way. */

/* The types of --kv-type, the engine's default first. */
typedef struct mx_kv_name {
    const char *name;
    mx_kv_type type;  /* of the engine */
    mx_format format; /* of a backend */
} mx_kv_name;
enum { MX_KV_NAMES = 3 };
extern const mx_kv_name mx_kv_names[MX_KV_NAMES];
/* The type of that name. NULL: the user has been told. */
const mx_kv_name *mx_kv_find(const mx_command *command, const char *name);

/* What --load names. false: the user has been told. */
bool mx_load_find(const mx_command *command, const char *name, mx_load_way *out);

/* What --quantize-experts names: mxfp4, mxfp4:RECIPE. false: the user has been told. */
bool mx_quantize_find(const mx_command *command, const char *name, mx_rounding *out);

/* What --numa names. false: the user has been told. */
bool mx_numa_find(const mx_command *command, const char *name, mx_numa *out);

/* --device and what is for one kind of device only, as given; NULL: not given. */
typedef struct mx_device_given {
    const char *device, *gpu_memory;
    const char *load, *numa, *dense, *threads; /* of the CPU; checked by themselves before. threads: where they are
                                                  what is measured */
    const mx_precisions *precision;            /* [precisions] */
    int precisions;
} mx_device_given;
/* Where it is to run. One of the CPU's options makes the automatic choice the CPU and does not go with --device cuda;
 * "openblas", and int8, are such, --dense own and other precisions are not. --gpu-memory does not go with the CPU.
 * *name: what mx_load_options.device takes. false: the user has been told. */
bool mx_device_find(const mx_command *command, const mx_device_given *given, mx_device_choice *out, const char **name,
                    uint64_t *gpu_memory);

/* A progress bar for mx_load_options: .progress = mx_loading_shown, .user = a mx_loading, zeroed but for the
 * label, ended with mx_loading_end. Of other things that are told in bytes, too. */
typedef struct mx_loading {
    const char *label; /* NULL: "loading" */
    mx_progress bar;
    bool started;
    uint64_t total;
} mx_loading;
void mx_loading_shown(void *loading, uint64_t done, uint64_t total);
void mx_loading_end(mx_loading *loading);

/* A number that stays text until it is checked, so that a wrong one can be named with its option. */
typedef struct mx_number {
    const char *option;
    char *text;            /* NULL: not given */
    double value;          /* the default until it is given */
    double low, high;      /* inclusive */
    bool whole, above_low; /* above_low: `low` itself is not allowed */
} mx_number;
/* Sets `value`. false: the user has been told. */
bool mx_number_check(const mx_command *command, mx_number *number);

enum { MX_MOST_THREADS = 1024 };

/* A number of bytes, "512M": K, M, G and T are powers of 1024. false: the user has been told. */
bool mx_size_check(const mx_command *command, const char *option, const char *text, uint64_t *out);

/* What --speculate names. false: the user has been told. */
bool mx_speculation_find(const mx_command *command, const char *name, mx_speculation *out);

/* Exactly one of -m MODEL and --tokenizer FILE: opens the tokenizer of it. false with *exit_code set when that is not
 * so or fails; the user has been told. */
bool mx_open_tokenizer(const mx_command *command, const char *model, const char *file, mx_tokenizer **out,
                       int *exit_code);

mx_status mx_write_stdout(const mx_bytes *bytes, mx_error *error); /* and flushes */
mx_status mx_out_of_memory(mx_error *error);

#endif
