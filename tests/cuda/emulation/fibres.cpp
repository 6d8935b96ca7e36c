/* Runs the threads of a grid as fibres. Lanes of a warp stand in a ring: each runs until it comes to something that all
 * lanes do (a primitive, mx_sync, the end), then the next one does; the last to come finishes it for all and goes on.
 * So whoever's turn it is can run, no lists are kept, and lanes that are not at the same thing are found at once. Warps
 * of a block do the same with mx_sync and the end. */
#include "emulation.h"

#include <condition_variable>
#include <mutex>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>
#include <vector>

#include "switch.h"

namespace {

#ifdef MX_SWITCH_ASAN
constexpr size_t STACK_BYTES = 256 * 1024;
#else
constexpr size_t STACK_BYTES = 64 * 1024;
#endif
constexpr size_t GUARD_BYTES = 16 * 1024;
constexpr int MOST_THREADS = 1024;

struct Copy {
    void *to;
    const void *from; /* nullptr: zeros */
    int group;
};

struct Fibre {
    mx_emulated_place place; /* first: mx_emulated_now points to it */
    mx_emulated_stack stack;
    uint8_t *bottom = nullptr;
    std::vector<Copy> copies; /* not done yet, in the order of their groups */
    int groups = 0;           /* committed */
    bool began = false;       /* mx_begin */
};

struct Warp {
    const char *what; /* the lanes that have come are at; nullptr: none has */
    int came;
    void *brought[32];
    uint8_t next[32]; /* the ring */
    bool waits;       /* for the block */
    Fibre *turn;      /* who goes on */
};

struct Random {
    uint64_t state;
    uint32_t next(uint32_t below) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return (uint32_t)(state >> 33) % below;
    }
};

struct Launch {
    const char *name;
    dim3 grid;
    int threads;
    size_t shared;
    const std::function<void()> *body;
    mx_emulation_order order;
    uint64_t seed, blocks;
    uint64_t next_block; /* atomic */
};

/* What one thread of the process needs to run blocks; kept from launch to launch. */
struct Worker {
    Fibre *fibre[MOST_THREADS] = {};
    Warp warp[MOST_THREADS / 32];
    uint8_t next_warp[MOST_THREADS / 32];
    int warps, warps_came;
    const char *warps_what;
    const Launch *launch;
    Random random;
    uint8_t *shared;
    mx_emulated_stack main;
    const void *main_bottom; /* for the address sanitizer, like the next two */
    size_t main_bytes;
    void *main_fake;

    ~Worker() {
        for (Fibre *f : fibre) {
            if (!f) continue;
            munmap(f->bottom - GUARD_BYTES, STACK_BYTES + GUARD_BYTES);
            delete f;
        }
    }
};

thread_local Worker *worker;                        /* null outside of a launch */
mx_emulation_order order_now = MX_EMULATION_ORDERS; /* that: not known yet */

const char AT_SYNC[] = "mx_sync", AT_END[] = "the end of the kernel";

Fibre *running() {
    return (Fibre *)(void *)mx_emulated_now;
}

/* ---- switching ---- */
#ifdef MX_SWITCH_ASAN
MX_SWITCH_UNWATCHED void announce(Fibre *to) {
    static thread_local void *unused; /* fibres have no "fake stack": they are compiled so, the host is not */
    void **keep = mx_emulated_now ? &unused : &worker->main_fake;
    if (to)
        __sanitizer_start_switch_fiber(keep, to->bottom, STACK_BYTES);
    else
        __sanitizer_start_switch_fiber(keep, worker->main_bottom, worker->main_bytes);
}
#define MX_ANNOUNCE(to)                 announce(to)
#define MX_ARRIVED(fake, bottom, bytes) __sanitizer_finish_switch_fiber(fake, bottom, bytes)
#else
#define MX_ANNOUNCE(to)                 (void)0
#define MX_ARRIVED(fake, bottom, bytes) (void)0
#endif

MX_SWITCH_UNWATCHED void go_to(Fibre *to) {
    Fibre *from = running();
    if (to == from) return;
    MX_ANNOUNCE(to);
    mx_emulated_now = &to->place;
    mx_emulated_go(&from->stack, &to->stack);
    MX_ARRIVED(nullptr, nullptr, nullptr);
}

/* ---- lanes and warps come together ---- */
/* The next warp that is not waiting for the block. */
Fibre *next_warp(int w) {
    Worker *k = worker;
    do w = k->next_warp[w];
    while (k->warp[w].waits);
    return k->warp[w].turn;
}

/* The lanes of warp w are all at `what`: mx_sync or the end. Returns the fibre that goes on, null for none. */
Fibre *warp_came(int w, const char *what) {
    Worker *k = worker;
    if (k->warps_came > 0 && k->warps_what != what)
        mx_emulated_fail("is at %s, but other warps of the block are at %s", what, k->warps_what);
    k->warps_what = what;
    k->warp[w].waits = true;
    k->warp[w].turn = running();
    if (++k->warps_came < k->warps) return next_warp(w);
    if (what == AT_END) return nullptr;
    k->warps_came = 0;
    for (int i = 0; i < k->warps; i++) k->warp[i].waits = false;
    return running();
}

MX_SWITCH_UNWATCHED void come(const char *what, void *mine, void (*work)(void *const lanes[32])) {
    Fibre *self = running();
    if (!self) {
        fprintf(stderr, "mxrun emulation: %s is called by the host\n", what);
        abort();
    }
    const int w = (int)(self->place.thread.x >> 5), lane = (int)(self->place.thread.x & 31);
    Warp *warp = &worker->warp[w];
    if (warp->came > 0 && warp->what != what && strcmp(warp->what, what) != 0)
        mx_emulated_fail("is at %s, but other lanes of the warp are at %s", what, warp->what);
    warp->what = what;
    warp->brought[lane] = mine;
    if (++warp->came < 32) {
        go_to(worker->fibre[w * 32 + warp->next[lane]]);
        return;
    }
    warp->came = 0;
    if (what == AT_SYNC || what == AT_END) {
        Fibre *to = warp_came(w, what);
        if (to) {
            go_to(to);
        } else {
            MX_ANNOUNCE(nullptr);
            mx_emulated_now = nullptr;
            mx_emulated_go(&self->stack, &worker->main);
        }
        return;
    }
    if (work) work(warp->brought);
    /* Now and then another warp goes on first. */
    if (worker->launch->order == MX_EMULATION_RANDOM && worker->warps > worker->warps_came + 1 &&
        worker->random.next(8) == 0) {
        warp->turn = self;
        go_to(next_warp(w));
    }
}

MX_SWITCH_UNWATCHED void entry() {
#ifdef MX_SWITCH_ASAN
    const void *bottom;
    size_t bytes;
    MX_ARRIVED(nullptr, &bottom, &bytes);
    if (!worker->main_bottom) { /* the first of a block comes from there */
        worker->main_bottom = bottom;
        worker->main_bytes = bytes;
    }
#endif
    running()->began = false;
    (*worker->launch->body)();
    if (!running()->began && strstr(worker->launch->name, "kernels/cuda/")) mx_emulated_fail("ends without mx_begin");
    come(AT_END, nullptr, nullptr);
    abort(); /* nobody goes on with what has ended */
}

/* ---- blocks ---- */
Fibre *fibre(int i) {
    Worker *k = worker;
    if (k->fibre[i]) return k->fibre[i];
    uint8_t *p = (uint8_t *)mmap(nullptr, STACK_BYTES + GUARD_BYTES, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || mprotect(p, GUARD_BYTES, PROT_NONE) != 0) {
        fprintf(stderr, "mxrun emulation: no memory for the stack of a thread\n");
        abort();
    }
    Fibre *f = new Fibre;
    f->bottom = p + GUARD_BYTES;
    return k->fibre[i] = f;
}

/* A ring of n in the launch's order; returns who begins. */
int make_ring(uint8_t *next, int n) {
    uint8_t order[32];
    Worker *k = worker;
    for (int i = 0; i < n; i++) order[i] = (uint8_t)(k->launch->order == MX_EMULATION_DOWN ? n - 1 - i : i);
    if (k->launch->order == MX_EMULATION_RANDOM) {
        for (int i = n - 1; i > 0; i--) std::swap(order[i], order[k->random.next((uint32_t)i + 1)]);
    }
    for (int i = 0; i < n; i++) next[order[i]] = order[(i + 1) % n];
    return order[0];
}

uint64_t block_in_order(const Launch *l, uint64_t i) {
    if (l->order == MX_EMULATION_DOWN) return l->blocks - 1 - i;
    if (l->order == MX_EMULATION_UP || l->blocks < 3) return i;
    uint64_t step = l->blocks / 2 + 1 + l->seed % 5, a = step, b = l->blocks;
    while (b) { /* a step that has no divisor in common with their number comes by all of them */
        const uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    if (a != 1) step = 1;
    return (i * step + l->seed) % l->blocks;
}

MX_SWITCH_UNWATCHED void run_block(uint64_t number) {
    Worker *k = worker;
    const Launch *l = k->launch;
    k->random.state = l->seed * 0x9e3779b97f4a7c15u + number;
    k->random.next(2);
    const uint3 block = {(unsigned)(number % l->grid.x), (unsigned)(number / l->grid.x % l->grid.y),
                         (unsigned)(number / l->grid.x / l->grid.y)};
    for (int i = 0; i < l->threads; i++) {
        Fibre *f = fibre(i);
        f->place.thread = {(unsigned)i, 0, 0};
        f->place.block = block;
        f->place.threads = dim3((unsigned)l->threads);
        f->place.blocks = l->grid;
        f->copies.clear();
        f->groups = 0;
        /* Stacks that begin at the same place in a page would fight for the same lines of the cache. */
        mx_emulated_prepare(&f->stack, f->bottom, f->bottom + STACK_BYTES - i % 32 * 128, entry);
    }
    k->warps = l->threads / 32;
    k->warps_came = 0;
    for (int w = 0; w < k->warps; w++) {
        k->warp[w].came = 0;
        k->warp[w].waits = false;
        k->warp[w].turn = k->fibre[w * 32 + make_ring(k->warp[w].next, 32)];
    }
    Fibre *first = k->warp[make_ring(k->next_warp, k->warps)].turn;
    memset(k->shared, 0xff, l->shared);
    k->main_bottom = nullptr;
    MX_ANNOUNCE(first);
    mx_emulated_now = &first->place;
    mx_emulated_go(&k->main, &first->stack);
    MX_ARRIVED(k->main_fake, nullptr, nullptr);
}

void run_blocks(Launch *l) {
    static thread_local Worker mine;
    worker = &mine;
    worker->launch = l;
    if (posix_memalign((void **)&worker->shared, 128, l->shared ? l->shared : 1) != 0) abort();
    uint64_t i;
    while ((i = __atomic_fetch_add(&l->next_block, 1, __ATOMIC_RELAXED)) < l->blocks) run_block(block_in_order(l, i));
    free(worker->shared);
    worker = nullptr;
}

/* ---- workers beside the thread that launches ---- */
struct Pool {
    std::mutex lock;
    std::condition_variable wake, done;
    Launch *launch = nullptr;
    int helpers = 0, busy = 0;
    uint64_t turn = 0;
    pid_t process = getpid();
};

void help(Pool *p) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> hold(p->lock);
    for (;;) {
        p->wake.wait(hold, [&] { return p->turn != seen; });
        seen = p->turn;
        Launch *l = p->launch;
        hold.unlock();
        run_blocks(l);
        hold.lock();
        if (--p->busy == 0) p->done.notify_all();
    }
}

int wanted_helpers() {
    const char *text = getenv("MX_EMULATION_THREADS");
    const int n = text ? atoi(text) : 2;
    return n < 1 ? 0 : n > 64 ? 63 : n - 1;
}

/* Never freed: helpers wait in it until the process ends. After fork() there are none, and a new one. */
Pool *pool() {
    static Pool *p = nullptr;
    if (!p || p->process != getpid()) {
        p = new Pool;
        p->helpers = wanted_helpers();
        for (int i = 0; i < p->helpers; i++) std::thread(help, p).detach();
    }
    return p;
}

mx_emulation_order order_wanted() {
    if (order_now != MX_EMULATION_ORDERS) return order_now;
    const char *text = getenv("MX_EMULATION_ORDER");
    if (!text || !strcmp(text, "up")) return order_now = MX_EMULATION_UP;
    if (!strcmp(text, "down")) return order_now = MX_EMULATION_DOWN;
    if (!strcmp(text, "random")) return order_now = MX_EMULATION_RANDOM;
    fprintf(stderr, "mxrun emulation: MX_EMULATION_ORDER is \"%s\", not up, down or random\n", text);
    abort();
}

} // namespace

__thread const mx_emulated_place *mx_emulated_now;

extern "C" void mx_emulation_set_order(mx_emulation_order order) {
    order_now = order;
}

uint8_t *mx_emulated_shared() {
    return worker->shared;
}

void mx_emulated_fail(const char *format, ...) {
    fflush(stdout);
    if (mx_emulated_now) {
        const mx_emulated_place *at = mx_emulated_now;
        fprintf(stderr, "mxrun emulation: %s, block (%u, %u, %u), thread %u: ", worker->launch->name, at->block.x,
                at->block.y, at->block.z, at->thread.x);
    } else {
        fprintf(stderr, "mxrun emulation: ");
    }
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    abort();
}

void mx_emulated_warp(const char *what, void *mine, void (*work)(void *const lanes[32])) {
    come(what, mine, work);
}

void mx_begin() {
    running()->began = true;
}

void mx_sync() {
    come(AT_SYNC, nullptr, nullptr);
}

/* ---- asynchronous copies: of the thread that queued them ---- */
static void do_copy(const Copy *c) {
    if (c->from)
        memcpy(c->to, c->from, 16);
    else
        memset(c->to, 0, 16);
}

void mx_copy16_async(void *shared, const void *global, bool valid) {
    mx_emulated_aligned(shared, 16, "mx_copy16_async, shared");
    mx_emulated_aligned(global, 16, "mx_copy16_async, global");
    Fibre *f = running();
    const Copy c = {shared, valid ? global : nullptr, f->groups};
    const mx_emulation_order order = worker->launch->order;
    if (order == MX_EMULATION_DOWN || (order == MX_EMULATION_RANDOM && worker->random.next(2)))
        do_copy(&c);
    else
        f->copies.push_back(c);
}

void mx_copy_commit() {
    running()->groups++;
}

void mx_emulated_copy_wait(int newest) {
    Fibre *f = running();
    size_t n = 0;
    while (n < f->copies.size() && f->copies[n].group < f->groups - newest) do_copy(&f->copies[n++]);
    f->copies.erase(f->copies.begin(), f->copies.begin() + (ptrdiff_t)n);
}

void mx_emulated_run(const char *name, dim3 grid, int threads, size_t shared, const std::function<void()> &body) {
    static std::mutex one; /* launch at a time */
    static uint64_t launches;
    if (mx_emulated_now) mx_emulated_fail("launches a kernel");
    std::lock_guard<std::mutex> hold_launches(one);
    const mx_emulation_order order = order_wanted();
    Launch l = {name, grid, threads, shared, &body, order, ++launches, (uint64_t)grid.x * grid.y * grid.z, 0};
    Pool *p = l.blocks > 1 ? pool() : nullptr;
    if (p && p->helpers > 0) {
        std::lock_guard<std::mutex> hold(p->lock);
        p->launch = &l;
        p->busy = p->helpers;
        p->turn++;
        p->wake.notify_all();
    }
    run_blocks(&l);
    if (p) {
        std::unique_lock<std::mutex> hold(p->lock);
        p->done.wait(hold, [&] { return p->busy == 0; });
    }
}
