// SPDX-License-Identifier: Apache-2.0
/*
 * Two sockets joined until both ways have ended. Functions that may call `done` return -1 when it raised; what they
 * touch after it, they ask `over` first.
 *
 * Sources: splice(2); net/ipv4/tcp.c (tcp_poll: ERR whenever sk_err is set, HUP once both ways are shut).
 */
#include "relay.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

static int relay_finish(Relay *self, const char *side, const char *what)
{
	if (self->over)
		return 0;
	self->over = 1;
	PyObject *why = PyUnicode_FromFormat("%s%s%s", side, *side ? " " : "", what);
	if (!why)
		return -1;
	Py_DECREF(self->why);
	self->why = why;
	PyObject *result = PyObject_CallFunctionObjArgs(self->done, self, NULL);
	Py_XDECREF(result);
	return result ? 0 : -1;
}

/* It ends by RST when it is closed. */
static void end_reset(End *end)
{
	struct linger now = {1, 0};
	setsockopt(end->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
}

/* End both sides by RST. */
static int relay_reset(Relay *self, const char *what)
{
	end_reset(self->end[CLIENT]);
	end_reset(self->end[UPSTREAM]);
	return relay_finish(self, "", what);
}

/* A side failed: the other one is reset. One that was reset by its peer is closed already. */
static int relay_broken(Relay *self, int side, int number)
{
	const char *what = number == ECONNRESET || number == EPIPE ? "reset" :
			   number == ETIMEDOUT			   ? "timed out" :
								     strerror(number);
	if (number != ECONNRESET)
		end_reset(self->end[side]);
	end_reset(self->end[!side]);
	return relay_finish(self, side == CLIENT ? "client" : "upstream", what);
}

/* Tell epoll what this end waits for. One that is shut both ways waits for nothing: its HUP would never end. */
static int relay_watch(Relay *self, int side)
{
	Way *inward = self->way[side], *outward = self->way[!side];
	int fd = self->end[side]->fd;
	uint32_t mask = (!inward->eof && !inward->held ? EPOLLIN : 0) | (outward->held ? EPOLLOUT : 0);
	struct watch *watch = poller_find(self->loop, fd);
	bool ours = watch && watch->handler == (PyObject *)self;

	if (inward->eof && outward->shut && !mask && inward->left == ALL) {
		if (ours)
			poller_forget(self->loop, fd, true);
	} else if ((!ours || watch->mask != mask) && poller_set(self->loop, fd, mask, (PyObject *)self, side)) {
		PyErr_SetFromErrno(PyExc_OSError);
		return -1;
	}
	return 0;
}

/* All of a way is delivered. One that was cut short (`left`) is not told: an origin that sees a half-closed connection
 * may not answer any more. */
static int relay_ended(Relay *self, int which)
{
	Way *way = self->way[which];
	way->shut = 1;
	if (way->left == ALL && shutdown(self->end[!which]->fd, SHUT_WR) && errno != ENOTCONN) {
		PyErr_SetFromErrno(PyExc_OSError);
		return -1;
	}
	if ((self->way[UP]->shut && self->way[DOWN]->shut) || (which == DOWN && self->way[UP]->left != ALL))
		return relay_finish(self, "", "closed");
	return relay_watch(self, which) || relay_watch(self, !which) ? -1 : 0;
}

/* Move what can be moved. */
static int relay_pump(Relay *self, int which)
{
	Way *way = self->way[which];
	int source = self->end[which]->fd, sink = self->end[!which]->fd;
	bool was_held = way->held;

	if (!way->pipe && !(way->pipe = taken(self->pipes)))
		return relay_reset(self, strerror(errno));
	for (int turn = 0; turn < TURNS; turn++) {
		ssize_t got = way->held, sent;
		if (!way->held) {
			got = splice(source, NULL, way->pipe->write, NULL,
				     way->left == ALL || way->left > PIPE_BYTES ? PIPE_BYTES : way->left, FLAGS);
			if (got < 0 && (errno == EAGAIN || errno == EINTR))
				break;
			if (got < 0)
				return relay_broken(self, which, errno);
			if (got == 0) {
				way->eof = 1;
				break;
			}
			way->held = got;
			if (way->left != ALL) {
				way->left -= got;
				way->eof = !way->left;
			}
		}
		sent = splice(way->pipe->read, NULL, sink, NULL, got, FLAGS);
		if (sent < 0 && errno != EAGAIN && errno != EINTR)
			return relay_broken(self, !which, errno);
		if (sent < 0)
			sent = 0;
		way->moved += sent;
		way->held = got - sent;
		if (way->held || way->eof || got < SMALL)
			break;
	}
	if (!way->held) {
		given(self->pipes, way->pipe);
		way->pipe = NULL;
		if (way->eof)
			return relay_ended(self, which);
	}
	if (way->held || was_held)
		return relay_watch(self, which) || relay_watch(self, !which) ? -1 : 0;
	return 0;
}

/* Called by Poller.dispatch(), which holds a reference. */
int relay_ready(Relay *self, int side, uint32_t events)
{
	Way *inward = self->way[side], *outward = self->way[!side];
	if (events & EPOLLERR) {
		int number = 0;
		socklen_t size = sizeof number;
		getsockopt(self->end[side]->fd, SOL_SOCKET, SO_ERROR, &number, &size);
		if (number)
			return relay_broken(self, side, number);
	}
	if (events & EPOLLOUT && outward->held && relay_pump(self, !side))
		return -1;
	if (!self->over && events & (EPOLLIN | EPOLLHUP) && !inward->held && !inward->eof)
		return relay_pump(self, side);
	return 0;
}

static PyObject *relay_start(PyObject *object, PyObject *unused)
{
	Relay *self = (Relay *)object;
	for (int which = UP; which <= DOWN; which++)
		if (self->way[which]->left == 0 && !self->way[which]->held)
			self->way[which]->eof = 1;
	for (int side = CLIENT; side <= UPSTREAM; side++)
		if (relay_watch(self, side))
			return NULL;
	for (int which = UP; which <= DOWN; which++) {
		Way *way = self->way[which];
		if (!self->over && way->eof && !way->held && !way->shut && relay_ended(self, which))
			return NULL;
	}
	if (!self->over && self->way[UP]->shut && self->way[DOWN]->shut && relay_finish(self, "", "closed"))
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *relay_pause(PyObject *object, PyObject *unused)
{
	Relay *self = (Relay *)object;
	for (int side = CLIENT; side <= UPSTREAM; side++)
		poller_forget(self->loop, self->end[side]->fd, true);
	Py_RETURN_NONE;
}

static PyObject *relay_reset_method(PyObject *object, PyObject *why)
{
	PyObject *text = PyUnicode_AsUTF8String(why);
	if (!text)
		return NULL;
	int failed = relay_reset((Relay *)object, PyBytes_AsString(text));
	Py_DECREF(text);
	if (failed)
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *relay_close(PyObject *object, PyObject *unused)
{
	static PyObject *name;
	Relay *self = (Relay *)object;
	if (!name && !(name = PyUnicode_InternFromString("close")))
		return NULL;
	self->over = 1;
	for (int which = UP; which <= DOWN; which++)
		Py_CLEAR(self->way[which]->pipe); /* with bytes in it: thrown away */
	for (int side = CLIENT; side <= UPSTREAM; side++) {
		End *end = self->end[side];
		if (end->fd < 0)
			continue;
		poller_forget(self->loop, end->fd, false);
		end->fd = -1;
		PyObject *result = PyObject_CallMethodObjArgs(end->sock, name, NULL);
		if (!result)
			return NULL;
		Py_DECREF(result);
	}
	Py_RETURN_NONE;
}

static End *end_of(PyObject *sock)
{
	End *end = NULL;
	int fd = PyObject_AsFileDescriptor(sock);
	if (fd >= 0 && (end = allocated(end_type))) {
		end->sock = Py_NewRef(sock);
		end->fd = fd;
	}
	return end;
}

static PyObject *relay_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"loop", "pipes", "client", "upstream", "done", "only", NULL};
	PyObject *loop, *pipes, *client, *upstream, *done, *only = NULL;
	long long left;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!OOO|O:Relay", names, poller_type, &loop, pipes_type,
					 &pipes, &client, &upstream, &done, &only) ||
	    left_from(only, &left))
		return NULL;
	Relay *self = allocated(type);
	if (!self)
		return NULL;
	self->loop = (Poller *)Py_NewRef(loop);
	self->pipes = (Pipes *)Py_NewRef(pipes);
	self->done = Py_NewRef(done);
	self->why = PyUnicode_FromString("");
	if (!self->why || !(self->end[CLIENT] = end_of(client)) || !(self->end[UPSTREAM] = end_of(upstream)) ||
	    !(self->way[UP] = allocated(way_type)) || !(self->way[DOWN] = allocated(way_type))) {
		Py_DECREF(self);
		return NULL;
	}
	self->way[UP]->left = left;
	self->way[DOWN]->left = ALL;
	return (PyObject *)self;
}

static int relay_traverse(PyObject *object, visitproc visit, void *arg)
{
	Relay *self = (Relay *)object;
	Py_VISIT(self->loop);
	Py_VISIT(self->pipes);
	Py_VISIT(self->done);
	return visit_type(object, visit, arg);
}

static int relay_clear(PyObject *object)
{
	Py_CLEAR(((Relay *)object)->done);
	return 0;
}

static void relay_dealloc(PyObject *object)
{
	Relay *self = (Relay *)object;
	PyObject_GC_UnTrack(object);
	for (int each = 0; each < 2; each++) {
		Py_XDECREF(self->end[each]);
		Py_XDECREF(self->way[each]);
	}
	Py_XDECREF(self->loop);
	Py_XDECREF(self->pipes);
	Py_XDECREF(self->done);
	Py_XDECREF(self->why);
	freed(object);
}

static PyMemberDef relay_members[] = {
	{"client", T_OBJECT_EX, offsetof(Relay, end[CLIENT]), READONLY, NULL},
	{"upstream", T_OBJECT_EX, offsetof(Relay, end[UPSTREAM]), READONLY, NULL},
	{"up", T_OBJECT_EX, offsetof(Relay, way[UP]), READONLY, NULL},
	{"down", T_OBJECT_EX, offsetof(Relay, way[DOWN]), READONLY, NULL},
	{"pipes", T_OBJECT_EX, offsetof(Relay, pipes), READONLY, NULL},
	{"done", T_OBJECT_EX, offsetof(Relay, done), 0, NULL},
	{"why", T_OBJECT_EX, offsetof(Relay, why), READONLY, NULL},
	{"over", T_BOOL, offsetof(Relay, over), READONLY, NULL},
	{NULL},
};
static PyMethodDef relay_methods[] = {
	{"start", relay_start, METH_NOARGS, "Begin, or go on with what another process began."},
	{"pause", relay_pause, METH_NOARGS, "Hear nothing until `start`: the relay is on its way to another process."},
	{"reset", relay_reset_method, METH_O, "reset(why): end both sides by RST."},
	{"close", relay_close, METH_NOARGS, "Give everything back. Pipes with bytes in them are thrown away."},
	{NULL},
};
static PyType_Slot relay_slots[] = {
	{Py_tp_doc, "Relay(loop, pipes, client, upstream, done, only=None): two non-blocking sockets joined until both ways "
		    "have ended."},
	{Py_tp_new, relay_new},
	{Py_tp_dealloc, relay_dealloc},
	{Py_tp_traverse, relay_traverse},
	{Py_tp_clear, relay_clear},
	{Py_tp_members, relay_members},
	{Py_tp_methods, relay_methods},
	{0, NULL},
};
PyType_Spec relay_spec = {
	"softunicast.proxy._relay.Relay", sizeof(Relay), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, relay_slots,
};
