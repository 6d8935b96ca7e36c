#include "commands/common.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const mx_kv_name mx_kv_names[MX_KV_NAMES] = {
    {"f16", MX_KV_F16, MX_F16},
    {"bf16", MX_KV_BF16, MX_BF16},
    {"f32", MX_KV_F32, MX_F32},
};

const mx_kv_name *mx_kv_find(const mx_command *command, const char *name) {
    for (int i = 0; i < MX_KV_NAMES; i++)
        if (!strcmp(name, mx_kv_names[i].name)) return &mx_kv_names[i];
    mx_command_usage(command, "--kv-type %s: expected f16, bf16 or f32", name);
    return NULL;
}

bool mx_load_find(const mx_command *command, const char *name, mx_load_way *out) {
    static const struct {
        const char *name;
        mx_load_way way;
    } ways[] = {{"map", MX_LOAD_MAP}, {"read", MX_LOAD_READ}, {"lazy", MX_LOAD_LAZY}};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        if (!strcmp(name, ways[i].name)) {
            *out = ways[i].way;
            return true;
        }
    mx_command_usage(command, "--load %s: expected map, read or lazy", name);
    return false;
}

bool mx_quantize_find(const mx_command *command, const char *name, mx_rounding *out) {
    mx_error error;
    if (!mx_rounding_parse(name, out, &error)) return true;
    mx_command_usage(command, "--quantize-experts %s", error.text);
    return false;
}

bool mx_numa_find(const mx_command *command, const char *name, mx_numa *out) {
    static const char *const names[] = {[MX_NUMA_AUTO] = "auto",
                                        [MX_NUMA_OFF] = "off",
                                        [MX_NUMA_INTERLEAVE] = "interleave",
                                        [MX_NUMA_SPREAD] = "spread"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i])) {
            *out = (mx_numa)i;
            return true;
        }
    mx_command_usage(command, "--numa %s: expected auto, off, interleave or spread", name);
    return false;
}

/* The first of the CPU's options that was given, "--load read"; "" where there is none. */
static void cpu_option(const mx_device_given *g, char out[static 80]) {
    const struct {
        const char *option, *value;
    } options[] = {{"--threads", g->threads},
                   {"--load", g->load},
                   {"--numa", g->numa},
                   {"--dense", g->dense && strcmp(g->dense, "own") != 0 ? g->dense : NULL}};
    *out = 0;
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        if (options[i].value && !*out) snprintf(out, 80, "%s %.40s", options[i].option, options[i].value);
    for (int i = 0; i < g->precisions; i++) {
        const mx_precision *of = g->precision[i].of;
        if (!*out && (of[MX_CLASS_GATE_UP] == MX_X_INT8 || of[MX_CLASS_DOWN] == MX_X_INT8))
            snprintf(out, 80, "--precision with int8");
    }
}

bool mx_device_find(const mx_command *command, const mx_device_given *given, mx_device_choice *out, const char **name,
                    uint64_t *gpu_memory) {
    mx_error error;
    char option[80];
    *name = given->device ? given->device : "auto";
    *gpu_memory = 0;
    if (mx_device_parse(*name, out, &error)) {
        mx_command_usage(command, "--device %s", error.text);
        return false;
    }
    if (given->gpu_memory && !mx_size_check(command, "--gpu-memory", given->gpu_memory, gpu_memory)) return false;
    cpu_option(given, option);
    if (*option && out->cuda) {
        mx_command_usage(command, "%s is about the CPU: it does not go with --device %s", option, *name);
        return false;
    }
    if (*option && out->automatic) *out = (mx_device_choice){.index = -1};
    if (out->automatic || out->cuda) return true;
    if (given->gpu_memory) {
        const bool named = given->device && !strcmp(given->device, "cpu");
        mx_command_usage(command, "--gpu-memory and %s contradict each other", named ? "--device cpu" : option);
        return false;
    }
    *name = "cpu";
    return true;
}

void mx_loading_shown(void *loading, uint64_t done, uint64_t total) {
    mx_loading *l = loading;
    if (l->started && l->total != total) mx_loading_end(l); /* another part of it */
    if (!l->started || l->total != total)
        mx_progress_start(&l->bar, l->label ? l->label : "loading", (double)total, true);
    l->started = true;
    l->total = total;
    mx_progress_update(&l->bar, (double)done);
}

void mx_loading_end(mx_loading *loading) {
    if (loading->started) mx_progress_clear(&loading->bar);
}

static bool parse_number(mx_number *n) {
    const char *allowed = n->whole ? "0123456789-+" : "0123456789-+.eE";
    if (!*n->text || strspn(n->text, allowed) != strlen(n->text)) return false;
    char *end;
    n->value = strtod(n->text, &end);
    return !*end && n->value >= n->low && n->value <= n->high && !(n->above_low && n->value == n->low);
}

bool mx_number_check(const mx_command *command, mx_number *n) {
    if (!n->text || parse_number(n)) return true;
    const char *kind = n->whole ? "a whole number" : "a number";
    if (n->high >= 1 << 30)
        mx_command_usage(command, "%s %s: expected %s, at least %.0f", n->option, n->text, kind, n->low);
    else
        mx_command_usage(command, "%s %s: expected %s %s %g and %s %g", n->option, n->text, kind,
                         n->above_low ? "above" : "of at least", n->low, "at most", n->high);
    return false;
}

bool mx_size_check(const mx_command *command, const char *option, const char *text, uint64_t *out) {
    static const char units[] = "KMGT";
    char *end = NULL;
    double value = -1;
    if (*text && strspn(text, "0123456789.") > 0) value = strtod(text, &end);
    const char *unit = value >= 0 && *end ? strchr(units, *end >= 'a' && *end <= 'z' ? *end - 'a' + 'A' : *end) : NULL;
    if (unit) {
        value = ldexp(value, 10 * (int)(unit - units + 1));
        end++;
    }
    if (value >= 1 && value < 0x1p62 && !*end) {
        *out = (uint64_t)value;
        return true;
    }
    mx_command_usage(command, "%s %s: expected a number of bytes, such as 512M or 4G", option, text);
    return false;
}

bool mx_speculation_find(const mx_command *command, const char *name, mx_speculation *out) {
    static const char *const names[] = {
        [MX_SPECULATE_AUTO] = "auto", [MX_SPECULATE_OFF] = "off", [MX_SPECULATE_ON] = "on"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i])) {
            *out = (mx_speculation)i;
            return true;
        }
    mx_command_usage(command, "--speculate %s: expected auto, off or on", name);
    return false;
}

bool mx_open_tokenizer(const mx_command *command, const char *model, const char *file, mx_tokenizer **out,
                       int *exit_code) {
    if (!model == !file) {
        *exit_code =
            mx_command_usage(command, model ? "give -m or --tokenizer, not both" : "give -m MODEL or --tokenizer FILE");
        return false;
    }
    char path[4096];
    mx_error error = {0};
    mx_status status = model ? mx_find_model(model, path, sizeof path, &error) : MX_OK;
    if (!status) status = mx_tokenizer_open(model ? path : file, out, &error);
    if (status) *exit_code = mx_command_fail(command, &error);
    return !status;
}

mx_status mx_write_stdout(const mx_bytes *b, mx_error *error) {
    if ((b->size == 0 || fwrite(b->data, 1, b->size, stdout) == b->size) && fflush(stdout) == 0) return MX_OK;
    return mx_fail(error, MX_IO, "cannot write to stdout: %s", strerror(errno));
}

mx_status mx_out_of_memory(mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "out of memory");
}
