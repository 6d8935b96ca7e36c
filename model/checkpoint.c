#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/bytes.h"
#include "base/json.h"
#include "base/log.h"
#include "model/checkpoint_private.h"
#include "model/gguf_layout.h"
#include "model/load.h"
#include "model/metal.h"
#include "model/quantized.h"
#include "model/show.h"

/* The tensors of one or many .safetensors files under one roof, by name. Which file holds what is nobody's business
 * above this file: blocks and scales of one tensor may lie in different ones. */

enum { MOST_FILES = 4096, INDEX_LIMIT = 16 << 20 };

/* File names in order, each once. */
typedef struct names {
    char **name; /* owned, each owned */
    int count;
} names;

static void names_free(names *n) {
    for (int i = 0; i < n->count; i++) free(n->name[i]);
    free(n->name);
    *n = (names){0};
}

static mx_status names_add(names *n, const char *folder, const char *name, mx_error *error) {
    int low = 0, high = n->count; /* the name's place is in low .. high */
    while (low < high) {
        int middle = (low + high) / 2, order = strcmp(n->name[middle], name);
        if (order == 0) return MX_OK;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    if (n->count == MOST_FILES)
        return mx_fail(error, MX_UNSUPPORTED, "%s: more than %d .safetensors files", folder, MOST_FILES);
    if (!n->name) n->name = malloc(MOST_FILES * sizeof *n->name);
    char *own = n->name ? strdup(name) : NULL;
    if (!own) return mx_fail(error, MX_NO_MEMORY, "%s: no memory for its file names", folder);
    memmove(n->name + low + 1, n->name + low, (size_t)(n->count++ - low) * sizeof *n->name);
    n->name[low] = own;
    return MX_OK;
}

/* ---- building ---------------------------------------------------------------------------------------------------- */

struct mx_owned {
    struct mx_owned *next;
    max_align_t data[];
};

void *mx_checkpoint_alloc(mx_checkpoint *ck, size_t size) {
    struct mx_owned *o = calloc(1, sizeof *o + size);
    if (!o) return NULL;
    o->next = ck->owned;
    ck->owned = o;
    return o->data;
}

mx_tensor *mx_checkpoint_add(mx_checkpoint *ck, const char *file, const char *format, ...) {
    char name[MX_TENSOR_NAME];
    va_list list;
    va_start(list, format);
    vsnprintf(name, sizeof name, format, list);
    va_end(list);
    char *own = mx_checkpoint_alloc(ck, strlen(name) + 1);
    if (!own) return NULL;
    memcpy(own, name, strlen(name) + 1);
    if (ck->count == ck->capacity) {
        const int capacity = ck->capacity ? 2 * ck->capacity : 512;
        mx_tensor *more = realloc(ck->tensor, (size_t)capacity * sizeof *more);
        if (!more) return NULL;
        ck->tensor = more;
        ck->capacity = capacity;
    }
    mx_tensor *t = &ck->tensor[ck->count++];
    *t = (mx_tensor){.name = own, .file = file};
    return t;
}

/* ---- files of safetensors ---------------------------------------------------------------------------------------- */

/* No .safetensors in the folder: say what is there instead. */
static mx_status nothing_there(const char *folder, bool torch, mx_error *error) {
    if (torch)
        return mx_fail(error, MX_UNSUPPORTED,
                       "%s: holds PyTorch .bin files, which mxrun does not read, and no .safetensors", folder);
    return mx_fail(error, MX_INVALID_FILE, "%s: no .safetensors file in this folder, nor a .gguf or model.bin", folder);
}

static mx_status list_folder(const char *folder, names *out, mx_error *error) {
    DIR *dir = opendir(folder);
    if (!dir) return mx_fail(error, MX_IO, "%s: %s", folder, strerror(errno));
    bool torch = false;
    mx_status status = MX_OK;
    for (struct dirent *e; !status && (e = readdir(dir));) {
        if (e->d_name[0] == '.') continue;
        torch |= mx_ends_with(e->d_name, ".bin") || mx_ends_with(e->d_name, ".pt");
        if (mx_ends_with(e->d_name, ".safetensors")) status = names_add(out, folder, e->d_name, error);
    }
    closedir(dir);
    if (!status && !out->count) status = nothing_there(folder, torch, error);
    return status;
}

/* weight_map of model.safetensors.index.json: the files it names. */
static mx_status read_index(const char *folder, const char *path, const mx_json *root, names *out, mx_error *error) {
    const mx_json *map = mx_json_get(root, "weight_map");
    char text[80];
    if (!map || map->type != MX_JSON_OBJECT || !map->count)
        return mx_fail(error, MX_INVALID_FILE, "%s: weight_map is %s, expected an object of tensor names and files",
                       path, map ? mx_show_json(text, sizeof text, map) : "missing");
    for (const mx_json *v = map->child; v; v = v->next) {
        if (!mx_is_one_line(v->key, v->key_size))
            return mx_fail(error, MX_INVALID_FILE, "%s: weight_map: a tensor's name holds a control character", path);
        /* A file of this folder, not a path that leads elsewhere. */
        if (v->type != MX_JSON_STRING || !mx_is_one_line(v->text, v->size) || memchr(v->text, '/', v->size) ||
            !mx_ends_with(v->text, ".safetensors"))
            return mx_fail(error, MX_INVALID_FILE,
                           "%s: weight_map: file of %s is %s, expected the name of a .safetensors file", path, v->key,
                           mx_show_json(text, sizeof text, v));
        mx_status status = names_add(out, folder, v->text, error);
        if (status) return status;
    }
    return MX_OK;
}

/* Every tensor that the index promises is in the file it names. */
static mx_status check_index(const mx_checkpoint *ck, const char *folder, const char *path, const mx_json *root,
                             mx_error *error) {
    size_t skip = strlen(folder) + 1;
    for (const mx_json *v = mx_json_get(root, "weight_map")->child; v; v = v->next) {
        const mx_tensor *t = mx_checkpoint_find(ck, v->key);
        if (!t || strcmp(t->file + skip, v->text))
            return mx_fail(error, MX_INVALID_FILE, "%s: weight_map: %s is not in %s%s%s", path, v->key, v->text,
                           t ? " but in " : "", t ? t->file + skip : "");
    }
    return MX_OK;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const mx_tensor *)a)->name, ((const mx_tensor *)b)->name);
}

/* Sorts the tensors by name; each is there once. */
static mx_status sort(mx_checkpoint *ck, mx_error *error) {
    if (ck->count) qsort(ck->tensor, (size_t)ck->count, sizeof *ck->tensor, by_name); /* none: the list may be NULL */
    for (int i = 1; i < ck->count; i++) {
        const mx_tensor *a = &ck->tensor[i - 1], *b = &ck->tensor[i];
        if (strcmp(a->name, b->name)) continue;
        if (a->file == b->file)
            return mx_fail(error, MX_INVALID_FILE, "%s: %s: given twice in the header", a->file, a->name);
        return mx_fail(error, MX_INVALID_FILE, "%s: %s: also in %s: remove the file that does not belong here", b->file,
                       b->name, a->file);
    }
    return MX_OK;
}

/* All files' tensors in one list. */
static mx_status gather(mx_checkpoint *ck, const char *path, mx_error *error) {
    int64_t total = 0;
    for (int i = 0; i < ck->safetensors_count; i++) total += ck->safetensors[i].count;
    ck->tensor = calloc((size_t)total + 1, sizeof *ck->tensor);
    if (!ck->tensor || total > INT32_MAX)
        return mx_fail(error, MX_NO_MEMORY, "%s: no memory for %lld tensors", path, (long long)total);
    ck->capacity = (int)total;
    for (int i = 0; i < ck->safetensors_count; i++) {
        const mx_safetensors *st = &ck->safetensors[i];
        if (st->count) memcpy(ck->tensor + ck->count, st->tensor, (size_t)st->count * sizeof *ck->tensor);
        ck->count += st->count;
    }
    return sort(ck, error);
}

static mx_status open_files(mx_checkpoint *ck, const char *folder, const names *list, mx_error *error) {
    ck->safetensors = calloc((size_t)list->count, sizeof *ck->safetensors);
    if (!ck->safetensors) return mx_fail(error, MX_NO_MEMORY, "%s: no memory for %d files", folder, list->count);
    for (int i = 0; i < list->count; i++) {
        char path[4096];
        if (snprintf(path, sizeof path, "%s/%s", folder, list->name[i]) >= (int)sizeof path)
            return mx_fail(error, MX_INVALID_ARGUMENT, "a file of the model folder has a path longer than %zu bytes",
                           sizeof path);
        mx_status status = mx_safetensors_open(path, &ck->safetensors[ck->safetensors_count++], error);
        if (status) return status;
    }
    return gather(ck, folder, error);
}

static mx_status open_folder(mx_checkpoint *ck, const char *folder, mx_error *error) {
    char path[4096];
    struct stat info;
    if (snprintf(path, sizeof path, "%s/model.safetensors.index.json", folder) >= (int)sizeof path)
        return mx_fail(error, MX_INVALID_ARGUMENT, "the path of the model folder is longer than %zu bytes",
                       sizeof path);
    names list = {0};
    mx_bytes text = {0};
    mx_json_document *index = NULL;
    mx_status status = MX_OK;
    if (stat(path, &info) == 0) {
        status = mx_read_regular_file(path, INDEX_LIMIT, &text, error);
        if (!status) status = mx_json_parse(path, text.data ? text.data : "", text.size, &index, error);
        if (!status) status = read_index(folder, path, mx_json_root(index), &list, error);
    } else {
        status = list_folder(folder, &list, error);
    }
    if (!status) status = open_files(ck, folder, &list, error);
    if (!status && index) status = check_index(ck, folder, path, mx_json_root(index), error);
    mx_json_free(index);
    mx_bytes_free(&text);
    names_free(&list);
    return status;
}

static mx_status open_one(mx_checkpoint *ck, const char *path, mx_error *error) {
    ck->safetensors = calloc(1, sizeof *ck->safetensors);
    if (!ck->safetensors) return mx_fail(error, MX_NO_MEMORY, "%s: no memory to open it", path);
    ck->safetensors_count = 1;
    mx_status status = mx_safetensors_open(path, ck->safetensors, error);
    return status ? status : gather(ck, path, error);
}

static mx_status open_place(mx_checkpoint *ck, const mx_location *place, mx_expert_form form, mx_error *error) {
    mx_status status = MX_OK;
    ck->layout = place->layout;
    if (mx_experts_rounded(form) && place->layout != MX_LAYOUT_HF) form = MX_EXPERTS_IN_PLACE; /* see mx_weights_load */
    switch (place->layout) {
    case MX_LAYOUT_TENSORS:
        return open_one(ck, place->path, error);
    case MX_LAYOUT_GGUF:
        status = mx_gguf_layout_read(ck, place->path, form, error);
        break;
    case MX_LAYOUT_METAL:
        status = mx_metal_read(ck, place->path, error);
        break;
    case MX_LAYOUT_ORIGINAL:
        status = open_folder(ck, place->path, error);
        if (!status) status = mx_original_read(ck, place->path, error);
        break;
    default:
        status = open_folder(ck, place->path, error);
        if (!status && form != MX_EXPERTS_STORED) status = mx_experts16_read(ck, form, error);
        if (!status && (form == MX_EXPERTS_IN_PLACE || mx_experts_rounded(form)))
            status = mx_quantized_experts_read(ck, error);
        break;
    }
    return status ? status : sort(ck, error);
}

mx_status mx_checkpoint_open_as(const char *path, mx_expert_form form, mx_checkpoint **out, mx_error *error) {
    *out = NULL;
    mx_location place;
    mx_status status = mx_location_find(path, &place, error);
    if (status) return status;
    mx_checkpoint *ck = calloc(1, sizeof *ck);
    if (!ck) return mx_fail(error, MX_NO_MEMORY, "%s: no memory to open it", path);
    status = open_place(ck, &place, form, error);
    if (status)
        mx_checkpoint_close(ck);
    else
        *out = ck;
    return status;
}

mx_status mx_checkpoint_open(const char *path, mx_checkpoint **out, mx_error *error) {
    return mx_checkpoint_open_as(path, MX_EXPERTS_KEPT, out, error);
}

mx_status mx_checkpoint_open_model(const char *path, mx_expert_form form, mx_config *config, mx_checkpoint **out,
                                   mx_error *error) {
    mx_location location;
    *out = NULL;
    mx_status status = mx_location_find(path, &location, error);
    if (!status && location.layout == MX_LAYOUT_TENSORS) return mx_config_read(path, config, error); /* says why not */
    /* The checkpoint first: it says best what a folder of another layout holds. */
    if (!status) status = mx_checkpoint_open_as(path, form, out, error);
    if (!status)
        status = location.layout == MX_LAYOUT_GGUF ? mx_gguf_config(&(*out)->gguf[0], config, error)
                                                   : mx_config_read(path, config, error);
    if (!status && location.layout == MX_LAYOUT_GGUF)
        config->tied_embeddings = !mx_checkpoint_find(*out, "lm_head.weight"); /* whichever file it might be in */
    if (!status) return MX_OK;
    mx_checkpoint_close(*out);
    *out = NULL;
    return status;
}

mx_layout mx_checkpoint_layout(const mx_checkpoint *ck) {
    return ck->layout;
}

mx_status mx_checkpoint_in_memory(const char *name, mx_tensor *tensor, int count, mx_arena memory, mx_checkpoint **out,
                                  mx_error *error) {
    *out = NULL;
    mx_checkpoint *ck = calloc(1, sizeof *ck);
    if (!ck) return mx_fail(error, MX_NO_MEMORY, "%s: no memory to open it", name);
    ck->tensor = tensor;
    ck->count = count;
    for (int i = 0; i < count; i++) tensor[i].slice_stride = mx_tensor_slice_bytes(&tensor[i]);
    mx_status status = sort(ck, error);
    if (status) {
        free(ck);
        return status;
    }
    ck->layout = MX_LAYOUT_TENSORS;
    ck->memory = memory;
    *out = ck;
    return MX_OK;
}

void mx_checkpoint_close(mx_checkpoint *ck) {
    if (!ck) return;
    for (int i = 0; i < ck->safetensors_count; i++) mx_safetensors_close(&ck->safetensors[i]);
    for (int i = 0; i < ck->gguf_count; i++) mx_gguf_close(&ck->gguf[i]);
    mx_mapped_close(&ck->metal);
    for (struct mx_owned *next; ck->owned; ck->owned = next) {
        next = ck->owned->next;
        free(ck->owned);
    }
    free(ck->safetensors);
    free(ck->gguf);
    free(ck->tensor);
    mx_arena_destroy(&ck->memory);
    free(ck);
}

int mx_checkpoint_files(const mx_checkpoint *ck) {
    return ck->safetensors_count + ck->gguf_count + (ck->metal.data != NULL);
}

mx_mapped *mx_checkpoint_file(mx_checkpoint *ck, int index) {
    if (index < ck->safetensors_count) return &ck->safetensors[index].file;
    index -= ck->safetensors_count;
    return index < ck->gguf_count ? &ck->gguf[index].file : &ck->metal;
}

uint64_t mx_checkpoint_header(const mx_checkpoint *ck, int index) {
    if (index < ck->safetensors_count) return 8 + mx_load_u64(ck->safetensors[index].file.data);
    index -= ck->safetensors_count;
    if (index >= ck->gguf_count) return mx_metal_header(&ck->metal);
    const mx_gguf *g = &ck->gguf[index];
    uint64_t least = g->file.size;
    for (int i = 0; i < g->tensors; i++) {
        const mx_gguf_tensor *t = &g->tensor[i];
        if (t->data && (uint64_t)(t->data - g->file.data) < least) least = (uint64_t)(t->data - g->file.data);
    }
    return least;
}

int mx_checkpoint_rounded(const mx_checkpoint *ck) {
    return ck->rounded;
}

uint64_t mx_checkpoint_made(const mx_checkpoint *ck) {
    return mx_checkpoint_files(ck) ? ck->memory.used : 0;
}

void mx_checkpoint_forget(const mx_checkpoint *ck) {
    if (ck->copied) return; /* nothing would bring it back */
    for (int i = 0; i < ck->safetensors_count; i++)
        madvise(ck->safetensors[i].file.data, ck->safetensors[i].file.size, MADV_DONTNEED);
    for (int i = 0; i < ck->gguf_count; i++) madvise(ck->gguf[i].file.data, ck->gguf[i].file.size, MADV_DONTNEED);
    if (ck->metal.data) madvise(ck->metal.data, ck->metal.size, MADV_DONTNEED);
}

int mx_checkpoint_count(const mx_checkpoint *ck) {
    return ck->count;
}

const mx_tensor *mx_checkpoint_at(const mx_checkpoint *ck, int index) {
    return &ck->tensor[index];
}

const mx_tensor *mx_checkpoint_find(const mx_checkpoint *ck, const char *name) {
    mx_tensor key = {.name = name};
    return ck->count ? bsearch(&key, ck->tensor, (size_t)ck->count, sizeof key, by_name) : NULL;
}
