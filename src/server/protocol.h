#ifndef MX_SERVER_PROTOCOL_H
#define MX_SERVER_PROTOCOL_H

#include "api/fields.h"
#include "api/write.h"
#include "server/exchange.h"

/* What the protocols have in common. */

/* A request for one answer in a chat, as the settings have it where a client says nothing; without a seed of the
 * client's every id gives another one. */
mx_status mx_begin_request(const mx_server_parts *parts, const char *id, mx_api_request *out, mx_error *error);
/* Strings that end the answer, an array or NULL, instead of the settings'. */
mx_status mx_read_stop_strings(const mx_fields *f, const char *name, mx_api_request *out, mx_error *error);

/* What the client is to blame for becomes a problem with `param`, and MX_OK; other statuses are returned. `found`: the
 * error that came with it. */
mx_status mx_blame(mx_status status, const mx_error *found, const char *param, mx_api_problem *problem,
                   mx_error *error);

/* Writes what an answer is told with. */
mx_api_writer mx_work_writer(const mx_work *work, mx_bytes *out);

/* Replies 200 with the JSON in `body`, whose memory is taken over; !written: tells that there was no memory for it. */
void mx_reply(mx_exchange *x, bool written, mx_bytes *body);

/* *rules, made where there are none yet. */
mx_status mx_need_rules(mx_api_request *out, mx_error *error);

#endif
