// SPDX-License-Identifier: Apache-2.0
/*
 * epoll, and a handler for each descriptor.
 *
 * A descriptor's number is given again as soon as it is closed, perhaps while events of its predecessor wait in the
 * same round: each registration has a generation, which comes back with the event, and one that does not match is
 * dropped. Nothing here keeps a pointer into the table over a call that may run Python: the table may move.
 */
#include "relay.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

static int poller_room(Poller *self, int fd)
{
	size_t size = self->size ? self->size : 64;
	if (fd < 0) {
		errno = EBADF;
		return -1;
	}
	while (size <= (size_t)fd)
		size *= 2;
	if (size > self->size) {
		struct watch *table = PyMem_Realloc(self->table, size * sizeof *table);
		if (!table) {
			errno = ENOMEM;
			return -1;
		}
		memset(table + self->size, 0, (size - self->size) * sizeof *table);
		self->table = table;
		self->size = size;
	}
	return 0;
}

/* Register, or change what is registered. The table is what we think; the kernel, who forgets a descriptor that was
 * closed elsewhere, has the last word. -1 with errno. */
int poller_set(Poller *self, int fd, uint32_t mask, PyObject *handler, int side)
{
	if (poller_room(self, fd))
		return -1;
	struct watch *watch = &self->table[fd];
	struct epoll_event event = {.events = mask};
	event.data.u64 = (uint64_t)watch->generation << 32 | (uint32_t)fd;
	if (!watch->handler || epoll_ctl(self->epoll, EPOLL_CTL_MOD, fd, &event)) {
		event.data.u64 = (uint64_t)++watch->generation << 32 | (uint32_t)fd;
		if (epoll_ctl(self->epoll, EPOLL_CTL_ADD, fd, &event) &&
		    (errno != EEXIST || epoll_ctl(self->epoll, EPOLL_CTL_MOD, fd, &event)))
			return -1;
	}
	PyObject *before = watch->handler;
	watch->handler = Py_NewRef(handler);
	watch->mask = mask;
	watch->side = side;
	Py_XDECREF(before);
	return 0;
}

struct watch *poller_find(Poller *self, int fd)
{
	return fd >= 0 && (size_t)fd < self->size && self->table[fd].handler ? &self->table[fd] : NULL;
}

void poller_forget(Poller *self, int fd, bool tell)
{
	struct watch *watch = poller_find(self, fd);
	if (!watch)
		return;
	PyObject *before = watch->handler;
	watch->handler = NULL;
	watch->generation++;
	if (tell)
		epoll_ctl(self->epoll, EPOLL_CTL_DEL, fd, NULL);
	Py_DECREF(before);
}

static PyObject *poller_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	Poller *self = allocated(type);
	if (!self)
		return NULL;
	self->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (self->epoll < 0) {
		PyErr_SetFromErrno(PyExc_OSError);
		Py_DECREF(self);
		return NULL;
	}
	return (PyObject *)self;
}

static PyObject *poller_add(PyObject *self, PyObject *args)
{
	PyObject *handler;
	unsigned mask;
	int fd;
	if (!PyArg_ParseTuple(args, "iIO:add", &fd, &mask, &handler))
		return NULL;
	if (poller_set((Poller *)self, fd, mask, handler, CLIENT))
		return PyErr_SetFromErrno(PyExc_OSError);
	Py_RETURN_NONE;
}

static PyObject *poller_handle(PyObject *self, PyObject *args)
{
	Poller *poller = (Poller *)self;
	PyObject *handler;
	unsigned mask;
	int fd;
	if (!PyArg_ParseTuple(args, "iIO:handle", &fd, &mask, &handler))
		return NULL;
	struct watch *watch = poller_find(poller, fd);
	if (watch && watch->mask == mask) {
		PyObject *before = watch->handler;
		watch->handler = Py_NewRef(handler);
		Py_DECREF(before);
	} else if (poller_set(poller, fd, mask, handler, CLIENT)) {
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	Py_RETURN_NONE;
}

static PyObject *poller_modify(PyObject *self, PyObject *args)
{
	Poller *poller = (Poller *)self;
	unsigned mask;
	int fd;
	if (!PyArg_ParseTuple(args, "iI:modify", &fd, &mask))
		return NULL;
	struct watch *watch = poller_find(poller, fd);
	if (!watch) {
		errno = ENOENT;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	if (watch->mask != mask && poller_set(poller, fd, mask, watch->handler, watch->side))
		return PyErr_SetFromErrno(PyExc_OSError);
	Py_RETURN_NONE;
}

static PyObject *poller_remove(PyObject *self, PyObject *arg)
{
	int fd = (int)PyLong_AsLong(arg);
	if (fd == -1 && PyErr_Occurred())
		return NULL;
	poller_forget((Poller *)self, fd, true);
	Py_RETURN_NONE;
}

static PyObject *poller_forget_method(PyObject *self, PyObject *arg)
{
	int fd = (int)PyLong_AsLong(arg);
	if (fd == -1 && PyErr_Occurred())
		return NULL;
	poller_forget((Poller *)self, fd, false);
	Py_RETURN_NONE;
}

static PyObject *poller_wait(PyObject *self, PyObject *arg)
{
	Poller *poller = (Poller *)self;
	double timeout_s = PyFloat_AsDouble(arg);
	int count, timeout_ms = -1;
	if (timeout_s == -1 && PyErr_Occurred())
		return NULL;
	if (timeout_s >= 0) /* rounded up: a timer is not due before it is */
		timeout_ms = timeout_s > 1e6 ? 1000000000 : (int)(timeout_s * 1000 + 0.999);
	Py_BEGIN_ALLOW_THREADS
	count = epoll_wait(poller->epoll, poller->events, EVENTS, timeout_ms);
	Py_END_ALLOW_THREADS
	poller->at = 0;
	poller->count = count < 0 ? 0 : count;
	if (count < 0 && errno != EINTR)
		return PyErr_SetFromErrno(PyExc_OSError);
	if (count < 0 && PyErr_CheckSignals())
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *poller_dispatch(PyObject *self, PyObject *unused)
{
	Poller *poller = (Poller *)self;
	while (poller->at < poller->count) {
		struct epoll_event *event = &poller->events[poller->at++];
		uint32_t fd = (uint32_t)event->data.u64, generation = event->data.u64 >> 32, mask = event->events;
		struct watch *watch = &poller->table[fd];
		if (!watch->handler || watch->generation != generation)
			continue;
		PyObject *handler = Py_NewRef(watch->handler);
		int failed;
		if (Py_TYPE(handler) == relay_type) {
			failed = relay_ready((Relay *)handler, watch->side, mask);
		} else {
			PyObject *number = PyLong_FromUnsignedLong(mask);
			PyObject *result = number ? PyObject_CallFunctionObjArgs(handler, number, NULL) : NULL;
			failed = !result;
			Py_XDECREF(number);
			Py_XDECREF(result);
		}
		Py_DECREF(handler);
		if (failed)
			return NULL;
	}
	Py_RETURN_NONE;
}

static int poller_traverse(PyObject *self, visitproc visit, void *arg)
{
	Poller *poller = (Poller *)self;
	for (size_t fd = 0; fd < poller->size; fd++)
		Py_VISIT(poller->table[fd].handler);
	return visit_type(self, visit, arg);
}

static int poller_clear(PyObject *self)
{
	Poller *poller = (Poller *)self;
	for (size_t fd = 0; fd < poller->size; fd++)
		Py_CLEAR(poller->table[fd].handler);
	return 0;
}

static void poller_dealloc(PyObject *self)
{
	Poller *poller = (Poller *)self;
	PyObject_GC_UnTrack(self);
	poller_clear(self);
	PyMem_Free(poller->table);
	if (poller->epoll >= 0)
		close(poller->epoll);
	freed(self);
}

static PyMethodDef poller_methods[] = {
	{"add", poller_add, METH_VARARGS,
	 "add(fd, mask, handler): call it with the events of a descriptor; errors and hang-ups come whatever `mask` says."},
	{"modify", poller_modify, METH_VARARGS, "modify(fd, mask)"},
	{"handle", poller_handle, METH_VARARGS, "handle(fd, mask, handler): others for a descriptor that is here."},
	{"remove", poller_remove, METH_O, "remove(fd): no more events of it; may be called again."},
	{"forget", poller_forget_method, METH_O, "forget(fd): remove() of one that is closed at once by its only holder."},
	{"wait", poller_wait, METH_O, "wait(timeout_s): until something happens; without end if negative."},
	{"dispatch", poller_dispatch, METH_NOARGS,
	 "Call the handlers of what happened. After one raised, call again: the others have their turn."},
	{NULL},
};
static PyType_Slot poller_slots[] = {
	{Py_tp_doc, "epoll, and a handler for each descriptor."},
	{Py_tp_new, poller_new},
	{Py_tp_dealloc, poller_dealloc},
	{Py_tp_traverse, poller_traverse},
	{Py_tp_clear, poller_clear},
	{Py_tp_methods, poller_methods},
	{0, NULL},
};
PyType_Spec poller_spec = {
	"softunicast.proxy._relay.Poller", sizeof(Poller), 0,
	Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, poller_slots,
};
