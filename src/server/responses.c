#include "server/responses.h"

#include <stdlib.h>
#include <string.h>

#include "server/protocol.h"

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

static void refuse_query(mx_exchange *x, const char *name, const char *code, const char *what) {
    mx_api_problem problem;
    mx_api_wrong(&problem, name, code, "%s: %s", name, what);
    mx_exchange_refuse(x, &problem);
}

static void retrieve(mx_exchange *x) {
    const char *stream = mx_exchange_query(x, "stream");
    if (stream && (strcmp(stream, "true") == 0 || strcmp(stream, "1") == 0)) {
        refuse_query(x, "stream", "unsupported_value",
                     "a response that is kept is complete and not told as a stream; leave it out");
        return;
    }
    mx_response_store *store = mx_exchange_parts(x)->responses;
    mx_stored_response *r = mx_response_store_find(store, mx_exchange_variable(x));
    mx_bytes body = {0};
    if (!r) {
        not_found(x);
        return;
    }
    const bool written = mx_bytes_add(&body, r->body.data, r->body.size);
    mx_stored_response_release(store, r);
    mx_reply(x, written, &body);
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
    mx_reply(x, written, &body);
}

/* ---- the items of a request -------------------------------------------------------------------------------------- */
static bool put_id(mx_bytes *out, const mx_json *item) {
    const mx_json *id = item ? mx_json_get(item, "id") : NULL;
    return id ? mx_json_write(out, id) : mx_bytes_add_string(out, "null");
}

typedef struct page {
    bool ascending;
    const char *after; /* NULL: from the beginning on */
    int64_t limit;
} page;

/* "order" (desc where nothing is said), "after" and "limit"; false: the client has been told what is wrong. */
static bool read_page(mx_exchange *x, page *out) {
    enum { USUAL = 20, MOST = 100 };
    const char *order = mx_exchange_query(x, "order"), *limit = mx_exchange_query(x, "limit");
    *out = (page){.ascending = order && strcmp(order, "asc") == 0, .after = mx_exchange_query(x, "after")};
    out->limit = USUAL;
    if (order && !out->ascending && strcmp(order, "desc") != 0) {
        refuse_query(x, "order", "invalid_value", "expected \"asc\" or \"desc\"");
        return false;
    }
    if (!limit) return true;
    char *end;
    out->limit = strtol(limit, &end, 10);
    if (end > limit && !*end && out->limit >= 1 && out->limit <= MOST) return true;
    refuse_query(x, "limit", "invalid_value", "expected a number from 1 to 100");
    return false;
}

/* The items in the page's order and where it begins; *first -1: there is no item `after`. The caller frees the array;
 * NULL: no memory. */
static const mx_json **order_items(const mx_json *array, const page *p, int *first) {
    const int count = (int)array->count;
    const mx_json **item = calloc((size_t)count + 1, sizeof *item);
    int i = 0;
    if (!item) return NULL;
    for (const mx_json *v = array->child; v; v = v->next, i++) item[p->ascending ? i : count - 1 - i] = v;
    for (i = 0; p->after && i < count && !mx_json_is_string(mx_json_get(item[i], "id"), p->after);) i++;
    *first = !p->after ? 0 : i < count ? i + 1 : -1;
    return item;
}

static bool put_page(const mx_json **item, int count, int first, int64_t limit, mx_bytes *out) {
    const int end = count - first > limit ? first + (int)limit : count;
    bool fits = mx_bytes_add_string(out, "{\"object\":\"list\",\"data\":[");
    for (int i = first; fits && i < end; i++)
        fits = (i == first || mx_bytes_add_string(out, ",")) && mx_json_write(out, item[i]);
    return fits && mx_bytes_add_string(out, "],\"first_id\":") && put_id(out, end > first ? item[first] : NULL) &&
           mx_bytes_add_string(out, ",\"last_id\":") && put_id(out, end > first ? item[end - 1] : NULL) &&
           mx_bytes_addf(out, ",\"has_more\":%s}", end < count ? "true" : "false");
}

static void list_input(mx_exchange *x) {
    mx_response_store *store = mx_exchange_parts(x)->responses;
    mx_stored_response *r = mx_response_store_find(store, mx_exchange_variable(x));
    mx_json_document *document = NULL;
    mx_bytes body = {0};
    page p;
    int first = 0;
    if (!r) {
        not_found(x);
        return;
    }
    if (!read_page(x, &p)) {
        mx_stored_response_release(store, r);
        return;
    }
    const bool parsed = mx_json_parse("input", r->input.data, r->input.size, &document, NULL) == MX_OK;
    const mx_json **item = parsed ? order_items(mx_json_root(document), &p, &first) : NULL;
    if (first < 0) {
        refuse_query(x, "after", "invalid_value", "expected the id of one of the items");
    } else {
        const bool written = item && put_page(item, (int)mx_json_root(document)->count, first, p.limit, &body);
        mx_reply(x, written, &body);
    }
    free(item);
    mx_json_free(document);
    mx_stored_response_release(store, r);
}

const mx_endpoint mx_responses_endpoints[] = {
    {"POST", "/v1/responses", create, mx_openai_problem, false},
    {"GET", "/v1/responses/{id}", retrieve, mx_openai_problem, false},
    {"DELETE", "/v1/responses/{id}", forget, mx_openai_problem, false},
    {"GET", "/v1/responses/{id}/input_items", list_input, mx_openai_problem, false},
    {0},
};
