#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "hub/http.h"
#include "hub/private.h"

/* The variables and their order are those of huggingface_hub (constants.py, utils/_auth.py). */

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

/* FOLDER/TAIL where the variable is set; "~/" at its beginning is HOME. */
static bool from_variable(const char *name, const char *tail, char out[static MX_HUB_PATH], mx_status *status,
                          mx_error *error) {
    const char *value = variable(name), *home = variable("HOME");
    if (!value) return false;
    if (!strncmp(value, "~/", 2) && home)
        *status = mx_hub_path(out, error, "%s%s%s", home, value + 1, tail);
    else
        *status = mx_hub_path(out, error, "%s%s", value, tail);
    return true;
}

static mx_status find_home(char out[static MX_HUB_PATH], mx_error *error) {
    mx_status status = MX_OK;
    if (from_variable("HF_HOME", "", out, &status, error) ||
        from_variable("XDG_CACHE_HOME", "/huggingface", out, &status, error) ||
        from_variable("HOME", "/.cache/huggingface", out, &status, error))
        return status;
    return mx_fail(error, MX_INVALID_ARGUMENT,
                   "no folder for models: HOME is not set; set HOME, HF_HOME or HF_HUB_CACHE");
}

static mx_status find_cache(char out[static MX_HUB_PATH], mx_error *error) {
    mx_status status = MX_OK;
    char home[MX_HUB_PATH];
    if (from_variable("HF_HUB_CACHE", "", out, &status, error) ||
        from_variable("HUGGINGFACE_HUB_CACHE", "", out, &status, error))
        return status;
    status = find_home(home, error);
    return status ? status : mx_hub_path(out, error, "%s/hub", home);
}

static mx_status find_endpoint(char out[static MX_HUB_PATH], mx_error *error) {
    const char *value = variable("HF_ENDPOINT");
    if (!value) value = "https://huggingface.co";
    if ((strncmp(value, "https://", 8) != 0 && strncmp(value, "http://", 7) != 0) || strpbrk(value, " \t\r\n?#")) {
        char shown[300];
        mx_url_shown(value, shown);
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "HF_ENDPOINT=%.200s: expected the address of a hub, such as https://huggingface.co", shown);
    }
    mx_status status = mx_hub_path(out, error, "%s", value);
    for (size_t n = strlen(out); !status && n > 8 && out[n - 1] == '/'; n--) out[n - 1] = 0;
    return status;
}

/* Without the blanks and newlines around it. A token with others inside would end up in the header's next line. */
static mx_status use_token(const char *text, const char *source, char **out, mx_error *error) {
    const char *begin = text + strspn(text, " \t\r\n");
    size_t size = strlen(begin);
    while (size && strchr(" \t\r\n", begin[size - 1])) size--;
    if (size == 0) return MX_OK;
    for (size_t i = 0; i < size; i++)
        if (begin[i] <= 32 || begin[i] == 127)
            return mx_fail(error, MX_INVALID_ARGUMENT, "%s: the token holds a blank or a control character", source);
    *out = strndup(begin, size);
    return *out ? MX_OK : mx_fail(error, MX_NO_MEMORY, "out of memory");
}

static bool is_true(const char *value) {
    static const char *const words[] = {"1", "on", "yes", "true"};
    for (size_t i = 0; value && i < sizeof words / sizeof *words; i++)
        if (!strcasecmp(value, words[i])) return true;
    return false;
}

static mx_status find_token(char **out, mx_error *error) {
    static const char *const names[] = {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"};
    mx_status status = MX_OK;
    if (is_true(variable("HF_HUB_DISABLE_IMPLICIT_TOKEN"))) return MX_OK; /* all of these are implicit there */
    for (size_t i = 0; i < sizeof names / sizeof *names && !status && !*out; i++)
        if (variable(names[i])) status = use_token(variable(names[i]), names[i], out, error);
    if (status || *out) return status;
    char path[MX_HUB_PATH], home[MX_HUB_PATH];
    if (!from_variable("HF_TOKEN_PATH", "", path, &status, error)) {
        status = find_home(home, NULL) ? MX_OK : mx_hub_path(path, error, "%s/token", home);
        if (!variable("HOME") && !variable("HF_HOME") && !variable("XDG_CACHE_HOME")) return MX_OK;
    }
    if (status || access(path, R_OK) != 0) return status;
    mx_bytes text = {0};
    status = mx_read_regular_file(path, 65536, &text, error);
    if (!status && text.data) status = use_token(text.data, path, out, error);
    mx_bytes_free(&text);
    return status;
}

mx_status mx_hub_open(mx_hub *out, mx_error *error) {
    const char *offline = variable("HF_HUB_OFFLINE");
    *out = (mx_hub){.offline = is_true(offline ? offline : variable("TRANSFORMERS_OFFLINE"))};
    mx_status status = find_cache(out->folder, error);
    if (!status) status = find_endpoint(out->endpoint, error);
    if (!status) status = find_token(&out->token, error);
    return status;
}

void mx_hub_close(mx_hub *hub) {
    if (hub->token) explicit_bzero(hub->token, strlen(hub->token));
    free(hub->token);
    hub->token = NULL;
}
