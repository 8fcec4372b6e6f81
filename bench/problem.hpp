// Problems as text: one a line, words separated by blanks, the first names the kind; # begins a comment.
#pragma once

#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace bench {

struct problem {
  std::string folder;              ///< of the file, with the slash; empty for the working directory
  std::string file;                ///< its name without extension
  std::vector<std::string> words;  ///< never empty

  std::int64_t number(std::size_t i) const { return i < words.size() ? std::stoll(words[i]) : 0; }
};

/// Problems of a file, in order; nothing where it cannot be read.
inline std::vector<problem> read_problems(const std::string& path) {
  const auto slash = path.find_last_of('/');
  const std::string folder = slash == std::string::npos ? "" : path.substr(0, slash + 1);
  std::string stem = path.substr(folder.size());
  stem = stem.substr(0, stem.find('.'));
  std::vector<problem> problems;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line.substr(0, line.find('#')));
    problem p{folder, stem, {}};
    for (std::string word; words >> word;) p.words.push_back(word);
    if (!p.words.empty()) problems.push_back(p);
  }
  return problems;
}

}  // namespace bench
