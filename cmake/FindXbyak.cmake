# Xbyak, the assembler in a header (Debian: libxbyak-dev). Makes Xbyak::Xbyak.
find_path(Xbyak_INCLUDE_DIR xbyak/xbyak.h DOC "Folder that has xbyak/xbyak.h")
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Xbyak REQUIRED_VARS Xbyak_INCLUDE_DIR
                                  REASON_FAILURE_MESSAGE "install libxbyak-dev, or set Xbyak_INCLUDE_DIR")
mark_as_advanced(Xbyak_INCLUDE_DIR)
if(Xbyak_FOUND AND NOT TARGET Xbyak::Xbyak)
  add_library(Xbyak::Xbyak INTERFACE IMPORTED)
  target_include_directories(Xbyak::Xbyak INTERFACE ${Xbyak_INCLUDE_DIR})
endif()
