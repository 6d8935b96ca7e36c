#include <stdio.h>
#include <string.h>

#include "base/cpu.h"
#include "commands/common.h"
#include "commands/models.h"
#include "commands/terminal.h"
#include "convert/convert.h"

/* mxrun convert: a model in another layout. */

static const char *option_to, *option_quantize;
static mx_rounding rounding;
static int option_force, option_allow_loss;
static mx_number option_threads = {"--threads", NULL, 0, 1, MX_MOST_THREADS, true, false};

static void report(const char *out, const mx_converted *done, double seconds) {
    printf("%s: %.2f GB in %d file%s, %.1f s (%.0f MB/s)%s\n", out, (double)done->bytes / 1e9, done->files,
           done->files == 1 ? "" : "s", seconds, (double)done->bytes / 1e6 / (seconds > 0 ? seconds : 1),
           done->restored ? ", the .safetensors and small files that it was made of, byte for byte" : "");
}

static int convert(const mx_command *self, const char *in, const char *out, mx_layout to) {
    mx_error error = {0};
    char path[4096];
    mx_pool *pool = NULL;
    mx_converted done = {0};
    mx_loading loading = {.label = "writing"};
    mx_status status = mx_resolve_model(in, path, sizeof path, &error);
    if (!status) status = mx_pool_create((int)option_threads.value, &pool, &error);
    const double start = mx_seconds();
    if (!status) {
        const mx_convert_options options = {.to = to,
                                            .force = option_force,
                                            .allow_loss = option_allow_loss,
                                            .quantize_experts = rounding,
                                            .pool = pool,
                                            .stop = &mx_interrupted,
                                            .progress = mx_loading_shown,
                                            .user = &loading};
        mx_interrupt_catch(true);
        status = mx_convert(path, out, &options, &done, &error);
        mx_interrupt_release();
    }
    mx_loading_end(&loading);
    mx_pool_destroy(pool);
    if (status == MX_CANCELLED) return MX_EXIT_INTERRUPTED;
    if (status) return mx_command_fail(self, &error);
    report(out, &done, mx_seconds() - start);
    if (fflush(stdout) == 0) return MX_EXIT_OK;
    mx_fail(&error, MX_IO, "cannot write to stdout");
    return mx_command_fail(self, &error);
}

static int run(const mx_command *self, int argc, const char **argv) {
    static const struct poptOption options[] = {
        {"to", 0, POPT_ARG_STRING, &option_to, 0, "The layout: hf, gguf, original or metal", "LAYOUT"},
        {"force", 'f', POPT_ARG_NONE, &option_force, 0, "Replace OUT, once the new model is whole", NULL},
        {"allow-loss", 0, POPT_ARG_NONE, &option_allow_loss, 0,
         "Convert also where the layout cannot say everything, and warn", NULL},
        {"quantize-experts", 0, POPT_ARG_STRING, &option_quantize, 0,
         "Round BF16 experts: mxfp4, mxfp4:overflow or mxfp4:search", "FORMAT"},
        {"threads", 't', POPT_ARG_STRING, &option_threads.text, 0, "Threads (default: all cores)", "N"},
        {NULL, 0, POPT_ARG_INCLUDE_TABLE, (void *)mx_hub_options, 0, NULL, NULL},
        POPT_TABLEEND,
    };
    option_to = option_quantize = NULL;
    option_force = option_allow_loss = 0;
    rounding = MX_ROUND_NONE;
    option_threads.text = NULL;
    option_threads.value = 0;
    const char *const *positional = NULL;
    int code = MX_EXIT_OK;
    mx_layout to;
    if (!mx_command_parse(self, options, argc, argv, &positional, &code)) return code;
    if (!positional || !positional[0] || !positional[1] || positional[2])
        return mx_command_usage(self, "expected a model and the name of the new one");
    if (!option_to) return mx_command_usage(self, "--to is missing: hf, gguf, original or metal");
    if (!mx_convert_layout(option_to, &to))
        return mx_command_usage(self, "--to %s: expected hf, gguf, original or metal", option_to);
    if (option_quantize && !mx_quantize_find(self, option_quantize, &rounding)) return MX_EXIT_USAGE;
    if (!mx_number_check(self, &option_threads)) return MX_EXIT_USAGE;
    return convert(self, positional[0], positional[1], to);
}

const mx_command mx_command_convert = {
    .name = "convert",
    .arguments = "MODEL OUT --to hf|gguf|original|metal [OPTION]...",
    .summary = "Write a model in another layout, with the same numbers",
    .description = "MODEL is a folder or file in any layout that mxrun reads. OUT becomes\n"
                   "\n"
                   "  hf        a folder as on Hugging Face: config.json, tokenizer.json, .safetensors\n"
                   "  gguf      a file for llama.cpp and its relatives\n"
                   "  original  a folder as OpenAI's original/: config.json, dtypes.json, .safetensors\n"
                   "  metal     a folder with OpenAI's model.bin for Apple's GPUs\n"
                   "\n"
                   "No weight changes: experts stay MXFP4, BF16 stays BF16, and small tensors that GGUF\n"
                   "wants in F32 come back as the BF16 that they were. From a Hugging Face folder into any\n"
                   "other layout and back, the .safetensors and the small files are the same byte for byte:\n"
                   "config.json, generation_config.json, the tokenizer's and the chat template's files, the\n"
                   "index, README.md, LICENSE, NOTICE, USAGE_POLICY and .gitattributes. They and the headers\n"
                   "of the .safetensors are carried along, in keys \"mxrun.source.*\" of a GGUF, in a file\n"
                   "\"mxrun-source\" elsewhere. Other files and folders are not; a line names them. A model\n"
                   "that began in another layout comes back with the same numbers, in a file of mxrun's own\n"
                   "making. What a layout cannot say is an error that names it; --allow-loss converts all\n"
                   "the same.\n"
                   "\n"
                   "The new model grows as OUT.incomplete and gets its name when it is on the disk. --force\n"
                   "replaces a file, or a folder that holds nothing but a model; never what is being read.\n"
                   "\n"
                   "Examples:\n"
                   "  $ mxrun convert stories stories.gguf --to gguf\n"
                   "  $ mxrun convert gpt-oss-20b-mxfp4.gguf gpt-oss-20b --to hf",
    .run = run,
};
