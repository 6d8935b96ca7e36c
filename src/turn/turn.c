#include "turn/turn.h"
