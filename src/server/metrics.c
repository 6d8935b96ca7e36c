#include "server/metrics.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Upper bounds of the buckets, seconds; above them is one more. */
enum { BOUNDS = 16 };
static const double fine[BOUNDS] = {.001, .0025, .005, .01, .02, .03, .05, .075, .1, .15, .25, .5, 1, 2.5, 5, 10};
static const double coarse[BOUNDS] = {.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600};

static const struct measure {
    const char *name, *help;
    const double *bounds;
} measures[MX_MEASURES] = {
    [MX_MEASURE_FIRST_TOKEN] = {"mxrun_time_to_first_token_seconds",
                                "From a request to the first token of each of its answers.", coarse},
    [MX_MEASURE_NEXT_TOKEN] = {"mxrun_time_per_output_token_seconds", "From one token of an answer to the next.", fine},
    [MX_MEASURE_REQUEST] = {"mxrun_request_duration_seconds", "From a request's first line to the end of the reply.",
                            coarse},
    [MX_MEASURE_QUEUE] = {"mxrun_queue_seconds", "From submitting an answer to its first step.", coarse},
};

typedef struct histogram {
    _Atomic uint64_t count[BOUNDS + 1];
    _Atomic uint64_t nanoseconds;
} histogram;

/* Requests of one endpoint with one status. */
typedef struct tally {
    const char *method, *path;
    int status;
    uint64_t count;
} tally;
enum { TALLIES = 512 }; /* endpoints are some dozens, statuses of each a handful; beyond it nothing is counted */

struct mx_metrics {
    histogram histogram[MX_MEASURES];
    _Atomic uint64_t prompt, cached, generated, answers, hits, cuts;
    pthread_mutex_t lock;
    tally tally[TALLIES];
    int tallies;
};

mx_metrics *mx_metrics_create(void) {
    mx_metrics *m = calloc(1, sizeof *m);
    if (m && pthread_mutex_init(&m->lock, NULL)) {
        free(m);
        return NULL;
    }
    return m;
}

void mx_metrics_free(mx_metrics *m) {
    if (!m) return;
    pthread_mutex_destroy(&m->lock);
    free(m);
}

/* ---- counting ---------------------------------------------------------------------------------------------------- */
static void add(_Atomic uint64_t *counter, uint64_t n) {
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static uint64_t get(_Atomic uint64_t *counter) {
    return atomic_load_explicit(counter, memory_order_relaxed);
}

void mx_metrics_observe(mx_metrics *m, mx_measure what, double seconds) {
    int i = 0;
    if (!(seconds > 0)) seconds = 0;
    while (i < BOUNDS && seconds > measures[what].bounds[i]) i++;
    add(&m->histogram[what].count[i], 1);
    add(&m->histogram[what].nanoseconds, (uint64_t)(seconds * 1e9));
}

void mx_metrics_count_request(mx_metrics *m, const char *method, const char *path, int status) {
    pthread_mutex_lock(&m->lock);
    int i = 0;
    while (i < m->tallies && (m->tally[i].method != method || m->tally[i].path != path || m->tally[i].status != status))
        i++;
    if (i < TALLIES) {
        if (i == m->tallies) m->tally[m->tallies++] = (tally){method, path, status, 0};
        m->tally[i].count++;
    }
    pthread_mutex_unlock(&m->lock);
}

void mx_metrics_count_tokens(mx_metrics *m, int64_t generated) {
    add(&m->generated, (uint64_t)generated);
}

void mx_metrics_count_answer(mx_metrics *m, const struct mx_usage *usage) {
    add(&m->answers, 1);
    add(&m->prompt, (uint64_t)usage->prompt_tokens);
    add(&m->cached, (uint64_t)usage->cached_tokens);
    add(&m->hits, usage->cached_tokens > 0);
    mx_metrics_observe(m, MX_MEASURE_QUEUE, usage->queue_seconds);
}

void mx_metrics_count_cut(mx_metrics *m) {
    add(&m->cuts, 1);
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */
/* HELP, TYPE and the value of what has no labels. */
static bool put(mx_bytes *out, const char *name, const char *type, const char *help, double value) {
    return mx_bytes_addf(out, "# HELP %s %s\n# TYPE %s %s\n%s %.17g\n", name, help, name, type, name, value);
}

static bool put_histogram(mx_bytes *out, const struct measure *what, histogram *h) {
    uint64_t sum = 0;
    bool ok = mx_bytes_addf(out, "# HELP %s %s\n# TYPE %s histogram\n", what->name, what->help, what->name);
    for (int i = 0; i < BOUNDS; i++) {
        sum += get(&h->count[i]);
        ok = ok &&
             mx_bytes_addf(out, "%s_bucket{le=\"%g\"} %llu\n", what->name, what->bounds[i], (unsigned long long)sum);
    }
    sum += get(&h->count[BOUNDS]);
    return ok && mx_bytes_addf(out, "%s_bucket{le=\"+Inf\"} %llu\n%s_sum %.9g\n%s_count %llu\n", what->name,
                               (unsigned long long)sum, what->name, 1e-9 * (double)get(&h->nanoseconds), what->name,
                               (unsigned long long)sum);
}

static bool put_requests(mx_bytes *out, mx_metrics *m) {
    bool ok = mx_bytes_add_string(out, "# HELP mxrun_requests_total HTTP requests by endpoint and status; 499: the "
                                       "client went away.\n# TYPE mxrun_requests_total counter\n");
    pthread_mutex_lock(&m->lock);
    for (int i = 0; i < m->tallies; i++) {
        const tally *t = &m->tally[i];
        ok = ok && mx_bytes_addf(out, "mxrun_requests_total{method=\"%s\",endpoint=\"%s\",status=\"%d\"} %llu\n",
                                 t->method, t->path ? t->path : "", t->status, (unsigned long long)t->count);
    }
    pthread_mutex_unlock(&m->lock);
    return ok;
}

/* Bytes; 0: not known. */
static double resident(void) {
    long long all, pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f) return 0;
    if (fscanf(f, "%lld %lld", &all, &pages) != 2) pages = 0;
    fclose(f);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

static bool put_engine(mx_bytes *out, mx_engine *engine) {
    const mx_engine_stats s = mx_engine_get_stats(engine);
    const mx_engine_info info = mx_engine_get_info(engine);
    return put(out, "mxrun_answers_running", "gauge", "Answers that the engine computes.", s.running) &&
           put(out, "mxrun_answers_waiting", "gauge", "Answers that wait for the engine: the queue.", s.waiting) &&
           put(out, "mxrun_kv_bytes", "gauge", "Memory for keys and values at most.", (double)info.kv_bytes) &&
           put(out, "mxrun_kv_bytes_used", "gauge", "Of it, held now, by answers or by the cache.",
               (double)info.kv_bytes_used) &&
           put(out, "mxrun_kv_bytes_cached", "gauge", "Of it, held by the cache alone.", (double)s.kv_bytes_cached) &&
           put(out, "mxrun_steps_total", "counter", "Forward passes.", (double)s.steps) &&
           put(out, "mxrun_computed_rows_total", "counter", "Tokens that went through the model.",
               (double)s.computed_rows) &&
           put(out, "mxrun_drafted_tokens_total", "counter", "Tokens guessed ahead.", (double)s.drafted_tokens) &&
           put(out, "mxrun_accepted_tokens_total", "counter", "Of them, right.", (double)s.accepted_tokens) &&
           put(out, "mxrun_set_back_total", "counter", "Times that an answer had to wait again.", (double)s.set_back) &&
           put(out, "mxrun_step_seconds_total", "counter", "Time in steps.", s.step_seconds);
}

static bool put_answers(mx_bytes *out, mx_metrics *m) {
    return put(out, "mxrun_answers_total", "counter", "Answers that ended.", (double)get(&m->answers)) &&
           put(out, "mxrun_prompt_tokens_total", "counter", "Tokens of the prompts of answers that ended.",
               (double)get(&m->prompt)) &&
           put(out, "mxrun_cached_tokens_total", "counter", "Of them, not computed again.", (double)get(&m->cached)) &&
           put(out, "mxrun_cache_hits_total", "counter", "Answers whose prompt was not all computed.",
               (double)get(&m->hits)) &&
           put(out, "mxrun_generated_tokens_total", "counter", "Tokens of answers.", (double)get(&m->generated)) &&
           put(out, "mxrun_clients_gone_total", "counter",
               "Clients that went away, or were cut off, while they were answered.", (double)get(&m->cuts));
}

/* A label's value, as Prometheus' text format has it. */
static bool put_label(mx_bytes *out, const char *text) {
    bool ok = mx_bytes_add_string(out, "\"");
    for (; *text; text++) {
        const char *escaped = *text == '\n' ? "\\n" : *text == '"' ? "\\\"" : *text == '\\' ? "\\\\" : NULL;
        ok = ok && (escaped ? mx_bytes_add_string(out, escaped) : mx_bytes_add(out, text, 1));
    }
    return ok && mx_bytes_add_string(out, "\"");
}

static bool put_info(mx_bytes *out, const char *model) {
    return mx_bytes_addf(out,
                         "# HELP mxrun_info The program and its model.\n# TYPE mxrun_info gauge\nmxrun_info{version=\""
                         "%s\",model=",
                         MX_VERSION) &&
           put_label(out, model) && mx_bytes_add_string(out, "} 1\n");
}

bool mx_metrics_write(mx_metrics *m, mx_engine *engine, const mx_metrics_now *now, mx_bytes *out) {
    bool ok = put_info(out, now->model) && put_requests(out, m) && put_answers(out, m) && put_engine(out, engine);
    for (int i = 0; i < MX_MEASURES; i++) ok = ok && put_histogram(out, &measures[i], &m->histogram[i]);
    return ok && put(out, "mxrun_connections", "gauge", "Clients that are connected.", now->connections) &&
           put(out, "mxrun_requests_open", "gauge", "Requests that are being answered.", now->busy) &&
           put(out, "process_resident_memory_bytes", "gauge", "Resident memory.", resident());
}
