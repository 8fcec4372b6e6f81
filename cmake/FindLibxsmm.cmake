# LIBXSMM (Debian: libxsmm-dev, 1.17; or 2.x, say by -DLibxsmm_ROOT=FOLDER). Makes Libxsmm::Libxsmm, without a BLAS
# behind it, and Libxsmm_VERSION.
find_path(Libxsmm_INCLUDE_DIR libxsmm.h PATH_SUFFIXES libxsmm DOC "Folder that has libxsmm.h")
find_library(Libxsmm_LIBRARY xsmm)
find_library(Libxsmm_NOBLAS_LIBRARY xsmmnoblas)
find_package(Threads)
set(Libxsmm_VERSION "")  # where the header does not tell, LIBXSMM counts as not found
if(Libxsmm_INCLUDE_DIR AND EXISTS "${Libxsmm_INCLUDE_DIR}/libxsmm_version.h")
  file(STRINGS "${Libxsmm_INCLUDE_DIR}/libxsmm_version.h" Libxsmm_version_lines
       REGEX "define LIBXSMM_CONFIG_VERSION_(MAJOR|MINOR) +[0-9]+")
  string(REGEX REPLACE "[^0-9]+([0-9]+)[^0-9]+([0-9]+).*" "\\1.\\2" Libxsmm_VERSION "${Libxsmm_version_lines}")
endif()
set(Libxsmm_libraries Libxsmm_LIBRARY)
if("${Libxsmm_VERSION}" VERSION_LESS 2)  # 1.x calls a BLAS; this part of it stands in for one
  list(APPEND Libxsmm_libraries Libxsmm_NOBLAS_LIBRARY)
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Libxsmm REQUIRED_VARS ${Libxsmm_libraries} Libxsmm_INCLUDE_DIR
                                                        Libxsmm_VERSION
                                  VERSION_VAR Libxsmm_VERSION)
mark_as_advanced(Libxsmm_INCLUDE_DIR Libxsmm_LIBRARY Libxsmm_NOBLAS_LIBRARY)
if(Libxsmm_FOUND AND NOT TARGET Libxsmm::Libxsmm)
  add_library(Libxsmm::Libxsmm INTERFACE IMPORTED)
  target_include_directories(Libxsmm::Libxsmm INTERFACE ${Libxsmm_INCLUDE_DIR})
  foreach(library IN LISTS Libxsmm_libraries)
    target_link_libraries(Libxsmm::Libxsmm INTERFACE ${${library}})
  endforeach()
  target_link_libraries(Libxsmm::Libxsmm INTERFACE Threads::Threads ${CMAKE_DL_LIBS} m)
endif()
