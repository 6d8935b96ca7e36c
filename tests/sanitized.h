#ifndef TESTS_SANITIZED_H
#define TESTS_SANITIZED_H

/* Whether the address or the thread sanitizer is in this build: all is slower then, and memory is touched that is not
 * used. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = 1 };
#elif defined(__has_feature)
enum { SANITIZED = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) };
#else
enum { SANITIZED = 0 };
#endif

#endif
