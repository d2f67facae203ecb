// The CPython module: importing it runs the op registrations; its functions tell what the kernels were compiled for.
#define Py_LIMITED_API 0x030a0000
#include <Python.h>

#include "conv_op.h"

namespace {

PyObject* architectures(PyObject*, PyObject*) { return PyUnicode_FromString(PRUNEKIT_CUDA_ARCHITECTURES); }

PyObject* toolkit_version(PyObject*, PyObject*) { return PyLong_FromLong(PRUNEKIT_CUDA_TOOLKIT); }

PyObject* signatures(PyObject*, PyObject*) {
  std::string text;
  for (const std::string& line : prunekit::signatures()) {
    text += line + "\n";
  }
  return PyUnicode_FromString(text.c_str());
}

PyMethodDef METHODS[] = {
    {"signatures", signatures, METH_NOARGS, "The names of every op's words, a line each."},
    {"architectures", architectures, METH_NOARGS, "The architectures that the kernels were compiled for."},
    {"toolkit_version", toolkit_version, METH_NOARGS, "1000 · major + 10 · minor of the toolkit that compiled them."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_cuda", nullptr, 0, METHODS, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__cuda() { return PyModule_Create(&MODULE); }
