// The CPython module: importing it runs the op registrations; its functions tell which instruction sets are here.
#define Py_LIMITED_API 0x030a0000
#include <Python.h>

#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "cpu/instruction_sets.h"
#include "cpu/machine.h"
#include "cpu/plan.h"

namespace {

PyObject* instruction_set(PyObject*, PyObject*) { return PyUnicode_FromString(prunekit::instruction_set().name); }

// A list of what `make` makes of each.
template <typename Range, typename Make>
PyObject* list_of(const Range& range, const Make& make) {
  PyObject* list = PyList_New(0);
  for (const auto& each : range) {
    PyObject* entry = make(each);
    if (!list || !entry || PyList_Append(list, entry) < 0) {
      Py_XDECREF(entry);
      Py_XDECREF(list);
      return nullptr;
    }
    Py_DECREF(entry);
  }
  return list;
}

PyObject* compiled_instruction_sets(PyObject*, PyObject*) {
  return list_of(prunekit::compiled_instruction_sets(), [](const prunekit::InstructionSet* set) {
    return Py_BuildValue("(sO)", set->name, prunekit::is_supported(*set) ? Py_True : Py_False);
  });
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

constexpr const char* PLAN = "prunekit._native.Plan";

void delete_plan(PyObject* capsule) { delete static_cast<prunekit::Plan*>(PyCapsule_GetPointer(capsule, PLAN)); }

// Reads bytes as int64 words; false with a Python error set when it is no bytes object of whole words.
bool read_words(PyObject* bytes, std::vector<int64_t>& words) {
  char* data = nullptr;
  Py_ssize_t size = 0;
  if (PyBytes_AsStringAndSize(bytes, &data, &size) < 0) {
    return false;
  }
  words.resize(size / sizeof(int64_t));
  std::memcpy(words.data(), data, words.size() * sizeof(int64_t));
  return true;
}

// Calls f without the GIL; C++'s exceptions become Python's.
template <typename F>
bool call_without_gil(const F& f) {
  std::string error;
  bool is_out_of_memory = false;
  PyThreadState* state = PyEval_SaveThread();
  try {
    f();
  } catch (const std::bad_alloc&) {
    is_out_of_memory = true;
  } catch (const std::exception& e) {
    error = std::string("prunekit: ") + e.what();
  }
  PyEval_RestoreThread(state);
  if (is_out_of_memory) {
    PyErr_NoMemory();
  } else if (!error.empty()) {
    PyErr_SetString(PyExc_RuntimeError, error.c_str());
  }
  return !is_out_of_memory && error.empty();
}

// make_plan(steps: bytes, arena elements, inputs, outputs)
PyObject* make_plan(PyObject*, PyObject* arguments) {
  PyObject* bytes = nullptr;
  long long arena = 0, inputs = 0, outputs = 0;
  std::vector<int64_t> words;
  if (!PyArg_ParseTuple(arguments, "OLLL", &bytes, &arena, &inputs, &outputs) || !read_words(bytes, words)) {
    return nullptr;
  }
  prunekit::Plan* plan = nullptr;
  const auto make = [&] { plan = new prunekit::Plan(words.data(), words.size(), arena, inputs, outputs); };
  return call_without_gil(make) ? PyCapsule_New(plan, PLAN, delete_plan) : nullptr;
}

// run_plan(plan, tensors: bytes of (address, batch stride) of each input, then of each output, batch, address of
// int64 [steps] for the steps' ends in nanoseconds, or 0, address of an arena, or 0)
PyObject* run_plan(PyObject*, PyObject* arguments) {
  PyObject *capsule = nullptr, *bytes = nullptr;
  long long batch = 0, step_ends = 0, arena = 0;
  std::vector<int64_t> words;
  if (!PyArg_ParseTuple(arguments, "OOLLL", &capsule, &bytes, &batch, &step_ends, &arena) ||
      !read_words(bytes, words)) {
    return nullptr;
  }
  const auto* plan = static_cast<const prunekit::Plan*>(PyCapsule_GetPointer(capsule, PLAN));
  if (!plan) {
    return nullptr;
  }
  if (static_cast<int64_t>(words.size()) != 2 * (plan->num_inputs() + plan->num_outputs())) {
    return PyErr_Format(PyExc_ValueError, "run_plan expects an address and a stride for every input and output");
  }
  std::vector<prunekit::Image> inputs;
  std::vector<prunekit::Result> outputs;
  for (size_t i = 0; i < words.size(); i += 2) {
    if (static_cast<int64_t>(i / 2) < plan->num_inputs()) {
      inputs.push_back({reinterpret_cast<const float*>(words[i]), words[i + 1]});
    } else {
      outputs.push_back({reinterpret_cast<float*>(words[i]), words[i + 1]});
    }
  }
  const auto run = [&] {
    plan->run(inputs, outputs, batch, reinterpret_cast<int64_t*>(step_ends), reinterpret_cast<float*>(arena));
  };
  if (!call_without_gil(run)) {
    return nullptr;
  }
  Py_RETURN_NONE;
}

// step_declarations() → [(kind, name, fields, words)]
PyObject* step_declarations(PyObject*, PyObject*) {
  return list_of(prunekit::step_declarations(), [](const prunekit::StepDeclaration& step) {
    return Py_BuildValue(
        "(LssL)", static_cast<long long>(step.kind), step.name, step.fields, static_cast<long long>(step.words));
  });
}

PyObject* measured(double (*measure)()) {
  double found = 0;
  return call_without_gil([&] { found = measure(); }) ? PyFloat_FromDouble(found) : nullptr;
}

PyObject* fma_peak_gflops(PyObject*, PyObject*) { return measured(prunekit::fma_peak_gflops); }

PyObject* shared_write_ns(PyObject*, PyObject*) { return measured(prunekit::shared_write_ns); }

PyObject* vector_times(PyObject*, PyObject* argument) {
  const int64_t bytes = PyLong_AsLongLong(argument);
  if (PyErr_Occurred()) {
    return nullptr;
  }
  prunekit::VectorTimes times{};
  const auto measure = [&] { times = prunekit::vector_times(bytes); };
  return call_without_gil(measure) ? Py_BuildValue("(dd)", times.multiply_add_ns, times.rewrite_ns) : nullptr;
}

PyObject* lane_layout(PyObject*, PyObject*) {
  const prunekit::LaneKernels& kernels = prunekit::lane_kernels();
  return Py_BuildValue(
      "(L(LLL))", static_cast<long long>(kernels.lanes), static_cast<long long>(kernels.max_vectors[0]),
      static_cast<long long>(kernels.max_vectors[1]), static_cast<long long>(kernels.max_vectors[2]));
}

PyObject* quad_layout(PyObject*, PyObject*) {
  const prunekit::QuadKernels& kernels = prunekit::quad_kernels();
  return Py_BuildValue(
      "(LLsLL)", static_cast<long long>(kernels.max_vectors), static_cast<long long>(kernels.x_shift), kernels.dot,
      static_cast<long long>(kernels.rate), static_cast<long long>(kernels.max_pair));
}

PyMethodDef METHODS[] = {
    {"make_plan", make_plan, METH_VARARGS, "Check a plan's steps and return the plan."},
    {"step_declarations", step_declarations, METH_NOARGS, "The words of each kind of step, as C++ declares them."},
    {"run_plan", run_plan, METH_VARARGS, "Run a plan on a batch of images."},
    {"fma_peak_gflops", fma_peak_gflops, METH_NOARGS,
     "10^9 float32 operations a second that torch's threads do in registers, multiply-adds counted as two."},
    {"shared_write_ns", shared_write_ns, METH_NOARGS,
     "Nanoseconds a cache line to write what another thread has read."},
    {"vector_times", vector_times, METH_O,
     "Nanoseconds a vector takes to be multiplied and added, and to be rewritten, in memory of some bytes."},
    {"lane_layout", lane_layout, METH_NOARGS,
     "Lanes of a vector, and the longest tiles in vectors for 1, 2 and 4 rows, of the instruction set in use."},
    {"quad_layout", quad_layout, METH_NOARGS,
     "Of int8 kernels: longest tiles in vectors, the shift of their input, the instruction, its work over float32's."},
    {"instruction_set", instruction_set, METH_NOARGS, "Name of the instruction set in use."},
    {"compiled_instruction_sets", compiled_instruction_sets, METH_NOARGS,
     "List of (name, is supported by this processor), best first."},
    {"use_instruction_set", use_instruction_set, METH_O, "Use another compiled instruction set from now on."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_native", nullptr, 0, METHODS, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__native() { return PyModule_Create(&MODULE); }
