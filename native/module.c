// SPDX-License-Identifier: Apache-2.0
/* The module: its types, and what is done with sockets in one call that would be several. */
#include "relay.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

PyTypeObject *pipe_type, *pipes_type, *way_type, *end_type, *poller_type, *relay_type;

void *allocated(PyTypeObject *type)
{
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	return alloc(type, 0);
}

void freed(void *self)
{
	PyTypeObject *type = Py_TYPE(self);
	freefunc free_it = (freefunc)PyType_GetSlot(type, Py_tp_free);
	free_it(self);
	Py_DECREF(type);
}

int visit_type(PyObject *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	return 0;
}

/* Address and port of a sockaddr as Python has them; `text` is of INET6_ADDRSTRLEN. */
static int place(const struct sockaddr_storage *from, char *text)
{
	if (from->ss_family == AF_INET6) {
		const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)from;
		inet_ntop(AF_INET6, &six->sin6_addr, text, INET6_ADDRSTRLEN);
		return ntohs(six->sin6_port);
	}
	const struct sockaddr_in *four = (const struct sockaddr_in *)from;
	inet_ntop(AF_INET, &four->sin_addr, text, INET6_ADDRSTRLEN);
	return ntohs(four->sin_port);
}

static PyObject *accepted(PyObject *module, PyObject *arg)
{
	struct sockaddr_storage peer;
	socklen_t size = sizeof peer;
	char text[INET6_ADDRSTRLEN];
	int fd, listener = (int)PyLong_AsLong(arg);
	if (listener == -1 && PyErr_Occurred())
		return NULL;
	fd = accept4(listener, (struct sockaddr *)&peer, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd < 0 && errno == EAGAIN)
		Py_RETURN_NONE;
	if (fd < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	int port = place(&peer, text);
	PyObject *made = Py_BuildValue("(isi)", fd, text, port);
	if (!made)
		close(fd);
	return made;
}

static PyObject *connected(PyObject *module, PyObject *args)
{
	struct sockaddr_storage to = {0};
	char text[INET6_ADDRSTRLEN];
	const char *address;
	Py_ssize_t length;
	unsigned port, scope;
	int fd;
	if (!PyArg_ParseTuple(args, "iy#II:connect", &fd, &address, &length, &port, &scope))
		return NULL;
	if (length == 16) {
		struct sockaddr_in6 *six = (struct sockaddr_in6 *)&to;
		six->sin6_family = AF_INET6;
		six->sin6_port = htons(port);
		six->sin6_scope_id = scope;
		memcpy(&six->sin6_addr, address, 16);
	} else if (length == 4) {
		struct sockaddr_in *four = (struct sockaddr_in *)&to;
		four->sin_family = AF_INET;
		four->sin_port = htons(port);
		memcpy(&four->sin_addr, address, 4);
	} else {
		return PyErr_Format(PyExc_ValueError, "an address of 4 or 16 bytes");
	}
	socklen_t size = to.ss_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
	if (connect(fd, (struct sockaddr *)&to, size) && errno != EINPROGRESS)
		return Py_BuildValue("(isi)", errno, "", 0);
	size = sizeof to;
	if (getsockname(fd, (struct sockaddr *)&to, &size))
		return Py_BuildValue("(isi)", errno, "", 0);
	int here = place(&to, text);
	return Py_BuildValue("(isi)", 0, text, here);
}

static PyObject *tuned(PyObject *module, PyObject *args)
{
	int fd, idle_s, one = 1;
	if (!PyArg_ParseTuple(args, "ii:tune", &fd, &idle_s))
		return NULL;
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) ||
	    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s))
		return PyErr_SetFromErrno(PyExc_OSError);
	Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
	{"accept", accepted, METH_O,
	 "accept(listener) -> (fd, address, port): a client's socket, non-blocking; None: nobody waits. OSError."},
	{"connect", connected, METH_VARARGS,
	 "connect(fd, address, port, scope) -> (errno, address, port): begin; 0, and our end of it as text, or why not."},
	{"tune", tuned, METH_VARARGS,
	 "tune(fd, idle_s): TCP_NODELAY, and keep-alive probes once it idles so long. OSError."},
	{NULL},
};
static struct PyModuleDef module = {
	PyModuleDef_HEAD_INIT, "softunicast.proxy._relay", "See _relay.pyi, loop.py and relay.py.", -1, functions,
};

PyMODINIT_FUNC PyInit__relay(void)
{
	static const struct {
		PyTypeObject **type;
		PyType_Spec *spec;
	} types[] = {
		{&pipe_type, &pipe_spec}, {&pipes_type, &pipes_spec},	{&way_type, &way_spec},
		{&end_type, &end_spec},	  {&poller_type, &poller_spec}, {&relay_type, &relay_spec},
	};
	PyObject *made = PyModule_Create(&module);
	if (!made)
		return NULL;
	for (size_t each = 0; each < sizeof types / sizeof *types; each++) {
		*types[each].type = (PyTypeObject *)PyType_FromSpec(types[each].spec);
		if (!*types[each].type || PyModule_AddType(made, *types[each].type)) {
			Py_DECREF(made);
			return NULL;
		}
	}
	return made;
}
