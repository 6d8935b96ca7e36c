/* The Hugging Face layout: the very files that a model came from where it carries their headers and these fit, else
 * files in an order of ours. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/json.h"
#include "base/log.h"
#include "convert/origin.h"
#include "model/config_text.h"

enum { MOST_DIMS = 8 };
static const uint64_t SHARD = 5000000000; /* bytes of tensors in a file at most, unless one alone is larger */

/* Experts of 16 bits have [experts, in, out] there, and names without ".weight". */
static bool is_turned(const mx_tensor *t) {
    return t->dims == 3 && (mx_ends_with(t->name, ".mlp.experts.gate_up_proj.weight") ||
                            mx_ends_with(t->name, ".mlp.experts.down_proj.weight"));
}

/* The tensor in this type, under its name there. */
static void describe(const mx_origin *o, const mx_tensor *t, const char *dtype, mx_dtype as, mx_entry *e) {
    const mx_tensor *more = mx_origin_more(o, t);
    *e = (mx_entry){.dims = t->dims};
    snprintf(e->name, sizeof e->name, "%s", t->name);
    snprintf(e->dtype, sizeof e->dtype, "%s", dtype);
    memcpy(e->shape, t->shape, sizeof e->shape);
    if (more) e->shape[0] += more->shape[0];
    if (is_turned(t)) {
        e->name[strlen(e->name) - strlen(".weight")] = 0;
        e->shape[1] = t->shape[2];
        e->shape[2] = t->shape[1];
        e->made = mx_make_turned(t);
    } else {
        e->made = mx_make_rows(t, more, NULL, as);
    }
}

/* ---- the files it came from ---------------------------------------------------------------------------------------
 */

/* One tensor of a recorded header into `e`; *begin: its offset. false: it does not fit what there is. */
static bool recorded_entry(mx_origin *o, const mx_json *v, mx_entry *e, int64_t *begin) {
    char name[220];
    if (v->type != MX_JSON_OBJECT || v->key_size >= 190 || strlen(v->key) != v->key_size) return false;
    snprintf(name, sizeof name, "%s", v->key);
    const mx_tensor *t = mx_checkpoint_find(o->ck, name);
    if (!t) {
        snprintf(name, sizeof name, "%s.weight", v->key);
        t = mx_checkpoint_find(o->ck, name);
        if (t && !is_turned(t)) return false;
    }
    const mx_json *dtype = mx_json_get(v, "dtype"), *shape = mx_json_get(v, "shape"),
                  *offsets = mx_json_get(v, "data_offsets");
    if (!t || !dtype || dtype->type != MX_JSON_STRING || !shape || shape->type != MX_JSON_ARRAY || !offsets ||
        offsets->type != MX_JSON_ARRAY || offsets->count != 2 || shape->count != (uint32_t)t->dims)
        return false;
    mx_dtype as = t->dtype;
    const bool narrows = t->dtype == MX_DTYPE_F32 && mx_json_is_string(dtype, "BF16");
    const bool scales = t->dtype == MX_DTYPE_U8 && mx_json_is_string(dtype, "F8_E8M0");
    if (narrows) as = MX_DTYPE_BF16;
    if (!narrows && !scales && !mx_json_is_string(dtype, t->dtype_name)) return false;
    bool *used = &o->used[t - mx_checkpoint_at(o->ck, 0)];
    if (*used) return false;
    *used = true;
    describe(o, t, dtype->text, as, e);
    int64_t end, size;
    int i = 0;
    for (const mx_json *d = shape->child; d; d = d->next)
        if (!mx_json_int64(d, &size) || size != e->shape[i++]) return false;
    return mx_json_int64(offsets->child, begin) && mx_json_int64(offsets->child->next, &end) && *begin >= 0 &&
           end - *begin == (int64_t)((uint64_t)e->made.slices * e->made.slice_bytes);
}

typedef struct placed {
    int64_t begin;
    mx_entry entry;
} placed;

static int by_place(const void *a, const void *b) {
    const placed *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    const uint64_t n = (uint64_t)x->entry.made.slices * x->entry.made.slice_bytes,
                   m = (uint64_t)y->entry.made.slices * y->entry.made.slice_bytes;
    return (n > m) - (n < m); /* empty ones first */
}

/* All tensors of a recorded header, in the order of their bytes. -1: it does not fit. */
static int recorded_file(mx_origin *o, const mx_record_entry *shard, placed *list, int room) {
    mx_json_document *document = NULL;
    int count = 0;
    bool ok = !mx_json_parse(shard->name, shard->content.data ? shard->content.data : "", shard->content.size,
                             &document, NULL) &&
              mx_json_root(document)->type == MX_JSON_OBJECT;
    for (const mx_json *v = ok ? mx_json_root(document)->child : NULL; v && ok; v = v->next) {
        if (!strcmp(v->key, "__metadata__")) continue;
        ok = count < room && recorded_entry(o, v, &list[count].entry, &list[count].begin);
        count++;
    }
    mx_json_free(document);
    if (!ok) return -1;
    qsort(list, (size_t)count, sizeof *list, by_place);
    uint64_t at = 0;
    for (int i = 0; i < count; i++) {
        if ((uint64_t)list[i].begin != at) return -1;
        at += (uint64_t)list[i].entry.made.slices * list[i].entry.made.slice_bytes;
    }
    return count;
}

/* Are the numbers that would be narrowed numbers of BF16? */
static mx_status all_possible(const mx_origin *o, mx_output *out, const placed *list, int count, bool *fits) {
    mx_made *made = calloc((size_t)count + 1, sizeof *made);
    bool *possible = calloc((size_t)count + 1, sizeof *possible);
    int tried = 0;
    mx_status status = made && possible ? MX_OK : mx_origin_no_memory(o);
    for (int i = 0; i < count && !status; i++)
        if (list[i].entry.made.from[0]->dtype == MX_DTYPE_F32 && list[i].entry.made.dtype == MX_DTYPE_BF16)
            made[tried++] = list[i].entry.made;
    if (!status) status = mx_output_try(out, made, tried, o->options, possible);
    for (int i = 0; i < tried; i++) *fits = *fits && possible[i];
    free(made);
    free(possible);
    return status;
}

/* Describes the recorded files where they fit; *fits says so. */
static mx_status plan_recorded(mx_origin *o, mx_output *out, bool *fits) {
    const int count = mx_checkpoint_count(o->ck);
    placed *list = calloc((size_t)count + 1, sizeof *list);
    mx_entry *entry = calloc((size_t)count + 1, sizeof *entry);
    int *end = calloc((size_t)o->record.shards + 1, sizeof *end), at = 0;
    mx_status status = list && entry && end ? MX_OK : mx_origin_no_memory(o);
    *fits = !status && o->record.shards > 0;
    for (int s = 0; s < o->record.shards && *fits; s++) {
        const int n = recorded_file(o, &o->record.shard[s], list + at, count - at);
        *fits = n >= 0;
        end[s] = at += n;
    }
    *fits = *fits && at == count;
    if (!status && *fits) status = all_possible(o, out, list, count, fits);
    for (int i = 0; i < count && !status; i++) entry[i] = list[i].entry;
    for (int s = 0; s < o->record.shards && *fits && !status; s++) {
        const int begin = s ? end[s - 1] : 0;
        if (!mx_put_safetensors(out, o->record.shard[s].name, entry + begin, end[s] - begin,
                                &o->record.shard[s].content))
            status = mx_origin_no_memory(o);
    }
    free(list);
    free(entry);
    free(end);
    return status;
}

/* ---- files of ours ------------------------------------------------------------------------------------------------
 */

static mx_status plain_entry(const mx_origin *o, const mx_tensor *t, mx_entry *e, int *widened) {
    const bool quantized = t->dtype == MX_DTYPE_Q8_0;
    if ((is_turned(t) && t->dtype != MX_DTYPE_BF16) || (quantized && t->dims != 2))
        return mx_fail(o->error, MX_UNSUPPORTED, "%s: %s: is %s, and the layout has experts in MXFP4 or BF16 only",
                       t->file, t->name, t->dtype_name);
    *widened += quantized;
    if (quantized)
        describe(o, t, "F32", MX_DTYPE_F32, e);
    else if (t->dtype == MX_DTYPE_F32)
        describe(o, t, "BF16", MX_DTYPE_BF16, e); /* to be tried */
    else
        describe(o, t, t->dtype_name, t->dtype, e);
    return MX_OK;
}

/* Where numbers of F32 are none of BF16 the tensor stays F32. */
static mx_status choose_types(const mx_origin *o, mx_output *out, mx_entry *entry, int count) {
    mx_made *made = calloc((size_t)count + 1, sizeof *made);
    bool *possible = calloc((size_t)count + 1, sizeof *possible);
    mx_status status = made && possible ? MX_OK : mx_origin_no_memory(o);
    int tried = 0;
    for (int i = 0; i < count && !status; i++)
        if (entry[i].made.from[0]->dtype == MX_DTYPE_F32) made[tried++] = entry[i].made;
    if (!status) status = mx_output_try(out, made, tried, o->options, possible);
    for (int i = 0, k = 0; i < count && !status; i++) {
        const mx_tensor *t = entry[i].made.from[0];
        if (t->dtype == MX_DTYPE_F32 && !possible[k++]) describe(o, t, "F32", MX_DTYPE_F32, &entry[i]);
    }
    free(made);
    free(possible);
    return status;
}

static uint64_t bytes_of(const mx_entry *e) {
    return (uint64_t)e->made.slices * e->made.slice_bytes;
}

int mx_cut_shards(const mx_entry *entry, int count, int *shard) {
    int shards = 0;
    uint64_t in_shard = 0;
    for (int i = 0, end; i < count; i = end) {
        uint64_t together = bytes_of(&entry[i]);
        for (end = i + 1; end < count && entry[end].joined; end++) together += bytes_of(&entry[end]);
        if (in_shard && in_shard + together > SHARD) {
            shard[shards++] = i;
            in_shard = 0;
        }
        in_shard += together;
    }
    shard[shards++] = count;
    return shards;
}

/* Numbered from 0 to the last, as OpenAI's. */
static void shard_name(int shard, int shards, char out[64]) {
    if (shards == 1)
        snprintf(out, 64, "model.safetensors");
    else
        snprintf(out, 64, "model-%05d-of-%05d.safetensors", shard, shards - 1);
}

static bool put_index(mx_output *out, const mx_entry *entry, const int *shard, int shards) {
    const int count = shard[shards - 1];
    uint64_t total = 0;
    char name[64];
    mx_bytes text = {0};
    for (int i = 0; i < count; i++) total += bytes_of(&entry[i]);
    bool ok = mx_bytes_addf(&text, "{\n  \"metadata\": {\n    \"total_size\": %llu\n  },\n  \"weight_map\": {\n",
                            (unsigned long long)total);
    for (int i = 0, s = 0; i < count && ok; i++) {
        while (i >= shard[s]) s++;
        shard_name(s, shards, name);
        ok = mx_bytes_add_string(&text, "    ") && mx_bytes_add_json(&text, entry[i].name, strlen(entry[i].name)) &&
             mx_bytes_addf(&text, ": \"%s\"%s\n", name, i + 1 < count ? "," : "");
    }
    ok = ok && mx_bytes_add_string(&text, "  }\n}\n") &&
         mx_output_add_text(out, "model.safetensors.index.json", text.data, text.size);
    mx_bytes_free(&text);
    return ok;
}

bool mx_put_shards(mx_output *out, const mx_entry *entry, const int *shard, int shards) {
    bool ok = true;
    for (int s = 0; s < shards && ok; s++) {
        const int begin = s ? shard[s - 1] : 0;
        char name[64];
        shard_name(s, shards, name);
        ok = mx_put_safetensors(out, name, entry + begin, shard[s] - begin, NULL);
    }
    return ok && (shards == 1 || put_index(out, entry, shard, shards));
}

static mx_status plan_plain(mx_origin *o, mx_output *out) {
    const int count = mx_checkpoint_count(o->ck);
    mx_entry *entry = calloc((size_t)count + 1, sizeof *entry);
    int *shard = calloc((size_t)count + 1, sizeof *shard), shards = 0, widened = 0;
    mx_status status = entry && shard ? MX_OK : mx_origin_no_memory(o);
    for (int i = 0; i < count && !status; i++) status = plain_entry(o, mx_checkpoint_at(o->ck, i), &entry[i], &widened);
    if (!status) status = choose_types(o, out, entry, count);
    if (!status) shards = mx_cut_shards(entry, count, shard);
    if (!status && !mx_put_shards(out, entry, shard, shards)) status = mx_origin_no_memory(o);
    if (!status && widened)
        mx_log(MX_LOG_INFO, "%s: %d tensors in Q8_0 become F32, exactly: the layout Hugging Face has no Q8_0",
               o->place.path, widened);
    free(entry);
    free(shard);
    return status;
}

/* ---- all of it ----------------------------------------------------------------------------------------------------
 */

static mx_status plan_texts(const mx_origin *o, mx_output *out) {
    mx_bytes text = {0};
    bool ok = true;
    for (int i = 0; i < o->record.files && ok; i++)
        ok = mx_output_add_text(out, o->record.file[i].name, o->record.file[i].content.data,
                                o->record.file[i].content.size);
    const bool own = !mx_record_file(&o->record, "config.json");
    if (ok && own)
        ok =
            mx_config_text(&text, &o->config, o->mxfp4) && mx_output_add_text(out, "config.json", text.data, text.size);
    mx_bytes_clear(&text);
    if (ok && own && !mx_record_file(&o->record, "generation_config.json"))
        ok = mx_generation_text(&text, &o->config) &&
             mx_output_add_text(out, "generation_config.json", text.data, text.size);
    mx_bytes_free(&text);
    return ok ? MX_OK : mx_origin_no_memory(o);
}

mx_status mx_hf_plan(mx_origin *o, mx_output *out, bool *restored) {
    mx_status status = plan_recorded(o, out, restored);
    if (!status && !*restored) {
        if (o->record.shards)
            mx_log(MX_LOG_WARNING,
                   "%s: the headers of the files that it was made of do not fit its tensors any more: new ones are "
                   "written",
                   o->place.path);
        mx_record_drop(&o->record, "model.safetensors.index.json");
        status = plan_plain(o, out);
    }
    return status ? status : plan_texts(o, out);
}

/* What every layout holds. */
static bool same_model(const mx_config *a, const mx_config *b) {
    return a->layers == b->layers && a->hidden == b->hidden && a->intermediate == b->intermediate &&
           a->heads == b->heads && a->kv_heads == b->kv_heads && a->head_dim == b->head_dim &&
           a->experts == b->experts && a->top_k == b->top_k && a->vocab == b->vocab && a->window == b->window &&
           (float)a->rope_theta == (float)b->rope_theta && a->yarn == b->yarn &&
           (float)a->yarn_factor == (float)b->yarn_factor && a->yarn_original_positions == b->yarn_original_positions;
}

mx_status mx_hf_check_config(const mx_origin *o, mx_output *out, bool *restored) {
    mx_config there;
    mx_error why = {0};
    if (!mx_record_file(&o->record, "config.json")) return MX_OK;
    if (!mx_config_read(out->grows, &there, &why) && same_model(&there, &o->config)) return MX_OK;
    mx_log(MX_LOG_WARNING, "%s: the config.json that it was made of does not fit it any more%s%s: a new one is written",
           o->place.path, *why.text ? ": " : "", why.text);
    *restored = false;
    for (int i = 0; i < out->files; i++) {
        if (strcmp(out->file[i].name, "config.json")) continue;
        mx_bytes_clear(&out->file[i].head);
        if (!mx_config_text(&out->file[i].head, &o->config, o->mxfp4)) return mx_origin_no_memory(o);
        return mx_output_rewrite(out, i);
    }
    return MX_OK;
}
