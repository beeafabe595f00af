/* Counts the instructions that a program executes under qemu's user mode, for the program itself.
 *
 * The program asks by a system call that no kernel has, MARKER(file descriptor): the count until then is written there,
 * eight bytes as this machine orders them. Otherwise nothing of the program changes; the call itself fails with ENOSYS.
 * The difference of two counts is what the program did in between, with a constant few instructions of the call.
 *
 * Debian ships no qemu-plugin.h, so what is used of the interface is declared here. It is the same in all versions of
 * it so far: 1 (qemu 4.2 to 8.2), of which the inline operations were dropped later, and 2 and on (from qemu 9.0). A
 * call at each block of instructions costs little: an inference spends its time in few blocks with many instructions.
 *
 * The count is of all threads together, and right for one that computes.
 */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MARKER 0x68616e /* in agent.py too */
#define NO_REGISTERS 0

struct qemu_plugin_tb;

typedef uint64_t plugin_id;
typedef void (*on_block_translated)(plugin_id id, struct qemu_plugin_tb *block);
typedef void (*on_block_executed)(unsigned int vcpu, void *user_data);
typedef void (*on_syscall)(plugin_id id, unsigned int vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                           uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8);

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, on_block_translated callback);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, on_block_executed callback, int flags,
                                          void *user_data);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id id, on_syscall callback);
int qemu_plugin_n_vcpus(void) __attribute__((weak)); /* dropped by version 2 */

EXPORT int qemu_plugin_version = 1;

static uint64_t n_instructions;

__attribute__((constructor)) static void choose_version(void)
{
    if (qemu_plugin_n_vcpus == NULL)
        qemu_plugin_version = 2;
}

static void executed(unsigned int vcpu, void *n_in_block)
{
    (void)vcpu;
    __atomic_fetch_add(&n_instructions, (uintptr_t)n_in_block, __ATOMIC_RELAXED);
}

static void translated(plugin_id id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(block, executed, NO_REGISTERS, (void *)(uintptr_t)qemu_plugin_tb_n_insns(block));
}

static void called(plugin_id id, unsigned int vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                   uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)vcpu, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != MARKER)
        return;
    uint64_t count = __atomic_load_n(&n_instructions, __ATOMIC_RELAXED);
    if (write((int)a1, &count, sizeof count) != sizeof count)
        abort(); /* the program waits for the count */
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
