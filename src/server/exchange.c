#include "server/exchange.h"

const mx_server_parts *mx_exchange_parts(const mx_exchange *x) {
    (void)x;
    return NULL;
}

const char *mx_exchange_path(const mx_exchange *x) {
    (void)x;
    return NULL;
}

const char *mx_exchange_variable(const mx_exchange *x) {
    (void)x;
    return NULL;
}

const char *mx_exchange_header(const mx_exchange *x, const char *name) {
    (void)x;
    (void)name;
    return NULL;
}

const char *mx_exchange_query(const mx_exchange *x, const char *name) {
    (void)x;
    (void)name;
    return NULL;
}

const mx_bytes *mx_exchange_body(const mx_exchange *x) {
    (void)x;
    return NULL;
}

const mx_json *mx_exchange_json(mx_exchange *x) {
    (void)x;
    return NULL;
}

const char *mx_exchange_id(const mx_exchange *x) {
    (void)x;
    return NULL;
}

int64_t mx_exchange_created(const mx_exchange *x) {
    (void)x;
    return 0;
}

void mx_exchange_add_header(mx_exchange *x, const char *name, const char *value) {
    (void)x;
    (void)name;
    (void)value;
}

void mx_exchange_reply(mx_exchange *x, int http_status, const char *content_type, mx_bytes *body) {
    (void)x;
    (void)http_status;
    (void)content_type;
    (void)body;
}

void mx_exchange_refuse(mx_exchange *x, const mx_api_problem *problem) {
    (void)x;
    (void)problem;
}

void mx_exchange_fail(mx_exchange *x, const mx_error *error) {
    (void)x;
    (void)error;
}

void mx_exchange_work(mx_exchange *x, mx_api_request *request, bool stream, const mx_form *form, void *state) {
    (void)x;
    (void)request;
    (void)stream;
    (void)form;
    (void)state;
}
