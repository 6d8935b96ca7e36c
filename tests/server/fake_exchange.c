#include "fake_exchange.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct mx_exchange {
    const mx_server_parts *parts;
    const fake_request *request;
    fake_reply *reply;
    mx_bytes body;
    mx_json_document *json;
    char id[33];
    bool replied;
    /* at work */
    mx_work work;
    const mx_form *form;
    bool lost; /* a form had no memory */
};

void fake_reply_free(fake_reply *reply) {
    mx_bytes_free(&reply->body);
    mx_bytes_free(&reply->prompt);
    *reply = (fake_reply){0};
}

/* ---- the request ------------------------------------------------------------------------------------------------- */
const mx_server_parts *mx_exchange_parts(const mx_exchange *x) {
    return x->parts;
}

const char *mx_exchange_path(const mx_exchange *x) {
    return x->request->path;
}

const char *mx_exchange_variable(const mx_exchange *x) {
    return x->request->variable;
}

const char *mx_exchange_header(const mx_exchange *x, const char *name) {
    (void)x, (void)name;
    return NULL;
}

const char *mx_exchange_query(const mx_exchange *x, const char *name) {
    (void)x, (void)name;
    return NULL;
}

const mx_bytes *mx_exchange_body(const mx_exchange *x) {
    return &x->body;
}

const mx_json *mx_exchange_json(mx_exchange *x) {
    mx_error error;
    mx_api_problem problem = {0};
    if (x->json) return mx_json_root(x->json);
    if (mx_json_parse("request", x->body.data, x->body.size, &x->json, &error) == MX_OK) {
        if (mx_json_root(x->json)->type == MX_JSON_OBJECT) return mx_json_root(x->json);
        mx_fail(&error, MX_INVALID_ARGUMENT, "the body is no JSON object");
    }
    mx_api_wrong(&problem, NULL, "invalid_json", "%s", error.text);
    mx_exchange_refuse(x, &problem);
    return NULL;
}

const char *mx_exchange_id(const mx_exchange *x) {
    return x->id;
}

int64_t mx_exchange_created(const mx_exchange *x) {
    (void)x;
    return 1764201600;
}

/* ---- the reply --------------------------------------------------------------------------------------------------- */
void mx_exchange_add_header(mx_exchange *x, const char *name, const char *value) {
    (void)x, (void)name, (void)value;
}

void mx_exchange_reply(mx_exchange *x, int http_status, const char *content_type, mx_bytes *body) {
    assert(!x->replied && http_status >= 200 && http_status < 600);
    x->replied = true;
    x->reply->status = http_status;
    snprintf(x->reply->type, sizeof x->reply->type, "%s", content_type ? content_type : "");
    mx_bytes_free(&x->reply->body);
    x->reply->body = *body;
    *body = (mx_bytes){0};
}

void mx_exchange_refuse(mx_exchange *x, const mx_api_problem *problem) {
    mx_bytes body = {0};
    assert(problem->http_status >= 400 && problem->code);
    if (!x->request->endpoint->problem(&body, problem)) abort();
    mx_exchange_reply(x, problem->http_status, "application/json", &body);
}

void mx_exchange_fail(mx_exchange *x, const mx_error *error) {
    mx_api_problem problem;
    const bool theirs = error->status == MX_CONTEXT_FULL || error->status == MX_INVALID_ARGUMENT;
    mx_api_wrong(&problem, NULL, theirs ? "invalid_value" : "server_error", "%s", error->text);
    problem.http_status = theirs ? 400 : 500;
    mx_exchange_refuse(x, &problem);
}

/* ---- answers ----------------------------------------------------------------------------------------------------- */
static bool hear(void *user, const mx_piece *piece) {
    mx_api_answer *a = user;
    mx_exchange *x = a->owner;
    if (x->work.stream) x->lost |= !x->form->piece(&x->work, a, piece, &x->reply->body);
    return true;
}

static mx_status answer(mx_exchange *x, mx_api_answer *a, mx_error *error) {
    const mx_api_settings *settings = &x->parts->settings;
    const mx_api_request *request = &x->work.request;
    static const mx_alternative top[] = {{.token = 1, .logprob = -0.5f}, {.token = 2, .logprob = -1.5f}};
    mx_status status = mx_api_answer_init(a, settings, request, hear, error);
    for (int i = 0; i < x->request->count && !status && !mx_turn_over(a->turn); i++) {
        const mx_event event = {.type = MX_EVENT_TOKEN,
                                .token = x->request->tokens[i],
                                .logprob = -1,
                                .top = top,
                                .top_count = request->logprobs > 2   ? 2
                                             : request->logprobs > 0 ? request->logprobs
                                                                     : 0};
        status = mx_api_answer_take(a, settings, request, &event, error);
    }
    if (status || x->request->fails) return status;
    const mx_event end = {
        .type = MX_EVENT_FINISHED,
        .finish = x->request->finish,
        .usage = {.prompt_tokens = request->prompts[a->prompt].count, .generated_tokens = x->request->count}};
    status = mx_api_answer_take(a, settings, request, &end, error);
    if (!status && x->work.stream && x->form->ended) x->lost |= !x->form->ended(&x->work, a, &x->reply->body);
    if (!status && x->parts->replay && request->chat)
        mx_replay_keep(x->parts->replay, x->id, a->index, &request->prompts[a->prompt], a->turn);
    return status;
}

static void end(mx_exchange *x) {
    mx_api_problem problem;
    mx_bytes body = {0};
    if (x->request->fails) {
        mx_api_wrong(&problem, NULL, "server_error", "the device went away");
        problem.http_status = 500;
        if (!x->work.stream)
            mx_exchange_refuse(x, &problem);
        else
            x->lost |= !x->form->broken(&x->work, &problem, &x->reply->body);
    } else if (x->work.stream) {
        x->lost |= !x->form->finish(&x->work, &x->reply->body);
    } else {
        x->lost |= !x->form->finish(&x->work, &body);
        mx_exchange_reply(x, 200, "application/json", &body);
    }
}

static void work(mx_exchange *x) {
    mx_error error;
    mx_status status = MX_OK;
    mx_work *w = &x->work;
    w->count = w->request.prompt_count * w->request.best_of;
    if (w->count > 64) w->count = 0;
    w->answers = calloc((size_t)w->count + 1, sizeof *w->answers);
    if (!w->answers) abort();
    if (w->stream) {
        x->replied = true;
        x->reply->status = 200;
        snprintf(x->reply->type, sizeof x->reply->type, "%s", x->form->stream_type);
        if (x->form->begin) x->lost |= !x->form->begin(w, &x->reply->body);
    }
    for (int i = 0; i < w->count && !status; i++) {
        w->answers[i] = (mx_api_answer){.owner = x, .prompt = i / w->request.best_of, .index = i % w->request.best_of};
        status = answer(x, &w->answers[i], &error);
    }
    if (status) abort(); /* none of ours fails but for memory */
    if (w->count) end(x);
    for (int i = 0; i < w->count; i++) mx_api_answer_free(&w->answers[i]);
    free(w->answers);
}

void mx_exchange_work(mx_exchange *x, mx_api_request *request, bool stream, const mx_form *form, void *state) {
    x->reply->worked = true;
    x->form = form;
    x->work = (mx_work){.parts = x->parts,
                        .request = *request,
                        .id = x->id,
                        .created = mx_exchange_created(x),
                        .stream = stream,
                        .state = state};
    if (request->problem.http_status) {
        mx_exchange_refuse(x, &request->problem);
    } else {
        const mx_ids *prompt = &request->prompts[0];
        if (!mx_bytes_add(&x->reply->prompt, prompt->data, sizeof *prompt->data * (size_t)prompt->count)) abort();
        work(x);
    }
    mx_api_request_free(&x->work.request);
    if (form->free && state) form->free(state);
}

void fake_exchange(const mx_server_parts *parts, const fake_request *request, uint64_t number, fake_reply *reply) {
    mx_exchange x = {.parts = parts, .request = request, .reply = reply};
    *reply = (fake_reply){0};
    snprintf(x.id, sizeof x.id, "%032llx", (unsigned long long)number);
    if (!mx_bytes_add(&x.body, request->body ? request->body : "", request->size)) abort();
    request->endpoint->handle(&x);
    assert(x.replied || (x.reply->worked && x.work.count == 0));
    if (x.lost) abort();
    mx_json_free(x.json);
    mx_bytes_free(&x.body);
}
