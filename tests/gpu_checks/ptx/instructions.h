// The instructions that the parser knows, by their names; what they do is in arithmetic.h and block.h.
#pragma once

#include "parser.h"

namespace ptx {

inline Type type_of(const std::string& name) {
  if (name == "pred") {
    return {'p', 1};
  }
  return {name[0], std::atoi(name.c_str() + name.find_first_of("0123456789"))};
}

inline bool begins(const std::string& name, const char* with) { return name.rfind(with, 0) == 0; }

inline Instruction Parser::read_instruction(const std::string& statement) {
  Instruction to;
  to.text = statement;
  std::string rest = statement;
  if (rest[0] == '@') {
    const size_t end = rest.find_first_of(" \t");
    to.is_guard_inverted = rest[1] == '!';
    to.guard = slot_of(rest.substr(1 + to.is_guard_inverted, end - 1 - to.is_guard_inverted));
    rest = trimmed(rest.substr(end));
  }
  const size_t end = std::min(rest.find_first_of(" \t"), rest.size());
  const std::string name = rest.substr(0, end);
  const std::vector<std::string> operands = split_operands(rest.substr(end));
  to.type = type_of(name.substr(name.find_last_of('.') + 1));
  to.result_bits = to.type.bits;
  if (begins(name, "ld.") || begins(name, "st.") || begins(name, "cp.async.ca.") || begins(name, "cp.async.cg.") ||
      begins(name, "ldmatrix.")) {
    read_memory(to, name, operands);
  } else if (begins(name, "mma.")) {
    read_product(to, name, operands);
  } else if (!read_control(to, name, operands)) {
    read_compute(to, name, operands);
  }
  return to;
}

inline void Parser::read_compute(Instruction& to, const std::string& name, const std::vector<std::string>& operands) {
  if (begins(name, "mov.") && (operands.at(0)[0] == '{' || operands.at(1)[0] == '{')) {
    to.kind = operands[0][0] == '{' ? Kind::UNPACK : Kind::PACK;
    to.results = slots_of(operands[0]), to.sources = slots_of(operands[1]);
    return;
  }
  const auto found = OPERATIONS.find(name.substr(0, name.find_last_of('.')));
  if (found == OPERATIONS.end() || static_cast<int>(operands.size()) != found->second.sources + 1) {
    throw Error("unknown instruction: " + to.text);
  }
  to.compute = found->second.compute;
  to.results = slots_of(operands[0]);
  for (size_t i = 1; i < operands.size(); ++i) {
    append(to.sources, slots_of(operands[i]));
  }
  const std::string what = found->first;
  to.result_bits = begins(what, "setp.") ? 1
      : what == "mul.wide"               ? 2 * to.type.bits
      : begins(what, "cvt.")             ? type_of(what.substr(what.find_last_of('.') + 1)).bits
                                         : to.type.bits;
  if (what == "cvta.to.global") {
    to.result_bits = 64;
  }
}

// ld.global.nc.v2.f32 {a, b}, [c+8]; cp.async.cg.shared.global [a], [b], 16, c; ldmatrix….x4.trans.shared.b16 {…}, [a]
inline void Parser::read_memory(Instruction& to, const std::string& name, const std::vector<std::string>& operands) {
  const auto has = [&](const char* part) { return (name + ".").find(part) != std::string::npos; };
  if (begins(name, "cp.async.")) {
    to.kind = Kind::COPY;
    add_address(to, operands.at(0));
    if (to.offset) {
      throw Error("unknown instruction: " + to.text);
    }
    add_address(to, operands.at(1));
    to.count = std::stoi(operands.at(2));
    append(to.sources, slots_of(operands.at(3)));
    return;
  }
  if (begins(name, "ldmatrix.")) {
    if (name != "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16") {
      throw Error("unknown instruction: " + to.text);
    }
    to.kind = Kind::LOAD_MATRICES;
    to.results = slots_of(operands.at(0));
    add_address(to, operands.at(1));
    return;
  }
  to.kind = begins(name, "ld.") ? Kind::LOAD : Kind::STORE;
  const bool is_load = to.kind == Kind::LOAD;
  if (!has(".param.") && !has(".shared.") && !has(".global.")) {
    throw Error("unknown instruction: " + to.text);
  }
  to.space = has(".param.") ? Space::PARAM : has(".shared.") ? Space::SHARED : Space::GLOBAL;
  to.is_read_only = has(".nc.");
  add_address(to, operands.at(is_load ? 1 : 0));
  append(is_load ? to.results : to.sources, slots_of(operands.at(is_load ? 0 : 1)));
  to.count = has(".v4.") ? 4 : has(".v2.") ? 2 : 1;
  if (static_cast<int>(is_load ? to.results.size() : to.sources.size() - 1) != to.count) {
    throw Error("unknown instruction: " + to.text);
  }
}

// mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 and its like.
inline void Parser::read_product(Instruction& to, const std::string& name, const std::vector<std::string>& operands) {
  const bool is_sparse = begins(name, "mma.sp::ordered_metadata.");
  to.kind = is_sparse ? Kind::MULTIPLY_SPARSE : Kind::MULTIPLY;
  to.is_bfloat16 = name.find(".bf16.") != std::string::npos;
  to.depth = std::atoi(name.c_str() + std::min(name.find("m16n8k") + 6, name.size()));
  const std::string size = "m16n8k" + std::to_string(to.depth), of = to.is_bfloat16 ? "bf16.bf16" : "f16.f16";
  const std::string known =
      (is_sparse ? "mma.sp::ordered_metadata" : "mma") + (".sync.aligned." + size) + ".row.col.f32.";
  if (name != known + of + ".f32" || (is_sparse ? to.depth != 32 : to.depth != 8 && to.depth != 16)) {
    throw Error("unknown instruction: " + to.text);
  }
  to.results = slots_of(operands.at(0));
  for (size_t i = 1; i < operands.size() - is_sparse; ++i) {
    append(to.sources, slots_of(operands[i]));
  }
  to.selector = is_sparse ? std::stoi(operands.at(5)) : 0;
  const size_t of_a = is_sparse ? 4 : to.depth / 4;
  if (to.sources.size() != of_a + to.depth / 8 + 4 + is_sparse) {
    throw Error("unknown instruction: " + to.text);
  }
}

inline bool Parser::read_control(Instruction& to, const std::string& name, const std::vector<std::string>& operands) {
  if (name == "bra" || name == "bra.uni" || name == "brx.idx.uni") {
    to.kind = name[2] == 'x' ? Kind::TABLE_JUMP : Kind::JUMP;
    to.sources = to.kind == Kind::TABLE_JUMP ? slots_of(operands.at(0)) : std::vector<int>{};
    jumps_.emplace_back(kernel_->code.size(), operands.back());
  } else if (name == "bar.sync" && operands == std::vector<std::string>{"0"}) {
    to.kind = Kind::BARRIER;
  } else if (name == "bar.red.or.pred" && operands.at(1) == "0") {
    to.kind = Kind::BARRIER_OR;
    to.results = slots_of(operands.at(0)), to.sources = slots_of(operands.at(2));
  } else if (name == "cp.async.commit_group") {
    to.kind = Kind::COMMIT_COPIES;
  } else if (name == "cp.async.wait_group") {
    to.kind = Kind::WAIT_FOR_COPIES;
    to.count = std::stoi(operands.at(0));
  } else if (name == "ret") {
    to.kind = Kind::RETURN;
  } else {
    return false;
  }
  return true;
}

}  // namespace ptx
