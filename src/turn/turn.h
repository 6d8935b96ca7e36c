#ifndef MX_TURN_H
#define MX_TURN_H

#endif
