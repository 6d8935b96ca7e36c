#ifndef MX_TESTS_EMULATION_SWITCH_H
#define MX_TESTS_EMULATION_SWITCH_H

/* From one stack to another: what the ABI lets a function keep in registers is put on the old one, whose pointer is
 * left in *from. ucontext's own would do two system calls each time. */
#include <stdint.h>

#if defined(__x86_64__)
#define MX_SWITCH_WORDS 8 /* six registers, where to go on, and what stands for the caller of that */
#define MX_SWITCH_GO_ON 6
asm(".text\n"
    ".p2align 4\n"
    ".type mx_emulated_switch, @function\n"
    "mx_emulated_switch:\n"
    "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
    "    ret\n"
    ".size mx_emulated_switch, . - mx_emulated_switch\n");
#elif defined(__aarch64__)
#define MX_SWITCH_WORDS 20 /* x19 .. x30, d8 .. d15 */
#define MX_SWITCH_GO_ON 11
asm(".text\n"
    ".p2align 4\n"
    ".type mx_emulated_switch, %function\n"
    "mx_emulated_switch:\n"
    "    sub sp, sp, #160\n"
    "    stp x19, x20, [sp]\n    stp x21, x22, [sp, #16]\n    stp x23, x24, [sp, #32]\n"
    "    stp x25, x26, [sp, #48]\n    stp x27, x28, [sp, #64]\n    stp x29, x30, [sp, #80]\n"
    "    stp d8, d9, [sp, #96]\n    stp d10, d11, [sp, #112]\n"
    "    stp d12, d13, [sp, #128]\n    stp d14, d15, [sp, #144]\n"
    "    mov x9, sp\n    str x9, [x0]\n    mov sp, x1\n"
    "    ldp x19, x20, [sp]\n    ldp x21, x22, [sp, #16]\n    ldp x23, x24, [sp, #32]\n"
    "    ldp x25, x26, [sp, #48]\n    ldp x27, x28, [sp, #64]\n    ldp x29, x30, [sp, #80]\n"
    "    ldp d8, d9, [sp, #96]\n    ldp d10, d11, [sp, #112]\n"
    "    ldp d12, d13, [sp, #128]\n    ldp d14, d15, [sp, #144]\n"
    "    add sp, sp, #160\n"
    "    ret\n"
    ".size mx_emulated_switch, . - mx_emulated_switch\n");
#else
#include <ucontext.h>
#endif

#ifdef MX_SWITCH_WORDS
typedef void *mx_emulated_stack;
extern "C" void mx_emulated_switch(void **from, void *to) asm("mx_emulated_switch");

/* A stack of which `entry` is what a switch to it goes on with. `top`: 16-byte aligned. */
static inline void mx_emulated_prepare(mx_emulated_stack *s, uint8_t *, uint8_t *top, void (*entry)()) {
    uintptr_t *words = (uintptr_t *)top - MX_SWITCH_WORDS;
    for (int i = 0; i < MX_SWITCH_WORDS; i++) words[i] = 0;
    words[MX_SWITCH_GO_ON] = (uintptr_t)entry;
    *s = words;
}
static inline void mx_emulated_go(mx_emulated_stack *from, mx_emulated_stack *to) {
    mx_emulated_switch(from, *to);
}
#else
typedef ucontext_t mx_emulated_stack;
static inline void mx_emulated_prepare(mx_emulated_stack *s, uint8_t *bottom, uint8_t *top, void (*entry)()) {
    getcontext(s);
    s->uc_stack.ss_sp = bottom;
    s->uc_stack.ss_size = (size_t)(top - bottom);
    s->uc_link = nullptr;
    makecontext(s, entry, 0);
}
static inline void mx_emulated_go(mx_emulated_stack *from, mx_emulated_stack *to) {
    swapcontext(from, to);
}
#endif

#if defined(__SANITIZE_ADDRESS__)
#define MX_SWITCH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MX_SWITCH_ASAN 1
#endif
#endif
#ifdef MX_SWITCH_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
/* For functions whose frame is left by a switch for good. */
#define MX_SWITCH_UNWATCHED __attribute__((no_sanitize("address")))

#endif
