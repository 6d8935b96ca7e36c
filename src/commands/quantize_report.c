#include "commands/quantize_report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/progress.h"

/* sqrt(sum (w - w')^2 / sum w^2) */
static double relative(const mx_quantize_report *r) {
    return r->square > 0 ? sqrt(r->error / r->square) : 0;
}

/* ---- text ---------------------------------------------------------------------------------------------------------
 */

static void size_text(uint64_t bytes, char out[32]) {
    const double n = (double)bytes;
    if (n >= 1e9)
        snprintf(out, 32, "%.2f GB", n / 1e9);
    else if (n >= 1e6)
        snprintf(out, 32, "%.2f MB", n / 1e6);
    else
        snprintf(out, 32, "%.1f KB", n / 1e3);
}

static void form_text(const mx_form *form, bool kept, char out[64]) {
    char name[MX_FORM_NAME];
    mx_form_name(name, form);
    snprintf(out, 64, "%s%s", name, kept ? ", as it is" : "");
}

static bool class_line(mx_bytes *out, const mx_model_class *c, bool done) {
    char form[64], size[32], matrices[32], saturated[32], zero[32];
    form_text(&c->form, c->kept, form);
    size_text(c->bytes, size);
    bool ok = mx_bytes_addf(out, "  %-10s %-20s %9s %12.3f %12s", mx_group_name(c->group), form,
                            mx_with_commas(c->matrices, matrices),
                            c->weights ? 8 * (double)c->bytes / (double)c->weights : 0, size);
    if (ok && done && !c->kept)
        ok = mx_bytes_addf(out, " %10.5f %12s %12s", relative(&c->sum), mx_with_commas(c->sum.saturated, saturated),
                           mx_with_commas(c->sum.zero_blocks, zero));
    return ok && mx_bytes_add_string(out, "\n");
}

static bool matrix_line(mx_bytes *out, const mx_model_matrix *m, bool done) {
    char form[64];
    form_text(&m->form, m->kept, form);
    bool ok = mx_bytes_addf(out, "  %-56s %-20s [%lld, %lld] %.3f bits", m->name, form, (long long)m->rows,
                            (long long)m->cols, mx_form_bits(&m->form, m->rows, m->cols));
    if (ok && done && !m->kept)
        ok = mx_bytes_addf(out, ", error %.5f, largest %.3g, saturated %lld, zero blocks %lld%s", relative(&m->report),
                           m->report.largest_error, (long long)m->report.saturated, (long long)m->report.zero_blocks,
                           m->report.lossless ? ", lossless" : "");
    return ok && mx_bytes_add_string(out, "\n");
}

/* What was MXFP4 before: did it keep its values? */
static bool lossless_text(mx_bytes *out, const mx_model_report *r) {
    int64_t all = 0, lossy = 0;
    char text[32];
    for (int i = 0; i < r->matrices; i++) {
        const mx_model_matrix *m = &r->matrix[i];
        if (!m->was_mxfp4 || m->kept) continue;
        all++;
        lossy += !m->report.lossless;
    }
    if (!all) return true;
    if (!lossy)
        return mx_bytes_addf(out, "  all %s matrices that were MXFP4 have the values that they had\n",
                             mx_with_commas(all, text));
    bool ok = mx_bytes_addf(
        out, "  %s of the matrices that were MXFP4 could not keep their values:", mx_with_commas(lossy, text));
    for (int i = 0, shown = 0; i < r->matrices && ok && shown < 4; i++) {
        const mx_model_matrix *m = &r->matrix[i];
        if (m->was_mxfp4 && !m->kept && !m->report.lossless)
            ok = mx_bytes_addf(out, "%s %s", shown++ ? "," : "", m->name);
    }
    return ok && mx_bytes_add_string(out, lossy > 4 ? ", ... (--verbose)\n" : "\n");
}

static int64_t nonfinite(const mx_model_report *r) {
    int64_t n = 0;
    for (int i = 0; i < r->classes; i++) n += r->of_class[i].sum.nonfinite;
    return n;
}

static int unseen(const mx_model_report *r) {
    int n = 0;
    for (int i = 0; i < r->classes; i++) n += r->of_class[i].unseen;
    return n;
}

static bool last_line(mx_bytes *out, const mx_quantize_shown *shown, const mx_model_report *r) {
    char before[32], after[32], read[32];
    size_text(r->bytes_before, before);
    size_text(shown->out ? r->file_bytes : r->bytes, after);
    if (!shown->out) return mx_bytes_addf(out, "  tensors: %s, of %s now\n", after, before);
    if (shown->gguf) return mx_bytes_addf(out, "%s: %s, of %s before, %.1f s\n", shown->out, after, before, r->seconds);
    size_text(r->read, read);
    return mx_bytes_addf(out, "%s: %s in %d files, tensors were %s; %.1f s, %s read, %.2f GB/s\n", shown->out, after,
                         r->files, before, r->seconds, read,
                         r->quantize_seconds > 0 ? (double)r->read / 1e9 / r->quantize_seconds : 0);
}

bool mx_quantize_text(mx_bytes *out, const mx_quantize_shown *shown, const mx_model_report *r) {
    const bool done = shown->out && !shown->gguf; /* converting does not say how far numbers are */
    bool ok = !r->budget.parts || mx_budget_show(&r->budget, out);
    for (int i = 0; i < r->matrices && ok && shown->verbose; i++) ok = matrix_line(out, &r->matrix[i], done);
    for (int i = 0; i < r->others && ok && shown->verbose; i++)
        ok = mx_bytes_addf(out, "  %-56s %s, %s\n", r->other[i].name, r->other[i].type,
                           r->other[i].changed ? "rotated" : "as it is");
    if (r->classes && ok)
        ok = mx_bytes_addf(out, "  %-10s %-20s %9s %12s %12s%s\n", "class", "format", "matrices", "bits/weight", "size",
                           done ? "  rel. error    saturated  zero blocks" : "");
    for (int i = 0; i < r->classes && ok; i++) ok = class_line(out, &r->of_class[i], done);
    if (r->others && ok)
        ok = mx_bytes_addf(out, "  and %d tensor%s that %s no such matrices%s\n", r->others, r->others == 1 ? "" : "s",
                           r->others == 1 ? "is" : "are", shown->verbose ? "" : " (--verbose lists them)");
    if (done) ok = ok && lossless_text(out, r);
    if (ok && nonfinite(r))
        ok = mx_bytes_addf(out, "  %lld numbers were NaN (now 0) or infinite (now the largest)\n",
                           (long long)nonfinite(r));
    if (ok && unseen(r))
        ok = mx_bytes_addf(out,
                           "  %d matrices met no token of the calibration text: the recipe did without statistics "
                           "there\n",
                           unseen(r));
    return ok && last_line(out, shown, r);
}

/* ---- JSON ---------------------------------------------------------------------------------------------------------
 */

static bool json_form(mx_bytes *out, const mx_form *form, bool kept) {
    char name[MX_FORM_NAME];
    mx_form_name(name, form);
    return mx_bytes_addf(out, "\"format\":\"%s\",\"kept\":%s", name, kept ? "true" : "false");
}

static bool json_result(mx_bytes *out, const mx_quantize_report *r) {
    return mx_bytes_addf(out,
                         ",\"relative_error\":%.9g,\"largest_error\":%.9g,\"saturated\":%lld,\"zero_blocks\":%lld,"
                         "\"nonfinite\":%lld,\"lossless\":%s",
                         relative(r), r->largest_error, (long long)r->saturated, (long long)r->zero_blocks,
                         (long long)r->nonfinite, r->lossless ? "true" : "false");
}

/* What --target-bits measured and chose; "formats": KL of each that the part can have, nats. */
static bool json_budget(mx_bytes *out, const mx_budget_report *b) {
    bool ok = mx_bytes_addf(out, ",\"bits\":%.9g,\"kl\":%.9g,\"kl_measured\":", b->bits, b->kl);
    ok = ok && (b->kl_measured < 0 ? mx_bytes_add_string(out, "null") : mx_bytes_addf(out, "%.9g", b->kl_measured));
    ok = ok && mx_bytes_addf(out, ",\"predictions\":%lld,\"table\":[", (long long)b->tokens);
    for (int i = 0; i < b->parts && ok; i++) {
        const mx_budget_part *p = &b->part[i];
        char name[MX_FORM_NAME];
        bool any = false;
        ok = mx_bytes_addf(out, "%s{\"part\":\"%s\",\"layer\":", i ? "," : "", mx_part_name(p->part)) &&
             (p->layer < 0 ? mx_bytes_add_string(out, "null") : mx_bytes_addf(out, "%d", p->layer)) &&
             mx_bytes_addf(out, ",\"weights\":%lld,\"formats\":{", (long long)p->weights);
        for (int j = 0; j < b->formats && ok; j++) {
            if (!p->choice[j].possible) continue;
            mx_form_name(name, &p->choice[j].form);
            ok = mx_bytes_addf(out, "%s\"%s\":%.9g", any ? "," : "", name, p->choice[j].kl);
            any = true;
        }
        mx_form_name(name, &p->choice[p->chosen].form);
        ok = ok && mx_bytes_addf(out, "},\"chosen\":\"%s\"}", name);
    }
    return ok && mx_bytes_add_string(out, "]");
}

bool mx_quantize_json(mx_bytes *out, const mx_quantize_shown *shown, const mx_model_report *r) {
    const bool done = shown->out && !shown->gguf;
    bool ok = mx_bytes_add_string(out, "{\"out\":");
    ok = ok && (shown->out ? mx_bytes_add_json(out, shown->out, strlen(shown->out)) : mx_bytes_add_string(out, "null"));
    ok = ok && mx_bytes_add_string(out, ",\"classes\":[");
    for (int i = 0; i < r->classes && ok; i++) {
        const mx_model_class *c = &r->of_class[i];
        ok = mx_bytes_addf(out, "%s{\"class\":\"%s\",", i ? "," : "", mx_group_name(c->group)) &&
             json_form(out, &c->form, c->kept) &&
             mx_bytes_addf(out, ",\"matrices\":%d,\"weights\":%lld,\"bytes\":%llu,\"bits_per_weight\":%.9g",
                           c->matrices, (long long)c->weights, (unsigned long long)c->bytes,
                           c->weights ? 8 * (double)c->bytes / (double)c->weights : 0);
        if (done && !c->kept) ok = ok && json_result(out, &c->sum) && mx_bytes_addf(out, ",\"unseen\":%d", c->unseen);
        ok = ok && mx_bytes_add_string(out, "}");
    }
    ok = ok && mx_bytes_add_string(out, "],\"matrices\":[");
    for (int i = 0; i < r->matrices && ok; i++) {
        const mx_model_matrix *m = &r->matrix[i];
        ok = mx_bytes_add_string(out, i ? ",{\"name\":" : "{\"name\":") &&
             mx_bytes_add_json(out, m->name, strlen(m->name)) &&
             mx_bytes_addf(out, ",\"class\":\"%s\",", mx_group_name(m->group)) && json_form(out, &m->form, m->kept) &&
             mx_bytes_addf(out, ",\"rows\":%lld,\"cols\":%lld,\"bits_per_weight\":%.9g", (long long)m->rows,
                           (long long)m->cols, mx_form_bits(&m->form, m->rows, m->cols));
        if (done && !m->kept) ok = ok && json_result(out, &m->report);
        ok = ok && mx_bytes_add_string(out, "}");
    }
    ok = ok && mx_bytes_add_string(out, "],\"others\":[");
    for (int i = 0; i < r->others && ok; i++)
        ok = mx_bytes_add_string(out, i ? "," : "") &&
             mx_bytes_add_json(out, r->other[i].name, strlen(r->other[i].name));
    ok = ok && mx_bytes_add_string(out, "]") && (!r->budget.parts || json_budget(out, &r->budget));
    return ok && mx_bytes_addf(out,
                               ",\"bytes_before\":%llu,\"bytes\":%llu,\"file_bytes\":%llu,\"files\":%d,"
                               "\"read\":%llu,\"seconds\":%.6g,\"quantize_seconds\":%.6g}\n",
                               (unsigned long long)r->bytes_before, (unsigned long long)r->bytes,
                               (unsigned long long)r->file_bytes, r->files, (unsigned long long)r->read, r->seconds,
                               r->quantize_seconds);
}
