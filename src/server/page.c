#include "server/exchange.h"

const mx_endpoint mx_page_endpoints[] = {{0}};
