#include "api/write.h"
#include "server/exchange.h"

const mx_endpoint mx_openai_endpoints[] = {{0}};

bool mx_openai_problem(mx_bytes *out, const mx_api_problem *problem) {
    mx_api_writer w = {.out = out};
    mx_api_put(&w, "{\"error\":");
    mx_api_put_problem(&w, problem);
    mx_api_put(&w, "}");
    return !w.failed;
}
