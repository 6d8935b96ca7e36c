#include "server/exchange.h"

const mx_endpoint mx_status_endpoints[] = {{0}};
