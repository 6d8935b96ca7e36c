#include "convert/origin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "model/show.h"

mx_status mx_origin_no_memory(const mx_origin *o) {
    return mx_fail(o->error, MX_NO_MEMORY, "%s: no memory to convert it", o->place.path);
}

/* ---- what it carries ----------------------------------------------------------------------------------------------
 */

/* The folder of the model: the path, or what holds the file. */
static void folder_of(const mx_origin *o, char out[MX_PATH]) {
    snprintf(out, MX_PATH, "%s", o->place.path);
    if (o->place.layout == MX_LAYOUT_ORIGINAL || o->place.layout == MX_LAYOUT_HF) return;
    char *slash = strrchr(out, '/');
    if (slash)
        slash[slash == out] = 0;
    else
        snprintf(out, MX_PATH, ".");
}

/* Rows of embedding and lm_head that metal leaves out. */
static mx_status read_more(mx_origin *o) {
    static const char *const names[] = {"model.embed_tokens.weight", "lm_head.weight"};
    int64_t rows = -1;
    for (int i = 0; i < 2; i++) {
        const mx_gguf_tensor *g = mx_gguf_find_tensor(&o->sidecar, names[i]);
        if (!g && rows < 0) continue;
        if (!g || g->type != MX_GGUF_TENSOR_BF16 || g->dims != 2 || g->ne[0] != o->config.hidden ||
            (i && g->ne[1] != rows))
            return mx_fail(o->error, MX_INVALID_FILE, "%s: %s: expected rows of %d numbers in BF16, as many as of %s",
                           o->sidecar.file.path, names[i], o->config.hidden, names[!i]);
        rows = g->ne[1];
        o->more[i] = (mx_tensor){.name = names[i],
                                 .file = o->sidecar.file.path,
                                 .dtype = MX_DTYPE_BF16,
                                 .dtype_name = "BF16",
                                 .dims = 2,
                                 .shape = {rows, g->ne[0]},
                                 .bytes = g->bytes,
                                 .data = g->data,
                                 .slice_stride = (uint64_t)g->ne[0] * 2};
    }
    if (rows > 0) o->config.vocab += (int)rows;
    return MX_OK;
}

/* Beside a layout that cannot carry anything: what we left there, or the files of the repository that it is a part of.
 */
static mx_status read_beside(mx_origin *o) {
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                        "chat_template.jinja", "generation_config.json"};
    char folder[MX_PATH], path[MX_PATH + 40];
    struct stat info;
    folder_of(o, folder);
    snprintf(path, sizeof path, "%s/" MX_RECORD_FILE, folder);
    if (stat(path, &info) == 0) {
        mx_status status = mx_gguf_open(path, &o->sidecar, o->error);
        if (!status) status = mx_record_of_gguf(&o->record, &o->sidecar, o->error);
        if (!status && o->place.layout == MX_LAYOUT_METAL) status = read_more(o);
        return status;
    }
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    if (stat(path, &info) != 0) snprintf(folder + strlen(folder), sizeof folder - strlen(folder), "/..");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        mx_status status = mx_record_add(&o->record, folder, names[i], o->error);
        if (status) return status;
    }
    return MX_OK;
}

static mx_status read_gguf(mx_origin *o) {
    mx_gguf g;
    mx_status status = mx_gguf_open(o->place.path, &g, o->error);
    if (!status) status = mx_record_of_gguf(&o->record, &g, o->error);
    if (!status && !o->record.files) status = mx_origin_read_vocabulary(o, &g);
    mx_gguf_close(&g);
    return status;
}

static mx_status read_carried(mx_origin *o) {
    switch (o->place.layout) {
    case MX_LAYOUT_HF:
        return mx_record_of_folder(&o->record, o->place.path, o->ck, o->error);
    case MX_LAYOUT_GGUF:
        return read_gguf(o);
    default:
        return read_beside(o);
    }
}

static bool holds_mxfp4(const mx_origin *o) {
    return mx_checkpoint_find(o->ck, "model.layers.0.mlp.experts.down_proj_blocks") != NULL;
}

/* Experts of 16 bits become MXFP4: the files are not those that they were. */
static mx_status round_experts(mx_origin *o, const char *path) {
    if (holds_mxfp4(o))
        return mx_fail(o->error, MX_INVALID_ARGUMENT,
                       "%s: its experts are MXFP4 already: leave --quantize-experts away", path);
    mx_checkpoint_close(o->ck);
    mx_status status = mx_checkpoint_open_as(path, mx_experts_form(o->options->quantize_experts), &o->ck, o->error);
    if (!status && !holds_mxfp4(o))
        status = mx_fail(o->error, MX_UNSUPPORTED,
                         "%s: its experts are not rounded: that is done with BF16 in a Hugging Face folder", path);
    return status;
}

mx_status mx_origin_open(mx_origin *o, const char *path, const mx_convert_options *options, mx_error *error) {
    *o = (mx_origin){.options = options, .error = error};
    mx_status status = mx_location_find(path, &o->place, error);
    if (!status && o->place.layout == options->to && !options->quantize_experts)
        status = mx_fail(error, MX_INVALID_ARGUMENT, "%s: is in the layout %s already: copy it", path,
                         mx_layout_name(options->to));
    if (!status) status = mx_config_read(path, &o->config, error);
    if (!status) status = mx_checkpoint_open(path, &o->ck, error);
    if (!status && options->quantize_experts) status = round_experts(o, path);
    if (!status) o->used = calloc((size_t)mx_checkpoint_count(o->ck) + 1, sizeof *o->used);
    if (!status && !o->used) status = mx_origin_no_memory(o);
    if (status) return status;
    o->mxfp4 = holds_mxfp4(o);
    status = read_carried(o);
    if (!status && options->quantize_experts) mx_record_make_stale(&o->record);
    return status;
}

void mx_origin_close(mx_origin *o) {
    mx_record_free(&o->record);
    mx_gguf_close(&o->sidecar);
    mx_checkpoint_close(o->ck);
    free(o->used);
    *o = (mx_origin){0};
}

/* ---- tensors ------------------------------------------------------------------------------------------------------
 */

const mx_tensor *mx_origin_more(const mx_origin *o, const mx_tensor *t) {
    for (int i = 0; i < 2; i++)
        if (o->more[i].dims && !strcmp(t->name, o->more[i].name)) return &o->more[i];
    return NULL;
}

const mx_tensor *mx_origin_take(mx_origin *o, mx_status *status, int layer, const char *name, int dims,
                                const int64_t *shape) {
    char full[200], found[120], expected[120];
    int64_t had[8];
    if (*status) return NULL;
    if (layer < 0)
        snprintf(full, sizeof full, "%s", name);
    else
        snprintf(full, sizeof full, "model.layers.%d.%s", layer, name);
    const mx_tensor *t = mx_checkpoint_find(o->ck, full);
    if (!t) {
        *status = mx_fail(o->error, MX_INVALID_FILE, "%s: tensor %s is missing: is the download complete?",
                          o->place.path, full);
        return NULL;
    }
    const mx_tensor *more = mx_origin_more(o, t);
    memcpy(had, t->shape, sizeof had);
    if (more) had[0] += more->shape[0];
    if (dims && (t->dims != dims || memcmp(had, shape, (size_t)dims * sizeof *shape))) {
        *status = mx_fail(o->error, MX_INVALID_FILE, "%s: %s: is %s, expected %s", t->file, t->name,
                          mx_show_shape(found, sizeof found, had, t->dims),
                          mx_show_shape(expected, sizeof expected, shape, dims));
        return NULL;
    }
    o->used[t - mx_checkpoint_at(o->ck, 0)] = true;
    return t;
}

const mx_tensor *mx_origin_take_bf16(mx_origin *o, mx_status *status, int layer, const char *name, int dims,
                                     const int64_t *shape) {
    const mx_tensor *t = mx_origin_take(o, status, layer, name, dims, shape);
    if (!t || t->dtype == MX_DTYPE_BF16 || t->dtype == MX_DTYPE_F32) return t;
    *status = mx_fail(o->error, MX_UNSUPPORTED, "%s: %s: is %s, and the layout %s has BF16 only", t->file, t->name,
                      t->dtype_name, mx_layout_name(o->options->to));
    return NULL;
}

mx_status mx_origin_check_used(const mx_origin *o) {
    int unused = 0;
    const char *first = NULL;
    for (int i = 0; i < mx_checkpoint_count(o->ck); i++)
        if (!o->used[i] && !unused++) first = mx_checkpoint_at(o->ck, i)->name;
    if (!unused) return MX_OK;
    if (!o->options->allow_loss)
        return mx_fail(o->error, MX_INVALID_ARGUMENT,
                       "%s: %d tensor%s no place in the layout %s: %s%s; --allow-loss leaves %s out", o->place.path,
                       unused, unused == 1 ? " has" : "s have", mx_layout_name(o->options->to), first,
                       unused > 1 ? ", ..." : "", unused == 1 ? "it" : "them");
    mx_log(MX_LOG_WARNING, "%s: left out, %d tensor%s without a place in the layout %s: %s%s", o->place.path, unused,
           unused == 1 ? "" : "s", mx_layout_name(o->options->to), first, unused > 1 ? ", ..." : "");
    return MX_OK;
}

/* ---- beside the tensors -------------------------------------------------------------------------------------------
 */

mx_status mx_put_sidecar(const mx_origin *o, mx_output *out, mx_gguf_text *text, int *file) {
    const mx_bytes *tokenizer = mx_record_file(&o->record, "tokenizer.json");
    *file = -1;
    if (tokenizer && !mx_output_add_text(out, "tokenizer.json", tokenizer->data, tokenizer->size))
        return mx_origin_no_memory(o);
    if (!o->record.files && !o->record.shards && !text->tensor_count) return MX_OK;
    mx_record_put(&o->record, text);
    *file = mx_output_add_file(out, MX_RECORD_FILE);
    return *file >= 0 && mx_gguf_text_end(text, &out->file[*file].head) ? MX_OK : mx_origin_no_memory(o);
}

static bool put_header(mx_bytes *out, const mx_entry *entry, int count) {
    uint64_t at = 0;
    bool ok = mx_bytes_add_string(out, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int i = 0; i < count && ok; i++) {
        const mx_entry *e = &entry[i];
        const uint64_t bytes = (uint64_t)e->made.slices * e->made.slice_bytes;
        ok = mx_bytes_add_string(out, ",") && mx_bytes_add_json(out, e->name, strlen(e->name)) &&
             mx_bytes_addf(out, ":{\"dtype\":\"%s\",\"shape\":[", e->dtype);
        for (int d = 0; d < e->dims && ok; d++) ok = mx_bytes_addf(out, "%s%lld", d ? "," : "", (long long)e->shape[d]);
        ok = ok && mx_bytes_addf(out, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
                                 (unsigned long long)(at + bytes));
        at += bytes;
    }
    ok = ok && mx_bytes_add_string(out, "}");
    while (ok && out->size % 8) ok = mx_bytes_add_string(out, " ");
    return ok;
}

bool mx_put_safetensors(mx_output *out, const char *name, const mx_entry *entry, int count, const mx_bytes *header) {
    const int file = mx_output_add_file(out, name);
    if (file < 0) return false;
    mx_bytes own = {0}, *head = &out->file[file].head;
    bool ok = header || put_header(&own, entry, count);
    if (!header) header = &own;
    const uint64_t length = header->size;
    ok = ok && mx_bytes_add(head, &length, 8) && mx_bytes_add(head, header->data, header->size);
    for (int i = 0; i < count && ok; i++) {
        mx_made m = entry[i].made;
        m.file = file;
        ok = mx_output_add(out, &m, 1) != NULL;
    }
    mx_bytes_free(&own);
    return ok;
}
