// Reads every include of the library and fails on an arrow that docs/architecture.md does not have; and fails on a test
// source that tests/CMakeLists.txt does not name.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

const fs::path root = BRGEMM_SOURCE_DIR;
const fs::path library = root / "include" / "brgemm";

// A room may include itself and what is listed.
using rooms = std::set<std::string>;
const std::map<std::string, rooms> may_include = {
    {"core", {}},
    {"backend", {"core"}},
    {"kernel", {"core", "backend"}},
    {"loops", {"core", "backend", "kernel"}},
    {"nn", {"core", "backend", "kernel", "loops"}},
    {"train", {"core", "backend", "kernel", "loops", "nn"}},
    {"dist", {"core", "backend", "kernel", "loops", "nn", "train"}},
    {"graph", {"core", "backend", "kernel", "loops", "nn", "train"}},
    {"secure", {"core", "backend", "kernel", "loops", "nn", "train"}},
    {"serve", {"core", "backend", "kernel", "loops", "nn", "train", "dist", "graph", "secure"}},
};

std::string text_of(const fs::path& file) {
  std::ifstream in(file);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

std::vector<fs::path> files_under(const fs::path& folder, const std::string& ending) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file() && entry.path().filename().string().ends_with(ending)) files.push_back(entry.path());
  }
  return files;
}

// The room of a header: the first folder below include/brgemm; "" for version.hpp and the umbrella.
std::string room_of(const fs::path& header) {
  const fs::path inside = fs::relative(header, library);
  return inside.has_parent_path() ? inside.begin()->string() : "";
}

// What is wrong with one include; empty where nothing is.
std::string complaint(const fs::path& from, bool quoted, const std::string& name) {
  if (!quoted) return name.starts_with("brgemm/") ? "includes <" + name + ">, not by a relative path" : "";
  const fs::path to = (from.parent_path() / name).lexically_normal();
  if (!fs::exists(to)) return "includes \"" + name + "\", which is not there";
  const std::string here = room_of(from), there = room_of(to);
  if (to.filename() == "brgemm.hpp") return "includes the umbrella";
  if (there.empty() || here == there) return "";
  if (here.empty()) {
    const rooms umbrella = {"core", "backend", "kernel", "loops", "nn"};
    return from.filename() == "brgemm.hpp" && umbrella.contains(there) ? "" : "may not include " + there + "/";
  }
  const auto allowed = may_include.find(here);
  if (allowed == may_include.end()) return "stands in a room that is not in the list";
  return allowed->second.contains(there) ? "" : here + "/ may not include " + there + "/";
}

std::vector<std::string> complaints_of(const fs::path& file, const std::string& text) {
  static const std::regex include(R"(^\s*#\s*include\s*([<"])([^>"]+)[>"])", std::regex::multiline);
  std::vector<std::string> all;
  for (std::sregex_iterator i(text.begin(), text.end(), include), end; i != end; ++i) {
    const std::string what = complaint(file, (*i)[1] == "\"", (*i)[2]);
    if (!what.empty()) all.push_back(fs::relative(file, root).string() + " " + what);
  }
  return all;
}

TEST(Layering, EveryIncludeFollowsTheArrows) {
  const auto headers = files_under(library, ".hpp");
  ASSERT_GT(headers.size(), 5u);
  for (const fs::path& header : headers) {
    for (const std::string& what : complaints_of(header, text_of(header))) ADD_FAILURE() << what;
  }
}

TEST(Layering, AWrongArrowIsSeen) {
  EXPECT_EQ(complaints_of(library / "core/desc.hpp", "#include \"../backend/backend.hpp\"\n").size(), 1u);
  EXPECT_EQ(complaints_of(library / "core/desc.hpp", "#include <brgemm/core/types.hpp>\n").size(), 1u);
  EXPECT_EQ(complaints_of(library / "core/desc.hpp", "#include \"nothing.hpp\"\n").size(), 1u);
  EXPECT_EQ(complaints_of(library / "brgemm.hpp", "#include \"core/desc.hpp\"\n").size(), 0u);
}

TEST(Layering, EveryHeaderSaysPragmaOnce) {
  for (const fs::path& header : files_under(library, ".hpp")) {
    EXPECT_NE(text_of(header).find("#pragma once"), std::string::npos) << header;
  }
}

TEST(Layering, EveryTestIsInTheList) {
  const std::string list = text_of(root / "tests" / "CMakeLists.txt");
  for (const fs::path& test : files_under(root / "tests", "_test.cpp")) {
    const std::string name = fs::relative(test, root / "tests").string();
    EXPECT_NE(list.find("(" + name), std::string::npos) << "tests/CMakeLists.txt does not name " << name;
  }
}

}  // namespace
