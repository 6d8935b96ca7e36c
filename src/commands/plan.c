#include <stdio.h>
#include <string.h>

#include "base/cpu.h"
#include "commands/common.h"
#include "commands/models.h"
#include "commands/plan_report.h"

/* mxrun plan: what fits on this machine and how fast it will be, before anything is downloaded. */

enum { MOST_MODELS = MX_PLAN_KNOWN + 2, MOST_STREAMS = 256, CONTEXT = 8192 };

static struct {
    char *model, *kv_type, *quantize, *peak;
    mx_rounding rounding; /* what quantize names */
    int json;
} given;

enum { CTX, STREAMS, BANDWIDTH, NUMBERS };
static mx_number numbers[NUMBERS];

static const struct poptOption options[] = {
    {"model", 'm', POPT_ARG_STRING, &given.model, 0,
     "Judge this model first: a folder, a file, or a name (see mxrun list), of which gpt-oss need not be here",
     "MODEL"},
    {"ctx", 'c', POPT_ARG_STRING, &numbers[CTX].text, 0, "Tokens of each stream, prompt and answer (default 8192)",
     "N"},
    {"streams", 0, POPT_ARG_STRING, &numbers[STREAMS].text, 0, "Answers at the same time (default 1)", "N"},
    {"kv-type", 0, POPT_ARG_STRING, &given.kv_type, 0, "Numbers in the KV cache: f16 (default), bf16 or f32", "TYPE"},
    {"quantize-experts", 0, POPT_ARG_STRING, &given.quantize, 0,
     "Experts of -m that are BF16 will be rounded when they are loaded: mxfp4", "FORMAT"},
    {"bandwidth", 0, POPT_ARG_STRING, &numbers[BANDWIDTH].text, 0,
     "Take this for the memory's bandwidth instead of measuring it", "GB/s"},
    {"peak", 0, POPT_ARG_STRING, &given.peak, 0,
     "Take these for the arithmetic peaks, all that are needed, as mxrun bench --json names them: "
     "fma512=537,dpbf16=1008",
     "NAME=GFLOP/s,..."},
    {"json", 0, POPT_ARG_NONE, &given.json, 0, "One JSON object instead of the text", NULL},
    POPT_TABLEEND,
};

static void reset_options(void) {
    memset(&given, 0, sizeof given);
    numbers[CTX] = (mx_number){"--ctx", NULL, CONTEXT, 1, 1 << 30, true, false};
    numbers[STREAMS] = (mx_number){"--streams", NULL, 1, 1, MOST_STREAMS, true, false};
    numbers[BANDWIDTH] = (mx_number){"--bandwidth", NULL, 0, 0, 1e6, false, true};
}

/* Loops of other architectures have no name. */
static bool is_key(mx_peak_loop loop, const char *text, size_t size) {
    const char *key = mx_peak_key(loop);
    return key && strlen(key) == size && !strncmp(key, text, size);
}

/* "fma512=537,dpbf16=1008". false: the user has been told. */
static bool read_peaks(const mx_command *self, const char *text, mx_peaks *out) {
    *out = (mx_peaks){0};
    for (const char *at = text;; at++) {
        const size_t key = strcspn(at, "=,"), all = strcspn(at, ",");
        char number[32];
        double value = 0;
        int loop = 0, end = 0;
        while (loop < MX_PEAK_LOOPS && !is_key((mx_peak_loop)loop, at, key)) loop++;
        bool ok = loop < MX_PEAK_LOOPS && at[key] == '=' && all - key - 1 < sizeof number - 1;
        if (ok) {
            snprintf(number, sizeof number, "%.*s", (int)(all - key - 1), at + key + 1);
            ok = *number && strspn(number, "0123456789.") == strlen(number) &&
                 sscanf(number, "%lf%n", &value, &end) == 1 && !number[end] && value > 0 && value < 1e9;
        }
        if (!ok) {
            mx_command_usage(
                self, "--peak %s: expected NAME=GFLOP/s with commas between them, as in fma512=537,dpbf16=1008", text);
            return false;
        }
        out->of[loop] = value * 1e9;
        at += all;
        if (!*at) return true;
    }
}

/* ---- models ------------------------------------------------------------------------------------------------------ */

typedef struct plan {
    mx_plan_machine machine;
    mx_plan_request request;
    mx_plan_model asked;
    bool has_asked;
    mx_plan_fit fit[MOST_MODELS];
    int count;
} plan;

/* Index of a known model of this name, alias or repository in models.txt, safeguards too, which have the same shapes;
 * -1: none. */
static int known_model(const char *name) {
    static const struct {
        const char *repository;
        int index;
    } known[] = {{"openai/gpt-oss-20b", 0},  {"openai/gpt-oss-safeguard-20b", 0},  {"ggml-org/gpt-oss-20b-GGUF", 1},
                 {"openai/gpt-oss-120b", 2}, {"openai/gpt-oss-safeguard-120b", 2}, {"ggml-org/gpt-oss-120b-GGUF", 3}};
    mx_models models = {0};
    mx_target target;
    int index = -1;
    if (!mx_open_models(&models, NULL) && !mx_target_parse(&models, name, &target, NULL))
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            if (!strcmp(target.repository, known[i].repository)) index = known[i].index;
    mx_models_free(&models);
    return index;
}

/* What -m names: files that are here, or else a known model, which needs none. */
static mx_status read_asked(plan *p, char folder[MX_PLAN_NAME], mx_error *error) {
    const mx_expert_form form = mx_experts_form(given.rounding);
    *folder = 0;
    if (!given.model) return MX_OK;
    mx_status status = mx_find_model(given.model, folder, MX_PLAN_NAME, error);
    if (!status) {
        status = mx_plan_model_read(folder, form, &p->asked, error);
    } else {
        const int index = known_model(given.model);
        *folder = 0;
        if (index >= 0) status = mx_plan_known(index, &p->asked, error);
    }
    snprintf(p->asked.name, sizeof p->asked.name, "%s", given.model);
    p->has_asked = !status;
    return status;
}

static mx_status add(plan *p, const mx_plan_model *m, mx_error *error) {
    return mx_plan_fit_make(m, &p->machine, &p->request, &p->fit[p->count++], error);
}

static mx_status add_all(plan *p, mx_error *error) {
    static mx_plan_model model;
    mx_status status = p->has_asked ? add(p, &p->asked, error) : MX_OK;
    for (int i = 0; i < MX_PLAN_KNOWN && !status; i++) {
        status = mx_plan_known(i, &model, error);
        const bool same = p->has_asked && !p->asked.here && p->asked.formats.dense == model.formats.dense &&
                          p->asked.config.layers == model.config.layers;
        if (!status && !same) status = add(p, &model, error);
    }
    if (status || (given.model && !strcmp(given.model, "stories"))) return status;
    char folder[MX_PLAN_NAME];
    if (mx_find_stories(folder, sizeof folder, NULL) || mx_plan_model_read(folder, MX_EXPERTS_IN_PLACE, &model, NULL))
        return MX_OK; /* it was not installed: nothing to say about it */
    snprintf(model.name, sizeof model.name, "stories");
    return add(p, &model, error);
}

/* ---- the command ------------------------------------------------------------------------------------------------- */

static mx_status make(plan *p, const mx_peaks *peaks, double *seconds, mx_error *error) {
    char folder[MX_PLAN_NAME];
    const double start = mx_seconds();
    mx_status status = read_asked(p, folder, error);
    mx_hub hub;
    mx_open_hub(&hub, NULL); /* its folder is all that is wanted, "" where it has none: no reason to fail */
    const mx_plan_look look = {.root = "",
                               .model = *folder ? folder : NULL,
                               .cache = hub.folder,
                               .bandwidth = 1e9 * numbers[BANDWIDTH].value,
                               .peaks = peaks};
    if (!status) status = mx_plan_machine_look(&look, &p->machine, error);
    if (!status) status = add_all(p, error);
    *seconds = mx_seconds() - start;
    mx_hub_close(&hub);
    return status;
}

static mx_status print(const plan *p, const char *kv, double seconds, mx_error *error) {
    const mx_plan_report report = {&p->machine, &p->request, kv, p->fit, p->count, p->has_asked, seconds};
    mx_bytes out = {0};
    const bool ok = given.json ? mx_plan_json(&out, &report) : mx_plan_text(&out, &report);
    mx_status status = ok ? mx_write_stdout(&out, error) : mx_out_of_memory(error);
    mx_bytes_free(&out);
    return status;
}

static int run(const mx_command *self, int argc, const char **argv) {
    static plan p;
    const char *const *positional = NULL;
    int code = MX_EXIT_OK;
    memset(&p, 0, sizeof p);
    reset_options();
    if (!mx_command_parse(self, options, argc, argv, &positional, &code)) return code;
    if (positional && positional[0]) return mx_command_usage(self, "unexpected argument \"%s\"", positional[0]);
    for (int i = 0; i < NUMBERS; i++)
        if (!mx_number_check(self, &numbers[i])) return MX_EXIT_USAGE;
    const mx_kv_name *kv = given.kv_type ? mx_kv_find(self, given.kv_type) : &mx_kv_names[0];
    mx_peaks peaks;
    if (given.quantize && !mx_quantize_find(self, given.quantize, &given.rounding)) return MX_EXIT_USAGE;
    if (!kv || (given.peak && !read_peaks(self, given.peak, &peaks))) return MX_EXIT_USAGE;
    p.request = (mx_plan_request){(int64_t)numbers[CTX].value, (int)numbers[STREAMS].value, kv->format};
    mx_error error = {0};
    double seconds;
    mx_status status = make(&p, given.peak ? &peaks : NULL, &seconds, &error);
    if (!status) status = print(&p, kv->name, seconds, &error);
    return status ? mx_command_fail(self, &error) : MX_EXIT_OK;
}

const mx_command mx_command_plan = {
    .name = "plan",
    .arguments = "[-m MODEL] [--ctx N] [--streams N] [--json]",
    .summary = "Tell what fits on this machine and how fast it will be",
    .description = "Looks at the machine, measures its memory and its multipliers for two seconds, and\n"
                   "tells for each model what it needs, whether that fits into memory, which kernels\n"
                   "would run, the speed to expect with the arithmetic behind it, and what to do.\n"
                   "Nothing must have been downloaded, and no network is used. What cannot be read is\n"
                   "called unknown.\n"
                   "\n"
                   "Memory: the weights, keys and values of all streams (layers with a sliding window\n"
                   "keep their window and the rows of a step), what steps compute in, and the program.\n"
                   "While more is free, mxrun also keeps what was computed of earlier prompts\n"
                   "(--kv-memory of the other commands limits that).\n"
                   "\n"
                   "Speed: low to high, from the bandwidth's lowest to its highest sample, and 10 % more\n"
                   "to either side; mxrun bench measures it. The formula was fitted to the kernels\n"
                   "avx512bf16. For avx512 and avx2 it is borrowed, and low is 35 % lower; for others,\n"
                   "and where --peak leaves out one that is needed, speeds are unknown.\n"
                   "\n"
                   "--json prints one object; what is not known is null:\n"
                   "  machine      cpu, features, tier, precision, logical_cpus, cores_allowed, cores,\n"
                   "               memory_nodes, l1d_bytes, l2_bytes, l3_bytes, power_limit_w,\n"
                   "               memory_bytes, memory_free_bytes, huge_pages,\n"
                   "               bandwidth_gb_s (low, median, high), peak_gflop_s, given (bandwidth or\n"
                   "               peaks came from options), disk (folder, free_bytes, read_gb_s, note),\n"
                   "               gpus (name, memory_bytes, memory_free_bytes, compute_capability,\n"
                   "               kernels, family, bandwidth_gb_s, power_limit_w, used), gpu_note,\n"
                   "               gpu_driver\n"
                   "  seconds      that looking and measuring took\n"
                   "  context, streams, kv_type   as asked for\n"
                   "  models       name, layout, kernels (experts, dense, attention: kind native, widened,\n"
                   "               library, scalar or none, and how; on the CPU), here (its files are on\n"
                   "               this machine), layers, experts, max_context, weight_bytes_per_token,\n"
                   "               memory and gpu_memory (one for each GPU: weights_bytes, kv_bytes,\n"
                   "               scratch_bytes, program_bytes, total_bytes, left_bytes, fits,\n"
                   "               most_context), prompt and decode (of a step: rows, bytes, operations,\n"
                   "               seconds_by_bytes, seconds_by_operations, slowness, tokens_per_s: low,\n"
                   "               median, high), from_disk, speed_unknown (why), speed_borrowed (the\n"
                   "               factors are those of other kernels), cold_start_s\n"
                   "  choice       name of the model to run here\n"
                   "  recommendation   sentences\n"
                   "\n"
                   "Examples:\n"
                   "  $ mxrun plan\n"
                   "  $ mxrun plan -m gpt-oss-120b --ctx 32768 --streams 8\n"
                   "  $ mxrun plan -m FOLDER --json",
    .run = run,
};
