#!/usr/bin/env bash
# One way a user takes the library in, from nothing to a program that ran.
#
#   run.sh CASE SOURCE_DIR WORK_DIR
set -euo pipefail
case_name=$1 source_dir=$2 work_dir=$3/$1
here="$source_dir/tests/consumers"
rm -rf "$work_dir"
mkdir -p "$work_dir"
cd "$work_dir"
warnings=(-Wall -Wextra -Wpedantic -Wconversion -Werror)
compilers=(g++)
if command -v clang++ > /dev/null; then compilers+=(clang++); fi

configure() { cmake -G Ninja -S "$here" -B build -DCMAKE_BUILD_TYPE=Release "$@" > configure.log || { cat configure.log; exit 1; }; }
install_to() {  # prefix, options of CMake...
  cmake -G Ninja -S "$source_dir" -B library -DBRGEMM_TESTS=OFF -DBRGEMM_BENCHMARKS=OFF -DBRGEMM_EXAMPLES=OFF \
        -DCMAKE_INSTALL_PREFIX="$1" "${@:2}" > install.log && cmake --build library >> install.log &&
    cmake --install library >> install.log || { cat install.log; exit 1; }
}
build() { cmake --build build > build.log || { cat build.log; exit 1; }; }
copy_headers() { cp -r "$source_dir/include/brgemm" .; }

case "$case_name" in
  add_subdirectory)
    configure -DBRGEMM_SOURCE_DIR="$source_dir"
    build
    build/consumer ;;
  find_package)
    install_to "$work_dir/prefix"
    configure -DCMAKE_PREFIX_PATH="$work_dir/prefix"
    build
    build/consumer ;;
  libxsmm)
    # brgemm was installed where LIBXSMM is not; the user has it, once as Debian's archive, once as a shared library
    install_to "$work_dir/prefix" -DCMAKE_DISABLE_FIND_PACKAGE_Libxsmm=ON
    archive=$(g++ -print-file-name=libxsmm.a) stand_in=$(g++ -print-file-name=libxsmmnoblas.a)
    for library in "$archive" "$work_dir/libxsmm.so"; do
      [ -e "$library" ] || g++ -shared -o "$library" -Wl,--whole-archive "$archive" "$stand_in" -Wl,--no-whole-archive -pthread -ldl
      configure -DCMAKE_PREFIX_PATH="$work_dir/prefix" -DWITH_LIBXSMM=ON -DLibxsmm_LIBRARY="$library"
      build
      build/consumer
      build/consumer_of_shared_object
      needed=$(readelf -d build/consumer | grep -c 'NEEDED.*libxsmm' || true)
      [ "$needed" -eq "$([ "$library" = "$archive" ] && echo 0 || echo 1)" ] || { echo "not linked with $library"; exit 1; }
      echo "with $(basename "$library"): right"
    done ;;
  without_libxsmm)
    # brgemm may have been installed where LIBXSMM is; this user has none
    install_to "$work_dir/prefix"
    configure -DCMAKE_PREFIX_PATH="$work_dir/prefix" -DCMAKE_DISABLE_FIND_PACKAGE_Libxsmm=ON
    build
    build/consumer
    if cmake -G Ninja -S "$here" -B asked -DCMAKE_PREFIX_PATH="$work_dir/prefix" -DCMAKE_DISABLE_FIND_PACKAGE_Libxsmm=ON \
             -DWITH_LIBXSMM=ON > asked.log 2>&1; then
      echo "the component libxsmm is found although LIBXSMM is not there"
      exit 1
    fi
    grep -q libxsmm asked.log ;;
  cuda)
    install_to "$work_dir/prefix" -DBRGEMM_CUDA=ON -DCMAKE_BUILD_TYPE=Release
    configure -DCMAKE_PREFIX_PATH="$work_dir/prefix" -DWITH_CUDA=ON
    build
    build/consumer
    rm -r build
    configure -DBRGEMM_SOURCE_DIR="$source_dir" -DBRGEMM_CUDA=ON -DWITH_CUDA=ON
    build
    build/consumer ;;
  pkg_config)
    install_to "$work_dir/prefix"
    export PKG_CONFIG_PATH="$work_dir/prefix/share/pkgconfig"
    # shellcheck disable=SC2046
    g++ $(pkg-config --cflags brgemm) "$here/main.cpp" "$here/use.cpp" -o program $(pkg-config --libs brgemm)
    ./program ;;
  copied)
    copy_headers
    for compiler in "${compilers[@]}"; do
      "$compiler" -std=c++20 -I. "$here/main.cpp" "$here/use.cpp" -o program
      ./program
    done ;;
  no_exceptions)
    for compiler in "${compilers[@]}"; do
      "$compiler" -std=c++20 -O1 -fno-exceptions -fno-rtti "${warnings[@]}" -I"$source_dir/include" "$here/main.cpp" "$here/use.cpp" -o program
      ./program
    done ;;
  two_units)
    # the bits must not depend on compiler or flags: each program alone, then two of them linked in both orders (the
    # linker keeps one copy of every inline function)
    compile() {  # object compiler flags...
      local object=$1 compiler=$2
      shift 2
      "$compiler" -std=c++20 "$@" -I"$source_dir/include" -DUSE_NAME=use_with_other_flags -c "$here/use.cpp" -o "$object"
    }
    g++ -std=c++20 -O1 -I"$source_dir/include" -c "$here/use.cpp" -o plain.o
    compile other0.o g++ -O0
    compile other1.o g++ -O3 -march=native -std=gnu++20 -ffp-contract=fast
    compile other2.o g++ -Os -mavx2 -mfma -fno-exceptions
    if [ ${#compilers[@]} -gt 1 ]; then compile other3.o clang++ -O2 -march=native -ffp-contract=fast; fi
    for other in other*.o; do
      g++ -Duse=use_with_other_flags "$here/main.cpp" "$other" -o alone -pthread && ./alone | tee -a digests
      g++ "$here/two_units.cpp" plain.o "$other" -o pair -pthread && ./pair
      g++ "$here/two_units.cpp" "$other" plain.o -o pair -pthread && ./pair
    done
    [ "$(sort -u digests | wc -l)" -eq 1 ] || { echo "the digests differ"; exit 1; } ;;
  shared_object)
    for name in one two; do
      g++ -std=c++20 -O1 -fPIC -shared -I"$source_dir/include" "$here/use.cpp" -o "lib$name.so" -pthread
    done
    g++ -std=c++20 -O1 "$here/plugin_host.cpp" -o host -ldl
    ./host ./libone.so ./libtwo.so
    # a host that carries the headers itself
    g++ -std=c++20 -O1 -rdynamic -I"$source_dir/include" -DUSE_NAME=use_with_other_flags "$here/plugin_host.cpp" "$here/use.cpp" -o full_host -ldl -pthread
    ./full_host ./libone.so ./libtwo.so
    # lists for GDB
    g++ -std=c++20 -O1 -fPIC -shared -I"$source_dir/include" "$here/registered.cpp" -o libthree.so -pthread
    cp libthree.so libfour.so
    g++ -std=c++20 -O1 "${warnings[@]}" "$here/registered_host.cpp" -o registered_host -ldl
    BRGEMM_JIT_PROFILE=gdb ./registered_host ./libthree.so ./libfour.so
    g++ -std=c++20 -O1 "${warnings[@]}" "$here/hidden_host.cpp" -o hidden_host -ldl -pthread
    for compiler in "${compilers[@]}"; do
      "$compiler" -std=c++20 -O1 -fPIC -shared -fvisibility=hidden -I"$source_dir/include" "$here/registered.cpp" -o libfive.so -pthread
      cp libfive.so libsix.so
      BRGEMM_JIT_PROFILE=gdb ./hidden_host ./libfive.so ./libsix.so
    done ;;
  xbyak)
    own=("-DXBYAK_FIRST" "-DXBYAK_LAST" "-DXBYAK_NO_EXCEPTION" "-DXBYAK_DONT_USE_MMAP_ALLOCATOR" "-DXBYAK_NO_EXCEPTION -DXBYAK_DONT_USE_MMAP_ALLOCATOR" "")
    for compiler in "${compilers[@]}"; do
      "$compiler" -std=c++20 -O1 -I"$source_dir/include" -c "$here/use.cpp" -o use.o
      for settings in "${own[@]}"; do
        # shellcheck disable=SC2086
        "$compiler" -std=c++20 -O1 $settings -I"$source_dir/include" -c "$here/user_xbyak.cpp" -o user.o
        "$compiler" user.o use.o -o program -pthread && ./program
        "$compiler" use.o user.o -o program -pthread && ./program
        echo "$compiler ${settings:-plain}: right"
      done
    done ;;
  *)
    echo "unknown case $case_name" >&2
    exit 2 ;;
esac
