# LIBXSMM (Debian: libxsmm-dev). Makes Libxsmm::Libxsmm, without a BLAS behind it.
find_path(Libxsmm_INCLUDE_DIR libxsmm.h DOC "Folder that has libxsmm.h")
find_library(Libxsmm_LIBRARY xsmm)
find_library(Libxsmm_NOBLAS_LIBRARY xsmmnoblas)
find_package(Threads)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Libxsmm REQUIRED_VARS Libxsmm_LIBRARY Libxsmm_NOBLAS_LIBRARY Libxsmm_INCLUDE_DIR)
mark_as_advanced(Libxsmm_INCLUDE_DIR Libxsmm_LIBRARY Libxsmm_NOBLAS_LIBRARY)
if(Libxsmm_FOUND AND NOT TARGET Libxsmm::Libxsmm)
  add_library(Libxsmm::Libxsmm INTERFACE IMPORTED)
  target_include_directories(Libxsmm::Libxsmm INTERFACE ${Libxsmm_INCLUDE_DIR})
  target_link_libraries(Libxsmm::Libxsmm INTERFACE ${Libxsmm_LIBRARY} ${Libxsmm_NOBLAS_LIBRARY} Threads::Threads
                                                   ${CMAKE_DL_LIBS} m)
endif()
