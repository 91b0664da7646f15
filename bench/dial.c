/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * dial - what socket(), connect() and close() cost, one after the other.
 *
 *   dial serve NETNS CPU PORT                                     accepts and closes, until killed
 *   dial dial  NETNS CPU PORT FIRST-IP TARGETS COUNT [ADDRESS FIRST LAST]
 *
 * Connection i goes to target i % TARGETS and is ended by a RST (SO_LINGER 0): no TIME_WAIT fills a slice. With ADDRESS
 * FIRST LAST the kernel chooses from that range (IP_BIND_ADDRESS_NO_PORT, IP_LOCAL_PORT_RANGE), without our hooks.
 * Prints one line a connection: ns, and errno of connect (0: it worked). The dialing side runs SCHED_FIFO, so that what
 * else the machine does is not counted in the tail; it takes some tens of milliseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef IP_LOCAL_PORT_RANGE
#define IP_LOCAL_PORT_RANGE 51
#endif

static unsigned long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static void place(const char *netns, int cpu)
{
	int ns = open(netns, O_RDONLY);
	cpu_set_t set;

	if (ns < 0 || setns(ns, CLONE_NEWNET))
		err(1, "%s", netns);
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		err(1, "cpu %d", cpu);
}

static const struct linger reset = {.l_onoff = 1, .l_linger = 0};

static int serve(int port)
{
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)};
	int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *)&here, sizeof(here)) || listen(fd, 4096))
		err(1, "listen");
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		int got = accept(fd, NULL, NULL);

		if (got < 0)
			continue;
		close(got);
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in there = {.sin_family = AF_INET}, here = {.sin_family = AF_INET};
	unsigned long targets, count;
	unsigned int first, range = 0;
	int one = 1;

	if (argc < 5)
		errx(2, "usage: dial serve NETNS CPU PORT | dial dial NETNS CPU PORT FIRST TARGETS COUNT [ADDRESS A B]");
	place(argv[2], atoi(argv[3]));
	if (!strcmp(argv[1], "serve"))
		return serve(atoi(argv[4]));
	if (argc != 8 && argc != 11)
		errx(2, "dial: 7 or 10 arguments");
	if (sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1}))
		err(1, "SCHED_FIFO");
	there.sin_port = htons(atoi(argv[4]));
	first = ntohl(inet_addr(argv[5]));
	targets = strtoul(argv[6], NULL, 0);
	count = strtoul(argv[7], NULL, 0);
	if (argc == 11) {
		here.sin_addr.s_addr = inet_addr(argv[8]);
		range = (unsigned int)atoi(argv[10]) << 16 | atoi(argv[9]);
	}
	for (unsigned long i = 0; i < count; i++) {
		unsigned long long start;
		int fd, error = 0;

		there.sin_addr.s_addr = htonl(first + i % targets);
		start = now();
		fd = socket(AF_INET, SOCK_STREAM, 0);
		if (range) {
			setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
			setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
			setsockopt(fd, IPPROTO_IP, IP_LOCAL_PORT_RANGE, &range, sizeof(range));
			if (bind(fd, (struct sockaddr *)&here, sizeof(here)))
				error = errno;
		}
		if (!error && connect(fd, (struct sockaddr *)&there, sizeof(there)))
			error = errno;
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		close(fd);
		printf("%llu %d\n", now() - start, error);
	}
	return 0;
}
