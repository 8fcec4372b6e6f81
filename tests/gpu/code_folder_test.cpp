// Compiled code in a folder: found again by its whole key, and by nothing less; the folder's bound; folders that cannot
// be written.
#include "code_folder.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <thread>

namespace brgemm::cuda {
namespace {

namespace fs = std::filesystem;

class GpuCodeFolder : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "brgemm_code_XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    path_ = fs::path(name) / "made" / "when needed";
  }
  void TearDown() override { fs::remove_all(path_.parent_path().parent_path()); }
  std::size_t files() const {
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(path_), fs::directory_iterator()));
  }
  fs::path path_;
  const std::vector<char> code_ = {'c', 'o', '\0', 'd', 'e'};
};

TEST_F(GpuCodeFolder, FindsWhatItKept) {
  const code_folder folder(path_.string());
  EXPECT_FALSE(folder.find("key"));
  EXPECT_TRUE(folder.keep("key", code_));
  EXPECT_EQ(folder.find("key"), code_);
  EXPECT_FALSE(folder.find("another key"));
  EXPECT_EQ(code_folder(path_.string()).find("key"), code_);
  EXPECT_EQ(files(), 1u);  // nothing unfinished
}

TEST_F(GpuCodeFolder, ReadsNoFileThatIsNotWhole) {
  const code_folder folder(path_.string());
  ASSERT_TRUE(folder.keep("key", code_));
  const fs::path file = folder.file_of("key");
  std::ifstream in(file, std::ios::binary);
  const std::string whole{std::istreambuf_iterator<char>(in), {}};
  const auto finds = [&](const std::string& content) {
    std::ofstream(file, std::ios::binary) << content;
    return folder.find("key").has_value();
  };
  EXPECT_TRUE(finds(whole));
  for (std::size_t i = 0; i < whole.size(); ++i) {
    EXPECT_FALSE(finds(whole.substr(0, i))) << i;
    std::string changed = whole;
    changed[i] = static_cast<char>(changed[i] ^ 1);
    EXPECT_FALSE(finds(changed)) << i;
  }
  EXPECT_FALSE(finds(whole + "x"));
  fs::copy_file(folder.file_of("key"), folder.file_of("other"));  // as two keys of one hash
  std::ofstream(file, std::ios::binary) << whole;
  fs::copy_file(file, folder.file_of("other"), fs::copy_options::overwrite_existing);
  EXPECT_FALSE(folder.find("other"));
}

TEST_F(GpuCodeFolder, TheOldestFilesGo) {
  const std::vector<char> kilobyte(1024, 'x');
  const code_folder folder(path_.string(), 4 << 10);
  for (int i = 0; i < 8; ++i) {
    const std::string key = "key " + std::to_string(i);
    ASSERT_TRUE(folder.keep(key, kilobyte));
    fs::last_write_time(folder.file_of(key), fs::file_time_type::clock::now() - std::chrono::hours(100 - i));
  }
  EXPECT_LE(files(), 4u);
  EXPECT_TRUE(folder.find("key 7"));
  EXPECT_FALSE(folder.find("key 0"));
}

TEST_F(GpuCodeFolder, OtherFilesStay) {
  const code_folder folder(path_.string(), 1);
  ASSERT_TRUE(folder.keep("key", code_));
  const auto make = [this](const char* name, int hours) {
    std::ofstream(path_ / name) << "a user's file";
    fs::last_write_time(path_ / name, fs::file_time_type::clock::now() - std::chrono::hours(hours));
  };
  make("mine.cubin", 100), make("left.brgemm-unfinished", 2), make("begun.brgemm-unfinished", 0);
  ASSERT_TRUE(folder.keep("another", code_));
  EXPECT_TRUE(fs::exists(path_ / "mine.cubin"));
  EXPECT_TRUE(fs::exists(path_ / "begun.brgemm-unfinished"));
  EXPECT_FALSE(fs::exists(path_ / "left.brgemm-unfinished"));
  EXPECT_EQ(files(), 3u);
  fs::create_directory(folder.file_of("a folder"));
  EXPECT_FALSE(folder.find("a folder"));
  EXPECT_FALSE(folder.keep("a folder", code_));
}

TEST_F(GpuCodeFolder, WithoutAFolderNothingIsKept) {
  std::ofstream(path_.parent_path().parent_path() / "file") << "no folder";
  const code_folder under_a_file((path_.parent_path().parent_path() / "file").string());
  EXPECT_FALSE(under_a_file.keep("key", code_));
  EXPECT_FALSE(under_a_file.find("key"));
  setenv("XDG_CACHE_HOME", path_.c_str(), 1);
  EXPECT_EQ(code_folder("").file_of("key").parent_path(), path_ / "brgemm");
  setenv("XDG_CACHE_HOME", "not/absolute", 1);
  setenv("HOME", path_.c_str(), 1);
  EXPECT_EQ(code_folder("").file_of("key").parent_path(), path_ / ".cache" / "brgemm");
  unsetenv("XDG_CACHE_HOME");
  unsetenv("HOME");
  EXPECT_FALSE(code_folder("").keep("key", code_));
}

TEST_F(GpuCodeFolder, ThreadsShareIt) {
  const std::string path = path_.string();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&path] {
      const code_folder folder(path);
      for (int i = 0; i < 50; ++i) {
        const std::vector<char> code(1000, static_cast<char>('0' + i % 10));
        folder.keep("key " + std::to_string(i % 10), code);
        const auto found = folder.find("key " + std::to_string(i % 10));
        EXPECT_EQ(found, code);
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(files(), 10u);
}

}  // namespace
}  // namespace brgemm::cuda
