#include "evaluate/compare.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/progress.h"

/* ---- what a model weighs ----------------------------------------------------------------------------------------- */

double mx_compare_parameters(const mx_config *c) {
    const double hidden = c->hidden, queries = (double)c->heads * c->head_dim, kv = (double)c->kv_heads * c->head_dim,
                 inner = c->intermediate;
    const double biases = c->attention_bias ? queries + 2 * kv + hidden : 0;
    const double attention = hidden * (2 * queries + 2 * kv) + biases + c->heads;
    const double expert = 3 * inner * hidden + 2 * inner + hidden, router = c->experts * (hidden + 1);
    return (double)c->vocab * hidden * (c->tied_embeddings ? 1 : 2) + hidden +
           c->layers * (2 * hidden + attention + router + c->experts * expert);
}

double mx_compare_bits(const mx_compare_model *m) {
    return m->parameters > 0 ? 8 * m->bytes / m->parameters : 0;
}

/* ---- tables ------------------------------------------------------------------------------------------------------ */

enum { COLUMNS = 12, CELL = 200, MOST_WIDTH = 100 };

/* Row 0 has the headings; columns are to the right but for the first. */
typedef struct table {
    char cell[MX_COMPARE_MOST + 1][COLUMNS][CELL];
    int rows, columns;
} table;

__attribute__((format(printf, 2, 3))) static void add(table *t, const char *format, ...) {
    va_list list;
    va_start(list, format);
    if (t->columns < COLUMNS) vsnprintf(t->cell[t->rows][t->columns++], CELL, format, list);
    va_end(list);
}

/* At most `width` characters, the last of them an ellipsis where something is missing. In place. */
static void cut(char text[CELL], int width) {
    if (mx_text_width(text) <= width) return;
    int n = 0;
    char *at = text;
    for (; *at; at++)
        if ((*at & 0xc0) != 0x80 && n++ == width - 1) break;
    snprintf(at, (size_t)(text + CELL - at), "…");
}

/* Four digits are enough, none of them after the point from 1,000 on. */
static int digits(double value) {
    return value >= 99.95 ? (value >= 999.5 ? 0 : 1) : value >= 9.995 ? 2 : 3;
}

static void add_size(table *t, double bytes) {
    if (!(bytes > 0))
        add(t, "–");
    else if (bytes >= 1e9)
        add(t, "%.2f GB", bytes / 1e9);
    else
        add(t, "%.1f MB", bytes / 1e6);
}

static void add_speed(table *t, double speed) {
    if (speed > 0)
        add(t, "%.*f", digits(speed), speed);
    else
        add(t, "–");
}

/* Digits behind the point of a perplexity: what formats do to it is far below its standard error. */
static int perplexity_digits(double value) {
    return value < 99.995 ? 4 : value < 9999.5 ? 2 : 0;
}

/* Of a standard error: two that count. */
static int error_digits(double value) {
    if (!(value > 0) || value >= 9.95) return value > 0 ? 1 : 0;
    const int d = 1 - (int)floor(log10(value * 1.0001));
    return d < 6 ? d : 6;
}

static void add_perplexity(table *t, const mx_compare_model *m) {
    const mx_evaluation *e = &m->evaluation;
    if (m->evaluated)
        add(t, "%.*f ± %.*f", perplexity_digits(e->perplexity), e->perplexity, error_digits(e->standard_error),
            e->standard_error);
    else
        add(t, "–");
}

static void add_nats(table *t, double kl) {
    if (kl == 0)
        add(t, "0");
    else if (fabs(kl) < 9.995e-5)
        add(t, "%.1e", kl);
    else
        add(t, "%.*f", kl < 0.0995 ? 5 : 4, kl);
}

static void add_kl(table *t, const mx_compare_model *m) {
    if (m->evaluated && m->evaluation.has_base)
        add_nats(t, m->evaluation.kl_mean);
    else
        add(t, "–");
}

static void add_top1(table *t, const mx_compare_model *m) {
    if (m->evaluated && m->evaluation.has_base)
        add(t, "%.*f %%", 2 - (m->evaluation.top1 == 1), 100 * m->evaluation.top1);
    else
        add(t, "–");
}

static void add_delta(table *t, const mx_compare_model *m) {
    const mx_evaluation *e = &m->evaluation;
    const int d = perplexity_digits(e->perplexity);
    if (m->evaluated && e->has_base)
        add(t, "%+.*f ± %.*f", d, e->delta_perplexity, error_digits(e->delta_stderr), e->delta_stderr);
    else
        add(t, "–");
}

static const char *energy_heading(const mx_compare *c) {
    return c->energy == MX_COMPARE_BYTES ? "MB/token" : "J/token";
}

static void add_energy(table *t, const mx_compare *c, const mx_compare_model *m) {
    const double value = c->energy == MX_COMPARE_BYTES ? m->token_bytes / 1e6 : m->joules;
    if (!(value > 0))
        add(t, "–");
    else
        add(t, "%.*f", c->energy == MX_COMPARE_BYTES ? digits(value) : value < 0.1 ? 4 : 3, value);
}

static void fill(table *t, const mx_compare *c, bool markdown) {
    const bool prompt = c->speed && c->prompt_tokens, decode = c->speed && c->decode_tokens;
    t->rows = 0;
    for (int i = -1; i < c->models; i++, t->rows++) {
        const mx_compare_model *m = i < 0 ? NULL : &c->model[i];
        t->columns = 0;
        add(t, "%s", m ? m->label : "model");
        m ? add_size(t, m->disk) : add(t, "size");
        if (!m)
            add(t, markdown ? "bits/weight" : "bits");
        else if (mx_compare_bits(m) > 0)
            add(t, "%.2f", mx_compare_bits(m));
        else
            add(t, "–");
        m ? add_perplexity(t, m) : add(t, "perplexity");
        if (markdown) m ? add_delta(t, m) : add(t, "Δ to the first");
        m ? add_kl(t, m) : add(t, "KL");
        m ? add_top1(t, m) : add(t, "top-1");
        if (prompt) m ? add_speed(t, m->prompt.median) : add(t, markdown ? "prompt tokens/s" : "prompt");
        if (decode) m ? add_speed(t, m->decode.median) : add(t, markdown ? "decode tokens/s" : "decode");
        if (decode) m ? add_energy(t, c, m) : add(t, "%s", energy_heading(c));
    }
}

static bool print_table(mx_bytes *out, table *t) {
    int width[COLUMNS] = {0}, rest = MOST_WIDTH;
    bool ok = true;
    for (int k = t->columns - 1; k >= 0; k--) {
        for (int r = 0; r < t->rows; r++)
            width[k] = mx_text_width(t->cell[r][k]) > width[k] ? mx_text_width(t->cell[r][k]) : width[k];
        if (k) rest -= width[k] + 2;
    }
    if (rest < 8) rest = 8;
    if (width[0] > rest) width[0] = rest;
    for (int r = 0; r < t->rows && ok; r++) {
        cut(t->cell[r][0], width[0]);
        ok = mx_bytes_addf(out, "%s%*s", t->cell[r][0], width[0] - mx_text_width(t->cell[r][0]), "");
        for (int k = 1; k < t->columns && ok; k++)
            ok = mx_bytes_addf(out, "  %*s%s", width[k] - mx_text_width(t->cell[r][k]), "", t->cell[r][k]);
        ok = ok && mx_bytes_add_string(out, "\n");
    }
    return ok;
}

/* A name may hold what Markdown gives a meaning, or a line's end. */
static bool add_cell(mx_bytes *out, const char *text) {
    bool ok = true;
    for (; *text && ok; text++) {
        if (*text == '\n' || *text == '\r')
            ok = mx_bytes_add_string(out, " ");
        else
            ok = (!strchr("|*_`<[\\", *text) || mx_bytes_add_string(out, "\\")) && mx_bytes_add(out, text, 1);
    }
    return ok;
}

static bool print_markdown(mx_bytes *out, const table *t) {
    bool ok = true;
    for (int r = 0; r < t->rows && ok; r++) {
        ok = mx_bytes_add_string(out, "|");
        for (int k = 0; k < t->columns && ok; k++)
            ok = mx_bytes_add_string(out, " ") && add_cell(out, t->cell[r][k]) && mx_bytes_add_string(out, " |");
        if (ok && !r) {
            ok = mx_bytes_add_string(out, "\n|");
            for (int k = 0; k < t->columns && ok; k++) ok = mx_bytes_add_string(out, k ? " ---: |" : " --- |");
        }
        ok = ok && mx_bytes_add_string(out, "\n");
    }
    return ok;
}

/* ---- notes ------------------------------------------------------------------------------------------------------- */

typedef struct notes {
    mx_bytes *out;
    bool markdown, ok;
} notes;

/* One note: an item of a Markdown list, or lines of at most 100 columns, those behind the first indented. */
static void note(notes *n, const char *text) {
    int column = 0;
    if (n->markdown) {
        n->ok =
            n->ok && mx_bytes_add_string(n->out, "- ") && add_cell(n->out, text) && mx_bytes_add_string(n->out, "\n");
        return;
    }
    for (const char *at = text; *at && n->ok;) {
        char word[CELL * 6];
        const size_t size = strcspn(at, " \n"), kept = size < sizeof word - 1 ? size : sizeof word - 1;
        memcpy(word, at, kept);
        word[kept] = 0;
        at += size + strspn(at + size, " \n");
        const int wide = mx_text_width(word);
        if (column && column + 1 + wide > MOST_WIDTH) {
            n->ok = mx_bytes_add_string(n->out, "\n  ");
            column = 2;
        } else if (column) {
            n->ok = mx_bytes_add_string(n->out, " ");
            column++;
        }
        n->ok = n->ok && mx_bytes_add_string(n->out, word);
        column += wide;
    }
    n->ok = n->ok && mx_bytes_add_string(n->out, "\n");
}

__attribute__((format(printf, 2, 3))) static void notef(notes *n, const char *format, ...) {
    char text[2200];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    note(n, text);
}

static const mx_evaluation *any_evaluation(const mx_compare *c) {
    for (int i = 0; i < c->models; i++)
        if (c->model[i].evaluated) return &c->model[i].evaluation;
    return NULL;
}

static void note_text(notes *n, const mx_compare *c) {
    const mx_evaluation *e = any_evaluation(c);
    char tokens[32], top[32], kept[120] = "";
    bool against = false;
    if (!e) return;
    for (int i = 0; i < c->models; i++) {
        const mx_evaluation *one = &c->model[i].evaluation;
        if (!c->model[i].evaluated || !one->has_base) continue;
        against = true;
        if (!one->base_whole)
            snprintf(kept, sizeof kept, " (its %s likeliest tokens one by one, all others together: a lower bound)",
                     mx_with_commas(one->base_top, top));
    }
    notef(n, "text: %s, %s token%s scored; %s", c->text, mx_with_commas(e->tokens, tokens), e->tokens == 1 ? "" : "s",
          e->protocol);
    note(n, "bits: of all tensors, for each weight; ±: standard error of the mean over tokens. All models see the same "
            "tokens, so their differences are surer than that");
    if (!against) return;
    notef(n,
          "KL: divergence of %s's distribution from the model's, mean of nats a token%s; top-1: tokens of which both "
          "say the same is likeliest",
          c->model[0].label, kept);
}

static void note_energy(notes *n, const mx_compare *c) {
    if (c->energy == MX_COMPARE_RAPL)
        note(n, "J/token: of a decoded token, of the processor packages and their memory (RAPL)");
    else if (c->energy == MX_COMPARE_NVML)
        note(n, "J/token: of a decoded token, of the GPU (NVML)");
    else
        notef(n,
              "MB/token: bytes that a decoded token moves from memory, counted; energy was not measured, for no %s may "
              "be read here",
              c->gpu ? "counter of this GPU alone (NVML)" : "counter (RAPL, /sys/class/powercap/intel-rapl:*)");
}

static void note_speed(notes *n, const mx_compare *c) {
    char tests[200] = "";
    const bool both = c->prompt_tokens && c->decode_tokens;
    bool unsteady = false;
    if (c->prompt_tokens) snprintf(tests, sizeof tests, "a prompt of %d", c->prompt_tokens);
    if (c->decode_tokens)
        snprintf(tests + strlen(tests), sizeof tests - strlen(tests), "%sdecoding %d one by one", *tests ? ", " : "",
                 c->decode_tokens);
    notef(n, "%s: tokens/s of %s; medians of %s%s%s, %d round%s, %s",
          both               ? "prompt, decode"
          : c->prompt_tokens ? "prompt"
                             : "decode",
          tests, c->prompt_tokens ? "prompts" : "", both ? " and " : "",
          c->decode_tokens ? "windows of decoded tokens" : "", c->rounds, c->rounds > 1 ? "s" : "",
          c->together ? "in each of which every model had its turn"
          : c->gpu    ? "of one model after the other on the GPU"
                      : "of one model after the other, for they do not fit into memory together: the machine may have "
                        "been faster or slower for one than for another");
    char threads[40] = "";
    if (!c->gpu) snprintf(threads, sizeof threads, "%d thread%s, ", c->threads, c->threads > 1 ? "s" : "");
    if (*c->machine)
        notef(n, "%s; %s%s kernels, precision %s, KV cache %s", c->machine, threads, c->tier, c->precision, c->kv);
    for (int i = 0; i < c->models; i++) unsteady |= c->model[i].unsteady;
    if (unsteady) note(n, "the bandwidth of the memory changed by more than 10 % all the time: speeds may be off");
    if (c->decode_tokens) note_energy(n, c);
}

static bool print_notes(mx_bytes *out, const mx_compare *c, bool markdown) {
    notes n = {out, markdown, true};
    note_text(&n, c);
    if (c->speed) note_speed(&n, c);
    for (int i = 0; i < c->models; i++)
        if (*c->model[i].apart && !*c->model[i].failed) notef(&n, "%s: %s", c->model[i].label, c->model[i].apart);
    for (int i = 0; i < c->models; i++)
        if (*c->model[i].failed) notef(&n, "%s failed: %s", c->model[i].label, c->model[i].failed);
    return n.ok;
}

bool mx_compare_table(mx_bytes *out, const mx_compare *c) {
    table t;
    fill(&t, c, false);
    return print_table(out, &t) && mx_bytes_add_string(out, "\n") && print_notes(out, c, false);
}

bool mx_compare_markdown(mx_bytes *out, const mx_compare *c) {
    table t;
    fill(&t, c, true);
    return print_markdown(out, &t) && mx_bytes_add_string(out, "\n") && print_notes(out, c, true);
}

/* ---- numbers for programs ---------------------------------------------------------------------------------------- */

typedef struct field {
    const char *key;
    double value; /* not finite: not known */
} field;
enum { FIELDS = 24 };

static double positive(double value) {
    return value > 0 ? value : NAN;
}

/* All numbers of a model, in the order of CSV's columns; returns how many. */
static int fields_of(const mx_compare_model *m, field out[FIELDS]) {
    const mx_evaluation *e = &m->evaluation;
    const double known = m->evaluated ? 0 : NAN, against = m->evaluated && e->has_base ? 0 : NAN;
    const field all[] = {
        {"bytes", positive(m->disk)},
        {"weight_bytes", positive(m->bytes)},
        {"parameters", positive(m->parameters)},
        {"bits_per_weight", positive(mx_compare_bits(m))},
        {"perplexity", e->perplexity + known},
        {"stderr", e->standard_error + known},
        {"bits_per_byte", e->bits_per_byte + known},
        {"tokens", (double)e->tokens + known},
        {"delta_perplexity", e->delta_perplexity + against},
        {"delta_stderr", e->delta_stderr + against},
        {"kl_mean", e->kl_mean + against},
        {"kl_stderr", e->kl_stderr + against},
        {"kl_median", e->kl_median + against},
        {"kl_p99", e->kl_p99 + against},
        {"kl_max", e->kl_max + against},
        {"top1", e->top1 + against},
        {"prompt_tokens_per_s", positive(m->prompt.median)},
        {"prompt_tokens_per_s_min", positive(m->prompt.low)},
        {"prompt_tokens_per_s_max", positive(m->prompt.high)},
        {"decode_tokens_per_s", positive(m->decode.median)},
        {"decode_tokens_per_s_min", positive(m->decode.low)},
        {"decode_tokens_per_s_max", positive(m->decode.high)},
        {"joules_per_token", positive(m->joules)},
        {"bytes_per_token", positive(m->token_bytes)},
    };
    _Static_assert(sizeof all == FIELDS * sizeof *all, "all of them");
    memcpy(out, all, sizeof all);
    return FIELDS;
}

/* Ten digits are enough for what was measured; bytes and numbers of weights are whole. */
static bool add_value(mx_bytes *out, double value) {
    return mx_bytes_addf(out, fabs(value) >= 1e9 && fabs(value) < 1e18 ? "%.0f" : "%.10g", value);
}

static bool add_csv_text(mx_bytes *out, const char *text) {
    if (!strpbrk(text, ",\"\r\n")) return mx_bytes_add_string(out, text);
    bool ok = mx_bytes_add_string(out, "\"");
    for (; *text && ok; text++) ok = (*text != '"' || mx_bytes_add_string(out, "\"")) && mx_bytes_add(out, text, 1);
    return ok && mx_bytes_add_string(out, "\"");
}

bool mx_compare_csv(mx_bytes *out, const mx_compare *c) {
    static const mx_compare_model none;
    field f[FIELDS];
    int count = fields_of(&none, f);
    bool ok = mx_bytes_add_string(out, "model,path");
    for (int i = 0; i < count && ok; i++) ok = mx_bytes_addf(out, ",%s", f[i].key);
    ok = ok && mx_bytes_add_string(out, ",error\n");
    for (int i = 0; i < c->models && ok; i++) {
        const mx_compare_model *m = &c->model[i];
        count = fields_of(m, f);
        ok = add_csv_text(out, m->label) && mx_bytes_add_string(out, ",") && add_csv_text(out, m->path);
        for (int k = 0; k < count && ok; k++)
            ok = mx_bytes_add_string(out, ",") && (!isfinite(f[k].value) || add_value(out, f[k].value));
        ok = ok && mx_bytes_add_string(out, ",") && add_csv_text(out, m->failed) && mx_bytes_add_string(out, "\n");
    }
    return ok;
}

static bool add_member(mx_bytes *out, const char *key, const char *text) {
    return mx_bytes_addf(out, "\"%s\":", key) && mx_bytes_add_json(out, text, strlen(text));
}

static bool json_model(mx_bytes *out, const mx_compare_model *m) {
    field f[FIELDS];
    const int count = fields_of(m, f);
    bool ok = mx_bytes_add_string(out, "{") && add_member(out, "model", m->label) && mx_bytes_add_string(out, ",") &&
              add_member(out, "path", m->path);
    for (int k = 0; k < count && ok; k++)
        ok = mx_bytes_addf(out, ",\"%s\":", f[k].key) &&
             (isfinite(f[k].value) ? add_value(out, f[k].value) : mx_bytes_add_string(out, "null"));
    if (ok && *m->apart) ok = mx_bytes_add_string(out, ",") && add_member(out, "not_compared", m->apart);
    if (ok && *m->failed) ok = mx_bytes_add_string(out, ",") && add_member(out, "error", m->failed);
    return ok && mx_bytes_add_string(out, "}");
}

static bool json_speed(mx_bytes *out, const mx_compare *c) {
    static const char *const energies[] = {
        [MX_COMPARE_BYTES] = "none", [MX_COMPARE_RAPL] = "rapl", [MX_COMPARE_NVML] = "nvml"};
    return mx_bytes_addf(out,
                         ",\"speed\":{\"prompt_tokens\":%d,\"decode_tokens\":%d,\"rounds\":%d,\"together\":%s,"
                         "\"threads\":%d,\"energy\":\"%s\",",
                         c->prompt_tokens, c->decode_tokens, c->rounds, c->together ? "true" : "false", c->threads,
                         energies[c->energy]) &&
           add_member(out, "precision", c->precision) && mx_bytes_add_string(out, ",") &&
           add_member(out, "kv_type", c->kv) && mx_bytes_add_string(out, ",") && add_member(out, "tier", c->tier) &&
           mx_bytes_add_string(out, ",") && add_member(out, c->gpu ? "gpu" : "cpu", c->machine) &&
           mx_bytes_add_string(out, "}");
}

bool mx_compare_json(mx_bytes *out, const mx_compare *c) {
    const mx_evaluation *e = any_evaluation(c);
    bool ok = mx_bytes_add_string(out, "{\"mxrun\":\"" MX_VERSION "\",") && add_member(out, "text", c->text);
    if (ok && e) ok = mx_bytes_add_string(out, ",") && add_member(out, "protocol", e->protocol);
    if (ok && c->speed) ok = json_speed(out, c);
    ok = ok && mx_bytes_add_string(out, ",\"models\":[");
    for (int i = 0; i < c->models && ok; i++)
        ok = (!i || mx_bytes_add_string(out, ",")) && json_model(out, &c->model[i]);
    return ok && mx_bytes_add_string(out, "]}\n");
}
