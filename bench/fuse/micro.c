/* One kind of work on a file system, timed by itself; prints seconds of the clock and CPU seconds of its own.
 *
 *   micro create|stat|read|unlink DIR DIRS FILES BYTES [THREADS]   small files, spread over directories
 *   micro append DIR LINES BYTES [THREADS]                         lines of a log, a file each thread
 *   micro seqwrite|seqread FILE MIB                                by 1 MiB
 *   micro randread|randwrite FILE MIB                              by 4 KiB, in random order, as much as half the file
 *
 * System calls are those of programs that write results: no mapping, no direct I/O, no preallocation. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MIB = 1 << 20, PAGE = 4096, THREADS_MAX = 64 };

static const char *work, *top;
static long dirs, count, bytes, threads = 1;
static char *buffer;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void expect(int is_met, const char *what)
{
	if (!is_met)
		fail(what);
}

static void file_path(char *path, size_t room, long i)
{
	/* From the working directory: how deep that lies is no part of the work. */
	snprintf(path, room, "d%03ld/file-%06ld", i % dirs, i);
}

static void one_file(long i)
{
	char path[4096];
	struct stat st;
	file_path(path, sizeof path, i);
	switch (work[0]) {
	case 'c': {
		int fd = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
		expect(fd >= 0, path);
		expect(write(fd, buffer, bytes) == bytes, path);
		expect(close(fd) == 0, path);
		break;
	}
	case 's':
		expect(stat(path, &st) == 0, path);
		expect(st.st_size == bytes, "size");
		break;
	case 'r': {
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		expect(fd >= 0, path);
		expect(read(fd, buffer, bytes) == bytes, path);
		close(fd);
		break;
	}
	default:
		expect(unlink(path) == 0, path);
	}
}

/* Each thread has directories of its own, as running tests do. */
static void *small_files(void *arg)
{
	long thread = (long)arg;
	for (long i = 0; i < count; i++)
		if (i % dirs % threads == thread)
			one_file(i);
	return NULL;
}

static void *append_lines(void *arg)
{
	char path[4096];
	struct stat st;
	snprintf(path, sizeof path, "log-%ld", (long)arg);
	int fd = open(path, O_CREAT | O_APPEND | O_WRONLY | O_CLOEXEC, 0644);
	expect(fd >= 0, path);
	char *line = malloc(bytes);
	memset(line, 'x', bytes);
	line[bytes - 1] = '\n';
	for (long i = 0; i < count / threads; i++)
		expect(write(fd, line, bytes) == bytes, path);
	expect(fstat(fd, &st) == 0 && st.st_size == count / threads * bytes, path);
	close(fd);
	free(line);
	return NULL;
}

static void in_threads(void *(*run)(void *))
{
	pthread_t handles[THREADS_MAX];
	if (threads == 1) {
		run((void *)0);
		return;
	}
	for (long t = 0; t < threads; t++)
		expect(pthread_create(&handles[t], NULL, run, (void *)t) == 0, "thread");
	for (long t = 0; t < threads; t++)
		pthread_join(handles[t], NULL);
}

static void sequential(int is_write)
{
	int fd = is_write ? open(top, O_CREAT | O_WRONLY | O_CLOEXEC, 0644) : open(top, O_RDONLY | O_CLOEXEC);
	expect(fd >= 0, top);
	for (long i = 0; i < count; i++)
		expect((is_write ? write(fd, buffer, MIB) : read(fd, buffer, MIB)) == MIB, top);
	close(fd);
}

static void random_pages(int is_write)
{
	uint64_t state = 88172645463325252ull;
	long pages = count * (MIB / PAGE);
	int fd = open(top, (is_write ? O_WRONLY : O_RDONLY) | O_CLOEXEC);
	expect(fd >= 0, top);
	for (long i = 0; i < pages / 2; i++) {
		state ^= state << 13, state ^= state >> 7, state ^= state << 17; /* xorshift64 */
		off_t at = (off_t)(state % pages) * PAGE;
		expect((is_write ? pwrite(fd, buffer, PAGE, at) : pread(fd, buffer, PAGE, at)) == PAGE, top);
	}
	close(fd);
}

static double seconds(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void make_dirs(void)
{
	char path[4096];
	for (long i = 0; i < dirs; i++) {
		snprintf(path, sizeof path, "d%03ld", i);
		expect(mkdir(path, 0755) == 0, path);
	}
}

static long number(int argc, char **argv, int at, long otherwise)
{
	return at < argc ? atol(argv[at]) : otherwise;
}

int main(int argc, char **argv)
{
	if (argc < 4)
		return 2;
	work = argv[1], top = argv[2];
	int is_small = strcmp(work, "append") != 0 && strncmp(work, "seq", 3) != 0 && strncmp(work, "rand", 4) != 0;
	if (is_small) {
		dirs = number(argc, argv, 3, 1), count = number(argc, argv, 4, 1), bytes = number(argc, argv, 5, PAGE);
		threads = number(argc, argv, 6, 1);
	} else {
		count = number(argc, argv, 3, 1), bytes = number(argc, argv, 4, 120), threads = number(argc, argv, 5, 1);
	}
	if (threads < 1 || threads > THREADS_MAX || bytes > MIB)
		return 2;
	buffer = malloc(MIB);
	memset(buffer, 'x', MIB);
	if (is_small || !strcmp(work, "append"))
		expect(chdir(top) == 0, top);
	if (!strcmp(work, "create"))
		make_dirs();
	double began = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
	if (is_small)
		in_threads(small_files);
	else if (!strcmp(work, "append"))
		in_threads(append_lines);
	else if (!strncmp(work, "seq", 3))
		sequential(!strcmp(work, "seqwrite"));
	else
		random_pages(!strcmp(work, "randwrite"));
	printf("%.6f %.6f\n", seconds(CLOCK_MONOTONIC) - began, seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu);
	return 0;
}
