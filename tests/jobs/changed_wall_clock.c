/* Preloaded into the engine: what the clock on the wall shows is the real one and so many seconds, which are read from
   a file's first eight bytes, a double, each time. The file is mapped: a container that sees another root sees it too,
   as all processes of a machine see one clock. The clock that nobody sets stays real, and so does every time-out.
   Debian's libfaketime cannot be used for this: with it clock_nanosleep, and so time.sleep, fails with EINVAL. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile double *ahead;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CHANGED_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *seen = file < 0 ? MAP_FAILED : mmap(NULL, sizeof(double), PROT_READ, MAP_SHARED, file, 0);
    ahead = seen == MAP_FAILED ? NULL : seen;
    if (file >= 0) close(file);
}

int clock_gettime(clockid_t which, struct timespec *now) {
    long failed = syscall(SYS_clock_gettime, which, now);
    if (failed || !ahead || (which != CLOCK_REALTIME && which != CLOCK_REALTIME_COARSE)) return failed;
    double change = *ahead;
    long whole = (long)change, nano = now->tv_nsec + (long)((change - whole) * 1e9);
    if (nano < 0) nano += 1000000000, whole -= 1;
    if (nano >= 1000000000) nano -= 1000000000, whole += 1;
    now->tv_sec += whole;
    now->tv_nsec = nano;
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *kept) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (kept) *kept = exact.tv_sec;
    return exact.tv_sec;
}
