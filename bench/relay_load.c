// SPDX-License-Identifier: Apache-2.0
// Both ends of a relay under load: relay_load serve PORT | MODE HOST PORT SOCKS_HOST SOCKS_PORT A B
//   serve             's': bytes without end; else what comes goes back. A thread a connection.
//   stream N SECONDS  N downloads; prints bytes
//   connect N SECONDS N at a time: connect, a byte there and back, reset; prints the microseconds of each connect
//   trip COUNT 0      1 kB there and back on one connection; prints the microseconds of each
//   hold N 0          N connections; prints "ready", and keeps them until its standard input ends
// SOCKS_HOST "-": no SOCKS5 greeting, HOST and PORT are the relay's own.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *host, *socks_host;
static int port, socks_port, seconds;
static volatile int over;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static double now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void whole(int fd, char *data, size_t size)
{
	for (size_t at = 0; at < size;) {
		ssize_t got = read(fd, data + at, size - at);
		if (got <= 0)
			fail("relay_load: the other side left");
		at += got;
	}
}

static void put(int fd, const char *data, size_t size)
{
	if (write(fd, data, size) != (ssize_t)size)
		fail("relay_load: write");
}

static int dial(void)
{
	int direct = !strcmp(socks_host, "-"), one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(direct ? port : socks_port)};
	inet_pton(AF_INET, direct ? host : socks_host, &to.sin_addr);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to))
		fail("relay_load: connect");
	if (!direct) {
		char said[10] = {5, 1, 0, 1, 0, 0, 0, 0, port >> 8, port}, answer[10];
		put(fd, "\5\1\0", 3);
		whole(fd, answer, 2);
		inet_pton(AF_INET, host, said + 4);
		put(fd, said, 10);
		whole(fd, answer, 10);
		if (answer[1]) {
			fprintf(stderr, "relay_load: SOCKS reply %d\n", answer[1]);
			exit(1);
		}
	}
	return fd;
}

static void reset(int fd)
{
	struct linger now = {1, 0};
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
	close(fd);
}

static void *serve_one(void *argument)
{
	int fd = (long)argument, one = 1;
	static char zeros[131072];
	char data[2048];
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	for (ssize_t got; (got = read(fd, data, sizeof data)) > 0;) {
		if (data[0] == 's')
			while (write(fd, zeros, sizeof zeros) > 0)
				;
		else if (write(fd, data, got) != got)
			break;
	}
	close(fd);
	return NULL;
}

static void serve(void)
{
	int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)};
	pthread_attr_t small;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(fd, (struct sockaddr *)&here, sizeof here) || listen(fd, 4096))
		fail("relay_load: listen");
	puts("ready");
	fflush(stdout);
	for (;;) {
		pthread_t thread;
		long client = accept(fd, NULL, NULL);
		if (client >= 0 && pthread_create(&thread, &small, serve_one, (void *)client))
			fail("relay_load: thread");
	}
}

static void *download(void *total)
{
	char *data = malloc(262144); // not on the stack: those of the server are small
	int fd = dial();
	put(fd, "s", 1);
	for (ssize_t got; !over && (got = read(fd, data, 262144)) > 0;)
		*(long *)total += got;
	reset(fd);
	free(data);
	return NULL;
}

static void *come_and_go(void *unused)
{
	for (char byte = 'e'; !over;) {
		double began = now_us();
		int fd = dial();
		put(fd, &byte, 1);
		whole(fd, &byte, 1);
		printf("%.1f\n", now_us() - began);
		reset(fd);
	}
	return unused;
}

static void in_parallel(void *(*work)(void *), int count, long *totals)
{
	pthread_t threads[64];
	for (int n = 0; n < count && n < 64; n++)
		pthread_create(&threads[n], NULL, work, totals ? totals + 8 * n : NULL);
	sleep(seconds);
	over = 1;
	for (int n = 0; n < count && n < 64; n++)
		pthread_join(threads[n], NULL);
}

int main(int count, char **words)
{
	signal(SIGPIPE, SIG_IGN);
	if (count == 3 && !strcmp(words[1], "serve")) {
		port = atoi(words[2]);
		serve();
	}
	if (count != 8)
		return 2;
	const char *mode = words[1];
	host = words[2], port = atoi(words[3]), socks_host = words[4], socks_port = atoi(words[5]);
	int many = atoi(words[6]);
	seconds = atoi(words[7]);
	if (!strcmp(mode, "stream")) {
		static long totals[64 * 8], total;
		double began = now_us();
		in_parallel(download, many, totals);
		for (int n = 0; n < 64 * 8; n++)
			total += totals[n];
		printf("%ld %.0f\n", total, now_us() - began);
	} else if (!strcmp(mode, "connect")) {
		in_parallel(come_and_go, many, NULL);
	} else if (!strcmp(mode, "trip")) {
		char data[1000] = "e";
		int fd = dial();
		for (int n = 0; n < many; n++) {
			double began = now_us();
			put(fd, data, sizeof data);
			whole(fd, data, sizeof data);
			printf("%.1f\n", now_us() - began);
		}
	} else if (!strcmp(mode, "hold")) {
		for (int n = 0; n < many; n++) {
			char byte = 'e';
			int fd = dial();
			put(fd, &byte, 1);
			whole(fd, &byte, 1);
		}
		puts("ready");
		fflush(stdout);
		while (getchar() != EOF)
			;
	} else {
		return 2;
	}
	return 0;
}
