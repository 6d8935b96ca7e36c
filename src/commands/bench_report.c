#include "commands/bench_report.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#include "base/cpu.h"
#include "base/progress.h"

/* ---- the machine ------------------------------------------------------------------------------------------------- */

void mx_cpu_name(char out[static 100]) {
    char line[300];
    struct utsname system;
    snprintf(out, 100, "%s", uname(&system) == 0 ? system.machine : "unknown");
    FILE *f = fopen("/proc/cpuinfo", "re");
    while (f && fgets(line, sizeof line, f)) {
        const char *value = strchr(line, ':');
        if (strncmp(line, "model name", 10) || !value) continue;
        value += 1 + strspn(value + 1, " \t");
        snprintf(out, 100, "%.*s", (int)strcspn(value, "\n"), value);
        break;
    }
    if (f) fclose(f);
}

/* ---- the earlier run --------------------------------------------------------------------------------------------- */

static bool number(const mx_json *row, const char *key, double *out) {
    return mx_json_double(mx_json_get(row, key), out);
}

static bool is_row(const mx_json *row) {
    double x;
    const mx_json *test = mx_json_get(row, "test");
    return (mx_json_is_string(test, "decode") || mx_json_is_string(test, "prompt")) && number(row, "depth", &x) &&
           number(row, "streams", &x) && number(row, "tokens", &x) && number(row, "tokens_per_s", &x) && x > 0;
}

mx_status mx_bench_before_check(const char *name, const mx_json *root, mx_error *error) {
    const mx_json *list = mx_json_get(root, "results");
    if (!list || list->type != MX_JSON_ARRAY)
        return mx_fail(error, MX_INVALID_FILE,
                       "--compare %s: it has no list \"results\", which mxrun bench --json writes", name);
    int i = 0;
    for (const mx_json *row = list->child; row; row = row->next, i++)
        if (!is_row(row))
            return mx_fail(error, MX_INVALID_FILE,
                           "--compare %s: results[%d] is no row of mxrun bench: test, depth, streams, tokens and "
                           "tokens_per_s are expected",
                           name, i);
    return MX_OK;
}

static bool is_number(const mx_json *row, const char *key, double expected) {
    double x;
    return number(row, key, &x) && x == expected;
}

/* The row of the same test with the same threads, precision, KV cache and dense products; NULL: there is none. */
static const mx_json *row_before(const mx_bench_report *r, const mx_bench_run_report *run, const mx_bench_test *t) {
    const mx_json *list = mx_json_get(r->before, "results");
    for (const mx_json *row = list ? list->child : NULL; row; row = row->next)
        if (mx_json_is_string(mx_json_get(row, "test"), t->prompt ? "prompt" : "decode") &&
            is_number(row, "depth", t->depth) && is_number(row, "streams", t->streams) &&
            is_number(row, "tokens", t->tokens) && is_number(row, "threads", run->threads) &&
            mx_json_is_string(mx_json_get(row, "precision"), run->precision) &&
            mx_json_is_string(mx_json_get(row, "kv_type"), r->kv) &&
            mx_json_is_string(mx_json_get(row, "dense"), r->openblas ? "openblas" : "own"))
            return row;
    return NULL;
}

/* Its speed; 0: there is none. */
static double speed_before(const mx_bench_report *r, const mx_bench_run_report *run, const mx_bench_test *t) {
    double speed = 0;
    const mx_json *row = row_before(r, run, t);
    return row && number(row, "tokens_per_s", &speed) ? speed : 0;
}

/* The speed of the same test with one stream; 0: there is none, or this is it. */
static double speed_of_one(const mx_bench_report *r, const mx_bench_run_report *run, const mx_bench_test *t) {
    for (int i = 0; i < r->tests && t->streams > 1; i++) {
        const mx_bench_result *one = &run->result[i];
        if (!one->test.prompt && one->test.streams == 1 && one->test.depth == t->depth && one->windows)
            return one->speed.median;
    }
    return 0;
}

static bool has_one_and_more(const mx_bench_report *r) {
    for (int i = 0; i < r->tests; i++)
        if (speed_of_one(r, &r->run[0], &r->run[0].result[i].test) > 0) return true;
    return false;
}

static bool same_model(const mx_bench_report *r) {
    return mx_json_is_string(mx_json_get(r->before, "model"), r->model) && is_number(r->before, "layers", r->layers) &&
           is_number(r->before, "weight_bytes", r->weight_bytes);
}

/* ---- a table ----------------------------------------------------------------------------------------------------- */

enum { COLUMNS = 12, CELL = 64, MOST_ROWS = 400 };
typedef struct table {
    char cell[MOST_ROWS][COLUMNS][CELL]; /* row 0: headings */
    int rows, columns;
} table;

__attribute__((format(printf, 2, 3))) static void add(table *t, const char *format, ...) {
    va_list list;
    va_start(list, format);
    if (t->columns < COLUMNS) vsnprintf(t->cell[t->rows][t->columns++], CELL, format, list);
    va_end(list);
}

static bool print_row(mx_bytes *out, const table *t, int row, const int *width, bool markdown) {
    bool ok = !markdown || mx_bytes_add_string(out, "|");
    for (int c = 0; c < t->columns && ok; c++) {
        const char *text = t->cell[row][c];
        const int space = width[c] - mx_text_width(text);
        if (markdown)
            ok = mx_bytes_addf(out, " %s |", text);
        else if (c == 0)
            ok = mx_bytes_addf(out, "%s%*s", text, space, "");
        else if (c + 1 == t->columns)
            ok = mx_bytes_addf(out, "  %s", text);
        else
            ok = mx_bytes_addf(out, "  %*s%s", space, "", text);
    }
    return ok && mx_bytes_add_string(out, "\n");
}

/* Numbers to the right; words in the first and the last column to the left. */
static bool print_table(mx_bytes *out, const table *t, bool markdown) {
    int width[COLUMNS] = {0};
    bool ok = true;
    for (int r = 0; r < t->rows; r++)
        for (int c = 0; c < t->columns; c++)
            if (mx_text_width(t->cell[r][c]) > width[c]) width[c] = mx_text_width(t->cell[r][c]);
    for (int r = 0; r < t->rows && ok; r++) {
        ok = print_row(out, t, r, width, markdown);
        if (r || !markdown) continue;
        ok = ok && mx_bytes_add_string(out, "|");
        for (int c = 0; c < t->columns; c++)
            ok = ok && mx_bytes_add_string(out, c == 0 || c + 1 == t->columns ? " --- |" : " ---: |");
        ok = ok && mx_bytes_add_string(out, "\n");
    }
    return ok;
}

/* Four digits are enough, none of them after the point from 1,000 on. */
static int digits(double value) {
    return value >= 99.95 ? (value >= 999.5 ? 0 : 1) : value >= 9.995 ? 2 : 3;
}

static void bytes_text(char out[32], double bytes) {
    if (bytes >= 1e9)
        snprintf(out, 32, "%.2f GB", bytes / 1e9);
    else
        snprintf(out, 32, "%.1f MB", bytes / 1e6);
}

static void add_headings(table *t, const mx_bench_report *r, mx_peak_loop plain) {
    t->columns = 0;
    add(t, "test");
    add(t, "depth");
    add(t, "streams");
    add(t, "tokens/s");
    if (has_one_and_more(r)) add(t, "of one");
    add(t, "min–max");
    add(t, "floor");
    add(t, "reached");
    if (plain < MX_PEAK_LOOPS) add(t, "of %s", mx_peak_name(plain));
    if (r->energy) add(t, "J/token");
    if (r->before) add(t, "before");
    add(t, "bound by");
    t->rows++;
}

static void add_result(table *t, const mx_bench_report *r, const mx_bench_run_report *run, const mx_bench_result *x) {
    char text[32];
    const int d = digits(x->speed.median);
    t->columns = 0;
    mx_with_commas(x->test.tokens, text);
    if (x->test.prompt)
        add(t, "prompt %s", text);
    else
        add(t, "decode");
    mx_with_commas(x->test.depth, text);
    add(t, "%s", text);
    add(t, "%d", x->test.streams);
    add(t, "%.*f", d, x->speed.median);
    if (has_one_and_more(r)) {
        const double one = speed_of_one(r, run, &x->test);
        if (one > 0)
            add(t, "× %.2f", x->speed.median / one);
        else
            add(t, "–");
    }
    add(t, "%.*f–%.*f", d, x->speed.low, d, x->speed.high);
    add(t, "%.*f", digits(x->floor), x->floor);
    add(t, "%.1f %%%s", x->percent, x->unsteady ? " ?" : "");
    if (x->plain < MX_PEAK_LOOPS) add(t, "%.1f %%", x->matrix_percent);
    if (r->energy) add(t, "%.3g", x->joules);
    if (r->before) {
        const double before = speed_before(r, run, &x->test);
        if (before > 0)
            add(t, "× %.3f", x->speed.median / before);
        else
            add(t, "–");
    }
    char experts[32] = "";
    if (x->test.streams > 1) snprintf(experts, sizeof experts, ", %.1f experts a layer", x->experts);
    bytes_text(text, x->bytes);
    if (x->by_memory)
        add(t, "memory: %s a token%s", text, experts);
    else
        add(t, "arithmetic: %.3g GFLOP a token%s", x->flops / 1e9, experts);
    t->rows++;
}

static bool print_machine(mx_bytes *out, const mx_bench_report *r, const mx_bench_run_report *run, bool markdown) {
    const char *space = markdown ? "" : "  ", *end = markdown ? "  \n" : "\n";
    const mx_bench_range *b = &run->machine.bandwidth;
    char threads[40] = "";
    if (!*r->device) snprintf(threads, sizeof threads, "%d thread%s, ", run->threads, run->threads > 1 ? "s" : "");
    bool ok = mx_bytes_addf(out, "%s%s%s kernels, precision %s%s, KV cache %s%s", space, threads, run->machine.tier,
                            run->precision, r->openblas ? ", dense products by OpenBLAS" : "", r->kv, end);
    ok = ok && mx_bytes_addf(out, "%sreads %.1f GB/s (%.1f–%.1f)", space, b->median / 1e9, b->low / 1e9, b->high / 1e9);
    bool first = true;
    for (int i = 0; i < MX_PEAK_LOOPS; i++) {
        if (run->machine.peaks.of[i] <= 0) continue;
        ok = ok && mx_bytes_addf(out, "%s%s %.0f", first ? ", multiplies at most: " : ", ",
                                 mx_peak_name((mx_peak_loop)i), run->machine.peaks.of[i] / 1e9);
        first = false;
    }
    return ok && mx_bytes_addf(out, "%s\n\n", first ? "" : " GFLOP/s");
}

/* Whose energy J/token holds, or why there is none. */
static bool print_energy(mx_bytes *out, const mx_bench_report *r) {
    if (*r->device)
        return mx_bytes_add_string(out, r->energy ? "J/token: of the GPU (NVML)\n"
                                        : r->gpus ? "energy: not measured, for it is not known which of several GPUs' "
                                                    "counters (NVML) is this one's\n"
                                                  : "energy: no counter of a GPU (NVML, libnvidia-ml.so.1) is here\n");
    bool ok = r->energy ? mx_bytes_add_string(out, "J/token: of the processor packages and their memory (RAPL)")
                        : mx_bytes_add_string(out, "energy: no counter of a processor package (RAPL, "
                                                   "/sys/class/powercap/intel-rapl:*) is here that may be read");
    if (r->gpus)
        ok = ok && mx_bytes_addf(out, "; %d GPU%s (NVML) not counted, for nothing of this ran there", r->gpus,
                                 r->gpus > 1 ? "s" : "");
    else if (!r->energy)
        ok = ok && mx_bytes_add_string(out, ", nor one of a GPU (NVML, libnvidia-ml.so.1)");
    return ok && mx_bytes_add_string(out, "\n");
}

static bool print_notes(mx_bytes *out, const mx_bench_report *r) {
    int windows = 0, dropped = 0, unsteady = 0, cached = 0;
    for (int i = 0; i < r->runs; i++)
        for (int k = 0; k < r->tests; k++) {
            const mx_bench_result *x = &r->run[i].result[k];
            if (x->test.prompt || !x->windows) continue;
            windows += x->windows;
            dropped += x->dropped;
            unsteady += x->unsteady;
            cached += x->bytes * x->test.streams < r->in_caches;
        }
    bool ok = mx_bytes_add_string(out, "floor: what bytes ÷ bandwidth or multiplications ÷ peak allow, whichever is "
                                       "less, both measured in this run\n");
    const mx_bench_result *x = &r->run[0].result[0];
    if (x->plain < MX_PEAK_LOOPS)
        ok = ok && mx_bytes_addf(out, "of %s: the matrices' multiplications alone, each counted once, of that peak\n",
                                 mx_peak_name(x->plain));
    if (has_one_and_more(r))
        ok = ok && mx_bytes_add_string(out, "of one: all streams together ÷ one stream at the same depth; experts: "
                                            "different ones that a step reads\n");
    if (dropped)
        ok =
            ok && mx_bytes_addf(out, "%d of %d windows of 5 tokens dropped: the bandwidth changed by more than 10 %%\n",
                                dropped, windows);
    if (unsteady)
        ok = ok &&
             mx_bytes_add_string(out, "?: the bandwidth changed by more than 10 % in every window, so all count\n");
    if (cached)
        ok = ok && mx_bytes_add_string(out, "a token's bytes fit into the caches, which read faster than memory\n");
    return ok && print_energy(out, r);
}

/* What the ratios compare, and what they do not. */
static bool print_before(mx_bytes *out, const mx_bench_report *r) {
    const mx_json *model = mx_json_get(r->before, "model");
    double layers = 0, bytes = 0;
    char size[32], other_tier[24] = "";
    bool missing = false;
    number(r->before, "layers", &layers);
    number(r->before, "weight_bytes", &bytes);
    for (int i = 0; i < r->runs; i++)
        for (int k = 0; k < r->tests; k++) {
            if (!r->run[i].result[k].windows) continue;
            const mx_json *row = row_before(r, &r->run[i], &r->run[i].result[k].test), *tier;
            missing |= !row;
            if (row && (tier = mx_json_get(row, "tier")) && tier->type == MX_JSON_STRING &&
                strcmp(tier->text, r->run[i].machine.tier) != 0)
                snprintf(other_tier, sizeof other_tier, "%s", tier->text);
        }
    bool ok = mx_bytes_addf(out, "before: tokens/s now ÷ those of %s", r->before_name);
    bytes_text(size, bytes);
    if (!same_model(r))
        ok = ok && mx_bytes_addf(out, ", which measured another model: %s, %.0f layers, %s",
                                 model && model->type == MX_JSON_STRING ? model->text : "?", layers, size);
    if (*other_tier) ok = ok && mx_bytes_addf(out, ", measured with %s kernels", other_tier);
    ok = ok && mx_bytes_add_string(out, "\n");
    if (missing)
        ok = ok && mx_bytes_add_string(
                       out, "–: not measured before with this depth, streams, tokens, threads, precision, KV cache and "
                            "dense products\n");
    return ok;
}

static bool print_model(mx_bytes *out, const mx_bench_report *r, bool markdown) {
    char cpu[100], size[32], memory[32], layers[40] = "";
    mx_cpu_name(cpu);
    bytes_text(size, r->weight_bytes);
    bytes_text(memory, *r->device ? r->gpu_memory : r->memory);
    if (r->layers < r->all_layers)
        snprintf(layers, sizeof layers, "%d of %d layers, ", r->layers, r->all_layers);
    else
        snprintf(layers, sizeof layers, "%d layers, ", r->layers);
    const char *space = markdown ? "" : "  ", *end = markdown ? "  \n" : "\n";
    return mx_bytes_addf(out, "%s%s%s: %s%s%s\n%s", markdown ? "**" : "", r->model, markdown ? "**" : "", layers, size,
                         r->synthetic ? " of random weights" : "", markdown ? "\n" : "") &&
           mx_bytes_addf(out, "%s%s in %.2f s, %s%s of %smemory%s%s", space, r->synthetic ? "made" : "loaded",
                         r->load_seconds, *r->device ? "" : "at most ", memory, *r->device ? "the GPU's " : "",
                         *r->device ? "" : " (page cache in use included)", end) &&
           mx_bytes_addf(out, "%s%s%s", space, *r->device ? r->device : cpu, end);
}

bool mx_bench_table(mx_bytes *out, const mx_bench_report *r, bool markdown) {
    static table t;
    bool ok = print_model(out, r, markdown);
    for (int i = 0; i < r->runs && ok; i++) {
        const mx_bench_run_report *run = &r->run[i];
        t.rows = 0;
        add_headings(&t, r, run->result[0].plain);
        for (int k = 0; k < r->tests && t.rows < MOST_ROWS; k++)
            if (run->result[k].windows) add_result(&t, r, run, &run->result[k]);
        ok = print_machine(out, r, run, markdown) && print_table(out, &t, markdown) && mx_bytes_add_string(out, "\n");
    }
    ok = ok && print_notes(out, r);
    if (ok && r->before) ok = print_before(out, r);
    return ok;
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

static bool json_machine(mx_bytes *out, const mx_bench_machine *m) {
    bool ok = mx_bytes_addf(out, "\"bandwidth_gb_s\":%.5g,\"bandwidth_gb_s_min\":%.5g,\"bandwidth_gb_s_max\":%.5g,",
                            m->bandwidth.median / 1e9, m->bandwidth.low / 1e9, m->bandwidth.high / 1e9);
    ok = ok && mx_bytes_add_string(out, "\"peak_gflop_s\":{");
    bool first = true;
    for (int i = 0; i < MX_PEAK_LOOPS && ok; i++) {
        if (m->peaks.of[i] <= 0) continue;
        ok = mx_bytes_addf(out, "%s\"%s\":%.5g", first ? "" : ",", mx_peak_key((mx_peak_loop)i), m->peaks.of[i] / 1e9);
        first = false;
    }
    return ok && mx_bytes_add_string(out, "}");
}

static bool json_result(mx_bytes *out, const mx_bench_report *r, const mx_bench_run_report *run,
                        const mx_bench_result *x) {
    bool ok = mx_bytes_addf(out,
                            "{\"test\":\"%s\",\"depth\":%d,\"streams\":%d,\"tokens\":%d,\"tokens_per_s\":%.6g,"
                            "\"tokens_per_s_min\":%.6g,\"tokens_per_s_max\":%.6g,\"floor_tokens_per_s\":%.6g,"
                            "\"percent_of_floor\":%.5g,\"bound_by\":\"%s\",\"bytes_per_token\":%.8g,"
                            "\"flops_per_token\":%.8g,",
                            x->test.prompt ? "prompt" : "decode", x->test.depth, x->test.streams, x->test.tokens,
                            x->speed.median, x->speed.low, x->speed.high, x->floor, x->percent,
                            x->by_memory ? "memory" : "arithmetic", x->bytes, x->flops);
    if (x->plain < MX_PEAK_LOOPS)
        ok = ok &&
             mx_bytes_addf(out, "\"percent_of_peak\":%.5g,\"peak\":\"%s\",", x->matrix_percent, mx_peak_key(x->plain));
    if (!x->test.prompt) ok = ok && mx_bytes_addf(out, "\"experts_per_layer\":%.5g,", x->experts);
    const double one = speed_of_one(r, run, &x->test);
    if (one > 0) ok = ok && mx_bytes_addf(out, "\"ratio_to_one_stream\":%.5g,", x->speed.median / one);
    if (r->energy) ok = ok && mx_bytes_addf(out, "\"joules_per_token\":%.5g,", x->joules);
    if (r->before) {
        const double before = speed_before(r, run, &x->test);
        if (before > 0) ok = ok && mx_bytes_addf(out, "\"ratio_to_before\":%.5g,", x->speed.median / before);
    }
    return ok && mx_bytes_addf(out,
                               "\"windows\":%d,\"windows_dropped\":%d,\"unsteady\":%s,\"precision\":\"%s\","
                               "\"tier\":\"%s\",\"threads\":%d,\"kv_type\":\"%s\",\"dense\":\"%s\"}",
                               x->windows, x->dropped, x->unsteady ? "true" : "false", run->precision,
                               run->machine.tier, run->threads, r->kv, r->openblas ? "openblas" : "own");
}

bool mx_bench_json(mx_bytes *out, const mx_bench_report *r) {
    char cpu[100];
    mx_cpu_name(cpu);
    bool ok = mx_bytes_add_string(out, "{\"mxrun\":\"" MX_VERSION "\",\"model\":");
    ok = ok && mx_bytes_add_json(out, r->model, strlen(r->model));
    ok = ok && mx_bytes_addf(out, ",\"synthetic\":%s,", r->synthetic ? "true" : "false");
    if (r->synthetic) ok = ok && mx_bytes_addf(out, "\"seed\":%llu,", (unsigned long long)r->seed);
    ok = ok &&
         mx_bytes_addf(
             out, "\"layers\":%d,\"weight_bytes\":%.0f,\"load_s\":%.5g,\"memory_bytes\":%.0f,\"machine\":{\"cpu\":",
             r->layers, r->weight_bytes, r->load_seconds, r->memory);
    ok = ok && mx_bytes_add_json(out, cpu, strlen(cpu));
    ok = ok &&
         mx_bytes_addf(out, ",\"cores\":%d,\"memory_available\":%llu,\"gpu\":", mx_cpu_count(), mx_memory_available());
    ok = ok && mx_bytes_add_json(out, r->device, strlen(r->device));
    ok = ok && mx_bytes_addf(out, ",\"gpu_memory_bytes\":%.0f},", r->gpu_memory);
    ok = ok && json_machine(out, &r->run[0].machine);
    ok = ok && mx_bytes_addf(out, ",\"energy_counters\":{\"rapl\":%s,\"nvml_devices\":%d}",
                             r->energy && !*r->device ? "true" : "false", r->gpus);
    if (r->before) ok = ok && mx_bytes_addf(out, ",\"before_same_model\":%s", same_model(r) ? "true" : "false");
    ok = ok && mx_bytes_add_string(out, ",\"runs\":[");
    for (int i = 0; i < r->runs && ok; i++) {
        const mx_bench_run_report *run = &r->run[i];
        ok = mx_bytes_addf(out, "%s{\"threads\":%d,\"precision\":\"%s\",\"tier\":\"%s\",", i ? "," : "", run->threads,
                           run->precision, run->machine.tier) &&
             json_machine(out, &run->machine) && mx_bytes_add_string(out, "}");
    }
    ok = ok && mx_bytes_add_string(out, "],\"results\":[");
    bool first = true;
    for (int i = 0; i < r->runs; i++)
        for (int k = 0; k < r->tests && ok; k++) {
            if (!r->run[i].result[k].windows) continue;
            ok = (first || mx_bytes_add_string(out, ",")) && json_result(out, r, &r->run[i], &r->run[i].result[k]);
            first = false;
        }
    return ok && mx_bytes_add_string(out, "]}\n");
}
