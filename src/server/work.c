/* Answers at work: from a request to the engine, and from its events through a form to the client. */
#include <math.h>
#include <stdlib.h>

#include "base/cpu.h"
#include "server/private.h"

/* A piece that waits until its token's logprobs are there. */
typedef struct held_piece {
    mx_piece piece; /* .text and .name are offsets in `text` until they are told */
    size_t text, name;
    bool named;
} held_piece;

struct mx_job {
    mx_work work;
    mx_exchange *exchange; /* a reference */
    const mx_form *form;
    double *last_token; /* [work.count]: mx_seconds(); 0: none yet */
    int submitted, ended;
    bool failed;  /* it has got its error; what the engine still says does not matter */
    bool touched; /* something was appended in this round */
    mx_job *next_touched;
    mx_job *before, *next; /* in server->jobs */
    held_piece *held;      /* [held_count] */
    int held_count, held_capacity;
    mx_bytes held_text;
};

/* ---- life -------------------------------------------------------------------------------------------------------- */
static void list_job(mx_server *s, mx_job *job) {
    pthread_mutex_lock(&s->jobs_lock);
    job->next = s->jobs;
    if (s->jobs) s->jobs->before = job;
    s->jobs = job;
    pthread_mutex_unlock(&s->jobs_lock);
}

static void unlist_job(mx_server *s, mx_job *job) {
    pthread_mutex_lock(&s->jobs_lock);
    if (job->before)
        job->before->next = job->next;
    else
        s->jobs = job->next;
    if (job->next) job->next->before = job->before;
    pthread_mutex_unlock(&s->jobs_lock);
}

/* Of a job that is in no list. */
static void free_job(mx_job *job) {
    mx_work *w = &job->work;
    for (int i = 0; w->answers && i < w->count; i++) mx_api_answer_free(&w->answers[i]);
    free(w->answers);
    mx_api_request_free(&w->request);
    if (job->form->free && w->state) job->form->free(w->state);
    free(job->last_token);
    free(job->held);
    mx_bytes_free(&job->held_text);
    free(job);
}

/* ---- with exchange->lock held ------------------------------------------------------------------------------------ */
void mx_job_cancel(mx_job *job) {
    for (int i = 0; i < job->submitted; i++) {
        mx_api_answer *a = &job->work.answers[i];
        if (a->ended || a->cancelled) continue;
        a->cancelled = true;
        mx_cancel(job->exchange->server->engine, a->handle);
    }
}

bool mx_job_keep_alive(mx_job *job, mx_bytes *out) {
    return job->form->keep_alive && mx_bytes_add_string(out, job->form->keep_alive);
}

static void fail_job(mx_job *job, const mx_api_problem *problem) {
    mx_exchange *x = job->exchange;
    if (job->failed) return;
    job->failed = true;
    mx_job_cancel(job);
    if (x->gone) return;
    if (!job->work.stream)
        mx_exchange_set_problem(x, problem);
    else if (!job->form->broken || !job->form->broken(&job->work, problem, &x->out))
        mx_exchange_cut(x); /* not even that can be said: the stream has no proper end */
    x->state = MX_STATE_ENDED;
}

static void fail_memory(mx_job *job) {
    mx_api_problem problem;
    fail_job(job, mx_problem_set(&problem, 500, "server_error", "no memory for the answer"));
}

/* ---- pieces ------------------------------------------------------------------------------------------------------ */
static bool tell_piece(void *answer, const mx_piece *piece) {
    mx_api_answer *a = answer;
    mx_job *job = a->owner;
    if (job->failed || job->exchange->gone) return false;
    if (!job->form->piece(&job->work, a, piece, &job->exchange->out)) fail_memory(job);
    return !job->failed;
}

/* With logprobs: the token that a piece is of is kept only after mx_turn_push. */
static bool hold_piece(void *answer, const mx_piece *piece) {
    mx_api_answer *a = answer;
    mx_job *job = a->owner;
    if (job->failed || job->exchange->gone) return false;
    if (job->held_count == job->held_capacity) {
        held_piece *more = realloc(job->held, sizeof *more * (size_t)(job->held_capacity + 8));
        if (!more) {
            fail_memory(job);
            return false;
        }
        job->held = more;
        job->held_capacity += 8;
    }
    held_piece h = {.piece = *piece, .text = job->held_text.size, .named = piece->name != NULL};
    bool ok = mx_bytes_add(&job->held_text, piece->size ? piece->text : "", piece->size) &&
              mx_bytes_add(&job->held_text, "", 1);
    h.name = job->held_text.size;
    if (piece->name) ok = ok && mx_bytes_add(&job->held_text, piece->name, strlen(piece->name) + 1);
    if (!ok) {
        fail_memory(job);
        return false;
    }
    job->held[job->held_count++] = h;
    return true;
}

static void tell_held(mx_job *job, mx_api_answer *a) {
    for (int i = 0; i < job->held_count && !job->failed; i++) {
        held_piece *h = &job->held[i];
        h->piece.text = job->held_text.data + h->text;
        h->piece.name = h->named ? job->held_text.data + h->name : NULL;
        tell_piece(a, &h->piece);
    }
    job->held_count = 0;
    mx_bytes_clear(&job->held_text);
}

/* ---- submitting -------------------------------------------------------------------------------------------------- */
/* Answers that may be at work: those that run and those that wait. */
static int room(const mx_server *s) {
    return s->parts.info.max_running + s->options.queue;
}

int mx_work_retry_after(mx_server *s) {
    const double seconds = ceil(atomic_load(&s->retry_interval) * (double)(s->options.queue / 2 + 1));
    return seconds < 1 ? 1 : seconds > 60 ? 60 : (int)seconds;
}

/* Takes `count` places. false: there are not so many, or the server ends. */
static bool reserve(mx_server *s, int count, mx_api_problem *problem) {
    const int most = room(s);
    if (atomic_load(&s->stopping)) {
        mx_problem_set(problem, 503, "server_stopping", "the server is stopping");
        return false;
    }
    if (count > most) {
        mx_api_wrong(problem, NULL, "invalid_value",
                     "the request asks for %d answers, this server makes at most %d at once", count, most);
        return false;
    }
    if (atomic_fetch_add(&s->at_work, count) + count <= most) return true;
    atomic_fetch_sub(&s->at_work, count);
    mx_problem_set(problem, 429, "queue_full",
                   "the server is busy: %d answers run or wait, and no more are taken; try again later", most);
    return false;
}

/* Without exchange->lock: constraints take time. */
static mx_status make_answers(mx_job *job, mx_error *error) {
    mx_work *w = &job->work;
    const mx_api_request *r = &w->request;
    bool (*piece)(void *, const mx_piece *) = !w->stream ? NULL : r->logprobs >= 0 ? hold_piece : tell_piece;
    mx_status status = MX_OK;
    for (int i = 0; i < w->count && !status; i++) {
        mx_api_answer *a = &w->answers[i];
        *a = (mx_api_answer){.owner = job, .prompt = i / r->best_of, .index = i % r->best_of};
        status = mx_api_answer_init(a, &w->parts->settings, r, piece, error);
    }
    return status;
}

static mx_status submit_one(mx_job *job, mx_api_answer *a, mx_error *error) {
    mx_server *s = job->exchange->server;
    mx_request asked = mx_api_answer_request(a, &s->parts.settings, &job->work.request);
    if (asked.deadline > 0) {
        const double left = asked.deadline - (mx_seconds() - job->work.started);
        asked.deadline = left > 1e-6 ? left : 1e-6;
    }
    return mx_submit(s->engine, &asked, &a->handle, error);
}

/* Where one is refused the others are cancelled. */
static mx_status submit(mx_job *job, mx_error *error) {
    mx_work *w = &job->work;
    mx_status status = MX_OK;
    for (int i = 0; i < w->count && !status; i++) {
        status = submit_one(job, &w->answers[i], error);
        job->submitted += !status;
    }
    return status;
}

static void refused(mx_job *job, mx_status status, const mx_error *error) {
    mx_api_problem problem;
    const char *param = job->work.request.prompts_field;
    if (status == MX_CONTEXT_FULL)
        mx_api_wrong(&problem, param, "context_length_exceeded", "%s", error->text);
    else if (status == MX_INVALID_ARGUMENT || status == MX_UNSUPPORTED)
        mx_api_wrong(&problem, NULL, "invalid_value", "%s", error->text);
    else
        mx_problem_set(&problem, 500, "server_error", "%s", error->text);
    job->work.stream = false; /* none has begun: the reply is an ordinary error */
    fail_job(job, &problem);
    atomic_fetch_sub(&job->exchange->server->at_work, job->work.count - job->submitted);
}

/* Takes request and state over. NULL: no memory, both are freed. */
static mx_job *create_job(mx_exchange *x, mx_api_request *request, bool stream, const mx_form *form, void *state) {
    const int count = request->prompt_count * request->best_of;
    mx_job *job = calloc(1, sizeof *job);
    if (!job) {
        mx_api_request_free(request);
        if (form->free && state) form->free(state);
        *request = (mx_api_request){0};
        return NULL;
    }
    job->form = form;
    job->exchange = x;
    job->work = (mx_work){.parts = &x->server->parts,
                          .request = *request,
                          .count = count,
                          .id = x->id,
                          .created = x->created,
                          .started = x->started,
                          .stream = stream,
                          .state = state};
    *request = (mx_api_request){0};
    job->work.answers = calloc((size_t)count + 1, sizeof *job->work.answers);
    job->last_token = calloc((size_t)count + 1, sizeof *job->last_token);
    if (job->work.answers && job->last_token) return job;
    free_job(job);
    return NULL;
}

/* With exchange->lock held, so that events wait until all of it is there. `status`: of the answers, in `error`. Returns
 * whether the engine has some of it. */
static bool begin(mx_exchange *x, mx_job *job, mx_status status, mx_error *error) {
    x->job = job; /* from here on it is cut when the client hangs up */
    if (atomic_load(&x->slot->hung_up)) mx_exchange_cut(x);
    job->failed |= x->gone;
    if (job->failed)
        status = MX_OK;
    else if (!status)
        status = submit(job, error);
    if (status) {
        refused(job, status, error);
    } else if (!job->failed && job->work.stream) {
        x->state = MX_STATE_STREAM;
        x->streams = true;
        x->status = 200;
        x->type = job->form->stream_type;
        if (job->form->begin && !job->form->begin(&job->work, &x->out)) fail_memory(job);
    }
    if (job->failed && !status) atomic_fetch_sub(&x->server->at_work, job->work.count - job->submitted);
    if (!job->submitted) x->job = NULL;
    return job->submitted > 0;
}

void mx_exchange_work(mx_exchange *x, mx_api_request *request, bool stream, const mx_form *form, void *state) {
    mx_error error;
    if (!request->problem.http_status && request->beyond)
        mx_api_check_room(request, x->server->parts.settings.setup.context);
    mx_api_problem problem = request->problem;
    if (!x->server->options.allow_priority && request->priority > 0)
        request->priority = 0; /* behind others it may go */
    if (!problem.http_status && request->prompt_count < 1)
        mx_problem_set(&problem, 500, "server_error", "a request without a prompt");
    const int count = problem.http_status ? 0 : request->prompt_count * request->best_of;
    if (problem.http_status || !reserve(x->server, count, &problem)) {
        mx_exchange_refuse(x, &problem);
        mx_api_request_free(request);
        if (form->free && state) form->free(state);
        *request = (mx_api_request){0};
        return;
    }
    mx_job *job = create_job(x, request, stream, form, state);
    if (!job) {
        atomic_fetch_sub(&x->server->at_work, count);
        mx_fail(&error, MX_NO_MEMORY, "no memory for a request");
        mx_exchange_fail(x, &error);
        return;
    }
    mx_exchange_keep(x);
    const mx_status status = make_answers(job, &error);
    list_job(x->server, job);
    pthread_mutex_lock(&x->lock);
    const bool begun = begin(x, job, status, &error);
    pthread_mutex_unlock(&x->lock);
    if (begun) return;
    unlist_job(x->server, job);
    free_job(job);
    mx_exchange_drop(x);
}

/* ---- events ------------------------------------------------------------------------------------------------------ */
static void take_token(mx_job *job, mx_api_answer *a, double now) {
    double *last = &job->last_token[a - job->work.answers];
    mx_metrics *m = job->exchange->server->metrics;
    if (*last > 0)
        mx_metrics_observe(m, MX_MEASURE_NEXT_TOKEN, now - *last);
    else
        mx_metrics_observe(m, MX_MEASURE_FIRST_TOKEN, now - job->work.started);
    *last = now;
    mx_metrics_count_tokens(m, 1);
}

/* How long until there is room for one more: the time between the ends of answers while there was work, the last ones
 * weighing most. */
static void take_end(mx_server *s, double now) {
    const bool more = atomic_fetch_sub(&s->at_work, 1) > 1;
    if (s->last_finish > 0) {
        const double interval = now - s->last_finish;
        s->finish_interval += (interval - s->finish_interval) * (s->finish_interval > 0 ? 0.1 : 1);
        atomic_store(&s->retry_interval, s->finish_interval);
    }
    s->last_finish = more ? now : 0;
}

static void end_answer(mx_job *job, mx_api_answer *a) {
    mx_server *s = job->exchange->server;
    const bool whole = mx_turn_get_result(a->turn)->finish != MX_TURN_CANCELLED;
    if (whole && s->parts.replay && mx_turn_parser(a->turn))
        mx_replay_keep(s->parts.replay, job->work.id, a->index, &job->work.request.prompts[a->prompt], a->turn);
    if (job->work.stream && job->form->ended && !job->form->ended(&job->work, a, &job->exchange->out)) fail_memory(job);
}

static void end_job(mx_job *job) {
    mx_exchange *x = job->exchange;
    if (job->failed || x->gone) return;
    if (!job->form->finish(&job->work, &x->out)) {
        if (!job->work.stream) mx_bytes_clear(&x->out);
        fail_memory(job);
        return;
    }
    if (!job->work.stream) {
        x->status = 200;
        x->type = "application/json";
    }
    x->state = MX_STATE_ENDED;
}

static void take_for_client(mx_job *job, mx_api_answer *a, const mx_event *e) {
    mx_api_problem problem;
    mx_error error;
    const mx_status status = mx_api_answer_take(a, &job->work.parts->settings, &job->work.request, e, &error);
    if (status && !job->failed) fail_job(job, mx_problem_set(&problem, 500, "server_error", "%s", error.text));
    tell_held(job, a);
    if (job->failed) return;
    if (a->ended) {
        end_answer(job, a);
    } else if (!a->cancelled && mx_turn_over(a->turn)) {
        a->cancelled = true;
        mx_cancel(job->exchange->server->engine, a->handle);
    }
}

static void take(mx_job *job, const mx_event *e, double now) {
    mx_api_answer *a = e->user;
    mx_api_problem problem;
    mx_server *s = job->exchange->server;
    const bool last = e->type == MX_EVENT_FINISHED || e->type == MX_EVENT_FAILED;
    if (e->type == MX_EVENT_TOKEN) take_token(job, a, now);
    if (e->type == MX_EVENT_FAILED)
        fail_job(job, mx_problem_set(&problem, 500, "server_error", "%s", e->error.text));
    else if (!job->failed && !job->exchange->gone)
        take_for_client(job, a, e);
    if (!last) return;
    a->ended = true;
    if (e->type == MX_EVENT_FINISHED) mx_metrics_count_answer(s->metrics, &e->usage);
    take_end(s, now);
    job->ended++;
    if (job->ended == job->submitted) end_job(job);
}

/* Hands on what was appended. Returns whether the job is over. */
static bool flush(mx_job *job) {
    mx_exchange *x = job->exchange;
    pthread_mutex_lock(&x->lock);
    job->touched = false;
    const bool over = job->ended == job->submitted;
    if (x->out.size - x->taken > x->server->options.backlog_bytes && job->work.stream)
        mx_exchange_cut(x); /* its client does not read */
    if (x->out.size > x->taken || x->state == MX_STATE_ENDED || x->gone) mx_exchange_wake(x);
    if (over) x->job = NULL;
    pthread_mutex_unlock(&x->lock);
    return over;
}

void mx_work_take(mx_server *s) {
    enum { EVENTS = 64 };
    mx_event events[EVENTS];
    mx_job *touched = NULL, *next;
    const double now = mx_seconds();
    int count;
    while ((count = mx_poll(s->engine, events, EVENTS)) > 0) {
        for (int i = 0; i < count; i++) {
            mx_job *job = ((mx_api_answer *)events[i].user)->owner;
            pthread_mutex_lock(&job->exchange->lock);
            take(job, &events[i], now);
            pthread_mutex_unlock(&job->exchange->lock);
            if (job->touched) continue;
            job->touched = true;
            job->next_touched = touched;
            touched = job;
        }
    }
    for (mx_job *job = touched; job; job = next) {
        next = job->next_touched;
        if (!flush(job)) continue;
        mx_exchange *x = job->exchange;
        unlist_job(s, job);
        free_job(job);
        mx_exchange_drop(x);
    }
}

/* ---- the end ----------------------------------------------------------------------------------------------------- */
void mx_work_fail_all(mx_server *s, const mx_api_problem *problem) {
    pthread_mutex_lock(&s->jobs_lock);
    for (mx_job *job = s->jobs; job; job = job->next) {
        mx_exchange *x = job->exchange;
        pthread_mutex_lock(&x->lock);
        fail_job(job, problem);
        mx_exchange_wake(x);
        pthread_mutex_unlock(&x->lock);
    }
    pthread_mutex_unlock(&s->jobs_lock);
}

void mx_work_abandon(mx_server *s) {
    mx_job *job;
    while ((job = s->jobs)) {
        mx_exchange *x = job->exchange;
        pthread_mutex_lock(&x->lock);
        x->job = NULL;
        pthread_mutex_unlock(&x->lock);
        atomic_fetch_sub(&s->at_work, job->submitted - job->ended);
        unlist_job(s, job);
        free_job(job);
        mx_exchange_drop(x);
    }
}
