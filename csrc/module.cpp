// The CPython module: importing it runs the op registrations; its functions tell which instruction sets are here.
#define Py_LIMITED_API 0x030a0000
#include <Python.h>

#include "cpu/instruction_sets.h"

namespace {

PyObject* instruction_set(PyObject*, PyObject*) {
  return PyUnicode_FromString(prunekit::instruction_set().name);
}

PyObject* compiled_instruction_sets(PyObject*, PyObject*) {
  PyObject* names = PyList_New(0);
  for (const prunekit::InstructionSet* set : prunekit::compiled_instruction_sets()) {
    PyObject* entry = Py_BuildValue("(sO)", set->name, prunekit::is_supported(*set) ? Py_True : Py_False);
    if (!names || !entry || PyList_Append(names, entry) < 0) {
      Py_XDECREF(entry);
      Py_XDECREF(names);
      return nullptr;
    }
    Py_DECREF(entry);
  }
  return names;
}

PyObject* use_instruction_set(PyObject*, PyObject* argument) {
  Py_ssize_t length = 0;
  const char* name = PyUnicode_AsUTF8AndSize(argument, &length);
  if (!name) {
    return nullptr;
  }
  if (!prunekit::use_instruction_set(std::string(name, length))) {
    return PyErr_Format(PyExc_ValueError, "instruction set '%s' is not compiled in or not supported here", name);
  }
  Py_RETURN_NONE;
}

PyMethodDef METHODS[] = {
    {"instruction_set", instruction_set, METH_NOARGS, "Name of the instruction set in use."},
    {"compiled_instruction_sets", compiled_instruction_sets, METH_NOARGS,
     "List of (name, is supported by this processor), best first."},
    {"use_instruction_set", use_instruction_set, METH_O, "Use another compiled instruction set from now on."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_native", nullptr, 0, METHODS, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__native() { return PyModule_Create(&MODULE); }
