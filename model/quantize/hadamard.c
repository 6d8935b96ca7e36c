/* Rotation by blocks. */
#include <math.h>

#include "model/quantize/quantize.h"

void mx_hadamard(float *x, int64_t n, int size) {
    const float factor = (float)(1 / sqrt((double)size));
    for (int64_t b = 0; b < n; b += size) {
        float *block = x + b;
        for (int step = 1; step < size; step *= 2)
            for (int i = 0; i < size; i += 2 * step)
                for (int j = i; j < i + step; j++) {
                    const float sum = block[j] + block[j + step], difference = block[j] - block[j + step];
                    block[j] = sum;
                    block[j + step] = difference;
                }
        for (int i = 0; i < size; i++) block[i] *= factor;
    }
}

int mx_hadamard_size(int64_t n, int most) {
    int size = 1;
    while (size <= most / 2 && n % (2 * (int64_t)size) == 0) size *= 2;
    return size;
}
