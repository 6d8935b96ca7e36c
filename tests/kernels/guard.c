#include "guard.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "support.h"

enum {
    MAX_REGIONS = 64,
    GUARD = 1 << 16, /* bytes on either side that may not be touched; a multiple of every page size */
    CANARY = 0xa5,   /* what lies between a buffer and its guard */
};

typedef struct region {
    uint8_t *map, *open, *data; /* open: [open_bytes] that may be touched, around data: [bytes] */
    size_t map_bytes, open_bytes, bytes;
    const char *what;
} region;

static region regions[MAX_REGIONS];
static int region_count;
static char name[256];
static rng sides; /* where a buffer lies between its guards */

const char *case_name(void) {
    return name;
}

/* Where `at` is, seen from the buffer whose guards it lies in. */
static void describe(char *out, size_t size, const uint8_t *at) {
    for (int i = 0; i < region_count; i++) {
        const region *r = &regions[i];
        if (at < r->map || at >= r->map + r->map_bytes) continue;
        long long offset = at - r->data;
        if (offset < 0) {
            snprintf(out, size, "%lld bytes before %s", -offset, r->what);
        } else {
            snprintf(out, size, "byte %lld of %s, which has %zu", offset, r->what, r->bytes);
        }
        return;
    }
    snprintf(out, size, "address %p, in no buffer of the test", (const void *)at);
}

/* The process is lost: the names are all that is wanted of it. */
static void crashed(int signal_number, siginfo_t *info, void *context) {
    (void)context;
    char where[160] = "", text[512];
    if (signal_number == SIGSEGV || signal_number == SIGBUS) describe(where, sizeof where, info->si_addr);
    int n = snprintf(text, sizeof text, "\ncheckasm: crashed (%s) in: %s%s%s\n", strsignal(signal_number), name,
                     *where ? ": touched " : "", where);
    if (write(STDERR_FILENO, text, (size_t)n) < 0) _exit(2);
    _exit(1);
}

static void give_back(int first) {
    for (int i = first; i < region_count; i++) munmap(regions[i].map, regions[i].map_bytes);
    region_count = first;
}

void case_begin(const char *format, ...) {
    static const int fatal[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    struct sigaction action = {.sa_sigaction = crashed, .sa_flags = SA_SIGINFO};
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    give_back(0);
    if (!sides.state) sides = rng_seeded(100);
    for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++) { /* cmocka has set its own */
        assert_int_equal(sigaction(fatal[i], &action, NULL), 0);
    }
}

void case_rename(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
}

static bool intact(const uint8_t *begin, const uint8_t *end) {
    while (begin < end && *begin == CANARY) begin++;
    return begin == end;
}

int case_mark(void) {
    return region_count;
}

void case_release(int mark) {
    for (int i = mark; i < region_count; i++) {
        const region *r = &regions[i];
        if (!intact(r->open, r->data)) fail_msg("%s: written before %s", name, r->what);
        if (!intact(r->data + r->bytes, r->open + r->open_bytes)) fail_msg("%s: written behind %s", name, r->what);
    }
    give_back(mark);
}

void case_end(void) {
    case_release(0);
    *name = '\0';
}

void *guarded(int64_t bytes, int alignment, const char *what) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), size = (size_t)bytes, step = (size_t)alignment;
    assert_true(region_count < MAX_REGIONS);
    region r = {.what = what, .bytes = size, .open_bytes = (size + page - 1) / page * page};
    r.map_bytes = r.open_bytes + 2 * GUARD;
    r.map = mmap(NULL, r.map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_true(r.map != MAP_FAILED);
    r.open = r.map + GUARD;
    if (size) assert_int_equal(mprotect(r.open, r.open_bytes, PROT_READ | PROT_WRITE), 0);
    bool at_start = rng_below(&sides, 4) == 0;
    r.data = at_start ? r.open : r.open + (r.open_bytes - size) / step * step;
    memset(r.open, CANARY, (size_t)(r.data - r.open));
    memset(r.data, 0xff, size);
    memset(r.data + size, CANARY, (size_t)(r.open + r.open_bytes - r.data) - size);
    regions[region_count++] = r;
    return r.data;
}

float *guarded_floats(int64_t n, const char *what) {
    return guarded(n * (int64_t)sizeof(float), 64, what);
}

float *guarded_row(int64_t n, const char *what) {
    return guarded(n * (int64_t)sizeof(float), sizeof(float), what);
}
