// SPDX-License-Identifier: Apache-2.0
/* Pipes that bytes pass through, and a store of empty ones. */
#include "relay.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

static PyObject *pipe_made(int read, int write)
{
	Pipe *self = allocated(pipe_type);
	if (self) {
		self->read = read;
		self->write = write;
	}
	return (PyObject *)self;
}

static PyObject *pipe_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	int read, write;
	if (!PyArg_ParseTuple(args, "ii:Pipe", &read, &write))
		return NULL;
	return pipe_made(read, write);
}

static void pipe_shut(Pipe *self)
{
	if (self->read >= 0) {
		close(self->read);
		close(self->write);
		self->read = self->write = -1;
	}
}

static PyObject *pipe_close(PyObject *self, PyObject *unused)
{
	pipe_shut((Pipe *)self);
	Py_RETURN_NONE;
}

static void pipe_dealloc(PyObject *self)
{
	pipe_shut((Pipe *)self);
	freed(self);
}

static PyMemberDef pipe_members[] = {
	{"read", T_INT, offsetof(Pipe, read), READONLY, NULL},
	{"write", T_INT, offsetof(Pipe, write), READONLY, NULL},
	{NULL},
};
static PyMethodDef pipe_methods[] = {
	{"close", pipe_close, METH_NOARGS, "Both descriptors; may be called again."},
	{NULL},
};
static PyType_Slot pipe_slots[] = {
	{Py_tp_doc, "Pipe(read, write): two descriptors, closed with it."},
	{Py_tp_new, pipe_new},
	{Py_tp_dealloc, pipe_dealloc},
	{Py_tp_members, pipe_members},
	{Py_tp_methods, pipe_methods},
	{0, NULL},
};
PyType_Spec pipe_spec = {"softunicast.proxy._relay.Pipe", sizeof(Pipe), 0, Py_TPFLAGS_DEFAULT, pipe_slots};

Pipe *taken(Pipes *self)
{
	int fds[2];
	if (self->count)
		return self->free[--self->count];
	if (pipe2(fds, O_NONBLOCK | O_CLOEXEC))
		return NULL;
	/* When the user's share of pipe memory is used up, smaller ones do, only slower. */
	fcntl(fds[1], F_SETPIPE_SZ, PIPE_BYTES);
	Pipe *made = (Pipe *)pipe_made(fds[0], fds[1]);
	if (!made) {
		PyErr_Clear();
		close(fds[0]);
		close(fds[1]);
		errno = ENOMEM;
	}
	return made;
}

void given(Pipes *self, Pipe *pipe)
{
	if (self->count < FREE_PIPES && pipe->read >= 0)
		self->free[self->count++] = pipe;
	else
		Py_DECREF(pipe);
}

static PyObject *pipes_take(PyObject *self, PyObject *unused)
{
	Pipe *pipe = taken((Pipes *)self);
	return pipe ? (PyObject *)pipe : PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *pipes_give(PyObject *self, PyObject *pipe)
{
	if (!PyObject_TypeCheck(pipe, pipe_type))
		return PyErr_Format(PyExc_TypeError, "not a Pipe");
	Py_INCREF(pipe);
	given((Pipes *)self, (Pipe *)pipe);
	Py_RETURN_NONE;
}

static void pipes_dealloc(PyObject *self)
{
	Pipes *pipes = (Pipes *)self;
	PyObject_GC_UnTrack(self);
	while (pipes->count)
		Py_DECREF(pipes->free[--pipes->count]);
	freed(self);
}

static PyMethodDef pipes_methods[] = {
	{"take", pipes_take, METH_NOARGS, "An empty pipe. OSError (EMFILE) when there is none to be had."},
	{"give", pipes_give, METH_O, "An empty one comes back."},
	{NULL},
};
static PyType_Slot pipes_slots[] = {
	{Py_tp_doc, "Empty pipes, kept for the next one who needs one."},
	{Py_tp_dealloc, pipes_dealloc},
	{Py_tp_traverse, visit_type},
	{Py_tp_methods, pipes_methods},
	{0, NULL},
};
PyType_Spec pipes_spec = {
	"softunicast.proxy._relay.Pipes", sizeof(Pipes), 0,
	Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, pipes_slots,
};
