#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cpu.h"
#include "base/pages.h"
#include "commands/common.h"
#include "engine/model_parts.h"
#include "model/device.h"
#include "tokenizer/tokenizer.h"

/* mxrun info: what a model is made of, what a token costs, and what fits on this machine. */

/* ---- classes of tensors ------------------------------------------------------------------------------------------ */

typedef struct class {
    const char *name, *part; /* `part`: what such a tensor's name contains; the first class that fits takes it */
    int tensors;
    char types[120];      /* formats of matrices, dtypes of the rest */
    double bytes, read;   /* in the files; of them, read for one decoded token */
    double count, active; /* parameters; of them, used for one token */
} class;

static const class all_classes[] = {
    {.name = "experts", .part = ".mlp.experts."},
    {.name = "router", .part = ".mlp.router."},
    {.name = "attention", .part = ".self_attn."},
    {.name = "norms", .part = "norm.weight"},
    {.name = "embedding", .part = "embed_tokens"},
    {.name = "lm_head", .part = "lm_head"},
    {.name = "unused", .part = ""},
};
enum { CLASSES = sizeof all_classes / sizeof *all_classes };

static void add_type(class *c, const char *type) {
    size_t used = strlen(c->types);
    if (strstr(c->types, type) || used + strlen(type) + 3 > sizeof c->types) return;
    snprintf(c->types + used, sizeof c->types - used, "%s%s", used ? ", " : "", type);
}

/* The matrix of weights that the tensor's bytes are; NULL: they are none. */
static const mx_matrix *matrix_of(const mx_weights *w, const mx_tensor *t) {
    if (w->embedding.data == t->data) return &w->embedding;
    if (w->lm_head.data == t->data) return &w->lm_head;
    for (int i = 0; i < w->config.layers; i++) {
        const mx_layer *l = &w->layer[i];
        const mx_matrix *const all[] = {&l->q,         &l->k,          &l->v, &l->o, &l->router, &l->gate_up.matrix,
                                        &l->up.matrix, &l->down.matrix};
        for (size_t k = 0; k < sizeof all / sizeof *all; k++)
            if (all[k]->data == t->data) return all[k];
    }
    return NULL;
}

/* Numbers of a tensor that are parameters of the model: not those that say how others are to be read. */
static double parameters(const mx_config *c, const mx_tensor *t, const mx_matrix *matrix) {
    static const char *const none[] = {"_scales",         ".weight_scale",      ".weight_global_scale",
                                       ".weight_scale_2", ".weight_shape",      ".weight_zero_point",
                                       ".input_scale",    ".input_global_scale"};
    double count = 1;
    if (matrix)
        return (double)matrix->rows * (double)matrix->cols * (strstr(t->name, ".mlp.experts.") ? c->experts : 1);
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        if (mx_ends_with(t->name, none[i])) return 0;
    for (int d = 0; d < t->dims; d++) count *= (double)t->shape[d];
    return count;
}

/* Sums the checkpoint's tensors up by class. */
static void classify(const mx_weights *w, class classes[CLASSES]) {
    const mx_config *c = &w->config;
    memcpy(classes, all_classes, sizeof all_classes);
    for (int i = 0; i < mx_checkpoint_count(w->checkpoint); i++) {
        const mx_tensor *t = mx_checkpoint_at(w->checkpoint, i);
        int k = 0;
        while (!strstr(t->name, classes[k].part)) k++;
        class *a = &classes[k];
        bool experts = !strcmp(a->name, "experts"), embedding = !strcmp(a->name, "embedding");
        const mx_matrix *matrix = t->bytes ? matrix_of(w, t) : NULL;
        double bytes = (double)t->bytes, count = parameters(c, t, matrix), share = 1;
        if (experts) share = (double)c->top_k / c->experts;
        if (embedding) share = 1.0 / c->vocab;
        if (!strcmp(a->name, "unused") || (!strcmp(a->name, "lm_head") && c->tied_embeddings)) share = 0;
        a->tensors++;
        a->bytes += bytes;
        a->count += count;
        a->read += bytes * (embedding && c->tied_embeddings ? 1 : share);
        a->active += count * (embedding && c->tied_embeddings ? 1 : share);
        char type[MX_WEIGHT_NAME];
        if (matrix) mx_weight_name(type, matrix);
        if (count > 0) add_type(a, matrix ? type : t->dtype_name);
    }
}

static class sum_of(const class classes[CLASSES]) {
    class total = {.name = "total"};
    for (int i = 0; i < CLASSES; i++) {
        total.tensors += classes[i].tensors;
        total.bytes += classes[i].bytes;
        total.read += classes[i].read;
        total.count += classes[i].count;
        total.active += classes[i].active;
    }
    return total;
}

/* ---- KV memory --------------------------------------------------------------------------------------------------- */

/* Context lengths of the table: powers of two from 4096 to the model's maximum; *next starts at 0. */
static bool next_context(const mx_config *c, int64_t *next) {
    int64_t most = c->max_positions;
    if (*next >= most) return false;
    *next = *next == 0 ? 4096 : *next * 2;
    if (*next > most) *next = most;
    return true;
}

/* ---- plain text -------------------------------------------------------------------------------------------------- */

static const char *human(char out[16], double value, const char *unit) {
    static const char *const prefix[] = {"", "k", "M", "G", "T"};
    int i = 0;
    while (value >= 999.5 && i < 4) {
        value /= 1000;
        i++;
    }
    int digits = i == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
    snprintf(out, 16, "%.*f %s%s", digits, value, prefix[i], unit);
    return out;
}

static void print_model(const char *folder, const mx_weights *w, const class *total) {
    const mx_config *c = &w->config;
    int sliding = 0;
    for (int i = 0; i < c->layers; i++) sliding += c->sliding[i];
    char a[16], b[16];
    printf("%s\n\n", folder);
    printf("Model\n");
    printf("  layout        %s\n", mx_layout_name(mx_checkpoint_layout(w->checkpoint)));
    printf("  kind          gpt_oss, %s parameters, %s for a token\n", human(a, total->count, ""),
           human(b, total->active, ""));
    printf("  layers        %d: %d with full attention, %d with a window of %d\n", c->layers, c->layers - sliding,
           sliding, c->window);
    printf("  width         %d\n", c->hidden);
    printf("  attention     %d heads of %d, %d for keys and values%s\n", c->heads, c->head_dim, c->kv_heads,
           c->attention_bias ? "" : ", no biases");
    printf("  experts       %d of width %d, %d for a token\n", c->experts, c->intermediate, c->top_k);
    printf("  activation    SwiGLU, limit %g, alpha %g\n", (double)c->swiglu_limit, (double)c->swiglu_alpha);
    printf("  norm          RMS, eps %g\n", (double)c->rms_eps);
    printf("  positions     %d, RoPE theta %g", c->max_positions, c->rope_theta);
    if (c->yarn)
        printf(", YaRN %g over %d (beta %g, %g%s)", c->yarn_factor, c->yarn_original_positions, c->yarn_beta_fast,
               c->yarn_beta_slow, c->yarn_truncate ? ", truncated" : "");
    printf("\n  vocabulary    %d%s\n", c->vocab, c->tied_embeddings ? ", lm_head tied to the embedding" : "");
    printf("  end tokens   ");
    for (int i = 0; i < c->eos_count; i++) printf(" %d", c->eos[i]);
    printf("%s\n", c->eos_count ? "" : " none named");
    printf("  sampling      temperature %g%s, top-k %d%s, top-p %g%s, unless options say otherwise\n\n",
           (double)c->temperature, c->temperature > 0 ? "" : " (greedy)", c->sample_top_k,
           c->sample_top_k ? "" : " (all)", (double)c->top_p, c->top_p < 1 ? "" : " (all)");
}

static void print_weights(const class classes[CLASSES], const class *total) {
    char count[16], bytes[16], read[16];
    printf("Weights       tensors  parameters       bytes   bits  read a token  type\n");
    for (int i = 0; i <= CLASSES; i++) {
        const class *c = i < CLASSES ? &classes[i] : total;
        if (c->tensors)
            printf("  %-11s %7d %11s %11s %6.2f %13s%s%s\n", c->name, c->tensors, human(count, c->count, ""),
                   human(bytes, c->bytes, "B"), c->count > 0 ? 8 * c->bytes / c->count : 0, human(read, c->read, "B"),
                   *c->types ? "  " : "", c->types);
    }
    printf("\n");
}

static void print_tokenizer(const mx_tokenizer *t, const mx_config *c) {
    printf("Tokenizer\n");
    if (!t) {
        printf("  none is here: only token ids can be run, or --tokenizer FILE\n\n");
        return;
    }
    int special = 0;
    for (int32_t i = 0; i < mx_tokenizer_size(t); i++) special += mx_is_special(t, i);
    printf("  tokens        %d, %d of them special", mx_tokenizer_size(t), special);
    /* The published one defines <|reserved_201088|>, one past the embedding. */
    if (mx_tokenizer_size(t) > c->vocab + 1) printf(" (more than the model's vocabulary)");
    mx_harmony_ids h = mx_tokenizer_harmony_ids(t);
    const struct {
        const char *name;
        int32_t id;
    } ids[] = {
        {"start", h.start},         {"end", h.end},        {"message", h.message}, {"channel", h.channel},
        {"constrain", h.constrain}, {"return", h.return_}, {"call", h.call},       {"startoftext", h.startoftext},
        {"endoftext", h.endoftext}};
    printf("\n  harmony      ");
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
        if (i == 5) printf("\n               ");
        if (ids[i].id >= 0)
            printf(" <|%s|> %d", ids[i].name, ids[i].id);
        else
            printf(" no <|%s|>", ids[i].name);
    }
    printf("\n\n");
}

static void print_memory(const mx_model *model, double weights) {
    const mx_config *c = mx_model_config(model);
    char kv[16], sum[16];
    printf("Memory        one sequence's KV cache, and with the weights (%s)\n", human(kv, weights, "B"));
    printf("  context     cache f16, bf16     in all     cache f32     in all\n");
    for (int64_t n = 0; next_context(c, &n);) {
        double half = (double)mx_kv_memory(model, MX_KV_F16, n), full = (double)mx_kv_memory(model, MX_KV_F32, n);
        printf("  %7lld     %15s", (long long)n, human(kv, half, "B"));
        printf(" %10s", human(sum, half + weights, "B"));
        printf("    %10s", human(kv, full, "B"));
        printf(" %10s\n", human(sum, full + weights, "B"));
    }
    printf("\n");
}

static void print_machine(const mx_kernels *kernels, const mx_checkpoint *checkpoint, double weights) {
    char text[16];
    const double cached = (double)mx_checkpoint_cached(checkpoint);
    printf("Machine       and what run, chat and bench do on it by default\n");
    mx_precisions precision = mx_precisions_default(kernels);
    char name[MX_PRECISION_NAME];
    mx_precisions_name(name, &precision);
    const int nodes = mx_numa_nodes();
    printf("  kernels       %s\n", kernels->name);
    printf("  precision     default %s activations in products (--precision)\n", name);
    printf("  attention     default mxrun's own products (--dense)\n");
    printf("  threads       default %d (--threads)\n", mx_cpu_count());
    printf("  memory nodes  %d, default %s (--numa)\n", nodes,
           nodes > 1 ? "auto: each holds its part of the weights" : "auto: nothing to place");
    printf("  memory free   %s\n", human(text, (double)mx_memory_available(), "B"));
    printf("  weights       %.0f %% of them in the page cache\n", 100 * (cached < weights ? cached / weights : 1));
    printf("  huge pages    %s\n", mx_pages_huge() ? "for mapped files and memory, where the file system has them"
                                                   : "switched off by the administrator");
}

/* ---- GPUs ---- */

/* What device `index` would do with the model. */
typedef struct gpu {
    mx_gpu_info info;
    mx_cuda_memory memory;
    mx_status status; /* MX_OK: it holds the model */
    mx_error why;
} gpu;

static gpu look_at_gpu(int index, const mx_weights *w) {
    const mx_backend_options shape = {.kv_format = MX_F16, .max_rows = 2048, .max_wanted = 128};
    const mx_device_choice choice = {.cuda = true, .index = index};
    const mx_cuda_plugin *plugin;
    mx_device device;
    gpu g = {0};
    g.status = mx_device_open(&choice, 0, w, &shape, &device, &g.why);
    if (!mx_cuda_plugin_find(&plugin, NULL)) {
        plugin->info(index, &g.info, NULL);
        plugin->memory(w, &shape, &g.memory, NULL);
    }
    mx_device_close(&device);
    return g;
}

/* How many there are; 0: *why says why. */
static int count_gpus(mx_error *why) {
    const mx_cuda_plugin *plugin;
    int count = 0;
    mx_status status = mx_cuda_plugin_find(&plugin, why);
    if (!status) status = plugin->count(&count, why);
    if (!status && !count) mx_fail(why, MX_UNSUPPORTED, "this machine has no GPU that CUDA can use");
    return status ? 0 : count;
}

static void print_gpus(const mx_weights *w) {
    mx_error why = {0};
    char one[40], two[40];
    const int count = count_gpus(&why);
    if (!count) printf("  GPU           none: %s\n", why.text);
    for (int i = 0; i < count; i++) {
        const gpu g = look_at_gpu(i, w);
        if (!g.status)
            printf("  GPU           %s (--device cuda:%d), %s free: takes weights of %s\n", g.info.name, i,
                   human(one, (double)g.info.memory_free, "B"), human(two, (double)g.memory.weights, "B"));
        else
            printf("  GPU           %s\n", g.why.text);
    }
}

static void json_gpus(mx_bytes *out, const mx_weights *w) {
    mx_error why = {0};
    const int count = count_gpus(&why);
    mx_bytes_add_string(out, ",\"gpus\":[");
    for (int i = 0; i < count; i++) {
        const gpu g = look_at_gpu(i, w);
        mx_bytes_add_string(out, i ? ",{\"name\":" : "{\"name\":");
        mx_bytes_add_json(out, g.info.name, strlen(g.info.name));
        mx_bytes_addf(out,
                      ",\"compute_capability\":\"%d.%d\",\"memory\":%llu,\"memory_free\":%llu,\"weights\":%llu,"
                      "\"holds_model\":%s}",
                      g.info.major, g.info.minor, (unsigned long long)g.info.memory,
                      (unsigned long long)g.info.memory_free, (unsigned long long)g.memory.weights,
                      g.status ? "false" : "true");
    }
    mx_bytes_add_string(out, "]");
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

static void json_config(mx_bytes *out, const mx_config *c) {
    mx_bytes_addf(out, "\"config\":{\"layers\":%d,\"sliding\":[", c->layers);
    for (int i = 0; i < c->layers; i++) mx_bytes_addf(out, "%s%s", i ? "," : "", c->sliding[i] ? "true" : "false");
    mx_bytes_addf(
        out,
        "],\"window\":%d,\"hidden\":%d,\"intermediate\":%d,\"heads\":%d,\"kv_heads\":%d,\"head_dim\":%d,"
        "\"experts\":%d,\"top_k\":%d,\"vocab\":%d,\"max_positions\":%d,\"rms_eps\":%.9g,\"swiglu_limit\":%.9g,"
        "\"swiglu_alpha\":%.9g,\"rope_theta\":%.17g,\"attention_bias\":%s,\"tied_embeddings\":%s",
        c->window, c->hidden, c->intermediate, c->heads, c->kv_heads, c->head_dim, c->experts, c->top_k, c->vocab,
        c->max_positions, (double)c->rms_eps, (double)c->swiglu_limit, (double)c->swiglu_alpha, c->rope_theta,
        c->attention_bias ? "true" : "false", c->tied_embeddings ? "true" : "false");
    if (c->yarn)
        mx_bytes_addf(out,
                      ",\"yarn\":{\"factor\":%.17g,\"original_positions\":%d,\"beta_fast\":%.17g,\"beta_slow\":%.17g,"
                      "\"truncate\":%s}",
                      c->yarn_factor, c->yarn_original_positions, c->yarn_beta_fast, c->yarn_beta_slow,
                      c->yarn_truncate ? "true" : "false");
    mx_bytes_add_string(out, ",\"eos\":[");
    for (int i = 0; i < c->eos_count; i++) mx_bytes_addf(out, "%s%d", i ? "," : "", c->eos[i]);
    mx_bytes_addf(out, "],\"sampling\":{\"temperature\":%.9g,\"top_k\":%d,\"top_p\":%.9g}}", (double)c->temperature,
                  c->sample_top_k, (double)c->top_p);
}

static void json_weights(mx_bytes *out, const class classes[CLASSES], const class *total) {
    mx_bytes_add_string(out, ",\"weights\":{");
    for (int i = 0; i <= CLASSES; i++) {
        const class *c = i < CLASSES ? &classes[i] : total;
        mx_bytes_addf(out,
                      "%s\"%s\":{\"tensors\":%d,\"parameters\":%.0f,\"active_parameters\":%.0f,\"bytes\":%.0f,"
                      "\"bytes_per_token\":%.0f,\"bits_per_weight\":%.6g,\"types\":\"%s\"}",
                      i ? "," : "", c->name, c->tensors, c->count, c->active, c->bytes, c->read,
                      c->count > 0 ? 8 * c->bytes / c->count : 0, c->types);
    }
    mx_bytes_add_string(out, "}");
}

static void print_json(const char *folder, const mx_model *model, const class classes[CLASSES], const class *total,
                       const mx_tokenizer *t, const mx_kernels *kernels) {
    const mx_config *c = mx_model_config(model);
    mx_bytes out = {0};
    mx_bytes_add_string(&out, "{\"model\":");
    mx_bytes_add_json(&out, folder, strlen(folder));
    mx_bytes_add_string(&out, ",");
    json_config(&out, c);
    json_weights(&out, classes, total);
    if (t)
        mx_bytes_addf(&out, ",\"tokenizer\":{\"tokens\":%d}", mx_tokenizer_size(t));
    else
        mx_bytes_add_string(&out, ",\"tokenizer\":null");
    mx_bytes_add_string(&out, ",\"kv_bytes\":{");
    for (int k = 0; k < MX_KV_NAMES; k++) {
        mx_bytes_addf(&out, "%s\"%s\":{", k ? "," : "", mx_kv_names[k].name);
        for (int64_t n = 0, i = 0; next_context(c, &n); i++)
            mx_bytes_addf(&out, "%s\"%lld\":%llu", i ? "," : "", (long long)n,
                          (unsigned long long)mx_kv_memory(model, mx_kv_names[k].type, n));
        mx_bytes_add_string(&out, "}");
    }
    mx_precisions precision = mx_precisions_default(kernels);
    char name[MX_PRECISION_NAME];
    mx_precisions_name(name, &precision);
    mx_bytes_addf(&out, "},\"tier\":\"%s\",\"precision\":\"%s\",\"threads\":%d,\"memory_available\":%llu",
                  kernels->name, name, mx_cpu_count(), mx_memory_available());
    json_gpus(&out, mx_model_weights(model));
    mx_bytes_add_string(&out, "}");
    printf("%s\n", out.data ? out.data : "");
    mx_bytes_free(&out);
}

/* ---- the command ------------------------------------------------------------------------------------------------- */

static const char *option_model;
static int option_json;

/* The model's tokenizer; NULL where it has none. */
static mx_status open_tokenizer(const char *path, mx_tokenizer **out, mx_error *error) {
    char file[4200];
    *out = NULL;
    mx_status status = mx_tokenizer_find(path, file, sizeof file, error);
    if (!status) status = mx_tokenizer_open(file, out, error);
    return status == MX_IO ? MX_OK : status;
}

static int run(const mx_command *self, int argc, const char **argv) {
    static const struct poptOption options[] = {
        {"model", 'm', POPT_ARG_STRING, &option_model, 0,
         "The model: a name (\"mxrun list\"), a path, or ORG/NAME of the hub", "MODEL"},
        {"json", 0, POPT_ARG_NONE, &option_json, 0, "One JSON object instead of the text", NULL},
        POPT_TABLEEND,
    };
    option_model = NULL;
    option_json = 0;
    const char *const *positional = NULL;
    int code = MX_EXIT_OK;
    if (!mx_command_parse(self, options, argc, argv, &positional, &code)) return code;
    if (positional && positional[0]) return mx_command_usage(self, "unexpected argument \"%s\"", positional[0]);

    mx_error error = {0};
    char folder[4096];
    mx_model *model = NULL;
    mx_tokenizer *tokenizer = NULL;
    const mx_kernels *kernels = NULL;
    mx_status status = mx_find_model(option_model, folder, sizeof folder, &error);
    if (!status) status = mx_kernels_get(NULL, &kernels, &error);
    if (!status) status = mx_model_open(folder, &(mx_load_options){.way = MX_LOAD_LOOK}, &model, &error);
    if (!status) status = open_tokenizer(folder, &tokenizer, &error);
    if (!status) {
        const mx_weights *weights = mx_model_weights(model);
        class classes[CLASSES];
        classify(weights, classes);
        class total = sum_of(classes);
        if (option_json) {
            print_json(folder, model, classes, &total, tokenizer, kernels);
        } else {
            print_model(folder, weights, &total);
            print_weights(classes, &total);
            print_tokenizer(tokenizer, &weights->config);
            print_memory(model, total.bytes);
            print_machine(kernels, weights->checkpoint, total.bytes);
            print_gpus(weights);
        }
    }
    mx_tokenizer_close(tokenizer);
    mx_model_close(model);
    if (!status && (fflush(stdout) != 0 || ferror(stdout)))
        status = mx_fail(&error, MX_IO, "cannot write to stdout: %s", strerror(errno));
    return status ? mx_command_fail(self, &error) : MX_EXIT_OK;
}

const mx_command mx_command_info = {
    .name = "info",
    .arguments = "-m MODEL [--json]",
    .summary = "Show what a model is made of and what it needs",
    .description = "Prints the model's configuration, its weights by class with the bytes that one\n"
                   "generated token reads, the tokenizer, the memory that a context of a given\n"
                   "length takes for each type of KV cache (sliding layers keep their window and the\n"
                   "rows of a step), and the kernels this machine would use. Checks every tensor.",
    .run = run,
};
