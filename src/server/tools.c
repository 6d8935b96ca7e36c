#include "server/exchange.h"

const mx_endpoint mx_tool_endpoints[] = {{0}};
