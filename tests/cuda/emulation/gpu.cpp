/* kernels/cuda/gpu.h on the CPU. Device memory is malloc's, so that the address sanitizer sees what leaves it; it
 * begins as bytes 0xFF (the first 64 MiB of an allocation), which as floats are NaN.
 *
 * Streams do everything at once, but for what they capture. With MX_EMULATION_STREAMS=late they do everything as late
 * as can be: when somebody waits for it. So a host that reads results, or writes what a queued copy reads, without
 * having waited shows in one of the two.
 *
 * MX_EMULATION_MEMORY: bytes of device memory (4 GiB). MX_EMULATION_SHARED: bytes of shared memory that a block may
 * have (101376, as compute capability 8.9 and 12.0). */
#include "emulation.h"

#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stdio.h>
#include <stdlib.h>
#include <string>
#include <vector>

namespace {

typedef std::function<void()> Work;

struct Record { /* of an event: one call of mx_gpu_event_record */
    mx_gpu_stream *stream;
    bool done = false;
    std::chrono::steady_clock::time_point when;
};

uint64_t number(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    if (!text || !*text) return otherwise;
    char *end;
    const uint64_t n = strtoull(text, &end, 10);
    if (*end) {
        fprintf(stderr, "mxrun emulation: %s is \"%s\", not a number\n", name, text);
        abort();
    }
    return n;
}

/* One lock for everything; work is done while it is held, and may lead to other work. */
std::recursive_mutex &lock() {
    static std::recursive_mutex *m = new std::recursive_mutex;
    return *m;
}
#define MX_LOCK() std::lock_guard<std::recursive_mutex> hold(lock())

struct State {
    uint64_t memory = number("MX_EMULATION_MEMORY", (uint64_t)4 << 30);
    uint64_t shared = number("MX_EMULATION_SHARED", 101376);
    uint64_t used = 0;
    std::map<const uint8_t *, size_t> device, host; /* allocations */
    std::set<mx_gpu_stream *> streams;
    bool late = false;
    State() {
        const char *text = getenv("MX_EMULATION_STREAMS");
        late = text && !strcmp(text, "late");
    }
};
State &state() {
    static State *s = new State;
    return *s;
}

thread_local std::string refused; /* the first launch since mx_gpu_check, and why */

} // namespace

struct mx_gpu_stream {
    std::deque<Work> pending;
    std::vector<Work> *captured = nullptr;
};
struct mx_gpu_event {
    std::shared_ptr<Record> last;
};
struct mx_gpu_graph {
    std::vector<Work> work;
};

namespace {

/* Does what is pending in `s`, at most until `record` is done. */
void drain(mx_gpu_stream *s, const Record *record) {
    while (!s->pending.empty() && !(record && record->done)) {
        const Work work = std::move(s->pending.front());
        s->pending.pop_front();
        work();
    }
}

void drain_all() {
    for (mx_gpu_stream *s : state().streams) drain(s, nullptr);
}

void queue(mx_gpu_stream *s, Work work) {
    MX_LOCK();
    if (s && s->captured)
        s->captured->push_back(std::move(work));
    else if (s && state().late)
        s->pending.push_back(std::move(work));
    else
        work();
}

/* Whether `bytes` bytes at p lie in one of the allocations. */
bool within(const std::map<const uint8_t *, size_t> &allocations, const void *p, size_t bytes) {
    auto i = allocations.upper_bound((const uint8_t *)p);
    if (i == allocations.begin()) return false;
    --i;
    return (size_t)((const uint8_t *)p - i->first) + bytes <= i->second;
}

bool lasting(const void *p, size_t bytes) {
    return within(state().device, p, bytes) || within(state().host, p, bytes);
}

mx_status no_memory(const char *what, size_t bytes, mx_error *error) {
    const State &s = state();
    return mx_fail(error, MX_NO_MEMORY, "no memory on the GPU for %s: %zu bytes are needed, %llu of %llu are free",
                   what, bytes, (unsigned long long)(s.memory - s.used), (unsigned long long)s.memory);
}

} // namespace

void mx_emulated_queue(mx_gpu_stream *s, std::function<void()> work) {
    queue(s, std::move(work));
}

bool mx_emulated_accept(const char *name, dim3 grid, int threads, size_t shared) {
    if (threads % 32 != 0) mx_emulated_fail("%s: %d threads are no whole warps", name, threads);
    const char *why = nullptr;
    if (!grid.x || !grid.y || !grid.z)
        why = "the grid is empty";
    else if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        why = "the grid is too large";
    else if (threads < 1 || threads > 1024)
        why = "a block has 1 to 1024 threads";
    else if (shared > state().shared)
        why = "so much shared memory no block can have";
    if (why && refused.empty()) {
        char text[200];
        snprintf(text, sizeof text, " (grid %u x %u x %u, %d threads, %zu bytes of shared memory)", grid.x, grid.y,
                 grid.z, threads, shared);
        refused = std::string(name) + ": " + why + text;
    }
    return !why;
}

/* ---- the device ---- */
extern "C" {

mx_status mx_gpu_count(int *out, mx_error *) {
    *out = 1;
    return MX_OK;
}

mx_status mx_gpu_use(int device, mx_error *error) {
    if (device == 0) return MX_OK;
    return mx_fail(error, MX_UNSUPPORTED, "there is no GPU %d: the emulation has GPU 0 alone", device);
}

mx_status mx_gpu_get_info(int device, mx_gpu_info *out, mx_error *error) {
    const mx_status status = mx_gpu_use(device, error);
    if (status != MX_OK) return status;
    MX_LOCK();
    *out = {};
    snprintf(out->name, sizeof out->name, "emulated");
    out->major = 8;
    out->multiprocessors = 4;
    out->memory = state().memory;
    out->memory_free = state().memory - state().used;
    out->shared_most = state().shared;
    return MX_OK;
}

/* ---- memory ---- */
mx_status mx_gpu_alloc(void **out, size_t bytes, const char *what, mx_error *error) {
    MX_LOCK();
    State &s = state();
    if (bytes > s.memory - s.used) return no_memory(what, bytes, error);
    void *p;
    if (posix_memalign(&p, 256, bytes ? bytes : 1) != 0) return no_memory(what, bytes, error);
    memset(p, 0xff, bytes < 64 << 20 ? bytes : 64 << 20);
    s.used += bytes;
    s.device[(const uint8_t *)p] = bytes;
    *out = p;
    return MX_OK;
}

static void free_from(std::map<const uint8_t *, size_t> *allocations, void *p, const char *which) {
    const auto i = allocations->find((const uint8_t *)p);
    if (i == allocations->end()) mx_emulated_fail("%s: %p was not allocated by its like", which, p);
    allocations->erase(i);
    free(p);
}

void mx_gpu_free(void *p) {
    MX_LOCK();
    if (!p) return;
    drain_all();
    const auto i = state().device.find((const uint8_t *)p);
    if (i != state().device.end()) state().used -= i->second;
    free_from(&state().device, p, "mx_gpu_free");
}

mx_status mx_gpu_alloc_host(void **out, size_t bytes, const char *what, mx_error *error) {
    MX_LOCK();
    void *p;
    if (posix_memalign(&p, 4096, bytes ? bytes : 1) != 0)
        return mx_fail(error, MX_NO_MEMORY, "no pinned memory for %s: %zu bytes are needed", what, bytes);
    state().host[(const uint8_t *)p] = bytes;
    *out = p;
    return MX_OK;
}

void mx_gpu_free_host(void *p) {
    MX_LOCK();
    if (!p) return;
    drain_all();
    free_from(&state().host, p, "mx_gpu_free_host");
}

/* ---- streams ---- */
mx_status mx_gpu_stream_create(mx_gpu_stream **out, mx_error *) {
    MX_LOCK();
    *out = new mx_gpu_stream;
    state().streams.insert(*out);
    return MX_OK;
}

void mx_gpu_stream_destroy(mx_gpu_stream *s) {
    MX_LOCK();
    if (!s) return;
    drain(s, nullptr);
    state().streams.erase(s);
    delete s->captured;
    delete s;
}

mx_status mx_gpu_stream_wait(mx_gpu_stream *s, mx_error *error) {
    MX_LOCK();
    if (s && s->captured) return mx_fail(error, MX_INVALID_STATE, "a stream that captures cannot be waited for");
    if (s) drain(s, nullptr);
    return MX_OK;
}

mx_status mx_gpu_copy(void *to, const void *from, size_t bytes, mx_gpu_stream *s, mx_error *error) {
    MX_LOCK();
    if (lasting(to, bytes) && lasting(from, bytes)) {
        queue(s, [=] { memmove(to, from, bytes); });
        return MX_OK;
    }
    if (s && s->captured)
        return mx_fail(error, MX_INVALID_STATE,
                       "a copy of %zu bytes is captured whose memory is neither the GPU's nor pinned", bytes);
    if (!within(state().device, to, bytes) && !within(state().device, from, bytes) && !lasting(to, bytes) &&
        !lasting(from, bytes))
        return mx_fail(error, MX_INVALID_ARGUMENT, "a copy of %zu bytes has no end on the GPU", bytes);
    if (s) drain(s, nullptr);
    memmove(to, from, bytes);
    return MX_OK;
}

mx_status mx_gpu_fill(void *to, int byte, size_t bytes, mx_gpu_stream *s, mx_error *error) {
    MX_LOCK();
    if (!within(state().device, to, bytes))
        return mx_fail(error, MX_INVALID_ARGUMENT, "%zu bytes at %p to fill are not memory of the GPU", bytes, to);
    queue(s, [=] { memset(to, byte, bytes); });
    return MX_OK;
}

static thread_local bool overlapping;

void mx_gpu_overlap(bool on) {
    overlapping = on;
}

bool mx_gpu_overlapping(void) {
    return overlapping;
}

mx_status mx_gpu_check(const char *what, mx_error *error) {
    if (refused.empty()) return MX_OK;
    const std::string why = std::move(refused);
    refused.clear();
    return mx_fail(error, MX_INVALID_STATE, "%s: the GPU refuses a launch: %s", what, why.c_str());
}

/* ---- events ---- */
mx_status mx_gpu_event_create(mx_gpu_event **out, mx_error *) {
    *out = new mx_gpu_event;
    return MX_OK;
}

void mx_gpu_event_destroy(mx_gpu_event *e) {
    delete e;
}

mx_status mx_gpu_event_record(mx_gpu_event *e, mx_gpu_stream *s, mx_error *error) {
    MX_LOCK();
    if (s && s->captured) return mx_fail(error, MX_INVALID_STATE, "the emulation does not capture events");
    const auto record = std::make_shared<Record>();
    record->stream = s;
    e->last = record;
    queue(s, [=] {
        record->when = std::chrono::steady_clock::now();
        record->done = true;
    });
    return MX_OK;
}

static void finish(const Record *r) {
    if (!r->done) drain(r->stream, r);
}

mx_status mx_gpu_event_wait(mx_gpu_event *e, mx_error *) {
    MX_LOCK();
    if (e->last) finish(e->last.get());
    return MX_OK;
}

mx_status mx_gpu_event_follow(mx_gpu_stream *s, mx_gpu_event *e, mx_error *error) {
    MX_LOCK();
    if (s && s->captured) return mx_fail(error, MX_INVALID_STATE, "the emulation does not capture events");
    const auto record = e->last;
    if (record) queue(s, [=] { finish(record.get()); });
    return MX_OK;
}

mx_status mx_gpu_event_ms(mx_gpu_event *from, mx_gpu_event *to, float *out, mx_error *error) {
    MX_LOCK();
    if (!from->last || !to->last || !from->last->done || !to->last->done)
        return mx_fail(error, MX_INVALID_STATE, "time between events of which one is not recorded or not done");
    *out = std::chrono::duration<float, std::milli>(to->last->when - from->last->when).count();
    return MX_OK;
}

/* ---- graphs ---- */
mx_status mx_gpu_capture_begin(mx_gpu_stream *s, mx_error *error) {
    MX_LOCK();
    if (!s || s->captured) return mx_fail(error, MX_INVALID_STATE, "the stream captures already");
    s->captured = new std::vector<Work>;
    return MX_OK;
}

mx_status mx_gpu_capture_end(mx_gpu_stream *s, mx_gpu_graph **out, mx_error *error) {
    MX_LOCK();
    if (!s || !s->captured) return mx_fail(error, MX_INVALID_STATE, "the stream captures nothing");
    *out = new mx_gpu_graph;
    (*out)->work.swap(*s->captured);
    delete s->captured;
    s->captured = nullptr;
    return MX_OK;
}

/* A graph that is destroyed before it has run must still run: the work is copied. */
mx_status mx_gpu_graph_launch(mx_gpu_graph *g, mx_gpu_stream *s, mx_error *error) {
    MX_LOCK();
    if (s && s->captured) return mx_fail(error, MX_INVALID_STATE, "a graph is launched while the stream captures");
    for (const Work &w : g->work) queue(s, w);
    return MX_OK;
}

void mx_gpu_graph_destroy(mx_gpu_graph *g) {
    delete g;
}

} // extern "C"
