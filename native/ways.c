// SPDX-License-Identifier: Apache-2.0
/* The two directions and the two sockets of a relay: what Python may see and, for those it was given, set. */
#include "relay.h"

static PyObject *way_pipe(PyObject *self, void *unused)
{
	PyObject *pipe = (PyObject *)((Way *)self)->pipe;
	return Py_NewRef(pipe ? pipe : Py_None);
}

static int way_set_pipe(PyObject *self, PyObject *pipe, void *unused)
{
	if (!pipe || (pipe != Py_None && !PyObject_TypeCheck(pipe, pipe_type))) {
		PyErr_SetString(PyExc_TypeError, "a Pipe or None");
		return -1;
	}
	Pipe *before = ((Way *)self)->pipe;
	((Way *)self)->pipe = pipe == Py_None ? NULL : (Pipe *)Py_NewRef(pipe);
	Py_XDECREF(before);
	return 0;
}

static PyObject *way_left(PyObject *self, void *unused)
{
	long long left = ((Way *)self)->left;
	if (left == ALL)
		Py_RETURN_NONE;
	return PyLong_FromLongLong(left);
}

int left_from(PyObject *value, long long *left)
{
	*left = ALL;
	if (!value || value == Py_None)
		return 0;
	*left = PyLong_AsLongLong(value);
	if (*left < 0 && !PyErr_Occurred())
		PyErr_SetString(PyExc_ValueError, "left: 0 or more, or None");
	return *left < 0 ? -1 : 0;
}

static int way_set_left(PyObject *self, PyObject *value, void *unused)
{
	return left_from(value, &((Way *)self)->left);
}

static void way_dealloc(PyObject *self)
{
	Py_XDECREF(((Way *)self)->pipe);
	freed(self);
}

static PyMemberDef way_members[] = {
	{"held", T_LONGLONG, offsetof(Way, held), 0, "bytes in the pipe"},
	{"moved", T_LONGLONG, offsetof(Way, moved), 0, "bytes delivered"},
	{"eof", T_BOOL, offsetof(Way, eof), 0, "nothing more is read"},
	{"shut", T_BOOL, offsetof(Way, shut), 0, "the sink was told so"},
	{NULL},
};
static PyGetSetDef way_getset[] = {
	{"pipe", way_pipe, way_set_pipe, "while there are bytes in it", NULL},
	{"left", way_left, way_set_left, "how many more may pass; None: all", NULL},
	{NULL},
};
static PyType_Slot way_slots[] = {
	{Py_tp_doc, "One direction of a Relay."},
	{Py_tp_dealloc, way_dealloc},
	{Py_tp_members, way_members},
	{Py_tp_getset, way_getset},
	{0, NULL},
};
PyType_Spec way_spec = {
	"softunicast.proxy._relay.Way", sizeof(Way), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, way_slots,
};

static void end_dealloc(PyObject *self)
{
	Py_XDECREF(((End *)self)->sock);
	freed(self);
}

static PyMemberDef end_members[] = {
	{"fd", T_INT, offsetof(End, fd), READONLY, NULL},
	{"sock", T_OBJECT_EX, offsetof(End, sock), READONLY, NULL},
	{NULL},
};
static PyType_Slot end_slots[] = {
	{Py_tp_doc, "A socket of a Relay."},
	{Py_tp_dealloc, end_dealloc},
	{Py_tp_members, end_members},
	{0, NULL},
};
PyType_Spec end_spec = {
	"softunicast.proxy._relay.End", sizeof(End), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, end_slots,
};
