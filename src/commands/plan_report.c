#include "commands/plan_report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/progress.h"

/* ---- numbers for people ------------------------------------------------------------------------------------------ */

enum { TEXT = 48 };

static const char *scaled(char out[TEXT], double value, const char *unit) {
    static const char *const prefix[] = {"", "k", "M", "G", "T", "P"};
    int i = 0;
    for (; value >= 999.5 && i < 5; i++) value /= 1000;
    snprintf(out, TEXT, "%.*f %s%s", i == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2, value, prefix[i], unit);
    return out;
}

static const char *or_unknown(char out[TEXT], double value, const char *unit) {
    if (value > 0) return scaled(out, value, unit);
    snprintf(out, TEXT, "unknown");
    return out;
}

static const char *time_text(char out[TEXT], double seconds) {
    if (seconds < 0.9995)
        snprintf(out, TEXT, "%.3g ms", seconds * 1e3);
    else
        snprintf(out, TEXT, "%.3g s", seconds);
    return out;
}

static const char *with_commas(char out[TEXT], double value) {
    return mx_with_commas((int64_t)rint(value), out);
}

static const char *rate_text(char out[TEXT], const mx_plan_range *r) {
    if (!(r->median > 0))
        snprintf(out, TEXT, "unknown");
    else
        snprintf(out, TEXT, "%.3g to %.3g tokens/s", r->low, r->high);
    return out;
}

/* ---- the machine ------------------------------------------------------------------------------------------------- */

static bool text_processor(mx_bytes *out, const mx_plan_machine *m) {
    char a[TEXT], b[TEXT], c[TEXT], precision[MX_PRECISION_NAME];
    mx_precisions_name(precision, &m->precision);
    bool ok =
        mx_bytes_addf(out, "Machine\n  processor     %s: %d core%s", m->cpu, m->allowed, m->allowed == 1 ? "" : "s");
    if (m->cores < m->allowed) ok = ok && mx_bytes_addf(out, ", of which %d may be used (cgroup)", m->cores);
    ok = ok && mx_bytes_addf(out, ", %d logical on line\n", m->processors);
    ok = ok && mx_bytes_addf(out, "  instructions  %s\n", *m->features ? m->features : "unknown");
    ok = ok && mx_bytes_addf(out, "  kernels       %s, precision %s\n", m->tier, precision);
    ok = ok && mx_bytes_addf(out, "  caches        L1 %s, L2 %s, L3 %s\n", or_unknown(a, m->l1d, "B"),
                             or_unknown(b, m->l2, "B"), or_unknown(c, m->l3, "B"));
    ok = ok && mx_bytes_addf(out, "  power limit   %s\n", or_unknown(a, m->watts, "W"));
    return ok;
}

static bool text_memory(mx_bytes *out, const mx_plan_machine *m) {
    char a[TEXT], b[TEXT];
    bool ok = mx_bytes_addf(out, "  memory        %s free of %s, %d node%s, huge pages: %s\n",
                            or_unknown(a, m->memory_free, "B"), or_unknown(b, m->memory_total, "B"), m->nodes,
                            m->nodes == 1 ? "" : "s", *m->huge_pages ? m->huge_pages : "unknown");
    if (m->bandwidth.median > 0)
        ok = ok && mx_bytes_addf(out, "  reads memory  %.1f GB/s (%.1f to %.1f)\n", m->bandwidth.median / 1e9,
                                 m->bandwidth.low / 1e9, m->bandwidth.high / 1e9);
    else
        ok = ok && mx_bytes_addf(out, "  reads memory  %s\n", *m->not_measured ? m->not_measured : "not measured");
    ok = ok && mx_bytes_add_string(out, "  multiplies    ");
    bool first = true;
    for (int i = 0; i < MX_PEAK_LOOPS; i++) {
        if (m->peaks.of[i] <= 0) continue;
        ok = ok &&
             mx_bytes_addf(out, "%s%s %.0f", first ? "" : ", ", mx_peak_name((mx_peak_loop)i), m->peaks.of[i] / 1e9);
        first = false;
    }
    ok = ok && mx_bytes_addf(out, "%s%s\n", first ? "unknown" : " GFLOP/s",
                             m->given ? " (memory or arithmetic as given by options)" : "");
    return ok;
}

static bool text_disk_and_gpus(mx_bytes *out, const mx_plan_machine *m) {
    char a[TEXT], b[TEXT], c[TEXT];
    bool ok = mx_bytes_addf(out, "  disk          %s free in %s, reads ", or_unknown(a, m->disk_free, "B"),
                            *m->folder ? m->folder : "(no home folder)");
    if (m->disk > 0)
        ok = ok && mx_bytes_addf(out, "%s (%s)\n", scaled(b, m->disk, "B/s"), m->disk_note);
    else
        ok = ok && mx_bytes_addf(out, "%s\n", *m->disk_note ? m->disk_note : "not measured");
    if (!m->gpus) ok = ok && mx_bytes_addf(out, "  GPU           none: %s\n", m->gpu_note);
    for (int i = 0; i < m->gpus && ok; i++) {
        const mx_plan_gpu *g = &m->gpu[i];
        const char *family = mx_plan_gpu_family(g->major, g->minor);
        ok = mx_bytes_addf(out, "  GPU %-9d %s: %s free of %s", i, g->name, or_unknown(a, g->memory_free, "B"),
                           or_unknown(b, g->memory, "B"));
        if (g->major)
            ok = ok &&
                 mx_bytes_addf(out, ", compute capability %d.%d%s%s", g->major, g->minor, *family ? ", " : "", family);
        ok = ok && mx_bytes_addf(out, ", power limit %s\n", or_unknown(c, g->watts, "W"));
    }
    return ok;
}

/* ---- models: memory ---------------------------------------------------------------------------------------------- */

static int name_width(const mx_plan_report *r) {
    int width = 5;
    for (int i = 0; i < r->count; i++) {
        const int n = (int)strlen(r->fit[i].model.name);
        if (n > width) width = n < 40 ? n : 40;
    }
    return width;
}

static const char *verdict(const mx_plan_memory *m) {
    if (m->room <= 0) return "unknown";
    return m->left >= 0 ? "fits" : m->context > 0 ? "fits with less context" : "does not fit";
}

static bool text_row(mx_bytes *out, const mx_plan_fit *f, const mx_plan_memory *m, int width) {
    char cell[6][TEXT];
    const double mb = 1e-6;
    with_commas(cell[0], m->weights * mb);
    with_commas(cell[1], m->kv * mb);
    with_commas(cell[2], (m->scratch + m->program) * mb);
    with_commas(cell[3], m->sum * mb);
    if (m->room > 0)
        with_commas(cell[4], m->left * mb);
    else
        snprintf(cell[4], TEXT, "unknown");
    with_commas(cell[5], (double)m->context);
    return mx_bytes_addf(out, "  %-*.*s %10s %8s %8s %10s %12s %13s  %s\n", width, width, f->model.name, cell[0],
                         cell[1], cell[2], cell[3], cell[4], cell[5], verdict(m));
}

static bool text_tables(mx_bytes *out, const mx_plan_report *r) {
    const int width = name_width(r);
    char context[TEXT];
    bool ok =
        mx_bytes_addf(out, "\nMemory in MB, %d stream%s of %s tokens, keys and values in %s\n", r->request->streams,
                      r->request->streams > 1 ? "s" : "", with_commas(context, (double)r->request->context), r->kv);
    for (int gpu = -1; gpu < r->machine->gpus && ok; gpu++) {
        char place[TEXT];
        snprintf(place, sizeof place, gpu < 0 ? "RAM" : "GPU %d", gpu);
        ok = mx_bytes_addf(out, "  %-*s %10s %8s %8s %10s %12s %13s\n", width, place, "weights", "KV", "steps",
                           "in all", "free after", "context most");
        for (int i = 0; i < r->count && ok; i++)
            ok = text_row(out, &r->fit[i], gpu < 0 ? &r->fit[i].memory : &r->fit[i].gpu[gpu], width);
    }
    return ok && mx_bytes_add_string(out, "  steps: what they compute in, the program and its tokenizer; context most: "
                                          "of each stream\n");
}

/* ---- models: kernels and speed ----------------------------------------------------------------------------------- */

static bool text_kernels(mx_bytes *out, const mx_plan_kernels *k) {
    return mx_bytes_addf(out, "    experts   %s: %s\n", mx_plan_kind_key(k->experts.kind), k->experts.how) &&
           mx_bytes_addf(out, "    dense     %s: %s\n", mx_plan_kind_key(k->dense.kind), k->dense.how) &&
           mx_bytes_addf(out, "    attention %s: %s\n", mx_plan_kind_key(k->attention.kind), k->attention.how);
}

static bool same_layout(const mx_plan_fit *a, const mx_plan_fit *b) {
    const mx_plan_formats *x = &a->model.formats, *y = &b->model.formats;
    return x->experts == y->experts && x->dense == y->dense;
}

/* Once for all models of a layout. */
static bool text_cpu_kernels(mx_bytes *out, const mx_plan_report *r) {
    const mx_plan_machine *m = r->machine;
    bool ok = true;
    for (int i = 0; i < r->count && ok; i++) {
        char layout[MX_PLAN_FORMATS];
        bool told = false;
        for (int j = 0; j < i; j++) told |= same_layout(&r->fit[i], &r->fit[j]);
        if (told) continue;
        mx_plan_formats_name(layout, &r->fit[i].model.formats);
        ok = mx_bytes_addf(out, "  CPU, %s: %s", layout, r->fit[i].model.name);
        for (int j = i + 1; j < r->count && ok; j++)
            if (same_layout(&r->fit[i], &r->fit[j])) ok = mx_bytes_addf(out, ", %s", r->fit[j].model.name);
        const mx_plan_kernels k = mx_plan_kernels_cpu(m->tier, &m->precision, &r->fit[i].model.formats);
        ok = ok && mx_bytes_add_string(out, "\n") && text_kernels(out, &k);
    }
    return ok;
}

static bool text_all_kernels(mx_bytes *out, const mx_plan_report *r) {
    const mx_plan_machine *m = r->machine;
    bool ok = mx_bytes_add_string(out, "\nKernels\n") && text_cpu_kernels(out, r);
    for (int i = 0; i < m->gpus && ok; i++) {
        if (!m->gpu[i].major) continue;
        const mx_plan_kernels k = mx_plan_kernels_gpu(m->gpu[i].major, m->gpu[i].minor);
        ok = mx_bytes_addf(out, "  GPU %d\n", i) && text_kernels(out, &k);
    }
    return ok &&
           (!m->gpus || m->cuda ||
            mx_bytes_add_string(out, "  GPU: not used, the plugin libmxrun_cuda.so is not here or finds none that "
                                     "it can use\n"));
}

/* "3.81 GB / 50.3 GB/s = 75.7 ms; 9.6 GFLOP / 1.01 TFLOP/s = 9.5 ms, x 3.6" */
static bool text_roofline(mx_bytes *out, const mx_plan_step *s, double bandwidth) {
    char a[TEXT], b[TEXT], c[TEXT], d[TEXT], e[TEXT], f[TEXT], g[TEXT];
    return mx_bytes_addf(out, "%s / %s = %s; %s / %s = %s, x %.3g; together %s\n", scaled(a, s->bytes, "B"),
                         scaled(b, bandwidth, "B/s"), time_text(c, s->by_bytes), scaled(d, s->operations, "FLOP"),
                         scaled(e, s->operations / s->by_operations, "FLOP/s"), time_text(f, s->by_operations),
                         s->slowness, time_text(g, s->seconds));
}

/* Of some model: of all of them, or of none, unless --peak leaves out what only some of them need. */
static bool has_formula(const mx_plan_report *r) {
    bool any = false;
    for (int i = 0; i < r->count; i++) any |= r->fit[i].speed.decode.slowness > 0;
    return any;
}

static bool text_speed(mx_bytes *out, const mx_plan_report *r, const mx_plan_fit *f) {
    const mx_plan_speed *s = &f->speed;
    const double bandwidth = r->machine->bandwidth.median;
    char a[TEXT], b[TEXT], c[TEXT], layout[MX_PLAN_FORMATS];
    const bool told = *s->unknown && has_formula(r); /* else it was said above */
    mx_plan_formats_name(layout, &f->model.formats);
    bool ok = mx_bytes_addf(out, "  %s (%s)\n", f->model.name, layout);
    if (s->from_disk)
        ok = ok && mx_bytes_addf(out, "    decode  %s, from the disk: its weights do not fit into memory%s%s\n",
                                 rate_text(a, &s->decode_rate), told ? "; " : "", told ? s->unknown : "");
    if (!s->from_disk && s->decode_rate.median > 0)
        ok = ok &&
             mx_bytes_addf(out, "    prompt  %s\n            %.0f tokens: ", rate_text(a, &s->prompt_rate),
                           s->prompt.rows) &&
             text_roofline(out, &s->prompt, bandwidth) &&
             mx_bytes_addf(out, "    decode  %s\n            a step: ", rate_text(b, &s->decode_rate)) &&
             text_roofline(out, &s->decode, bandwidth);
    if (!s->from_disk && !(s->decode_rate.median > 0))
        ok = ok && mx_bytes_addf(out, "    decode  unknown: a step reads %s and takes %s%s%s\n",
                                 scaled(a, s->decode.bytes, "B"), scaled(b, s->decode.operations, "FLOP"),
                                 told ? "; " : "", told ? s->unknown : "");
    if (s->cold_start > 0)
        ok = ok && mx_bytes_addf(out, "    start   %s cold: %s / %s\n", time_text(a, s->cold_start),
                                 scaled(b, f->model.weights, "B"), scaled(c, r->machine->disk, "B/s"));
    for (int i = 0; i < r->machine->gpus && ok; i++) {
        const mx_plan_gpu *g = &r->machine->gpu[i];
        if (g->bandwidth > 0 && f->gpu[i].left >= 0)
            ok = mx_bytes_addf(out, "    GPU %-3d %.3g tokens/s at most: %s / %s a step\n", i,
                               s->decode.rows * g->bandwidth / s->decode.bytes, scaled(a, s->decode.bytes, "B"),
                               scaled(b, g->bandwidth, "B/s"));
    }
    return ok;
}

static bool text_formula(mx_bytes *out, const mx_plan_report *r) {
    char context[TEXT];
    with_commas(context, (double)(r->request->context / 2));
    if (!has_formula(r))
        return mx_bytes_addf(out, "\nSpeed on the CPU, behind %s tokens: unknown%s%s\n", context, r->count ? ", " : "",
                             r->count ? r->fit->speed.unknown : "");
    bool ok = mx_bytes_addf(out,
                            "\nSpeed expected on the CPU, behind %s tokens; time = sqrt((bytes / bandwidth)^2 + "
                            "(k operations / peak)^2), k = %g + %g / rows, of attention %g\n",
                            context, MX_PLAN_MANY, MX_PLAN_ONE, MX_PLAN_ATTENTION);
    if (r->fit->speed.borrowed)
        ok = ok && mx_bytes_addf(out,
                                 "  k was fitted to the avx512bf16 kernels, not to those of %s: the range "
                                 "goes lower\n",
                                 r->machine->tier);
    return ok;
}

bool mx_plan_text(mx_bytes *out, const mx_plan_report *r) {
    const mx_plan_machine *m = r->machine;
    bool ok = text_processor(out, m) && text_memory(out, m) && text_disk_and_gpus(out, m) && text_tables(out, r) &&
              text_all_kernels(out, r);
    ok = ok && text_formula(out, r);
    for (int i = 0; i < r->count && ok; i++) ok = text_speed(out, r, &r->fit[i]);
    mx_bytes advice = {0};
    ok = ok && mx_bytes_add_string(out, "\nRecommendation\n") &&
         mx_plan_advise(m, r->request, r->fit, r->count, r->asked, &advice);
    for (const char *line = advice.data; ok && line && *line;) {
        const size_t n = strcspn(line, "\n");
        ok = mx_bytes_addf(out, "  %.*s\n", (int)n, line);
        line += n + (line[n] == '\n');
    }
    mx_bytes_free(&advice);
    return ok;
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

static bool json_text(mx_bytes *out, const char *key, const char *text) {
    if (!*text) return mx_bytes_addf(out, "\"%s\":null,", key);
    return mx_bytes_addf(out, "\"%s\":", key) && mx_bytes_add_json(out, text, strlen(text)) &&
           mx_bytes_add_string(out, ",");
}

/* What is not known is null. */
static bool json_number(mx_bytes *out, const char *key, double value) {
    if (!(value > 0)) return mx_bytes_addf(out, "\"%s\":null,", key);
    return mx_bytes_addf(out, value >= 1e6 ? "\"%s\":%.0f," : "\"%s\":%.6g,", key, value);
}

static bool json_range(mx_bytes *out, const char *key, const mx_plan_range *r, double unit) {
    if (!(r->median > 0)) return mx_bytes_addf(out, "\"%s\":null,", key);
    return mx_bytes_addf(out, "\"%s\":{\"low\":%.6g,\"median\":%.6g,\"high\":%.6g},", key, r->low / unit,
                         r->median / unit, r->high / unit);
}

/* Replaces the comma behind the last member. */
static bool json_end(mx_bytes *out, char bracket) {
    if (out->size && out->data[out->size - 1] == ',') out->size--;
    return mx_bytes_add(out, &bracket, 1);
}

static bool json_way(mx_bytes *out, const char *key, const mx_plan_way *w) {
    return mx_bytes_addf(out, "\"%s\":{\"kind\":\"%s\",\"how\":\"%s\"},", key, mx_plan_kind_key(w->kind), w->how);
}

static bool json_kernels(mx_bytes *out, const mx_plan_kernels *k) {
    return mx_bytes_add_string(out, "\"kernels\":{") && json_way(out, "experts", &k->experts) &&
           json_way(out, "dense", &k->dense) && json_way(out, "attention", &k->attention) && json_end(out, '}') &&
           mx_bytes_add_string(out, ",");
}

static bool json_gpu(mx_bytes *out, const mx_plan_machine *m, const mx_plan_gpu *g) {
    const mx_plan_kernels k = mx_plan_kernels_gpu(g->major, g->minor);
    bool ok = mx_bytes_add_string(out, "{") && json_text(out, "name", g->name) &&
              json_number(out, "memory_bytes", g->memory) && json_number(out, "memory_free_bytes", g->memory_free);
    if (ok && g->major)
        ok = mx_bytes_addf(out, "\"compute_capability\":\"%d.%d\",", g->major, g->minor) && json_kernels(out, &k);
    else
        ok = ok && mx_bytes_add_string(out, "\"compute_capability\":null,\"kernels\":null,");
    return ok && json_text(out, "family", mx_plan_gpu_family(g->major, g->minor)) &&
           json_number(out, "bandwidth_gb_s", g->bandwidth / 1e9) && json_number(out, "power_limit_w", g->watts) &&
           mx_bytes_addf(out, "\"used\":%s", m->cuda && k.experts.kind != MX_PLAN_NONE ? "true" : "false") &&
           json_end(out, '}') && mx_bytes_add_string(out, ",");
}

static bool json_machine(mx_bytes *out, const mx_plan_machine *m) {
    char precision[MX_PRECISION_NAME];
    mx_precisions_name(precision, &m->precision);
    bool ok = mx_bytes_add_string(out, "\"machine\":{") && json_text(out, "cpu", m->cpu) &&
              json_text(out, "features", m->features) && json_text(out, "tier", m->tier) &&
              json_text(out, "precision", precision);
    ok = ok && mx_bytes_addf(out, "\"logical_cpus\":%d,\"cores_allowed\":%d,\"cores\":%d,\"memory_nodes\":%d,",
                             m->processors, m->allowed, m->cores, m->nodes);
    ok = ok && json_number(out, "l1d_bytes", m->l1d) && json_number(out, "l2_bytes", m->l2) &&
         json_number(out, "l3_bytes", m->l3) && json_number(out, "power_limit_w", m->watts) &&
         json_number(out, "memory_bytes", m->memory_total) && json_number(out, "memory_free_bytes", m->memory_free) &&
         json_text(out, "huge_pages", m->huge_pages) && json_range(out, "bandwidth_gb_s", &m->bandwidth, 1e9) &&
         mx_bytes_add_string(out, "\"peak_gflop_s\":{");
    for (int i = 0; i < MX_PEAK_LOOPS && ok; i++)
        if (m->peaks.of[i] > 0) ok = json_number(out, mx_peak_key((mx_peak_loop)i), m->peaks.of[i] / 1e9);
    ok = ok && json_end(out, '}') && mx_bytes_addf(out, ",\"given\":%s,\"disk\":{", m->given ? "true" : "false") &&
         json_text(out, "folder", m->folder) && json_number(out, "free_bytes", m->disk_free) &&
         json_number(out, "read_gb_s", m->disk / 1e9) && json_text(out, "note", m->disk_note) && json_end(out, '}') &&
         mx_bytes_add_string(out, ",\"gpus\":[");
    for (int i = 0; i < m->gpus && ok; i++) ok = json_gpu(out, m, &m->gpu[i]);
    return ok && json_end(out, ']') && mx_bytes_add_string(out, ",") && json_text(out, "gpu_note", m->gpu_note) &&
           json_text(out, "gpu_driver", m->driver) && json_end(out, '}');
}

static bool json_memory(mx_bytes *out, const mx_plan_memory *m) {
    bool ok = mx_bytes_addf(out,
                            "{\"weights_bytes\":%.0f,\"kv_bytes\":%.0f,\"scratch_bytes\":%.0f,\"program_bytes\":%.0f,"
                            "\"total_bytes\":%.0f,",
                            m->weights, m->kv, m->scratch, m->program, m->sum);
    if (m->room > 0)
        return ok && mx_bytes_addf(out, "\"left_bytes\":%.0f,\"fits\":%s,\"most_context\":%lld}", m->left,
                                   m->left >= 0 ? "true" : "false", (long long)m->context);
    return ok && mx_bytes_add_string(out, "\"left_bytes\":null,\"fits\":null,\"most_context\":null}");
}

static bool json_step(mx_bytes *out, const char *key, const mx_plan_step *s, const mx_plan_range *rate) {
    return mx_bytes_addf(out, "\"%s\":{\"rows\":%.0f,\"bytes\":%.0f,\"operations\":%.0f,", key, s->rows, s->bytes,
                         s->operations) &&
           json_number(out, "seconds_by_bytes", s->by_bytes) &&
           json_number(out, "seconds_by_operations", s->by_operations) && json_number(out, "slowness", s->slowness) &&
           json_range(out, "tokens_per_s", rate, 1) && json_end(out, '}') && mx_bytes_add_string(out, ",");
}

static bool json_fit(mx_bytes *out, const mx_plan_report *r, const mx_plan_fit *f) {
    const mx_plan_model *m = &f->model;
    const double token = mx_plan_step_bytes(&m->config, &m->bytes, 1, 1);
    const mx_plan_kernels k = mx_plan_kernels_cpu(r->machine->tier, &r->machine->precision, &m->formats);
    char layout[MX_PLAN_FORMATS];
    mx_plan_formats_key(layout, &m->formats);
    bool ok = mx_bytes_add_string(out, "{") && json_text(out, "name", m->name) && json_text(out, "layout", layout) &&
              json_kernels(out, &k) &&
              mx_bytes_addf(out, "\"here\":%s,\"layers\":%d,\"experts\":%d,\"max_context\":%d,",
                            m->here ? "true" : "false", m->config.layers, m->config.experts, m->config.max_positions) &&
              mx_bytes_addf(out, "\"weight_bytes_per_token\":%.0f,\"memory\":", token) &&
              json_memory(out, &f->memory) && mx_bytes_add_string(out, ",\"gpu_memory\":[");
    for (int i = 0; i < r->machine->gpus && ok; i++) ok = json_memory(out, &f->gpu[i]) && mx_bytes_add_string(out, ",");
    return ok && json_end(out, ']') && mx_bytes_add_string(out, ",") &&
           json_step(out, "prompt", &f->speed.prompt, &f->speed.prompt_rate) &&
           json_step(out, "decode", &f->speed.decode, &f->speed.decode_rate) &&
           mx_bytes_addf(out, "\"from_disk\":%s,", f->speed.from_disk ? "true" : "false") &&
           json_text(out, "speed_unknown", f->speed.unknown) &&
           mx_bytes_addf(out, "\"speed_borrowed\":%s,", f->speed.borrowed ? "true" : "false") &&
           json_number(out, "cold_start_s", f->speed.cold_start) && json_end(out, '}') && mx_bytes_add_string(out, ",");
}

bool mx_plan_json(mx_bytes *out, const mx_plan_report *r) {
    const int choice = mx_plan_choice(r->fit, r->count);
    mx_bytes advice = {0};
    bool ok = mx_bytes_add_string(out, "{\"mxrun\":\"" MX_VERSION "\",") && json_machine(out, r->machine);
    ok = ok && mx_bytes_addf(out, ",\"seconds\":%.3g,\"context\":%lld,\"streams\":%d,\"kv_type\":\"%s\",\"models\":[",
                             r->seconds, (long long)r->request->context, r->request->streams, r->kv);
    for (int i = 0; i < r->count && ok; i++) ok = json_fit(out, r, &r->fit[i]);
    ok = ok && json_end(out, ']') && mx_bytes_add_string(out, ",") &&
         json_text(out, "choice", choice < 0 ? "" : r->fit[choice].model.name) &&
         mx_plan_advise(r->machine, r->request, r->fit, r->count, r->asked, &advice);
    ok = ok && mx_bytes_add_string(out, "\"recommendation\":[");
    for (const char *line = advice.data; ok && line && *line;) {
        const size_t n = strcspn(line, "\n");
        ok = mx_bytes_add_json(out, line, n) && mx_bytes_add_string(out, ",");
        line += n + (line[n] == '\n');
    }
    mx_bytes_free(&advice);
    return ok && json_end(out, ']') && mx_bytes_add_string(out, "}\n");
}
