#ifndef MX_SERVER_FIELDS_H
#define MX_SERVER_FIELDS_H

#include "server/exchange.h"

/* Members of a request's body. Each reader leaves *out alone where the member is absent or null, and returns false with
 * the problem told where it is wrong. */
typedef struct mx_fields {
    const mx_json *object; /* NULL: nothing is there */
    const char *prefix;    /* of their names in messages: "reasoning." */
    mx_api_problem *problem;
} mx_fields;

const mx_json *mx_field(const mx_json *object, const char *name); /* NULL: absent or null */
bool mx_read_number(const mx_fields *f, const char *name, double low, double high, double *out);
bool mx_read_float(const mx_fields *f, const char *name, double low, double high, float *out);
bool mx_read_whole(const mx_fields *f, const char *name, int64_t low, int64_t high, int64_t *out);
bool mx_read_int(const mx_fields *f, const char *name, int low, int high, int *out);
bool mx_read_bool(const mx_fields *f, const char *name, bool *out);
/* A member of this type; *out NULL: it is absent. */
bool mx_read_typed(const mx_fields *f, const char *name, mx_json_type type, const mx_json **out);
/* The same for text that C can hold: a string without U+0000. */
bool mx_read_word(const mx_fields *f, const char *name, const char **out);

/* A request for one answer in a chat, as the settings have it where a client says nothing; without a seed of the
 * client's every id gives another one. */
mx_status mx_begin_request(const mx_server_parts *parts, const char *id, mx_api_request *out, mx_error *error);
/* Strings that end the answer, an array or NULL, instead of the settings'. */
mx_status mx_read_stop_strings(const mx_fields *f, const char *name, mx_api_request *out, mx_error *error);

/* What the client is to blame for becomes a problem with `param`, and MX_OK; other statuses are returned. `found`: the
 * error that came with it. */
mx_status mx_blame(mx_status status, const mx_error *found, const char *param, mx_api_problem *problem,
                   mx_error *error);

/* Replies 200 with the JSON in `body`, whose memory is taken over; !written: tells that there was no memory for it. */
void mx_reply(mx_exchange *x, bool written, mx_bytes *body);

/* *rules, made where there are none yet. */
mx_status mx_need_rules(mx_api_request *out, mx_error *error);

#endif
