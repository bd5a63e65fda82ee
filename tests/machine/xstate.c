/* Let Linux up to 6.12 run as User Mode Linux on CPUs with AMX.
 *
 * Such a kernel keeps 2696 bytes of floating-point state for each of its processes and sets them with PTRACE_SETREGSET. Where the CPU's
 * whole state is larger (11008 bytes with AMX), the host refuses that with EFAULT, and the machine dies at its first process. Preloaded
 * into linux.uml, this lays those bytes over the whole state as the host has it. (AMX itself stays off: a process has to ask for it.)
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

long ptrace(enum __ptrace_request request, ...)
{
    static long (*host)(enum __ptrace_request, int, void *, void *);
    static char state[64 * 1024] __attribute__((aligned(64)));
    struct iovec whole = { state, sizeof state }, *part;
    void *address, *data;

    __builtin_va_list rest;
    __builtin_va_start(rest, request);
    int pid = __builtin_va_arg(rest, int);
    address = __builtin_va_arg(rest, void *);
    data = __builtin_va_arg(rest, void *);
    __builtin_va_end(rest);

    if (!host)
        host = dlsym(RTLD_NEXT, "ptrace");
    part = data;
    if (request != PTRACE_SETREGSET || (long)address != NT_X86_XSTATE
        || host(PTRACE_GETREGSET, pid, address, &whole) || whole.iov_len <= part->iov_len)
        return host(request, pid, address, data);
    memcpy(state, part->iov_base, part->iov_len);
    return host(PTRACE_SETREGSET, pid, address, &whole);
}
