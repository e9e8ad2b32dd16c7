/* The clock of a host that was asleep, for a daemon in the tests: so many seconds ahead as the file in HOST_CLOCK says, as in
   "+3600". What the host slept through has passed for CLOCK_REALTIME and CLOCK_BOOTTIME, and not for CLOCK_MONOTONIC; libfaketime
   cannot tell the last two apart. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long ahead(void) {
    const char *name = getenv("HOST_CLOCK");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return 0;
    char text[32];
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    if (length < 0) return 0;
    text[length] = 0;
    return strtol(text, NULL, 10);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    int failed = (int)syscall(SYS_clock_gettime, clock, at);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE || clock == CLOCK_BOOTTIME)) at->tv_sec += ahead();
    return failed;
}
