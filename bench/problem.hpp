// Problems as text: one a line, words separated by blanks, the first names the kind; # begins a comment. What a line
// may be stands in problem.cpp, and nowhere else: what is read here needs no further check.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace bench {

/// "FILE:LINE: what is there, and what was expected".
struct bad_problem : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct problem {
  std::string path;                ///< of the file
  int line = 0;                    ///< in the file, from 1
  std::string folder;              ///< of the file, with the slash; empty for the working directory
  std::string file;                ///< its name without extension
  std::vector<std::string> words;  ///< as many as the kind wants

  /// Word i, which the kind's form calls a number.
  std::int64_t number(std::size_t i) const { return std::stoll(words.at(i)); }
};

/// Problems of a file, in order, at least one. Throws bad_problem.
std::vector<problem> read_problems(const std::string& path);

/// Shapes of a file, "M N K" a line, at least one. Throws bad_problem.
std::vector<problem> read_shapes(const std::string& path);

}  // namespace bench
