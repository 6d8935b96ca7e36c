#include "server/exchange.h"

const mx_endpoint mx_ollama_endpoints[] = {{0}};
