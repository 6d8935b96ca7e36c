#include "server/anthropic.h"

#include <stdio.h>
#include <stdlib.h>

#include "server/protocol.h"

/* Anthropic's clients know a request by the header "request-id". */
static void tell_id(mx_exchange *x) {
    char id[64];
    snprintf(id, sizeof id, "req_%s", mx_exchange_id(x));
    mx_exchange_add_header(x, "request-id", id);
}

/* Reads the body; false: the client has been told what is wrong, and nothing is left. */
static bool read_body(mx_exchange *x, bool counted, mx_api_request *request, mx_anthropic_state **state) {
    mx_error error;
    tell_id(x);
    const mx_json *body = mx_exchange_json(x);
    if (!body) return false;
    *state = calloc(1, sizeof **state);
    const mx_status status =
        *state ? mx_anthropic_read(mx_exchange_parts(x), mx_exchange_id(x), body, counted, request, *state, &error)
               : mx_fail(&error, MX_NO_MEMORY, "no memory for a message");
    if (!status && request->beyond) mx_api_check_room(request, mx_exchange_parts(x)->settings.setup.context);
    if (!status && !request->problem.http_status) return true;
    if (status)
        mx_exchange_fail(x, &error);
    else
        mx_exchange_refuse(x, &request->problem);
    mx_api_request_free(request);
    mx_anthropic_free(*state);
    return false;
}

static void create(mx_exchange *x) {
    mx_api_request request = {0};
    mx_anthropic_state *state;
    if (read_body(x, false, &request, &state)) mx_exchange_work(x, &request, request.stream, &mx_anthropic_form, state);
}

static void count_tokens(mx_exchange *x) {
    mx_api_request request = {0};
    mx_anthropic_state *state;
    mx_bytes body = {0};
    if (!read_body(x, true, &request, &state)) return;
    const bool written = mx_bytes_addf(&body, "{\"input_tokens\":%lld}", (long long)request.prompts[0].count);
    mx_reply(x, written, &body);
    mx_api_request_free(&request);
    mx_anthropic_free(state);
}

const mx_endpoint mx_anthropic_endpoints[] = {
    {"POST", "/v1/messages", create, mx_anthropic_problem, false},
    {"POST", "/v1/messages/count_tokens", count_tokens, mx_anthropic_problem, false},
    {0},
};
