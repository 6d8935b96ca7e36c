#include "model/device.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "model/numerics.h"

static const char *const FILE_NAME = "libmxrun_cuda.so";
enum { PATH_ROOM = 4200 };

mx_status mx_device_parse(const char *text, mx_device_choice *out, mx_error *error) {
    *out = (mx_device_choice){.index = -1};
    if (!strcmp(text, "cpu")) return MX_OK;
    out->automatic = !strcmp(text, "auto");
    out->cuda = !strncmp(text, "cuda", 4);
    if (out->automatic || !strcmp(text, "cuda")) return MX_OK;
    const char *number = text + strlen("cuda:");
    const bool indexed = !strncmp(text, "cuda:", strlen("cuda:")) && *number &&
                         strspn(number, "0123456789") == strlen(number) && strlen(number) <= 4;
    if (!indexed) return mx_fail(error, MX_INVALID_ARGUMENT, "%s: expected auto, cpu, cuda or cuda:N", text);
    out->index = atoi(number);
    return MX_OK;
}

/* ---- the plugin -------------------------------------------------------------------------------------------------- */

static struct {
    pthread_once_t once;
    const mx_cuda_plugin *plugin;
    mx_error error; /* why there is none */
    bool absent;    /* there is no such file where it may lie: mxrun without CUDA, and nobody asked for another */
} found = {.once = PTHREAD_ONCE_INIT};

static void log_line(void *user, mx_log_level level, const char *line) {
    (void)user;
    mx_log(level, "%s", line);
}

static mx_log_level log_level(void) {
    mx_log_level level = MX_LOG_DEBUG;
    while (level < MX_LOG_ERROR && !mx_log_wanted(level)) level++;
    return level;
}

/* true: a library was there, and it is used or `found.error` says what is wrong with it. */
static bool try_plugin(const char *path, bool must) {
    if (!must && access(path, F_OK)) return false;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        mx_fail(&found.error, MX_UNSUPPORTED, "%s cannot be opened: %s", path, dlerror());
        return true;
    }
    /* ISO C has no conversion from void * to a function; POSIX promises that this works. */
    mx_cuda_plugin_open_fn *open = NULL;
    void *address = dlsym(library, "mx_cuda_plugin_open");
    memcpy(&open, &address, sizeof address);
    const mx_cuda_host host = {.abi = MX_CUDA_ABI, .log = log_line, .level = log_level()};
    const mx_cuda_plugin *plugin = open ? open(&host) : NULL;
    const bool known = plugin && plugin->abi == MX_CUDA_ABI;
    if (known && !strcmp(plugin->numerics, MX_NUMERICS)) {
        found.plugin = plugin; /* the library stays open: its code is used until the end */
        return true;
    }
    mx_fail(&found.error, MX_UNSUPPORTED, "%s %s: install the one that came with this mxrun", path,
            known  ? "is of another build than this mxrun"
            : open ? "is of another version than this mxrun"
                   : "is not a plugin of mxrun");
    dlclose(library);
    return true;
}

static void find_plugin(void) {
    char folder[PATH_ROOM] = "", path[PATH_ROOM + 100];
    const char *asked = getenv("MXRUN_CUDA_PLUGIN");
    if (asked && *asked) {
        try_plugin(asked, true);
        return;
    }
    const ssize_t n = readlink("/proc/self/exe", folder, sizeof folder - 1);
    if (n > 0) folder[n] = 0;
    char *end = strrchr(folder, '/');
    if (end) *end = 0;
    /* In the build folder, and beside the program, before what is installed. */
    static const char *const beside[] = {"kernels/cuda/", "", "../lib/mxrun/"};
    for (size_t i = 0; end && i < sizeof beside / sizeof *beside; i++) {
        snprintf(path, sizeof path, "%s/%s%s", folder, beside[i], FILE_NAME);
        if (try_plugin(path, false)) return;
    }
    snprintf(path, sizeof path, "%s/%s", MX_PLUGIN_FOLDER, FILE_NAME);
    if (try_plugin(path, false)) return;
    found.absent = true;
    mx_fail(&found.error, MX_UNSUPPORTED,
            "%s is neither beside the program nor in %s: this mxrun was built or installed without CUDA (README has "
            "how to build it; MXRUN_CUDA_PLUGIN names one that lies elsewhere)",
            FILE_NAME, MX_PLUGIN_FOLDER);
}

mx_status mx_cuda_plugin_find(const mx_cuda_plugin **out, mx_error *error) {
    pthread_once(&found.once, find_plugin);
    *out = found.plugin;
    if (found.plugin) return MX_OK;
    if (error) *error = found.error;
    return found.error.status;
}

bool mx_device_any(void) {
    const mx_cuda_plugin *plugin;
    int count = 0;
    return !mx_cuda_plugin_find(&plugin, NULL) && !plugin->count(&count, NULL) && count > 0;
}

static pthread_once_t told = PTHREAD_ONCE_INIT;

/* A plugin that came with a package to a machine without NVIDIA's driver is no news. */
static void tell_why_none(void) {
    static const char *const signs[] = {"/dev/nvidiactl", "/dev/dxg"};
    const mx_cuda_plugin *plugin;
    mx_error why = {0};
    int count = 0;
    const char *asked = getenv("MXRUN_CUDA_PLUGIN");
    bool news = asked && *asked;
    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++) news |= !access(signs[i], F_OK);
    mx_status status = mx_cuda_plugin_find(&plugin, &why);
    if (status && found.absent) return;
    if (!status) status = plugin->count(&count, &why);
    if (status) mx_log(news ? MX_LOG_INFO : MX_LOG_DEBUG, "no GPU is used: %s", why.text);
}

bool mx_device_wanted(const mx_device_choice *choice) {
    if (!choice->automatic) return choice->cuda;
    if (mx_device_any()) return true;
    pthread_once(&told, tell_why_none);
    return false;
}

/* ---- choosing ---------------------------------------------------------------------------------------------------- */

static uint64_t needed(const mx_config *c, const mx_cuda_memory *m) {
    const uint64_t tiles =
        (MX_GPU_LEAST_TOKENS < c->max_positions ? MX_GPU_LEAST_TOKENS : c->max_positions) / MX_TILE + 1;
    return m->weights + m->scratch + MX_CUDA_RESERVE + (uint64_t)c->layers * tiles * m->page;
}

static uint64_t less(uint64_t a, uint64_t b) {
    return a > b ? a - b : 0;
}

uint64_t mx_device_room(const mx_device *d, const mx_cuda_memory *m) {
    return less(d->budget, m->weights + m->scratch + MX_CUDA_RESERVE);
}

void mx_device_tell(const mx_device *d, uint64_t free_now, const mx_cuda_memory *m, uint64_t kv, const char *of) {
    mx_log(MX_LOG_INFO,
           "%s (cuda:%d): weights %.2f GB, KV %.2f GB for %s, scratch %.2f GB, CUDA's own %.2f GB, free %.2f GB",
           d->info.name, d->index, (double)m->weights / 1e9, (double)kv / 1e9, of, (double)m->scratch / 1e9,
           (double)MX_CUDA_RESERVE / 1e9, (double)less(free_now, m->weights + m->scratch + kv + MX_CUDA_RESERVE) / 1e9);
}

/* Device `index` of the plugin, whether or not the model fits. */
static mx_status look_at(const mx_cuda_plugin *plugin, int index, uint64_t most, mx_device *out, mx_error *error) {
    *out = (mx_device){.plugin = plugin, .index = index};
    mx_status status = plugin->info(index, &out->info, error);
    out->budget = most && most < out->info.memory_free ? most : out->info.memory_free;
    return status;
}

static mx_status refuse(const mx_device *d, const mx_cuda_memory *m, uint64_t wanted, uint64_t most, mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY,
                   "%s (cuda:%d) does not hold this model: weights %.2f GB, scratch %.2f GB, CUDA's own %.2f GB and "
                   "keys and values of %d tokens are %.2f GB, %s %.2f GB",
                   d->info.name, d->index, (double)m->weights / 1e9, (double)m->scratch / 1e9,
                   (double)MX_CUDA_RESERVE / 1e9, (int)MX_GPU_LEAST_TOKENS, (double)wanted / 1e9,
                   most && most < d->info.memory_free ? "--gpu-memory allows" : "free are", (double)d->budget / 1e9);
}

/* The device with most memory to spare, or the one that was asked for. */
static mx_status find_device(const mx_cuda_plugin *plugin, const mx_device_choice *choice, uint64_t most,
                             mx_device *out, mx_error *error) {
    int count = 0;
    mx_status status = plugin->count(&count, error);
    if (!status && (!count || choice->index >= count))
        status = mx_fail(error, MX_UNSUPPORTED, "cuda:%d: this machine has %d GPU%s that CUDA can use",
                         choice->index < 0 ? 0 : choice->index, count, count == 1 ? "" : "s");
    bool any = false;
    mx_error first = {0};
    for (int i = 0; i < count && !status; i++) {
        mx_device d;
        if (choice->index >= 0 && i != choice->index) continue;
        mx_error why = {0};
        const mx_status looked = look_at(plugin, i, most, &d, &why);
        if (looked) mx_fail_within(&why, looked, "cuda:%d", i);
        if (looked && !first.status) first = why;
        if (looked || (any && d.budget <= out->budget)) continue;
        *out = d;
        any = true;
    }
    if (status || any) return status;
    if (error) *error = first;
    return first.status;
}

static mx_status open_cuda(const mx_device_choice *choice, uint64_t most, const mx_weights *w,
                           const mx_backend_options *options, mx_device *out, mx_error *error) {
    const mx_cuda_plugin *plugin;
    mx_cuda_memory memory;
    mx_status status = mx_cuda_plugin_find(&plugin, error);
    if (!status) status = find_device(plugin, choice, most, out, error);
    if (!status) status = plugin->memory(w, options, &memory, error);
    if (status) return status;
    const uint64_t wanted = needed(&w->config, &memory);
    return wanted <= out->budget ? MX_OK : refuse(out, &memory, wanted, most, error);
}

/* The CPU takes over. */
static void give_way(mx_device *d, const mx_error *why) {
    mx_device_close(d);
    mx_log(MX_LOG_WARNING, "the model runs on the CPU: %s", why->text);
}

mx_status mx_device_open(const mx_device_choice *choice, uint64_t most, const mx_weights *w,
                         const mx_backend_options *options, mx_device *out, mx_error *error) {
    mx_error why = {0};
    *out = (mx_device){0};
    if (!choice->automatic && !choice->cuda) return MX_OK;
    if (choice->automatic && !mx_device_any()) return MX_OK;
    mx_status status = open_cuda(choice, most, w, options, out, &why);
    out->automatic = choice->automatic;
    if (!status) return MX_OK;
    if (choice->automatic) {
        give_way(out, &why);
        return MX_OK;
    }
    *out = (mx_device){0};
    if (error) *error = why;
    return status;
}

bool mx_device_fall_back(mx_device *d, mx_status status, const mx_error *why) {
    if (!d->plugin || !d->automatic) return false;
    if (status != MX_UNSUPPORTED && status != MX_NO_MEMORY && status != MX_INVALID_STATE) return false;
    give_way(d, why);
    return true;
}

/* ---- using ------------------------------------------------------------------------------------------------------- */

mx_status mx_device_load(mx_device *d, const mx_weights *w, mx_cuda_load_options o, mx_error *error) {
    if (!d->plugin || d->weights) return MX_OK;
    o.device = d->index;
    return d->plugin->load(w, &o, &d->weights, &d->loaded, error);
}

mx_status mx_device_backend(mx_device *d, const mx_weights *w, mx_pool *pool, const mx_backend_options *options,
                            mx_backend **out, mx_error *error) {
    *out = NULL;
    if (d->plugin && options->observer)
        return mx_fail(error, MX_UNSUPPORTED,
                       "%s: the inputs of products can be observed on the CPU only: --device cpu", d->info.name);
    return d->plugin ? d->plugin->create(d->weights, options, out, error)
                     : mx_cpu_backend_create(w, pool, options, out, error);
}

mx_precisions mx_device_precision(const mx_device *d, const mx_backend *b) {
    return d->plugin ? d->plugin->precision(b) : mx_cpu_backend_precision(b);
}

mx_precisions mx_device_default_precision(const mx_device *d, const mx_kernels *kernels) {
    mx_precisions mixed = {0};
    if (!d->plugin) return mx_precisions_default(kernels);
    mx_precisions_parse("mixed", &mixed, NULL);
    return mixed;
}

void mx_device_tier(const mx_device *d, const mx_kernels *kernels, char out[static 24]) {
    if (d->plugin)
        snprintf(out, 24, "cuda%d.%d", d->info.major, d->info.minor);
    else
        snprintf(out, 24, "%s", kernels->name);
}

void mx_device_close(mx_device *d) {
    if (d->weights) d->plugin->unload(d->weights);
    *d = (mx_device){0};
}
