#include "server/exchange.h"

const mx_endpoint mx_anthropic_endpoints[] = {{0}};
