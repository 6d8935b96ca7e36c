#include <stdio.h>
#include <string.h>

#include "base/cpu.h"
#include "commands/common.h"
#include "commands/models.h"
#include "commands/quantize_report.h"
#include "commands/terminal.h"
#include "convert/convert.h"
#include "quantize/model.h"

/* mxrun quantize: a model with its weights in other formats. */

static const char *option_format[MX_GROUPS];
static const char *option_rules, *option_recipe, *option_calibrate, *option_to, *option_formats;
static int option_quick;
static int option_modelopt, option_force, option_nonfinite, option_json, option_dry, option_verbose, option_loss;
static mx_number option_threads = {"--threads", NULL, 0, 1, MX_MOST_THREADS, true, false};
static mx_number option_bits = {"--target-bits", NULL, 0, 0, 32, false, true};
static mx_number option_tokens = {"--calibrate-tokens", NULL, 0, 1, 1e9, true, false};

/* A bar for each thing that lasts. */
typedef struct bars {
    mx_progress bar;
    const char *label; /* NULL: none yet */
} bars;

static void show(void *user, const char *label, bool bytes, uint64_t done, uint64_t total) {
    bars *b = user;
    if (b->label != label) {
        if (b->label) mx_progress_clear(&b->bar);
        mx_progress_start(&b->bar, label, (double)total, bytes);
        b->label = label;
    }
    mx_progress_update(&b->bar, (double)done);
}

static mx_status write_report(const char *out, bool gguf, const mx_model_report *report, mx_error *error) {
    const mx_quantize_shown shown = {.out = option_dry ? NULL : out, .verbose = option_verbose, .gguf = gguf};
    mx_bytes text = {0};
    const bool ok = option_json ? mx_quantize_json(&text, &shown, report) : mx_quantize_text(&text, &shown, report);
    mx_status status = ok ? mx_write_stdout(&text, error) : mx_out_of_memory(error);
    mx_bytes_free(&text);
    return status;
}

/* ---- GGUF ---------------------------------------------------------------------------------------------------------
 */

static void shown_converting(void *user, uint64_t done, uint64_t total) {
    show(user, "quantising", true, done, total);
}

/* What GGUF can hold of it: experts in MXFP4, all else as it is. */
static mx_status check_gguf(const mx_model_options *o, mx_error *error) {
    for (int g = 0; g < MX_GROUPS; g++) {
        const char *format = o->choice.format[g];
        if (!format || !strcmp(format, "keep") || (g == MX_GROUP_EXPERTS && !strcmp(format, "mxfp4"))) continue;
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "GGUF holds experts in mxfp4 and all else as it is, not %s in %s: write a folder",
                       mx_group_name((mx_group)g), format);
    }
    if (o->choice.rules || o->target_bits > 0 || o->modelopt || o->allow_nonfinite)
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "a GGUF is written without --rules, --target-bits, --modelopt and --allow-nonfinite: "
                       "write a folder, and then the file with mxrun convert FOLDER FILE.gguf --to gguf");
    return MX_OK;
}

/* The recipe as converting knows it. `kept`: the experts stay as they are, whatever it is. */
static mx_status find_rounding(const mx_quantize_recipe *r, bool kept, mx_rounding *out, mx_error *error) {
    const bool simple = !r->hadamard && !r->gptq && !r->four_over_six && !r->tensor_search;
    *out = kept                          ? MX_ROUND_NONE
           : r->rule == MX_RULE_OVERFLOW ? MX_ROUND_OVERFLOW
           : r->rule == MX_RULE_SEARCH   ? MX_ROUND_SEARCH
                                         : MX_ROUND_OCP;
    if (simple && r->rule != MX_RULE_WEIGHTED) return MX_OK;
    return mx_fail(error, MX_INVALID_ARGUMENT,
                   "a GGUF is written with the recipes ocp, overflow, search and keep: with others write a folder, and "
                   "then the file with mxrun convert FOLDER FILE.gguf --to gguf");
}

/* What a folder would get, which has the same formats, is the list of it. */
static mx_status to_gguf(const char *in, const char *out, const mx_model_options *o, mx_model_report *report,
                         mx_error *error) {
    mx_converted done = {0};
    mx_model_options list = *o;
    mx_rounding rounding;
    const char *experts = o->choice.format[MX_GROUP_EXPERTS];
    const double start = mx_seconds();
    bool quantized = false;
    *report = (mx_model_report){0};
    mx_status status = check_gguf(o, error);
    if (!status) status = find_rounding(&o->choice.recipe, false, &rounding, error);
    list.dry_run = true;
    list.choice.recipe.rule = MX_RULE_KEEP; /* experts that are MXFP4 are copied */
    if (!status) status = mx_quantize_model(in, "dry-run", &list, report, error);
    if (status || o->dry_run) return status;
    for (int i = 0; i < report->matrices; i++) quantized |= report->matrix[i].was_mxfp4;
    status = find_rounding(&o->choice.recipe, quantized || (experts && !strcmp(experts, "keep")), &rounding, error);
    if (status) return status;
    const mx_convert_options options = {.to = MX_LAYOUT_GGUF,
                                        .force = o->force,
                                        .quantize_experts = rounding,
                                        .allow_loss = option_loss,
                                        .pool = o->pool,
                                        .stop = o->stop,
                                        .progress = shown_converting,
                                        .user = o->user};
    status = mx_convert(in, out, &options, &done, error);
    report->file_bytes = report->bytes = done.bytes;
    report->files = done.files;
    report->seconds = mx_seconds() - start;
    return status;
}

/* ---- the command --------------------------------------------------------------------------------------------------
 */

static int quantize(const mx_command *self, const char *in, const char *out, bool gguf, mx_model_options *o) {
    mx_error error = {0};
    char path[4096];
    mx_pool *pool = NULL;
    mx_model_report report = {0};
    bars b = {0};
    mx_status status = mx_resolve_model(in, path, sizeof path, &error);
    if (!status) status = mx_pool_create((int)option_threads.value, &pool, &error);
    if (!status) {
        o->pool = pool;
        o->stop = &mx_interrupted;
        o->progress = show;
        o->user = &b;
        mx_interrupt_catch(true);
        status = gguf ? to_gguf(path, out, o, &report, &error) : mx_quantize_model(path, out, o, &report, &error);
        mx_interrupt_release();
    }
    if (b.label) mx_progress_clear(&b.bar);
    if (!status) status = write_report(out, gguf, &report, &error);
    mx_model_report_free(&report);
    mx_pool_destroy(pool);
    if (status == MX_CANCELLED) return MX_EXIT_INTERRUPTED;
    return status ? mx_command_fail(self, &error) : MX_EXIT_OK;
}

/* What does not go together. 0, or the exit code after the user has been told. */
static int check(const mx_command *self, const mx_model_options *o, bool gguf) {
    const bool statistics = o->choice.recipe.gptq || o->choice.recipe.rule == MX_RULE_WEIGHTED;
    if (o->target_bits > 0 && option_rules)
        return mx_command_usage(self, "--target-bits chooses by itself: leave --rules away");
    for (int g = 0; g < MX_GROUPS && o->target_bits > 0; g++)
        if (option_format[g])
            return mx_command_usage(self, "--target-bits chooses by itself: leave the formats of classes away");
    if (o->target_bits <= 0 && (option_formats || option_quick))
        return mx_command_usage(self, "%s says how --target-bits chooses: give that, too",
                                option_formats ? "--formats" : "--quick");
    if (o->target_bits > 0 && !option_calibrate)
        return mx_command_usage(self, "--target-bits measures on a text: --calibrate FILE");
    if (option_calibrate && !statistics && o->target_bits <= 0 && !option_rules)
        return mx_command_usage(self, "--calibrate is for the recipes weighted and gptq, and for --target-bits");
    if (option_tokens.text && !option_calibrate)
        return mx_command_usage(self, "--calibrate-tokens is of a text: --calibrate FILE");
    if (option_loss && !gguf) return mx_command_usage(self, "--allow-loss is for GGUF: a folder loses nothing");
    if (o->allow_nonfinite && option_calibrate)
        return mx_command_usage(self,
                                "--allow-nonfinite mends weights as they are written, and --calibrate runs the model "
                                "as it is, in which NaN spreads: first write it with --allow-nonfinite and bf16 for "
                                "all classes, then calibrate that");
    return 0;
}

static bool read_options(const mx_command *self, mx_model_options *o) {
    mx_error error = {0};
    if (!mx_number_check(self, &option_threads) || !mx_number_check(self, &option_bits) ||
        !mx_number_check(self, &option_tokens))
        return false;
    if (mx_quantize_recipe_parse(option_recipe ? option_recipe : "ocp", &o->choice.recipe, &error)) {
        mx_command_usage(self, "--recipe: %s", error.text);
        return false;
    }
    memcpy(o->choice.format, option_format, sizeof option_format);
    o->choice.rules = option_rules;
    o->target_bits = option_bits.text ? option_bits.value : 0;
    o->formats = option_formats;
    o->quick = option_quick;
    o->calibrate = option_calibrate;
    o->calibrate_tokens = option_tokens.text ? (int64_t)option_tokens.value : 0;
    o->modelopt = option_modelopt;
    o->force = option_force;
    o->allow_nonfinite = option_nonfinite;
    o->dry_run = option_dry;
    return true;
}

static int run(const mx_command *self, int argc, const char **argv) {
    static const struct poptOption options[] = {
        {"experts", 0, POPT_ARG_STRING, &option_format[MX_GROUP_EXPERTS], 0,
         "Format of experts, or of a dense model's feed-forward matrices (default: mxfp4)", "FORMAT"},
        {"attention", 0, POPT_ARG_STRING, &option_format[MX_GROUP_ATTENTION], 0, "Of q, k, v and o (default: keep)",
         "FORMAT"},
        {"router", 0, POPT_ARG_STRING, &option_format[MX_GROUP_ROUTER], 0, "Of the router (default: keep)", "FORMAT"},
        {"embedding", 0, POPT_ARG_STRING, &option_format[MX_GROUP_EMBEDDING], 0, "Of the embedding (default: keep)",
         "FORMAT"},
        {"lm-head", 0, POPT_ARG_STRING, &option_format[MX_GROUP_LM_HEAD], 0, "Of lm_head (default: keep)", "FORMAT"},
        {"rules", 0, POPT_ARG_STRING, &option_rules, 0,
         "Lines \"GLOB FORMAT [RECIPE]\", of which the first that fits a matrix's name wins", "FILE"},
        {"target-bits", 0, POPT_ARG_STRING, &option_bits.text, 0,
         "Choose formats by what each part's does to the model's predictions, so many bits a weight together", "N"},
        {"formats", 0, POPT_ARG_STRING, &option_formats, 0,
         "What --target-bits chooses from (default: mxfp4,nvfp4,mxfp8,bf16)", "FORMAT,..."},
        {"quick", 0, POPT_ARG_NONE, &option_quick, 0,
         "--target-bits runs the smallest format of each part alone, and estimates what the others do", NULL},
        {"recipe", 0, POPT_ARG_STRING, &option_recipe, 0, "How scales and codes are chosen (default: ocp)", "RECIPE"},
        {"calibrate", 0, POPT_ARG_STRING, &option_calibrate, 0,
         "Text to run the model over, for weighted, gptq and --target-bits", "FILE"},
        {"calibrate-tokens", 0, POPT_ARG_STRING, &option_tokens.text, 0, "Of the text, at most", "N"},
        {"modelopt", 0, POPT_ARG_NONE, &option_modelopt, 0, "Names of NVIDIA's ModelOpt for NVFP4", NULL},
        {"to", 0, POPT_ARG_STRING, &option_to, 0, "hf: a folder; gguf: a file (default: by OUT's name)", "LAYOUT"},
        {"force", 'f', POPT_ARG_NONE, &option_force, 0, "Replace OUT, once the new model is whole", NULL},
        {"allow-loss", 0, POPT_ARG_NONE, &option_loss, 0, "GGUF: convert also where it cannot say everything, and warn",
         NULL},
        {"allow-nonfinite", 0, POPT_ARG_NONE, &option_nonfinite, 0,
         "NaN becomes 0 and infinity the largest number, instead of an error", NULL},
        {"dry-run", 'n', POPT_ARG_NONE, &option_dry, 0, "Say what would be written, and write nothing", NULL},
        {"verbose", 'v', POPT_ARG_NONE, &option_verbose, 0, "A line for each matrix", NULL},
        {"json", 0, POPT_ARG_NONE, &option_json, 0, "One JSON object instead of the text", NULL},
        {"threads", 't', POPT_ARG_STRING, &option_threads.text, 0, "Threads (default: all cores)", "N"},
        {NULL, 0, POPT_ARG_INCLUDE_TABLE, (void *)mx_hub_options, 0, NULL, NULL},
        POPT_TABLEEND,
    };
    memset(option_format, 0, sizeof option_format);
    option_rules = option_recipe = option_calibrate = option_to = option_formats = NULL;
    option_quick = option_modelopt = option_force = option_nonfinite = option_json = option_dry = option_verbose =
        option_loss = 0;
    option_threads.text = option_bits.text = option_tokens.text = NULL;
    option_threads.value = 0;
    const char *const *positional = NULL;
    int code = MX_EXIT_OK;
    mx_model_options o = {0};
    if (!mx_command_parse(self, options, argc, argv, &positional, &code)) return code;
    const int given = !positional ? 0 : !positional[0] ? 0 : !positional[1] ? 1 : !positional[2] ? 2 : 3;
    if (given != 2 && !(given == 1 && option_dry))
        return mx_command_usage(self, "expected a model and the name of the new one");
    if (option_to && strcmp(option_to, "hf") && strcmp(option_to, "gguf"))
        return mx_command_usage(self, "--to %s: expected hf or gguf", option_to);
    if (!read_options(self, &o)) return MX_EXIT_USAGE;
    const char *out = given == 2 ? positional[1] : "dry-run";
    const bool gguf = option_to ? !strcmp(option_to, "gguf") : mx_ends_with(out, ".gguf");
    code = check(self, &o, gguf);
    if (code) return code;
    return quantize(self, positional[0], out, gguf, &o);
}

const mx_command mx_command_quantize = {
    .name = "quantize",
    .arguments = "MODEL OUT [--experts FORMAT] [--recipe RECIPE] [OPTION]...",
    .summary = "Write a model with its weights in MXFP4, NVFP4, INT4 ...",
    .description = "MODEL is a gpt-oss in any layout that mxrun reads, or the folder (or .safetensors) of\n"
                   "another model: of Llama, Qwen, Mixtral and their like every 2-D weight can be\n"
                   "quantised, but mxrun does not run them. OUT is a folder as on Hugging Face, with a\n"
                   "quantization_config that says what was done, or, called .gguf, a file with experts\n"
                   "in MXFP4.\n"
                   "\n"
                   "Formats (block size behind the colon): mxfp4, mxfp4:16, mxfp4:64, nvfp4, mxfp8,\n"
                   "mxfp8_e5m2, mxfp6_e2m3, mxfp6_e3m2, fp8, fp8:channel, int8:32, int8:64, int8:128,\n"
                   "int4:32, int4:64, int4:128 (these with :asym, too), amxfp4 (two scales a block),\n"
                   "bf16, and keep: as it is. Columns must be a multiple of the block: gpt-oss's 2880\n"
                   "take 16, 32 and 64, but not 128.\n"
                   "\n"
                   "Recipes, several joined by +, and where they are from:\n"
                   "\n"
                   "  ocp            2^(floor(log2 largest) - emax), to nearest: OCP MX v1.0, 6.3\n"
                   "  overflow       one more if the largest rounds over (not fp8, intN): arXiv 2603.08713\n"
                   "  search         the scale of the least squared error: arXiv 2606.07618\n"
                   "  weighted       search by what comes in (--calibrate): llama.cpp's imatrix\n"
                   "  keep           MXFP4 stays byte for byte, all else (BF16 ...) is ocp's: our own\n"
                   "  gptq           errors into later columns (--calibrate): arXiv 2210.17323, 2509.23202\n"
                   "  four-over-six  nvfp4: a block's largest becomes 6 or 4: arXiv 2512.02010\n"
                   "  tensor-search  nvfp4: the tensor's scale of the least error, of 8: our own\n"
                   "  hadamard       channels rotated by blocks before, exactly: arXiv 2509.23202\n"
                   "\n"
                   "The result does not depend on the number of threads. That of weighted, gptq and\n"
                   "--target-bits, which run the model, may differ between processors in single codes;\n"
                   "all others do not. amxfp4 is arXiv 2411.09909.\n"
                   "\n"
                   "A file of --rules gives single matrices their formats and recipes; what no rule fits\n"
                   "goes by class. Names are \"model.layers.3.mlp.experts.7.gate_proj\" and the like\n"
                   "(--dry-run --verbose lists them); the experts of a layer share one format for gate and\n"
                   "up, and one for down:\n"
                   "\n"
                   "  *.layers.[01].mlp.experts.*.down_proj  mxfp8       # more bits at the beginning\n"
                   "  lm_head                                nvfp4 search+four-over-six\n"
                   "\n"
                   "--target-bits N measures instead: the model runs over the text of --calibrate with\n"
                   "one part at a time (q, k and v of a layer, o, gate and up, down, embedding, lm_head)\n"
                   "in one of --formats, and the mixture that changes its predictions least (the sum of KL\n"
                   "divergences) within N bits a weight is taken; the router keeps 16. With --quick only the\n"
                   "smallest format of each part is run, the others' KL is taken to be as much less as their\n"
                   "squared error is: with the usual four a third of the time.\n"
                   "\n"
                   "Weights are read tensor by tensor, and memory is what the largest of them takes.\n"
                   "NaN and infinity in a matrix that is quantised are refused by name. Tensors that are\n"
                   "no matrices, and classes that are kept, are copied byte for byte, whatever is in them.\n"
                   "The new model grows as OUT.incomplete and gets its\n"
                   "name when it is on the disk.\n"
                   "\n"
                   "Examples:\n"
                   "  $ mxrun quantize stories-bf16 stories-mxfp4\n"
                   "  $ mxrun quantize gpt-oss-20b small --attention nvfp4 --lm-head nvfp4 --recipe search\n"
                   "  $ mxrun quantize stories-bf16 best --recipe search+gptq --calibrate books.txt\n"
                   "  $ mxrun quantize stories-bf16 mixed --target-bits 4.6 --calibrate books.txt",
    .run = run,
};
