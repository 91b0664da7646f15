// SPDX-License-Identifier: Apache-2.0
/*
 * softunicast.proxy._relay: what a proxy's worker does for every event, epoll(7) to handlers, and bytes from socket to
 * socket by splice(2).
 *
 *     Poller --(a callable)--> Python: sessions, dialing, names, UDP, control
 *        '----(a Relay)------> here: read, write, tell the other side of the end; Python hears of it when all is over
 *
 * src/softunicast/proxy/loop.py and relay.py say what these types are for and how they are used, _relay.pyi what Python
 * sees of them. It is C because at some thousand connections a second the interpreter was two fifths of the proxy's CPU
 * (docs/performance-proxy.md). One thread, under the interpreter's lock all the time but for epoll_wait(2).
 */
#pragma once

#define Py_LIMITED_API 0x030a0000 /* one binary for 3.11 and all later; 3.11's own headers no longer cast for us */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

#define EVENTS 512
#define PIPE_BYTES 262144
#define FREE_PIPES 64
#define TURNS 4     /* pipes that a way moves before others have their turn */
#define SMALL 32768 /* a source that gave less has no more, most likely: let epoll say so rather than ask once more */
#define FLAGS (SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
#define ALL (-1LL) /* Way.left: no limit */

enum { CLIENT, UPSTREAM };
enum { UP, DOWN }; /* way[UP] leads from end[CLIENT] to end[UPSTREAM], way[DOWN] back */

typedef struct {
	PyObject_HEAD
	int read, write;
} Pipe;

typedef struct {
	PyObject_HEAD
	int count;
	Pipe *free[FREE_PIPES];
} Pipes;

typedef struct {
	PyObject_HEAD
	Pipe *pipe;
	long long held, moved, left;
	char eof, shut;
} Way;

typedef struct {
	PyObject_HEAD
	PyObject *sock;
	int fd;
} End;

struct watch {
	PyObject *handler; /* a callable or a Relay; NULL: not registered */
	uint32_t mask, generation;
	int side; /* of the Relay */
};

typedef struct {
	PyObject_HEAD
	int epoll, at, count;
	size_t size;
	struct watch *table; /* by descriptor */
	struct epoll_event events[EVENTS];
} Poller;

typedef struct {
	PyObject_HEAD
	Poller *loop;
	Pipes *pipes;
	PyObject *done, *why;
	End *end[2];
	Way *way[2];
	char over;
} Relay;

extern PyTypeObject *pipe_type, *pipes_type, *way_type, *end_type, *poller_type, *relay_type;
extern PyType_Spec pipe_spec, pipes_spec, way_spec, end_spec, poller_spec, relay_spec;

/* module.c: what all types need of a heap type's allocation. */
void *allocated(PyTypeObject *type);
void freed(void *self);
int visit_type(PyObject *self, visitproc visit, void *arg);

/* pipes.c */
Pipe *taken(Pipes *self);	      /* NULL with errno: there is none to be had */
void given(Pipes *self, Pipe *pipe); /* takes over the reference */

/* ways.c */
int left_from(PyObject *value, long long *left); /* -1 with an exception */

/* poller.c */
int poller_set(Poller *self, int fd, uint32_t mask, PyObject *handler, int side); /* -1 with errno */
struct watch *poller_find(Poller *self, int fd);				  /* NULL: it is not registered */
void poller_forget(Poller *self, int fd, bool tell); /* `tell` epoll: it stays open, or somebody else has it too */

/* relay.c */
int relay_ready(Relay *self, int side, uint32_t events); /* -1 with an exception: `done` raised */
