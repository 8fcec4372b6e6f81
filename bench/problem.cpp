// What a line of a problem file may be, and the one place that checks it.
#include "problem.hpp"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <sstream>

namespace bench {
namespace {

// A word in capitals stands for a value; "..." behind the last one: it may come again.
constexpr const char* forms[] = {
    "gemm TYPE M N K BATCH",
    "hot TYPE M N K BATCH",
    "unscoped TYPE M N K BATCH",
    "shapes TYPE FILE BATCH",
    "epilogue TYPE M N K BATCH STEPS",
    "at_call TYPE M N K BATCH",
    "handle_call",
    "lookup DESCS THREADS",
    "generation FILE COUNT",
    "linear LINEAR_TYPE ROWS IN OUT THREADS",
    "product MATH M N K THREADS",
    "conv CONV_TYPE IMAGES IN OUT GROUPS HEIGHT WIDTH KERNEL_H KERNEL_W STRIDE_H STRIDE_W PAD_H PAD_W THREADS",
    "winograd IMAGES IN OUT HEIGHT WIDTH THREADS",
    "train LAYER_TYPE BATCH THREADS FEATURES FEATURES...",
    "train_cnn LAYER_TYPE BATCH THREADS CHANNELS...",
    "bandwidth BYTES THREADS",
    "peak TYPE THREADS",
};

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, separator);) {
    if (!part.empty() || separator != ' ') parts.push_back(part);
  }
  return parts;
}

// A word as it can be shown: no more than can be read, and nothing that a terminal would act on.
std::string quoted(const std::string& word) {
  std::string shown = "\"";
  for (const char c : word.substr(0, 40)) shown += c >= ' ' && c <= '~' ? c : '?';
  return shown + (word.size() > 40 ? "...\"" : "\"");
}

[[noreturn]] void fail(const problem& p, const std::string& text) {
  throw bad_problem(p.path + ":" + std::to_string(p.line) + ": " + text);
}

void expect_one_of(const problem& p, const std::string& name, const std::string& word,
                   const std::vector<std::string>& values) {
  if (std::find(values.begin(), values.end(), word) != values.end()) return;
  std::string list;
  for (const std::string& value : values) list += (list.empty() ? "" : ", ") + value;
  fail(p, name + " is " + quoted(word) + ", not one of: " + list);
}

// The largest sizes keep every product of four of them, and the bytes of such an operand, below 2^63.
void expect_number(const problem& p, const std::string& name, const std::string& word) {
  const std::int64_t most = name == "BYTES" ? std::int64_t{1} << 36 : name == "THREADS" ? 1024 : 32768;
  const std::int64_t least = name.starts_with("PAD") ? 0 : 1;
  std::int64_t value = 0;
  const auto [end, failed] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (failed == std::errc() && end == word.data() + word.size() && value >= least && value <= most) return;
  fail(p, name + " is " + quoted(word) + ", not a whole number from " + std::to_string(least) + " to " +
              std::to_string(most));
}

void expect_shapes(const problem& p, const std::string& word) try {
  read_shapes(p.folder + word);
} catch (const bad_problem& e) {
  fail(p, std::string("in FILE, ") + e.what());
}

void expect_value(const problem& p, const std::string& name, const std::string& word) {
  if (name == "TYPE") return expect_one_of(p, name, word, {"f32", "f64", "bf16", "u8s8"});
  if (name == "MATH") return expect_one_of(p, name, word, {"f32", "bf16x3", "bf16x2"});
  if (name == "LINEAR_TYPE") return expect_one_of(p, name, word, {"f32", "bf16", "bf16x3", "bf16x2", "u8s8"});
  if (name == "LAYER_TYPE") return expect_one_of(p, name, word, {"f32", "bf16"});
  if (name == "CONV_TYPE") return expect_one_of(p, name, word, {"f32", "bf16", "u8s8"});
  if (name == "FILE") return expect_shapes(p, word);
  if (name != "STEPS") return expect_number(p, name, word);
  if (word.back() == ',') fail(p, "a step is missing behind the last comma of " + quoted(word));
  for (const std::string& step : split(word, ',')) {
    expect_one_of(p, "a step", step, {"bias", "relu", "gelu_erf", "gelu_tanh", "requantise"});
  }
}

void expect_form(const problem& p, const std::string& form) {
  std::vector<std::string> names = split(form, ' ');
  if (names.back().ends_with("...")) {
    names.back().resize(names.back().size() - 3);
    names.resize(std::max(names.size(), p.words.size()), names.back());
  }
  if (names.size() != p.words.size()) {
    fail(p, "expected " + std::to_string(names.size()) + " words: " + form + "; there are " +
                std::to_string(p.words.size()));
  }
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (names[i].front() >= 'A' && names[i].front() <= 'Z') {
      expect_value(p, names[i], p.words[i]);
    } else {
      expect_one_of(p, "word " + std::to_string(i + 1), p.words[i], {names[i]});
    }
  }
}

std::string form_of(const problem& p) {
  std::string kinds;
  for (const std::string form : forms) {
    const std::string kind = form.substr(0, form.find(' '));
    if (p.words[0] == kind) return form;
    kinds += (kinds.empty() ? "" : ", ") + kind;
  }
  fail(p, "no kind of problem is called " + quoted(p.words[0]) + "; there are: " + kinds);
}

std::vector<problem> read_lines(const std::string& path) {
  const auto slash = path.find_last_of('/');
  problem p{path, 0, slash == std::string::npos ? "" : path.substr(0, slash + 1), "", {}};
  p.file = path.substr(p.folder.size());
  p.file = p.file.substr(0, p.file.find('.'));
  std::vector<problem> problems;
  std::ifstream in(path);
  if (!in) throw bad_problem(path + ": cannot be opened");
  for (std::string line; std::getline(in, line);) {
    ++p.line;
    std::istringstream words(line.substr(0, line.find('#')));
    p.words.clear();
    for (std::string word; words >> word;) p.words.push_back(word);
    if (!p.words.empty()) problems.push_back(p);
  }
  if (in.bad() || !in.eof()) throw bad_problem(path + ": cannot be read");
  if (problems.empty()) throw bad_problem(path + ":" + std::to_string(p.line) + ": it ends without a problem in it");
  return problems;
}

}  // namespace

std::vector<problem> read_problems(const std::string& path) {
  std::vector<problem> problems = read_lines(path);
  for (const problem& p : problems) expect_form(p, form_of(p));
  return problems;
}

std::vector<problem> read_shapes(const std::string& path) {
  std::vector<problem> shapes = read_lines(path);
  for (const problem& p : shapes) expect_form(p, "M N K");
  return shapes;
}

}  // namespace bench
