#include "plan/advice.h"

#include <stdio.h>
#include <string.h>

#include "base/cpu.h"
#include "base/log.h"

/* ---- kernels ----------------------------------------------------------------------------------------------------- */

const char *mx_plan_kind_key(mx_plan_kind kind) {
    static const char *const keys[] = {
        [MX_PLAN_NATIVE] = "native", [MX_PLAN_WIDENED] = "widened", [MX_PLAN_LIBRARY] = "library",
        [MX_PLAN_PLAIN] = "scalar",  [MX_PLAN_NONE] = "none",
    };
    return keys[kind];
}

/* By what a tier multiplies BF16, where it does. */
static const char *bf16_of(const char *tier) {
    static const char *const tiers[][2] = {
        {"avx512bf16", "BF16 dot products"}, {"amx", "AMX tiles of BF16"}, {"neonbf16", "BFMMLA"}};
    for (size_t i = 0; i < sizeof tiers / sizeof *tiers; i++)
        if (!strcmp(tier, tiers[i][0])) return tiers[i][1];
    return NULL;
}

/* Products of weights of this format at this precision. */
static mx_plan_way product_of(const char *tier, mx_format format, mx_precision p) {
    const char *bf16 = bf16_of(tier), *name = mx_plan_format_name(format);
    const char *halves = p == MX_X_BF16X2 ? ", activations as two BF16 halves" : "";
    mx_plan_way way = {.kind = MX_PLAN_WIDENED};
    if (!strcmp(tier, "scalar")) {
        way.kind = MX_PLAN_PLAIN;
        snprintf(way.how, sizeof way.how, "scalar C");
    } else if (p == MX_X_INT8) {
        snprintf(way.how, sizeof way.how, "%s as integers, int8 products", name);
    } else if (!bf16 || p == MX_X_FP32 || mx_cost_by_fma(tier, format, p)) {
        way.kind = format == MX_F32 ? MX_PLAN_NATIVE : MX_PLAN_WIDENED;
        snprintf(way.how, sizeof way.how, "%s%s", name,
                 format == MX_F32 ? ", fp32 FMA" : " widened to fp32 in registers, FMA");
    } else if (format == MX_BF16) {
        way.kind = MX_PLAN_NATIVE;
        snprintf(way.how, sizeof way.how, "%s%s", bf16, halves);
    } else {
        snprintf(way.how, sizeof way.how, "%s widened to BF16 in registers, %s%s", name, bf16, halves);
    }
    return way;
}

mx_plan_kernels mx_plan_kernels_cpu(const char *tier, const mx_precisions *precision, const mx_plan_formats *formats) {
    mx_plan_kernels k = {product_of(tier, formats->experts, precision->of[MX_CLASS_GATE_UP]),
                         product_of(tier, formats->dense, precision->of[MX_CLASS_QKV]),
                         {MX_PLAN_WIDENED, "keys and values widened to fp32, FMA"}};
    if (!strcmp(tier, "scalar")) {
        snprintf(k.dense.how, sizeof k.dense.how, "scalar C, or OpenBLAS (--dense openblas)");
        k.attention = k.experts;
    }
    return k;
}

const char *mx_plan_gpu_family(int major, int minor) {
    if (major >= 10 && major <= 12) return "Blackwell";
    if (major == 9) return "Hopper";
    if (major == 8) return minor == 9 ? "Ada" : "Ampere";
    if (major == 7) return minor >= 5 ? "Turing" : "Volta";
    return "";
}

/* The kernels of kernels/cuda are built for 8.0 and newer. */
mx_plan_kernels mx_plan_kernels_gpu(int major, int minor) {
    (void)minor;
    static const mx_plan_way dense = {MX_PLAN_NATIVE, "BF16 tensor cores, activations as two BF16 halves"};
    static const mx_plan_way attention = {MX_PLAN_NATIVE, "tensor cores, queries in two halves"};
    if (major >= 8)
        return (mx_plan_kernels){
            {MX_PLAN_WIDENED, "MXFP4 widened to BF16 in registers, BF16 tensor cores"}, dense, attention};
    return (mx_plan_kernels){{MX_PLAN_NONE, "no BF16 tensor cores; the activations of gpt-oss overflow FP16"},
                             {MX_PLAN_NONE, "no BF16 tensor cores"},
                             {MX_PLAN_NONE, "no BF16 tensor cores"}};
}

/* ---- fits -------------------------------------------------------------------------------------------------------- */

mx_status mx_plan_fit_make(const mx_plan_model *model, const mx_plan_machine *machine, const mx_plan_request *request,
                           mx_plan_fit *out, mx_error *error) {
    out->model = *model;
    mx_status status = mx_plan_memory_cpu(model, machine, request, &out->memory, error);
    if (status) return status;
    mx_plan_speed_cpu(model, machine, request, &out->speed);
    if (out->memory.left < 0) mx_plan_speed_from_disk(model, machine, &out->memory, &out->speed);
    for (int i = 0; i < machine->gpus; i++) mx_plan_memory_gpu(model, &machine->gpu[i], request, &out->gpu[i]);
    return MX_OK;
}

static double parameters(const mx_plan_fit *f) {
    const mx_config *c = &f->model.config;
    return (double)c->layers * c->experts * c->intermediate * c->hidden + (double)c->vocab * c->hidden;
}

int mx_plan_choice(const mx_plan_fit *fit, int count) {
    static const double slowest = 2, toy = 1e9; /* tokens/s that somebody can still read along with; parameters */
    int best = -1;
    for (int i = 0; i < count; i++) {
        const mx_plan_fit *f = &fit[i];
        if (parameters(f) < toy || f->memory.left < 0 ||
            (f->speed.decode_rate.median > 0 && f->speed.decode_rate.median < slowest))
            continue;
        if (best < 0 || parameters(f) > parameters(&fit[best])) best = i;
    }
    return best;
}

/* ---- sentences --------------------------------------------------------------------------------------------------- */

static double gb(double bytes) {
    return bytes / 1e9;
}

/* The same shape in a form of which a token reads less. */
static bool say_smaller_form(const mx_plan_fit *f, const mx_plan_fit *fit, int count, mx_bytes *out) {
    const mx_config *c = &f->model.config;
    for (int i = 0; i < count; i++) {
        const mx_config *other = &fit[i].model.config;
        if (other->layers != c->layers || other->hidden != c->hidden || other->experts != c->experts ||
            fit[i].speed.decode.bytes >= 0.95 * f->speed.decode.bytes || !(fit[i].speed.decode.seconds > 0))
            continue;
        return mx_bytes_addf(
            out,
            "%s decodes about %.2g times as fast and takes %.1f GB less: its dense weights are rounded "
            "to 8 bits.\n",
            fit[i].model.name, f->speed.decode.seconds / fit[i].speed.decode.seconds,
            gb(f->memory.sum - fit[i].memory.sum));
    }
    return true;
}

/* The model that takes the least memory; never NULL where count > 0. */
static const mx_plan_fit *smallest(const mx_plan_fit *fit, int count) {
    const mx_plan_fit *least = fit;
    for (int i = 1; i < count; i++)
        if (fit[i].memory.sum < least->memory.sum && parameters(&fit[i]) > 1e9) least = &fit[i];
    return least;
}

/* Why a model does not fit, and what would help. */
static bool say_what_lacks(const mx_plan_machine *m, const mx_plan_fit *f, mx_bytes *out) {
    const mx_plan_memory *need = &f->memory;
    const char *name = f->model.name;
    if (need->context > 0)
        return mx_bytes_addf(out, "%s fits with a smaller context: %lld tokens a stream at most (--ctx).\n", name,
                             (long long)need->context);
    if (m->memory_total > 0 && need->sum <= 0.97 * m->memory_total)
        return mx_bytes_addf(out,
                             "%s needs %.1f GB, %.1f GB are free of %.1f GB: end other programs until %.1f GB more are "
                             "free.\n",
                             name, gb(need->sum), gb(need->room), gb(m->memory_total), gb(-need->left));
    return mx_bytes_addf(
        out,
        "%s needs %.1f GB, and this machine has %.1f GB: its weights would be read from the disk again "
        "and again%s.\n",
        name, gb(need->sum), gb(m->memory_total > 0 ? m->memory_total : need->room),
        f->speed.decode_rate.high > 0 && f->speed.decode_rate.high < 2 ? ", at less than 2 tokens/s" : "");
}

static bool say_why(const mx_plan_machine *m, const mx_plan_fit *f, const mx_plan_fit *fit, int count, mx_bytes *out) {
    const mx_plan_step *step = &f->speed.decode;
    char precision[MX_PRECISION_NAME];
    mx_precisions_name(precision, &m->precision);
    if (!(step->seconds > 0)) return true;
    const bool by_memory = step->by_bytes > step->slowness * step->by_operations;
    bool ok = by_memory ? mx_bytes_addf(out,
                                        "Answers are bound by memory (%.2f GB a step at %.0f GB/s), prompts by the "
                                        "cores: more cores make prompts faster, not answers.\n",
                                        gb(step->bytes), gb(m->bandwidth.median))
                        : mx_bytes_add_string(out, "Answers and prompts are bound by the cores.\n");
    if (ok && by_memory && !strcmp(precision, "mixed"))
        ok = mx_bytes_add_string(out, "Precision mixed, the default, costs answers next to nothing while they wait for "
                                      "memory.\n");
    return ok && say_smaller_form(f, fit, count, out);
}

static bool say_choice(const mx_plan_machine *m, const mx_plan_request *r, const mx_plan_fit *fit, int count,
                       bool asked, mx_bytes *out) {
    const int choice = mx_plan_choice(fit, count);
    if (choice < 0) {
        const mx_plan_fit *least = smallest(fit + asked, count - asked);
        bool ok = count - asked < 1 || (asked && !strcmp(least->model.name, fit->model.name)) ||
                  say_what_lacks(m, least, out);
        return ok && mx_bytes_add_string(out, "Until then \"stories\", which comes with mxrun, runs anywhere: mxrun -m "
                                              "stories.\n");
    }
    const mx_plan_fit *f = &fit[choice];
    bool ok = mx_bytes_addf(
        out, "Run %s%s: it fits with %d stream%s of %lld tokens and leaves %.1f GB free", f->model.name,
        asked ? " instead" : "", r->streams, r->streams > 1 ? "s" : "",
        (long long)(r->context < f->model.config.max_positions ? r->context : f->model.config.max_positions),
        gb(f->memory.left));
    if (ok && f->speed.decode_rate.median > 0)
        ok = mx_bytes_addf(out, ", at %.3g to %.3g tokens/s", f->speed.decode_rate.low, f->speed.decode_rate.high);
    ok = ok && mx_bytes_add_string(out, ".\n");
    /* What is larger, and why it is not the one. */
    const mx_plan_fit *larger = NULL;
    for (int i = asked; i < count; i++)
        if (parameters(&fit[i]) > parameters(f) && !(asked && parameters(&fit[i]) == parameters(fit)) &&
            (!larger || fit[i].memory.sum < larger->memory.sum))
            larger = &fit[i];
    if (ok && larger) ok = say_what_lacks(m, larger, out);
    return ok && say_why(m, f, fit, count, out);
}

/* The largest of the models that a GPU holds; NULL: none. */
static const mx_plan_fit *largest_on(const mx_plan_fit *fit, int count, int gpu) {
    const mx_plan_fit *best = NULL;
    for (int i = 0; i < count; i++)
        if (fit[i].gpu[gpu].room > 0 && fit[i].gpu[gpu].left >= 0 && (!best || parameters(&fit[i]) > parameters(best)))
            best = &fit[i];
    return best;
}

static bool say_gpu(const mx_plan_machine *m, const mx_plan_fit *fit, int count, int index, mx_bytes *out) {
    const mx_plan_gpu *g = &m->gpu[index];
    bool ok = mx_bytes_addf(out, "GPU %d, %s: ", index, g->name);
    if (g->memory <= 0) return ok && mx_bytes_add_string(out, "its memory is unknown.\n");
    if (g->major == 0) return ok && mx_bytes_add_string(out, "its compute capability is unknown.\n");
    if (mx_plan_kernels_gpu(g->major, g->minor).experts.kind == MX_PLAN_NONE)
        return ok &&
               mx_bytes_addf(out, "compute capability %d.%d has no BF16 tensor cores, which mxrun's kernels want.\n",
                             g->major, g->minor);
    const mx_plan_fit *best = largest_on(fit, count, index);
    if (!best) return ok && mx_bytes_addf(out, "its %.1f GB hold none of these models whole.\n", gb(g->memory));
    return ok && mx_bytes_addf(out, "holds %s and %lld tokens a stream; %s.\n", best->model.name,
                               (long long)best->gpu[index].context,
                               m->cuda ? "--device cuda takes it, and so does mxrun by itself"
                                       : "this mxrun does not use it, for its plugin libmxrun_cuda.so is not here or "
                                         "finds no GPU that it can use (see mxrun info)");
}

bool mx_plan_advise(const mx_plan_machine *machine, const mx_plan_request *request, const mx_plan_fit *fit, int count,
                    bool asked, mx_bytes *out) {
    bool ok = true;
    if (machine->memory_free <= 0) {
        ok = mx_bytes_add_string(out, "How much memory is free is unknown: compare what the models need.\n");
    } else if (asked && fit->memory.left >= 0) {
        const int choice = mx_plan_choice(fit, count);
        ok =
            mx_bytes_addf(out, "%s fits: %.1f GB of the %.1f GB that are free, a stream may have %lld tokens.\n",
                          fit->model.name, gb(fit->memory.sum), gb(fit->memory.room), (long long)fit->memory.context) &&
            say_why(machine, fit, fit, count, out);
        if (ok && choice > 0 && parameters(&fit[choice]) > parameters(fit))
            ok = mx_bytes_addf(out, "%s, a larger model, fits here, too.\n", fit[choice].model.name);
    } else {
        ok = (!asked || say_what_lacks(machine, fit, out)) && say_choice(machine, request, fit, count, asked, out);
    }
    if (ok && !strcmp(machine->huge_pages, "never"))
        ok = mx_bytes_add_string(out, "Huge pages are switched off (/sys/kernel/mm/transparent_hugepage/enabled): "
                                      "madvise makes large models faster.\n");
    for (int i = 0; ok && i < machine->gpus; i++) ok = say_gpu(machine, fit, count, i, out);
    return ok;
}

/* ---- before a model is loaded ------------------------------------------------------------------------------------ */

bool mx_plan_warning(const mx_plan_load *load, double memory_free, char *out, size_t size) {
    mx_plan_model model;
    mx_plan_machine machine = {.memory_free = memory_free};
    mx_plan_memory memory;
    const mx_kernels *kernels;
    if (mx_plan_model_read(load->path, load->form, &model, NULL) || mx_kernels_get(NULL, &kernels, NULL)) return false;
    snprintf(machine.tier, sizeof machine.tier, "%s", kernels->name);
    machine.precision = mx_precisions_default(kernels);
    machine.cores = load->threads > 0 ? load->threads : mx_cpu_count();
    /* Without a context the engine takes what there is; a page of each layer is the least. */
    const mx_plan_request request = {load->context > 0 ? load->context : MX_TILE, 1, load->kv};
    if (mx_plan_memory_cpu(&model, &machine, &request, &memory, NULL)) return false;
    const double kv = load->kv_memory > 0 ? load->kv_memory : memory.kv;
    const double sum = memory.weights + kv + memory.scratch + memory.program + load->more;
    if (sum <= memory_free || (load->copied && memory.weights > memory_free)) return false;
    char rest[60] = "";
    if (load->more > 0) snprintf(rest, sizeof rest, ", a buffer that measures %.1f", gb(load->more));
    snprintf(out, size,
             "%s needs %.1f GB (weights %.1f, keys and values %.1f, steps and program %.1f%s), %.1f GB of memory are "
             "free: %s; mxrun plan tells what fits",
             load->path, gb(sum), gb(memory.weights), gb(kv), gb(memory.scratch + memory.program), rest,
             gb(memory_free),
             load->copied || kv > memory_free ? "it may run out of memory"
                                              : "weights will be read from the disk again and again, slowly");
    return true;
}

bool mx_plan_warn(const mx_plan_load *load) {
    char text[6000];
    if (!mx_plan_warning(load, (double)mx_memory_available(), text, sizeof text)) return false;
    mx_log(MX_LOG_WARNING, "%s", text);
    return true;
}
