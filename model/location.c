/* What lies at a path: by names and first bytes. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/gguf.h"
#include "base/json.h"
#include "model/model.h"

enum { CONFIG_LIMIT = 16 << 20, HEAD = 12 };

const char *mx_layout_name(mx_layout layout) {
    static const char *const names[MX_LAYOUTS] = {[MX_LAYOUT_HF] = "Hugging Face",
                                                  [MX_LAYOUT_ORIGINAL] = "OpenAI original/",
                                                  [MX_LAYOUT_GGUF] = "GGUF",
                                                  [MX_LAYOUT_METAL] = "OpenAI metal",
                                                  [MX_LAYOUT_TENSORS] = "safetensors"};
    return (unsigned)layout < MX_LAYOUTS ? names[layout] : "unknown";
}

static mx_status found(mx_location *out, mx_layout layout, const char *folder, const char *name, mx_error *error) {
    out->layout = layout;
    const int n = snprintf(out->path, sizeof out->path, name ? "%s/%s" : "%s", folder, name);
    if (n < 0 || (size_t)n >= sizeof out->path)
        return mx_fail(error, MX_INVALID_ARGUMENT, "the path of the model is longer than %zu bytes", sizeof out->path);
    return MX_OK;
}

/* The first bytes of a file; false: it has fewer, or cannot be read. */
static bool read_head(const char *path, char head[HEAD]) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return false;
    struct stat info;
    bool ok = fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && read(fd, head, HEAD) == HEAD;
    close(fd);
    return ok;
}

static mx_status location_of_file(const char *path, mx_location *out, mx_error *error) {
    char head[HEAD];
    const bool has_head = read_head(path, head);
    mx_layout layout = mx_ends_with(path, ".gguf") ? MX_LAYOUT_GGUF : MX_LAYOUT_TENSORS;
    if (has_head && !memcmp(head, "GGUF", 4)) layout = MX_LAYOUT_GGUF;
    if (has_head && !memcmp(head, "GPT-OSS v1.0", HEAD)) layout = MX_LAYOUT_METAL;
    return found(out, layout, path, NULL, error);
}

/* ---- folders ------------------------------------------------------------------------------------------------------
 */
/* What a folder holds, as far as it tells layouts apart. */
typedef struct contents {
    bool safetensors, dtypes, original, metal;
    char gguf[256]; /* the (first) file of a GGUF model */
    int ggufs;      /* models of that kind */
    bool parts;     /* further files of one */
} contents;

static contents look(const char *folder) {
    contents c = {0};
    DIR *dir = opendir(folder);
    if (!dir) return c;
    for (struct dirent *e; (e = readdir(dir));) {
        const char *name = e->d_name;
        if (*name == '.') continue;
        c.safetensors |= mx_ends_with(name, ".safetensors") || !strcmp(name, "model.safetensors.index.json");
        c.dtypes |= !strcmp(name, "dtypes.json");
        c.original |= !strcmp(name, "original");
        c.metal |= !strcmp(name, "metal") || !strcmp(name, "model.bin");
        if (!mx_ends_with(name, ".gguf")) continue;
        c.parts |= mx_gguf_is_further_part(name);
        if (mx_gguf_is_further_part(name)) continue;
        c.ggufs++;
        snprintf(c.gguf, sizeof c.gguf, "%s", name);
    }
    closedir(dir);
    return c;
}

/* OpenAI's config.json has no model_type. */
static bool has_original_config(const char *folder) {
    char path[MX_PATH + 20];
    mx_bytes text = {0};
    mx_json_document *document = NULL;
    snprintf(path, sizeof path, "%s/config.json", folder);
    bool is = false;
    if (!mx_read_regular_file(path, CONFIG_LIMIT, &text, NULL) && text.data &&
        !mx_json_parse(path, text.data, text.size, &document, NULL)) {
        const mx_json *root = mx_json_root(document);
        is = root->type == MX_JSON_OBJECT && !mx_json_get(root, "model_type") && mx_json_get(root, "num_experts") &&
             mx_json_get(root, "rope_scaling_factor");
    }
    mx_json_free(document);
    mx_bytes_free(&text);
    return is;
}

static bool holds_metal(const char *folder, const char *name) {
    char path[MX_PATH + 40], head[HEAD];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return read_head(path, head) && !memcmp(head, "GPT-OSS v1.0", HEAD);
}

static mx_status location_of_folder(const char *folder, mx_location *out, mx_error *error) {
    const contents here = look(folder);
    if (here.safetensors)
        return found(out, here.dtypes || has_original_config(folder) ? MX_LAYOUT_ORIGINAL : MX_LAYOUT_HF, folder, NULL,
                     error);
    if (here.original) {
        char path[MX_PATH + 20];
        snprintf(path, sizeof path, "%s/original", folder);
        if (look(path).safetensors) return found(out, MX_LAYOUT_ORIGINAL, folder, "original", error);
    }
    if (here.ggufs == 1) return found(out, MX_LAYOUT_GGUF, folder, here.gguf, error);
    if (here.ggufs > 1)
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "%s: holds %d models as .gguf files, %s among them: name the file instead of the folder", folder,
                       here.ggufs, here.gguf);
    if (here.metal && holds_metal(folder, "model.bin")) return found(out, MX_LAYOUT_METAL, folder, "model.bin", error);
    if (here.metal && holds_metal(folder, "metal/model.bin"))
        return found(out, MX_LAYOUT_METAL, folder, "metal/model.bin", error);
    if (here.parts)
        return mx_fail(error, MX_INVALID_FILE,
                       "%s: holds further parts of a split GGUF, but not the first (-00001-of-...): download it, too",
                       folder);
    return found(out, MX_LAYOUT_HF, folder, NULL, error); /* its reader says best what is missing */
}

mx_status mx_location_find(const char *path, mx_location *out, mx_error *error) {
    struct stat info;
    if (strlen(path) >= MX_PATH)
        return mx_fail(error, MX_INVALID_ARGUMENT, "the path of the model is longer than %d bytes", MX_PATH);
    if (stat(path, &info) != 0) return mx_fail(error, MX_IO, "%s: %s", path, strerror(errno));
    return S_ISDIR(info.st_mode) ? location_of_folder(path, out, error) : location_of_file(path, out, error);
}
