#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "commands/compare_measure.h"
#include "commands/models.h"
#include "commands/result_file.h"
#include "commands/scoring.h"
#include "commands/terminal.h"
#include "evaluate/chart.h"

/* mxrun compare: several models side by side. */

/* ---- options ----------------------------------------------------------------------------------------------------- */

static struct {
    char **text;
    char *labels, *device, *precision, *kv_type, *markdown, *csv, *json, *svg;
    int no_speed;
} given;

enum { ROUNDS, PROMPT, DECODE, THREADS, NUMBERS };
static mx_number numbers[NUMBERS];

static const struct poptOption compare_options[] = {
    {"text", 'f', POPT_ARG_ARGV, &given.text, 0, "What the models are to predict; may be repeated (- is stdin)",
     "FILE"},
    {"labels", 'l', POPT_ARG_STRING, &given.labels, 0, "Names for the models in table and charts, in their order",
     "A,B,..."},
    {"no-speed", '\0', POPT_ARG_NONE, &given.no_speed, 0, "Measure no speed and no energy", NULL},
    {"rounds", 'r', POPT_ARG_STRING, &numbers[ROUNDS].text, 0,
     "How often each speed is measured, the models in turn; medians are shown (default 5)", "N"},
    {"prompt", '\0', POPT_ARG_STRING, &numbers[PROMPT].text, 0,
     "Tokens of the prompt whose speed is measured, 0: none (default 512)", "N"},
    {"decode", '\0', POPT_ARG_STRING, &numbers[DECODE].text, 0,
     "Tokens that are decoded one by one to measure that, 0: none (default 64)", "N"},
    {"device", 'd', POPT_ARG_STRING, &given.device, 0, "Where the models run: cpu (default), cuda, or cuda:N", "WHERE"},
    {"threads", 't', POPT_ARG_STRING, &numbers[THREADS].text, 0, "Threads to compute with (default: one per core)",
     "N"},
    {"precision", '\0', POPT_ARG_STRING, &given.precision, 0,
     "Of activations in products: fp32, bf16x2, mixed, bf16 or int8 (default: see mxrun info)", "NAME"},
    {"kv-type", '\0', POPT_ARG_STRING, &given.kv_type, 0, "Numbers in the KV cache: f16 (default), bf16 or f32",
     "TYPE"},
    {"markdown", '\0', POPT_ARG_STRING, &given.markdown, 0, "Write the table as Markdown, too (- : to stdout, instead)",
     "FILE"},
    {"csv", '\0', POPT_ARG_STRING, &given.csv, 0, "Write all numbers as CSV, too (- : to stdout, instead)", "FILE"},
    {"json", '\0', POPT_ARG_STRING, &given.json, 0, "Write all numbers as JSON, too (- : to stdout, instead)", "FILE"},
    {"svg", '\0', POPT_ARG_STRING, &given.svg, 0,
     "Draw perplexity.svg, kl.svg and speed.svg into this folder, which is made where it is not there", "FOLDER"},
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)mx_hub_options, 0, NULL, NULL},
    POPT_TABLEEND,
};

static const struct poptOption options[] = {
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)compare_options, 0, "Options:", NULL},
    {NULL, '\0', POPT_ARG_INCLUDE_TABLE, (void *)mx_scoring_options, 0,
     "Perplexity (see mxrun perplexity --help):", NULL},
    POPT_TABLEEND,
};

static void reset_options(void) {
    memset(&given, 0, sizeof given);
    numbers[ROUNDS] = (mx_number){"--rounds", NULL, 5, 1, 1000, true, false};
    numbers[PROMPT] = (mx_number){"--prompt", NULL, 512, 0, 1 << 24, true, false};
    numbers[DECODE] = (mx_number){"--decode", NULL, 64, 0, 100000, true, false};
    numbers[THREADS] = (mx_number){"--threads", NULL, 0, 1, MX_MOST_THREADS, true, false};
}

static int count_of(const char *const *list) {
    int n = 0;
    while (list && list[n]) n++;
    return n;
}

/* ---- files to write ---------------------------------------------------------------------------------------------- */

typedef bool mx_writer(mx_bytes *out, const mx_compare *c);

typedef struct output {
    const char *option, *path;
    mx_writer *write;
} output;
enum { OUTPUTS = 3 };

static bool to_stdout(const output *o) {
    return o->path && !strcmp(o->path, "-");
}

static mx_status write_output(const output *o, const mx_compare *c, mx_error *error) {
    mx_bytes text = {0};
    mx_status status = o->write(&text, c) ? MX_OK : mx_out_of_memory(error);
    if (!status) status = to_stdout(o) ? mx_write_stdout(&text, error) : mx_result_file_write(o->path, &text, error);
    mx_bytes_free(&text);
    return status;
}

static mx_status make_folder(const char *path, mx_error *error) {
    struct stat info;
    if (mkdir(path, 0777) && errno != EEXIST)
        return mx_fail(error, MX_IO, "--svg %s: the folder cannot be made: %s", path, strerror(errno));
    if (stat(path, &info) || !S_ISDIR(info.st_mode))
        return mx_fail(error, MX_IO, "--svg %s: it is no folder; name one, or one that can be made", path);
    if (access(path, W_OK | X_OK))
        return mx_fail(error, MX_IO, "--svg %s: nothing can be written there: %s", path, strerror(errno));
    return MX_OK;
}

/* A picture of an earlier comparison would be taken for one of this. */
static bool remove_old_chart(const char *path) {
    char start[8192];
    struct stat info;
    FILE *file = stat(path, &info) == 0 && S_ISREG(info.st_mode) ? fopen(path, "rb") : NULL;
    const size_t size = file ? fread(start, 1, sizeof start - 1, file) : 0;
    if (file) fclose(file);
    start[size] = 0;
    return mx_chart_is_one(start) && unlink(path) == 0;
}

typedef struct chart {
    const char *name;
    bool (*draw)(mx_bytes *, const mx_compare *, bool *);
    const char *missing; /* why there is nothing to draw */
} chart;

/* Says what is not drawn, unless nobody expects it. */
static mx_status write_chart(const mx_command *self, const chart *which, const mx_compare *c, bool expected,
                             mx_error *error) {
    char path[MX_PATH];
    mx_bytes text = {0};
    bool drawn = false;
    if (snprintf(path, sizeof path, "%s/%s", given.svg, which->name) >= (int)sizeof path)
        return mx_fail(error, MX_INVALID_ARGUMENT, "--svg %s: the path is too long", given.svg);
    mx_status status = which->draw(&text, c, &drawn) ? MX_OK : mx_out_of_memory(error);
    if (!status && drawn) {
        status = mx_result_file_write(path, &text, error);
    } else if (!status) {
        const bool removed = remove_old_chart(path);
        if (removed || expected)
            fprintf(stderr, "mxrun %s: %s: not drawn: %s%s\n", self->name, path, which->missing,
                    removed ? "; that of an earlier comparison was removed" : "");
    }
    mx_bytes_free(&text);
    return status;
}

static mx_status write_charts(const mx_command *self, const mx_compare *c, mx_error *error) {
    static const chart charts[] = {
        {"perplexity.svg", mx_compare_chart_perplexity, "no perplexity is known"},
        {"kl.svg", mx_compare_chart_kl, "no model is at a distance from the first"},
        {"speed.svg", mx_compare_chart_speed, "the first model's speed is not known"},
    };
    mx_status status = MX_OK;
    for (size_t i = 0; i < sizeof charts / sizeof *charts && !status; i++)
        status = write_chart(self, &charts[i], c, !given.no_speed || charts[i].draw != mx_compare_chart_speed, error);
    return status;
}

/* ---- the command ------------------------------------------------------------------------------------------------- */

typedef struct comparison {
    mx_compare_work work;
    mx_compare result;
    mx_compare_model model[MX_COMPARE_MOST];
    char path[MX_COMPARE_MOST][MX_PATH];
    char label[MX_COMPARE_MOST][200];
    mx_corpus corpus;
    mx_bytes text; /* names of the texts */
    output output[OUTPUTS];
} comparison;

static bool check_outputs(const mx_command *self, output *o) {
    int shown = 0;
    o[0] = (output){"--markdown", given.markdown, mx_compare_markdown};
    o[1] = (output){"--csv", given.csv, mx_compare_csv};
    o[2] = (output){"--json", given.json, mx_compare_json};
    for (int i = 0; i < OUTPUTS; i++) shown += to_stdout(&o[i]);
    if (shown > 1) mx_command_usage(self, "only one of --markdown, --csv and --json can be -, stdout");
    return shown <= 1;
}

static bool check_options(const mx_command *self, const char *const *models, comparison *c) {
    mx_compare_work *w = &c->work;
    const int count = count_of(models);
    mx_error error;
    mx_precisions precision;
    if (count < 2 || count > MX_COMPARE_MOST) {
        mx_command_usage(self, "%d model%s given; between 2 and %d are compared", count, count == 1 ? " is" : "s are",
                         (int)MX_COMPARE_MOST);
        return false;
    }
    if (!given.text) {
        mx_command_usage(self, "give --text FILE, which the models are to predict");
        return false;
    }
    for (int i = 0; i < NUMBERS; i++)
        if (!mx_number_check(self, &numbers[i])) return false;
    if (given.precision && mx_precisions_parse(given.precision, &precision, &error)) {
        mx_command_usage(self, "--precision: %s", error.text);
        return false;
    }
    w->device = given.device ? given.device : "cpu";
    if (mx_device_parse(w->device, &w->on, &error) || w->on.automatic) {
        mx_command_usage(self, "--device %s: expected cpu, cuda or cuda:N, where all models run", w->device);
        return false;
    }
    if (w->on.cuda && numbers[THREADS].text) {
        mx_command_usage(self, "--threads is about the CPU: it does not go with --device %s", w->device);
        return false;
    }
    w->kv = given.kv_type ? mx_kv_find(self, given.kv_type) : &mx_kv_names[0];
    w->precision = given.precision;
    w->threads = (int)numbers[THREADS].value;
    if (!given.no_speed && numbers[PROMPT].value == 0 && numbers[DECODE].value == 0) {
        mx_command_usage(self, "--prompt 0 and --decode 0 leave no speed to measure: say --no-speed");
        return false;
    }
    return w->kv && mx_scoring_check(self, &w->evaluate) && check_outputs(self, c->output);
}

/* The last `parts` parts of a path or of a name on the hub, without what slashes stand behind them. */
static void short_name(const char *model, int parts, char out[200]) {
    size_t size = strlen(model);
    while (size > 1 && model[size - 1] == '/') size--;
    size_t from = size;
    for (; from && (model[from - 1] != '/' || parts > 1); from--) parts -= model[from - 1] == '/';
    snprintf(out, 200, "%.*s", (int)(size - from), model + from);
}

static bool is_taken(const comparison *c, int index) {
    for (int i = 0; i < index; i++)
        if (!strcmp(c->label[i], c->label[index])) return true;
    return false;
}

/* --labels, or what the models are called; no two alike. false: the user has been told. */
static bool set_labels(const mx_command *self, comparison *c, const char *const *models) {
    const char *at = given.labels;
    for (int i = 0; i < c->result.models; i++) {
        if (!given.labels) {
            char name[200];
            short_name(models[i], 1, name);
            memcpy(c->label[i], name, sizeof name);
            if (is_taken(c, i)) short_name(models[i], 2, c->label[i]); /* A/mxfp4 beside B/mxfp4 */
            for (int k = 2; is_taken(c, i); k++) snprintf(c->label[i], sizeof c->label[i], "%.180s (%d)", name, k);
            continue;
        }
        const size_t size = at ? strcspn(at, ",") : 0;
        if (!size || size >= sizeof c->label[i] || (i + 1 == c->result.models && at[size])) {
            mx_command_usage(self, "--labels %s: expected %d names, none of them empty, with commas between them",
                             given.labels, c->result.models);
            return false;
        }
        snprintf(c->label[i], sizeof c->label[i], "%.*s", (int)size, at);
        at = at[size] ? at + size + 1 : NULL;
    }
    return true;
}

static bool set_text_names(comparison *c) {
    bool ok = true;
    for (int i = 0; given.text[i] && ok; i++) {
        char name[200];
        short_name(given.text[i], 1, name);
        ok = mx_bytes_addf(&c->text, "%s%s", i ? ", " : "", strcmp(name, "-") ? name : "stdin");
    }
    c->result.text = c->text.data;
    return ok;
}

/* Where each model lies. One that is not there has failed; the others go on. */
static mx_status resolve(const mx_command *self, comparison *c, const char *const *models, mx_error *error) {
    for (int i = 0; i < c->result.models; i++) {
        mx_compare_model *m = &c->model[i];
        const mx_status status = mx_resolve_model(models[i], c->path[i], MX_PATH, error);
        m->label = c->label[i];
        m->path = status ? models[i] : c->path[i];
        if (status == MX_CANCELLED) return status;
        if (!status) continue;
        snprintf(m->failed, sizeof m->failed, "%s", error->text);
        fprintf(stderr, "mxrun %s: %s: %s\n", self->name, m->label, m->failed);
    }
    return MX_OK;
}

static mx_status print(const mx_command *self, comparison *c, mx_error *error) {
    mx_bytes table = {0};
    mx_status status = MX_OK, first = MX_OK;
    bool stdout_taken = false;
    for (int i = 0; i < OUTPUTS; i++) stdout_taken |= to_stdout(&c->output[i]);
    if (!stdout_taken) {
        first = mx_compare_table(&table, &c->result) ? mx_write_stdout(&table, error) : mx_out_of_memory(error);
        mx_bytes_free(&table);
    }
    for (int i = 0; i < OUTPUTS; i++) { /* what can be written is, whatever fails */
        mx_error other;
        if (!c->output[i].path) continue;
        status = write_output(&c->output[i], &c->result, &other);
        if (status && !first) {
            first = status;
            *error = other;
        }
    }
    mx_error other;
    status = given.svg ? write_charts(self, &c->result, &other) : MX_OK;
    if (status && !first) {
        first = status;
        *error = other;
    }
    return first;
}

static bool anything_measured(const mx_compare *c) {
    for (int i = 0; i < c->models; i++)
        if (c->model[i].evaluated) return true;
    return false;
}

/* After Ctrl-C the table shows what was found out until then; no file is written. */
static mx_status show_what_is_there(comparison *c, mx_error *error) {
    mx_bytes table = {0};
    mx_error second;
    if (anything_measured(&c->result) && mx_compare_table(&table, &c->result)) mx_write_stdout(&table, &second);
    mx_bytes_free(&table);
    return mx_fail(error, MX_CANCELLED, "interrupted");
}

static mx_status work(const mx_command *self, comparison *c, const char *const *models, mx_error *error) {
    mx_compare_work *w = &c->work;
    mx_status status = MX_OK;
    for (int i = 0; i < OUTPUTS && !status; i++)
        if (c->output[i].path && !to_stdout(&c->output[i]))
            status = mx_result_file_check(c->output[i].option, c->output[i].path, error);
    if (!status && given.svg) status = make_folder(given.svg, error);
    if (!status)
        status = mx_corpus_read(self, (const char *const *)given.text, w->evaluate.protocol, &c->corpus, error);
    if (!status && !set_text_names(c)) status = mx_out_of_memory(error);
    if (!status) status = resolve(self, c, models, error);
    if (status) return status;
    w->text = c->corpus.texts;
    w->texts = c->corpus.count;
    mx_interrupt_catch_all();
    status = mx_compare_look(w, error);
    if (!status) status = mx_compare_evaluate(w, error);
    if (!status && !given.no_speed) status = mx_compare_measure(w, error);
    mx_interrupt_release();
    if (status == MX_CANCELLED) return show_what_is_there(c, error);
    if (status && !anything_measured(&c->result)) return status;
    mx_error second;
    const mx_status printed = print(self, c, &second);
    if (printed && !status) *error = second;
    return status ? status : printed;
}

static bool any_failed(const mx_compare *c) {
    for (int i = 0; i < c->models; i++)
        if (*c->model[i].failed) return true;
    return false;
}

static int run(const mx_command *self, int argc, const char **argv) {
    static comparison c;
    const char *const *models = NULL;
    int code = MX_EXIT_OK;
    memset(&c, 0, sizeof c);
    reset_options();
    if (!mx_command_parse(self, options, argc, argv, &models, &code)) return code;
    if (!check_options(self, models, &c)) return MX_EXIT_USAGE;
    c.result = (mx_compare){.model = c.model,
                            .models = count_of(models),
                            .rounds = (int)numbers[ROUNDS].value,
                            .prompt_tokens = (int)numbers[PROMPT].value,
                            .decode_tokens = (int)numbers[DECODE].value};
    c.work.command = self;
    c.work.result = &c.result;
    if (!set_labels(self, &c, models)) return MX_EXIT_USAGE;
    mx_error error = {0};
    const mx_status status = work(self, &c, models, &error);
    mx_corpus_free(&c.corpus);
    mx_bytes_free(&c.text);
    if (status) return mx_command_fail(self, &error);
    return any_failed(&c.result) ? MX_EXIT_FAILED : MX_EXIT_OK;
}

const mx_command mx_command_compare = {
    .name = "compare",
    .arguments = "MODEL MODEL... --text FILE [OPTION]...",
    .summary = "Show several models side by side: size, accuracy, speed, energy",
    .description = "Measures each model and shows them in one table: size on the disk, bits per weight,\n"
                   "perplexity of a text with its standard error, how far each is from the first\n"
                   "(KL divergence, and the share of tokens of which both say the same is likeliest),\n"
                   "tokens per second of a prompt and of decoding, and the energy of a decoded token.\n"
                   "The first is what the others are measured by: the 16-bit model, say.\n"
                   "\n"
                   "Speeds are measured in rounds, in each of which every model has its turn, since a\n"
                   "machine is not equally fast at all times; models that do not fit into memory\n"
                   "together are measured one after the other, and the table says so. Energy is that of\n"
                   "the processor packages and their memory (RAPL), whose counters mostly only root may\n"
                   "read, and with --device cuda that of the GPU (NVML), where it is the only one; where\n"
                   "they cannot be read the column shows the bytes that a decoded token moves from memory\n"
                   "instead, and is named so.\n"
                   "\n"
                   "A model with which something fails keeps its line; the reason is below the table,\n"
                   "and the exit code is 1. The first model's distributions lie in a file under $TMPDIR\n"
                   "(/tmp) meanwhile, with 8 bytes for each of the --base-top likeliest tokens, so 8 KB for\n"
                   "each token of the text with gpt-oss. KL is a lower bound where not all are kept.\n"
                   "\n"
                   "Examples:\n"
                   "  $ mxrun compare DIR-bf16 DIR-mxfp4 DIR-nvfp4 --text book.txt\n"
                   "  $ mxrun compare DIR-bf16 DIR-mxfp4 --labels BF16,MXFP4 --text book.txt --svg charts\n"
                   "  $ mxrun compare DIR-a DIR-b --text chats.jsonl --protocol harmony --no-speed\n"
                   "  $ mxrun compare DIR-a DIR-b --text book.txt --tokens 20000 --json - > result.json",
    .run = run,
};
