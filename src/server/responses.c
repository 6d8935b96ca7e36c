#include "server/exchange.h"

const mx_endpoint mx_responses_endpoints[] = {{0}};
