#include "engine/mxrun.h"
