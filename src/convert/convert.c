#include "convert/convert.h"
#include "base/bytes.h"

#include <string.h>

#include "convert/origin.h"

bool mx_convert_layout(const char *name, mx_layout *out) {
    static const struct {
        const char *name;
        mx_layout layout;
    } names[] = {
        {"hf", MX_LAYOUT_HF}, {"gguf", MX_LAYOUT_GGUF}, {"original", MX_LAYOUT_ORIGINAL}, {"metal", MX_LAYOUT_METAL}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(names[i].name, name)) continue;
        *out = names[i].layout;
        return true;
    }
    return false;
}

/* What is a folder does not look like a file. */
static mx_status check_name(const char *path, mx_layout to, mx_error *error) {
    static const char *const ends[] = {".gguf", ".bin", ".safetensors"};
    for (size_t i = 0; i < sizeof ends / sizeof *ends && to != MX_LAYOUT_GGUF; i++)
        if (mx_ends_with(path, ends[i]))
            return mx_fail(error, MX_INVALID_ARGUMENT,
                           "%s: the layout %s is a folder, and this is the name of a file: give a folder's", path,
                           mx_layout_name(to));
    return MX_OK;
}

static mx_status plan(mx_origin *origin, mx_output *out, mx_converted *result) {
    mx_status status = mx_origin_check_config(origin, origin->options->to);
    if (status) return status;
    switch (origin->options->to) {
    case MX_LAYOUT_GGUF:
        status = mx_gguf_plan(origin, out);
        break;
    case MX_LAYOUT_ORIGINAL:
        status = mx_original_plan(origin, out);
        break;
    case MX_LAYOUT_METAL:
        status = mx_metal_plan(origin, out);
        break;
    default:
        return mx_hf_plan(origin, out, &result->restored);
    }
    return status ? status : mx_origin_check_used(origin);
}

mx_status mx_convert(const char *in, const char *path, const mx_convert_options *options, mx_converted *result,
                     mx_error *error) {
    mx_origin origin;
    mx_output out = {.lock = -1};
    *result = (mx_converted){0};
    mx_status status = mx_origin_open(&origin, in, options, error);
    if (!status) status = check_name(path, options->to, error);
    if (!status)
        status = mx_output_begin(&out, path, options->to != MX_LAYOUT_GGUF, options->force, &origin.place, error);
    if (!status) status = plan(&origin, &out, result);
    if (!status) status = mx_output_create(&out);
    if (!status && options->to == MX_LAYOUT_HF) status = mx_hf_check_config(&origin, &out, &result->restored);
    if (!status) status = mx_output_fill(&out, origin.ck, options);
    if (!status) {
        result->bytes = mx_output_size(&out);
        result->files = out.files;
        status = mx_output_publish(&out);
    }
    mx_output_end(&out);
    mx_origin_close(&origin);
    return status;
}
