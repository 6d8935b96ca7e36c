#include "server/responses.h"

#include <stdlib.h>
#include <string.h>

#include "server/fields.h"

static void create(mx_exchange *x) {
    const mx_json *body = mx_exchange_json(x);
    mx_error error;
    if (!body) return;
    mx_api_request request = {0};
    mx_responses_state *state = calloc(1, sizeof *state);
    mx_status status = state ? mx_responses_read(mx_exchange_parts(x), mx_exchange_id(x), body, &request, state, &error)
                             : mx_fail(&error, MX_NO_MEMORY, "no memory for a response");
    if (!status && !request.problem.http_status) {
        mx_exchange_work(x, &request, request.stream, &mx_responses_form, state);
        return;
    }
    if (status)
        mx_exchange_fail(x, &error);
    else
        mx_exchange_refuse(x, &request.problem);
    mx_api_request_free(&request);
    mx_responses_free(state);
}

/* ---- responses that are kept ------------------------------------------------------------------------------------- */
static void not_found(mx_exchange *x) {
    mx_api_problem problem;
    mx_api_wrong(&problem, "response_id", "response_not_found",
                 "Response with id '%.80s' not found: it was not stored, or is no longer kept",
                 mx_exchange_variable(x));
    problem.http_status = 404;
    mx_exchange_refuse(x, &problem);
}

static void reply(mx_exchange *x, bool written, mx_bytes *body) {
    mx_error error;
    if (written) {
        mx_exchange_reply(x, 200, "application/json", body);
        return;
    }
    mx_bytes_free(body);
    mx_fail(&error, MX_NO_MEMORY, "no memory for a reply");
    mx_exchange_fail(x, &error);
}

static void retrieve(mx_exchange *x) {
    mx_response_store *store = mx_exchange_parts(x)->responses;
    mx_stored_response *r = mx_response_store_find(store, mx_exchange_variable(x));
    mx_bytes body = {0};
    if (!r) {
        not_found(x);
        return;
    }
    const bool written = mx_bytes_add(&body, r->body.data, r->body.size);
    mx_stored_response_release(store, r);
    reply(x, written, &body);
}

static void forget(mx_exchange *x) {
    mx_bytes body = {0};
    if (!mx_response_store_delete(mx_exchange_parts(x)->responses, mx_exchange_variable(x))) {
        not_found(x);
        return;
    }
    const char *id = mx_exchange_variable(x);
    const bool written = mx_bytes_add_string(&body, "{\"id\":") && mx_bytes_add_json(&body, id, strlen(id)) &&
                         mx_bytes_add_string(&body, ",\"object\":\"response\",\"deleted\":true}");
    reply(x, written, &body);
}

/* ---- the items of a request -------------------------------------------------------------------------------------- */
static bool put_id(mx_bytes *out, const mx_json *item) {
    const mx_json *id = item ? mx_json_get(item, "id") : NULL;
    return id ? mx_json_write(out, id) : mx_bytes_add_string(out, "null");
}

/* A page of the array: as "order" (desc where nothing is said), "after" and "limit" have it. */
static bool put_page(mx_exchange *x, const mx_json *array, mx_bytes *out) {
    const char *order = mx_exchange_query(x, "order"), *after = mx_exchange_query(x, "after");
    const char *limit = mx_exchange_query(x, "limit");
    const int count = (int)array->count;
    const bool ascending = order && strcmp(order, "asc") == 0;
    int most = limit ? atoi(limit) : 20, taken = 0, i = 0;
    const mx_json **item = calloc((size_t)count + 1, sizeof *item);
    if (!item) return false;
    for (const mx_json *v = array->child; v; v = v->next, i++) item[ascending ? i : count - 1 - i] = v;
    if (most < 1 || most > 100) most = 100;
    for (i = 0; after && i < count && !mx_json_is_string(mx_json_get(item[i], "id"), after);) i++;
    const int first = after ? (i < count ? i + 1 : 0) : 0;
    bool fits = mx_bytes_add_string(out, "{\"object\":\"list\",\"data\":[");
    for (i = first; fits && i < count && taken < most; i++, taken++)
        fits = (!taken || mx_bytes_add_string(out, ",")) && mx_json_write(out, item[i]);
    fits = fits && mx_bytes_add_string(out, "],\"first_id\":") && put_id(out, taken ? item[first] : NULL) &&
           mx_bytes_add_string(out, ",\"last_id\":") && put_id(out, taken ? item[i - 1] : NULL) &&
           mx_bytes_addf(out, ",\"has_more\":%s}", i < count ? "true" : "false");
    free(item);
    return fits;
}

static void list_input(mx_exchange *x) {
    mx_response_store *store = mx_exchange_parts(x)->responses;
    mx_stored_response *r = mx_response_store_find(store, mx_exchange_variable(x));
    mx_json_document *document = NULL;
    mx_bytes body = {0};
    if (!r) {
        not_found(x);
        return;
    }
    const bool written = mx_json_parse("input", r->input.data, r->input.size, &document, NULL) == MX_OK &&
                         put_page(x, mx_json_root(document), &body);
    mx_json_free(document);
    mx_stored_response_release(store, r);
    reply(x, written, &body);
}

const mx_endpoint mx_responses_endpoints[] = {
    {"POST", "/v1/responses", create, mx_openai_problem, false},
    {"GET", "/v1/responses/{id}", retrieve, mx_openai_problem, false},
    {"DELETE", "/v1/responses/{id}", forget, mx_openai_problem, false},
    {"GET", "/v1/responses/{id}/input_items", list_input, mx_openai_problem, false},
    {0},
};
