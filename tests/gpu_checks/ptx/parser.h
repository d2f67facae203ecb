// Reads a PTX file into kernels: names become slots, labels become places in the code.
#pragma once

#include <cctype>
#include <fstream>
#include <sstream>
#include <utility>

#include "arithmetic.h"
#include "instruction.h"

namespace ptx {

inline std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t\r\n"), last = text.find_last_not_of(" \t\r\n");
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

// Parts between commas that stand in no brackets, without the spaces around them.
inline std::vector<std::string> split_operands(const std::string& text) {
  std::vector<std::string> parts(1);
  int depth = 0;
  for (const char c : text) {
    depth += (c == '{' || c == '[') - (c == '}' || c == ']');
    if (c == ',' && depth == 0) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  for (std::string& part : parts) {
    part = trimmed(part);
  }
  return parts.size() == 1 && parts[0].empty() ? std::vector<std::string>{} : parts;
}

// record_conv2d<8,6> for _ZN8prunekit13record_conv2dILi8ELi6EEEv…: a name after its length, then numbers.
inline std::string short_name(const std::string& mangled) {
  const std::string space = "_ZN8prunekit";
  const size_t begin = mangled.find(space);
  char* rest = nullptr;
  const size_t length = begin == std::string::npos ? 0 : std::strtoul(&mangled[begin + space.size()], &rest, 10);
  if (length == 0 || rest[length] != 'I') {
    throw Error("a kernel of another name: " + mangled);
  }
  std::string name(rest, length);
  for (rest += length + 1; *rest == 'L'; ++rest) {
    name += rest[-1] == 'I' ? '<' : ',';
    name += std::to_string(std::strtol(rest + 2, &rest, 10));
  }
  return name + ">";
}

class Parser {
 public:
  static Module read(const std::string& path) {
    std::ifstream file(path);
    if (!file) {
      throw Error("cannot read " + path);
    }
    Parser parser;
    for (std::string line; std::getline(file, line);) {
      parser.text_ += line.substr(0, line.find("//")) + "\n";
    }
    parser.read_module();
    return std::move(parser.module_);
  }

 private:
  std::string text_;
  size_t at_ = 0;
  Module module_;
  std::string shared_name_, parameter_name_;
  Kernel* kernel_ = nullptr;
  std::vector<std::map<std::string, int>> scopes_;  // of registers
  std::map<std::string, int> labels_;
  std::map<std::string, std::vector<std::string>> tables_;
  std::map<uint64_t, int> constant_slots_;
  std::vector<std::pair<size_t, std::string>> jumps_;  // instructions, and the label or table that each names

  // What comes before any of `ends`, which is passed.
  std::string take_until(const char* ends) {
    const size_t end = text_.find_first_of(ends, at_);
    if (end == std::string::npos) {
      throw Error("the text ends too early");
    }
    const std::string taken = trimmed(text_.substr(at_, end - at_));
    at_ = end + 1;
    return taken;
  }

  bool skip_space() {
    at_ = std::min(text_.find_first_not_of(" \t\r\n", at_), text_.size());
    return at_ < text_.size();
  }

  void read_module() {
    while (skip_space()) {
      if (text_.compare(at_, 7, ".extern") == 0) {
        const std::string declared = take_until(";");
        const size_t first = declared.find_last_of(' ') + 1;
        shared_name_ = declared.substr(first, declared.find('[') - first);
      } else if (text_.compare(at_, 8, ".visible") == 0) {
        read_kernel();
      } else if (const std::string line = take_until("\n"); line[0] != '.') {
        throw Error("unknown outside of kernels: " + line);
      }
    }
  }

  void read_kernel() {
    const std::string head = take_until("("), parameter = take_until(")"), limits = take_until("{");
    const std::string name = short_name(head);
    kernel_ = &module_[name];
    const size_t size = parameter.find('['), limit = limits.find(".maxntid");
    const size_t first = parameter.find_last_of(" \t", size) + 1;
    parameter_name_ = parameter.substr(first, size - first);
    kernel_->parameter_bytes = std::atoi(parameter.c_str() + size + 1);
    kernel_->most_threads = limit == std::string::npos ? 1024 : std::atoi(limits.c_str() + limit + 8);
    scopes_.assign(1, {}), labels_.clear(), tables_.clear(), constant_slots_.clear(), jumps_.clear();
    while (!scopes_.empty()) {
      read_statement();
    }
    for (const auto& [at, label] : jumps_) {
      Instruction& jump = kernel_->code[at];
      const std::vector<std::string> names = jump.kind == Kind::TABLE_JUMP ? tables_[label] : std::vector{label};
      for (const std::string& target : names) {
        if (!labels_.count(target)) {
          throw Error("no label " + target);
        }
        jump.targets.push_back(labels_[target]);
      }
    }
  }

  void read_statement() {
    skip_space();
    if (text_[at_] == '{' || text_[at_] == '}' || text_[at_] == ';') {
      const char mark = text_[at_++];
      if (mark != ';') {
        mark == '{' ? static_cast<void>(scopes_.emplace_back()) : scopes_.pop_back();
      }
      return;
    }
    const size_t end = text_.find_first_of(":;", at_);
    if (end != std::string::npos && text_[end] == ':' && text_[end + 1] != ':') {
      const std::string label = take_until(":");
      skip_space();
      if (text_.compare(at_, 14, ".branchtargets") == 0) {
        tables_[label] = split_operands(take_until(";").substr(14));
      } else {
        labels_[label] = static_cast<int>(kernel_->code.size());
      }
      return;
    }
    const std::string statement = take_until(";");
    if (statement.rfind(".reg", 0) == 0) {
      declare(statement);
    } else if (statement.rfind(".pragma", 0) != 0) {
      kernel_->code.push_back(read_instruction(statement));
    }
  }

  // .reg .b32 %r<8>, place;
  void declare(const std::string& statement) {
    const size_t type = statement.find('.', 1);
    for (const std::string& name : split_operands(statement.substr(statement.find_first_of(" \t", type)))) {
      const size_t many = name.find('<');
      if (many == std::string::npos) {
        scopes_.back()[name] = kernel_->slots++;
        continue;
      }
      for (int i = 0; i < std::atoi(name.c_str() + many + 1); ++i) {
        scopes_.back()[name.substr(0, many) + std::to_string(i)] = kernel_->slots++;
      }
    }
  }

  int constant(uint64_t value) {
    const auto [found, is_new] = constant_slots_.emplace(value, kernel_->slots);
    if (is_new) {
      kernel_->constants[kernel_->slots++] = value;
    }
    return found->second;
  }

  int slot_of(const std::string& word) {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      if (const auto found = scope->find(word); found != scope->end()) {
        return found->second;
      }
    }
    if (word.rfind("%tid.", 0) == 0 || word.rfind("%ntid.", 0) == 0 || word.rfind("%ctaid.", 0) == 0 ||
        word.rfind("%nctaid.", 0) == 0) {
      const auto [found, is_new] = kernel_->specials.emplace(word, kernel_->slots);
      kernel_->slots += is_new;
      return found->second;
    }
    if (word == shared_name_ || word == parameter_name_) {
      return constant(word == shared_name_ ? SHARED_BASE : 0);
    }
    if (word.size() == 10 && word.rfind("0f", 0) == 0) {
      return constant(std::stoull(word.substr(2), nullptr, 16));
    }
    if (word.empty() || !(std::isdigit(static_cast<unsigned char>(word[0])) || word[0] == '-')) {
      throw Error("unknown operand " + word);
    }
    return constant(static_cast<uint64_t>(std::stoll(word, nullptr, 0)));
  }

  // One operand, or those in braces.
  std::vector<int> slots_of(const std::string& operand) {
    std::vector<int> slots;
    const bool is_many = operand[0] == '{';
    for (const std::string& word : split_operands(is_many ? operand.substr(1, operand.size() - 2) : operand)) {
      slots.push_back(slot_of(word));
    }
    return slots;
  }

  void add_address(Instruction& instruction, const std::string& operand) {
    const size_t plus = operand.find('+');
    if (operand.front() != '[' || operand.back() != ']') {
      throw Error("no address: " + operand);
    }
    instruction.sources.push_back(slot_of(trimmed(operand.substr(1, std::min(plus, operand.size() - 1) - 1))));
    if (plus != std::string::npos) {
      instruction.offset = std::stoll(operand.substr(plus + 1));
    }
  }

  static void append(std::vector<int>& to, const std::vector<int>& slots) {
    to.insert(to.end(), slots.begin(), slots.end());
  }

  Instruction read_instruction(const std::string& statement);
  void read_compute(Instruction& to, const std::string& name, const std::vector<std::string>& operands);
  void read_memory(Instruction& to, const std::string& name, const std::vector<std::string>& operands);
  void read_product(Instruction& to, const std::string& name, const std::vector<std::string>& operands);
  bool read_control(Instruction& to, const std::string& name, const std::vector<std::string>& operands);
};

}  // namespace ptx
